"""Writes a graph as an ONNX model: values with what they need, each node once.

The opset is the first that has every operator for its dtypes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.defs
from onnx import helper, numpy_helper

from relu_ops.compiler import frontend
from relu_ops.contract import ir, reference
from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import UnsupportedError

_OLDEST_OPSET = 18
"""As `relu_ops.graphs` writes: what onnxruntime runs most of."""

_STORED_ELEMENTS = 4096
"""A constant of more equal elements is written as a ConstantOfShape."""


@dataclass(frozen=True)
class _Node:
    """A node, with the dtypes by which its opset is chosen."""

    operator: str
    inputs: tuple[str, ...]
    output: str
    dtypes: tuple[str | None, ...]
    dtype: str
    attributes: Mapping[str, Any]


class Writer:
    """Writes the nodes of a model, each distinct one once."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._names = {*(i.name for i in graph.inputs), *(o.name for o in graph.outputs)}
        self._nodes: list[_Node] = []
        self._constants: dict[str, np.ndarray] = {}
        self._known: dict[Any, str] = {}
        self._dtypes: dict[str, str] = {one.name: one.dtype for one in graph.inputs}
        self._upstream: dict[str, onnx.ValueInfoProto] = {}

    # ---- names

    def fresh(self, wanted: str) -> str:
        """A name that nothing else has."""
        name = wanted
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name

    def dtype(self, name: str) -> str:
        """The dtype of a value that was written."""
        return self._dtypes[name]

    def upstream(self, output: ir.Output, dtype: str) -> str:
        """An input for the gradient of an output."""
        name = self.fresh(f"d{output.name}")
        element_type = DTYPES[dtype].onnx_type
        self._upstream[name] = helper.make_tensor_value_info(name, element_type, output.shape)
        self._dtypes[name] = dtype
        return name

    # ---- values

    def constant(self, array: np.ndarray) -> str:
        """An initializer."""
        key = ("constant", array.dtype.str, array.dtype.name, array.shape, array.tobytes())
        if key not in self._known:
            name = self.fresh(f"constant_{len(self._constants)}")
            self._known[key] = name
            self._constants[name] = array
            self._dtypes[name] = next(n for n, row in DTYPES.items() if row.numpy == array.dtype)
        return self._known[key]

    def scalar(self, value: float, dtype: str) -> str:
        """A number in a dtype, rounded as an attribute is."""
        array = reference.apply("Cast", [np.asarray(np.float32(value))], {"to": dtype})
        return self.constant(array)

    def node(
        self,
        operator: str,
        inputs: Sequence[str | None],
        dtype: str,
        attributes: Mapping[str, Any] | None = None,
    ) -> str:
        """The value of an operator; no attribute says what its default says."""
        given = [name or "" for name in inputs]
        while given and not given[-1]:
            del given[-1]
        attributes = dict(attributes or {})
        key = (operator, *given, *sorted((k, repr(v)) for k, v in attributes.items()))
        if key not in self._known:
            name = self.fresh(f"{operator}_{len(self._nodes)}")
            dtypes = tuple(self._dtypes.get(one) for one in given)
            self._nodes.append(_Node(operator, tuple(given), name, dtypes, dtype, attributes))
            self._known[key] = name
            self._dtypes[name] = dtype
        return self._known[key]

    def value(self, index: int) -> str:
        """A value of the graph, written with what it needs."""
        pending = [index]
        while pending:
            value = self._graph.values[pending[-1]]
            missing = [
                a for a in value.arguments if a is not None and ("value", a) not in self._known
            ]
            if missing and ("value", pending[-1]) not in self._known:
                pending += missing
                continue
            done = pending.pop()
            if ("value", done) not in self._known:
                self._known["value", done] = self._written(value)
        return self._known["value", index]

    def _written(self, value: ir.Value) -> str:
        if value.kind == "input":
            return self._graph.inputs[value.input].name
        if value.kind == "constant":
            return self._written_constant(value)
        names = [None if a is None else self._known["value", a] for a in value.arguments]
        if value.kind == "view":
            return self._view(value, names[0] or "")
        if value.operator in ("QuantizeLinear", "DequantizeLinear"):
            return self._quantization(value)
        attributes = dict(value.attributes)
        if value.operator == "Cast":
            attributes["to"] = DTYPES[attributes["to"]].onnx_type
        return self.node(value.operator, names, value.dtype, attributes)

    def _written_constant(self, value: ir.Value) -> str:
        assert value.array is not None
        (term,) = value.terms
        shape = term.view.shape(term.shape)
        if value.array.shape == shape or ir.size(shape) <= _STORED_ELEMENTS:
            return self.constant(np.array(np.broadcast_to(value.array, shape), order="C"))
        fill = numpy_helper.from_array(value.array.reshape(1))
        dims = self.constant(np.asarray(shape, np.int64))
        return self.node("ConstantOfShape", [dims], value.dtype, {"value": fill})

    def _view(self, value: ir.Value, source: str) -> str:
        """A constant in its new shape; nothing in scope gives another value one."""
        if source in self._constants and value.view.block == 1:
            array = self._constants[source]
            return self.constant(array.reshape(value.view.shape(array.shape)))
        raise UnsupportedError(
            f"gradient: {source} lies along an axis that is not its last, which is written by "
            "an attribute of an old operator or of a quantization",
            "give it that shape, [C, 1, 1] for channels of NCHW; "
            "onnx.version_converter.convert_version does it for old opsets",
        )

    def _quantization(self, value: ir.Value) -> str:
        """Quantize and Dequantize take a scale along an axis as an attribute."""
        operands = [None if a is None else self._graph.values[a] for a in value.arguments]
        views = {v.view for v in operands[1:] if v is not None and v.kind == "view"}
        sources = [
            a if v is None or v.kind != "view" else v.arguments[0]
            for a, v in zip(value.arguments, operands, strict=True)
        ]
        names = [None if a is None else self.value(a) for a in sources]
        attributes: dict[str, Any] = {}
        for view in views:
            attributes["axis"] = -1 - (view.axis if view.block > 1 else view.trailing)
            if view.block > 1:
                attributes["block_size"] = view.block
        if not views and self._rank(names[1]) == 1:
            attributes["axis"] = -1
        return self.node(
            value.operator, names, value.dtype, self._quantized(value, names, attributes)
        )

    def _quantized(
        self, value: ir.Value, names: Sequence[str | None], attributes: dict[str, Any]
    ) -> dict[str, Any]:
        to, scale = value.dtype, self.dtype(names[1] or "")
        if value.operator == "DequantizeLinear":
            return attributes | ({} if to == scale else {"output_dtype": DTYPES[to].onnx_type})
        if names[2] is None and to != "uint8":
            attributes["output_dtype"] = DTYPES[to].onnx_type
        precision = value.attributes["precision"]
        if precision == scale:
            return attributes
        return attributes | {"precision": DTYPES[precision].onnx_type}

    def _rank(self, name: str | None) -> int | None:
        if name in self._constants:
            return self._constants[name].ndim
        shapes = {one.name: one.shape for one in self._graph.inputs}
        shape = shapes.get(name or "")
        return None if shape is None else len(shape)

    # ---- the model

    def model(self, cotangents: Mapping[str, str], keep_outputs: bool) -> onnx.ModelProto:
        """The model whose outputs are gradients, by the names of the inputs."""
        wanted = [(f"d{name}", value) for name, value in cotangents.items()]
        results: list[tuple[str, str]] = []
        if keep_outputs:
            results = [(one.name, self.value(one.value)) for one in self._graph.outputs]
        results += [(self.fresh(name), value) for name, value in wanted]
        renamed = self._named_results(results)
        opset = _opset(self._nodes)
        name = f"{self._graph.name}_gradient"
        graph = helper.make_graph(
            [_onnx_node(node, renamed) for node in self._nodes],
            name,
            [*map(_info, self._graph.inputs), *self._upstream.values()],
            [_info(ir.Input(name, self.dtype(value), None)) for name, value in results],
            [numpy_helper.from_array(a, n) for n, a in self._constants.items()],
            doc_string=f"The gradient of {self._graph.name}.",
        )
        imports = [helper.make_opsetid("", opset)]
        made = helper.make_model(
            graph,
            opset_imports=imports,
            ir_version=max(8, helper.find_min_ir_version_for(imports)),
            producer_name="relu_ops",
        )
        return _with_shapes(made)

    def _named_results(self, results: Sequence[tuple[str, str]]) -> dict[str, str]:
        """Results under their names: a node's by renaming it, another value's as an Identity."""
        made_here = {node.output for node in self._nodes}
        renamed: dict[str, str] = {}
        for name, value in results:
            if value in made_here and value not in renamed:
                renamed[value] = name
            elif value != name:  # an input may be an output as it is
                dtype = self.dtype(value)
                self._nodes.append(_Node("Identity", (value,), name, (dtype,), dtype, {}))
        return renamed


def _info(one: ir.Input) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(one.name, DTYPES[one.dtype].onnx_type, one.shape)


def _onnx_node(node: _Node, renamed: Mapping[str, str]) -> onnx.NodeProto:
    output = renamed.get(node.output, node.output)
    inputs = [renamed.get(name, name) for name in node.inputs]
    return helper.make_node(
        node.operator, inputs, [output], f"{node.operator}_{output}", **node.attributes
    )


def _with_shapes(made: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the shapes of its outputs; that it is imported says that it is in scope."""
    outputs = frontend.import_model(made).outputs
    for info, output in zip(made.graph.output, outputs, strict=True):
        element = info.type.tensor_type.elem_type
        info.CopyFrom(helper.make_tensor_value_info(info.name, element, output.shape))
    return made


def _opset(nodes: Sequence[_Node]) -> int:
    """The first opset from the oldest on that has every operator for its dtypes."""
    newest = onnx.defs.onnx_opset_version()
    for opset in range(_OLDEST_OPSET, newest + 1):
        if all(_takes(node, opset) for node in nodes):
            return opset
    raise UnsupportedError(
        f"gradient: no opset up to {newest} has all that the gradient is made of",
        "install a newer onnx",
    )


def _takes(node: _Node, opset: int) -> bool:
    schema = onnx.defs.get_schema(node.operator, opset, "")
    if not set(node.attributes) <= set(schema.attributes):
        return False
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    bound: dict[str, str] = {}

    def fits(formal: Any, dtype: str | None) -> bool:
        """Whether a dtype is one of those allowed, and the one of others of its parameter."""
        types = allowed.get(formal.type_str, {formal.type_str})
        return dtype is None or (
            f"tensor({DTYPES[dtype].onnx_name})" in types
            and bound.setdefault(formal.type_str, dtype) == dtype
        )

    last = len(schema.inputs) - 1
    operands = (fits(schema.inputs[min(k, last)], dtype) for k, dtype in enumerate(node.dtypes))
    return all(operands) and fits(schema.outputs[0], node.dtype)
