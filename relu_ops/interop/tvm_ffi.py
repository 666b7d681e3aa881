"""Operators as functions of tvm-ffi, which TVM, JAX (by jax-tvm-ffi) and C++ call without Python.

Such a function takes the inputs and then the outputs, all of them tensors that the caller has, and
computes into the outputs.
"""

from __future__ import annotations

import ctypes
import functools
import uuid
from typing import Any

import tvm_ffi

from relu_ops.errors import ArgumentError, ArgumentTypeError
from relu_ops.native import _python as native
from relu_ops.runtime.operator import Operator

__all__ = ["function", "register"]


def function(operator: Operator) -> Any:
    """An operator as a function.

    Args:
        operator: The operator.

    Returns:
        A `tvm_ffi.Function`. It holds what it needs of the operator's bundle.

    Raises:
        ArgumentTypeError: It is no operator.
    """
    if not isinstance(operator, Operator):
        raise ArgumentTypeError(
            f"operator must be a relu_ops.Operator (not {type(operator).__name__})",
            "load one with relu_ops.load",
        )
    library = _library()
    raised = ctypes.cast(library.TVMFFIErrorSetRaisedFromCStr, ctypes.c_void_p).value
    handle = ctypes.c_void_p()
    held = operator.bundle.handle
    parts = native.packed(held, operator.name, operator.target, raised or 0)
    code = library.TVMFFIFunctionCreate(*map(ctypes.c_void_p, parts), ctypes.byref(handle))
    if code:
        raise MemoryError(f"tvm-ffi makes no function of {operator.name}")
    try:
        return _wrapped(library, handle)
    finally:
        library.TVMFFIObjectDecRef(handle)


def register(operator: Operator, name: str, *, override: bool = False) -> Any:
    """Give tvm-ffi's global table an operator: `tvm_ffi.get_global_func(name)`, C++'s `GetGlobal`.

    Args:
        operator: The operator.
        name: What it is called there.
        override: Replace one of that name.

    Returns:
        The function.

    Raises:
        ArgumentError: There is one of that name already.
    """
    made = function(operator)
    if not override and tvm_ffi.get_global_func(name, allow_missing=True) is not None:
        raise ArgumentError(
            f"tvm-ffi has a global function called {name!r} already",
            "choose another name, or pass override=True",
        )
    tvm_ffi.register_global_func(name, made, override=override)
    return made


@functools.cache
def _library() -> ctypes.CDLL:
    """tvm-ffi's own library, which its Python package has loaded."""
    return ctypes.CDLL(tvm_ffi.libinfo.find_libtvm_ffi())


class _Bytes(ctypes.Structure):
    _fields_ = (("data", ctypes.c_char_p), ("size", ctypes.c_size_t))


def _wrapped(library: ctypes.CDLL, handle: ctypes.c_void_p) -> Any:
    """The Python object of a function: Python gets those with a name, so it has one for now."""
    name = f"relu_ops.{uuid.uuid4()}"
    text = _Bytes(name.encode(), len(name))
    if library.TVMFFIFunctionSetGlobal(ctypes.byref(text), handle, 0):
        raise MemoryError("tvm-ffi takes no more functions")
    try:
        return tvm_ffi.get_global_func(name)
    finally:
        tvm_ffi.registry.remove_global_func(name)
