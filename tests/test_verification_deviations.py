"""Known deviations in the whole check: what follows from one is no failure, and hides none.

The table itself is tried in test_deviations.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import short_models
from onnx import TensorProto, helper
from test_verification_shapes import model_of, spoiled

from relu_ops import graphs
from relu_ops.compiler import frontend
from relu_ops.contract import ir
from relu_ops.contract.semantics import DTYPES, OPERATORS
from relu_ops.verification import deviations, referees, verify
from relu_ops.verification.deviations import Deviation
from relu_ops.verification.referees import ONNX_REFERENCE, ONNXRUNTIME

node = helper.make_node
F16 = TensorProto.FLOAT16

RIGHT: dict[str, onnx.ModelProto] = {
    "only a lower bound": model_of(
        [node("Clip", ["x", "low"], ["y"])], {"x": None}, {"low": np.float32(0)}
    ),
    "only an upper bound": model_of(
        [node("Clip", ["x", "", "high"], ["y"])], {"x": None}, {"high": np.float32(6)}
    ),
    "HardSwish of float16": model_of([node("HardSwish", ["x"], ["y"])], {"x": None}, dtype=F16),
    "quantized and back": model_of(
        [
            node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        {"x": None},
        {"scale": np.float32(0.1), "zero": np.uint8(128)},
        opset=19,
    ),
    "an infinite slope": model_of(
        [node("LeakyRelu", ["x"], ["y"], alpha=float("inf"))], {"x": None}
    ),
    "what follows from the sign of a zero": model_of(
        [
            node("Max", ["x", "zero"], ["a"]),
            node("Div", ["one", "a"], ["b"]),
            node("Sign", ["b"], ["y"]),
        ],
        {"x": None},
        {"one": np.float32(1), "zero": np.float32(-0.0)},
    ),
    "what follows from two, broadcast, in float16": model_of(
        [
            node("LeakyRelu", ["x"], ["a"], alpha=0.1),
            node("Max", ["a", "z"], ["b"]),
            node("Sign", ["b"], ["c"]),
            node("HardSwish", ["a"], ["d"]),
            node("Add", ["c", "d"], ["y"]),
        ],
        {"x": [None, None], "z": [None]},
        dtype=F16,
    ),
    "an undefined integer, and a bool of it": model_of(
        [
            node("Cast", ["x"], ["i"], to=TensorProto.INT8),
            node("Cast", ["i"], ["b"], to=TensorProto.BOOL),
            node("Where", ["b", "x", "one"], ["y"]),
        ],
        {"x": None},
        {"one": np.float32(1)},
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_deviations_of_referees_are_no_failures(name: str) -> None:
    report = verify(RIGHT[name], target="native")
    assert report.ok, str(report)
    assert any(row.deviations for row in report.rows)
    assert {row.referee for row in report.rows} >= {"onnxruntime", "onnx.reference"}


@pytest.mark.parametrize("name", RIGHT)
def test_without_the_table_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deviations, "DEVIATIONS", ())
    report = verify(RIGHT[name], target="native")
    assert not report.ok
    assert {row.referee for row in report.rows if row.mismatches} <= {
        "onnxruntime",
        "onnx.reference",
        "function body",
    }
    assert any(" is " in failure and ", not " in failure for failure in report.failures)


ANYTHING = tuple(
    Deviation(engine, tuple(OPERATORS), tuple(DTYPES), "anything", lambda _: True)
    for engine in (ONNXRUNTIME, ONNX_REFERENCE)
)


def _zeros(y: np.ndarray) -> None:
    y[...] = 0


def _skip_the_tail(y: np.ndarray) -> None:
    y.reshape(-1)[-1:] = 7


@pytest.mark.parametrize("break_it", [_zeros, _skip_the_tail])
@pytest.mark.parametrize("name", RIGHT)
def test_no_row_hides_a_failure_of_ours(
    name: str, break_it: Callable[[np.ndarray], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows speak of referees: an operator has the bits of the contract, or it is wrong."""
    monkeypatch.setattr(deviations, "DEVIATIONS", ANYTHING)
    spoiled(break_it, monkeypatch)
    assert not verify(RIGHT[name], target="native").ok


def test_a_referee_that_is_wrong_for_no_known_cause_is_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The very row of Relu does not excuse another number of Relu."""
    from onnx.reference.ops import op_relu

    def wrong(self: Any, x: np.ndarray) -> tuple[np.ndarray]:
        return (np.where(x > 100, np.float32(100), np.maximum(x, 0)).astype(x.dtype),)

    monkeypatch.setattr(op_relu.Relu, "_run", wrong)
    report = verify(graphs.relu(), target="native")
    assert not report.ok
    assert {row.referee for row in report.rows if row.mismatches} == {"onnx.reference"}
    assert "  onnx.reference: Relu at opset 18 of " in report.failures[0]


def test_one_element_that_is_explained_excuses_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one array: zeros of the other sign, which are known, and numbers that are not."""
    from onnx.reference.ops import op_relu

    def wrong(self: Any, x: np.ndarray) -> tuple[np.ndarray]:
        y = np.where(x == 0, 0, np.maximum(x, 0))
        return (np.where(x > 100, 100, y).astype(x.dtype),)

    monkeypatch.setattr(op_relu.Relu, "_run", wrong)
    report = verify(graphs.relu(), target="native", case=0)
    (row,) = (row for row in report.rows if row.referee == "onnx.reference")
    assert row.deviations and row.mismatches


def _zero_where(
    chosen: Callable[[np.ndarray, np.ndarray], np.ndarray], real: Callable[..., Any]
) -> Callable[..., tuple[np.ndarray]]:
    """What an operator of onnx.reference gives, but +0.0 where (x, y) are chosen."""

    def run(self: Any, x: np.ndarray, *rest: Any, **attributes: Any) -> tuple[np.ndarray]:
        (y,) = real(self, x, *rest, **attributes)
        return (np.where(chosen(x, y), np.zeros((), y.dtype), y),)

    return run


def _is_wrong(operator: str, dtype: int, inputs: str = "x") -> bool:
    """Whether verify says so of onnx.reference, in one operator."""
    model = model_of([node(operator, list(inputs), ["y"])], dict.fromkeys(inputs), dtype=dtype)
    report = verify(model, target="native")
    wrong = {row.referee for row in report.rows if row.mismatches}
    assert wrong <= {"onnx.reference"}
    return bool(wrong)


def test_a_row_excuses_no_other_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Max and others it is known that they lose the sign of a zero; of Add it is not."""
    from onnx.reference.ops import op_add

    wrong = _zero_where(lambda x, y: y == 0, op_add.Add._run)
    monkeypatch.setattr(op_add.Add, "_run", wrong)
    assert _is_wrong("Add", TensorProto.DOUBLE, "xz")


def test_a_row_excuses_no_other_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Relu it is known so for float32; for float16 it is not."""
    from onnx.reference.ops import op_relu

    wrong = _zero_where(lambda x, y: y == 0, op_relu.Relu._run)
    monkeypatch.setattr(op_relu.Relu, "_run", wrong)
    assert not _is_wrong("Relu", TensorProto.FLOAT)
    assert _is_wrong("Relu", TensorProto.FLOAT16)


def test_a_row_excuses_no_other_referee(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the sign of a float16 NaN is a number is known of onnxruntime alone."""
    from onnx.reference.ops import op_sign

    wrong = _zero_where(lambda x, y: np.isnan(x), op_sign.Sign._run)
    monkeypatch.setattr(op_sign.Sign, "_run", wrong)
    assert _is_wrong("Sign", TensorProto.FLOAT16)


def test_a_graph_that_was_misunderstood_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that are each right excuse no operands that were swapped, whatever the table says."""
    real = frontend.import_model

    def swapped(model: Any) -> ir.Graph:
        proto = frontend.read_model(model)
        if len(proto.graph.node) == 3:
            proto.graph.node[2].input[:] = list(proto.graph.node[2].input)[::-1]
        return real(proto)

    monkeypatch.setattr(frontend, "import_model", swapped)
    monkeypatch.setattr(deviations, "DEVIATIONS", ANYTHING)
    nodes = [node("Max", ["x", "z"], ["a"]), node("Neg", ["z"], ["b"]), node("Sub", "ab", ["y"])]
    report = verify(model_of(nodes, {"x": None, "z": None}), target="native")
    assert not report.ok
    wrong = {row.referee for row in report.rows if row.mismatches}
    assert wrong == {"onnxruntime", "onnx.reference"}
    assert "the contract gives other bits node by node than as a whole" in report.failures[0]


# ---------------------------------------------------------------- functions


def in_a_function(*nodes: onnx.NodeProto, opset: int = 17) -> onnx.ModelProto:
    """A call of a function of a to b whose attribute slope is 0.125 by default."""
    act = short_models.function("Act", "a", "b", nodes, opset=opset, slope=0.125)
    return short_models.model([node("Act", ["x"], ["y"], domain="local")], functions=[act])


def test_every_referee_keeps_the_defaults_of_functions() -> None:
    leaky = short_models.referring(node("LeakyRelu", ["a"], ["b"]), alpha="slope")
    report = verify(in_a_function(leaky), target="native")
    assert report.ok and not report.absent, report
    assert len(report.rows) == 4


def test_a_function_of_another_opset_is_explained_too() -> None:
    """onnxruntime clips infinities where a bound is absent: a known cause."""
    clip = node("Clip", ["a", "", ""], ["b"])
    report = verify(in_a_function(clip, opset=12), target="native")
    assert report.ok and not report.absent, report
    assert any(row.deviations for row in report.rows if row.referee == "onnxruntime")


def test_a_model_that_cannot_be_written_without_functions_has_the_contract_alone() -> None:
    made = in_a_function(node("Clip", ["a"], ["b"], min=0.0), opset=6)
    report = verify(made, target="native")
    reason = (
        "node of output ['b'] of function local.Act, called by node of output ['y']: Clip of "
        "opset 6 is written otherwise in opset 17, which other nodes have"
    )
    assert report.ok and [row.referee for row in report.rows] == ["NumPy reference"]
    assert report.absent == dict.fromkeys(
        ("onnxruntime", "onnx.reference", "function body"), reason
    )


BODIES = {
    "Clip of an upper bound": node("Clip", ["x", "", "c"], ["y"]),
    "Clip of a lower bound": node("Clip", ["x", "c"], ["y"]),
    "Clip of none": node("Clip", ["x"], ["y"]),
    "Clip of two absent ones": node("Clip", ["x", "", ""], ["y"]),
    "a default attribute": node("LeakyRelu", ["x"], ["y"]),
    "two default attributes": node("HardSigmoid", ["x"], ["y"]),
    "a body in a body": node("HardSwish", ["x"], ["y"]),
    "an operand's type": node("CastLike", ["x", "c"], ["y"]),
}


@pytest.mark.parametrize("name", BODIES)
def test_operators_are_replaced_by_their_bodies(name: str) -> None:
    made = model_of([BODIES[name]], {"x": None}, {"c": np.float32(2)}, opset=18)
    expanded = referees._expanded(made)
    kinds = {n.op_type for n in expanded.graph.node}
    assert kinds and not kinds & {"Clip", "LeakyRelu", "HardSigmoid", "HardSwish", "CastLike"}
    report = verify(made, target="native")
    assert report.ok and not report.absent, report


def test_a_body_of_a_later_opset_is_none_of_the_models() -> None:
    """That of Relu needs opset 18."""
    made = model_of([node("Relu", ["x"], ["y"])], {"x": None}, opset=17)
    assert referees._expanded(made) is None
    made.opset_import[0].version = 18
    assert {n.op_type for n in referees._expanded(made).graph.node} >= {"Max"}
