"""Graphs are valid ONNX, compute what their formulas say, and are the same bytes every time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import defs, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernelError

from relu_ops import graphs
from relu_ops.compiler import frontend
from relu_ops.contract.semantics import OPERATORS
from relu_ops.errors import ArgumentError, ArgumentTypeError
from relu_ops.verification.explain import explain
from relu_ops.verification.referees import referees

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "export_models.py"

CASES = [(graph, dtype) for graph in graphs.GRAPHS for dtype in graphs.dtypes(graph)]
MODELS = [pytest.param(make, id=name) for name, make in graphs.MODELS.items()]
FLOATS = ("float16", "bfloat16", "float32", "float64")
NUMBERS = graphs.dtypes("maxout")

Arrays = list[np.ndarray]


# ---------------------------------------------------------------- valid ONNX


def all_ranks(model: onnx.ModelProto) -> list[onnx.ModelProto]:
    return [graphs.with_rank(model, rank) for rank in (0, 1, 2, 8)]


def check_strictly(model: onnx.ModelProto) -> onnx.ModelProto:
    onnx.checker.check_model(model, full_check=True)
    return onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)


@pytest.mark.parametrize(("graph", "dtype"), CASES)
def test_every_dtype_passes_the_checker_and_strict_inference(graph: str, dtype: str) -> None:
    model = graphs.GRAPHS[graph](dtype=dtype)
    for ranked in all_ranks(model):
        assert check_strictly(ranked).graph.output == ranked.graph.output
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    assert inferred.graph.output == model.graph.output


@pytest.mark.parametrize("make", MODELS)
def test_every_model_passes_the_checker_and_strict_inference(make: Callable) -> None:
    for ranked in all_ranks(make()):
        check_strictly(ranked)


@pytest.mark.parametrize("make", MODELS)
def test_the_checker_has_no_complaint_but_the_absent_shape(make: Callable) -> None:
    # onnx's IR.md allows it, its checker does not: onnx issues 2492 and 2932.
    model = make()
    complaints = []
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        complaints = [str(error)]
    any_rank = any(shape_of(value) is None for value in model.graph.input)
    allowed = ["Field 'shape' of 'type' is required but missing."] if any_rank else []
    assert complaints in ([], allowed)


def test_the_check_sees_a_wrong_type() -> None:
    model = graphs.with_rank(graphs.relu(), 1)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT8
    with pytest.raises(onnx.shape_inference.InferenceError):
        check_strictly(model)


@pytest.mark.parametrize("make", MODELS)
def test_operators_are_in_scope(make: Callable) -> None:
    assert {node.op_type for node in make().graph.node} <= set(OPERATORS)


@pytest.mark.parametrize(("graph", "dtype"), CASES)
def test_opset_and_ir_version(graph: str, dtype: str) -> None:
    newer = {
        ("thresholded_relu", "bfloat16"): (22, 10),
        ("quantized_leaky_relu", "int8"): (19, 9),
        ("quantized_leaky_relu", "uint8"): (19, 9),
    }
    opset, ir_version = newer.get((graph, dtype), (18, 8))
    model = graphs.GRAPHS[graph](dtype=dtype)
    assert model.ir_version == ir_version
    assert list(model.opset_import) == [helper.make_opsetid("", opset)]
    assert ir_version == max(8, helper.find_min_ir_version_for(model.opset_import))


DECIDING_OPERATOR = {
    "relu": "Relu",
    "leaky_relu": "LeakyRelu",
    "prelu": "PRelu",
    "thresholded_relu": "ThresholdedRelu",
    "relu6": "Clip",
    "relu_derivative": "Relu",
    "leaky_relu_derivative": "LeakyRelu",
    "relu_grad": "Relu",
    "leaky_relu_grad": "LeakyRelu",
    "bias_relu": "Relu",
    "add_relu": "Relu",
    "scale_bias_relu": "Relu",
    "scale_bias_leaky_relu": "LeakyRelu",
    "maxout": "Max",
}
"""The ONNX operator whose dtypes a graph has: all of them, and no other."""


def onnx_dtypes(operator: str) -> set[str]:
    schema = defs.get_schema(operator, 22)
    strings = next(t.allowed_type_strs for t in schema.type_constraints if t.type_param_str == "T")
    spelling = {"tensor(float)": "float32", "tensor(double)": "float64"}
    return {spelling.get(string, string[len("tensor(") : -1]) for string in strings}


@pytest.mark.parametrize("graph", DECIDING_OPERATOR)
def test_dtypes_are_those_of_the_onnx_operator(graph: str) -> None:
    assert set(graphs.dtypes(graph)) == onnx_dtypes(DECIDING_OPERATOR[graph])


def test_every_graph_has_its_dtypes_tested() -> None:
    assert {*DECIDING_OPERATOR, "quantized_leaky_relu"} == set(graphs.GRAPHS)
    assert graphs.dtypes("quantized_leaky_relu") == ("int8", "uint8")


# ---------------------------------------------------------------- shapes


def shape_of(value: onnx.ValueInfoProto) -> list[str | int] | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]


def shapes(model: onnx.ModelProto) -> dict[str, list[str | int] | None]:
    return {value.name: shape_of(value) for value in (*model.graph.input, *model.graph.output)}


BROADCAST = ("prelu", "bias_relu", "scale_bias_relu", "scale_bias_leaky_relu")


@pytest.mark.parametrize("graph", sorted(set(graphs.GRAPHS) - set(BROADCAST)))
def test_rank_is_unknown_where_nothing_broadcasts(graph: str) -> None:
    assert set(map(str, shapes(graphs.GRAPHS[graph]()).values())) == {"None"}


@pytest.mark.parametrize("graph", BROADCAST)
@pytest.mark.parametrize("channels", [None, 1, 512, np.int64(3)])
def test_dimensions_are_symbolic_where_a_vector_broadcasts(graph: str, channels: object) -> None:
    make = graphs.GRAPHS[graph]
    size = "channels" if channels is None else channels
    last = shapes(make(channels=channels))
    assert last.pop("x") == last.pop("y") == ["rows", size]
    assert last
    assert all(shape == [size] for shape in last.values())
    nchw = shapes(make(channels=channels, layout="nchw"))
    assert nchw.pop("x") == nchw.pop("y") == ["batch", size, "height", "width"]
    assert nchw
    assert all(shape == [size, 1, 1] for shape in nchw.values())


def test_with_rank_wants_a_rank() -> None:
    with pytest.raises(ArgumentError, match=r"^with_rank: rank must be at least 0 \(not -1\)$"):
        graphs.with_rank(graphs.relu(), -1)
    with pytest.raises(ArgumentTypeError, match=r"^with_rank: rank must be an integer \(not '2'\)"):
        graphs.with_rank(graphs.relu(), "2")  # type: ignore[arg-type]


def test_with_rank_copies() -> None:
    model = graphs.relu_grad()
    before = graphs.serialize(model)
    ranked = graphs.with_rank(model, 2)
    assert graphs.serialize(model) == before
    assert shapes(ranked) == {name: ["dim_0", "dim_1"] for name in ("dy", "x", "dx")}
    assert shapes(graphs.with_rank(model, 0)) == {name: [] for name in ("dy", "x", "dx")}
    assert graphs.with_rank(graphs.prelu(), 3) == graphs.prelu()


# ---------------------------------------------------------------- values


def numpy_dtype(dtype: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def special_values(dtype: str) -> np.ndarray:
    """The values on which implementations differ, of a float or an integer type."""
    kind = numpy_dtype(dtype)
    if dtype not in FLOATS:
        limits = np.iinfo(kind)
        values = {max(limits.min, value) for value in (limits.min, -100, -1, 0, 1, 5, 6, 7)}
        return np.array(sorted(values | {limits.max}), kind)
    limits = ml_dtypes.finfo(kind)
    extremes = [float(x) for x in (limits.max, limits.tiny, limits.smallest_subnormal)]
    positive = [0.0, *extremes, 10 * extremes[-1], 0.3, 0.5, 1.0, 1.3, 3.7, 6.0, 7.0, np.inf]
    return np.array([np.nan, *positive, *(-value for value in positive)], kind)


def every_pattern(dtype: str) -> np.ndarray:
    return np.arange(2**16, dtype=np.uint16).view(numpy_dtype(dtype))


def combinations(*axes: np.ndarray) -> Arrays:
    return [np.ascontiguousarray(grid.ravel()) for grid in np.meshgrid(*axes, indexing="ij")]


def operands(model: onnx.ModelProto, dtype: str) -> Arrays:
    """Special values in every combination, laid out as the model's inputs are."""
    values = special_values(dtype)
    names = [value.name for value in model.graph.input]
    if names == ["x"]:
        is_narrow = dtype in ("float16", "bfloat16")
        return [every_pattern(dtype) if is_narrow else values]
    if shape_of(model.graph.input[0]) is None:
        return combinations(*(values for _ in names))
    vectors = combinations(*(values for _ in names[1:]))
    return [np.repeat(values[:, None], vectors[0].size, axis=1), *vectors]


def relu(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0, np.zeros_like(x), x)


def leaky(x: np.ndarray, alpha: float) -> np.ndarray:
    return np.where(x < 0, np.float32(alpha).astype(x.dtype) * x, x)


def like(value: float, x: np.ndarray) -> np.ndarray:
    return np.float32(value).astype(x.dtype)


FORMULAS: dict[str, Callable[..., np.ndarray]] = {
    "relu": relu,
    "leaky_relu": lambda x: leaky(x, 0.01),
    "prelu": lambda x, slope: np.where(x < 0, slope * x, x),
    "thresholded_relu": lambda x: np.where(x > like(1, x), x, like(0, x)),
    "relu6": lambda x: np.where(relu(x) > like(6, x), like(6, x), relu(x)),
    "relu_derivative": lambda x: (x > 0).astype(x.dtype),
    "leaky_relu_derivative": lambda x: np.where(x > 0, like(1, x), like(0.01, x)),
    "relu_grad": lambda dy, x: np.where(x > 0, dy, like(0, dy)),
    "leaky_relu_grad": lambda dy, x: np.where(x > 0, dy, like(0.01, dy) * dy),
    "bias_relu": lambda x, bias: relu(x + bias),
    "add_relu": lambda x, residual: relu(x + residual),
    "scale_bias_relu": lambda x, scale, bias: relu(x * scale + bias),
    "scale_bias_leaky_relu": lambda x, scale, bias: leaky(x * scale + bias, 0.1),
    "maxout": lambda a, b: np.where((a >= b) | (a != a), a, b),
    "quantized_leaky_relu": lambda x: quantized(x, 0.01),
}
"""Each graph at its defaults, in the dtype of its arguments."""


def quantized(x: np.ndarray, alpha: float) -> np.ndarray:
    limits, scale = np.iinfo(x.dtype), np.float32(0.05)
    zero_point = (limits.min + limits.max + 1) // 2
    real = leaky((x.astype(np.int32) - zero_point).astype(np.float32) * scale, alpha)
    return np.clip(np.rint(real / scale) + zero_point, limits.min, limits.max).astype(x.dtype)


def evaluate(formula: Callable[..., np.ndarray], arrays: Arrays, dtype: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return formula(*arrays).astype(numpy_dtype(dtype))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """True where dtype, shape and bits agree, any NaN for any NaN."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    bits = f"u{a.itemsize}"
    equal = np.ascontiguousarray(a).view(bits) == np.ascontiguousarray(b).view(bits)
    with np.errstate(invalid="ignore"):  # ml_dtypes compares a signalling NaN
        return bool(np.all(equal | ((a != a) & (b != b))))


def agrees(name: str, graph: str, model: onnx.ModelProto, y: np.ndarray, arrays: Arrays) -> bool:
    """True where a referee has the bits of the formula, or differs for causes that are known."""
    expected = evaluate(FORMULAS[graph], arrays, y.dtype.name)
    if same_bits(y, expected):
        return True
    found, _ = referees(model, frontend.import_model(model))
    (referee,) = (one for one in found if one.name == name)
    return not explain(referee, model, arrays, [expected], [y]).unexplained


def run_onnxruntime(model: onnx.ModelProto, arrays: Arrays) -> np.ndarray:
    session = onnxruntime.InferenceSession(
        graphs.serialize(model), providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in model.graph.input]
    return session.run(None, dict(zip(names, arrays, strict=True)))[0]


@pytest.mark.parametrize(("graph", "dtype"), CASES)
def test_onnxruntime_computes_the_formula(graph: str, dtype: str) -> None:
    model = graphs.GRAPHS[graph](dtype=dtype)
    arrays = operands(model, dtype)
    try:
        y = run_onnxruntime(model, arrays)
    except NoKernelError:
        assert dtype not in ("float16", "float32", "float64", "int8", "int32", "int64")
        pytest.skip(f"onnxruntime has no CPU kernel for {graph} in {dtype}")
    assert agrees("onnxruntime", graph, model, y, arrays)


@pytest.mark.parametrize(("graph", "dtype"), CASES)
def test_onnx_reference_computes_the_formula(graph: str, dtype: str) -> None:
    model = graphs.GRAPHS[graph](dtype=dtype)
    arrays = operands(model, dtype)
    names = [value.name for value in model.graph.input]
    with np.errstate(all="ignore"):
        feeds = dict(zip(names, arrays, strict=True))
        y = np.asarray(ReferenceEvaluator(model).run(None, feeds)[0])
    assert agrees("onnx.reference", graph, model, y, arrays)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_quantized_chain_on_all_256_values(dtype: str) -> None:
    x = np.arange(256, dtype=np.uint8).view(dtype)
    for alpha in (0.01, 0.3, -1.0, 2.0):
        model = graphs.quantized_leaky_relu(alpha=alpha, dtype=dtype)
        expected = evaluate(lambda x, alpha=alpha: quantized(x, alpha), [x], dtype)
        assert same_bits(run_onnxruntime(model, [x]), expected)


def test_quantization_arguments_reach_the_graph() -> None:
    model = graphs.quantized_leaky_relu(
        x_scale=0.5, x_zero_point=-3, y_scale=0.25, y_zero_point=np.int8(7)
    )
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    assert {name: (array.dtype.name, array.item()) for name, array in values.items()} == {
        "x_scale": ("float32", 0.5),
        "x_zero_point": ("int8", -3),
        "y_scale": ("float32", 0.25),
        "y_zero_point": ("int8", 7),
    }


@pytest.mark.parametrize("layout", ["last", "nchw"])
@pytest.mark.parametrize("graph", BROADCAST)
def test_vectors_broadcast_over_channels(graph: str, layout: str) -> None:
    random = np.random.default_rng(0)
    model = graphs.GRAPHS[graph](channels=3, layout=layout)
    shape, vector = ((2, 3, 4, 5), (3, 1, 1)) if layout == "nchw" else ((4, 3), (3,))
    sizes = [shape, *(vector for _ in model.graph.input[1:])]
    arrays = [random.standard_normal(size, dtype=np.float32) for size in sizes]
    assert agrees("onnxruntime", graph, model, run_onnxruntime(model, arrays), arrays)


@pytest.mark.parametrize("shape", [(), (5,), (2, 3), (1, 2, 1, 3), (0, 4)])
@pytest.mark.parametrize("graph", sorted(set(graphs.GRAPHS) - set(BROADCAST)))
def test_unknown_rank_takes_any_shape(graph: str, shape: tuple[int, ...]) -> None:
    model = graphs.GRAPHS[graph]()
    dtype = helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    arrays = [np.full(shape, index - 1, dtype) for index in range(len(model.graph.input))]
    assert agrees("onnxruntime", graph, model, run_onnxruntime(model, arrays), arrays)


def test_maxout_over_many_pieces() -> None:
    random = np.random.default_rng(0)
    arrays = list(random.standard_normal((7, 100), dtype=np.float32))
    y = run_onnxruntime(graphs.maxout(pieces=7), arrays)
    assert same_bits(y, np.max(arrays, axis=0))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("alpha", [0.0, -0.0, 0.001, 0.1, -1.0, 6e-8, 1e-60, Fraction(1, 3)])
def test_alpha_is_rounded_to_float32_and_then_to_the_dtype(alpha: float, dtype: str) -> None:
    as_float32 = np.float32(float(alpha))
    for make in (graphs.leaky_relu, graphs.thresholded_relu, graphs.scale_bias_leaky_relu):
        (attribute,) = make(alpha=alpha, dtype=dtype).graph.node[-1].attribute
        assert same_bits(np.array(attribute.f, np.float32), as_float32[...])
    for make in (graphs.leaky_relu_derivative, graphs.leaky_relu_grad):
        constants = make(alpha=alpha, dtype=dtype).graph.initializer
        value = next(numpy_helper.to_array(t) for t in constants if t.name == "alpha")
        assert same_bits(value, as_float32.astype(numpy_dtype(dtype))[...])


BROKEN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "returns zeros": np.zeros_like,
    "returns its input": lambda x: x,
    "drops NaN": lambda x: np.where(x > 0, x, np.float32(0.01) * np.nan_to_num(x)),
    "loses -0.0": lambda x: leaky(x, 0.01) + np.float32(0),
    "ignores alpha": lambda x: leaky(x, 0.1),
    "flushes subnormals": lambda x: leaky(np.where(np.abs(x) < 1e-37, x * 0, x), 0.01),
    "gives another dtype": lambda x: leaky(x, 0.01).astype(np.float64),
    "skips the tail": lambda x: np.append(leaky(x[:-1], 0.01), np.float32(0)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_comparison_sees_a_broken_operator(name: str) -> None:
    arrays = operands(graphs.leaky_relu(), "float32")
    with np.errstate(all="ignore"):
        y = BROKEN[name](arrays[0])
    assert not same_bits(y, evaluate(FORMULAS["leaky_relu"], arrays, "float32"))


# ---------------------------------------------------------------- what a file says about itself


@pytest.mark.parametrize("make", MODELS)
def test_metadata_names_the_call_that_makes_the_same_bytes(make: Callable) -> None:
    model = make()
    call = {entry.key.removeprefix("relu_ops."): entry.value for entry in model.metadata_props}
    numbers = {key: float(call.pop(key)) for key in ("alpha", "x_scale", "y_scale") if key in call}
    counts = ("channels", "pieces", "x_zero_point", "y_zero_point")
    numbers |= {key: int(call.pop(key)) for key in counts if key in call}
    again = graphs.GRAPHS[call.pop("graph")](**call, **numbers)
    assert graphs.serialize(again) == graphs.serialize(model)


@pytest.mark.parametrize("make", MODELS)
def test_names_and_docs(make: Callable) -> None:
    model = make()
    assert (model.producer_name, model.producer_version, model.domain) == ("relu_ops", "", "")
    assert model.graph.name in graphs.GRAPHS
    assert model.doc_string == f"{model.graph.name}: {model.graph.doc_string}"
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


def test_doc_strings_have_the_shortest_float32() -> None:
    assert graphs.leaky_relu(alpha=0.1).graph.doc_string == "y = 0.1 * x where x < 0, else x"
    assert graphs.leaky_relu_grad(alpha=1e-3).graph.doc_string == (
        "dx = dy where x > 0, else 0.001 * dy"
    )


# ---------------------------------------------------------------- models/ and export


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_models_folder_is_what_export_writes(tmp_path: Path) -> None:
    assert graphs.differences(ROOT / "models") == {}
    names = graphs.export(tmp_path / "deep" / "models")
    assert names == [*(f"{name}.onnx" for name in graphs.MODELS), "README.md"]
    assert contents(tmp_path / "deep" / "models") == contents(ROOT / "models")


@pytest.mark.parametrize("seed", ["0", "1", "4242"])
def test_another_process_writes_the_same_bytes(tmp_path: Path, seed: str) -> None:
    run = run_script(tmp_path, PYTHONHASHSEED=seed)
    assert (run.returncode, run.stderr) == (0, "")
    assert contents(tmp_path) == contents(ROOT / "models")


def test_every_graph_is_a_model_and_every_file_is_small() -> None:
    assert set(graphs.GRAPHS) <= set(graphs.MODELS)
    assert all(len(graphs.serialize(make())) < 1000 for make in graphs.MODELS.values())


def test_files_load_as_the_models_they_are() -> None:
    for name, make in graphs.MODELS.items():
        assert onnx.load(ROOT / "models" / f"{name}.onnx") == make()


def test_readme_has_a_row_for_every_model() -> None:
    lines = (ROOT / "models" / "README.md").read_text().splitlines()
    assert lines[0] == "<!-- Generated by relu_ops.graphs.export; do not edit. -->"
    assert (
        "| [scale_bias_leaky_relu_512.onnx](scale_bias_leaky_relu_512.onnx) "
        "| y = leaky_relu(x * scale + bias), alpha 0.1 | Mul, Add, LeakyRelu "
        "| `x: float32[rows, 512]`, `scale: float32[512]`, `bias: float32[512]` "
        "| `y: float32[rows, 512]` | 18 |"
    ) in lines
    linked = [line.split("](")[1].split(")")[0] for line in lines if line.startswith("| [")]
    assert linked == [f"{name}.onnx" for name in graphs.MODELS]


def test_check_sees_missing_changed_and_extra_files_and_writes_nothing(tmp_path: Path) -> None:
    graphs.export(tmp_path)
    assert graphs.differences(tmp_path) == {}
    (tmp_path / "relu.onnx").unlink()
    (tmp_path / "relu6.onnx").write_bytes(b"")
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "stale.onnx").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("not a model")
    before = contents(tmp_path)
    wrong = {
        "relu.onnx": "missing",
        "relu6.onnx": "changed",
        "README.md": "changed",
        "stale.onnx": "extra",
    }
    assert graphs.differences(tmp_path) == wrong
    assert graphs.export(tmp_path, check=True) == list(wrong)
    assert contents(tmp_path) == before
    graphs.export(tmp_path)
    assert graphs.differences(tmp_path) == {"stale.onnx": "extra"}
    assert (tmp_path / "notes.txt").read_text() == "not a model"


def test_check_of_no_folder_misses_everything_and_makes_nothing(tmp_path: Path) -> None:
    wrong = graphs.differences(tmp_path / "none")
    assert set(wrong.values()) == {"missing"}
    assert len(wrong) == len(graphs.MODELS) + 1
    assert not (tmp_path / "none").exists()


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "relu.onnx").write_bytes(b"old")

    def refuse(source: object, target: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match=r"^disk full$"):
        graphs.export(tmp_path)
    assert contents(tmp_path) == {"relu.onnx": b"old"}


# ---------------------------------------------------------------- the script


def run_script(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_script_writes_and_checks(tmp_path: Path) -> None:
    wrote = run_script(tmp_path)
    files = [*(f"{name}.onnx" for name in graphs.MODELS), "README.md"]
    assert wrote.stdout.splitlines() == [str(tmp_path / name) for name in files]
    assert (wrote.returncode, wrote.stderr) == (0, "")
    checked = run_script(tmp_path, "--check")
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_script_checks_the_folder_of_the_repository_by_default() -> None:
    checked = run_script("--check")
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_script_check_fails_with_the_reasons(tmp_path: Path) -> None:
    graphs.export(tmp_path)
    (tmp_path / "relu.onnx").unlink()
    (tmp_path / "stale.onnx").write_bytes(b"x")
    checked = run_script(tmp_path, "--check")
    assert checked.returncode == 1
    assert checked.stdout.splitlines() == [
        f"{tmp_path / 'relu.onnx'}: missing",
        f"{tmp_path / 'stale.onnx'}: extra",
    ]
    assert checked.stderr.splitlines() == [
        "export_models: 2 files differ",
        "hint: run export_models.py without --check, and delete what is extra",
    ]


@pytest.mark.parametrize("option", [[], ["--check"]])
def test_script_refuses_a_file_for_a_folder(tmp_path: Path, option: list[str]) -> None:
    file = tmp_path / "models"
    file.write_text("")
    run = run_script(file, *option)
    message = f"export_models: export: folder must be a directory ({file} is a file)\n"
    message += "hint: name another folder\n"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", message)


# ---------------------------------------------------------------- errors

RELU_DTYPES = "float16, bfloat16, float32, float64, int8, int16, int32, int64"
FLOAT_DTYPES = "float16, bfloat16, float32, float64"

VALUE_ERRORS = [
    (graphs.leaky_relu, {"alpha": np.nan}, "alpha must be finite in float32 (not nan)"),
    (graphs.leaky_relu, {"alpha": -np.inf}, "alpha must be finite in float32 (not -inf)"),
    (graphs.leaky_relu, {"alpha": 1e39}, "alpha must be finite in float32 (not 1e+39)"),
    (
        graphs.leaky_relu,
        {"alpha": 65520.0, "dtype": "float16"},
        "alpha must be finite in float16 (not 65520.0)",
    ),
    (
        graphs.leaky_relu_grad,
        {"alpha": 1e39, "dtype": "float64"},
        "alpha must be finite in float64 (not 1e+39)",
    ),
    (
        graphs.scale_bias_leaky_relu,
        {"alpha": 10**400},
        f"alpha must be finite in float32 (not {10**400})",
    ),
    (graphs.thresholded_relu, {"alpha": np.inf}, "alpha must be finite in float32 (not inf)"),
    (graphs.leaky_relu_derivative, {"alpha": np.nan}, "alpha must be finite in float32 (not nan)"),
    (graphs.prelu, {"channels": 0}, "channels must be at least 1 (not 0)"),
    (graphs.bias_relu, {"channels": -1}, "channels must be at least 1 (not -1)"),
    (
        graphs.scale_bias_relu,
        {"channels": 2**63},
        "channels must be at most 9223372036854775807 (not 9223372036854775808)",
    ),
    (graphs.prelu, {"layout": "nhwc"}, "layout must be one of last, nchw (not 'nhwc')"),
    (graphs.bias_relu, {"layout": None}, "layout must be one of last, nchw (not None)"),
    (graphs.maxout, {"pieces": 1}, "pieces must be at least 2 (not 1)"),
    (graphs.quantized_leaky_relu, {"x_scale": 0.0}, "x_scale must be above 0 (not 0.0)"),
    (graphs.quantized_leaky_relu, {"y_scale": 1e-60}, "y_scale must be above 0 (not 1e-60)"),
    (
        graphs.quantized_leaky_relu,
        {"y_scale": np.inf},
        "y_scale must be finite in float32 (not inf)",
    ),
    (
        graphs.quantized_leaky_relu,
        {"x_zero_point": 128},
        "x_zero_point must be at most 127 (not 128)",
    ),
    (
        graphs.quantized_leaky_relu,
        {"y_zero_point": -1, "dtype": "uint8"},
        "y_zero_point must be at least 0 (not -1)",
    ),
]

TYPE_ERRORS = [
    (graphs.relu, {"dtype": "uint8"}, f"dtype must be one of {RELU_DTYPES} (not 'uint8')"),
    (graphs.relu, {"dtype": "f32"}, f"dtype must be one of {RELU_DTYPES} (not 'f32')"),
    (
        graphs.relu,
        {"dtype": np.float32},
        f"dtype must be one of {RELU_DTYPES} (not <class 'numpy.float32'>)",
    ),
    (graphs.leaky_relu, {"dtype": "int32"}, f"dtype must be one of {FLOAT_DTYPES} (not 'int32')"),
    (
        graphs.quantized_leaky_relu,
        {"dtype": "float32"},
        "dtype must be one of int8, uint8 (not 'float32')",
    ),
    (graphs.leaky_relu, {"alpha": "0.1"}, "alpha must be a real number (not '0.1')"),
    (graphs.leaky_relu, {"alpha": True}, "alpha must be a real number (not True)"),
    (graphs.leaky_relu, {"alpha": 1j}, "alpha must be a real number (not 1j)"),
    (graphs.leaky_relu, {"alpha": None}, "alpha must be a real number (not None)"),
    (graphs.quantized_leaky_relu, {"x_scale": "1"}, "x_scale must be a real number (not '1')"),
    (
        graphs.quantized_leaky_relu,
        {"x_zero_point": 0.0},
        "x_zero_point must be an integer (not 0.0)",
    ),
    (graphs.prelu, {"channels": 3.0}, "channels must be an integer (not 3.0)"),
    (graphs.prelu, {"channels": True}, "channels must be an integer (not True)"),
    (graphs.maxout, {"pieces": "2"}, "pieces must be an integer (not '2')"),
]


@pytest.mark.parametrize(("make", "arguments", "message"), VALUE_ERRORS)
def test_wrong_values(make: Callable, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        make(**arguments)
    assert caught.value.message == f"{make.__name__}: {message}"


@pytest.mark.parametrize(("make", "arguments", "message"), TYPE_ERRORS)
def test_wrong_types(make: Callable, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        make(**arguments)
    assert caught.value.message == f"{make.__name__}: {message}"


@pytest.mark.parametrize("graph", graphs.GRAPHS)
@pytest.mark.parametrize("dtype", [*NUMBERS, "bool", "complex64", "string"])
def test_every_dtype_is_made_or_refused(graph: str, dtype: str) -> None:
    make, allowed = graphs.GRAPHS[graph], graphs.dtypes(graph)
    if dtype in allowed:
        assert make(dtype=dtype).graph.name == graph
        return
    with pytest.raises(ArgumentTypeError) as caught:
        make(dtype=dtype)
    message = f"{graph}: dtype must be one of {', '.join(allowed)} (not {dtype!r})"
    assert caught.value.message == message


def test_dtypes_of_an_unknown_graph() -> None:
    with pytest.raises(ArgumentError) as caught:
        graphs.dtypes("elu")
    names = ", ".join(graphs.GRAPHS)
    assert caught.value.message == f"dtypes: graph must be one of {names} (not 'elu')"


def test_export_into_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for call in (graphs.export, graphs.differences):
        with pytest.raises(ArgumentError) as caught:
            call(file)
        assert caught.value.message == f"export: folder must be a directory ({file} is a file)"
