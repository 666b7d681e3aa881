"""Compares arrays bit for bit, and shows bits. There is no tolerance here, and none elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def same(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """True where two arrays have the same bits, NaN as NaN."""
    if ours.dtype != theirs.dtype:
        return np.zeros(ours.shape, bool)
    bits = np.dtype(f"u{ours.dtype.itemsize}")
    equal = np.ascontiguousarray(ours).view(bits) == np.ascontiguousarray(theirs).view(bits)
    equal = equal.reshape(ours.shape)  # ascontiguousarray gives a scalar a dimension
    if equal.all() or ours.dtype.kind in "iub":
        return equal
    with np.errstate(all="ignore"):
        return equal | ((ours != ours) & (theirs != theirs))


def all_same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> bool:
    """True where two lists have the same shapes, dtypes and bits, NaN as NaN.

    >>> all_same([np.float32([0.0])], [np.float32([-0.0])])
    False
    """
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and a.dtype == b.dtype and bool(same(a, b).all())
        for a, b in zip(ours, theirs, strict=True)
    )


def ulp_distance(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """How many representable values lie between two arrays; for integers, the difference.

    A NaN against a number counts as the largest distance.
    """
    a, b = _ordinal(ours), _ordinal(theirs)
    with np.errstate(all="ignore"):
        distance = np.abs(a - b)
        if ours.dtype.kind not in "iub":
            one_nan = (ours != ours) != (theirs != theirs)
            distance = np.where(one_nan, np.inf, distance)
    return distance


def _ordinal(x: np.ndarray) -> np.ndarray:
    if x.dtype.kind in "iub":
        return x.astype(np.longdouble)
    bits = x.dtype.itemsize * 8
    raw = np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}").astype(np.longdouble)
    sign = np.longdouble(2) ** (bits - 1)
    return np.where(raw >= sign, sign - raw, raw)


def show_bits(value: Any) -> str:
    """A number with its bits.

    >>> show_bits(np.float32(-0.0))
    '-0.0 (0x80000000)'
    """
    scalar = np.asarray(value)
    bits = int(scalar.view(f"u{scalar.dtype.itemsize}"))
    return f"{scalar.item()} (0x{bits:0{scalar.dtype.itemsize * 2}x})"


def show_operand(x: np.ndarray | None, place: Sequence[int]) -> str:
    """The element of an operand that broadcasts to a place of a result; "-" where none does."""
    if x is None or x.ndim > len(place):
        return "-"
    try:
        own = [0 if n == 1 else p for n, p in zip(x.shape[::-1], place[::-1], strict=False)]
        return show_bits(x[tuple(own[::-1])])
    except IndexError:  # it lies along another axis, or in blocks
        return "-"
