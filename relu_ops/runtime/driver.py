"""Finds CUDA's driver and devices. Nothing is looked for before it is asked; nothing raises.

The driver is `libcuda.so.1`, which the operating system's driver package brings. An operator's
library gets it handed over: it links against nothing of CUDA's.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from typing import Any

from relu_ops import targets
from relu_ops.targets import Gpu, Machine

_LIBRARY = "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # of CUdevice_attribute


def machine() -> Machine:
    """This machine, its driver and CUDA devices included."""
    driver, problem, gpus = _probe()
    return dataclasses.replace(
        targets.this_machine(), driver=driver, driver_problem=problem, gpus=gpus
    )


def addresses() -> tuple[int, int]:
    """Where a library finds the driver's functions: the addresses of `dlsym` and of the driver.

    Only after `machine` has found a driver.
    """
    lookup = ctypes.cast(ctypes.CDLL(None).dlsym, ctypes.c_void_p).value or 0
    return lookup, _library()._handle


def synchronize(device: int, stream: int) -> None:
    """Wait for a stream of a device.

    Raises:
        OSError: The driver refused, or reports an error of earlier work.
    """
    library = _library()
    handle = _integer(library, library.cuDeviceGet, device)
    context = ctypes.c_void_p()
    _check(library, library.cuDevicePrimaryCtxRetain(ctypes.byref(context), handle))
    _check(library, library.cuCtxPushCurrent_v2(context))
    try:
        _check(library, library.cuStreamSynchronize(ctypes.c_void_p(stream)))
    finally:
        library.cuCtxPopCurrent_v2(ctypes.byref(context))
        library.cuDevicePrimaryCtxRelease_v2(handle)


@functools.cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(_LIBRARY)


@functools.cache
def _probe() -> tuple[tuple[int, int] | None, str, tuple[Gpu, ...]]:
    """The version of CUDA that the driver runs, why there is none, and the devices."""
    try:
        driver = _library()
    except OSError as error:
        return None, str(error), ()
    try:
        _check(driver, driver.cuInit(0))
        version = _integer(driver, driver.cuDriverGetVersion)
        count = _integer(driver, driver.cuDeviceGetCount)
        gpus = tuple(_gpu(driver, number) for number in range(count))
    except (OSError, AttributeError) as error:
        return None, str(error), ()
    return (version // 1000, version % 1000 // 10), "", gpus


def _gpu(driver: ctypes.CDLL, number: int) -> Gpu:
    device = _integer(driver, driver.cuDeviceGet, number)
    name = ctypes.create_string_buffer(256)
    _check(driver, driver.cuDeviceGetName(name, len(name), device))
    major = _integer(driver, driver.cuDeviceGetAttribute, _CAPABILITY_MAJOR, device)
    minor = _integer(driver, driver.cuDeviceGetAttribute, _CAPABILITY_MINOR, device)
    return Gpu(name.value.decode(errors="replace"), 10 * major + minor)


def _integer(driver: ctypes.CDLL, function: Any, *arguments: int) -> int:
    """What a function of the driver writes through its first parameter."""
    result = ctypes.c_int()
    _check(driver, function(ctypes.byref(result), *arguments))
    return result.value


def _check(driver: ctypes.CDLL, code: int) -> None:
    if code == 0:
        return
    text = ctypes.c_char_p()
    driver.cuGetErrorString(code, ctypes.byref(text))
    reason = (text.value or b"unknown error").decode(errors="replace")
    raise OSError(f"{_LIBRARY}: error {code}, {reason}")
