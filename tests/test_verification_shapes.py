"""Which shapes and arrays `verify` tries: free dimensions, large and empty ones, repetition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from relu_ops import compiler, graphs, verification
from relu_ops.compiler import frontend
from relu_ops.contract import ir, reference
from relu_ops.runtime.operator import Operator
from relu_ops.verification import calls, cases, checking, same, verify
from relu_ops.verification.shapes import cut, shapes

RELU = helper.make_node("Relu", ["x"], ["y"])
ADD = helper.make_node("Add", ["x", "z"], ["y"])
PRELU = helper.make_node("PRelu", ["x", "s"], ["y"])
MAX = helper.make_node("Max", ["y", "s"], ["m"])


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, Sequence[Any] | None],
    constants: dict[str, Any] | None = None,
    dtype: int = TensorProto.FLOAT,
    opset: int = 18,
) -> onnx.ModelProto:
    """A model whose inputs have one dtype, and whose last node makes its only output."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(nodes[-1].output[0], dtype, None)],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def graph_of(*arguments: Any, **options: Any) -> ir.Graph:
    return frontend.import_model(model_of(*arguments, **options))


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def spoiled(break_it: Callable[[np.ndarray], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every call of verify give a result that is spoiled by a function."""

    def wrong(operator: Operator, inputs: Any, outputs: Any) -> Any:
        results = calls.call(operator, inputs, outputs)
        for y in results:
            break_it(y)
        return results

    monkeypatch.setattr(checking, "call", wrong)


# ---------------------------------------------------------------- cases


def test_cases_fit_the_declared_shapes() -> None:
    plan = cases.plan(frontend.import_model(graphs.scale_bias_leaky_relu(layout="nchw")), 0)
    for number in range(len(plan)):
        assert [x.ndim for x in plan[number].inputs()] == [4, 3, 3]


def test_a_case_is_made_from_its_number_alone() -> None:
    plan = cases.plan(frontend.import_model(graphs.add_relu()), 5)
    for number in (0, 3, len(plan) - 1):
        again = cases.plan(plan.graph, 5)[number]
        for x, y in zip(plan[number].small, again.small, strict=True):
            assert same(x, y).all()


def test_small_static_shapes_are_shown_every_special_value() -> None:
    plan = cases.plan(graph_of([RELU], {"x": [4]}), 0)
    shown = np.concatenate([plan[k].small[0] for k in range(len(plan))]).view(np.uint32)
    special = verification.special_values("float32").view(np.uint32)
    assert set(special.tolist()) <= set(shown.tolist())


# ---------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("nodes", "inputs", "constants", "expected"),
    [
        ([ADD], {"x": [None, None], "z": [None]}, {}, [(2, 7), (7,)]),
        ([ADD], {"x": [None, 3], "z": [None]}, {}, [(2, 3), (3,)]),
        ([ADD], {"x": ["N", 3], "z": [4, 1]}, {}, [(4, 3), (4, 1)]),
        ([ADD], {"x": ["N", "N"], "z": None}, {}, [(7, 7), (7,)]),
        ([ADD], {"x": [None, 1, 5], "z": [6, None]}, {}, [(2, 1, 5), (6, 5)]),
        ([PRELU], {"x": [1, None], "s": [None, 3]}, {}, [(1, 3), (1, 3)]),
        ([PRELU], {"x": None, "s": [None, None]}, {}, [(7,), (1, 7)]),
        ([PRELU], {"x": [None, 4, None]}, {"s": ones(4, 1)}, [(2, 4, 7)]),
        ([ADD], {"x": ["N", 1]}, {"z": ones(4, 9)}, [(4, 1)]),
        ([ADD, MAX], {"x": ["N", "N"], "z": ["N"]}, {"s": ones(5, 9)}, [(1, 1), (1,)]),
        ([ADD], {"x": [], "z": [None] * 6}, {}, [(), (2, 3, 2, 3, 2, 7)]),
    ],
)
def test_shapes_are_found(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, Any],
    constants: dict[str, Any],
    expected: list[tuple[int, ...]],
) -> None:
    assert shapes(graph_of(nodes, inputs, constants), 7) == expected


def test_a_symbol_in_many_places_makes_no_large_arrays() -> None:
    graph = graph_of([RELU], {"x": ["N", "N", "N"]})
    assert shapes(graph, 4099) == [(64, 64, 64)]


def test_blocks_are_whole() -> None:
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["y"], block_size=4, axis=1)
    model = model_of([node], {"q": [None, None], "s": [None, None]}, opset=21)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT8
    assert shapes(frontend.import_model(model), 5) == [(2, 20), (2, 5)]


@pytest.mark.parametrize(
    ("inputs", "constants", "expected"),
    [
        ({"x": [8, 6, 4]}, {}, [(2, 6, 4)]),
        ({"x": [8, 100, 4]}, {}, [(1, 12, 4)]),
        ({"x": [8, 6, 4]}, {"z": ones(8, 1, 1)}, [(8, 1, 4)]),
        ({"x": [8, 6, 4], "z": [6, 1]}, {}, [(2, 6, 4), (6, 1)]),
        ({"x": [64, 6, 1], "z": [6, 4]}, {}, [(2, 6, 1), (6, 4)]),
        ({"x": [100, 100]}, {"z": ones(100, 100)}, [(100, 100)]),
    ],
)
def test_large_shapes_are_cut_where_no_constant_lies(
    inputs: dict[str, Any], constants: dict[str, Any], expected: list[tuple[int, ...]]
) -> None:
    graph = graph_of([ADD] if "z" in {**inputs, **constants} else [RELU], inputs, constants)
    assert cut(graph, [tuple(shape) for shape in inputs.values()], 50) == expected


@pytest.mark.parametrize("thrifty", [False, True])
@pytest.mark.parametrize(("most", "kept"), [(50, 1), (100, 3)])
def test_a_cut_case_repeats_itself(
    most: int, kept: int, thrifty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What referees say of a part is what they say of the whole, also where it is no multiple."""
    monkeypatch.setattr(cases, "_MOST_ELEMENTS", most)
    graph = graph_of([ADD], {"x": [7, 6, 5], "z": [7, 1, 5]})
    case = cases.plan(graph, 0)[0]
    assert case.repeats
    inputs = case.inputs(thrifty=thrifty)
    assert [x.shape for x in inputs] == [(7, 6, 5), (7, 1, 5)]
    (whole,), (part,) = (reference.evaluate(graph, x) for x in (inputs, case.small))
    assert (part.shape, whole.shape) == ((kept, 6, 5), (7, 6, 5))
    covered = np.zeros(whole.shape, int)
    for place, inner in cases.tiles(whole.shape, part.shape):
        assert same(whole[place], part[inner]).all()
        covered[place] += 1
    assert (covered == 1).all()


@pytest.mark.parametrize("element", [0, 123456, 2 * 5 * 300 * 400 - 1])
def test_one_wrong_bit_of_a_large_static_shape_is_found(
    element: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flip(y: np.ndarray) -> None:
        y.reshape(-1).view(np.uint32)[element] ^= 1

    spoiled(flip, monkeypatch)
    report = verify(model_of([RELU], {"x": [2, 5, 300, 400]}), target="x86-64-v2")
    assert [row.mismatches for row in report.rows] == [1] * 4
    at = [int(i) for i in np.unravel_index(element, (2, 5, 300, 400))]
    assert f"mismatch: special and random values, element {at}: input " in report.failures[0]


def test_what_is_too_large_is_checked_with_free_dimensions(tmp_path: Path) -> None:
    model = model_of([RELU], {"x": [64, 1024, 1024, 1024]})
    report = verify(model, target="x86-64-v2")
    assert report.ok and report.rows[0].cases > 1000
    (text,) = report.unchecked
    assert text.startswith("the declared shapes: the outputs have 274,877,906,944 bytes, and ")
    compiler.build(model, ["x86-64-v2"], tmp_path / "large.bundle")
    report = verify(tmp_path / "large.bundle")
    assert not report.ok and not report.rows
    assert str(report).endswith("\nFAILED: nothing was compared")
    assert "not checked: case 0, special and random values: the outputs have " in str(report)


def test_little_memory_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "LARGEST_BYTES", 20 << 20)
    report = verify(model_of([ADD], {"x": [2, 1200, 1000], "z": [2, 1200, 1000]}), target="native")
    assert report.ok and report.rows[0].cases == 2_400_000 and not report.unchecked


@pytest.mark.parametrize(
    ("inputs", "elements"),
    [({"x": [0, 3], "z": [3]}, 0), ({"x": ["N", 3], "z": [0, 1]}, 0), ({"x": [1], "z": []}, 1)],
)
def test_a_dimension_of_0_is_checked(inputs: dict[str, Any], elements: int) -> None:
    report = verify(model_of([ADD], inputs), target="x86-64-v2")
    assert report.ok
    assert bool(report.rows[0].cases) == bool(elements)
    nothing = "ok: no element to compare; shapes and dtypes agree"
    assert str(report).splitlines()[-1] == ("ok: every bit agrees" if elements else nothing)


def test_an_empty_output_of_another_dtype_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "call", lambda *_: [np.empty((0, 3), np.float64)])
    assert not verify(model_of([RELU], {"x": [0, 3]}), target="x86-64-v2").ok
