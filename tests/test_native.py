"""The native runtime without Python and without images, built here with gcc, under sanitizers too.

tests/native/runtime/ is a program of many tests; each runs in a process of its own.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NATIVE = ROOT / "relu_ops" / "native"
PROGRAM = sorted((ROOT / "tests" / "native" / "runtime").glob("*.c"))

BUILDS = {
    "optimized": ["-O2"],
    "addresses": ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "threads": ["-O1", "-fsanitize=thread"],
}
SKIPPED = 77
"""The exit code of a test that cannot be done here, as Automake has it."""

TEXT = "\n".join(path.read_text() for path in PROGRAM)
NAMES = re.findall(r'^    \{"(\w+)", \1\},$', TEXT, re.MULTILINE)
"""Of the rows of the program's tables."""


def test_every_test_of_the_program_is_run() -> None:
    functions = set(re.findall(r"^static void (\w+)\(void\) \{", TEXT, re.MULTILINE))
    helpers = {"plant", "remove_tree", "settle_threads"}
    assert NAMES and len(NAMES) == len(set(NAMES)) and set(NAMES) == functions - helpers


def run(command: list[str], seconds: float = 300) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RELU_OPS_")}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, env=environment, cwd=ROOT
    )


def dlpack_include() -> Path:
    """Where dlpack.h is: in the wheel that the runtime is built with."""
    found = importlib.util.find_spec("tvm_ffi")
    if found is None or not found.submodule_search_locations:
        pytest.skip("dlpack.h comes with apache-tvm-ffi, which is not installed")
    return Path(found.submodule_search_locations[0]) / "include"


@pytest.fixture(scope="module", params=BUILDS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built in one of the ways; skips where the compiler has not what that takes."""
    gcc = shutil.which("gcc")
    if gcc is None:
        pytest.skip("there is no gcc")
    folder = tmp_path_factory.mktemp(request.param)
    flags = BUILDS[request.param]
    _skip_without(gcc, flags, folder)
    # A part of the program; and what needs Python.
    left_out = {"settings.c", *(path.name for path in NATIVE.glob("python*.c"))}
    sources = [path for path in sorted(NATIVE.glob("*.c")) if path.name not in left_out]
    includes = [f"-I{NATIVE / 'include'}", f"-isystem{dlpack_include()}"]
    defined = ["RELU_OPS_BUILD", 'RELU_OPS_PACKAGE_VERSION="0"', "RELU_OPS_SEMANTICS=1"]
    warnings = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
    built = run(
        [gcc, "-std=c11", "-g", *flags, *warnings, *(f"-D{name}" for name in defined), *includes]
        + [str(path) for path in [*PROGRAM, *sources]]
        + ["-pthread", "-o", str(folder / "test_runtime")]
    )
    assert (built.returncode, built.stderr) == (0, "")
    return folder / "test_runtime"


def _skip_without(gcc: str, flags: list[str], folder: Path) -> None:
    (folder / "nothing.c").write_text("int main(void) { return 0; }\n")
    nothing = folder / "nothing"
    built = run([gcc, *flags, str(folder / "nothing.c"), "-o", str(nothing)])
    if built.returncode:
        pytest.skip(f"gcc cannot build with {' '.join(flags)}: {built.stderr.strip()}")
    started = run([str(nothing)])
    if started.returncode:
        pytest.skip(f"what gcc builds with {' '.join(flags)} does not run: {started.stderr}")


@pytest.mark.parametrize("name", NAMES)
def test_runtime(program: Path, name: str) -> None:
    done = run([str(program), name])
    if done.returncode == SKIPPED:
        pytest.skip(done.stderr.strip())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
