"""The checker, broken on purpose: each way to be wrong is found, and said how to reproduce."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relu_ops import compiler, graphs, verification
from relu_ops.compiler import frontend
from relu_ops.errors import ArgumentError
from relu_ops.runtime import dispatch
from relu_ops.runtime.operator import Operator
from relu_ops.verification import Report, same, show_bits, ulp_distance, verify


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "leaky.bundle"
    compiler.build(graphs.leaky_relu(alpha=0.1), ["x86-64-v2"], path)
    return path


def test_a_right_operator_passes(bundle: Path) -> None:
    report = verify(bundle)
    assert report.ok and not report.failures
    assert {row.referee for row in report.rows} == {
        "NumPy reference",
        "onnxruntime",
        "onnx.reference",
        "function body",
    }
    assert all(row.cases > 1000 for row in report.rows)


def _zeros(y: np.ndarray) -> None:
    y[...] = 0


def _drop_nan(y: np.ndarray) -> None:
    y[np.isnan(y)] = 0


def _lose_negative_zero(y: np.ndarray) -> None:
    y[y == 0] = 0.0


def _skip_the_tail(y: np.ndarray) -> None:
    y.reshape(-1)[-1:] = 7


def _one_ulp(y: np.ndarray) -> None:
    y[...] = np.nextafter(y, np.float32(np.inf))


def _flush_subnormals(y: np.ndarray) -> None:
    y[np.abs(y) < np.finfo(np.float32).tiny] = 0


def _ignore_alpha(y: np.ndarray) -> None:
    y[y < 0] *= 10


BREAKS = [
    _zeros,
    _drop_nan,
    _lose_negative_zero,
    _skip_the_tail,
    _one_ulp,
    _flush_subnormals,
    _ignore_alpha,
]


def break_operators(monkeypatch: pytest.MonkeyPatch, spoil: Callable[[np.ndarray], None]) -> None:
    """Whatever operator is checked, its results are spoilt."""

    class Broken(Operator):
        def __call__(self, *inputs: Any, out: Any = None, threads: int | None = None) -> Any:
            y = super().__call__(*inputs, out=out, threads=threads)
            spoil(y)
            return y

    right = dispatch.operator_of

    def wrong(*arguments: Any, **keywords: Any) -> Operator:
        op = right(*arguments, **keywords)
        return Broken(op.bundle.handle, op.name, op.wanted_target, op.bundle)

    monkeypatch.setattr(dispatch, "operator_of", wrong)


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda f: f.__name__.strip("_"))
def test_a_broken_operator_is_found(
    bundle: Path, break_it: Callable[[np.ndarray], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(y: np.ndarray) -> None:
        with np.errstate(all="ignore"):
            break_it(y)

    break_operators(monkeypatch, spoil)
    report = verify(bundle)
    assert not report.ok
    assert f"reproduce: relu-ops verify {bundle} --seed 0 --target x86-64-v2" in str(report)
    assert "FAILED" in str(report)


def test_a_wrong_bit_in_an_exhaustive_check_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(y: np.ndarray) -> None:
        if y.size == 1 << 16:
            y.view(np.uint16)[0x1234] ^= 1

    break_operators(monkeypatch, spoil)
    report = verify(graphs.relu(dtype="float16"), target="x86-64-v2", exhaustive=True)
    counts = {row.referee: row.mismatches for row in report.rows}
    assert counts["NumPy reference"] == 1
    assert report.failures[0].startswith(
        "mismatch: patterns from 0x0, element [4660]: input 0.0007572174072265625 (0x1234)"
    )


def test_an_exhaustive_check_counts_every_pattern() -> None:
    report = verify(graphs.relu(dtype="bfloat16"), target="x86-64-v2", exhaustive=True)
    assert report.ok
    assert all(row.cases >= 1 << 16 for row in report.rows if row.referee == "NumPy reference")


def test_an_exhaustive_check_of_two_inputs_is_refused() -> None:
    with pytest.raises(ArgumentError, match="every bit pattern can be checked for one input"):
        verify(graphs.add_relu(), target="x86-64-v2", exhaustive=True)


def test_a_report_without_rows_is_not_ok() -> None:
    assert not Report("nothing").ok


def test_a_single_case_can_be_repeated(bundle: Path) -> None:
    whole, one = verify(bundle), verify(bundle, case=3)
    assert 0 < one.rows[0].cases < whole.rows[0].cases


def test_same_bits() -> None:
    a = np.array([0.0, -0.0, np.nan, 1.0], np.float32)
    b = np.array([-0.0, -0.0, np.nan, 1.0], np.float32)
    b.view(np.uint32)[2] ^= 1  # another payload
    assert same(a, b).tolist() == [False, True, True, True]
    assert not same(a, a.astype(np.float64)).any()


def test_ulp_distance() -> None:
    a = np.array([1.0, -0.0, 1.0, np.nan], np.float32)
    b = np.array([np.nextafter(np.float32(1), np.float32(2)), 0.0, -1.0, 1.0], np.float32)
    distance = ulp_distance(a, b).tolist()
    assert distance[:2] == [1, 0]
    assert distance[2] == 2 * 0x3F800000
    assert distance[3] == np.inf


def test_bits_are_shown() -> None:
    assert show_bits(np.int8(-1)) == "-1 (0xff)"


@pytest.mark.parametrize("name", graphs.MODELS)
def test_every_model_of_ours_is_verified(name: str) -> None:
    report = verify(graphs.MODELS[name]())
    assert report.ok, str(report)


def test_special_values_hold_every_kind_of_float() -> None:
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        x = verification.special_values(dtype)
        with np.errstate(all="ignore"):
            wide = x.astype(np.float64)
        assert np.isnan(wide).any() and (wide == np.inf).any() and (wide == -np.inf).any()
        zeros = x[wide == 0]
        assert {bool(s) for s in np.signbit(zeros.astype(np.float64))} == {True, False}


def test_cases_fit_the_declared_shapes() -> None:
    graph = frontend.import_model(graphs.scale_bias_leaky_relu(layout="nchw"))
    for case in verification.cases(graph, 0):
        assert [x.ndim for x in case.inputs] == [4, 3, 3]
