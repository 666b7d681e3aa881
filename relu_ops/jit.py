"""Compiles when asked and remembers: `compile`, `relu` and `leaky_relu`.

The only place that knows the compiler, the cache and the runtime. A warm cache answers without
importing TVM; `relu` and `leaky_relu` then do not even import onnx.
"""

from __future__ import annotations

import functools
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_ops import cache, targets
from relu_ops.compiler.toolchain import nvcc, producer, source_digest
from relu_ops.errors import ArgumentError, ArgumentTypeError, require
from relu_ops.runtime import arrays, dispatch
from relu_ops.runtime.operator import Operator
from relu_ops.semantics import DTYPES, dtype_name

if TYPE_CHECKING:
    from relu_ops.compiler.frontend import Model


_FLOATS = tuple(name for name, row in DTYPES.items() if row.is_float)
_DTYPES = {"relu": (*_FLOATS, "int8", "int16", "int32", "int64"), "leaky_relu": _FLOATS}
"""What ONNX has these two for, as in `graphs`, which would import onnx to say it."""


def compile(model: Model, target: str = "native") -> Operator:
    """Compile a model for this machine, through the compile cache.

    Args:
        model: An `onnx.ModelProto`, its bytes, or the path of a file.
        target: A target by name; "native" is the best level that this machine's CPU runs, "cuda"
            gives an operator for the device cuda:0.

    Returns:
        The operator.

    Raises:
        MissingDependencyError: onnx or TVM is not installed.
        ModelError: The model is not valid ONNX; as `UnsupportedError` if it is, but out of scope.
        TargetError: The target is not known or cannot run here.
        BuildError: A tool is missing or failed.
    """
    require("onnx", "compile", "relu_ops.compile")
    from relu_ops.compiler import frontend

    proto = frontend.read_model(model)
    content = proto.SerializeToString(deterministic=True)
    return _compiled(content, lambda: proto, target)


def _compiled(identity: bytes, make_model: Any, target: str) -> Operator:
    chosen = targets.resolve(target)
    cuda = chosen.kind == "cuda"
    made_by = {**producer(), "sources": source_digest()} | ({"nvcc": str(nvcc())} if cuda else {})
    key = cache.key_of(identity, chosen.name, made_by)

    def make() -> Any:
        require("tvm", "compile", "compiling an operator")
        from relu_ops import compiler

        return compiler.make(make_model(), [chosen.name])

    number = 0 if cuda else None
    return dispatch.operator_of(cache.fetch(key, make), target=chosen.name, number=number)


@functools.cache
def _standard(graph: str, dtype: str, alpha: str | None = None) -> Operator:
    """A graph of `relu_ops.graphs`, known by its name, dtype and slope.

    The slope is a hexadecimal text: exact, and other than for numbers, 0.0 and -0.0 are two keys.
    """

    def make_model() -> Any:
        require("onnx", "compile", f"relu_ops.{graph}")
        from relu_ops import graphs

        slope = {} if alpha is None else {"alpha": float.fromhex(alpha)}
        return graphs.GRAPHS[graph](dtype=dtype, **slope)

    identity = json.dumps([graph, dtype, alpha]).encode()
    return _compiled(identity, make_model, "native")


def relu(x: Any, out: Any = None) -> Any:
    """Compute 0 where x < 0, else x. Compiled on first use.

    Args:
        x: An array of any shape, of float16, bfloat16, float32, float64 or int8 to int64; Python
            floats become float32.
        out: Where to write; may be x.

    Returns:
        An array of the shape and dtype of x: `out` where it was given.

    >>> import numpy as np
    >>> relu(np.array([-1.5, -0.0, 2.0], dtype=np.float32))
    array([ 0., -0.,  2.], dtype=float32)
    """
    return _operator("relu", _dtype_of(x, "relu"))(x, out=out)


def leaky_relu(x: Any, alpha: float = 0.01, out: Any = None) -> Any:
    """Compute alpha * x where x < 0, else x. Compiled on first use for each alpha.

    Args:
        x: An array of any shape, of float16, bfloat16, float32 or float64; Python floats become
            float32.
        alpha: The slope below zero; rounded to float32, then to the dtype of x.
        out: Where to write; may be x.

    Returns:
        An array of the shape and dtype of x: `out` where it was given.

    >>> import numpy as np
    >>> leaky_relu(np.array([-2.0, 3.0], dtype=np.float32), alpha=0.5)
    array([-1.,  3.], dtype=float32)
    """
    if not isinstance(alpha, _NUMBERS):
        raise ArgumentTypeError(f"leaky_relu: alpha must be a number (not {type(alpha).__name__})")
    try:
        slope = float(alpha)
    except OverflowError as error:
        raise ArgumentError(f"leaky_relu: alpha must be finite in float32 (not {alpha})") from error
    dtype = _dtype_of(x, "leaky_relu")
    return _operator("leaky_relu", dtype, slope, math.copysign(1, slope))(x, out=out)


# What follows runs at every call: a type made of two with | takes longer than the arithmetic.

_ARRAYS = (np.ndarray, np.generic)
_NUMBERS = (int, float, np.integer, np.floating)


def _dtype_of(x: Any, graph: str) -> Any:
    """The dtype of an array, as its library has it; what Python's numbers become otherwise."""
    if isinstance(x, _ARRAYS) or arrays.is_torch(x):
        return x.dtype
    if hasattr(x, "__dlpack__"):
        return x.dtype if hasattr(x, "dtype") else arrays.from_dlpack(x, f"{graph}: x").dtype
    return arrays.made_array(x, f"{graph}: x").dtype if arrays.has_dtype(x) else "float32"


@functools.cache
def _operator(graph: str, dtype: Any, alpha: float | None = None, sign: float = 1) -> Operator:
    """As `_standard`, for what `_dtype_of` gives, and a slope with its sign: 0.0 == -0.0."""
    name: str | None
    if isinstance(dtype, np.dtype):
        name = dtype_name(dtype.newbyteorder("="))
    else:
        name = str(dtype).rpartition(".")[2]
    if name is None or name not in _DTYPES[graph]:
        raise ArgumentTypeError(
            f"{graph}: x.dtype must be one of {', '.join(_DTYPES[graph])} (not {dtype})",
            "convert it first, for example to float32",
        )
    return _standard(graph, name, None if alpha is None else alpha.hex())
