"""The tools behind the compiler: which C compiler, which versions. Imports neither onnx nor TVM."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import shlex
import shutil
import subprocess
from pathlib import Path

from relu_ops._version import __version__
from relu_ops.errors import BuildError

_COMPILERS = ("c++", "g++", "clang++", "cc", "gcc", "clang")
_PACKAGES = ("apache-tvm", "apache-tvm-ffi", "onnx", "numpy", "ml_dtypes")


def c_compiler() -> list[str]:
    """The command of the C compiler: $CXX, $CC, or the first of the usual names on PATH.

    Raises:
        BuildError: There is none.
    """
    for variable in ("CXX", "CC"):
        if os.environ.get(variable):
            return shlex.split(os.environ[variable])
    for name in _COMPILERS:
        if path := shutil.which(name):
            return [path]
    raise BuildError(
        "building an operator needs a C or C++ compiler to link with, and none was found "
        f"(looked for $CXX, $CC, {', '.join(_COMPILERS)})",
        "install one (Debian: apt-get install g++), or load a bundle that was built elsewhere",
    )


def producer() -> dict[str, str]:
    """Everything beside the model that decides a library's bytes, by name and version."""
    versions = {name: installed_version(name) for name in _PACKAGES}
    try:
        compiler = _first_line_of_version(tuple(c_compiler()))
    except BuildError:
        compiler = "absent"
    return {"relu_ops": __version__, **versions, "c_compiler": compiler}


def installed_version(package: str) -> str:
    """The version of a package, or "absent"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


@functools.cache
def _first_line_of_version(command: tuple[str, ...]) -> str:
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.partition("\n")[0].strip() or "unknown"


@functools.cache
def source_digest() -> str:
    """A digest of relu_ops' own sources that decide what is compiled: for developers' caches."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted([*package.glob("*.py"), *package.glob("compiler/*")]):
        if path.suffix in (".py", ".c", ".h"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
