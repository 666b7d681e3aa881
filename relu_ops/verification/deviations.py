"""The table of deviations: where others are known to differ from the contract, and why.

One row is one cause, at one node: which engine, in which operators, for which dtypes of their
data, and a mask of the elements that it accounts for. A mask sees the operands, the contract's
result and the engine's, so that a row says not only where but, wherever it can, also what. An
element that no row covers is a failure; nothing is compared with a tolerance.

The tests try every row on its engine: one that shows nowhere any more is to be removed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from relu_ops.contract import reference
from relu_ops.contract.semantics import DTYPES, dtype_name
from relu_ops.verification.compare import same
from relu_ops.verification.referees import ONNX_REFERENCE, ONNXRUNTIME

Mask = np.ndarray | np.bool_ | bool


@dataclass(frozen=True)
class Node:
    """A node that an engine executed.

    Attributes:
        proto: The node.
        opset: The version of ONNX's operators.
        operands: What it was given; None where an optional operand is absent.
        want: What the contract gives for these operands.
        got: What the engine gave.
    """

    proto: Any
    opset: int
    operands: Sequence[np.ndarray | None]
    want: np.ndarray
    got: np.ndarray

    @property
    def x(self) -> np.ndarray:
        """The data: the first operand; the second of Where."""
        return self.operand(1 if self.proto.op_type == "Where" else 0)

    @property
    def dtype(self) -> str:
        """The dtype of the data; that of the result where there is none."""
        return _name(self.x if self.operands else self.want)

    def operand(self, position: int) -> np.ndarray:
        """An operand that must be there."""
        found = self.operands[position]
        assert found is not None
        return found

    def optional(self, position: int) -> np.ndarray | None:
        """An operand that may be absent."""
        return self.operands[position] if position < len(self.operands) else None

    @functools.cached_property
    def version(self) -> int:
        """The opset that last changed the operator."""
        import onnx

        return int(onnx.defs.get_schema(self.proto.op_type, self.opset, "").since_version)

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute, or the schema's default, or the one given here."""
        from onnx import defs, helper

        for attribute in self.proto.attribute:
            if attribute.name == name:
                return helper.get_attribute_value(attribute)
        declared = defs.get_schema(self.proto.op_type, self.opset, "").attributes.get(name)
        if declared is None or not declared.default_value.type:
            return default
        return helper.get_attribute_value(declared.default_value)

    def gave(self, value: np.ndarray) -> np.ndarray:
        """Where the engine gave this value, in the type of the result."""
        got = self.got
        if got.shape != self.want.shape:  # it understood the shapes otherwise, or nothing at all
            return np.asarray(got.shape == value.shape and self._gave(value).all())
        return self._gave(np.broadcast_to(value, got.shape))

    def _gave(self, value: np.ndarray) -> np.ndarray:
        with np.errstate(all="ignore"):
            return same(self.got, value.astype(self.got.dtype))


@dataclass(frozen=True)
class Deviation:
    """A known difference of an engine from the contract.

    Attributes:
        engine: Who differs.
        operators: In which operators of ONNX.
        dtypes: For which dtypes of their data.
        cause: Why, in one line.
        shows: A mask of the elements that it accounts for, among those that differ.
        reshapes: The result may have another shape, too.
        everywhere: It shows on every processor, in each of the operators and dtypes.
    """

    engine: str
    operators: tuple[str, ...]
    dtypes: tuple[str, ...]
    cause: str
    shows: Callable[[Node], Mask]
    reshapes: bool = False
    everywhere: bool = True

    def covers(self, node: Node) -> np.ndarray:
        """A mask of the elements of a node that this accounts for."""
        with np.errstate(all="ignore"):
            return np.broadcast_to(np.asarray(self.shows(node), bool), node.want.shape)

    def covers_all(self, node: Node) -> bool:
        """True where this accounts for a result of another shape."""
        with np.errstate(all="ignore"):
            return self.reshapes and bool(np.all(self.shows(node)))


def of(engine: str, node: Node) -> Iterator[Deviation]:
    """The rows that speak of a node."""
    for row in DEVIATIONS:
        if row.engine != engine or node.proto.op_type not in row.operators:
            continue
        if node.dtype in row.dtypes:
            yield row


def _name(x: np.ndarray) -> str:
    return dtype_name(x.dtype) or str(x.dtype)


# ---------------------------------------------------------------------------------------------
# What shows: masks


def _zero_sign(node: Node) -> Mask:
    """Both are zeros."""
    return (node.want == 0) & (node.got == 0)


def _at_zero(position: int) -> Callable[[Node], Mask]:
    """Where x is zero, x times the factor at a position was given: a zero, or NaN."""

    def shows(node: Node) -> Mask:
        factor = _factor(node) if position == 0 else node.operand(position)
        invalid = (node.got != node.got) & ~np.isfinite(factor.astype(np.float64))
        return (node.x == 0) & ((node.got == 0) | invalid)

    return shows


def _factor(node: Node) -> np.ndarray:
    """The slope of LeakyRelu, in the type of x; that of PRelu."""
    if node.proto.op_type == "PRelu":
        return node.operand(1)
    return np.asarray(np.float32(node.attribute("alpha"))).astype(node.x.dtype)


def _infinite_slope(node: Node) -> Mask:
    return (node.x > 0) & np.isinf(_factor(node).astype(np.float64)) & (node.got != node.got)


def _clip_to_nan(node: Node) -> Mask:
    bounds = [b for b in (node.optional(1), node.optional(2)) if b is not None]
    return (node.got != node.got) & any(bool((b != b).any()) for b in bounds)


def _hard_sigmoid_in_float32(node: Node) -> Mask:
    alpha, beta = (np.float32(node.attribute(name)) for name in ("alpha", "beta"))
    line = np.maximum(0, np.minimum(1, node.x.astype(np.float32) * alpha + beta))
    return node.gave(line) | ((line == 0) & (node.got == 0))


def _unrounded_threshold(node: Node) -> Mask:
    wide = node.x.astype(np.float32) > np.float32(node.attribute("alpha"))
    return node.gave(np.where(wide, node.x, np.zeros_like(node.x)))


def _cast_out_of_range(node: Node) -> Mask:
    if node.want.dtype.kind not in "iu":
        return False
    limits = np.iinfo(node.want.dtype)
    whole = np.trunc(node.x.astype(np.float64))
    return ~((whole >= float(limits.min)) & (whole < float(int(limits.max) + 1)))


def _cast_by_way_of(*ways: Any) -> Callable[[Node], Mask]:
    def shows(node: Node) -> Mask:
        if not DTYPES[_name(node.want)].is_narrow_float:
            return False
        found: Mask = np.zeros(node.want.shape, bool)
        for way in ways:
            found |= node.gave(node.x.astype(way))
        return found

    return shows


def _laid(node: Node, value: np.ndarray) -> np.ndarray:
    """Scale or zero point of a quantization, laid along its axis of x."""
    axis, block = node.attribute("axis", 1), node.attribute("block_size", 0)
    if block:
        return np.repeat(value, block, axis=axis)
    if value.ndim != 1 or value.size == 1 or node.x.ndim < 2:
        return value
    shape = [1] * node.x.ndim
    shape[axis] = -1
    return value.reshape(shape)


def _quotient(node: Node) -> np.ndarray:
    """The level before the zero point, as onnx.reference divides."""
    from onnx import helper

    x, scale = node.x, _laid(node, node.operand(1))
    if precision := node.attribute("precision"):
        dtype = helper.tensor_dtype_to_np_dtype(precision)
        x, scale = x.astype(dtype), scale.astype(dtype)
    return np.rint(x / scale).astype(np.float64)


def _beyond_int32(node: Node) -> Mask:
    """Where the level is NaN, or so large that it may leave int32 with the zero point."""
    return ~(np.abs(_quotient(node)) < 2.0**30)


def _quantized_otherwise(node: Node) -> Mask:
    """Divided in the common type of x and scale, not in that of scale."""
    return node.gave(_quantized(node, _quotient(node)))


def _quantized_in_float32(node: Node) -> Mask:
    """Before opset 23: divided in float32."""
    if node.version >= 23:
        return False
    scale = _laid(node, node.operand(1)).astype(np.float32)
    return node.gave(_quantized(node, np.rint(node.x.astype(np.float32) / scale)))


def _quantized(node: Node, whole: np.ndarray) -> np.ndarray:
    """The level of a quotient, with the zero point, saturated; that of NaN is any."""
    level = np.clip(np.nan_to_num(whole), -(2.0**31), 2.0**31).astype(np.int64)
    zero_point = node.optional(2)
    if zero_point is not None:
        level = level + _laid(node, zero_point).astype(np.int64)
    limits = np.iinfo(node.want.dtype)
    return np.clip(level, limits.min, limits.max)


def _dequantized_in_float32(node: Node) -> Mask:
    level, zero_point = node.x.astype(np.float32), node.optional(2)
    if zero_point is not None:
        level = level - _laid(node, zero_point)
    return node.gave(level * _laid(node, node.operand(1)))


def _wrapped_and_in_float32(node: Node) -> Mask:
    """The difference in int32, the product in float32."""
    level, zero_point = node.x.astype(np.int32), node.optional(2)
    if zero_point is not None:
        level = level - _laid(node, zero_point).astype(np.int32)
    scale = _laid(node, node.operand(1)).astype(np.float32)
    return node.gave(level.astype(np.float32) * scale)


def _infinity_clipped(node: Node) -> Mask:
    """An infinity became the largest number of its sign."""
    largest = np.asarray(ml_dtypes.finfo(node.want.dtype).max)
    return np.isinf(node.want) & node.gave(np.copysign(largest, node.want))


def _nan_is_zero(node: Node) -> Mask:
    return (node.x != node.x) & (node.got == 0)


def _nan_is_the_least(node: Node) -> Mask:
    """Where the quotient, in `precision` or the type of scale, is NaN."""
    from onnx import helper

    scale, precision = _laid(node, node.operand(1)), node.attribute("precision")
    dtype = helper.tensor_dtype_to_np_dtype(precision) if precision else scale.dtype
    quotient = node.x.astype(dtype) / scale.astype(dtype)
    return (quotient != quotient) & (node.got == np.iinfo(node.got.dtype).min)


def _without_axis(node: Node) -> Mask:
    """Operands laid along their last axes, whatever the attribute axis says."""
    if node.version >= 7 or not node.attribute("broadcast", 0):
        return False
    return node.gave(reference.apply(node.proto.op_type, node.operands, {}))


def _slope_along_the_last_axis(node: Node) -> Mask:
    slope = node.operand(1)
    if node.version >= 7 or slope.ndim != 1 or node.x.shape[-1:] not in (slope.shape, (1,)):
        return False
    return node.gave(np.where(node.x > 0, node.x, node.x * slope))


# ---------------------------------------------------------------------------------------------
# The table

_FLOATS = tuple(name for name, row in DTYPES.items() if row.is_float)
_NARROW = ("float16", "bfloat16")
_IEEE = ("float16", "float32", "float64")

DEVIATIONS: tuple[Deviation, ...] = (
    Deviation(
        ONNX_REFERENCE,
        ("Relu", "Max", "Min", "Clip"),
        ("bfloat16", "float32", "float64"),
        "numpy.maximum, minimum and clip return either of two equal zeros",
        _zero_sign,
        everywhere=False,
    ),
    Deviation(
        ONNX_REFERENCE,
        ("LeakyRelu",),
        _FLOATS,
        "LeakyRelu multiplies unless x > 0, so at zero too",
        _at_zero(0),
    ),
    Deviation(
        ONNX_REFERENCE,
        ("PRelu",),
        _FLOATS,
        "PRelu multiplies unless x > 0, so at zero too",
        _at_zero(1),
    ),
    Deviation(
        ONNX_REFERENCE,
        ("LeakyRelu",),
        _FLOATS,
        "LeakyRelu multiplies an infinite slope by the zero of a mask, for x > 0",
        _infinite_slope,
    ),
    Deviation(
        ONNX_REFERENCE,
        ("Clip",),
        _FLOATS,
        "numpy.clip gives NaN for a NaN bound",
        _clip_to_nan,
    ),
    Deviation(
        ONNX_REFERENCE,
        ("HardSigmoid",),
        _NARROW,
        "HardSigmoid of a 16-bit float is computed in float32, attributes too",
        _hard_sigmoid_in_float32,
    ),
    Deviation(
        ONNX_REFERENCE,
        ("ThresholdedRelu",),
        _NARROW,
        "ThresholdedRelu compares with alpha in float32, not rounded to the type of x",
        _unrounded_threshold,
    ),
    Deviation(
        ONNX_REFERENCE,
        ("Sign",),
        ("bfloat16",),
        "ml_dtypes has sign(-0.0) = -0.0",
        _zero_sign,
    ),
    Deviation(
        ONNX_REFERENCE,
        ("Cast", "CastLike"),
        _FLOATS,
        "float to integer out of range is undefined in ONNX, and left to NumPy",
        _cast_out_of_range,
    ),
    Deviation(
        ONNX_REFERENCE,
        ("Cast", "CastLike"),
        ("float64", "int32", "int64", "uint32", "uint64"),
        "float64 and integers reach a 16-bit float by way of another float, rounded twice",
        _cast_by_way_of(np.float32, np.float64),
    ),
    Deviation(
        ONNX_REFERENCE,
        ("QuantizeLinear",),
        ("float16", "bfloat16", "float32", "int32"),
        "QuantizeLinear leaves NaN and levels beyond int32 to NumPy",
        _beyond_int32,
    ),
    Deviation(
        ONNX_REFERENCE,
        ("QuantizeLinear",),
        ("float16", "bfloat16", "float32", "int32"),
        "QuantizeLinear divides in the common type of x and scale",
        _quantized_otherwise,
    ),
    Deviation(
        ONNX_REFERENCE,
        ("DequantizeLinear",),
        ("int8", "uint8", "int16", "uint16", "int32"),
        "DequantizeLinear computes in float32, or in float64, and rounds once",
        _dequantized_in_float32,
    ),
    Deviation(
        ONNX_REFERENCE,
        ("PRelu",),
        _IEEE,
        "before opset 7 PRelu lays a slope along the last axis, not along axis 1",
        _slope_along_the_last_axis,
        reshapes=True,
    ),
    *(
        Deviation(
            ONNX_REFERENCE,
            operators,
            dtypes,
            "before opset 7 the attribute axis of a broadcast is ignored",
            _without_axis,
            reshapes=True,
        )
        for operators, dtypes in (
            (("Add", "Sub", "Mul", "Div"), (*_IEEE, "int32", "int64", "uint32", "uint64")),
            (("Less", "Greater"), _IEEE),
            (("Equal",), ("bool", "int32", "int64")),
            (("And", "Or", "Xor"), ("bool",)),
        )
    ),
    Deviation(
        ONNXRUNTIME,
        ("Where",),
        ("float32", "float64"),
        "Where adds the two masked branches, and -0.0 + 0.0 is 0.0",
        _zero_sign,
    ),
    Deviation(
        ONNXRUNTIME,
        ("Max", "Min"),
        ("float32", "float64"),
        "Max and Min return either of two equal zeros",
        _zero_sign,
        everywhere=False,
    ),
    Deviation(
        ONNXRUNTIME,
        ("Sign",),
        ("float16",),
        "the sign of a float16 NaN is a number",
        _nan_is_zero,
    ),
    Deviation(
        ONNXRUNTIME,
        ("Clip",),
        _IEEE,
        "an absent bound of Clip is the largest finite number: an infinity is clipped to it",
        _infinity_clipped,
    ),
    Deviation(
        ONNXRUNTIME,
        ("Cast",),
        _IEEE,
        "float to integer out of range is undefined in ONNX, and left to the processor",
        _cast_out_of_range,
    ),
    Deviation(
        ONNXRUNTIME,
        ("Cast",),
        ("float64",),
        "float64 reaches float16 by way of float32, rounded twice",
        _cast_by_way_of(np.float32),
    ),
    Deviation(
        ONNXRUNTIME,
        ("QuantizeLinear",),
        ("float16", "float32"),
        "QuantizeLinear gives the least level for NaN",
        _nan_is_the_least,
    ),
    Deviation(
        ONNXRUNTIME,
        ("QuantizeLinear",),
        ("float16",),
        "before opset 23 QuantizeLinear divides float16 in float32",
        _quantized_in_float32,
    ),
    Deviation(
        ONNXRUNTIME,
        ("DequantizeLinear",),
        ("int8", "uint8", "int16", "uint16", "int32"),
        "DequantizeLinear subtracts in int32, which wraps, multiplies in float32, and rounds once",
        _wrapped_and_in_float32,
    ),
)
