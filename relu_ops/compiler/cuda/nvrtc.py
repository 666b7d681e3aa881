"""NVIDIA's compiler for device code, as a library: CUDA C++ to machine code and PTX.

NVRTC and nvFatbin come in wheels of their own. They need no CUDA toolkit, no C compiler and no
GPU, and give the same bytes on every machine. Imports neither onnx nor TVM.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

from relu_ops.errors import BuildError, MissingDependencyError

_HINT = "pip install 'relu_ops[cuda]'"


def compile_source(
    source: str, headers: Mapping[str, str], options: Sequence[str], code: str
) -> bytes:
    """Compile CUDA C++.

    Args:
        source: The text.
        headers: Texts that it may include, by name.
        options: Of NVRTC.
        code: What to make: "sm_90" for machine code, "compute_90" for PTX.

    Returns:
        A cubin, or the text of PTX.

    Raises:
        MissingDependencyError: NVRTC or the headers of CUDA's C++ library are not installed.
        BuildError: NVRTC refuses the source or an option; the message has its log.
    """
    library = _nvrtc()
    program = ctypes.c_void_p()
    names = _texts(list(headers))
    contents = _texts(list(headers.values()))
    _check(
        library.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"kernels.cu", len(headers), contents, names
        ),
        "reading the source",
    )
    try:
        flags = [f"--gpu-architecture={code}", *(f"-I{path}" for path in _includes()), *options]
        if library.nvrtcCompileProgram(program, len(flags), _texts(flags)) != 0:
            raise BuildError(f"NVRTC refuses the kernels for {code}:\n{_log(program)}")
        kind = "CUBIN" if code.startswith("sm_") else "PTX"
        return _result(program, kind)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def fat_binary(parts: Mapping[str, bytes]) -> bytes:
    """Put machine code and PTX of several architectures together, compressed.

    Args:
        parts: What `compile_source` made, by its `code`.

    Raises:
        MissingDependencyError: nvFatbin is not installed.
        BuildError: nvFatbin refuses a part.
    """
    library = _nvfatbin()
    handle = ctypes.c_void_p()
    options = _texts(["-compress-all", "-64"])
    _check_fatbin(library.nvFatbinCreate(ctypes.byref(handle), options, 2), "beginning")
    try:
        for code, content in parts.items():
            kind, _, number = code.partition("_")
            add = library.nvFatbinAddCubin if kind == "sm" else library.nvFatbinAddPTX
            arguments = [handle, content, ctypes.c_size_t(len(content)), number.encode(), b"relu"]
            _check_fatbin(add(*arguments, *([] if kind == "sm" else [b""])), f"adding {code}")
        size = ctypes.c_size_t()
        _check_fatbin(library.nvFatbinSize(handle, ctypes.byref(size)), "asking for the size")
        made = ctypes.create_string_buffer(size.value)
        _check_fatbin(library.nvFatbinGet(handle, made), "taking the result")
        return made.raw
    finally:
        library.nvFatbinDestroy(ctypes.byref(handle))


def architectures() -> list[int]:
    """The architectures that the installed NVRTC makes machine code for.

    Raises:
        MissingDependencyError: It is not installed.
    """
    library = _nvrtc()
    count = ctypes.c_int()
    _check(library.nvrtcGetNumSupportedArchs(ctypes.byref(count)), "asking for architectures")
    found = (ctypes.c_int * count.value)()
    _check(library.nvrtcGetSupportedArchs(found), "asking for architectures")
    return list(found)


def version() -> str:
    """The version of NVRTC, for example "13.0".

    Raises:
        MissingDependencyError: It is not installed.
    """
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(
        _nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "asking for its version"
    )
    return f"{major.value}.{minor.value}"


def _texts(texts: Sequence[str]) -> ctypes.Array[ctypes.c_char_p]:
    return (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))


def _log(program: ctypes.c_void_p) -> str:
    return _taken(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog").decode(errors="replace")


def _result(program: ctypes.c_void_p, kind: str) -> bytes:
    content = _taken(program, f"nvrtcGet{kind}Size", f"nvrtcGet{kind}")
    return content.rstrip(b"\0") + b"\0" if kind == "PTX" else content


def _taken(program: ctypes.c_void_p, size_of: str, get: str) -> bytes:
    library = _nvrtc()
    size = ctypes.c_size_t()
    _check(getattr(library, size_of)(program, ctypes.byref(size)), "asking for a size")
    content = ctypes.create_string_buffer(size.value)
    _check(getattr(library, get)(program, content), "taking a result")
    return content.raw


def _check(result: int, asked: str) -> None:
    if result != 0:
        text = _nvrtc().nvrtcGetErrorString
        text.restype = ctypes.c_char_p
        raise BuildError(f"NVRTC: {asked} failed with {text(result).decode()}")


def _check_fatbin(result: int, asked: str) -> None:
    if result != 0:
        text = _nvfatbin().nvFatbinGetErrorString
        text.restype = ctypes.c_char_p
        raise BuildError(f"nvFatbin: {asked} failed with {text(result).decode()}")


# ---------------------------------------------------------------------------------------------
# The wheels


@functools.cache
def folders() -> tuple[Path, ...]:
    """Where the wheels of CUDA 13 lie: `lib` and `include` of all of them."""
    found = importlib.util.find_spec("nvidia")
    places = (found.submodule_search_locations or ()) if found else ()
    return tuple(folder for place in places for folder in Path(place).glob("cu13"))


def _includes() -> list[Path]:
    """The headers of CUDA's C++ library, which TVM's source asks for."""
    found = [folder / "include" / "cccl" for folder in folders()]
    existing = [path for path in found if path.is_dir()]
    if not existing:
        raise MissingDependencyError(
            "building for CUDA needs the package nvidia-cuda-cccl, which is not installed", _HINT
        )
    return existing


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    library = _library("nvidia-cuda-nvrtc", "libnvrtc.so.13")
    # It opens a second library by its bare name, which is found where that is loaded already.
    for folder in folders():
        for path in sorted(folder.glob("lib/libnvrtc-builtins.so.13.*")):
            ctypes.CDLL(str(path))
    return library


@functools.cache
def _nvfatbin() -> ctypes.CDLL:
    return _library("nvidia-nvfatbin", "libnvfatbin.so.13")


def _library(package: str, name: str) -> ctypes.CDLL:
    for folder in folders():
        if (path := folder / "lib" / name).is_file():
            return ctypes.CDLL(str(path))
    raise MissingDependencyError(
        f"building for CUDA needs the package {package}, which is not installed", _HINT
    )
