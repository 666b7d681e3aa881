"""The contract as executable text: one small NumPy function for each primitive operator.

Slow, allocating, obvious. Nothing here is shared with the compiled path but the table in
`semantics`; a result of the compiled operator is right when it has these bits (NaN as NaN).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from relu_ops.contract import ir
from relu_ops.contract.semantics import DTYPES, Dtype, dtype_name

Array = np.ndarray

_PRECISION = {"float16": (11, -14), "bfloat16": (8, -126)}
"""Significant bits and smallest normal exponent of the 16-bit floats (IEEE 754 binary16)."""


def round_to(x: Array, dtype: Dtype) -> Array:
    """Round a wider floating-point array to `dtype`, once, to nearest even.

    The quantum of each element is a power of two, so that the division, the rounding and the
    product are all exact but for the one rounding that is meant.
    """
    if not dtype.is_narrow_float:
        return x.astype(dtype.numpy)
    bits, smallest = _PRECISION[dtype.name]
    exponent = np.frexp(np.where(np.isfinite(x), x, 0))[1] - 1
    quantum = np.ldexp(x.dtype.type(1), np.maximum(exponent, smallest) - (bits - 1))
    return (np.rint(x / quantum) * quantum).astype(np.float32).astype(dtype.numpy)


def _arithmetic(function: Callable[..., Array], *operands: Array) -> Array:
    """Apply a basic IEEE operation in the operands' type with one rounding."""
    dtype = _dtype(operands[0])
    if not dtype.is_narrow_float:
        return function(*operands)
    # 53 bits hold a product of 16-bit floats exactly, and are more than 2 p + 2 for sums and
    # quotients: the second rounding is innocuous (Figueroa, 1995).
    return round_to(function(*(x.astype(np.float64) for x in operands)), dtype)


def _dtype(x: Array) -> Dtype:
    return DTYPES[dtype_name(x.dtype) or ""]


def _like(value: float, x: Array) -> Array:
    """A float32 attribute in the type of x."""
    return cast(np.asarray(np.float32(value)), to=_dtype(x).name)


def relu(x: Array) -> Array:
    return np.where(x < 0, np.zeros_like(x), x)


def leaky_relu(x: Array, *, alpha: float) -> Array:
    return np.where(x < 0, mul(_like(alpha, x), x), x)


def prelu(x: Array, slope: Array) -> Array:
    return np.where(x < 0, mul(slope, x), x)


def thresholded_relu(x: Array, *, alpha: float) -> Array:
    return np.where(x > _like(alpha, x), x, np.zeros_like(x))


def clip(x: Array, low: Array | None, high: Array | None) -> Array:
    if low is not None:
        x = np.where(x < low, low, x)
    if high is not None:
        x = np.where(high < x, high, x)
    return x


def absolute(x: Array) -> Array:
    return np.abs(x)


def negative(x: Array) -> Array:
    return np.negative(x)


def sign(x: Array) -> Array:
    one = np.ones((), x.dtype)
    zero = np.zeros((), x.dtype)
    minus_one = one if _dtype(x).kind == "uint" else np.negative(one)
    return np.where(x > 0, one, np.where(x < 0, minus_one, np.where(x == 0, zero, x)))


def maximum(a: Array, b: Array) -> Array:
    return np.where((a >= b) | (a != a), a, b)


def minimum(a: Array, b: Array) -> Array:
    return np.where((a <= b) | (a != a), a, b)


def add(a: Array, b: Array) -> Array:
    return _arithmetic(np.add, a, b)


def sub(a: Array, b: Array) -> Array:
    return _arithmetic(np.subtract, a, b)


def mul(a: Array, b: Array) -> Array:
    return _arithmetic(np.multiply, a, b)


def div(a: Array, b: Array) -> Array:
    if _dtype(a).is_float:
        return _arithmetic(np.divide, a, b)
    safe = np.where((b == 0) | ((b < 0) & (b + b.dtype.type(1) == 0)), b.dtype.type(1), b)
    floor = a // safe
    truncated = np.where((a % safe != 0) & ((a < 0) != (safe < 0)), floor + a.dtype.type(1), floor)
    by_minus_one = np.where(safe == b, truncated, np.subtract(a.dtype.type(0), a))
    return np.where(b == 0, a.dtype.type(0), by_minus_one).astype(a.dtype)


def where(condition: Array, a: Array, b: Array) -> Array:
    return np.where(condition, a, b)


def cast(x: Array, *, to: str) -> Array:
    source, target = _dtype(x), DTYPES[to]
    if target.kind == "bool":
        return x != 0
    if source.is_float and not target.is_float:
        return _float_to_integer(x.astype(np.float64), target)
    if target.is_narrow_float and source.name != to:
        # The 64-bit significand of an x87 long double holds every 64-bit integer.
        return round_to(x.astype(np.longdouble if source.bits == 64 else np.float64), target)
    return x.astype(target.numpy)


def _float_to_integer(x: Array, target: Dtype) -> Array:
    low, high = np.iinfo(target.numpy).min, np.iinfo(target.numpy).max
    whole = np.trunc(x)
    # float(high) may round up to a power of two: from there on, everything saturates.
    inside = (whole > float(low)) & (whole < float(high))
    result = np.where(inside, whole, 0).astype(target.numpy)
    result = np.where(whole >= float(high), target.numpy.type(high), result)
    return np.where(whole <= float(low), target.numpy.type(low), result)


def quantize_linear(
    x: Array, scale: Array, zero_point: Array | None, *, to: str, precision: str
) -> Array:
    quotient = div(cast(x, to=precision), cast(scale, to=precision))
    whole = np.rint(quotient.astype(np.float64))
    limits = np.iinfo(DTYPES[to].numpy)
    bound = float(2**40)  # beyond any zero point: the sum saturates all the same
    level = np.where(np.isnan(whole), 0, np.clip(whole, -bound, bound)).astype(np.int64)
    if zero_point is not None:
        level = level + zero_point.astype(np.int64)
    return np.clip(level, limits.min, limits.max).astype(DTYPES[to].numpy)


def dequantize_linear(x: Array, scale: Array, zero_point: Array | None, *, to: str) -> Array:
    level = x.astype(np.int64)
    if zero_point is not None:
        level = level - zero_point.astype(np.int64)
    return mul(cast(level, to=to), cast(scale, to=to))


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "Relu": relu,
    "LeakyRelu": leaky_relu,
    "PRelu": prelu,
    "ThresholdedRelu": thresholded_relu,
    "Clip": clip,
    "Abs": absolute,
    "Neg": negative,
    "Sign": sign,
    "Max": maximum,
    "Min": minimum,
    "Add": add,
    "Sub": sub,
    "Mul": mul,
    "Div": div,
    "Where": where,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "Equal": np.equal,
    "Not": np.logical_not,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
    "Cast": cast,
    "QuantizeLinear": quantize_linear,
    "DequantizeLinear": dequantize_linear,
}
"""Every primitive of `semantics.OPERATORS`."""


def apply(operator: str, operands: Sequence[Array | None], attributes: dict[str, Any]) -> Array:
    """Evaluate one primitive operator.

    Args:
        operator: A name of `semantics.PRIMITIVES`.
        operands: Arrays that broadcast together; None where an optional operand is absent.
        attributes: What the frontend left of the node's attributes.
    """
    with np.errstate(all="ignore"):
        return np.asarray(FUNCTIONS[operator](*operands, **attributes))


def evaluate(graph: ir.Graph, inputs: Sequence[Array]) -> list[Array]:
    """Evaluate a graph.

    Args:
        graph: The graph, from `compiler.frontend.import_model`.
        inputs: One array per graph input, of its dtype.

    Returns:
        One array per graph output.
    """
    results: dict[int, Array] = {}
    for index in graph.live_values():
        results[index] = _evaluate_value(graph.values[index], results, inputs)
    shapes = [tuple(x.shape) for x in inputs]
    return [
        np.broadcast_to(
            results[output.value], ir.broadcast_terms(graph.values[output.value].terms, shapes)
        ).copy()
        for output in graph.outputs
    ]


def _evaluate_value(value: ir.Value, results: dict[int, Array], inputs: Sequence[Array]) -> Array:
    if value.kind == "input":
        return np.asarray(inputs[value.input])
    if value.kind == "constant":
        assert value.array is not None
        return value.array
    if value.kind == "view":
        operand = results[value.arguments[0] or 0]
        operand = operand.reshape(operand.shape + (1,) * value.view.trailing)
        if value.view.block == 1:
            return operand
        return np.repeat(operand, value.view.block, axis=operand.ndim - 1 - value.view.axis)
    operands = [None if a is None else results[a] for a in value.arguments]
    return apply(value.operator, operands, dict(value.attributes))
