"""The tools behind the compiler: which C compiler, which versions. Imports neither onnx nor TVM."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from relu_ops._version import __version__
from relu_ops.errors import BuildError

_COMPILERS = ("c++", "g++", "clang++", "cc", "gcc", "clang")
_PACKAGES = ("apache-tvm", "apache-tvm-ffi", "onnx", "numpy", "ml_dtypes")


def c_compiler() -> list[str]:
    """The command of the C compiler: $CXX, $CC, or the first of the usual names on PATH.

    Raises:
        BuildError: There is none, or a variable is no command.
    """
    for variable in ("CXX", "CC"):
        if text := os.environ.get(variable, "").strip():
            try:
                return shlex.split(text)
            except ValueError as error:  # a quotation without an end
                raise BuildError(f"{variable} must be a command (not {text!r}: {error})") from error
    for name in _COMPILERS:
        if path := shutil.which(name):
            return [path]
    raise BuildError(
        "building an operator needs a C or C++ compiler to link with, and none was found "
        f"(looked for $CXX, $CC, {', '.join(_COMPILERS)})",
        "install one (Debian: apt-get install g++), or load a bundle that was built elsewhere",
    )


@dataclass(frozen=True)
class Nvcc:
    """NVIDIA's compiler.

    Attributes:
        path: The executable.
    """

    path: Path

    @property
    def command(self) -> list[str]:
        """The beginning of a command, with the host compiler whose preprocessor it uses."""
        compiler = c_compiler()
        return [str(self.path), *(["-ccbin", compiler[0]] if len(compiler) == 1 else [])]

    def __str__(self) -> str:
        return f"nvcc {self.version()}"

    def version(self) -> str:
        """The release of the toolkit, for example "13.0".

        Raises:
            BuildError: The executable does not run.
        """
        found = re.search(r"release ([0-9]+\.[0-9]+)", _output_of((str(self.path), "--version")))
        if not found:
            raise BuildError(f"{self.path}: does not run, or does not tell its version")
        return found[1]

    def architectures(self) -> list[int]:
        """The architectures that it can make machine code for."""
        return sorted(
            int(name)
            for name in re.findall(
                r"^sm_([0-9]+)$", _output_of((str(self.path), "--list-gpu-code")), re.MULTILINE
            )
        )

    def requirements(self) -> dict[str, str]:
        """The release, and the oldest driver for its code: that of the major version's first."""
        version = self.version()
        return {"cuda": version, "driver": f"{version.partition('.')[0]}.0"}


def nvcc() -> Nvcc:
    """NVIDIA's compiler: that of the installed wheels, in $CUDA_HOME, or on PATH.

    The wheels come first: they are what the environment's owner chose for it, by version, while
    CUDA_HOME and PATH are the machine's.

    Raises:
        BuildError: There is none.
    """
    for path in places_of_nvcc():
        if path.is_file() and os.access(path, os.X_OK):
            return Nvcc(path)
    raise BuildError(
        "building for CUDA needs NVIDIA's compiler, and none was found (looked for its wheels, "
        "nvcc in $CUDA_HOME/bin, nvcc on PATH)",
        "pip install 'relu_ops[cuda]'",
    )


def places_of_nvcc() -> Iterator[Path]:
    """Where nvcc may be, in the order in which it is taken."""
    wheels = importlib.util.find_spec("nvidia")
    for folder in (wheels.submodule_search_locations or ()) if wheels else ():
        # cu13 before cu12: the newest toolkit of several.
        yield from sorted(Path(folder).glob("cu*/bin/nvcc"), reverse=True)
    if os.environ.get("CUDA_HOME"):
        yield Path(os.environ["CUDA_HOME"]) / "bin" / "nvcc"
    if found := shutil.which("nvcc"):
        yield Path(found)


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
    return _output_of((*command, "--version")).partition("\n")[0].strip() or "unknown"


@functools.cache
def _output_of(command: tuple[str, ...]) -> str:
    """What a tool prints; nothing where it does not run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


@functools.cache
def source_digest() -> str:
    """A digest of relu_ops' own sources that decide what is compiled: for developers' caches."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted([*package.glob("*.py"), *package.glob("compiler/*")]):
        if path.suffix in (".py", ".c", ".h"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
