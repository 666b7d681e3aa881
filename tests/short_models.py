"""Small ONNX models, written short: what several suites of the importer need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, FunctionProto, NodeProto, TensorProto, helper, numpy_helper

from relu_ops.compiler.frontend import import_model
from relu_ops.contract import reference
from relu_ops.errors import ModelError

FLOAT = TensorProto.FLOAT


def value(name: str, shape: Any = ("N",), dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    """A node; operands as words, "-" for an absent one."""
    names = [["" if n == "-" else n for n in text.split()] for text in (inputs, outputs)]
    return helper.make_node(operator, *names, **attributes)


def referring(made: NodeProto, kind: int = AttributeProto.FLOAT, **names: str) -> NodeProto:
    """A node, with attributes that refer to those of its function."""
    for name, wanted in names.items():
        made.attribute.add(name=name, ref_attr_name=wanted, type=kind)
    return made


def constant(name: str, array: Any) -> TensorProto:
    return numpy_helper.from_array(np.asarray(array), name)


def opsets(**versions: int) -> list[onnx.OperatorSetIdProto]:
    """Versions of domains; `onnx` is ONNX's own."""
    return [helper.make_opsetid("" if d == "onnx" else d, v) for d, v in versions.items()]


def function(
    name: str,
    inputs: str,
    outputs: str,
    nodes: Sequence[NodeProto],
    attributes: Sequence[str] = (),
    opset: int = 17,
    domain: str = "local",
    overload: str = "",
    **defaults: Any,
) -> FunctionProto:
    """A local function; its attributes without a default, and those with one."""
    return helper.make_function(
        domain,
        name,
        inputs.split(),
        outputs.split(),
        list(nodes),
        opsets(onnx=opset, local=1),
        list(attributes),
        [helper.make_attribute(name, default) for name, default in defaults.items()],
        overload=overload,
    )


def model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    initializers: Sequence[TensorProto] = (),
    functions: Sequence[FunctionProto] = (),
    opset: int = 17,
    ir_version: int = 10,
    imports: Sequence[onnx.OperatorSetIdProto] | None = None,
) -> onnx.ModelProto:
    """A model; of x to y, vectors, where nothing else is said."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [value("x")] if inputs is None else list(inputs),
        [value("y")] if outputs is None else list(outputs),
        list(initializers),
    )
    chosen = opsets(onnx=opset, local=1) if imports is None else list(imports)
    made = helper.make_model(graph, opset_imports=chosen, functions=list(functions))
    made.ir_version = ir_version
    return made


def result(made: Any, *arrays: Any) -> Any:
    """What the reference gives for a model with one output."""
    graph = import_model(made)
    (array,) = reference.evaluate(graph, [np.asarray(a, np.float32) for a in arrays])
    return array.tolist()


def refusal(made: Any) -> str:
    """The whole message with which a model is refused."""
    with pytest.raises(ModelError) as caught:
        import_model(made)
    return str(caught.value)
