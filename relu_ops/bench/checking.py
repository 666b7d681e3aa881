"""Checks a peer on the very call and the very arrays that will be timed.

Every output element is first set to something that it must not stay: the complement of what is
expected. So a call that writes nothing, or only a part, is found wherever it left off.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import ml_dtypes
import numpy as np

from relu_ops.bench.cases import Case
from relu_ops.bench.peers.problem import WRONG, Prepared, Skipped
from relu_ops.verification import same

ROUNDING, ZERO_SIGN, SUBNORMAL, NAN, VALUE = "rounding", "zero sign", "subnormal", "nan", "value"
"""How an element may differ: within the roundings of the case; zeros of another sign; a subnormal
flushed to zero; one of the two is NaN; anything else."""

_HARMLESS = {ROUNDING, ZERO_SIGN}
"""What a peer may do to ordinary data and still be timed; it is shown beside its times."""


def check(
    case: Case,
    prepared: Prepared,
    inputs: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
) -> Counter[str]:
    """Run a call once and count how its outputs differ from the contract.

    Args:
        case: What was to be computed.
        prepared: The call.
        inputs: What it read.
        expected: What the contract says.

    Returns:
        How many elements differ, by kind. An output of another shape or dtype differs everywhere.
    """
    if not prepared.allocates:
        _spoil(prepared, expected)
    with np.errstate(all="ignore"):
        outputs = prepared.outputs(prepared.call())
    found: Counter[str] = Counter()
    if len(outputs) != len(expected):
        found[VALUE] += sum(y.size for y in expected)
        return found
    for y, right in zip(outputs, expected, strict=True):
        found += differences(case, y, right, inputs)
    return found


def _spoil(prepared: Prepared, expected: Sequence[np.ndarray]) -> None:
    spoiled = [np.invert(_bits(right)).view(right.dtype) for right in expected]
    if prepared.fill is not None:
        prepared.fill(spoiled)
        return
    for y, wrong in zip(prepared.outputs(None), spoiled, strict=True):
        if y.shape == wrong.shape and y.dtype == wrong.dtype:
            np.copyto(_bits(y), _bits(wrong))


def refusal(found: Counter[str]) -> Skipped | None:
    """Why a call with such differences on ordinary data is not timed; None where it may be."""
    wrong = {kind: count for kind, count in found.items() if kind not in _HARMLESS}
    return Skipped(WRONG, f"wrong on ordinary data: {describe(wrong)}") if wrong else None


def describe(found: dict[str, int]) -> str:
    """The counts as text.

    >>> describe({"nan": 2, "zero sign": 1})
    '2 nan, 1 zero sign'
    """
    return ", ".join(f"{count} {kind}" for kind, count in found.items())


def differences(
    case: Case, got: np.ndarray, expected: np.ndarray, inputs: Sequence[np.ndarray]
) -> Counter[str]:
    """Count the elements of an output that differ, by kind."""
    if got.dtype != expected.dtype or got.size != expected.size:
        return Counter({VALUE: expected.size})
    got = got.reshape(expected.shape)
    where = np.flatnonzero(~same(got, expected).reshape(-1))
    if not where.size:
        return Counter()
    magnitude = _magnitude(case, inputs, expected, where)
    kinds = _kinds(got.reshape(-1)[where], expected.reshape(-1)[where], magnitude, case.roundings)
    return Counter(
        {str(k): int(n) for k, n in zip(*np.unique(kinds, return_counts=True), strict=True)}
    )


def _magnitude(
    case: Case, inputs: Sequence[np.ndarray], expected: np.ndarray, where: np.ndarray
) -> np.ndarray:
    """The largest intermediate value of each element that differs, as float64."""
    with np.errstate(all="ignore"):
        values = np.abs(expected.reshape(-1)[where].astype(np.float64))
        if case.magnitude is None:
            return values
        picked = [
            np.broadcast_to(x, expected.shape).reshape(-1)[where]
            if x.size == expected.size
            else np.broadcast_to(x, expected.shape)[np.unravel_index(where, expected.shape)]
            for x in inputs
        ]
        wide = case.magnitude(*(x.astype(np.float64) for x in picked))
        return np.fmax(values, wide)


def _kinds(
    got: np.ndarray, expected: np.ndarray, magnitude: np.ndarray, roundings: int
) -> np.ndarray:
    if expected.dtype.kind in "iub":
        distance = np.abs(got.astype(np.float64) - expected.astype(np.float64))
        return np.where(distance <= roundings, ROUNDING, VALUE)
    limits = ml_dtypes.finfo(expected.dtype)
    with np.errstate(all="ignore"):
        a, b = got.astype(np.float64), expected.astype(np.float64)
        smallest = float(limits.smallest_normal)
        quantum = np.maximum(float(limits.eps) * magnitude, float(limits.smallest_subnormal))
        tests: list[tuple[str, np.ndarray]] = [
            (NAN, np.isnan(a) != np.isnan(b)),
            (ZERO_SIGN, (a == 0) & (b == 0)),
            (SUBNORMAL, (a == 0) & (np.abs(b) < smallest)),
            (ROUNDING, np.abs(a - b) <= roundings * quantum),
        ]
    return np.select([test for _, test in tests], [name for name, _ in tests], VALUE)


def _bits(x: np.ndarray) -> np.ndarray:
    return x.view(np.dtype(f"u{x.dtype.itemsize}") if x.dtype.kind != "b" else np.uint8)
