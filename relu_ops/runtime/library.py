"""Opens a library that was already checked, from memory, and finds its functions.

The bytes that were hashed are the bytes that are loaded: they go into a sealed anonymous file,
so that nothing on disk is opened again. `tvm_ffi` is imported here and nowhere else.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import itertools
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from relu_ops.bundle import digest_of
from relu_ops.errors import BundleError
from relu_ops.runtime import threads
from relu_ops.runtime.threads import Settings

_ALL_SEALS = 0x1 | 0x2 | 0x4 | 0x8  # F_SEAL_SEAL, SHRINK, GROW, WRITE
_F_ADD_SEALS = 1033


@dataclass(frozen=True)
class Library:
    """The functions of an operator's library; see compiler/entry.c.

    Attributes:
        call: Computes on arrays that DLPack can express: (inputs..., outputs...).
        bind: As call, but returns a function without arguments that computes.
        call_views: Computes on what a description in memory says, given its address.
        bind_views: As call_views, but returns a function.
        configure: Sets threads, parallel bytes and streaming bytes; see runtime/threads.py.
    """

    call: Callable[..., None]
    bind: Callable[..., Callable[[], None]]
    call_views: Callable[[int], None]
    bind_views: Callable[[int], Callable[[], None]]
    configure: Callable[[int, int, int], None]


def tvm_ffi() -> ModuleType:
    """Import tvm_ffi, without the second that it would spend on importing torch.

    A torch that is already imported stays visible to it.
    """
    if "tvm_ffi" in sys.modules or "torch" in sys.modules:
        return importlib.import_module("tvm_ffi")
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("tvm_ffi")
    finally:
        del sys.modules["torch"]


_opened: dict[str, Library] = {}
_lock = threading.Lock()
_serial = itertools.count(1)


def open_library(content: bytes) -> Library:
    """Load a library, once per process and content.

    Raises:
        BundleError: It cannot be loaded, or it is not an operator's library.
    """
    digest = digest_of(content)
    with _lock:
        if digest not in _opened:
            opened = _open(content)
            _configure(opened, threads.settings())
            _opened[digest] = opened
        return _opened[digest]


def configure_all(settings: Settings) -> None:
    """Configure every library that is open; those opened later take the settings then in force."""
    with _lock:
        for opened in _opened.values():
            _configure(opened, settings)


def _configure(opened: Library, settings: Settings) -> None:
    opened.configure(settings.threads, settings.parallel_bytes, settings.stream_bytes)


def _open(content: bytes) -> Library:
    ffi: Any = tvm_ffi()
    try:
        library = _load_from_memory(content)
        functions = {
            name: ffi.Function.__from_extern_c__(
                ctypes.cast(library[f"__tvm_ffi_{name}"], ctypes.c_void_p).value,
                keep_alive_object=library,
            )
            for name in Library.__dataclass_fields__
        }
    except (OSError, AttributeError) as error:
        raise BundleError(f"the library cannot be loaded: {error}") from error
    return Library(**functions)


def _load_from_memory(content: bytes) -> ctypes.CDLL:
    """Load a library from a sealed anonymous file.

    The file stays open for good, one descriptor per library: tools that look into loaded
    libraries (libbacktrace, which TVM carries, and profilers) open and map them by their path, and
    would die of a bus error where the descriptor's number now belongs to a shorter file.
    """
    descriptor = os.memfd_create("relu_ops", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        fcntl.fcntl(descriptor, _F_ADD_SEALS, _ALL_SEALS)
        return ctypes.CDLL(_unique_path(descriptor), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    except OSError:
        os.close(descriptor)
        raise


def _unique_path(descriptor: int) -> str:
    """A path of a descriptor that no library was loaded from before.

    The dynamic linker knows libraries by path, and a daemon may close every descriptor, so that
    the number comes back: a serial number is written into the path as steps ("./" or ".//") that
    lead nowhere.
    """
    steps = "".join("./" if bit == "0" else ".//" for bit in f"{next(_serial):b}")
    return f"/proc/self/fd/{steps}{descriptor}"
