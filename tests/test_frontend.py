"""What the importer refuses, and in which words; what it folds and normalises."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_ops import graphs
from relu_ops.compiler.frontend import import_model
from relu_ops.contract import reference
from relu_ops.errors import ArgumentTypeError, ModelError, UnsupportedError

FLOAT = TensorProto.FLOAT


def value(name: str, dtype: int = FLOAT, shape: object = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    opset: int = 18,
    initializers: tuple[TensorProto, ...] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def refusal(bad: object) -> str:
    with pytest.raises(ModelError) as caught:
        import_model(bad)
    return str(caught.value)


def test_an_operator_outside_the_scope_is_named() -> None:
    node = helper.make_node("Exp", ["x"], ["y"], name="boom")
    with pytest.raises(UnsupportedError) as caught:
        import_model(model([node], [value("x")], [value("y")]))
    first, hint = str(caught.value).split("\n")
    assert first == "node 'boom': operator Exp of domain ai.onnx, version 18, is not supported"
    assert hint.startswith("hint: supported operators: Relu, LeakyRelu, PRelu")


def test_a_foreign_domain_is_named() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], domain="com.example")
    bad = model([node], [value("x")], [value("y")])
    bad.opset_import.append(helper.make_opsetid("com.example", 3))
    expected = "node of output ['y']: operator Relu of domain com.example, version 3, is not"
    assert refusal(bad).startswith(expected)


def test_an_opset_out_of_range_is_refused() -> None:
    bad = model([helper.make_node("Relu", ["x"], ["y"])], [value("x")], [value("y")], 10_000)
    newest = onnx.defs.onnx_opset_version()
    assert refusal(bad).startswith(f"the model's opset is 10000; it must be 6 to {newest}")


@pytest.mark.parametrize("opset", [1, 5])
def test_an_operator_of_an_old_opset_is_refused(opset: int) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="old", consumed_inputs=[0])
    bad = model([node], [value("x", shape=["N"])], [value("y", shape=["N"])], opset)
    assert f"Relu of opset {opset}; the model's opset must be 6 to" in refusal(bad)


def test_a_dtype_that_onnx_does_not_allow_is_refused() -> None:
    bad = model(
        [helper.make_node("LeakyRelu", ["x"], ["y"])],
        [value("x", TensorProto.INT32)],
        [value("y", TensorProto.INT32)],
    )
    assert "int32" in refusal(bad)


def test_an_unsupported_dtype_is_refused_with_the_list() -> None:
    bad = model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", TensorProto.STRING)],
        [value("y", TensorProto.STRING)],
    )
    expected = "input 'x' has dtype string\nhint: supported dtypes: float16, bfloat16, float32"
    assert refusal(bad).startswith(expected)


def test_operands_of_different_dtypes_are_refused() -> None:
    bad = model(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        [value("a"), value("b", TensorProto.DOUBLE)],
        [value("y")],
    )
    assert re.search("float64|double|type", refusal(bad))


def test_a_cycle_is_refused() -> None:
    nodes = [helper.make_node("Relu", ["b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    message = refusal(model(nodes, [value("x")], [value("b")]))
    assert message == "node of output ['a']: input 'b' is computed by no node before it"


def test_an_output_that_nothing_computes_is_refused() -> None:
    bad = model([helper.make_node("Relu", ["x"], ["y"])], [value("x")], [value("z")])
    assert "z" in refusal(bad)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x08"])
def test_bytes_that_are_no_model_are_refused(content: bytes) -> None:
    assert "is not an ONNX model" in refusal(content)


def test_every_truncation_is_refused_or_a_model() -> None:
    content = graphs.serialize(graphs.leaky_relu())
    for end in range(len(content)):
        try:
            import_model(content[:end])
        except ModelError:
            continue


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "missing.onnx"
    assert refusal(path) == (
        f"{path}: cannot be read: No such file or directory\n"
        "hint: pass the path of an .onnx file; a relative one begins in the current directory"
    )


def test_something_that_is_no_model() -> None:
    with pytest.raises(ArgumentTypeError, match=r"^model must be a path, bytes, .* \(not int\)$"):
        import_model(3)


def external(location: str) -> onnx.ModelProto:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    return model(nodes, [value("x", shape=["N", 2])], [value("y", shape=["N", 2])], 18, (tensor,))


def test_external_data_inside_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.float32([1, 2]).tobytes())
    path = tmp_path / "m.onnx"
    path.write_bytes(external("w.bin").SerializeToString())
    graph = import_model(path)
    assert reference.evaluate(graph, [np.zeros((1, 2), np.float32)])[0].tolist() == [[1, 2]]


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd", "a/../../w.bin", "", "link.bin"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "w.bin").write_bytes(b"\0" * 8)
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    path = folder / "m.onnx"
    path.write_bytes(external(location).SerializeToString())
    assert "lies outside the model's folder" in refusal(path)


def test_external_data_needs_a_path() -> None:
    assert "was not given as a path" in refusal(external("w.bin").SerializeToString())


def test_a_rank_above_eight_is_refused() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    bad = model(nodes, [value("x", shape=[1] * 9)], [value("y", shape=[1] * 9)])
    assert refusal(bad) == "input 'x' has 9 dimensions; it must have at most 8"


def test_shapes_that_cannot_broadcast_are_refused() -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["y"])]
    assert refusal(model(nodes, [value("a", shape=[2]), value("b", shape=[3])], [value("y")]))


def test_a_slope_larger_than_its_input_is_refused() -> None:
    slope = numpy_helper.from_array(np.ones((2, 3), np.float32), "slope")
    nodes = [helper.make_node("PRelu", ["x", "slope"], ["y"])]
    x = numpy_helper.from_array(np.ones(3, np.float32), "x")
    assert refusal(model(nodes, [], [value("y", shape=[3])], 18, (slope, x)))


def test_constants_are_folded() -> None:
    one = numpy_helper.from_array(np.ones(4, np.float32), "one")
    nodes = [
        helper.make_node("Neg", ["one"], ["minus"]),
        helper.make_node("Add", ["x", "minus"], ["y"]),
    ]
    graph = import_model(
        model(nodes, [value("x", shape=["N", 4])], [value("y", shape=["N", 4])], 18, (one,))
    )
    assert [graph.values[k].operator for k in graph.live_values()].count("Neg") == 0
    assert reference.evaluate(graph, [np.zeros((2, 4), np.float32)])[0].tolist() == [[-1] * 4] * 2


def test_prelu_at_opset_six_lies_along_channels() -> None:
    nodes = [helper.make_node("PRelu", ["x", "slope"], ["y"])]
    shape = ["N", 3, 2, 2]
    graph = import_model(
        model(
            nodes,
            [value("x", shape=shape), value("slope", shape=[3])],
            [value("y", shape=shape)],
            6,
        )
    )
    x = np.full((1, 3, 2, 2), -1, np.float32)
    (y,) = reference.evaluate(graph, [x, np.float32([1, 2, 3])])
    assert y[0, :, 0, 0].tolist() == [-1, -2, -3]


def test_legacy_broadcast_with_an_axis() -> None:
    node = helper.make_node("Add", ["a", "b"], ["y"], broadcast=1, axis=1)
    graph = import_model(
        model(
            [node],
            [value("a", shape=[2, 3, 4]), value("b", shape=[3])],
            [value("y", shape=[2, 3, 4])],
            6,
        )
    )
    (y,) = reference.evaluate(graph, [np.zeros((2, 3, 4), np.float32), np.float32([1, 2, 3])])
    assert y[0, :, 0].tolist() == [1, 2, 3]


def blocked(x_shape: list[object], scale_shape: list[object], block: int) -> onnx.ModelProto:
    node = helper.make_node("DequantizeLinear", ["x", "s"], ["y"], axis=1, block_size=block)
    inputs = [value("x", TensorProto.INT8, x_shape), value("s", shape=scale_shape)]
    return model([node], inputs, [value("y", shape=x_shape)], 21)


def test_blocked_quantization_repeats_each_scale() -> None:
    graph = import_model(blocked(["N", "D"], ["N", "B"], 2))
    x, scale = np.ones((1, 6), np.int8), np.float32([[1, 2, 3]])
    assert reference.evaluate(graph, [x, scale])[0].tolist() == [[1, 1, 2, 2, 3, 3]]


def test_a_shorter_last_block_is_refused() -> None:
    assert "3 blocks of 2 must be the 5 elements of x" in refusal(blocked([2, 5], [2, 3], 2))


def test_two_block_sizes_on_one_axis_are_refused() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s"], ["a"], axis=1, block_size=2),
        helper.make_node("DequantizeLinear", ["x", "t"], ["b"], axis=1, block_size=3),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    inputs = [value("x", TensorProto.INT8, [1, 6]), value("s", shape=[1, 3])]
    inputs.append(value("t", shape=[1, 2]))
    bad = model(nodes, inputs, [value("y", shape=[1, 6])], 21)
    assert "quantizes one axis in blocks of" in refusal(bad)


def test_an_old_opset_is_taken_where_the_operator_was_the_same() -> None:
    nodes = [helper.make_node("Not", ["x"], ["y"])]
    info = [value(n, TensorProto.BOOL, ["N"]) for n in "xy"]
    graph = import_model(model(nodes, info[:1], info[1:], 1))
    assert reference.evaluate(graph, [np.array([True, False])])[0].tolist() == [False, True]


def test_local_functions_are_inlined() -> None:
    function = helper.make_function(
        "local",
        "Double",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 18)],
    )
    good = model(
        [helper.make_node("Double", ["x"], ["y"], domain="local")],
        [value("x", shape=["N"])],
        [value("y", shape=["N"])],
    )
    good.functions.append(function)
    good.opset_import.append(helper.make_opsetid("local", 1))
    (y,) = reference.evaluate(import_model(good), [np.float32([1, 2])])
    assert y.tolist() == [2, 4]


# ---------------------------------------------------------------- small files that ask for much


def relu_model() -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    return model(nodes, [value("x", shape=["N"])], [value("y", shape=["N"])])


def test_a_text_that_is_not_utf8_is_refused() -> None:
    content = graphs.serialize(graphs.relu())
    bad = content.replace(b"\x04Relu", b"\x04Re\xffu")
    assert bad != content
    assert refusal(bad) == "the model has a op_type that is not UTF-8: b'Re\\xffu'"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": str(2**63)}, f"has fewer than {2**63} \\+ 8 bytes"),
        ({"offset": "-8"}, "offset -8 or length 8 is wrong for 8 bytes"),
        ({"length": str(2**62)}, f"offset 0 or length {2**62} is wrong for 8 bytes"),
        ({"offset": "12"}, "has fewer than 12 \\+ 8 bytes"),
        ({"length": "many"}, "invalid literal"),
    ],
)
def test_external_data_of_a_wrong_extent(
    tmp_path: Path, entries: dict[str, str], message: str
) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    bad = external("w.bin")
    for key, text in entries.items():
        bad.graph.initializer[0].external_data.add(key=key, value=text)
    path = tmp_path / "m.onnx"
    path.write_bytes(bad.SerializeToString())
    assert re.search(message, refusal(path))


def test_external_data_of_a_huge_shape_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(2**40)  # a sparse file, which takes no room
    bad = external("w.bin")
    bad.graph.initializer[0].dims[:] = [2**37]
    path = tmp_path / "m.onnx"
    path.write_bytes(bad.SerializeToString())
    assert refusal(path) == "the model's external data has more than 1073741824 bytes"
    good = external("w.bin")
    path.write_bytes(good.SerializeToString())
    assert import_model(path).inputs  # eight bytes of a terabyte


def with_function(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    made = model(
        [helper.make_node("F0", ["x"], ["y"], domain="local")],
        [value("x", shape=["N"])],
        [value("y", shape=["N"])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    made.opset_import.append(opsets[1])
    made.functions.append(helper.make_function("local", "F0", ["a"], ["b"], list(nodes), opsets))
    return made


def test_external_data_inside_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from the current directory, where onnx's own reader would look."""
    tensor = external("w.bin").graph.initializer[0]
    nodes = [
        helper.make_node("Constant", [], ["c"], value=tensor),
        helper.make_node("Add", ["a", "c"], ["b"]),
    ]
    content = with_function(*nodes).SerializeToString()
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "folder"
    for path, numbers in ((elsewhere, [7, 7]), (folder, [1, 2])):
        path.mkdir()
        (path / "w.bin").write_bytes(np.float32(numbers).tobytes())
        (path / "m.onnx").write_bytes(content)
    monkeypatch.chdir(elsewhere)
    (y,) = reference.evaluate(import_model(folder / "m.onnx"), [np.zeros(2, np.float32)])
    assert y.tolist() == [1, 2]
    assert "was not given as a path" in refusal(content)


def test_functions_that_double_at_every_level_are_refused() -> None:
    bad = with_function(*[helper.make_node("F1", ["a"], ["b"], domain="local")] * 2)
    opsets = list(bad.functions[0].opset_import)
    for k in range(1, 41):
        called, domain = (f"F{k + 1}", "local") if k < 40 else ("Relu", "")
        nodes = [
            helper.make_node(called, ["a"], ["t"], domain=domain),
            helper.make_node(called, ["t"], ["b"], domain=domain),
        ]
        bad.functions.append(helper.make_function("local", f"F{k}", ["a"], ["b"], nodes, opsets))
    assert refusal(bad) == (
        f"the model's local functions inline to {2**41} nodes; at most 100000 are supported"
    )


def test_functions_that_call_themselves_are_refused() -> None:
    bad = with_function(helper.make_node("F0", ["a"], ["b"], domain="local"))
    assert refusal(bad) == (
        "function local.F0 calls itself (local.F0 > local.F0), which ONNX forbids"
    )


def test_a_constant_that_would_be_huge_is_not_made() -> None:
    shape = numpy_helper.from_array(np.array([2**40, 1], np.int64), "shape")
    two = numpy_helper.from_array(np.float32([1, 2]), "two")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
        helper.make_node("Add", ["huge", "two"], ["sum"]),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    outputs = [value("y", shape=["M", 2])]
    graph = import_model(model(nodes, [value("x", shape=["N", 2])], outputs, 18, (shape, two)))
    assert all(v.array is None or v.array.size <= 2 for v in graph.values)


@pytest.mark.parametrize("dims", [[2**62, 2], [2**40, 2**40, 0], [2**63 - 1]])
def test_a_shape_beyond_any_memory_is_refused(dims: list[int]) -> None:
    shape = numpy_helper.from_array(np.array(dims, np.int64), "shape")
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["y"])]
    bad = model(nodes, [], [value("y")], 18, (shape,))
    assert "larger than any memory" in refusal(bad)


def test_a_shape_of_many_numbers_is_refused() -> None:
    shape = numpy_helper.from_array(np.array([2**40], np.int64), "shape")
    fill = numpy_helper.from_array(np.array([1], np.int64))
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=fill),
        helper.make_node("ConstantOfShape", ["ones"], ["y"]),
    ]
    message = refusal(model(nodes, [], [value("y")], 18, (shape,)))
    assert "must be a vector of at most 8 numbers" in message or "not valid ONNX" in message


def test_a_reference_to_an_attribute_of_no_function_is_refused() -> None:
    node = helper.make_node("LeakyRelu", ["x"], ["y"])
    node.attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope")
    assert refusal(model([node], [value("x", shape=["N"])], [value("y", shape=["N"])]))


def test_too_many_inputs_are_refused() -> None:
    inputs = [value(f"x{k}", shape=["N"]) for k in range(513)]
    nodes = [helper.make_node("Max", [i.name for i in inputs], ["y"])]
    bad = model(nodes, inputs, [value("y", shape=["N"])])
    assert refusal(bad) == "the model has 513 inputs; it must have at most 512"


def test_too_many_outputs_are_refused() -> None:
    nodes = [helper.make_node("Relu", ["x"], [f"y{k}"]) for k in range(513)]
    outputs = [value(f"y{k}", shape=["N"]) for k in range(513)]
    bad = model(nodes, [value("x", shape=["N"])], outputs)
    assert refusal(bad) == "the model has 513 outputs; it must have at most 512"


def test_sparse_initializers_are_refused() -> None:
    bad = relu_model()
    bad.graph.sparse_initializer.add()
    assert refusal(bad) == "the model has sparse initializers, which are not supported"
