"""Models that people reported as failing elsewhere, recreated: right values, or a whole refusal.

Each is of another kind. The values are those of ONNX's text, written down by hand or by NumPy's
plain arithmetic; the reference and a compiled operator give them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cases import assert_same_bits, compiled
from onnx import TensorProto, parser
from short_models import constant, model, node, opsets, refusal, result, value

from relu_ops.compiler.frontend import import_model
from relu_ops.contract import reference
from relu_ops.verification import verify

F, NAN = np.float32, np.float32("nan")
X = F([-8, -3, -1, -0.0, 0, 1, 3, 8, NAN])
RELU = F([0, 0, 0, -0.0, 0, 1, 3, 8, NAN])
IMAGE = F([[[[-1, -2]], [[-3, 4]]]])


def text(body: str, inputs: str = "float[N] x", opset: int = 18, more: str = "") -> Any:
    """A model in ONNX's own text."""
    return parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}{more}]> '
        f"g ({inputs}) => (float[N] y) {{ {body} }}"
    )


def of_kind(kind: int, *nodes: onnx.NodeProto, opset: int = 17, **constants: Any) -> Any:
    """A model of vectors of one dtype."""
    return model(
        nodes,
        [value("x", ("N",), kind)],
        [value("y", ("N",), kind)],
        [constant(name, array) for name, array in constants.items()],
        opset=opset,
    )


def of_image(slope: Any) -> Any:
    """PRelu of one image of two channels."""
    shape = IMAGE.shape
    slopes = [constant("s", F(slope))]
    nodes = [node("PRelu", "x s", "y")]
    return model(nodes, [value("x", shape)], [value("y", shape)], slopes)


def dequantized(shape: tuple[int, ...], kind: int, **attributes: Any) -> Any:
    operands = {k: v for k, v in attributes.items() if k in ("s", "z")}
    axis = {k: v for k, v in attributes.items() if k == "axis"}
    return model(
        [node("DequantizeLinear", " ".join(["x", *operands]), "y", **axis)],
        [value("x", shape, kind)],
        [value("y", shape)],
        [constant(name, array) for name, array in operands.items()],
        opset=13,
    )


CALLING_A_CONSTANT = """<ir_version: 8, opset_import: ["": 17, "local": 1]>
g (float[N] x) => (float[N] y) { y = local.f <v: float = 2.5> (x) }
<opset_import: ["": 17], domain: "local">
f <v> (a) => (b) { c = Constant <value_float: float = @v> ()  b = Max(a, c) }"""

CALLING_NESTED = """<ir_version: 8, opset_import: ["": 14, "local": 1]>
g (int64[N] x) => (int64[N] y) { y = local.outer <o = 1> (x) }
<opset_import: ["": 14], domain: "local">
inner <i> (a) => (b) { c = Constant <value_int: int = @i> ()  b = Add(a, c) }
<opset_import: ["": 14, "local": 1], domain: "local">
outer <o> (a) => (b) { b = local.inner <i: int = @o> (a) }"""

NAMED_BY_TENSORFLOW = model(
    [node("Add", "a:0 b:0", "sum:0"), node("Relu", "sum:0", "Identity:0")],
    [value("a:0", ("unk__6", 2)), value("b:0", ("unk__7", 2))],
    [value("Identity:0", ("unk__8", 2))],
)

RIGHT: dict[str, tuple[Any, list[Any], Any]] = {
    "relu of NaN is NaN (tvm 19572)": (text("y = Relu(x)"), [X], RELU),
    "sign of NaN is NaN (tvm 19543)": (
        text("y = Sign(x)"),
        [X],
        F([-1, -1, -1, 0, 0, 1, 1, 1, NAN]),
    ),
    "min with NaN on either side (tvm 19540)": (
        text("y = Min(x, z)", "float[N] x, float[N] z"),
        [F([NAN, 3, 4, NAN]), F([7, NAN, 5, NAN])],
        F([NAN, NAN, 4, NAN]),
    ),
    "clip to a NaN (tvm 19533)": (
        text("y = Clip(x, a, b)", "float[N] x, float[] a, float[] b"),
        [F([0.5, -3, 4.5, 11, NAN]), F(0), NAN],
        F([0.5, 0, 4.5, 11, NAN]),
    ),
    "hard sigmoid of NaN (tvm 17999)": (
        text("y = HardSigmoid <alpha = 0.25, beta = 0.5> (x)"),
        [X],
        F([0, 0, 0.25, 0.5, 0.5, 0.75, 1, 1, NAN]),
    ),
    "hard sigmoid's default slope is 0.2 (Paddle 47198)": (
        text("y = HardSigmoid(x)"),
        [F([-2.5, 0, 1])],
        F([0, 0.5, F(F(0.2) + F(0.5))]),
    ),
    "leaky relu without alpha (tvm 7244)": (
        text("y = LeakyRelu(x)"),
        [F([-1, -0.0, 5])],
        F([-0.01, -0.0, 5]),
    ),
    "a slope above 1 (tensorflow 24566)": (
        text("y = LeakyRelu <alpha = 2.0> (x)"),
        [X],
        F([-16, -6, -2, -0.0, 0, 1, 3, 8, NAN]),
    ),
    "a slope below 0 (tensorflow 41260)": (
        text("y = LeakyRelu <alpha = -1.0> (x)"),
        [X],
        F([8, 3, 1, -0.0, 0, 1, 3, 8, NAN]),
    ),
    "a slope of 0 (Paddle 19833)": (
        text("y = LeakyRelu <alpha = 0.0> (x)"),
        [X],
        F([-0.0, -0.0, -0.0, -0.0, 0, 1, 3, 8, NAN]),
    ),
    "an infinity in text (onnx 5102)": (
        text("c = Constant <value_float = -inf> ()  y = Max(x, c)"),
        [X],
        X,
    ),
    "clip without bounds (onnx2keras 167)": (text("y = Clip(x)"), [X], X),
    "clip without a lower bound, int32 (rknn-toolkit2 575)": (
        of_kind(TensorProto.INT32, node("Clip", "x - b", "y"), b=np.int32(2)),
        [np.int32([-5, 3])],
        np.int32([-5, 2]),
    ),
    "bounds of shape (1,) (onnxconverter-common 111)": (
        of_kind(TensorProto.FLOAT, node("Clip", "x a b", "y"), a=F([0]), b=F([6])),
        [X],
        F([0, 0, 0, -0.0, 0, 1, 3, 6, NAN]),
    ),
    "the upper bound wins": (
        text(
            "a = Constant <value = float {3}> ()  b = Constant <value = float {1}> ()"
            "y = Clip(x, a, b)"
        ),
        [F([0, 2, 4])],
        F([1, 1, 1]),
    ),
    "relu, then clip, of doubles (onnxruntime 10936, 11836)": (
        of_kind(
            TensorProto.DOUBLE,
            node("Relu", "x", "t"),
            node("Clip", "t a b", "y"),
            a=np.float64(-1),
            b=np.float64(1),
        ),
        [X.astype(np.float64)],
        np.minimum(RELU.astype(np.float64), 1),
    ),
    "relu6 of cast integers (onnxscript 2986)": (
        text(
            "z = Constant <value_int: int = 0> ()  s = Constant <value_int: int = 6> ()"
            "a = CastLike(z, x)  b = CastLike(s, x)  t = Max(x, a)  y = Min(t, b)"
        ),
        [F([-1, 2, 7, NAN])],
        F([0, 2, 6, NAN]),
    ),
    "hard swish of single operators (pytorch 58301)": (
        text(
            "c = Constant <value = float {3}> ()  z = Constant <value = float {0}> ()"
            "s = Constant <value = float {6}> ()  t = Add(x, c)  u = Clip(t, z, s)"
            "v = Mul(x, u)  y = Div(v, s)"
        ),
        [X],
        F([-0.0, -0.0, F(-2) / F(6), -0.0, 0, F(4) / F(6), 3, 8, NAN]),
    ),
    "leaky relu by where": (
        text(
            "z = Constant <value = float {0}> ()  a = Constant <value = float {0.5}> ()"
            "c = Greater(x, z)  m = Mul(x, a)  y = Where(c, x, m)"
        ),
        [X],
        F([-4, -1.5, -0.5, -0.0, 0, 1, 3, 8, NAN]),
    ),
    "slopes of lower rank, by channel (tvm 20115)": (
        of_image([[[0.5]], [[0.25]]]),
        [IMAGE],
        F([[[[-0.5, -1]], [[-0.75, 4]]]]),
    ),
    "slopes of the shape of x (tvm 20149)": (
        of_image([[[[0.5, 0.25]], [[2, 3]]]]),
        [IMAGE],
        F([[[[-0.5, -0.5]], [[-6, 4]]]]),
    ),
    "a slope without dimensions (tvm 20115)": (
        of_image(0.5),
        [IMAGE],
        F([[[[-0.5, -1]], [[-1.5, 4]]]]),
    ),
    "as many slopes as columns, not channels (openvino 35958)": (
        of_image([0.5, 0.25]),
        [IMAGE],
        F([[[[-0.5, -0.5]], [[-1.5, 4]]]]),
    ),
    "scales along an axis (tract 2849)": (
        dequantized((2, 3), TensorProto.INT8, s=F([0.5, 2, 10]), z=np.int8([0, 1, -1])),
        [np.int8([[1, 1, 1], [4, 4, 4]])],
        F([[0.5, 0, 20], [2, 6, 50]]),
    ),
    "scales along a negative axis": (
        dequantized((2, 3), TensorProto.INT8, s=F([0.5, 2]), axis=-2),
        [np.int8([[1, 1, 1], [4, 4, 4]])],
        F([[0.5, 0.5, 0.5], [8, 8, 8]]),
    ),
    "one scale of rank 1 and no second axis (onnx-mlir 1784)": (
        dequantized((4,), TensorProto.INT32, s=F([0.5]), z=np.int32([0])),
        [np.int32([1, -2, 3, 4])],
        F([0.5, -1, 1.5, 2]),
    ),
    "a function's constant that refers (onnxruntime 22687)": (
        parser.parse_model(CALLING_A_CONSTANT),
        [F([1, 3])],
        F([2.5, 3]),
    ),
    "an attribute handed on through two calls (onnxruntime 12506)": (
        parser.parse_model(CALLING_NESTED),
        [np.int64([0, 1])],
        np.int64([1, 2]),
    ),
    "tensorflow's names, of tensors and unknown extents": (
        NAMED_BY_TENSORFLOW,
        [F([[1, -2]]), F([[1, 1], [2, -3]])],
        F([[2, 0], [3, 0]]),
    ),
    "a domain that no node is of (sklearn-onnx)": (
        text("y = Relu(x)", more=', "ai.onnx.ml": 1'),
        [X],
        RELU,
    ),
    "extents that are expressions": (
        model(
            [node("Relu", "x", "y")],
            [value("x", ("2*N", "floor(M/2)"))],
            [value("y", ("2*N", "floor(M/2)"))],
        ),
        [F([[1, -2]])],
        F([[1, 0]]),
    ),
    "float16 weights as numbers of 32 bits": (
        model(
            [node("Mul", "x w", "y")],
            [value("x", ("N",), TensorProto.FLOAT16)],
            [value("y", ("N",), TensorProto.FLOAT16)],
            [TensorProto(name="w", data_type=10, dims=[2], int32_data=[15360, 16384])],
        ),
        [np.float16([1, 2])],
        np.float16([1, 4]),
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_reported_model_is_right(name: str) -> None:
    made, arrays, wanted = RIGHT[name]
    arrays = [np.asarray(a) for a in arrays]
    (computed,) = reference.evaluate(import_model(made), arrays)
    assert_same_bits(np.asarray(computed), np.asarray(wanted), "the reference", arrays)
    assert_same_bits(compiled(made, "x86-64-v2")(*arrays), np.asarray(wanted), "compiled", arrays)


@pytest.mark.parametrize("name", list(RIGHT)[::4])
def test_a_reported_model_is_verified(name: str) -> None:
    report = verify(RIGHT[name][0], target="x86-64-v2")
    assert report.ok, report


_OUTPUT = "node of output ['y']"
_CONVERT = "convert the model with onnx.version_converter.convert_version"

REFUSED: dict[str, tuple[Any, str]] = {
    "clip of int64 before it was there (onnxruntime 20674)": (
        of_kind(TensorProto.INT64, node("Clip", "x a", "y"), opset=11, a=np.int64(0)),
        f"{_OUTPUT}: Clip-11 does not take int64 for input; it takes tensor(double), "
        f"tensor(float), tensor(float16)\nhint: from opset 12 on it does: {_CONVERT}",
    ),
    "relu of int32 before it was there": (
        of_kind(TensorProto.INT32, node("Relu", "x", "y"), opset=13),
        f"{_OUTPUT}: Relu-13 does not take int32 for X; it takes tensor(bfloat16), "
        f"tensor(double), tensor(float), tensor(float16)\nhint: from opset 14 on it does: "
        f"{_CONVERT}",
    ),
    "relu of a dtype that no version takes": (
        of_kind(TensorProto.UINT8, node("Relu", "x", "y")),
        f"{_OUTPUT}: Relu-14 does not take uint8 for X; it takes tensor(bfloat16), "
        "tensor(double), tensor(float), tensor(float16), tensor(int16), tensor(int32), "
        "tensor(int64), tensor(int8)\nhint: cast to one that it takes: add a Cast node",
    ),
    "a double and a float constant (sklearn-onnx 354)": (
        of_kind(TensorProto.DOUBLE, node("Max", "x z", "y"), opset=13, z=F(0)),
        f"{_OUTPUT}: Max: data_0 is float32 and must be float64, as the operand before it\n"
        "hint: cast one of them: add a Cast node, or make the constant float64",
    ),
    "an integer where a float is wanted, from text (onnx 5748)": (
        text("y = LeakyRelu <alpha = 2> (x)"),
        f"{_OUTPUT} is not valid ONNX: Mismatched attribute type in ' : alpha'. Expected: "
        "'FLOAT', actual: 'INT'\nhint: a float has a point, in text too: 2.0",
    ),
    "a slope by channel along the columns (pytorch 21271, onnx 2769)": (
        model(
            [node("PRelu", "x s", "y")],
            [value("x", (2, 16, 96, 96))],
            [value("y", (2, 16, 96, 96))],
            [constant("s", np.ones(16, F))],
            opset=9,
        ),
        f"{_OUTPUT}: slope 's' of shape (16,) must broadcast into 'x' of shape (2, 16, 96, 96)\n"
        "hint: to lay it along axis 1, reshape it to (16, 1, 1): shapes are aligned at their last "
        "dimension",
    ),
    "an opset before relu had no attributes": (
        model([node("Relu", "x", "y", consumed_inputs=[0])], imports=opsets(onnx=5), ir_version=3),
        f"{_OUTPUT}: Relu of opset 5; the model's opset must be 6 to "
        f"{onnx.defs.onnx_opset_version()}\n"
        "hint: convert it with onnx.version_converter.convert_version",
    ),
    "no opset at all": (
        model([node("Relu", "x", "y")], imports=[]),
        f"{_OUTPUT}: no opset_import there names the domain ai.onnx, so that the version of Relu "
        "is unknown\nhint: add it, for example onnx.helper.make_opsetid('', 18)",
    ),
    "a zero point that the output is not like": (
        model(
            [node("QuantizeLinear", "x s z", "y")],
            [value("x")],
            [value("y", ("N",), TensorProto.INT8)],
            [constant("s", F(0.5)), constant("z", np.uint8(3))],
        ),
        "output 'y' is declared int8 and computed as uint8\n"
        "hint: declare what is computed, or add a Cast node before it",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_reported_model_is_refused_with_what_to_do(name: str) -> None:
    made, message = REFUSED[name]
    assert refusal(made) == message


@pytest.mark.parametrize("older", ["int64 Clip of 11", "int32 Relu of 13"])
def test_what_a_hint_advises_works(older: str) -> None:
    kinds = {"int64 Clip of 11": 0, "int32 Relu of 13": 1}
    made = list(REFUSED.values())[kinds[older]][0]
    newer = onnx.version_converter.convert_version(made, 14)
    graph = import_model(newer)
    dtype = graph.inputs[0].dtype
    assert reference.evaluate(graph, [np.array([-2, 3], dtype)])[0].tolist() == [0, 3]


# ---------------------------------------------------------------- files


def with_data(folder: Path, location: str = "m.onnx.data") -> Path:
    """A model whose constant lies in a file."""
    made = model([node("Mul", "x w", "y")], [value("x", (2,))], [value("y", (2,))])
    tensor = made.graph.initializer.add(name="w", data_type=1, dims=[2], data_location=1)
    tensor.external_data.add(key="location", value=location)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    (folder / "m.onnx.data").write_bytes(F([2, 3]).tobytes())
    return folder / "m.onnx"


def test_data_beside_a_model_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime 6696: it looked into the current directory."""
    path = with_data(tmp_path / "t")
    monkeypatch.chdir(tmp_path)
    assert result("t/m.onnx", [1.0, -1.0]) == [2, -3]
    monkeypatch.chdir(tmp_path / "t")
    assert result("m.onnx", [1.0, -1.0]) == [2, -3]
    assert result(path, [1.0, -1.0]) == [2, -3]


def test_a_model_loaded_without_its_data(tmp_path: Path) -> None:
    """onnx 3598."""
    loaded = onnx.load(with_data(tmp_path), load_external_data=False)
    assert refusal(loaded) == (
        "tensor 'w' keeps its data in an external file, and the model was not given as a path\n"
        "hint: pass the path of the .onnx file, or load it with onnx.load first"
    )


def test_data_at_an_absolute_path(tmp_path: Path) -> None:
    """onnx 5552."""
    location = str(tmp_path / "m.onnx.data")
    assert refusal(with_data(tmp_path, location)) == (
        f"tensor 'w': external data: {location!r} lies outside the model's folder"
    )


def test_data_with_two_names(tmp_path: Path) -> None:
    """onnx 7686 refuses what uv and conda do to every file of a wheel."""
    path = with_data(tmp_path)
    (tmp_path / "also").hardlink_to(tmp_path / "m.onnx.data")
    assert result(path, [1.0, -1.0]) == [2, -3]
