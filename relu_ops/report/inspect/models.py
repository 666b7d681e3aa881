"""Describes a model, as plain data: nodes, constants, declarations as they stand in the file."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_ops import targets
from relu_ops.bundle import store as bundles
from relu_ops.errors import UnsupportedError, require
from relu_ops.targets import Target

if TYPE_CHECKING:
    import onnx

    from relu_ops.compiler.frontend import Model

_SHOWN_VALUES = 8
"""A tensor with more values than this is shown by its dtype and shape alone."""


def describe_model(model: Model) -> dict[str, Any]:
    """See `relu_ops.report.inspect.describe`."""
    require("onnx", "compile", "relu_ops.report.inspect.describe of a model")
    from relu_ops.compiler import frontend

    proto = frontend.read_model(model)
    content = proto.SerializeToString(deterministic=True)
    try:
        frontend.import_model(proto)
        why_not = None
    except UnsupportedError as error:
        why_not = str(error)
    path = Path(model) if isinstance(model, str | os.PathLike) else None
    return {
        "kind": "model",
        "path": None if path is None else str(path),
        "operators": [describe_operator(proto)],
        "sha256": bundles.digest_of(content if path is None else path.read_bytes()),
        "size": len(content) if path is None else path.stat().st_size,
        "in_scope": why_not is None,
        "why_not": why_not,
        "targets": [describe_target(targets.parse(name)) for name in targets.CPU_TARGETS],
        "producer": _producer(proto),
    }


def describe_operator(proto: onnx.ModelProto) -> dict[str, Any]:
    """A model as one of the operators of a description."""
    return {
        "name": proto.graph.name,
        "inputs": [_value(value) for value in _true_inputs(proto.graph)],
        "outputs": [_value(value) for value in proto.graph.output],
        "graph": _graph(proto),
    }


def _true_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Before IR version 4 every initializer stood among the inputs too."""
    constants = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in constants]


def _producer(proto: onnx.ModelProto) -> dict[str, str]:
    name = proto.producer_name
    return {name: proto.producer_version} if name else {}


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return describe_tensor(value.name, kind or "unknown", None)
    from relu_ops.compiler.frontend import scope

    tensor = value.type.tensor_type
    return describe_tensor(value.name, _dtype(tensor.elem_type), scope.written_shape(tensor))


def _dtype(element_type: int) -> str:
    from relu_ops.compiler.frontend import scope

    known = scope.ELEMENT_TYPES.get(element_type)
    return known or scope.element_type_name(element_type)


def _graph(proto: onnx.ModelProto) -> dict[str, Any]:
    return {
        "name": proto.graph.name,
        "doc": proto.graph.doc_string or proto.doc_string,
        "ir_version": proto.ir_version,
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        "metadata": {entry.key: entry.value for entry in proto.metadata_props},
        "nodes": [_node(node) for node in proto.graph.node],
        "constants": [_constant(tensor) for tensor in proto.graph.initializer],
    }


def _node(node: onnx.NodeProto) -> dict[str, Any]:
    return {
        "name": node.name,
        "operator": node.op_type,
        "domain": node.domain or "ai.onnx",
        "inputs": list(node.input),
        "outputs": list(node.output),
        "attributes": {attribute.name: _attribute(attribute) for attribute in node.attribute},
    }


def _constant(tensor: onnx.TensorProto) -> dict[str, Any]:
    shape = [int(dim) for dim in tensor.dims]
    described = describe_tensor(tensor.name, _dtype(tensor.data_type), shape)
    if math.prod(shape) <= _SHOWN_VALUES:
        described["values"] = _values(tensor)
    return described


def _values(tensor: onnx.TensorProto) -> list[Any] | None:
    from onnx import numpy_helper

    try:
        return [_plain(element) for element in numpy_helper.to_array(tensor).reshape(-1)]
    except (ValueError, TypeError):  # a dtype that NumPy or JSON does not have
        return None


def _attribute(attribute: onnx.AttributeProto) -> Any:
    """An attribute as plain data: a graph or the like by its kind alone."""
    from onnx import AttributeProto, helper

    if attribute.type == AttributeProto.TENSOR:
        return _constant(attribute.t)
    if attribute.type not in _PLAIN_ATTRIBUTES:
        return f"<{AttributeProto.AttributeType.Name(attribute.type).lower()}>"
    value = helper.get_attribute_value(attribute)
    if _is_float(attribute):
        import numpy as np

        value = [np.float32(v) for v in value] if _is_list(value) else np.float32(value)
    return [_plain(v) for v in value] if _is_list(value) else _plain(value)


# onnx.AttributeProto's FLOAT, INT, STRING, FLOATS, INTS and STRINGS, whose numbers ONNX fixes.
_PLAIN_ATTRIBUTES = (1, 2, 3, 6, 7, 8)


def _is_float(attribute: onnx.AttributeProto) -> bool:
    return attribute.type in (1, 6)


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, bytes | str)


def _plain(value: Any) -> Any:
    """A number or string as JSON has it; a float as it is written shortest in its own type."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, str | bool | int):
        return value
    if getattr(value, "dtype", None) is not None and value.dtype.kind in "biu":
        return value.item()
    number = float(str(value))
    return number if math.isfinite(number) else str(number)


def describe_target(target: Target) -> dict[str, Any]:
    """A target, and whether it runs here."""
    reason = targets.why_not(target, targets.this_machine())
    return {"name": target.name, "runs_here": reason is None, "why_not": reason}


def describe_tensor(name: str, dtype: str, shape: Sequence[Any] | None) -> dict[str, Any]:
    """A tensor, declared or computed."""
    return {"name": name, "dtype": dtype, "shape": None if shape is None else list(shape)}
