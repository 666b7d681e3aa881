"""Opens a library that was already checked, from memory, and finds its functions.

The bytes that were hashed are the bytes that are loaded: they go into a sealed anonymous file,
so that nothing on disk is opened again, and `elf` has read every table of theirs that the dynamic
linker will follow. `tvm_ffi` is imported here and nowhere else.
"""

from __future__ import annotations

import atexit
import ctypes
import dataclasses
import fcntl
import importlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from relu_ops.bundle import digest_of
from relu_ops.errors import BundleError
from relu_ops.runtime import elf, headers, threads
from relu_ops.runtime.threads import Settings

FEW_ELEMENTS = 8192
"""A call of up to as many takes some microseconds at most, and keeps the GIL: to release it costs
30 ns, where a bound call of 16 takes 55."""

_OF_PYTHON = ("compute", "bound")
"""Functions that Python calls by its own convention; the others are tvm-ffi's."""

_ALL_SEALS = 0x1 | 0x2 | 0x4 | 0x8  # F_SEAL_SEAL, SHRINK, GROW, WRITE
_F_ADD_SEALS = 1033

_END_SECONDS, _STEP_SECONDS = 0.5, 0.05


@dataclass(frozen=True)
class Library:
    """The functions of an operator's library; see compiler/entry.c and python.c.

    Attributes:
        call: Computes on arrays that DLPack can express: (inputs..., outputs...).
        bind: As call, but returns a function without arguments that computes.
        call_views: Computes on what a description in memory says, given its address.
        bind_views: As call_views, but returns a function.
        configure: Sets threads and thresholds; see runtime/threads.py.
        end: Says that the interpreter is about to end.
        compute: Of a tuple of NumPy arrays and of one for the output (and optionally the number of
            threads). Returns the output, or None where it cannot; keeps the GIL for few elements.
        bound: As bind_views, for the CPU alone: the function keeps the GIL for few elements, and a
            third argument, which holds the arrays, for as long as it lives. None where the
            description does not fit.
        prepare: For CUDA alone: makes a device ready; see runtime/driver.py.
    """

    call: Callable[..., None]
    bind: Callable[..., Callable[[], None]]
    call_views: Callable[..., None]
    bind_views: Callable[..., Any]
    configure: Callable[..., None]
    end: Callable[[int], None]
    compute: Callable[..., Any]
    bound: Callable[..., Callable[[], None] | None]
    prepare: Callable[[int, int, int], None] | None = None


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
_lock = threading.RLock()
_serial = itertools.count(1)


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


# A fork waits until no other thread is in the middle of opening a library, so that the child finds
# neither this lock taken nor the dynamic linker half way. A thread that opens one may fork itself.
os.register_at_fork(
    before=lambda: _lock.acquire(),
    after_in_parent=lambda: _lock.release(),
    after_in_child=_renew_lock,
)


def open_library(content: bytes, name: str = "the library", kind: str = "cpu") -> Library:
    """Load a library, once per process and content.

    Args:
        content: Its bytes, checked against their digest.
        name: What to call it in a message.
        kind: The kind of its target; what it may name depends on it.

    Raises:
        BundleError: It is not an operator's library, or cannot be loaded.
        ArgumentError: RELU_OPS_NUM_THREADS is no number of threads.
    """
    digest = digest_of(content)
    opened = _opened.get(digest)
    if opened is not None:
        return opened
    elf.check(content, name, kind)
    with _lock:
        if digest not in _opened:
            settings = threads.settings()  # a wrong variable is no fault of the library
            opened = _open(content, name)
            try:
                _configure(opened, settings)
            except (TypeError, ValueError, RuntimeError) as error:
                raise BundleError(f"{name}: does not take its settings: {error}") from error
            _opened[digest] = opened
        return _opened[digest]


def configure_all(settings: Settings) -> None:
    """Configure every library that is open; those opened later take the settings then in force."""
    with _lock:
        for opened in _opened.values():
            _configure(opened, settings)


def _configure(opened: Library, settings: Settings) -> None:
    python = headers.about_python()
    opened.configure(*dataclasses.astuple(settings), FEW_ELEMENTS, ctypes.addressof(python))


def _open(content: bytes, name: str) -> Library:
    ffi: Any = tvm_ffi()
    try:
        library = _load_from_memory(content)
        functions = {
            function: _function(ffi, library, function)
            for function in Library.__dataclass_fields__
            if function != "prepare" or hasattr(library, symbol_of(function))
        }
    except (OSError, AttributeError) as error:
        raise BundleError(f"{name}: cannot be loaded: {error}") from error
    return Library(**functions)


def symbol_of(name: str) -> str:
    """What a library calls a function of `Library`."""
    return f"relu_ops_{name}" if name in _OF_PYTHON else f"__tvm_ffi_{name}"


def _function(ffi: Any, library: ctypes.CDLL, name: str) -> Any:
    address = ctypes.cast(library[symbol_of(name)], ctypes.c_void_p).value or 0
    if name in _OF_PYTHON:
        return headers.function_at(address)
    return ffi.Function.__from_extern_c__(address, keep_alive_object=library)


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


def _end() -> None:
    """Let no thread come back from a library into an interpreter that ends: see entry.c.

    Those that are just coming back have a moment to take the interpreter's lock before it ends.
    """
    name = "Py_IsFinalizing" if sys.version_info >= (3, 13) else "_Py_IsFinalizing"
    address = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
    for opened in list(_opened.values()):
        opened.end(address or 0)
    deadline = time.monotonic() + _END_SECONDS
    while _opened and threading.active_count() > 1 and time.monotonic() < deadline:
        time.sleep(_STEP_SECONDS)
        if not _are_calls_under_way():
            return


def _are_calls_under_way() -> bool:
    """True where another thread is in a module of this folder: it may be waiting for the GIL."""
    folder = os.path.dirname(__file__)
    own = threading.get_ident()
    frames = sys._current_frames().items()
    return any(f.f_code.co_filename.startswith(folder) for key, f in frames if key != own)


atexit.register(_end)
