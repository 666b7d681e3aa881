"""How the interpreter and compiled operators meet without a layer between.

DLPack costs a quarter of a microsecond per array, more than a small operator itself. NumPy's binary
interface fixes where an array object keeps its data, shape, strides, dtype and flags: python.c
reads them there. This module checks, once per process and field by field, that they are where they
are expected, so that another layout (a debug or free-threaded Python, another implementation) means
the slower way and not a wrong address.

Operators are functions of Python's own calling convention, besides those of tvm-ffi: relu of 16
elements takes 0.18 us through tvm-ffi with two addresses and 0.09 so, and 0.09 and 0.06 where it is
bound (AMD EPYC, Zen 4, Python 3.11, 2026-11-22).
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from relu_ops.semantics import DTYPES


class _Dtype(ctypes.Structure):
    _fields_ = (
        ("references", ctypes.c_int64),
        ("type", ctypes.c_void_p),
        ("scalar_type", ctypes.c_void_p),
        ("kind", ctypes.c_char),
        ("letter", ctypes.c_char),
        ("byteorder", ctypes.c_char),
        ("unused", ctypes.c_char),
        ("type_number", ctypes.c_int32),
    )


class _Array(ctypes.Structure):
    """ArrayHeader of compiler/python.c."""

    _fields_ = (
        ("references", ctypes.c_int64),
        ("type", ctypes.c_void_p),
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("byte_strides", ctypes.POINTER(ctypes.c_int64)),
        ("base", ctypes.py_object),
        ("dtype", ctypes.c_void_p),
        ("flags", ctypes.c_int32),
    )


class _Tuple(ctypes.Structure):
    """TupleHeader of compiler/python.c."""

    _fields_ = (
        ("references", ctypes.c_int64),
        ("type", ctypes.c_void_p),
        ("count", ctypes.c_int64),
    )


_FUNCTIONS = (
    *("Py_IncRef", "Py_DecRef", "PyLong_AsLong", "PyEval_SaveThread", "PyEval_RestoreThread"),
    *("PyCapsule_New", "PyCapsule_GetPointer", "PyCFunction_NewEx"),
)
"""What compiler/python.c calls; all belong to Python's stable binary interface."""


class _Python(ctypes.Structure):
    """Python of compiler/python.c."""

    _fields_ = (
        ("array_type", ctypes.c_void_p),
        ("bfloat16_number", ctypes.c_int64),
        ("items_at", ctypes.c_int64),
        ("none", ctypes.c_void_p),
        *((name, ctypes.c_void_p) for name in _FUNCTIONS),
    )


class _Method(ctypes.Structure):
    """PyMethodDef: how Python's stable binary interface describes a function of C."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_METH_FASTCALL = 0x80

_TYPE_NUMBERS = {
    **{"bool": 0, "int8": 1, "uint8": 2, "int16": 3, "uint16": 4, "int32": 5, "uint32": 6},
    **{"int64": 7, "uint64": 8, "longlong": 9, "ulonglong": 10},
    **{"float32": 11, "float64": 12, "float16": 23},
}


@functools.cache
def array_type() -> int:
    """The address of numpy.ndarray where operators may read headers; 0 where they may not."""
    return id(np.ndarray) if _are_readable() else 0


def about_python() -> ctypes.Structure:
    """What operators have to know of this interpreter."""
    number = DTYPES["bfloat16"].numpy.num
    functions = [ctypes.cast(ctypes.pythonapi[name], ctypes.c_void_p) for name in _FUNCTIONS]
    return _Python(array_type(), number, _items_at(), id(None), *functions)


def function_at(address: int) -> Callable[..., Any]:
    """The Python function of a function of C that takes an array of objects and their count."""
    method = _Method(b"relu_ops", address, _METH_FASTCALL, None)
    # Python reads it for as long as the function lives, which may be longer than any module does:
    # an interpreter that ends clears those first. So it stays for good, as the library does.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(method))
    convention = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, *(ctypes.py_object,) * 2)
    make = convention(("PyCFunction_NewEx", ctypes.pythonapi))
    return make(ctypes.addressof(method), None, "relu_ops")


def _items_at() -> int:
    """Where the items of a tuple begin: a cached hash lies before them from Python 3.14 on."""
    return tuple.__basicsize__


def _are_readable() -> bool:
    """True where the layout is the one that python.c knows, and the GIL keeps it still."""
    gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    if sys.implementation.name != "cpython" or not gil:
        return False
    if object.__basicsize__ != 16 or np.ndarray.__basicsize__ < ctypes.sizeof(_Array):
        return False
    numbers = all(np.dtype(name).num == number for name, number in _TYPE_NUMBERS.items())
    arrays = tuple(_probes())
    items = (ctypes.c_void_p * len(arrays)).from_address(id(arrays) + _items_at())
    return (
        numbers
        and _Tuple.from_address(id(arrays)).count == len(arrays)
        and list(items) == [id(array) for array in arrays]
        and all(_reads_as_it_is(array) for array in arrays)
    )


def _probes() -> list[np.ndarray]:
    """Arrays that differ in every field."""
    plain = np.arange(15, dtype=np.float32).reshape(3, 5)
    frozen = np.zeros((2, 1, 4), np.int8)
    frozen.flags.writeable = False
    swapped = np.zeros(3, np.dtype(">f8"))
    return [plain, plain[::-2, 1::3], plain.T, frozen, swapped, np.zeros((), np.float16)]


def _reads_as_it_is(array: np.ndarray) -> bool:
    header = _Array.from_address(id(array))
    flags = (array.flags.c_contiguous, array.flags.aligned, array.flags.writeable)
    if header.type != id(type(array)) or header.dtype != id(array.dtype):
        return False
    dtype = _Dtype.from_address(header.dtype)
    return (
        header.data == array.ctypes.data
        and header.rank == array.ndim
        and tuple(header.shape[: array.ndim]) == array.shape
        and tuple(header.byte_strides[: array.ndim]) == array.strides
        and tuple(bool(header.flags & bit) for bit in (0x1, 0x100, 0x400)) == flags
        and dtype.type_number == array.dtype.num
        and dtype.byteorder.decode() == array.dtype.byteorder
    )
