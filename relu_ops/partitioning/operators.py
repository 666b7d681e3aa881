"""What of a group is an operator: the same for every group of one form, whatever its names.

Its inputs have a dtype and a rank, and any extents; small constants are part of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from relu_ops.compiler import frontend
from relu_ops.compiler.frontend.scope import normal_domain
from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import ModelError
from relu_ops.partitioning.graphs import Value
from relu_ops.partitioning.groups import Group

_IR_VERSION = 8


def model_of(group: Group) -> onnx.ModelProto:
    """A group as a model of its own, with names that say only where a value stands."""
    names = {name: f"x{k}" for k, name in enumerate(group.inputs)}
    names |= {name: f"c{k}" for k, name in enumerate(group.constants)}
    names |= {name: f"y{k}" for k, name in enumerate(group.outputs)}
    for k, node in enumerate(group.nodes):
        names.setdefault(node.output[0], f"v{k}")
    graph = onnx.GraphProto(name="_".join(kinds(group)))
    graph.node.extend(_renamed(node, names) for node in group.nodes)
    graph.input.extend(_info(names[n], group.scope.value(n)) for n in group.inputs)
    graph.output.extend(_info(names[n], group.scope.value(n)) for n in group.outputs)
    graph.initializer.extend(
        _tensor(names[name], group.scope.constants[name]) for name in group.constants
    )
    model = onnx.ModelProto(ir_version=_IR_VERSION, graph=graph)
    model.opset_import.add(domain="", version=group.scope.opsets[""])
    return model


def kinds(group: Group) -> list[str]:
    """The operators of a group, each once, in lower case."""
    return list(dict.fromkeys(node.op_type.lower() for node in group.nodes))


def _renamed(node: NodeProto, names: dict[str, str]) -> NodeProto:
    copy = NodeProto(op_type=node.op_type, domain=normal_domain(node.domain))
    copy.input.extend(names[name] if name else "" for name in node.input)
    copy.output.extend(names[name] for name in node.output)
    copy.attribute.extend(sorted(node.attribute, key=lambda attribute: attribute.name))
    for attribute in copy.attribute:
        attribute.ClearField("doc_string")
    return copy


def _info(name: str, value: Value) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto(name=name)
    tensor = info.type.tensor_type
    tensor.elem_type = DTYPES[value.dtype or ""].onnx_type
    if value.shape is not None:
        tensor.shape.SetInParent()
        for _ in value.shape:
            tensor.shape.dim.add()
    return info


def _tensor(name: str, array: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(array, name)


def why_not(model: onnx.ModelProto) -> str | None:
    """Why a group cannot be compiled, in words; None where it can."""
    try:
        frontend.import_model(model)
    except ModelError as error:
        return error.message
    return None


def content_of(model: onnx.ModelProto) -> bytes:
    """What two groups of one operator have in common, and no others."""
    return model.SerializeToString(deterministic=True)


def named(models: Iterable[onnx.ModelProto]) -> dict[str, onnx.ModelProto]:
    """Models by names that no two of them share: what they compute, and a number if need be."""
    found: dict[str, onnx.ModelProto] = {}
    for model in sorted(
        models, key=lambda m: (m.graph.name, hashlib.sha256(content_of(m)).digest())
    ):
        base = model.graph.name[:_LONGEST]
        name, number = base, 1
        while name in found:
            number += 1
            name = f"{base}_{number}"
        found[name] = model
    return found


_LONGEST = 60


def function_of(model: onnx.ModelProto, domain: str, name: str) -> onnx.FunctionProto:
    """The nodes of an operator as a local function: what runs where the library is not."""
    function = onnx.FunctionProto(domain=domain, name=name)
    function.input.extend(info.name for info in model.graph.input)
    function.output.extend(info.name for info in model.graph.output)
    for tensor in model.graph.initializer:
        constant = function.node.add(op_type="Constant", output=[tensor.name])
        constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=tensor)
    function.node.extend(model.graph.node)
    function.opset_import.extend(model.opset_import)
    return function
