"""Shared tables of the tests: special values, sizes, random arrays, targets, comparisons.

Every suite takes its values from here, so that a value added once is tested everywhere.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence

import emulation
import ml_dtypes
import numpy as np
import onnx

from relu_ops import compiler, targets
from relu_ops.bundle import store as bundle
from relu_ops.compiler import frontend
from relu_ops.contract import ir, reference
from relu_ops.contract.semantics import DTYPES, dtype_name
from relu_ops.native import _python as native
from relu_ops.runtime import dispatch
from relu_ops.runtime.operator import Operator

TARGETS = targets.runnable()
"""The CPU targets that this machine runs, the plainest first."""

FLOATS = tuple(name for name, row in DTYPES.items() if row.is_float)
INTEGERS = tuple(name for name, row in DTYPES.items() if row.kind in ("int", "uint"))

# ---------------------------------------------------------------- values

_TIES = (0.5, 1.5, 2.5, 3.5, 127.5, 128.5, 254.5, 255.5, 32767.5, 65534.5)
"""Halves: where rounding to an integer is decided by evenness."""

_NARROWING = (
    *(1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-11 + 2.0**-20),  # float16 ties, and beside one
    *(1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-8 + 2.0**-20),  # bfloat16 ties, and beside one
    *(1 + 2.0**-24, 1 + 2.0**-11 + 2.0**-40),  # ties of float32; rounds twice by way of it
    *(65519.0, 65520.0, 65536.0, 2.0**-24, 2.0**-25, 3 * 2.0**-25, 2.0**-14),  # float16's ends
    *(2.0**-133, 2.0**-134, 2.0**-126, 3.3961775292304957e38),  # bfloat16's ends
)
"""Where rounding to a narrower float is decided."""

_LIMITS = tuple(
    limit + step
    for bits in (7, 8, 11, 15, 16, 24, 31, 32, 53, 63, 64)
    for limit in (2**bits,)
    for step in (-1, 0, 1)
)
"""Around the powers of two that bound the integers and the exact integers of the floats."""

_ORDINARY = (0.001, 0.01, 0.1, 1 / 3, 0.7, 1.0, 1.3, 2.0, 3.0, 6.0, 100.0)


def _float_specials(name: str) -> np.ndarray:
    dtype = DTYPES[name].numpy
    info = ml_dtypes.finfo(dtype)
    extremes = [info.smallest_subnormal, info.smallest_normal, info.max, info.eps]
    subnormal = np.nextafter(np.asarray(info.smallest_normal, dtype), np.zeros((), dtype))
    positive = [float(x) for x in (*extremes, subnormal, 1 + info.eps, 1 - info.eps / 2)]
    positive += [0.0, np.inf, *_ORDINARY, *_TIES, *_NARROWING, *map(float, _LIMITS)]
    with np.errstate(all="ignore"):
        array = np.asarray([np.nan, *positive, *(-x for x in positive)], np.float64).astype(dtype)
    return _without_duplicates(array)


def _integer_specials(name: str) -> np.ndarray:
    info = np.iinfo(DTYPES[name].numpy)
    near = (0, 1, 2, 3, 5, 7, 10, 100, 2049, 2051, 65519, 65520, 65521, 2**62 + 2**38 + 1)
    values = [sign * x for x in (*near, *_LIMITS) for sign in (1, -1)]
    values += [info.min, info.min + 1, info.max - 1, info.max, info.max // 2]
    inside = [x for x in dict.fromkeys(values) if info.min <= x <= info.max]
    return np.asarray(inside, DTYPES[name].numpy)


def _without_duplicates(array: np.ndarray) -> np.ndarray:
    _, first = np.unique(as_bits(array), return_index=True)
    return array[np.sort(first)]


def as_bits(array: np.ndarray) -> np.ndarray:
    """The bit patterns of an array, as unsigned integers."""
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}").reshape(array.shape)


SPECIALS: dict[str, np.ndarray] = {
    **{name: _float_specials(name) for name in FLOATS},
    **{name: _integer_specials(name) for name in INTEGERS},
    "bool": np.asarray([False, True]),
}
"""For each dtype: NaN, zeros, infinities, subnormals, extremes, ties, integer limits."""

SIZES: tuple[int, ...] = (*range(35), 47, 48, 49, *range(63, 67), 95, *range(127, 131), 257, 1000)
"""Element counts: all up to a vector of 32, and around one and two vectors of 64 (the widest)."""

FEW_SPECIALS: dict[str, np.ndarray] = {
    name: values if len(values) <= 24 else values[np.linspace(0, len(values) - 1, 24).astype(int)]
    for name, values in SPECIALS.items()
}
"""At most 24 of them, spread: for second operands, where every pair is tried."""


def random_array(rng: np.random.Generator, dtype: str, shape: Sequence[int]) -> np.ndarray:
    """Random elements: a quarter special, a quarter random bits, the rest of ordinary size."""
    row = DTYPES[dtype]
    count = ir.size(shape)
    if row.kind == "bool":
        return rng.integers(0, 2, shape).astype(np.bool_)
    patterns = rng.integers(0, 256, count * row.itemsize, np.uint8).view(row.numpy)
    ordinary = rng.normal(0, 4, count)
    if row.kind == "uint":
        ordinary = np.abs(ordinary)
    choice = rng.integers(0, 4, count)
    picked = rng.choice(SPECIALS[dtype], count)
    small = ordinary.astype(row.numpy)
    array = np.where(choice == 0, picked, np.where(choice == 1, patterns, small))
    return array.astype(row.numpy).reshape(tuple(shape))


# ---------------------------------------------------------------- comparing


def differing(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """A mask of the elements whose bits differ; NaN equals NaN. Shapes and dtypes must agree."""
    with np.errstate(all="ignore"):
        return (as_bits(a) != as_bits(b)) & ~((a != a) & (b != b))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """True for arrays of one dtype and shape with the same bits; NaN equals NaN."""
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and not differing(a, b).any()


def assert_same_bits(
    actual: np.ndarray, expected: np.ndarray, what: str, inputs: Sequence[np.ndarray] = ()
) -> None:
    """Fail with the first differing element, its bits, and the inputs that broadcast to it."""
    assert isinstance(actual, np.ndarray), f"{what}: {type(actual)} is not an array"
    assert actual.dtype == expected.dtype, f"{what}: {actual.dtype}, not {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: {actual.shape}, not {expected.shape}"
    wrong = differing(actual, expected)
    if not wrong.any():
        return
    place = tuple(int(k) for k in np.argwhere(wrong)[0])
    operands = [_show_operand(x, actual.shape, place) for x in inputs]
    raise AssertionError(
        f"{what}: {int(wrong.sum())} of {wrong.size} elements differ, first at {place}: "
        f"{_show(actual[place])}, not {_show(expected[place])}"
        + (f"; inputs there: {', '.join(operands)}" if operands else "")
    )


def _show(element: np.generic) -> str:
    array = np.asarray(element)
    return f"{element!r} (0x{int(as_bits(array)):0{2 * array.dtype.itemsize}x})"


def _show_operand(x: np.ndarray, shape: tuple[int, ...], place: tuple[int, ...]) -> str:
    try:
        return _show(np.broadcast_to(x, shape)[place])
    except ValueError:
        return f"an array of shape {x.shape}"


# ---------------------------------------------------------------- compiling


def compiled(model: onnx.ModelProto, target: str) -> Operator:
    """Compile a model for one target, in memory; a model is compiled once per process."""
    return _compiled(model.SerializeToString(deterministic=True), target)


@functools.cache
def _compiled(content: bytes, target: str) -> Operator:
    return fresh(content, target)


def fresh(model: onnx.ModelProto | bytes, target: str) -> Operator:
    """Compile a model for one target, in memory, without remembering it.

    An operator for a processor that can be emulated here is called as one that runs here.
    """
    made = compiler.make(model, [target])
    if target == emulation.TARGET and target not in targets.runnable():
        return emulation.Emulated(made)  # type: ignore[return-value]
    held = bundle.from_contents("<memory>", made)
    return dispatch.operator_of(held, target=target)


def compiled_everywhere(model: onnx.ModelProto) -> dict[str, Operator]:
    """One operator for every target that this machine runs."""
    return {target: compiled(model, target) for target in TARGETS}


# ---------------------------------------------------------------- running

NEVER = 1 << 62
"""So many bytes no call moves: what begins from there on does not happen."""


@contextlib.contextmanager
def settings(
    threads: int, parallel_bytes: int, stream_bytes: int, wake_bytes: int = 0
) -> Iterator[None]:
    """Other settings for every operator of the process; those before come back."""
    before = native.get_settings()
    native.set_settings(threads, parallel_bytes, stream_bytes, wake_bytes)
    try:
        yield
    finally:
        native.set_settings(*before)


def run(operator: Operator, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs of an operator, as a list also where there is one."""
    results = operator(*inputs)
    return list(results) if isinstance(results, tuple) else [results]


def expected(model: onnx.ModelProto, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The outputs that the reference gives."""
    return reference.evaluate(frontend.import_model(model), inputs)


def name_of(array: np.ndarray) -> str:
    """The dtype's name; the dtype must be in scope."""
    name = dtype_name(array.dtype)
    assert name is not None, array.dtype
    return name
