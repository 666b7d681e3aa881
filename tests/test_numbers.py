"""Numbers for inputs that are declared as one: a Python float is as good as an array.

A float is rounded once to the dtype of the input, as NumPy and ml_dtypes round it.
"""

from __future__ import annotations

import functools
import re
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import onnx.parser
import pytest
from cases import FLOATS, as_bits, compiled, same_bits

from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import ArgumentError, ArgumentTypeError
from relu_ops.runtime.operator import Operator

_ONNX_NAMES = {"float32": "float", "float64": "double"}


def number(dtype: str) -> Operator:
    """Gives back the number that it is passed."""
    return parsed(f"g ({_ONNX_NAMES.get(dtype, dtype)} x) => (T y) {{ y = Identity(x) }}", dtype)


def scaled(dtype: str) -> Operator:
    return parsed("g (T[N] x, T s) => (T[N] y) { y = Mul(x, s) }", dtype)


def parsed(text: str, dtype: str) -> Operator:
    text = re.sub(r"\bT\b", _ONNX_NAMES.get(dtype, dtype), text)
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\n{text}')
    return compiled(model, "native")


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """What NumPy or ml_dtypes make of float64 numbers."""
    with np.errstate(all="ignore"):
        return values.astype(DTYPES[dtype].numpy)


def computed(op: Operator, values: np.ndarray) -> np.ndarray:
    """What the operator makes of each, one by one, as Python floats."""
    out = np.empty(values.shape, DTYPES[op.outputs[0].dtype].numpy)
    places = [out[k : k + 1].reshape(()) for k in range(len(out))]
    for x, place in zip(values.tolist(), places, strict=True):
        op(x, out=place)
    return out


def wide(x: np.ndarray) -> np.ndarray:
    """The same numbers as float64."""
    with np.errstate(all="ignore"):  # of signaling NaNs
        return x.astype(np.float64)


@functools.cache
def finite(dtype: str) -> np.ndarray:
    """Every finite number of a dtype of 16 bits from zero up, and what would come next."""
    patterns = np.arange(1 << 15, dtype=np.uint16).view(DTYPES[dtype].numpy)
    values = wide(patterns)
    values = values[np.isfinite(values)]
    return np.append(values, 2 * values[-1] - values[-2])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_every_pattern_of_16_bits(dtype: str, careful: list[Operator]) -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype].numpy)
    found = computed(number(dtype), wide(patterns))
    assert same_bits(found, patterns)
    assert (np.signbit(found) == np.signbit(patterns)).all()
    assert not careful


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_around_every_boundary_of_16_bits(dtype: str, sign: int, careful: list[Operator]) -> None:
    """Halfway between any two neighbours, and beside it, as near as a float32 can be."""
    low, high = finite(dtype)[:-1], finite(dtype)[1:]
    middle = sign * (low + high) / 2
    narrow = middle.astype(np.float32)
    assert (narrow == middle).all()
    for values in (
        middle,
        np.nextafter(narrow, np.float32(np.inf)).astype(np.float64),
        np.nextafter(narrow, np.float32(-np.inf)).astype(np.float64),
    ):
        expected = rounded(values, dtype)
        assert len(np.unique(as_bits(expected))) > len(values) / 2 - 2
        assert same_bits(computed(number(dtype), values), expected)
        assert (np.signbit(expected) == (sign < 0)).all()
    assert not careful


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_would_be_rounded_twice_is_left_to_numpy(dtype: str, careful: list[Operator]) -> None:
    low, high = finite(dtype)[:-1:97], finite(dtype)[1::97]
    middle = (low + high) / 2
    beside = np.concatenate([np.nextafter(middle, np.inf), np.nextafter(middle, 0)])
    beside = np.append(beside[beside != middle[0]], [1e300, -1e300, 1e-300])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of overflow
        assert same_bits(computed(number(dtype), beside), rounded(beside, dtype))
    assert len(careful) == len(beside)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_wider_floats(dtype: str, careful: list[Operator]) -> None:
    info = np.finfo(np.float32)
    edges = [float(info.max), 2.0**128, 2.0**128 - 2.0**103, 2.0**128 - 2.0**104 * 0.5000001]
    edges += [2.0**-149, 2.0**-150, 3 * 2.0**-150, 2.0**-150 * (1 + 2**-52), 2.0**-126, 0.0]
    edges += [1 + 2.0**-24, 1 + 3 * 2.0**-24, 1 + 2.0**-24 + 2.0**-52, 0.1, 1e300, 5e-324]
    edges += [np.nan, np.inf]
    draw = np.random.default_rng(0)
    random = draw.integers(0, 1 << 64, 20_000, np.uint64).view(np.float64)
    near = wide(draw.integers(0, 1 << 32, 20_000, np.uint32).view(np.float32))
    values = np.concatenate([edges, np.negative(edges), random, near, np.nextafter(near, 0)])
    found = computed(number(dtype), values)
    assert same_bits(found, rounded(values, dtype))
    assert (np.signbit(found) == np.signbit(values)).all()
    assert not careful


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_number_beside_an_array(dtype: str, careful: list[Operator]) -> None:
    op, row = scaled(dtype), DTYPES[dtype]
    for size in (0, 1, 7, 20_000):
        x = np.arange(size).astype(row.numpy)
        with np.errstate(all="ignore"):
            expected = x * row.numpy.type(0.1)
        assert same_bits(op(x, float(row.numpy.type(0.1))), expected)
        out = np.empty_like(x)
        assert op(x, float(row.numpy.type(0.1)), out=out, threads=2) is out
        assert same_bits(out, expected)
        call = op.bind(x, 0.5)
        call()
        assert same_bits(call.out, x * row.numpy.type(0.5))
    assert not careful


def test_a_number_before_an_array(careful: list[Operator]) -> None:
    op = parsed("g (float s, float[N] x, float t) => (float[N] y) { a=Mul(s, x) y=Add(a, t) }", "")
    x = np.arange(5, dtype=np.float32)
    assert same_bits(op(2.0, x, 0.5), 2 * x + np.float32(0.5))
    assert not careful


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_as_good_as_a_float(dtype: str, careful: list[Operator]) -> None:
    op, kind = number(dtype), DTYPES[dtype].numpy.type
    expected = np.asarray(kind(3))

    class Own(float):
        """A float of somebody's own."""

    for given in (3.0, 3, True + 2, Own(3), kind(3), np.array(3, kind), np.array(3, kind)[()]):
        result = op(given)
        assert type(result) is np.ndarray and same_bits(result, expected)
    assert same_bits(op(True), np.asarray(kind(1)))
    assert same_bits(op(-0.0), np.asarray(kind(-0.0))) and np.signbit(op(-0.0))


def test_scalars_of_numpy_that_go_the_native_way(careful: list[Operator]) -> None:
    assert number("float32")(np.float32(0.1)) == np.float32(0.1)
    assert not careful
    assert number("float64")(np.float64(0.1)) == 0.1
    assert number("float16")(np.float16(0.1)) == np.float16(0.1)
    assert number("bfloat16")(ml_dtypes.bfloat16(0.5)) == 0.5
    assert len(careful) == 3


@pytest.mark.parametrize("dtype", FLOATS)
def test_scalars_of_another_dtype_are_refused(dtype: str) -> None:
    op = number(dtype)
    own = DTYPES[dtype].numpy
    hint = f"x.astype({dtype!r})" if dtype != "bfloat16" else "astype(ml_dtypes.bfloat16)"
    for kind in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int32, np.bool_):
        if np.dtype(kind) == own:
            continue
        with pytest.raises(ArgumentTypeError) as caught:
            op(kind(1))
        shown = np.dtype(kind).name
        assert caught.value.message == f"g: x.dtype must be {dtype} (not {shown})"
        assert (caught.value.hint or "").startswith("convert it first") and hint in str(
            caught.value
        )


@pytest.mark.parametrize(
    ("dtype", "given", "kind", "message"),
    [
        ("int8", 1.0, ArgumentTypeError, "g: x must be int8; it holds numbers of kind float"),
        ("int8", 128, ArgumentError, "g: x: Python integer 128 out of bounds for int8"),
        ("uint8", -1, ArgumentError, "g: x: Python integer -1 out of bounds for uint8"),
        ("bool", 1, ArgumentTypeError, "g: x must be bool; it holds numbers of kind int"),
        ("float32", 1j, ArgumentTypeError, "g: x must be an array of float32 (not complex)"),
        ("float32", "1", ArgumentTypeError, "g: x must be an array of float32 (not str)"),
        ("float32", None, ArgumentTypeError, "g: x must be an array of float32 (not NoneType)"),
        ("float32", [1.0], ArgumentError, "g: x.shape must be () (not (1,))"),
        (
            "float32",
            2**70,
            ArgumentTypeError,
            "g: x must be an array of float32 (not int beyond 64 bits)",
        ),
    ],
    ids=str,
)
def test_what_is_no_number_of_the_dtype(
    dtype: str, given: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}"):
        number(dtype)(given)


@pytest.mark.parametrize("dtype", ["int8", "int64", "uint16", "uint64", "bool"])
def test_numbers_of_integers(dtype: str) -> None:
    op, row = number(dtype), DTYPES[dtype]
    ends = (False, True) if dtype == "bool" else (np.iinfo(row.numpy).min, np.iinfo(row.numpy).max)
    for given in ends:
        result = op(given if dtype == "bool" else int(given))
        assert same_bits(result, np.asarray(given, row.numpy))


def test_a_float_for_an_input_of_any_shape_is_converted_too() -> None:
    op = parsed("g (float[] x, float[N] y) => (float[N] z) { z = Add(x, y) }", "")
    assert op(0.5, np.ones(2, np.float32)).tolist() == [1.5, 1.5]
