"""`verify` is right about right operators: every model, every cell of the table, random graphs.

The slow halves stand behind the marker. That it is right about wrong operators is shown in
test_verification.py, and that no known deviation is listed in vain in test_deviations.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from cases import TARGETS
from hypothesis import HealthCheck, given, settings
from test_cells import GROUPS
from test_deviations import questions
from test_random_graphs import Case
from test_random_graphs import cases as random_cases

from relu_ops.verification import verify

MODELS = sorted((Path(__file__).parents[1] / "models").glob("*.onnx"))
_COMMON: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


def check(model: onnx.ModelProto, target: str) -> None:
    report = verify(model, target=target)
    assert report.ok, f"{onnx.printer.to_text(model)}\n{report}"


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_every_model_is_right(path: Path) -> None:
    report = verify(path)
    assert report.ok and not report.unchecked, str(report)
    assert {row.target for row in report.rows} == set(TARGETS)


@pytest.mark.parametrize(("opset", "reads"), GROUPS[::8])
def test_one_operator_of_a_group_is_right(opset: int, reads: str) -> None:
    models = [q.model for q in questions(opset, reads)]
    number = GROUPS.index((opset, reads))
    check(models[number % len(models)], TARGETS[number % len(TARGETS)])


@pytest.mark.exhaustive
@pytest.mark.parametrize(("opset", "reads"), GROUPS)
def test_every_operator_is_right(opset: int, reads: str) -> None:
    for k, model in enumerate([q.model for q in questions(opset, reads)]):
        check(model, TARGETS[k % len(TARGETS)])


@settings(max_examples=12, **_COMMON)
@given(case=random_cases())
def test_random_graphs_are_right(case: Case) -> None:
    check(case.model(), TARGETS[len(case.nodes) % len(TARGETS)])


@pytest.mark.exhaustive
@settings(max_examples=500, **_COMMON)
@given(case=random_cases())
def test_many_random_graphs_are_right(case: Case) -> None:
    check(case.model(), TARGETS[len(case.nodes) % len(TARGETS)])
