"""Lets an operator on a CUDA device be checked as one on the CPU: NumPy arrays in and out.

Every array is copied into the device's memory as it lies, between bytes that must be left alone,
and outputs are copied back. Needs the driver, and no package of arrays.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from relu_ops.contract.semantics import dlpack_type, dtype_name
from relu_ops.runtime import arrays, driver
from relu_ops.runtime.operator import Operator, number_of
from relu_ops.verification.mirror import Mirror

_CUDA = 2  # DLPack's kind of device


class OnDevice:
    """An operator on a device, called with arrays in the CPU's memory.

    Attributes:
        operator: The operator.
    """

    def __init__(self, operator: Operator) -> None:
        self.operator = operator
        self._device = number_of(operator.device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.operator, name)

    def __call__(self, *inputs: np.ndarray, out: Any = None) -> Any:
        """Copy the inputs in, compute, and copy the outputs back.

        Raises:
            AssertionError: A byte beside an output was written.
        """
        outs = self._outs(inputs, out)
        with _Memory(self._device) as memory:
            taken = [memory.put(x) for x in inputs]
            results = [memory.put(y) for y in outs]
            self.operator(*taken, out=tuple(results) if len(results) > 1 else results[0])
            for y, result in zip(outs, results, strict=True):
                result.copy_to(y)
        return tuple(outs) if len(outs) > 1 else outs[0]

    def _outs(self, inputs: Sequence[np.ndarray], out: Any) -> list[np.ndarray]:
        if out is not None:
            return list(out) if isinstance(out, tuple | list) else [out]
        shapes = self.operator.output_shapes([np.asarray(x).shape for x in inputs])
        tensors = zip(self.operator.outputs, shapes, strict=True)
        return [arrays.allocate(tensor, shape, ())[1] for tensor, shape in tensors]


class _Memory:
    """Copies of arrays on a device, until the end of a call; one for each array."""

    def __init__(self, device: int) -> None:
        self.device = device
        self._copies: dict[int, DeviceArray] = {}
        self._held: list[np.ndarray] = []

    def __enter__(self) -> _Memory:
        return self

    def __exit__(self, *_: object) -> None:
        for copy in self._copies.values():
            copy.free()

    def put(self, x: np.ndarray) -> DeviceArray:
        """The copy of an array: of the same one the same, so that a call in place is one."""
        x = np.asarray(x)
        if id(x) not in self._copies:
            self._held.append(x)
            self._copies[id(x)] = DeviceArray(x, self.device)
        return self._copies[id(x)]


class DeviceArray:
    """A copy of an array in a device's memory, with the same strides and alignment; by DLPack.

    What lies between its elements in the CPU's memory lies there on the device.
    """

    def __init__(self, array: np.ndarray, device: int) -> None:
        if not arrays.is_addressable(array) or not array.dtype.isnative:
            array = np.array(array, array.dtype.newbyteorder("="))  # as a call on the CPU copies it
        self.device, self._mirror = device, Mirror(array)
        self._exported: list[Any] = []
        self._address = driver.allocate(device, self._mirror.bytes.size)
        self._release = weakref.finalize(self, driver.free, device, self._address)
        self._move(driver.copy_in, self._mirror.bytes)

    def _move(self, copy: Any, memory: np.ndarray) -> None:
        address = memory.ctypes.data
        if copy is driver.copy_in:
            copy(self.device, self._address, address, memory.size)
        else:
            copy(self.device, address, self._address, memory.size)

    def copy_to(self, target: np.ndarray) -> None:
        """Copy the elements back, and see that nothing else was written.

        Raises:
            AssertionError: A byte beside them was.
        """
        found = np.empty_like(self._mirror.bytes)
        self._move(driver.copy_out, found)
        self._mirror.copy_to(target, found)

    def write(self, values: np.ndarray) -> None:
        """Put other values into it."""
        self._mirror.write(values)
        self._move(driver.copy_in, self._mirror.bytes)

    def free(self) -> None:
        """Give the memory back, once; it goes with the object otherwise."""
        self._release()

    def __dlpack_device__(self) -> tuple[int, int]:
        """Where it is, as DLPack numbers it."""
        return _CUDA, self.device

    def __dlpack__(self, *, stream: int | None = None, max_version: Any = None) -> Any:
        """A capsule; the memory stays this object's. The copy is there: no stream need wait."""
        mirror = self._mirror
        made, held = capsule(self._address + mirror.first, mirror.array, self.device)
        self._exported.append(held)
        return made


# ---------------------------------------------------------------------------------------------
# DLPack, in ctypes


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("number", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("rank", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_NAME = b"dltensor"


def capsule(address: int, like: np.ndarray, device: int) -> tuple[Any, Any]:
    """Memory of a device as DLPack has it, with the dtype, shape and strides of an array.

    Returns:
        The capsule, and what it points to: to be kept, as the memory is, for as long as anybody
        uses what came of it.
    """
    name = dtype_name(like.dtype)
    assert name is not None
    shape = (ctypes.c_int64 * like.ndim)(*like.shape)
    strides = (ctypes.c_int64 * like.ndim)(*(s // like.dtype.itemsize for s in like.strides))
    tensor = _Tensor(
        address, _Device(_CUDA, device), like.ndim, _Type(*dlpack_type(name), 1), shape, strides, 0
    )
    managed = _Managed(tensor, None, None)
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = (
        ctypes.py_object,
        (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p),
    )
    return new(ctypes.addressof(managed), _NAME, None), (managed, shape, strides)
