"""Models that exporters wrote and runtimes take, though they look odd; and what each one means."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from short_models import constant, function, model, node, opsets, refusal, result, value

from relu_ops.compiler.frontend import import_model

# ---------------------------------------------------------------- initializers


@pytest.mark.parametrize("ir_version", [3, 4, 10])
def test_an_initializer_that_is_no_input_at_any_ir_version(ir_version: int) -> None:
    """onnxruntime's own sample mul_1.onnx: IR version 3, where initializers had to be inputs."""
    weights = [constant("w", np.float32([1, 2, 3]))]
    made = model([node("Mul", "x w", "y")], None, None, weights, ir_version=ir_version, opset=7)
    assert [tensor.name for tensor in import_model(made).inputs] == ["x"]
    assert result(made, [5, 6, 7]) == [5, 12, 21]


def test_an_initializer_that_is_an_input_too_is_no_input() -> None:
    weights = [constant("w", np.float32([2]))]
    made = model([node("Mul", "x w", "y")], [value("x"), value("w", [1])], None, weights)
    assert [tensor.name for tensor in import_model(made).inputs] == ["x"]


@pytest.mark.parametrize("what", ["input", "initializer"])
def test_two_of_one_name_are_refused(what: str) -> None:
    made = model([node("Add", "x w", "y")], [value("x")], None, [constant("w", np.float32([1]))])
    many = made.graph.input if what == "input" else made.graph.initializer
    many.append(many[0])
    name = "x" if what == "input" else "w"
    assert refusal(made) == f"the model has 2 {what}s of the name {name!r}"


@pytest.mark.parametrize("name", ["x", "t"])
def test_a_name_that_is_computed_twice_is_refused(name: str) -> None:
    nodes = [node("Relu", "x", "t"), node("Neg", "x", name, name="n"), node("Abs", "t", "y")]
    assert refusal(model(nodes)) == f"the model has 2 values of the name {name!r}"
    body = [node("Relu", "x", "t"), node("Neg", "x", name, name="n"), node("Add", "t x", "y")]
    call = node("Act", "x", "y", domain="local", name="c")
    said = refusal(model([call], functions=[function("Act", "x", "y", body)]))
    assert said == f"node 'n' of function local.Act, called by node 'c': {name!r} is there already"


@pytest.mark.parametrize("kind", ["complex64", "string", "float8e4m3fn", "int4"])
def test_an_unused_constant_of_any_dtype_stops_no_model(kind: str) -> None:
    number = onnx.TensorProto.DataType.Value(kind.upper())
    tensor = onnx.TensorProto(name="w", data_type=number, dims=[0])
    made = model([node("Relu", "x", "y"), node("Constant", "", "c", value=tensor)])
    made.graph.initializer.append(tensor)
    assert result(made, [-1.0]) == [0]
    made.graph.node.append(node("Identity", "w", "z"))
    made.graph.output.append(value("z", None))
    assert refusal(made).startswith(f"tensor 'w' has dtype {kind}\nhint: supported dtypes: float16")


@pytest.mark.parametrize("change", [{"dims": [-2]}, {"dims": [3]}, {"float_data": [1.0, 2.0]}])
def test_a_constant_whose_data_do_not_fit_is_refused_by_its_name(change: dict[str, Any]) -> None:
    weights = constant("w", np.float32([1, 2]))
    for field, content in change.items():
        getattr(weights, field)[:] = content
    said = refusal(model([node("Add", "x w", "y")], None, None, [weights]))
    assert said.startswith(("tensor 'w' is not valid ONNX: ", "tensor 'w' cannot be read: "))


# ---------------------------------------------------------------- domains and versions


@pytest.mark.parametrize(
    "versions",
    [
        [("", 6), ("", 11)],
        [("", 11), ("", 6)],
        [("ai.onnx", 11), ("", 6)],
        [("", 6), ("ai.onnx", 11)],
        [("ai.onnx", 11)],
        [("", 11), ("ai.onnx.ml", 3), ("ai.onnx.ml", 1)],
    ],
)
def test_nodes_bind_to_the_highest_version_of_a_domain(versions: list[tuple[str, int]]) -> None:
    """Clip took attributes at opset 6, and takes operands at 11."""
    imports = [helper.make_opsetid(domain, version) for domain, version in versions]
    low = [constant("low", np.float32(-1))]
    assert result(model([node("Clip", "x low", "y")], None, None, low, imports=imports), [-3]) == [
        -1
    ]
    old = model([node("Clip", "x", "y", min=-1.0)], imports=imports)
    assert "Unrecognized attribute: min for operator Clip" in refusal(old)


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_a_node_may_name_the_domain_either_way(domain: str) -> None:
    made = model([node("Relu", "x", "y", domain=domain)], imports=opsets(onnx=17))
    assert result(made, [-1.0]) == [0]


def test_a_model_without_an_opset_of_onnx_is_refused_at_its_node() -> None:
    made = model([node("Relu", "x", "y", name="r")], imports=opsets(local=1))
    assert refusal(made).startswith("node 'r': no opset_import there names the domain ai.onnx, so")


@pytest.mark.parametrize("version", [0, onnx.IR_VERSION + 1])
def test_an_ir_version_that_onnx_does_not_know_is_refused(version: int) -> None:
    made = model([node("Relu", "x", "y")])
    made.ir_version = version
    hint = "\nhint: install a newer onnx" if version else ""
    assert refusal(made) == (
        f"the model's ir_version is {version}; it must be 1 to {onnx.IR_VERSION}{hint}"
    )


def test_a_graph_without_a_name() -> None:
    made = model([node("Relu", "x", "y")])
    made.graph.name = ""
    assert import_model(made).name == "graph"


def test_an_output_without_a_type() -> None:
    made = model([node("Relu", "x", "y")], outputs=[onnx.ValueInfoProto(name="y")])
    assert result(made, [-1.0]) == [0]


# ---------------------------------------------------------------- onnxruntime agrees


def odd_models() -> dict[str, onnx.ModelProto]:
    twice = [*opsets(onnx=9), *opsets(onnx=17)]
    unnamed = model([node("Relu", "x", "y")])
    unnamed.graph.name = ""
    return {
        "negative dimension": model(
            [node("Relu", "x", "y")], [value("x", [-1])], [value("y", [-3])]
        ),
        "domain twice": model([node("Relu", "x", "y")], imports=twice),
        "ai.onnx": model([node("Relu", "x", "y", domain="ai.onnx")]),
        "no graph name": unnamed,
        "unused node": model([node("Relu", "x", "y"), node("Exp", "x", "z")]),
    }


@pytest.mark.parametrize("what", odd_models())
def test_onnxruntime_takes_it_too(what: str) -> None:
    made, x = odd_models()[what], np.float32([-1, 2])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(made.SerializeToString(), options)
    assert session.run(None, {"x": x})[0].tolist() == result(made, x)
