"""Random arrays as nobody would make them: any rank, strides, order, dtype, alignment, overlap.

`case(seed)` draws the arguments of one call; the same for the same seed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from relu_ops.contract.semantics import DTYPES

WRONG_DTYPES = (
    *("float64", "float16", "int32", "uint16", "bool", "complex64", "longdouble"),
    *("S3", "U2", "V4", "O", "M8[s]", "m8[ns]", [("a", "<f4"), ("b", "u1")]),
    *(ml_dtypes.float8_e4m3fn, ml_dtypes.int4),
)
_MOST_ELEMENTS = 3000


@dataclass(frozen=True)
class Case:
    """The arguments of one call.

    Attributes:
        inputs: What is passed.
        out: What is passed, or None.
        memory: What `out` lies in, to see what is written beside it; None without `out`.
    """

    inputs: list[Any]
    out: Any
    memory: np.ndarray | None


def _shape(rng: np.random.Generator) -> tuple[int, ...]:
    rank = int(rng.integers(0, 9))
    while True:
        shape = tuple(int(d) for d in rng.choice([0, 1, 1, 2, 3, 4, 5, 7, 17, 40, 300], rank))
        if np.prod(shape, dtype=float) <= _MOST_ELEMENTS and (0 not in shape or rng.random() < 0.1):
            return shape


def _strides(
    rng: np.random.Generator, shape: Sequence[int], itemsize: int, apart: bool
) -> list[int]:
    """Strides in bytes; each element in a place of its own where `apart`."""
    order = rng.permutation(len(shape))
    strides, step = [0] * len(shape), itemsize
    odd = rng.random() < 0.2
    for axis in order:
        step += int(rng.choice([0, 0, 0, 1, 3])) * (1 if odd else itemsize)
        strides[axis] = int(step * rng.choice([1, 1, 1, -1]))
        step *= max(shape[axis], 1)
    if not apart and shape and rng.random() < 0.5:
        for axis in range(len(shape)):
            if rng.random() < 0.5:
                strides[axis] = int(rng.choice([0, 0, itemsize, -itemsize, 2 * itemsize, 1]))
    return strides


def view_of(
    memory: np.ndarray, start: int, shape: Sequence[int], strides: Sequence[int], dtype: np.dtype
) -> np.ndarray:
    """An array in some bytes, which hold it: NumPy checks that."""
    return np.ndarray(tuple(shape), dtype, memory.data, start, tuple(strides))


def reach(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> tuple[int, int]:
    """How many bytes an array reaches before its first element, and past its start."""
    if 0 in shape:
        return 0, itemsize
    steps = [s * (d - 1) for s, d in zip(strides, shape, strict=True)]
    return -sum(s for s in steps if s < 0), sum(s for s in steps if s > 0) + itemsize


def _bytes(rng: np.random.Generator, dtype: np.dtype, size: int) -> np.ndarray:
    """Memory that holds numbers of ordinary size, at any alignment."""
    count = size // dtype.itemsize + 2
    kind = dtype_of(dtype)
    values = (
        rng.normal(0, 40, count) if kind is None or kind.is_float else rng.integers(-99, 99, count)
    )
    with np.errstate(all="ignore"):
        made = values.astype(dtype if kind else np.float32)
    return (
        np.frombuffer(bytearray(made.tobytes()), np.uint8)[:size] if kind else made.view(np.uint8)
    )


def dtype_of(dtype: np.dtype) -> Any:
    native = dtype.newbyteorder("=")
    return next((row for row in DTYPES.values() if row.numpy == native), None)


def array(
    rng: np.random.Generator, shape: Sequence[int], dtype: np.dtype, apart: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A random array, and the bytes that it lies in."""
    strides = _strides(rng, shape, dtype.itemsize, apart)
    before, after = reach(shape, strides, dtype.itemsize)
    start = before + int(rng.choice([0, dtype.itemsize, 64, int(rng.integers(0, 64))]))
    memory = _bytes(rng, dtype, start + after + int(rng.integers(0, 80)))
    return view_of(memory, start, shape, strides, dtype), memory


def _input(rng: np.random.Generator, shape: Sequence[int], dtype: np.dtype) -> Any:
    chance = rng.random()
    if chance < 0.06:
        wrong = np.dtype(WRONG_DTYPES[rng.integers(len(WRONG_DTYPES))])
        return np.zeros(shape, wrong)
    if chance < 0.12 and dtype.itemsize > 1:
        dtype = dtype.newbyteorder(">")
    x, _ = array(rng, shape, dtype, apart=False)
    if rng.random() < 0.1:
        x.flags.writeable = False
    if rng.random() < 0.05:
        x = x.view(np.matrix if x.ndim == 2 else np.ma.MaskedArray)
    return x


def _broadcast_against(rng: np.random.Generator, shape: Sequence[int]) -> tuple[int, ...]:
    """A shape that broadcasts with another one, mostly."""
    own = [1 if rng.random() < 0.3 else d for d in shape]
    own = own[int(rng.integers(0, len(own) + 1)) :] if rng.random() < 0.3 else own
    if own and rng.random() < 0.05:
        own[int(rng.integers(len(own)))] += 1
    # An empty shape may have large extents, of which a 1 in place of its 0 would make gigabytes.
    return tuple(own) if np.prod(own, dtype=float) <= _MOST_ELEMENTS else ()


def case(seed: int, dtypes: Sequence[np.dtype], same_shape: bool) -> Case:
    """Draw a call of an operator of so many inputs, and one output of the first's dtype.

    Args:
        seed: Decides everything.
        dtypes: The dtypes of the inputs.
        same_shape: Whether the operator wants its inputs to have one shape.
    """
    rng = np.random.default_rng(seed)
    shape = _shape(rng)
    shapes = [shape] + [shape if same_shape else _broadcast_against(rng, shape) for _ in dtypes[1:]]
    inputs = [_input(rng, s, d) for s, d in zip(shapes, dtypes, strict=True)]
    kind = rng.choice(["none", "none", "own", "own", "itself", "overlap", "wrong"])
    if kind == "none":
        return Case(inputs, None, None)
    if kind == "itself":
        return Case(inputs, inputs[0], None)
    dtype = dtypes[0]
    if kind == "wrong":
        wrong = [np.zeros((*shape, 2), dtype), np.zeros(shape, np.complex128), "out", 3, []]
        return Case(inputs, wrong[int(rng.integers(len(wrong)))], None)
    with contextlib.suppress(ValueError):
        shape = np.broadcast_shapes(*shapes)
    out, memory = array(rng, shape, dtype, apart=bool(rng.random() < 0.9))
    if kind == "overlap":
        # Another array in the same bytes, in the place of the first input.
        room = len(memory)
        other = _strides(rng, shapes[0], dtype.itemsize, apart=False)
        before, after = reach(shapes[0], other, dtype.itemsize)
        if before + after <= room:
            first = int(rng.integers(before, room - after + 1))
            inputs[0] = view_of(memory, first, shapes[0], other, dtype)
    return Case(inputs, out, memory)
