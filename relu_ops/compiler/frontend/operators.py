"""What each operator means: a handler for each form of a row of `semantics.OPERATORS`, or its own.

A handler takes one node and gives the value of its result, made of primitive operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx

from relu_ops.compiler.frontend.check import array_of
from relu_ops.compiler.frontend.compositions import compose
from relu_ops.compiler.frontend.limits import DECLARED_RANK
from relu_ops.compiler.frontend.scope import (
    ELEMENT_TYPES,
    SUPPORTED_DTYPES,
    Frame,
    element_type_name,
)
from relu_ops.contract import ir, reference
from relu_ops.contract.semantics import OPERATORS, Form, Row
from relu_ops.contract.shapes import show as show_shape
from relu_ops.errors import ModelError, UnsupportedError


class _Importer(Protocol):
    """What handlers use of the importer."""

    values: list[ir.Value]
    shapes: list[ir.Shape | None]

    def constant(self, array: np.ndarray, shape: tuple[int, ...] | None = None) -> int: ...
    def seen(self, value: int, view: ir.View) -> int: ...
    def extents(self, value: int, axis: int) -> int: ...
    def require(self, what: str, value: int, into: int | None) -> None: ...
    def apply(
        self,
        operator: str,
        operands: Sequence[int | None],
        dtype: str,
        attributes: Mapping[str, Any] | None = None,
        shaped_by: Sequence[int] | None = None,
    ) -> int: ...


@dataclass(frozen=True)
class Call:
    """One node, seen by its handler.

    Attributes:
        importer: What builds the graph.
        node: The node, with what its attributes refer to in their place.
        frame: Where it stands.
        version: The version of its operator.
        operands: The values that it takes; None where an optional one is absent.
        attributes: Its attributes' values.
    """

    importer: _Importer
    node: onnx.NodeProto
    frame: Frame
    version: int
    operands: list[int | None]
    attributes: dict[str, Any]

    @property
    def where(self) -> str:
        """The node, for a message."""
        return self.frame.describe(self.node)

    def named(self, value: int) -> str:
        """An operand's name in the model, after a space; nothing for what is no operand."""
        pairs = zip(self.node.input, self.operands, strict=True)
        return next((f" {name!r}" for name, operand in pairs if operand == value), "")

    def operands_shown(self) -> str:
        """The operands with their shapes, for a message."""
        pairs = zip(self.node.input, self.operands, strict=True)
        return " and ".join(
            f"{name!r} of shape {show_shape(self.importer.shapes[operand])}"
            for name, operand in pairs
            if operand is not None
        )

    def operand(self, position: int) -> int | None:
        """An operand, or None where it is absent."""
        return self.operands[position] if position < len(self.operands) else None

    def required(self) -> list[int]:
        """All operands, none of which may be absent."""
        if None in self.operands:
            raise ModelError(f"{self.where}: every input of {self.node.op_type} is needed")
        return [o for o in self.operands if o is not None]

    def dtype(self, value: int) -> str:
        """The dtype of a value."""
        return self.importer.values[value].dtype

    def rank(self, value: int) -> int | None:
        """The rank of a value, or None where it is unknown."""
        shape = self.importer.shapes[value]
        return None if shape is None else len(shape)

    def is_single(self, value: int) -> bool:
        """True for one element, whatever the rank."""
        shape = self.importer.shapes[value]
        return shape is not None and all(dim == 1 for dim in shape)

    def scalar(self, value: float, like: int) -> int:
        """A float32 constant in the type of another value, as CastLike makes it."""
        to = {"to": self.dtype(like)}
        return self.importer.constant(reference.apply("Cast", [np.asarray(np.float32(value))], to))

    def apply(self, operator: str, *operands: int | None, dtype: str | None = None) -> int:
        """A primitive operator; its result has the dtype of its first operand by default."""
        first = next(o for o in operands if o is not None)
        return self.importer.apply(operator, operands, dtype or self.dtype(first))

    def along(self, value: int, target: int, axis: int, what: str) -> int:
        """Lay a value's last dimension along `axis` of a target of known rank."""
        rank, own = self.rank(target), self.rank(value)
        if axis == -1 and own == 1:
            return value
        if rank is None or own is None:
            raise UnsupportedError(
                f"{self.where}: {what} along axis {axis} needs an input of known rank",
                "declare the shapes of the model's inputs; dimensions may be symbolic",
            )
        first = axis + rank if axis < 0 else axis
        if not 0 <= first <= rank - own:
            raise ModelError(
                f"{self.where}: axis {axis} does not fit rank {rank} and {what} of rank {own}"
            )
        return self.importer.seen(value, ir.View(rank - own - first))


Handler = Callable[[Call], int]


def _together(operator: str, row: Row) -> Handler:
    """Operands broadcast together."""

    def handle(call: Call) -> int:
        operands = call.required()
        dtype = row.result or call.dtype(operands[0])
        attributes = {
            name: float(np.float32(call.attributes.get(name, default)))
            for name, default in row.attributes.items()
        }
        return call.importer.apply(operator, operands, dtype, attributes)

    return handle


def _pair(operator: str, row: Row) -> Handler:
    """Two operands; before opset 7 their broadcasting is an attribute."""

    def handle(call: Call) -> int:
        a, b = call.required()
        if call.version < 7:
            b = _legacy_operand(call, a, b)
        return call.apply(operator, a, b, dtype=row.result)

    return handle


def _legacy_operand(call: Call, a: int, b: int) -> int:
    if call.attributes.get("broadcast", 0):
        if "axis" in call.attributes:
            b = call.along(b, a, call.attributes["axis"], "the second operand")
        call.importer.require("the second operand", b, a)
        return b
    call.importer.require("the second operand", b, a)
    call.importer.require("the first operand", a, b)
    return b


def _fold(operator: str, row: Row) -> Handler:
    """Any number of operands, from the left."""

    def handle(call: Call) -> int:
        operands = call.required()
        if not operands:
            raise ModelError(f"{call.where}: {operator} needs at least one input")
        if call.version < 8:
            for other in operands[1:]:
                call.importer.require("an operand", other, operands[0])
                call.importer.require("the first", operands[0], other)
        result = operands[0]
        for other in operands[1:]:
            result = call.apply(operator, result, other)
        return result

    return handle


def _composition(operator: str, row: Row) -> Handler:
    """Other operators, as the rule of the row says."""

    def handle(call: Call) -> int:
        return compose(call, operator, call.required(), call.attributes)

    return handle


def _prelu(call: Call) -> int:
    x, slope = call.required()
    if call.version < 7 and call.importer.shapes[slope] not in ((), (1,)):
        slope = call.along(slope, x, 1, "slope") if call.rank(slope) == 1 else slope
    call.importer.require("slope", slope, x)
    return call.importer.apply("PRelu", [x, slope], call.dtype(x), shaped_by=[x])


def _clip(call: Call) -> int:
    x = call.operands[0]
    assert x is not None
    if call.version < 11:
        # The schema's defaults are float32's extremes: an infinity is clipped to them.
        largest = float(np.finfo(np.float32).max)
        bounds: list[int | None] = [
            call.scalar(call.attributes.get(name, default), x)
            for name, default in (("min", -largest), ("max", largest))
        ]
    else:
        bounds = [call.operand(1), call.operand(2)]
        for name, bound in zip(("min", "max"), bounds, strict=True):
            if bound is not None:
                call.importer.require(name, bound, None)
    if bounds == [None, None]:
        return x
    return call.importer.apply("Clip", [x, *bounds], call.dtype(x), shaped_by=[x])


def _where(call: Call) -> int:
    condition, a, b = call.required()
    return call.apply("Where", condition, a, b, dtype=call.dtype(a))


def _cast_to(call: Call, x: int, to: str) -> int:
    if call.dtype(x) == to:
        return x
    return call.importer.apply("Cast", [x], to, {"to": to})


def _cast(call: Call) -> int:
    (x,) = call.required()
    return _cast_to(call, x, _element_type(call, call.attributes.get("to"), "to"))


def _element_type(call: Call, value: Any, what: str) -> str:
    if value not in ELEMENT_TYPES:
        kind = element_type_name(value) if isinstance(value, int) else repr(value)
        raise UnsupportedError(f"{call.where}: {what} is {kind}", SUPPORTED_DTYPES)
    return ELEMENT_TYPES[value]


def _cast_like(call: Call) -> int:
    x, like = call.required()
    return _cast_to(call, x, call.dtype(like))


def _identity(call: Call) -> int:
    return call.required()[0]


def _constant(call: Call) -> int:
    makers: dict[str, Callable[[Any], np.ndarray]] = {
        "value": array_of,
        "value_float": lambda v: np.asarray(v, np.float32),
        "value_floats": lambda v: np.asarray(v, np.float32),
        "value_int": lambda v: np.asarray(v, np.int64),
        "value_ints": lambda v: np.asarray(v, np.int64),
    }
    names = list(call.attributes)
    if len(names) != 1 or names[0] not in makers:
        raise UnsupportedError(
            f"{call.where}: Constant has the attributes {names}; it must have one of "
            f"{', '.join(makers)}"
        )
    return call.importer.constant(makers[names[0]](call.attributes[names[0]]))


def _constant_of_shape(call: Call) -> int:
    (source,) = call.required()
    value = call.importer.values[source]
    if value.kind != "constant" or value.array is None:
        raise UnsupportedError(
            f"{call.where}: the shape of ConstantOfShape must be a constant, so that "
            "the shape of every result follows from the shapes of the inputs"
        )
    static = ir.broadcast_terms(value.terms, [])
    if len(static) != 1 or static[0] > DECLARED_RANK:
        raise ModelError(
            f"{call.where}: the shape must be a vector of at most {DECLARED_RANK} numbers "
            f"(not of shape {static})"
        )
    dims = [int(d) for d in np.broadcast_to(value.array, static)]
    if any(d < 0 for d in dims):
        raise ModelError(f"{call.where}: {dims} is not a shape")
    fill = call.attributes.get("value")
    array = np.zeros(1, np.float32) if fill is None else array_of(fill)
    if array.size != 1:
        raise ModelError(f"{call.where}: value must have one element")
    return call.importer.constant(array.reshape(()), tuple(dims))


def _quantization_operands(call: Call) -> tuple[int, int, int | None]:
    """The operands, with scale and zero point laid along their axis."""
    x, scale, zero_point = call.operands[0], call.operands[1], call.operand(2)
    assert x is not None and scale is not None
    blocked = bool(call.attributes.get("block_size", 0))
    along_axis = call.version >= 13 and call.rank(scale) == 1 and not call.is_single(scale)
    if zero_point is not None:
        _check_rank(call, "zero_point", zero_point, blocked, along_axis)
        call.importer.require("zero_point", zero_point, scale)
    _check_rank(call, "scale", scale, blocked, along_axis)
    if blocked:
        scale = _blocked(call, x, scale, "scale")
        zero_point = None if zero_point is None else _blocked(call, x, zero_point, "zero_point")
    elif along_axis:
        axis = -1 if call.rank(x) == 1 else call.attributes.get("axis", 1)
        scale = call.along(scale, x, axis, "scale")
        if zero_point is not None and not call.is_single(zero_point):
            zero_point = call.along(zero_point, x, axis, "zero_point")
    call.importer.require("scale", scale, x)
    return x, scale, zero_point


def _check_rank(call: Call, what: str, value: int, blocked: bool, along_axis: bool) -> None:
    """Refuse a scale or zero point that ONNX does not have: else it would broadcast somehow."""
    if blocked or (along_axis and call.rank(value) == 1) or call.is_single(value):
        return
    rank, shape = call.rank(value), call.importer.shapes[value]
    if rank is not None and (rank > 1 or along_axis):
        raise ModelError(
            f"{call.where}: {what}{call.named(value)} has the shape {show_shape(shape)}; it must "
            "be a scalar, or a vector along axis, which scale and zero_point both are then",
            "for scales in blocks, give the node a block_size (opset 21)",
        )
    if not along_axis:  # one element, which only the call can tell where nothing is declared
        call.importer.require(what, value, None)


def _blocked(call: Call, x: int, value: int, what: str) -> int:
    """Repeat each scale or zero point over its block of x."""
    block, axis = call.attributes["block_size"], call.attributes.get("axis", 1)
    shape, own = call.importer.shapes[x], call.importer.shapes[value]
    where = f"{call.where}: {what}{call.named(value)}"
    if shape is None or own is None or len(shape) != len(own):
        raise UnsupportedError(
            f"{where} in blocks needs an x of known rank, and that rank itself",
            "declare the shapes of the model's inputs; dimensions may be symbolic",
        )
    if block < 1 or not -len(shape) <= axis < len(shape):
        raise ModelError(f"{where}: block_size {block} or axis {axis} is out of range")
    if any(t.view.block > 1 for t in call.importer.values[value].terms):
        raise UnsupportedError(f"{where} comes out of another blocked quantization")
    if call.importer.extents(value, len(shape) - 1 - axis % len(shape)) > 1:
        raise UnsupportedError(
            f"{where} in blocks is computed from operands that broadcast along axis {axis}",
            "give the operands one extent along that axis, by one name or number",
        )
    _check_extents(where, shape, own, axis % len(shape), block)
    seen = call.importer.seen(value, ir.View(0, (len(shape) - 1 - axis) % len(shape), block))
    call.importer.require("x", x, seen)  # so that no other axis of the scale is broadcast
    return seen


def _check_extents(where: str, shape: ir.Shape, own: ir.Shape, axis: int, block: int) -> None:
    """Along the axis as many as there are blocks, along the others as many as x has."""
    for k, (whole, blocks) in enumerate(zip(shape, own, strict=True)):
        if not isinstance(whole, int) or not isinstance(blocks, int):
            continue
        if k == axis and whole != blocks * block:
            raise UnsupportedError(
                f"{where}: {blocks} blocks of {block} must be the {whole} elements of x along axis "
                f"{axis}: a shorter last block is not supported"
            )
        if k != axis and whole != blocks:
            raise ModelError(
                f"{where}: its shape {show_shape(own)} must be that of x, {show_shape(shape)}, "
                f"but for axis {axis}"
            )


def _quantize(call: Call) -> int:
    x, scale, zero_point = _quantization_operands(call)
    declared = call.attributes.get("output_dtype", 0)
    to = "uint8" if zero_point is None else call.dtype(zero_point)
    if declared:
        to = _element_type(call, declared, "output_dtype")
    precision = call.attributes.get("precision", 0)
    attributes = {
        "to": to,
        "precision": _element_type(call, precision, "precision")
        if precision
        else call.dtype(scale),
    }
    if attributes["precision"] == "int32":
        attributes["precision"] = "float32"
    operands = [x, scale, zero_point]
    return call.importer.apply("QuantizeLinear", operands, to, attributes, shaped_by=[x])


def _dequantize(call: Call) -> int:
    x, scale, zero_point = _quantization_operands(call)
    declared = call.attributes.get("output_dtype", 0)
    to = _element_type(call, declared, "output_dtype") if declared else call.dtype(scale)
    operands = [x, scale, zero_point]
    return call.importer.apply("DequantizeLinear", operands, to, {"to": to}, shaped_by=[x])


_FORMS: dict[Form, Callable[[str, Row], Handler]] = {
    "together": _together,
    "pair": _pair,
    "fold": _fold,
    "composition": _composition,
}

_OWN: dict[str, Handler] = {
    "PRelu": _prelu,
    "Clip": _clip,
    "Where": _where,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Identity": _identity,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}

HANDLERS: dict[str, Handler] = {
    name: _OWN[name] if row.form == "own" else _FORMS[row.form](name, row)
    for name, row in OPERATORS.items()
}
