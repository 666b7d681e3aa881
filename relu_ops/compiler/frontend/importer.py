"""Builds the graph of a checked model: values, constants folded, shapes, what is required of them.

It goes through the nodes that some output needs, into the functions that they call, and hands each
operator to its handler in `operators`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.helper

from relu_ops.compiler.frontend import limits, shapes
from relu_ops.compiler.frontend.check import array_of, check_constant, check_node, check_types
from relu_ops.compiler.frontend.functions import Functions, bound, enter, operands_of
from relu_ops.compiler.frontend.operators import HANDLERS, Call
from relu_ops.compiler.frontend.scope import (
    ELEMENT_TYPES,
    SUPPORTED_DTYPES,
    Frame,
    element_type_name,
    opsets_of,
    schema_of,
    written_shape,
)
from relu_ops.contract import ir, reference
from relu_ops.contract.semantics import DTYPES, OPERATORS
from relu_ops.contract.shapes import show as show_shape
from relu_ops.errors import ModelError, UnsupportedError

_SCALAR = ir.Term(None)
"""What a scalar constant gives to a shape: nothing."""

Names = dict[str, int | None]
"""The values by their names in a graph or in a function; None where an optional one is absent."""


class Importer:
    """Builds the graph of one checked model.

    Attributes:
        values: The values so far; what refers to one does so by its index.
        shapes: The declared shape of each.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        self._functions = Functions(proto)
        self.values: list[ir.Value] = []
        self.shapes: list[ir.Shape | None] = []
        self._inputs: list[ir.Input] = []
        self._requirements: list[ir.Requirement] = []
        self._claims: dict[tuple[Any, Any], shapes.Claim] = {}
        self._call: Call

    def run(self) -> ir.Graph:
        """The graph."""
        graph = self._proto.graph
        nodes, needed = self._functions.live(graph.node, (info.name for info in graph.output))
        names = self._leaves(needed)
        self._nodes(nodes, names, Frame(opsets_of(self._proto.opset_import)))
        self._check_declared(names)
        outputs = tuple(self._output(info, names) for info in graph.output)
        limits.hold(len(self._requirements), limits.REQUIREMENTS, "requirements of shapes")
        result = ir.Graph(
            graph.name or "graph",
            tuple(self._inputs),
            outputs,
            tuple(self.values),
            tuple(self._requirements),
        )
        _check_blocks(result)
        self._check_claims()
        return result

    # ---- what comes from outside

    def _leaves(self, needed: set[str]) -> Names:
        """Every input, and the initializers that something needs."""
        graph, names = self._proto.graph, Names()
        constants = {tensor.name: tensor for tensor in graph.initializer}
        for name, tensor in constants.items():
            if name in needed:
                check_constant(tensor, self._proto.ir_version)
                names[name] = self.constant(array_of(tensor))
        for info in graph.input:
            if info.name not in constants:
                names[info.name] = self._input(info)
        return names

    def _input(self, info: onnx.ValueInfoProto) -> int:
        dtype, shape = _declared(info, "input")
        if shape is not None:
            limits.hold(len(shape), limits.DECLARED_RANK, "dimensions", f"input {info.name!r}")
        index = len(self._inputs)
        self._inputs.append(ir.Input(info.name, dtype, shape))
        return self._add(ir.Value("input", dtype, frozenset({ir.Term(index)}), input=index), shape)

    def _output(self, info: onnx.ValueInfoProto, names: Names) -> ir.Output:
        value = names.get(info.name)
        if value is None:
            raise ModelError(f"output {info.name!r} is computed by no node")
        shape = self.shapes[value]
        if shape is not None:
            _check_static_size(shape, f"output {info.name!r}")
        return ir.Output(info.name, value, shape)

    def _check_declared(self, names: Names) -> None:
        """Hold what the model says of its outputs and inner values against what they are."""
        graph = self._proto.graph
        for what, infos in (("output", graph.output), ("value", graph.value_info)):
            for info in infos:
                value = names.get(info.name)
                if value is not None and info.type.tensor_type.elem_type:
                    self._check_info(what, info, value)

    def _check_info(self, what: str, info: onnx.ValueInfoProto, value: int) -> None:
        dtype, declared = _declared(info, what)
        computed = self.shapes[value]
        if dtype != self.values[value].dtype:
            raise ModelError(
                f"{what} {info.name!r} is declared {dtype} and computed as "
                f"{self.values[value].dtype}",
                "declare what is computed, or add a Cast node before it",
            )
        if declared is not None and computed is not None and _contradict(declared, computed):
            raise ModelError(
                f"{what} {info.name!r} is declared {show_shape(declared)} and computed as "
                f"{show_shape(computed)}",
                "clear what is stale (info.type.tensor_type.ClearField('shape')), and infer it "
                "anew with onnx.shape_inference.infer_shapes",
            )

    # ---- nodes

    def _nodes(self, nodes: Sequence[onnx.NodeProto], names: Names, frame: Frame) -> None:
        for node in nodes:
            function = self._functions.called(node)
            node = bound(frame.resolved(node), names, frame)
            if function is None:
                results: list[int | None] = [self._node(node, names, frame)]
            else:
                results = self._function(function, node, names, frame)
            for name, result in zip(node.output, results, strict=False):
                if name in names:
                    raise ModelError(f"{frame.describe(node)}: {name!r} is there already")
                if name:
                    names[name] = result

    def _function(
        self, function: onnx.FunctionProto, node: onnx.NodeProto, names: Names, frame: Frame
    ) -> list[int | None]:
        """Go into a function; its values, one for each output of the call that has a name."""
        inside = enter(function, node, frame)
        inner: Names = operands_of(function, node, names)
        self._nodes(self._functions.body(function, node), inner, inside)
        for formal, name in zip(function.output, node.output, strict=False):
            if name and inner.get(formal) is None:
                raise ModelError(f"{frame.describe(node)}: its function computes no {formal!r}")
        return [inner.get(formal) for formal in function.output]

    def _node(self, node: onnx.NodeProto, names: Names, frame: Frame) -> int:
        schema = schema_of(node, frame)
        check_node(node, frame, self._proto.ir_version)
        operands = [names[name] if name else None for name in node.input]
        dtypes = [None if o is None else self.values[o].dtype for o in operands]
        check_types(node, frame, schema, dtypes)
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        self._call = Call(self, node, frame, schema.since_version, operands, attributes)
        return HANDLERS[node.op_type](self._call)

    # ---- values, for the handlers

    def _add(self, value: ir.Value, shape: ir.Shape | None) -> int:
        self.values.append(value)
        self.shapes.append(shape)
        return len(self.values) - 1

    def constant(self, array: np.ndarray, shape: tuple[int, ...] | None = None) -> int:
        """Add a constant; `shape` repeats a single element without storing it repeatedly."""
        shape = array.shape if shape is None else shape
        _check_static_size(shape, "a constant")
        bits = np.ascontiguousarray(array).reshape(-1).view(f"V{array.dtype.itemsize}")
        if bits.size and bool((bits == bits[0]).all()):
            array = array.reshape(-1)[:1].reshape(())
        dtype = next(name for name, row in DTYPES.items() if row.numpy == array.dtype)
        term = ir.Term(None, tuple(shape))
        return self._add(ir.Value("constant", dtype, frozenset({term}), array=array), tuple(shape))

    def seen(self, value: int, view: ir.View) -> int:
        """A view of a value."""
        if view == ir.View():
            return value
        source = self.values[value]
        shaping = source.terms - {_SCALAR} or source.terms
        terms = frozenset(ir.Term(t.input, t.shape, t.view.then(view)) for t in shaping)
        shape = self.shapes[value]
        return self._add(
            ir.Value("view", source.dtype, terms, arguments=(value,), view=view),
            None if shape is None else _viewed_shape(shape, view),
        )

    def apply(
        self,
        operator: str,
        operands: Sequence[int | None],
        dtype: str,
        attributes: Mapping[str, Any] | None = None,
        shaped_by: Sequence[int] | None = None,
    ) -> int:
        """Add a primitive operator; fold it where every operand is constant.

        Args:
            operator: A name of `semantics.PRIMITIVES`.
            operands: Values; None where an optional operand is absent.
            dtype: The dtype of the result.
            attributes: What the reference and the lowering take beside the operands.
            shaped_by: The operands whose broadcast is the result's shape; default: all.
        """
        assert OPERATORS[operator].primitive
        present = [o for o in operands if o is not None]
        shaping = present if shaped_by is None else list(shaped_by)
        terms = frozenset().union(*(self.values[o].terms for o in shaping))
        shape = self._broadcast(shaping, terms)
        attributes = dict(attributes or {})
        static = ir.broadcast_terms(terms, []) if all(t.input is None for t in terms) else None
        if static is not None:
            _check_static_size(static, "a constant")
        if static is not None and self._is_foldable(present, static):
            arrays = [None if o is None else self.values[o].array for o in operands]
            folded = reference.apply(operator, arrays, attributes)
            if folded.shape != () and folded.shape != static:
                folded = np.broadcast_to(folded, static)
            return self.constant(folded, static)
        return self._add(
            ir.Value("apply", dtype, terms, operator, tuple(operands), attributes), shape
        )

    def _is_foldable(self, operands: Sequence[int], shape: tuple[int, ...]) -> bool:
        """True where every operand is constant, and the result is no larger than it should be."""
        values = [self.values[o] for o in operands]
        if any(v.array is None for v in values):
            return False
        uniform = all(v.array is not None and v.array.shape == () for v in values)
        return uniform or ir.size(shape) <= limits.FOLDED_ELEMENTS

    def extents(self, value: int, axis: int) -> int:
        """How many extents what makes a value has along an axis, counted from the last.

        Names may turn out to be one extent, but need not.
        """
        return shapes.extents_along(self.values[value].terms - {_SCALAR}, self._inputs, axis)

    # ---- what is demanded of shapes

    def _broadcast(self, operands: Sequence[int], terms: frozenset[ir.Term]) -> ir.Shape | None:
        if (terms, None) not in self._claims:
            text = f"{self._call.where}: {self._call.operands_shown()} do not broadcast together"
            hint = shapes.advice(self.shapes[operands[-1]], self.shapes[operands[0]])
            self._claims[terms, None] = shapes.Claim(text, hint, terms)
        claim = self._claims[terms, None]
        try:
            return shapes.broadcast(self.shapes[o] for o in operands)
        except ValueError:
            raise ModelError(claim.text, claim.hint) from None

    def require(self, what: str, value: int, into: int | None) -> None:
        """Demand that a value broadcasts into another one's shape, at the call at the latest.

        Args:
            what: What the value is.
            value: The value.
            into: The value that it must broadcast into; None where it must be one element.
        """
        terms = self.values[value].terms
        target = frozenset({_SCALAR}) if into is None else self.values[into].terms
        if (terms, target) in self._claims:
            return
        claim = self._claims[terms, target] = self._claim(what, value, into, terms, target)
        if not shapes.may_fit(self.shapes[value], () if into is None else self.shapes[into]):
            raise ModelError(claim.text, claim.hint)
        if any(t.input is not None for t in terms | target):
            label = f"{self._call.where}: {what}"
            self._requirements.append(ir.Requirement(label, terms, target))

    def _claim(
        self,
        what: str,
        value: int,
        into: int | None,
        terms: frozenset[ir.Term],
        target: frozenset[ir.Term],
    ) -> shapes.Claim:
        own, named = self.shapes[value], self._call.named
        text = f"{self._call.where}: {what}{named(value)} of shape {show_shape(own)} must "
        if into is None:
            hint = "give it the shape ()"
            return shapes.Claim(f"{text}be a scalar", hint, terms, target)
        other = self.shapes[into]
        text += f"broadcast into{named(into)} of shape {show_shape(other)}"
        return shapes.Claim(text, shapes.advice(own, other), terms, target)

    def _check_claims(self) -> None:
        claims = list(self._claims.values())
        found = shapes.first_impossible(claims, self._inputs)
        if found is not None:
            index, alone = found
            claim = claims[index]
            rest = "" if alone else ", with what the nodes before it demand of these dimensions"
            raise ModelError(claim.text + rest, claim.hint)


def _check_static_size(shape: ir.Shape, what: str) -> None:
    if ir.size(max(d, 1) for d in shape if isinstance(d, int)) > limits.SHAPE_ELEMENTS:
        raise UnsupportedError(f"{what} has the shape {show_shape(shape)}, larger than any memory")


def _check_blocks(graph: ir.Graph) -> None:
    """One dimension is split into blocks of one size: a kernel loops over it once."""
    sizes: dict[int, int] = {}
    for _, view in graph.reachable():
        if view.block > 1 and sizes.setdefault(view.axis, view.block) != view.block:
            raise UnsupportedError(
                f"the model quantizes one axis in blocks of {sizes[view.axis]} and {view.block}",
                "use one block size per axis",
            )


def _viewed_shape(shape: ir.Shape, view: ir.View) -> ir.Shape:
    static = view.shape(tuple(d if isinstance(d, int) else 0 for d in shape))
    named = (*shape, *(1,) * view.trailing)
    repeated = len(static) - 1 - view.axis if view.block > 1 else None
    return tuple(
        s if isinstance(d, int) else None if k == repeated else d
        for k, (d, s) in enumerate(zip(named, static, strict=True))
    )


def _contradict(declared: ir.Shape, computed: ir.Shape) -> bool:
    """True where ranks or static extents differ; a name says nothing against a number."""
    return len(declared) != len(computed) or any(
        isinstance(d, int) and isinstance(c, int) and d != c
        for d, c in zip(declared, computed, strict=True)
    )


# ---------------------------------------------------------------------------------------------
# What is declared


def _declared(info: onnx.ValueInfoProto, what: str) -> tuple[str, ir.Shape | None]:
    if info.type.WhichOneof("value") is None:
        raise ModelError(
            f"{what} {info.name!r} has no type",
            "declare it (in onnxscript by an annotation: x: FLOAT['N'])",
        )
    if not info.type.HasField("tensor_type"):
        raise UnsupportedError(f"{what} {info.name!r} is not a tensor; only tensors are supported")
    tensor = info.type.tensor_type
    if tensor.elem_type not in ELEMENT_TYPES:
        kind = element_type_name(tensor.elem_type)
        raise UnsupportedError(f"{what} {info.name!r} has dtype {kind}", SUPPORTED_DTYPES)
    shape = written_shape(tensor)
    return ELEMENT_TYPES[tensor.elem_type], None if shape is None else tuple(map(_dim, shape))


_UNKNOWN = frozenset(
    {"", "?", "*", "-1", "none", "null", "nan", "any", "unk", "unknown", "undefined", "dynamic"}
)
"""Names, in lower case, by which exporters mean "unknown": two of them need not be one extent."""


def _dim(written: ir.Dim) -> ir.Dim:
    """A dimension; free where exporters (Paddle, CNTK) write a negative number for "unknown"."""
    if isinstance(written, str):
        return None if written.strip().lower() in _UNKNOWN else written
    return written if written is not None and written >= 0 else None
