"""The checker, broken on purpose: each way to be wrong is found, and said how to reproduce."""

from __future__ import annotations

import ctypes
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import relu_ops
from relu_ops import cli, compiler, graphs, verification
from relu_ops.compiler import frontend
from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import ArgumentError
from relu_ops.runtime.operator import Operator
from relu_ops.verification import (
    Report,
    calls,
    cases,
    checking,
    same,
    show_bits,
    ulp_distance,
    verify,
)


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


def broken(break_it: Callable[[np.ndarray], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every call of verify give a result that is spoiled by a function."""
    right = calls.call

    def wrong(operator: Operator, inputs: Any, outputs: Any) -> Any:
        results = right(operator, inputs, outputs)
        with np.errstate(all="ignore"):
            for y in results:
                break_it(y)
        return results

    monkeypatch.setattr(checking, "call", wrong)


@pytest.mark.parametrize("break_it", BREAKS, ids=lambda f: f.__name__.strip("_"))
def test_a_broken_operator_is_found(
    bundle: Path,
    break_it: Callable[[np.ndarray], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken(break_it, monkeypatch)
    report = verify(bundle)
    assert not report.ok
    assert f"reproduce: relu-ops verify {bundle} --seed 0 --target x86-64-v2" in str(report)
    assert "FAILED" in str(report)
    every_reproduction_fails_again(report, capsys)


def every_reproduction_fails_again(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    """Paste what a report prints: the same failure must come out."""
    assert report.failures
    for failure in report.failures:
        *text, line = failure.splitlines()
        command = line.partition("reproduce: ")[2]
        program, *arguments = shlex.split(command)
        assert program == "relu-ops"
        assert cli.main(arguments) == cli.CHECK_FAILED, command
        shown = capsys.readouterr()
        assert shown.err == ""
        assert text[0] in shown.out.splitlines()


def test_an_unwritten_tail_is_found(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the last call left in memory must not pass for a result."""

    def lazy(operator: Operator, inputs: Any, outputs: Any) -> Any:
        results = calls.call(operator, inputs, None)
        if outputs is None:
            return results
        for y, result in zip(outputs, results, strict=True):
            y.reshape(-1)[:-1] = result.reshape(-1)[:-1]
        return outputs

    monkeypatch.setattr(checking, "call", lazy)
    assert not verify(bundle).ok


def test_what_another_target_wrote_passes_for_no_result() -> None:
    """Memory is used again: before each call it holds what no right call leaves there."""
    right = np.array([0.0, -0.0, np.nan, 1.0, np.inf], np.float32)
    guarded = calls.Guarded([right], [(12,)])
    for _ in range(2):
        (out,) = guarded.prepare()
        assert out.shape == (12,) and not same(out, np.resize(right, 12)).any()
        out[...] = np.resize(right, 12)
    assert not guarded.broken()


def test_an_output_of_its_own_that_is_wrong_is_found(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(operator: Operator, inputs: Any, outputs: Any) -> Any:
        results = calls.call(operator, inputs, outputs)
        return results if outputs is not None else [np.zeros_like(y) for y in results]

    monkeypatch.setattr(checking, "call", wrong)
    assert not verify(bundle).ok


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0,), (2, 0, 3), (), (5,)])
def test_every_output_lies_between_its_guards(dtype: str, shape: tuple[int, ...]) -> None:
    """One without elements too: what a wrong call writes beside it is nobody else's memory."""
    expected = np.zeros(shape, DTYPES[dtype].numpy)
    guarded = calls.Guarded([expected], [shape])
    (out,) = guarded.prepare()
    assert (out.shape, out.dtype) == (expected.shape, expected.dtype)
    for address in (out.ctypes.data - 1, out.ctypes.data + out.nbytes):
        guarded.prepare()
        assert not guarded.broken()
        ctypes.c_uint8.from_address(address).value = 7
        assert guarded.broken()


@pytest.mark.parametrize("before", [True, False])
def test_a_byte_beside_the_output_is_found(
    bundle: Path, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def past_the_end(operator: Operator, inputs: Any, outputs: Any) -> Any:
        results = calls.call(operator, inputs, outputs)
        for y in outputs or ():
            address = y.ctypes.data - 1 if before else y.ctypes.data + y.nbytes
            ctypes.c_uint8.from_address(address).value = 7
        return results

    monkeypatch.setattr(checking, "call", past_the_end)
    report = verify(bundle)
    assert not report.ok
    assert report.failures[0].startswith("wrote outside of its outputs: special values, shift 0\n")


def test_an_operator_that_raises_is_found(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(y: np.ndarray) -> None:
        raise RuntimeError("out of order")

    broken(raises, monkeypatch)
    report = verify(bundle)
    assert not report.ok
    first = "failed: special values, shift 0: RuntimeError: out of order\n"
    assert report.failures[0].startswith(first)


def test_another_dtype_is_found(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        checking,
        "call",
        lambda operator, inputs, outputs: [calls.call(operator, inputs, None)[0].view(np.int32)],
    )
    report = verify(bundle)
    assert not report.ok
    assert "x86-64-v2: int32[56]   NumPy reference: float32[56]" in report.failures[0]


def test_a_wrong_bit_in_an_exhaustive_check_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flip(y: np.ndarray) -> None:
        if y.size == 1 << 16:
            y.view(np.uint16)[0x1234] ^= 1

    broken(flip, monkeypatch)
    path = tmp_path / "-relu 16.onnx"
    onnx.save(graphs.relu(dtype="float16"), path)
    monkeypatch.chdir(tmp_path)
    report = verify(path.name, target="x86-64-v2", exhaustive=True)
    counts = {row.referee: row.mismatches for row in report.rows}
    assert counts["NumPy reference"] == 1
    assert report.failures[0].startswith(
        "mismatch: patterns from 0x0, element [4660]: input 0.0007572174072265625 (0x1234)"
    )
    number = len(cases.plan(frontend.import_model(graphs.relu()), 0))
    assert report.failures[0].endswith(
        "reproduce: relu-ops verify './-relu 16.onnx' --seed 0 --target x86-64-v2 "
        f"--case {number} --exhaustive"
    )
    every_reproduction_fails_again(report, capsys)


def test_a_model_in_memory_has_a_call_to_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    broken(_zeros, monkeypatch)
    model = graphs.relu()
    report = verify(model, target="x86-64-v2", seed=3)
    assert not report.ok
    for failure in report.failures:
        call = failure.partition("reproduce: ")[2]
        again = eval(call, {"relu_ops": relu_ops, "model": model})
        assert again.failures[0].splitlines()[0] == failure.splitlines()[0]


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


def test_special_values_hold_every_kind_of_float() -> None:
    for dtype in ("float16", "bfloat16", "float32", "float64"):
        x = verification.special_values(dtype)
        with np.errstate(all="ignore"):
            wide = x.astype(np.float64)
        assert np.isnan(wide).any() and (wide == np.inf).any() and (wide == -np.inf).any()
        zeros = x[wide == 0]
        assert {bool(s) for s in np.signbit(zeros.astype(np.float64))} == {True, False}


def test_the_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_SECONDS", 0.0)
    report = verify(graphs.relu(), target="x86-64-v2")
    plan = cases.plan(frontend.import_model(graphs.relu()), 0)
    assert report.ok and report.rows[0].cases == plan[0].small[0].size
    last = len(plan) - 1
    assert report.unchecked == [
        f"the last {last} of {len(plan)} cases: 0 s had passed; with a number of 1 to {last} as "
        "case, one is"
    ]


def test_progress_is_shown() -> None:
    seen: list[Any] = []

    def progress(items: Any, total: int, title: str) -> Any:
        seen.append((total, title))
        return items

    plan = cases.plan(frontend.import_model(graphs.relu()), 0)
    verify(graphs.relu(), target="x86-64-v2", progress=progress)
    assert seen == [(len(plan), "verify relu")]


@pytest.mark.parametrize("case", [-1, 29, 1000])
def test_a_case_that_is_not_is_refused(bundle: Path, case: int) -> None:
    with pytest.raises(ArgumentError, match=rf"verify: case must be 0 to 28 \(not {case}\)"):
        verify(bundle, case=case)
