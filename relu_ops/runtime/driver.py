"""Asks CUDA's driver what there is, and lets it move memory. Nothing is looked for at import.

Operators run through the native core, which finds the driver for itself; here is what people and
checks want beside that: devices by name, memory of a device, waiting. The driver is the library
that RELU_OPS_CUDA_DRIVER names, else `libcuda.so.1`, which the system's driver package brings.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from relu_ops.errors import DeviceError

_LIBRARY = "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # of CUdevice_attribute


class Gpu(NamedTuple):
    """A device: its name, and its architecture, as 90 for sm_90."""

    name: str
    architecture: int


class Probe(NamedTuple):
    """What there is.

    Attributes:
        version: Of CUDA, that the driver runs at most, as (13, 0); None where there is none.
        problem: Why there is none, or what failed.
        gpus: The devices, by number.
    """

    version: tuple[int, int] | None
    problem: str | None
    gpus: tuple[Gpu, ...]


def probe() -> Probe:
    """Look for a driver and its devices. Never raises."""
    version = None
    try:
        number = _integer("cuDriverGetVersion")
        version = (number // 1000, number % 1000 // 10)
        return Probe(version, None, tuple(_gpu(k) for k in range(_integer("cuDeviceGetCount"))))
    except DeviceError as error:
        return Probe(version, error.message, ())


def synchronize(device: int, stream: int) -> None:
    """Wait for a stream of a device.

    Raises:
        DeviceError: The driver refused, or reports an error of earlier work.
    """
    with _context(device):
        _check("cuStreamSynchronize", ctypes.c_void_p(stream))


def allocate(device: int, size: int) -> int:
    """Allocate memory of a device; where it lies. To be given to `free`.

    Raises:
        DeviceError: There is none, or the driver refused.
    """
    address = ctypes.c_uint64()
    with _context(device):
        _check("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
    return address.value


def free(device: int, address: int) -> None:
    """Give memory back."""
    with _context(device):
        _check("cuMemFree_v2", ctypes.c_uint64(address))


def copy_in(device: int, address: int, source: int, size: int) -> None:
    """Copy from the CPU's memory, at the address `source`, and wait until it is there."""
    with _context(device):
        arguments = (ctypes.c_uint64(address), ctypes.c_void_p(source), ctypes.c_size_t(size))
        _check("cuMemcpyHtoD_v2", *arguments)
        _check("cuStreamSynchronize", ctypes.c_void_p(0))


def copy_out(device: int, target: int, address: int, size: int) -> None:
    """Copy to the CPU's memory, at the address `target`, after all work on the default stream."""
    with _context(device):
        _check("cuStreamSynchronize", ctypes.c_void_p(0))
        arguments = (ctypes.c_void_p(target), ctypes.c_uint64(address), ctypes.c_size_t(size))
        _check("cuMemcpyDtoH_v2", *arguments)


def copy_within(device: int, to: int, address: int, size: int) -> None:
    """Put a copy from one place of a device's memory to another on the default stream."""
    with _context(device):
        arguments = (ctypes.c_uint64(to), ctypes.c_uint64(address), ctypes.c_size_t(size))
        _check("cuMemcpyDtoDAsync_v2", *arguments, ctypes.c_void_p(0))


def elapsed_seconds(device: int, work: Callable[[], object]) -> float:
    """How long the default stream takes for what is put on it, by the device's own clock.

    Args:
        device: Whose.
        work: Puts it there.
    """
    start, end, milliseconds = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_float()
    with _context(device):
        for event in (start, end):
            _check("cuEventCreate", ctypes.byref(event), 0)
        try:
            _check("cuEventRecord", start, ctypes.c_void_p(0))
            work()
            _check("cuEventRecord", end, ctypes.c_void_p(0))
            _check("cuEventSynchronize", end)
            _check("cuEventElapsedTime", ctypes.byref(milliseconds), start, end)
        finally:
            for event in (start, end):
                _check("cuEventDestroy_v2", event)
    return milliseconds.value * 1e-3


@functools.cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(os.environ.get("RELU_OPS_CUDA_DRIVER") or _LIBRARY)
    except OSError as error:
        raise DeviceError(
            f"CUDA's driver cannot be used: {error}",
            "install NVIDIA's driver, or load an image for the CPU",
        ) from error
    _check_with(library, "cuInit", 0)
    return library


def _gpu(number: int) -> Gpu:
    handle = _integer("cuDeviceGet", number)
    name = ctypes.create_string_buffer(256)
    _check("cuDeviceGetName", name, len(name), handle)
    major = _integer("cuDeviceGetAttribute", _CAPABILITY_MAJOR, handle)
    minor = _integer("cuDeviceGetAttribute", _CAPABILITY_MINOR, handle)
    return Gpu(name.value.decode(errors="replace"), 10 * major + minor)


@functools.cache
def _primary_context(device: int) -> int:
    """The context that every package of the process uses; held as long as the process lives."""
    context = ctypes.c_void_p()
    _check("cuDevicePrimaryCtxRetain", ctypes.byref(context), _integer("cuDeviceGet", device))
    return context.value or 0


@contextlib.contextmanager
def _context(device: int) -> Iterator[None]:
    popped = ctypes.c_void_p()
    _check("cuCtxPushCurrent_v2", ctypes.c_void_p(_primary_context(device)))
    try:
        yield
    finally:
        _check("cuCtxPopCurrent_v2", ctypes.byref(popped))


def _integer(name: str, *arguments: int) -> int:
    """What a function of the driver writes through its first parameter."""
    result = ctypes.c_int()
    _check(name, ctypes.byref(result), *arguments)
    return result.value


def _check(name: str, *arguments: Any) -> None:
    _check_with(_library(), name, *arguments)


def _check_with(library: ctypes.CDLL, name: str, *arguments: Any) -> None:
    """Call a function of the driver.

    Raises:
        DeviceError: It failed, or there is none: the message has the driver's name for the error.
    """
    try:
        code = getattr(library, name)(*arguments)
    except AttributeError as error:
        raise DeviceError(f"CUDA's driver is too old: it has no function {name}") from error
    if code != 0:
        known, words = ctypes.c_char_p(), ctypes.c_char_p()
        library.cuGetErrorName(code, ctypes.byref(known))
        library.cuGetErrorString(code, ctypes.byref(words))
        shown, reason = ((each.value or b"unknown").decode() for each in (known, words))
        raise DeviceError(f"CUDA's driver: {name} failed with {shown} ({code}, {reason})")
