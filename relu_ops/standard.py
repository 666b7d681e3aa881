"""The standard operators `relu` and `leaky_relu`: of an array, the operator for its dtype.

A released wheel holds them compiled for every dtype and CPU target, in one bundle. A source
checkout has none: there they are compiled on first use, once for each dtype.

They are the functions below behind native ones, which answer by themselves for a NumPy array whose
dtype was met (native/python_standard.c).
"""

from __future__ import annotations

import functools
import numbers
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from relu_ops.bundle import store as bundles
from relu_ops.contract.semantics import DTYPES, dtype_name
from relu_ops.errors import ArgumentError, ArgumentTypeError, require
from relu_ops.native._python import Standard
from relu_ops.runtime import arrays, carried, dispatch
from relu_ops.runtime.operator import Operator

BUNDLE = Path(__file__).with_name("standard.bundle")
"""Where a released wheel has them."""

_FLOATS = tuple(name for name, row in DTYPES.items() if row.is_float)
_DTYPES = {"relu": (*_FLOATS, "int8", "int16", "int32", "int64"), "leaky_relu": _FLOATS}
"""What ONNX has these two for, as in `graphs`, which would import onnx to say it."""

_ANY_SLOPE = "_of_any_slope"
_GRAPHS = {
    **_DTYPES,
    f"leaky_relu{_ANY_SLOPE}": _FLOATS,
    "relu_grad": _FLOATS,
    f"leaky_relu_grad{_ANY_SLOPE}": _FLOATS,
}
"""The graphs of `graphs` that compute them and their gradients, and their dtypes."""

_USUAL_SLOPE = 0.01
"""It has kernels of its own: as an operand a slope takes up to 1.9 times as long (float64 on
x86-64-v2, 4k elements, AMD EPYC, Zen 4 or 5, 2026-11-28)."""

_BOUNDS = {
    "float16": 65520.0,
    "bfloat16": (2 - 2**-8) * 2.0**127,
    "float32": (2 - 2**-24) * 2.0**127,
}
"""From which number on one is rounded to infinity. A slope is float32 first, for float64 too."""


def _relu(x: Any, out: Any = None) -> Any:
    """Compute 0 where x < 0, else x.

    Args:
        x: An array of any shape, of float16, bfloat16, float32, float64 or int8 to int64; Python
            floats become float32.
        out: Where to write; may be x.

    Returns:
        An array of the shape and dtype of x; `out` where it was given.

    >>> import numpy as np
    >>> relu(np.array([-1.5, -0.0, 2.0], dtype=np.float32))
    array([ 0., -0.,  2.], dtype=float32)
    """
    dtype, name = _dtype_of(x, "relu")
    op = operator("relu", name)
    if isinstance(dtype, np.dtype):
        relu.remember(dtype.num, op, False)
    return op(x, out=out)


def _leaky_relu(x: Any, alpha: float = _USUAL_SLOPE, out: Any = None) -> Any:
    """Compute alpha * x where x < 0, else x.

    Args:
        x: An array of any shape, of float16, bfloat16, float32 or float64; Python floats become
            float32.
        alpha: The slope below zero; rounded to float32, then to the dtype of x. A new one is no
            new operator: it is passed to the one that there is.
        out: Where to write; may be x.

    Returns:
        An array of the shape and dtype of x; `out` where it was given.

    >>> import numpy as np
    >>> leaky_relu(np.array([-2.0, 3.0], dtype=np.float32), alpha=0.5)
    array([-1.,  3.], dtype=float32)
    """
    slope = _real(alpha)
    dtype, name = _dtype_of(x, "leaky_relu")
    usual = slope == _USUAL_SLOPE
    op = operator("leaky_relu" if usual else f"leaky_relu{_ANY_SLOPE}", name)
    if isinstance(dtype, np.dtype):
        leaky_relu.remember(dtype.num, op, not usual)
    return op(x, out=out) if usual else op(x, rounded(slope, name), out=out)


for _function in (_relu, _leaky_relu):
    _function.__name__ = _function.__qualname__ = _function.__name__.removeprefix("_")

relu = Standard(_relu, False)
leaky_relu = Standard(_leaky_relu, True)


def _real(alpha: Any) -> float:
    """A slope as a float; infinite where it is too large, as an integer can be."""
    if isinstance(alpha, bool) or not isinstance(alpha, numbers.Real):
        raise ArgumentTypeError(
            f"leaky_relu: alpha must be a real number (not {alpha!r})",
            "a slope for each channel is a PRelu: compile relu_ops.graphs.prelu()",
        )
    try:
        return float(alpha)
    except OverflowError:
        return float("inf")


def rounded(alpha: float, dtype: str) -> float:
    """A slope as float32, which is what an ONNX attribute holds.

    Raises:
        ArgumentError: It is not finite, or not in the dtype.
    """
    if -_BOUNDS["float32"] < alpha < _BOUNDS["float32"]:
        single = float(np.float32(alpha))
        if abs(single) < _BOUNDS.get(dtype, _BOUNDS["float32"]):
            return single
    raise ArgumentError(
        f"leaky_relu: alpha must be finite in {dtype} (not {alpha!r})",
        f"the largest number of {dtype} is {ml_dtypes.finfo(DTYPES[dtype].numpy).max}",
    )


@functools.cache
def operator(graph: str, dtype: str) -> Operator:
    """The operator of a row of `_GRAPHS`: shipped with a released wheel, or compiled."""
    shipped = _shipped()
    if shipped is not None:
        return dispatch.operator_of(shipped, name=_name(graph, dtype))
    from relu_ops import jit

    return jit.compiled(f"{graph} {dtype}".encode(), lambda: _model(graph, dtype), "native")


@functools.cache
def _shipped() -> bundles.Bundle | None:
    """The bundle of a released wheel; None in a source checkout."""
    return bundles.read(BUNDLE) if BUNDLE.is_dir() else None


def models() -> dict[str, Any]:
    """What the bundle of a released wheel holds, by name: ONNX models."""
    return {
        _name(graph, dtype): _model(graph, dtype)
        for graph, dtypes in _GRAPHS.items()
        for dtype in dtypes
    }


def _name(graph: str, dtype: str) -> str:
    return f"{graph}_{dtype}"


def _model(graph: str, dtype: str) -> Any:
    require("onnx", "compile", f"relu_ops.{graph.removesuffix(_ANY_SLOPE)}")
    from relu_ops import graphs

    return getattr(graphs, graph)(dtype=dtype)


def _dtype_of(x: Any, graph: str) -> tuple[Any, str]:
    """The dtype of an array, as its library has it, and the name that relu_ops has for it.

    What has no dtype of its own has None, and is computed as float32.
    """
    dtype = _own_dtype(x, graph)
    if dtype is None:
        return None, "float32"
    native = isinstance(dtype, np.dtype)
    name = dtype_name(dtype.newbyteorder("=")) if native else str(dtype).rpartition(".")[2]
    if name is None or name not in _DTYPES[graph]:
        raise ArgumentTypeError(
            f"{graph}: x.dtype must be one of {', '.join(_DTYPES[graph])} (not {dtype})",
            "convert it first, for example to float32",
        )
    return dtype, name


def _own_dtype(x: Any, graph: str) -> Any:
    if isinstance(x, np.ndarray | np.generic) or arrays.is_torch(x):
        return x.dtype
    carried.check(x, f"{graph}: x")
    if hasattr(x, "__dlpack__"):
        return x.dtype if hasattr(x, "dtype") else arrays.from_dlpack(x, f"{graph}: x").dtype
    return arrays.made_array(x, f"{graph}: x").dtype if arrays.has_dtype(x) else None
