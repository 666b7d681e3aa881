"""Plots show what the operators compute: values, jumps, slopes; and are the same files always."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import children
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import relu_ops
from relu_ops import graphs
from relu_ops.errors import ArgumentError, ArgumentTypeError, MissingDependencyError
from relu_ops.report import plot
from relu_ops.report.plot import Curve, derivative_line, function_line

FLOATS = ("float16", "bfloat16", "float32", "float64")
ALPHAS = (0.01, 0.001, 0.1, 1.3, -0.25, 0.0)


def one_node(
    operator: str, dtype: int = TensorProto.FLOAT, shape: Any = None, **attributes: Any
) -> relu_ops.Operator:
    node = helper.make_node(operator, ["x"], ["y"], **attributes)
    values = [helper.make_tensor_value_info(name, dtype, shape) for name in "xy"]
    graph = helper.make_graph([node], operator, [values[0]], [values[1]])
    opsets = [helper.make_opsetid("", 18)]
    return relu_ops.compile(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def relu(dtype: str = "float32") -> relu_ops.Operator:
    return relu_ops.compile(graphs.relu(dtype=dtype))


def drawn(line: plot.Line) -> tuple[np.ndarray, np.ndarray]:
    kept = ~np.isnan(line.y)
    return line.x[kept], line.y[kept]


# ---------------------------------------------------------------- functions


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_function_is_what_the_operator_gives(dtype: str) -> None:
    line = function_line("relu", relu(dtype), -10.0, 10.0, points=401)
    assert line.x[0] == -10 and line.x[-1] == 10 and 0.0 in line.x
    assert np.all(np.diff(line.x) > 0)
    np.testing.assert_array_equal(line.y, np.maximum(line.x, 0))
    assert line.closed == line.open == ()


def test_a_jump_lies_between_neighbouring_numbers() -> None:
    operator = relu_ops.compile(graphs.thresholded_relu(alpha=1.0))
    line = function_line("thresholded", operator, -10.0, 10.0, points=50)
    (gap,) = np.flatnonzero(np.isnan(line.y))
    after = float(np.nextafter(np.float32(1), np.float32(2)))
    assert (line.x[gap - 1], line.x[gap + 1]) == (1.0, after)
    assert (line.y[gap - 1], line.y[gap + 1]) == (0.0, after)
    assert line.closed == ((1.0, 0.0),)
    assert line.open == ((1.0, after),)


def test_a_value_that_stands_alone_is_a_dot() -> None:
    line = function_line("sign", one_node("Sign"), -3.0, 3.0, points=7)
    assert set(line.closed) == {(0.0, 0.0)}
    assert set(line.open) == {(0.0, -1.0), (0.0, 1.0)}


@pytest.mark.parametrize("points", [3, 5, 11, 2001])
def test_a_steep_stretch_is_no_jump(points: int) -> None:
    line = function_line("relu", relu(), -10.0, 10.0, points)
    assert not np.isnan(line.y).any()


def test_what_is_not_finite_is_a_gap() -> None:
    operator = relu_ops.compile(graphs.leaky_relu(alpha=6e4, dtype="float16"))
    line = function_line("overflow", operator, -10.0, 10.0, points=21)
    assert np.isnan(line.y[line.x < -2]).all()
    assert np.isfinite(line.y[line.x >= 0]).all()


@pytest.mark.parametrize("shape", [("n",), ("rows", 1), (1, "a", 1, "b")])
def test_declared_shapes_are_filled(shape: tuple[Any, ...]) -> None:
    line = function_line("relu", one_node("Relu", shape=shape), -1.0, 1.0, points=5)
    np.testing.assert_array_equal(line.y, [0, 0, 0, 0.5, 1])


# ---------------------------------------------------------------- derivatives


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_derivative_of_a_rectifier_is_exact(alpha: float, dtype: str) -> None:
    operator = relu_ops.compile(graphs.leaky_relu(alpha, dtype))
    line = derivative_line(Curve("leaky", operator), -10.0, 10.0, points=101)
    assert line.label == "leaky"
    x, y = drawn(line)
    slope = np.float64(np.float32(alpha).astype(operator_dtype(operator)))
    np.testing.assert_array_equal(y, np.where(x > 0, 1.0, slope))
    assert line.closed == ((0.0, slope),)
    assert line.open == ((0.0, 1.0),)


def operator_dtype(operator: relu_ops.Operator) -> np.dtype:
    from relu_ops.contract.semantics import DTYPES

    return DTYPES[operator.inputs[0].dtype].numpy


def test_the_derivative_of_relu_is_0_at_0() -> None:
    line = derivative_line(Curve("relu", relu()), -10.0, 10.0)
    assert (line.closed, line.open) == (((0.0, 0.0),), ((0.0, 1.0),))


def test_any_single_rectifier_has_a_companion_and_nothing_else() -> None:
    companions = [plot.companion(one_node("Relu")), plot.companion(one_node("LeakyRelu"))]
    assert [c and c.name for c in companions] == ["relu_derivative", "leaky_relu_derivative"]
    assert companions[1](np.float32(-1)) == np.float32(0.01)
    for operator in (one_node("HardSwish"), relu_ops.compile(graphs.relu6())):
        assert plot.companion(operator) is None


def test_an_explicit_derivative_is_used() -> None:
    ones = relu_ops.compile(graphs.leaky_relu_derivative(alpha=1.0))
    line = derivative_line(Curve("relu", relu(), derivative=ones), -1.0, 1.0, points=5)
    assert (line.y == 1).all()


def test_a_slope_says_that_it_is_one_and_has_gaps_at_kinks() -> None:
    operator = relu_ops.compile(graphs.relu6())
    line = derivative_line(Curve("relu6", operator), -10.0, 10.0, points=2000)
    assert line.label == "relu6 (slope between samples)"
    x, y = drawn(line)
    assert np.isnan(line.y).any()
    np.testing.assert_allclose(y, (x > 0) & (x < 6), atol=1e-4)  # 2^-24 * 10 / 0.01


def test_a_slope_across_a_jump_is_not_drawn() -> None:
    operator = relu_ops.compile(graphs.thresholded_relu(alpha=1.0))
    _, y = drawn(derivative_line(Curve("thresholded", operator), -10.0, 10.0, points=2000))
    assert y.min() >= 0 and y.max() < 1.001


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(TensorProto.FLOAT16, 0.15), (TensorProto.FLOAT, 1e-3), (TensorProto.DOUBLE, 1e-7)],
)
def test_the_slope_of_a_smooth_stretch_is_its_derivative(dtype: int, tolerance: float) -> None:
    """HardSwish is x * (x + 3) / 6 between -3 and 3, its 1 / 6 a float32 at any dtype."""
    line = derivative_line(Curve("hard swish", one_node("HardSwish", dtype)), -10.0, 10.0)
    x, y = drawn(line)
    inside = np.abs(x) < 2.8
    assert inside.sum() > 30
    np.testing.assert_allclose(y[inside], x[inside] / 3 + 0.5, atol=tolerance)
    np.testing.assert_allclose(y[np.abs(x) > 3.2], x[np.abs(x) > 3.2] > 0, atol=tolerance)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT])
def test_a_straight_line_has_one_slope_and_no_gap(dtype: int) -> None:
    line = derivative_line(Curve("neg", one_node("Neg", dtype)), -5.0, 10.0)
    assert (line.y == -1).all()


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".png", ".svg", ".SVG"])
def test_equal_arguments_give_equal_bytes(tmp_path: Path, suffix: str) -> None:
    for name in "ab":
        plot.plot([("ReLU", relu())], tmp_path / f"{name}{suffix}", title="$x")
    first, second = ((tmp_path / f"{name}{suffix}").read_bytes() for name in "ab")
    assert first == second
    assert first.startswith((b"\x89PNG", b"<?xml"))
    assert not re.search(rb"20\d\d-\d\d-\d\d", first)


def test_a_picture_holds_every_curve_of_both_panels(tmp_path: Path) -> None:
    operators = [
        ("ReLU", relu()),
        ("_leaky $\\frac", relu_ops.compile(graphs.leaky_relu())),
        ("<6>", relu_ops.compile(graphs.relu6())),
    ]
    path = plot.plot(operators, tmp_path / "all.svg")
    text = path.read_text(encoding="utf-8")
    for panel in ("f(x)", "f\N{PRIME}(x)"):
        assert f'<g id="{panel} ReLU">' in text
        assert f'<g id="{panel} _leaky $\\frac">' in text
    assert "slope between samples" in text
    alone = plot.plot(operators, tmp_path / "one.svg", derivative=False)
    assert "f\N{PRIME}(x)" not in alone.read_text(encoding="utf-8")


def test_both_panels_have_one_range(tmp_path: Path) -> None:
    """Slopes lie between samples: a panel of them alone would begin half a step later."""
    relu6 = relu_ops.compile(graphs.relu6())
    svg = plot.plot([("ReLU6", relu6)], tmp_path / "relu6.svg").read_text(encoding="utf-8")
    for end in ("\N{MINUS SIGN}10", "10"):
        assert svg.count(f"<!-- {end} -->") == 2


def test_matplotlib_is_left_as_it_was(tmp_path: Path) -> None:
    script = f"""
import sys, matplotlib, relu_ops
from relu_ops import graphs
from relu_ops.report import plot
matplotlib.rcParams["font.size"] = 33
keys = set(matplotlib.rcParams) - {{"backend"}}  # to ask for that one imports pyplot
before = {{key: matplotlib.rcParams[key] for key in keys}}
plot.plot([("ReLU", relu_ops.compile(graphs.relu()))], {str(tmp_path / "a.png")!r})
assert {{key: matplotlib.rcParams[key] for key in keys}} == before
assert "matplotlib.pyplot" not in sys.modules
"""
    done = children.run(script)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_user_s_settings_do_not_change_the_picture(tmp_path: Path) -> None:
    import matplotlib

    plot.plot([("ReLU", relu())], tmp_path / "a.svg")
    with matplotlib.rc_context({"font.size": 33, "lines.linewidth": 9}):
        plot.plot([("ReLU", relu())], tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


# ---------------------------------------------------------------- refusals


def integers() -> relu_ops.Operator:
    return relu("int8")


def comparison() -> relu_ops.Operator:
    graph = helper.make_graph(
        [helper.make_node("Equal", ["x", "x"], ["y"])],
        "same",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.BOOL, None)],
    )
    opsets = [helper.make_opsetid("", 18)]
    return relu_ops.compile(helper.make_model(graph, opset_imports=opsets, ir_version=8))


REFUSED_OPERATORS = [
    (
        lambda: relu_ops.compile(graphs.add_relu()),
        ArgumentError,
        "plot: it: add_relu must have one input (not 2: x, residual)",
    ),
    (
        integers,
        ArgumentTypeError,
        "plot: it: x must be one of float16, bfloat16, float32, float64 (not int8)",
    ),
    (
        comparison,
        ArgumentTypeError,
        "plot: it: y must be one of float16, bfloat16, float32, float64 (not bool)",
    ),
    (
        lambda: one_node("Relu", shape=("rows", 512)),
        ArgumentError,
        "plot: it: x must have a free dimension and no fixed one but 1, to be drawn as one curve "
        "(its shape is ['rows', 512])",
    ),
    (
        lambda: relu,
        ArgumentTypeError,
        "plot: it: must be a relu_ops.Operator (not function)\nhint: compile a model with "
        "relu_ops.compile, or load a bundle with relu_ops.load",
    ),
]


@pytest.mark.parametrize(("make", "kind", "message"), REFUSED_OPERATORS)
def test_an_operator_that_is_no_curve_is_refused(
    tmp_path: Path, make: Any, kind: type[Exception], message: str
) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(kind) as caught:
        plot.plot([("it", make())], path)
    assert str(caught.value).startswith(message)
    assert not path.exists()


REFUSED_ARGUMENTS = [
    ({"low": 1.0, "high": 1.0}, ArgumentError, "plot: low must be below high (not 1.0 and 1.0)"),
    ({"low": 2, "high": -2}, ArgumentError, "plot: low must be below high (not 2 and -2)"),
    ({"low": float("nan")}, ArgumentError, "plot: low must be finite (not nan)"),
    ({"high": float("inf")}, ArgumentError, "plot: high must be finite (not inf)"),
    ({"high": "10"}, ArgumentTypeError, "plot: high must be a number (not '10')"),
    ({"points": 2}, ArgumentError, "plot: points must be from 3 to 1000000 (not 2)"),
    ({"points": 10**7}, ArgumentError, "plot: points must be from 3 to 1000000 (not 10000000)"),
    ({"points": 9.5}, ArgumentTypeError, "plot: points must be an integer (not 9.5)"),
    (
        {"path": "a.pdf"},
        ArgumentError,
        "plot: the suffix of a.pdf must be .png or .svg (not '.pdf')",
    ),
    ({"path": "png"}, ArgumentError, "plot: the suffix of png must be .png or .svg (not '')"),
    ({"path": None}, ArgumentTypeError, "plot: path must be a path (not NoneType)"),
    ({"operators": []}, ArgumentError, "plot: operators must hold at least one operator"),
    (
        {"operators": ["relu"]},
        ArgumentTypeError,
        "plot: operators must be Curves or (label, operator) pairs (not 'relu')",
    ),
    (
        {"path": "no such folder/a.png"},
        ArgumentError,
        "no such folder/a.png: cannot be written: No such file or directory",
    ),
    (
        {"low": -1e39},
        ArgumentError,
        "plot: ReLU: the range -1e+39 to 10.0 must hold at least 3 numbers of float32, all finite",
    ),
    (
        {"low": 1.0, "high": 1 + 1e-9},
        ArgumentError,
        "plot: ReLU: the range 1.0 to 1.000000001 must hold at least 3 numbers of float32, all "
        "finite",
    ),
]


@pytest.mark.parametrize(("arguments", "kind", "message"), REFUSED_ARGUMENTS)
def test_wrong_arguments_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    kind: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as caught:
        plot.plot(**{"operators": [("ReLU", relu())], "path": "a.png", **arguments})
    assert str(caught.value).startswith(message)
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as caught:
        plot.plot([], "a.png")
    assert str(caught.value) == (
        "relu_ops.report.plot needs the package matplotlib, which is not installed\n"
        "hint: pip install 'relu_ops[plot]'"
    )


def test_without_a_compiler_the_slope_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = relu()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = derivative_line(Curve("relu", operator), -1.0, 1.0)
    assert line.label == "relu (slope between samples)"


def test_a_rectifier_of_a_constant_has_no_companion() -> None:
    """Its one node is a Relu, and not of x: the derivative is another."""
    graph = helper.make_graph(
        [helper.make_node("Relu", ["c"], ["y"])],
        "constant",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [helper.make_tensor("c", TensorProto.FLOAT, [1], [2.0])],
    )
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    assert isinstance(model, onnx.ModelProto)
    operator = relu_ops.compile(model)
    assert plot.companion(operator) is None
    with pytest.raises(ArgumentError, match=r"must give one number for each \(not 1 for 5\)"):
        function_line("constant", operator, -1.0, 1.0, points=5)
