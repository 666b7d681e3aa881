"""A whole network, as lists of nodes: the graph, the bodies of If and Loop, the local functions.

A *scope* is one such list. What is known of its values (element type, shape) comes from the model,
from onnx's own inference, and from onnxruntime, which knows operators that onnx does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, numpy_helper

from relu_ops.compiler.frontend.scope import ELEMENT_TYPES, normal_domain, opsets_of, written_shape
from relu_ops.contract import shapes
from relu_ops.contract.semantics import DTYPES

Dim = int | str | None
"""An extent; a symbol's name; or None, of which nothing is known."""


@dataclass(frozen=True)
class Value:
    """What is known of a value: its dtype, if it is in scope, and its shape, None for any rank."""

    dtype: str | None
    shape: tuple[Dim, ...] | None

    def show(self) -> str:
        """As a report has it: float32[1, 64, H, W]."""
        return f"{self.dtype or '?'}{shapes.in_brackets(self.shape)}"


UNKNOWN = Value(None, None)


@dataclass
class Scope:
    """One list of nodes.

    Attributes:
        name: What a report calls it: "" for the graph itself.
        nodes: The list, to be changed in place; in topological order.
        outputs: The names of its results.
        opsets: The version of each domain.
        constants: Small constants by name, those of outer scopes included.
        values: What is known of its values and of those of outer scopes, by name.
        results: Of a local function's body, what its calls name each of its results; None for
            another scope.
    """

    name: str
    nodes: Any
    outputs: Sequence[str]
    opsets: Mapping[str, int]
    constants: Mapping[str, np.ndarray]
    values: Mapping[str, Value]
    results: Mapping[str, Sequence[str]] | None = None

    def value(self, name: str) -> Value:
        """What is known of a value."""
        return self.values.get(name, UNKNOWN)


def value_of(info: onnx.ValueInfoProto) -> Value:
    """What a declaration says."""
    if not info.type.HasField("tensor_type"):
        return UNKNOWN
    tensor = info.type.tensor_type
    dtype, shape = ELEMENT_TYPES.get(tensor.elem_type), written_shape(tensor)
    return Value(dtype, None if shape is None else tuple(map(_dim, shape)))


def _dim(written: Dim) -> Dim:
    return None if isinstance(written, int) and written < 0 else written


def subgraphs(node: NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs that a node holds, by the names of its attributes."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        for number, graph in enumerate(attribute.graphs):
            yield f"{attribute.name}.{number}", graph


def reads(node: NodeProto) -> set[str]:
    """Every name that a node depends on: of its subgraphs, what they take from outside."""
    names = {name for name in node.input if name}
    for _, graph in subgraphs(node):
        made = {info.name for info in graph.input} | {t.name for t in graph.initializer}
        for inner in graph.node:
            names |= reads(inner) - made
            made |= set(inner.output)
        names |= {info.name for info in graph.output} - made
    return names


_SMALL = 1
"""Constants of so many elements become part of an operator; larger ones are its inputs, so that
layers with other weights share it."""


def _constants(tensors: Iterable[TensorProto], nodes: Iterable[NodeProto]) -> dict[str, np.ndarray]:
    found = {}
    for tensor in tensors:
        if _is_small(tensor):
            found[tensor.name] = numpy_helper.to_array(tensor)
    for node in nodes:
        if node.op_type != "Constant" or normal_domain(node.domain) or node.input:
            continue
        array = _array_of(node)
        if array is not None and array.size == _SMALL:
            found[node.output[0]] = array
    return found


def _is_small(tensor: TensorProto) -> bool:
    return (
        tensor.data_location != TensorProto.EXTERNAL
        and tensor.data_type in ELEMENT_TYPES
        and int(np.prod(tensor.dims, dtype=np.int64)) == _SMALL
    )


def _array_of(node: NodeProto) -> np.ndarray | None:
    """What a Constant gives, if that is a number or a tensor."""
    for attribute in node.attribute:
        if attribute.name == "value" and _is_small(attribute.t):
            return numpy_helper.to_array(attribute.t)
        if attribute.name == "value_float":
            return np.asarray(attribute.f, np.float32)
        if attribute.name == "value_int":
            return np.asarray(attribute.i, np.int64)
    return None


def _tensor_value(tensor: TensorProto) -> Value:
    return Value(ELEMENT_TYPES.get(tensor.data_type), tuple(tensor.dims))


class Network:
    """A model and its scopes."""

    def __init__(self, proto: onnx.ModelProto, more: Mapping[str, Value]) -> None:
        """Find all scopes.

        Args:
            proto: The model; its weights need not be there.
            more: What else is known of values, by their names.
        """
        self.proto = proto
        self._more = more
        opsets = opsets_of(proto.opset_import)
        self.scopes = list(self._of_graph("", proto.graph, opsets, {}, {}))
        for function in proto.functions:
            self.scopes += self._of_function(function)

    def _of_graph(
        self,
        name: str,
        graph: onnx.GraphProto,
        opsets: Mapping[str, int],
        constants: Mapping[str, np.ndarray],
        values: Mapping[str, Value],
    ) -> Iterator[Scope]:
        own = {info.name: value_of(info) for info in _infos(graph)}
        own |= {tensor.name: _tensor_value(tensor) for tensor in graph.initializer}
        constants = {**constants, **_constants(graph.initializer, graph.node)}
        for info in graph.input:  # what a caller may give is no constant
            constants.pop(info.name, None)
        made = {n for node in graph.node for n in node.output if n} - set(own)
        known = {n: self._more[n] for n in made if n in self._more}
        every = {**values, **known, **own}
        outputs = [info.name for info in graph.output]
        yield Scope(name, graph.node, outputs, opsets, constants, every)
        for node in graph.node:
            for attribute, inner in subgraphs(node):
                inside = f"{name}/{node.name or node.output[0]}.{attribute}"
                yield from self._of_graph(inside, inner, opsets, constants, every)

    def _of_function(self, function: onnx.FunctionProto) -> Iterator[Scope]:
        """A body, with the types of its calls, where all are alike."""
        calls = [
            (scope, node)
            for scope in self.scopes
            for node in scope.nodes
            if (node.domain, node.op_type) == (function.domain, function.name)
        ]
        types = {_types_of(function, node, scope) for scope, node in calls}
        if len(types) != 1:
            return
        results = {
            formal: [node.output[k] for _, node in calls if k < len(node.output)]
            for k, formal in enumerate(function.output)
        }
        opsets, constants = opsets_of(function.opset_import), _constants([], function.node)
        values = _infer_body(function, types.pop())
        name = f"function {function.domain}.{function.name}"
        yield Scope(name, function.node, function.output, opsets, constants, values, results)


def _types_of(
    function: onnx.FunctionProto, call: NodeProto, scope: Scope
) -> tuple[str | None, ...]:
    types = [scope.value(name).dtype for name in call.input]
    return tuple(types + [None] * (len(function.input) - len(types)))


def _infos(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from graph.value_info
    yield from graph.output
    yield from graph.input


def _infer_body(function: onnx.FunctionProto, types: Sequence[str | None]) -> dict[str, Value]:
    """What is known of the values of a body whose inputs have some dtypes and any shapes."""
    graph = onnx.GraphProto(name=function.name)
    graph.node.extend(function.node)
    for name, dtype in zip(function.input, types, strict=True):
        info = graph.input.add(name=name)
        if dtype is not None:
            info.type.tensor_type.elem_type = DTYPES[dtype].onnx_type
    model = onnx.ModelProto(ir_version=10, graph=graph)
    model.opset_import.extend(function.opset_import)
    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # an operator that onnx does not know: the inputs are all that is known
        graph = model.graph
    return {info.name: value_of(info) for info in _infos(graph)}


def sort(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """Nodes in topological order, as near to the given one as that allows."""
    maker = {name: k for k, node in enumerate(nodes) for name in node.output if name}
    waiting = [len({maker[n] for n in reads(node) if n in maker}) for node in nodes]
    users: list[list[int]] = [[] for _ in nodes]
    for k, node in enumerate(nodes):
        for producer in {maker[n] for n in reads(node) if n in maker}:
            users[producer].append(k)
    import heapq

    ready = [k for k, count in enumerate(waiting) if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        k = heapq.heappop(ready)
        order.append(nodes[k])
        for user in users[k]:
            waiting[user] -= 1
            if waiting[user] == 0:
                heapq.heappush(ready, user)
    assert len(order) == len(nodes), "a group is not convex"
    return order


def inferred(proto: onnx.ModelProto) -> dict[str, Value]:
    """What onnx infers of a model's values, subgraphs included; nothing of names that differ."""
    try:
        graph = onnx.shape_inference.infer_shapes(proto).graph
    except Exception:  # the model is onnxruntime's to judge
        return {}
    found: dict[str, Value] = {}
    doubtful: set[str] = set()
    pending = [graph]
    while pending:
        graph = pending.pop()
        for info in _infos(graph):
            value = value_of(info)
            if value.dtype is not None and found.setdefault(info.name, value) != value:
                doubtful.add(info.name)
        pending += [inner for node in graph.node for _, inner in subgraphs(node)]
    return {name: value for name, value in found.items() if name not in doubtful}
