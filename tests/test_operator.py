"""Calling operators: every kind of array, every way to pass it, and what is refused.

What an operator computes is decided elsewhere (test_semantics); here it computes one thing, and
the arrays change.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import gc
import inspect
import itertools
import os
import pickle
import pydoc
import re
import shutil
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import children
import ml_dtypes
import numpy as np
import onnx.parser
import pytest
from cases import NEVER, fresh, settings

from relu_ops import compiler, graphs, targets
from relu_ops.bundle import manifest
from relu_ops.bundle import store as bundle
from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import ArgumentError, ArgumentTypeError, BundleError
from relu_ops.runtime import dispatch, tuning
from relu_ops.runtime.operator import BoundCall, Operator
from relu_ops.verification import random_values, same, special_values

pytestmark = pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")

NATIVE = targets.native().name
DRAW_SEED = 5


def parsed(text: str) -> Operator:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\n{text}')
    return fresh(model, NATIVE)


@pytest.fixture(scope="module")
def relu() -> Operator:
    return fresh(graphs.relu(), NATIVE)


@pytest.fixture(scope="module")
def leaky() -> Operator:
    return fresh(graphs.leaky_relu(alpha=0.1), NATIVE)


@pytest.fixture(scope="module")
def add() -> Operator:
    return parsed("add (float[N] a, float[N] b) => (float[N] y) { y = Add(a, b) }")


@pytest.fixture(scope="module")
def three() -> Operator:
    return parsed(
        """three (float[N] x) => (float[N] y, float[N] z, float[N] w)
        { y = Relu(x)  z = Neg(y)  w = Identity(x) }"""
    )


def expected_relu(x: np.ndarray) -> np.ndarray:
    return np.where(x < 0, np.zeros((), x.dtype), x).astype(x.dtype.newbyteorder("="))


def draw(count: int, dtype: str = "float32") -> np.ndarray:
    values = random_values(dtype, count, np.random.default_rng(DRAW_SEED))
    edges = special_values(dtype)[:count]
    values[: len(edges)] = edges
    return values


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def assert_same(actual: Any, expected: np.ndarray) -> None:
    assert type(actual) is np.ndarray
    assert actual.dtype == expected.dtype and actual.dtype.isnative
    assert actual.shape == expected.shape
    assert same(actual, expected).all()


def refused(kind: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        call()


# ---------------------------------------------------------------- how it is called


def test_a_call_returns_a_new_array(relu: Operator) -> None:
    x = draw(100)
    before = x.copy()
    y = relu(x)
    assert_same(y, expected_relu(x))
    assert not np.may_share_memory(x, y)
    assert same(x, before).all()


def test_out_is_written_and_returned(relu: Operator) -> None:
    x, out = draw(100), np.full(100, 42, np.float32)
    assert relu(x, out=out) is out
    assert_same(out, expected_relu(x))


def test_out_may_be_a_tuple_of_one(relu: Operator) -> None:
    out = np.empty(2, np.float32)
    assert relu(floats(-1, 2), out=(out,)) is out
    assert out.tolist() == [0, 2]


def test_in_place(relu: Operator) -> None:
    x = draw(1000)
    expected = expected_relu(x)
    assert relu(x, out=x) is x
    assert_same(x, expected)


@pytest.mark.parametrize("position", [0, 1])
def test_in_place_of_either_input(add: Operator, position: int) -> None:
    arrays = [np.arange(100, dtype=np.float32), np.arange(100, dtype=np.float32)[::-1].copy()]
    add(*arrays, out=arrays[position])
    assert arrays[position].tolist() == [99] * 100


def test_one_array_as_both_inputs_and_out(add: Operator) -> None:
    x = np.arange(100, dtype=np.float32)
    assert add(x, x, out=x).tolist() == [2 * k for k in range(100)]


def test_several_outputs(three: Operator) -> None:
    x = draw(70)
    results = three(x)
    assert isinstance(results, tuple)
    for actual, expected in zip(results, (expected_relu(x), -expected_relu(x), x), strict=True):
        assert_same(actual, expected)


@pytest.mark.parametrize("kind", [tuple, list])
def test_several_outs(three: Operator, kind: type) -> None:
    x, outs = draw(70), [np.empty(70, np.float32) for _ in range(3)]
    results = three(x, out=kind(outs))
    assert all(a is b for a, b in zip(results, outs, strict=True))
    assert_same(outs[1], -expected_relu(x))


def test_one_of_several_outs_may_be_an_input(three: Operator) -> None:
    x = floats(-1, 2, -0.0)
    outs = (np.empty(3, np.float32), x, np.empty(3, np.float32))
    three(x, out=outs)
    assert [o.tolist() for o in outs] == [[0, 2, 0], [0, -2, 0], [-1, 2, 0]]


def test_some_outs_may_be_left_to_the_operator(three: Operator) -> None:
    out = np.empty(2, np.float32)
    y, z, w = three(floats(-1, 2), out=(None, out, None))
    assert z is out
    assert [y.tolist(), z.tolist(), w.tolist()] == [[0, 2], [0, -2], [-1, 2]]


def test_a_graph_without_inputs() -> None:
    op = parsed("g () => (float[2] y) <float[2] c = {-1.0, 2.0}> { y = Relu(c) }")
    assert op().tolist() == [0, 2]
    out = np.empty(2, np.float32)
    assert op(out=out) is out
    assert out.tolist() == [0, 2]
    assert repr(op) == f"<relu_ops.Operator g() -> (y: float32[2]), target={NATIVE}>"


def test_an_output_may_be_empty_where_another_is_not() -> None:
    op = parsed(
        "g (float[N] a, float[M] b) => (float[N] y, float[M] z) { y = Neg(a)  z = Relu(b) }"
    )
    for a, b in [(1, 0), (0, 1), (3, 1), (1, 3), (0, 0)]:
        y, z = op(np.ones(a, np.float32), np.full(b, 2, np.float32))
        assert (y.tolist(), z.tolist()) == ([-1] * a, [2] * b)


def test_outputs_of_different_ranks() -> None:
    op = parsed("g (float[N] a, float[M,N] b) => (float[N] y, float[M,N] z) { y=Neg(a) z=Add(a,b)}")
    a, b = np.arange(3, dtype=np.float32), np.ones((2, 3), np.float32)
    y, z = op(a, b)
    assert_same(y, -a)
    assert_same(z, a + b)


@pytest.mark.parametrize("order", ["float y, float[N] z", "float[N] z, float y"])
def test_an_output_that_is_one_number(order: str) -> None:
    """Beside arrays of one shape, a number keeps its own."""
    op = parsed(f"g (float[N] x, float s) => ({order}) {{ y = Neg(s)  z = Add(x, s) }}")
    names = [tensor.name for tensor in op.outputs]
    for x, s in ((floats(1, 2, 3), np.array(2, np.float32)), (floats(1), 2.0), (floats(), 2.0)):
        results = dict(zip(names, op(x, s), strict=True))
        assert_same(results["y"], np.array(-2, np.float32))
        assert_same(results["z"], x + np.float32(2))
        call = op.bind(x, s)
        call()
        assert_same(dict(zip(names, call.out, strict=True))["y"], np.array(-2, np.float32))


def test_outputs_need_not_broadcast_together() -> None:
    op = parsed(
        "g (float[N] a, float[M,N] b, float[K] c) => (float[N] x, float[M,N] y, float[K] z)"
        " { x = Relu(a)  y = Add(a, b)  z = Neg(c) }"
    )
    draw = np.random.default_rng(0)
    for n, m, k in [(3, 2, 4), (3, 0, 4), (0, 2, 5), (3, 2, 0), (1, 1, 1), (1000, 17, 33)]:
        a = draw.standard_normal(n, np.float32)
        b = draw.standard_normal((m, n), np.float32)
        c = draw.standard_normal(k, np.float32)
        call = op.bind(a, b, c)
        call()
        for x, y, z in (op(a, b, c), call.out):
            assert_same(x, np.maximum(a, 0))
            assert_same(y, a + b)
            assert_same(z, -c)


DECLARED = "\nhint: the model declares this: reshape the array, or declare another and build again"


def test_symbols_are_shared_between_inputs(add: Operator) -> None:
    refused(
        ArgumentError,
        f"add: b.shape must be (N,) with N = 3, as a has it (not (1,)){DECLARED}",
        lambda: add(np.ones(3, np.float32), np.ones(1, np.float32)),
    )
    assert add([1, 2], [3, 4]).tolist() == [4, 6]


# ---------------------------------------------------------------- numbers and sequences


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (-1.5, np.array(0, np.float32)),
        (3, np.array(3, np.float32)),
        (True, np.array(1, np.float32)),
        ([-1, 2.5], floats(0, 2.5)),
        ((-1, 2), floats(0, 2)),
        ([[1, -2], [-3, 4]], np.array([[1, 0], [0, 4]], np.float32)),
        ([], np.empty(0, np.float32)),
        ([[]], np.empty((1, 0), np.float32)),
        (range(3), floats(0, 1, 2)),
        (np.float32(-2), np.array(0, np.float32)),
        (np.array(7, np.float32), np.array(7, np.float32)),
        (memoryview(floats(-1, 1)), floats(0, 1)),
        (float("nan"), np.array(np.nan, np.float32)),
        (-0.0, np.array(-0.0, np.float32)),
    ],
    ids=repr,
)
def test_numbers_and_sequences(relu: Operator, given: Any, expected: np.ndarray) -> None:
    assert_same(relu(given), expected)


def test_numpy_scalars_of_every_dtype() -> None:
    for name in graphs.dtypes("relu"):
        op = fresh(graphs.relu(name), NATIVE)
        scalar = DTYPES[name].numpy.type(5)
        assert_same(op(scalar), np.array(5, DTYPES[name].numpy))
        assert_same(op([5, -5]), np.array([5, 0], DTYPES[name].numpy))


HOLDS = "\nhint: int8 holds -128 to 127"
NUMBERS = "\nhint: pass an array, a number, or a sequence of numbers"


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (300, ArgumentError, f"relu: x: Python integer 300 out of bounds for int8{HOLDS}"),
        ([-129], ArgumentError, f"relu: x: Python integer -129 out of bounds for int8{HOLDS}"),
        (
            [1.5],
            ArgumentTypeError,
            "relu: x must be int8; it holds numbers of kind float, which it cannot keep\n"
            "hint: convert it on purpose, for example with numpy.array(x, 'int8')",
        ),
        (None, ArgumentTypeError, f"relu: x must be an array of int8 (not NoneType){NUMBERS}"),
        ("12", ArgumentTypeError, f"relu: x must be an array of int8 (not str){NUMBERS}"),
        (b"12", ArgumentTypeError, f"relu: x must be an array of int8 (not bytes){NUMBERS}"),
        (1j, ArgumentTypeError, f"relu: x must be an array of int8 (not complex){NUMBERS}"),
        ({1}, ArgumentTypeError, f"relu: x must be an array of int8 (not set){NUMBERS}"),
        ({}, ArgumentTypeError, f"relu: x must be an array of int8 (not dict){NUMBERS}"),
        (
            [2**70],
            ArgumentTypeError,
            f"relu: x must be an array of int8 (not list of int beyond 64 bits){NUMBERS}",
        ),
        (object(), ArgumentTypeError, f"relu: x must be an array of int8 (not object){NUMBERS}"),
    ],
    ids=repr,
)
def test_what_is_no_array_of_the_dtype(given: Any, kind: type[Exception], message: str) -> None:
    op = fresh(graphs.relu("int8"), NATIVE)
    refused(kind, message, lambda: op(given))


def test_a_ragged_list_is_refused(relu: Operator) -> None:
    with pytest.raises(ArgumentTypeError, match=r"^relu: x cannot be made an array: "):
        relu([[1, 2], [3]])


# ---------------------------------------------------------------- layouts


def misaligned(x: np.ndarray, offset: int) -> np.ndarray:
    memory = np.empty(x.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    view = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def field_of_records(x: np.ndarray) -> np.ndarray:
    packed = np.dtype({"names": ["a", "x"], "formats": ["u1", x.dtype], "itemsize": 7})
    records = np.zeros(x.shape, packed)
    records["x"] = x
    return records["x"]


def of_recarray(x: np.ndarray) -> np.ndarray:
    records = np.rec.array(np.zeros(x.shape, [("x", x.dtype), ("y", "u4")]))
    records.x[...] = x
    return records.x


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


class Named(np.ndarray):
    """A subclass of arrays."""


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "every second": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "every third, backwards": lambda x: np.repeat(x, 3, axis=-1)[..., ::-3][..., ::-1],
    "backwards": lambda x: x[..., ::-1].copy()[..., ::-1],
    "all axes backwards": lambda x: np.flip(np.flip(x).copy()),
    "Fortran order": np.asfortranarray,
    "axes permuted": lambda x: np.moveaxis(np.moveaxis(x, 0, -1).copy(), -1, 0),
    "rows of a wider array": lambda x: np.concatenate([x, x], axis=-1)[..., : x.shape[-1]],
    "read-only": read_only,
    "of bytes": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "big-endian and strided": lambda x: np.repeat(x, 2, -1).astype(">f4")[..., ::2],
    "field of packed records": field_of_records,
    "field of a recarray": of_recarray,
    "masked": lambda x: np.ma.masked_array(x, mask=np.zeros(x.shape, bool)),
    "matrix": lambda x: np.asmatrix(x) if x.ndim == 2 else x,
    "subclass": lambda x: x.view(Named),
    "one byte off": lambda x: misaligned(x, 1),
}


@pytest.mark.parametrize("shape", [(129,), (7, 33), (2, 3, 5, 7)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_inputs(relu: Operator, layout: str, shape: tuple[int, ...]) -> None:
    x = draw(int(np.prod(shape))).reshape(shape)
    given = LAYOUTS[layout](x)
    assert_same(relu(given), expected_relu(x))


@pytest.mark.parametrize("layout", [k for k in LAYOUTS if "endian" not in k and "only" not in k])
def test_layouts_of_outs(relu: Operator, layout: str) -> None:
    x = draw(7 * 33).reshape(7, 33)
    out = LAYOUTS[layout](np.zeros_like(x))
    if layout == "of bytes":
        out = np.frombuffer(bytearray(out.tobytes()), np.float32).reshape(x.shape)
    assert relu(x, out=out) is out
    assert_same(np.array(out, subok=False), expected_relu(x))
    del out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_both_inputs(add: Operator, layout: str) -> None:
    a, b = np.arange(129, dtype=np.float32), np.arange(129, dtype=np.float32)[::-1].copy()
    assert add(LAYOUTS[layout](a), b).tolist() == [128] * 129
    assert add(a, LAYOUTS[layout](b)).tolist() == [128] * 129


def test_broadcast_views(relu: Operator) -> None:
    row = floats(-1, -0.0, 2)
    for shape in [(4, 3), (2, 5, 3), (0, 3)]:
        assert_same(relu(np.broadcast_to(row, shape)), expected_relu(np.broadcast_to(row, shape)))
    assert_same(relu(np.broadcast_to(floats(-1), (9,))), np.zeros(9, np.float32))


def test_inputs_that_broadcast() -> None:
    op = fresh(graphs.maxout(2), NATIVE)
    a, b = draw(12).reshape(3, 1, 4)[:, :, ::-1], draw(10).reshape(5, 2)[:, :1]
    wanted = np.where(np.isnan(a) | (a >= b), a, b)
    assert_same(op(a, b), wanted)


@pytest.mark.parametrize("rank", range(9))
def test_ranks(relu: Operator, rank: int) -> None:
    for extent in (1, 2):
        x = draw(extent**rank).reshape((extent,) * rank)
        assert_same(relu(x), expected_relu(x))
        assert_same(relu(x.T), expected_relu(x.T))


def test_many_dimensions(relu: Operator) -> None:
    x = np.full((1,) * 14 + (2, 2), -1, np.float32)
    assert_same(relu(x), np.zeros_like(x))
    refused(
        ArgumentError,
        "relu: x has 17 dimensions; at most 16 are supported\n"
        "hint: reshape it first: dimensions that lie together can be one",
        lambda: relu(np.ones((1,) * 17, np.float32)),
    )


def test_dimensions_that_cannot_be_merged_are_walked_and_walked_back(relu: Operator) -> None:
    """Gaps in each of five: two are a kernel's, three are walked around it."""
    inner = tuple(slice(n) for n in (2, 3, 4, 5, 6))
    x = draw(3 * 4 * 5 * 6 * 7).reshape(3, 4, 5, 6, 7)[inner]
    out = np.full((3, 4, 5, 6, 7), 42, np.float32)
    relu(x, out=out[inner])
    assert_same(out[inner], expected_relu(x))
    assert (out == 42).sum() >= out.size - x.size


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3), (0, 0)], ids=str)
def test_zero_size(relu: Operator, shape: tuple[int, ...]) -> None:
    x = np.empty(shape, np.float32)
    assert_same(relu(x), x)
    assert relu(x, out=x) is x
    assert_same(relu(x[::-1]), x)
    relu.bind(x)()


def test_random_layouts(relu: Operator) -> None:
    random = np.random.default_rng(DRAW_SEED)
    for _ in range(300):
        rank = int(random.integers(0, 6))
        whole = draw(4**rank).reshape((4,) * rank)
        steps = random.choice([-3, -2, -1, 1, 2, 3], rank)
        x = whole[tuple(slice(None, None, int(step)) for step in steps)]
        x = x.transpose(random.permutation(rank))
        assert_same(relu(x), expected_relu(x))
        out = np.empty_like(x)[..., ::-1] if rank else np.empty_like(x)
        assert_same(relu(x, out=out), expected_relu(x))


def test_every_byte_offset_and_nothing_else_is_written(relu: Operator) -> None:
    guard = 0xA5
    for offset, count in itertools.product(range(64), (0, 1, 7, 16, 33, 130)):
        x = draw(count)
        memory = np.full(count * 4 + 256, guard, np.uint8)
        start = -memory.ctypes.data % 64 + 64 + offset
        stop = start + count * 4
        out = memory[start:stop].view(np.float32)
        relu(misaligned(x, offset), out=out)
        assert same(np.array(out), expected_relu(x)).all(), (offset, count)
        assert (memory[:start] == guard).all() and (memory[stop:] == guard).all(), (offset, count)


@pytest.mark.parametrize("numbers", [(1, NEVER, 0), (3, 0, NEVER), (3, 0, 0)], ids=str)
def test_every_byte_offset_with_streaming_stores_and_threads(
    relu: Operator, three: Operator, numbers: tuple[int, int, int]
) -> None:
    """Streaming stores fault on addresses that are not aligned."""
    x = draw(5000)
    expected = expected_relu(x)
    with settings(*numbers):
        for offset in range(64):
            out = misaligned(np.zeros_like(x), offset)
            relu(misaligned(x, 63 - offset), out=out)
            assert same(np.array(out), expected).all(), offset
            outs = [misaligned(np.zeros_like(x), (offset + 5 * k) % 64) for k in range(3)]
            three(misaligned(x, offset), out=outs)
            wanted = (expected, -expected, x)
            for actual, right in zip(outs, wanted, strict=True):
                assert same(np.array(actual), right).all(), offset


@pytest.mark.parametrize("dtype", graphs.dtypes("relu"))
def test_every_byte_offset_of_every_dtype(dtype: str) -> None:
    op = fresh(graphs.relu(dtype), NATIVE)
    x = draw(67, dtype)
    expected = op(x)
    for offset in range(64):
        assert_same(op(misaligned(x, offset)), expected)
        out = misaligned(np.zeros_like(x), offset)
        op(x, out=out)
        assert same(np.array(out), expected).all()


def test_gaps_of_a_strided_out_stay(relu: Operator) -> None:
    memory = np.full((9, 20), 42, np.float32)
    relu(np.ones((9, 10), np.float32), out=memory[:, ::2])
    assert (memory[:, ::2] == 1).all()
    assert (memory[:, 1::2] == 42).all()


@pytest.mark.parametrize("shift", range(-64, 65))
def test_out_that_overlaps_in_part_is_as_if_copied(
    relu: Operator, add: Operator, shift: int
) -> None:
    count = 300
    memory = draw(count + 64)
    low, high = max(0, -shift), max(0, shift)
    x, out = memory[low : low + count], memory[high : high + count]
    expected = expected_relu(x)
    assert relu(x, out=out) is out
    assert_same(out, expected)
    both = np.arange(count + 64, dtype=np.float32)
    x, out = both[low : low + count], both[high : high + count]
    other = both[:count]
    wanted = x + other
    assert_same(add(x, other, out=out), wanted)


def test_out_that_overlaps_in_bytes_only(relu: Operator) -> None:
    for shift in range(-5, 6):
        memory = np.zeros(400, np.uint8)
        x = memory[16 : 16 + 320].view(np.float32)
        x[:] = np.arange(80) - 40
        expected = expected_relu(x.copy())
        out = memory[16 + shift : 16 + shift + 320].view(np.float32)
        relu(x, out=out)
        assert same(np.array(out), expected).all()


def test_out_that_is_the_input_turned_round(relu: Operator) -> None:
    x = draw(100)
    expected = expected_relu(x)
    relu(x, out=x[::-1])
    assert_same(x[::-1].copy(), expected)
    square = draw(81).reshape(9, 9)
    expected = expected_relu(square)
    relu(square, out=square.T)
    assert_same(square.T.copy(), expected)


def test_bfloat16_arrays() -> None:
    op = fresh(graphs.leaky_relu(alpha=0.5, dtype="bfloat16"), NATIVE)
    x = np.array([-1, 2, -0.0, np.inf, -np.inf, 1e-40], ml_dtypes.bfloat16)
    expected = np.array([-0.5, 2, -0.0, np.inf, -np.inf, 1e-40], ml_dtypes.bfloat16)
    assert_same(op(x), expected)
    assert_same(op(np.repeat(x, 2)[::2]), expected)
    assert_same(op(misaligned(x, 3)), expected)
    assert op(x, out=x) is x
    assert_same(x, expected)


def test_memory_mapped_files(relu: Operator, tmp_path: Path) -> None:
    x = draw(1000)
    np.save(tmp_path / "x.npy", x)
    given = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert_same(relu(given), expected_relu(x))
    out = np.lib.format.open_memmap(tmp_path / "y.npy", "w+", np.float32, (1000,))
    assert relu(given, out=out) is out
    out.flush()
    assert_same(np.load(tmp_path / "y.npy"), expected_relu(x))


def test_a_read_only_out_is_refused_and_not_written(relu: Operator, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(3, np.float32))
    content = bytes(12)
    outs: list[np.ndarray] = [
        read_only(np.ones(3, np.float32)),
        np.frombuffer(content, np.float32),
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        np.broadcast_to(floats(1), (3,)),
    ]
    for out in outs:
        before = out.copy()
        refused(
            ArgumentError,
            "relu: out for y is read-only\nhint: pass a writable array, or leave out away",
            lambda out=out: relu(np.full(3, 5, np.float32), out=out),
        )
        assert (out == before).all()


def test_objects_that_speak_dlpack(relu: Operator) -> None:
    class Holder:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def __dlpack__(self, **options: Any) -> Any:
            return self.array.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    x = draw(50)
    assert_same(relu(Holder(x)), expected_relu(x))
    assert_same(relu(Holder(x[::-2])), expected_relu(x[::-2]))
    refused(
        ArgumentTypeError,
        "relu: x.dtype must be float32 (not float64)\n"
        "hint: convert it first, for example with x.astype('float32')",
        lambda: relu(Holder(np.ones(3))),
    )
    refused(
        ArgumentTypeError,
        "relu: out for y must be a NumPy array or a torch tensor (not Holder)\n"
        "hint: pass an array of the output's dtype and shape, or leave out away",
        lambda: relu(x, out=Holder(x)),
    )


def test_an_array_on_another_device_is_refused(relu: Operator) -> None:
    class OnGpu:
        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("not here")

        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

    refused(
        ArgumentError,
        "relu: x is not in the CPU's memory (DLPack device 2, 0)\nhint: copy it to the CPU first",
        lambda: relu(OnGpu()),
    )


# ---------------------------------------------------------------- refusals


ONES = np.ones(2, np.float32)
OUT = "\nhint: pass an array of the output's dtype and shape, or leave out away"
EACH = "\nhint: pass one array for each, by position, and where to write as out"
ALIGNED = "\nhint: shapes are aligned at their last dimension; there, extents must be equal, or 1"
APART = "\nhint: pass arrays that lie apart"
CONVERT = "\nhint: convert it first, for example with x.astype('float32')"


@pytest.mark.parametrize(
    ("arguments", "out", "kind", "message"),
    [
        ([], None, ArgumentTypeError, f"relu takes 1 input (x), not 0{EACH}"),
        ([ONES, ONES], None, ArgumentTypeError, f"relu takes 1 input (x), not 2{EACH}"),
        (
            [np.ones(2)],
            None,
            ArgumentTypeError,
            f"relu: x.dtype must be float32 (not float64){CONVERT}",
        ),
        (
            [np.ones(2, "U3")],
            None,
            ArgumentTypeError,
            f"relu: x.dtype must be float32 (not str96){CONVERT}",
        ),
        (
            [np.float64(1)],
            None,
            ArgumentTypeError,
            f"relu: x.dtype must be float32 (not float64){CONVERT}",
        ),
        (
            [np.array([None])],
            None,
            ArgumentTypeError,
            f"relu: x.dtype must be float32 (not object){CONVERT}",
        ),
        (
            [ONES],
            np.empty(3, np.float32),
            ArgumentError,
            f"relu: out for y.shape must be (2,) (not (3,)){OUT}",
        ),
        (
            [ONES],
            np.empty((2, 1), np.float32),
            ArgumentError,
            f"relu: out for y.shape must be (2,) (not (2, 1)){OUT}",
        ),
        (
            [ONES],
            np.empty(2),
            ArgumentTypeError,
            f"relu: out for y.dtype must be float32 (not float64){OUT}",
        ),
        (
            [ONES],
            np.empty(2, ">f4"),
            ArgumentTypeError,
            f"relu: out for y.dtype must be float32 (not float32 of foreign byte order){OUT}",
        ),
        (
            [ONES],
            5,
            ArgumentTypeError,
            f"relu: out for y must be a NumPy array or a torch tensor (not int){OUT}",
        ),
        (
            [ONES],
            [1.0, 2.0],
            ArgumentTypeError,
            f"relu: out must be an array, or a tuple of one (y), not list of 2{OUT}",
        ),
    ],
)
def test_wrong_arguments(
    relu: Operator, arguments: list[Any], out: Any, kind: type[Exception], message: str
) -> None:
    refused(kind, message, lambda: relu(*arguments, out=out))
    refused(kind, message, lambda: relu.bind(*arguments, out=out))


def test_wrong_shapes() -> None:
    op = parsed("g (float[N,3] a, float[N] b, float c) => (float[N,3] y) { y = Add(a, c) }")
    good = [np.ones((2, 3), np.float32), np.ones(2, np.float32), np.float32(1)]
    assert_same(op(*good), np.full((2, 3), 2, np.float32))
    wrong: list[tuple[int, Any, str]] = [
        (0, np.ones((2, 4), np.float32), "g: a.shape must be (N, 3) (not (2, 4))"),
        (0, np.ones(3, np.float32), "g: a.shape must be (N, 3) (not (3,))"),
        (1, np.ones(3, np.float32), "g: b.shape must be (N,) with N = 2, as a has it (not (3,))"),
        (2, np.ones(1, np.float32), "g: c.shape must be () (not (1,))"),
    ]
    for position, array, message in wrong:
        arguments = [*good[:position], array, *good[position + 1 :]]
        refused(ArgumentError, message + DECLARED, lambda given=arguments: op(*given))


def test_shapes_that_do_not_broadcast() -> None:
    op = fresh(graphs.maxout(2), NATIVE)
    refused(
        ArgumentError,
        f"maxout: these shapes do not broadcast together: x0 (2,), x1 (3,){ALIGNED}",
        lambda: op(np.ones(2, np.float32), np.ones(3, np.float32)),
    )


def test_shape_that_must_fit_into_another() -> None:
    op = parsed("g (float[N] x, float[M] slope) => (float[N] y) { y = PRelu(x, slope) }")
    assert op([-1, 2], [3]).tolist() == [-3, 2]
    refused(
        ArgumentError,
        f"g: node of output ['y']: slope of shape (2,) must broadcast into (1,){ALIGNED}",
        lambda: op([-1], [3, 4]),
    )


def test_outs_of_several_outputs(three: Operator) -> None:
    tuple_needed = "three: out must be a tuple of 3 arrays (y, z, w), not "
    for out, given in (
        (ONES, "ndarray"),
        ((ONES,), "tuple of 1"),
        ([ONES] * 4, "list of 4"),
        (5, "int"),
    ):
        refused(ArgumentTypeError, tuple_needed + given + OUT, lambda out=out: three(ONES, out=out))
    apart = f"three: the outputs must not overlap or interleave in memory{APART}"
    for outs in itertools.permutations([ONES.copy(), ONES, ONES]):
        refused(ArgumentError, apart, lambda outs=outs: three(ONES, out=outs))
    memory = np.zeros(6, np.float32)
    interleaved = (memory[::3], memory[1::3], memory[2::3])
    refused(ArgumentError, apart, lambda: three(ONES, out=interleaved))
    assert not memory.any()


def test_nothing_is_written_when_a_later_argument_is_wrong(three: Operator) -> None:
    outs = [np.full(2, 42, np.float32) for _ in range(2)]
    with pytest.raises(ArgumentError):
        three(ONES, out=(*outs, np.empty(3, np.float32)))
    assert all((out == 42).all() for out in outs)


# ---------------------------------------------------------------- bind


def test_a_bound_call_reads_and_writes_where_the_arrays_are(relu: Operator) -> None:
    x, out = floats(-1, 2), floats(42, 42)
    call = relu.bind(x, out=out)
    assert out.tolist() == [42, 42]
    assert call() is None
    assert out.tolist() == [0, 2]
    x[:] = [3, -4]
    call()
    assert out.tolist() == [3, 0]
    assert call.inputs == (x,) and call.inputs[0] is x
    assert call.out is out


def test_a_bound_call_belongs_to_its_arrays(relu: Operator) -> None:
    call = relu.bind(floats(-1, 2))
    assert repr(call) == "<relu_ops.BoundCall of relu>"
    for moved in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(ArgumentTypeError, match=r"relu: a bound call belongs to its arrays"):
            moved(call)


def test_a_bound_call_makes_its_output(three: Operator) -> None:
    call = three.bind([-1.0, 2.0])
    call()
    assert [y.tolist() for y in call.out] == [[0, 2], [0, -2], [-1, 2]]


def test_a_bound_call_keeps_its_arrays_alive(relu: Operator) -> None:
    x = np.arange(-50_000, 50_000, dtype=np.float32)
    alive = weakref.ref(x)
    call = relu.bind(x)
    del x
    gc.collect()
    assert alive() is not None
    call()
    assert call.out.sum() == np.arange(50_000, dtype=np.float32).sum()
    del call
    gc.collect()
    assert alive() is None


def test_a_bound_call_is_what_people_expect_of_a_function(relu: Operator) -> None:
    x = floats(-1, 2)
    call = relu.bind(x)
    assert type(call) is BoundCall and call.name == "relu"
    for arguments, keywords in (((x,), {}), ((), {"out": x}), ((), {"threads": 1})):
        refused(
            ArgumentTypeError,
            "relu: a bound call takes no arguments\nhint: write new numbers into call.inputs",
            functools.partial(call, *arguments, **keywords),
        )
    with pytest.raises(TypeError, match=r"cannot create 'relu_ops\.BoundCall' instances"):
        BoundCall()
    for name in ("name", "inputs", "out", "more"):
        with pytest.raises(AttributeError):
            setattr(call, name, None)


@pytest.mark.parametrize(
    "layout", ["every second", "backwards", "Fortran order", "read-only", "matrix", "subclass"]
)
def test_layouts_that_can_be_bound(relu: Operator, layout: str) -> None:
    x = draw(7 * 33).reshape(7, 33)
    call = relu.bind(LAYOUTS[layout](x))
    call()
    assert_same(call.out, expected_relu(x))


def test_what_would_have_to_be_copied_cannot_be_bound(relu: Operator, add: Operator) -> None:
    message = (
        "{}: {} cannot be bound as it lies in memory: it would have to be copied at every call"
        "\nhint: pass an aligned array of native byte order, apart from out"
    )
    x = draw(33)
    for layout in ("big-endian", "one byte off", "field of packed records"):
        given = LAYOUTS[layout](x)
        refused(ArgumentError, message.format("relu", "x"), lambda given=given: relu.bind(given))
    refused(ArgumentError, message.format("relu", "x"), lambda: relu.bind(x[1:], out=x[:-1]))
    refused(ArgumentError, message.format("add", "b"), lambda: add.bind(x, x[::-1], out=x))
    out = misaligned(x, 1)
    refused(
        ArgumentError,
        "relu: out for y is misaligned\nhint: pass an aligned array",
        lambda: relu.bind(x, out=out),
    )


def test_a_dlpack_object_that_would_be_copied_cannot_be_bound(relu: Operator) -> None:
    class Holder:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array
            self.__dlpack__ = array.__dlpack__
            self.__dlpack_device__ = array.__dlpack_device__

    memory = draw(34)
    call = relu.bind(Holder(memory))
    memory[:] = 7
    call()
    assert call.out.tolist() == [7] * 34
    with pytest.raises(ArgumentError, match="cannot be bound"):
        relu.bind(Holder(memory[1:]), out=memory[:-1])


# ---------------------------------------------------------------- what it says of itself


def test_attributes(three: Operator) -> None:
    assert three.name == "three"
    assert [(t.name, t.dtype, t.shape) for t in three.inputs] == [("x", "float32", ("N",))]
    assert [t.name for t in three.outputs] == ["y", "z", "w"]
    assert three.target == NATIVE and three.wanted_target == NATIVE
    assert [one.name for one in three.bundle.manifest.operators] == ["three"]
    assert three.inputs is three.inputs
    for name in ("name", "__name__", "target", "wanted_target", "bundle", "inputs", "more"):
        with pytest.raises(AttributeError):
            setattr(three, name, None)


def test_repr(relu: Operator) -> None:
    assert repr(relu) == f"<relu_ops.Operator relu(x: float32) -> (y: float32), target={NATIVE}>"
    op = parsed("g (float[N,3] a, int64 b) => (float[N,3] y) { y = Relu(a) }")
    shown = "g(a: float32[N, 3], b: int64[]) -> (y: float32[N, 3])"
    assert repr(op) == f"<relu_ops.Operator {shown}, target={NATIVE}>"


def test_it_has_the_name_of_a_function(three: Operator) -> None:
    assert three.__name__ == "three"


def test_signature(three: Operator) -> None:
    assert str(inspect.signature(three)) == "(x, /, *, out=None, threads=None)"
    op = parsed("g (float[N] out, float[N] b) => (float[N] y) { y = Add(out, b) }")
    assert str(inspect.signature(op)) == "(x0, x1, /, *, out=None, threads=None)"
    bound = inspect.signature(op).bind(1, 2, out=3)
    assert (bound.args, bound.kwargs) == ((1, 2), {"out": 3})


def test_help(three: Operator) -> None:
    shown = pydoc.plain(pydoc.render_doc(type(three)))
    assert shown.startswith("Python Library Documentation: class Operator in module relu_ops")
    for text in (
        "A compiled operator. Made by `relu_ops.load` and `relu_ops.compile`.",
        "bind(self, /, *inputs, out=None, threads=None, stream=None)",
        "Convert the arguments once; the returned call computes on them as often as wanted.",
        "ArgumentError: As for a call, or an array would have to be copied.",
    ):
        assert text in shown
    assert str(inspect.signature(three.bind)) == "(*inputs, out=None, threads=None, stream=None)"
    assert (inspect.getdoc(BoundCall) or "").startswith("A call with its arrays converted once: ")


def test_weak_references(relu: Operator) -> None:
    op = fresh(graphs.relu(), NATIVE)
    gone: list[Any] = []
    reference = weakref.ref(op, gone.append)
    kept = weakref.WeakKeyDictionary({op: 1})
    assert reference() is op and kept[op] == 1
    call = op.bind(floats(-1, 2))
    del op
    gc.collect()
    assert reference() is None and gone == [reference] and not kept
    call()  # it needs the operator no more
    assert call.out.tolist() == [0, 2]


def test_operators_differ(relu: Operator) -> None:
    other = fresh(graphs.relu(), NATIVE)
    assert relu == relu and relu != other
    assert {relu: 1, other: 2}[other] == 2


def test_an_operator_in_a_cycle_is_collected() -> None:
    class Marked(Operator):
        pass

    made = fresh(graphs.relu(), NATIVE)
    op = Marked(made.bundle.handle, None, NATIVE, made.bundle)
    op.itself = [op]  # type: ignore[attr-defined]
    reference = weakref.ref(op)
    del op
    gc.collect()
    assert reference() is None


# ---------------------------------------------------------------- subclasses


class Loud(Operator):
    """An operator that doubles what it gives, and remembers who asked."""

    def __new__(cls, op: Operator, note: str) -> Loud:
        made = Operator.__new__(cls, op.bundle.handle, op.name, op.wanted_target, op.bundle)
        made.note = note
        return made

    def __init__(self, op: Operator, note: str) -> None:
        self.calls = 0

    def __call__(self, *inputs: Any, out: Any = None, threads: int | None = None) -> Any:
        self.calls += 1
        y = super().__call__(*inputs, out=out, threads=threads)
        return np.multiply(y, 2, out=y)


class Plain(Operator):
    """Adds nothing."""


def test_a_subclass_is_an_operator(relu: Operator) -> None:
    loud = Loud(relu, "hello")
    x, out = floats(-1, 2, 3), np.empty(3, np.float32)
    assert loud(x).tolist() == [0, 4, 6]
    assert loud(x, out=out) is out and out.tolist() == [0, 4, 6]
    assert loud([1.0]).tolist() == [2]
    assert loud.calls == 3 and isinstance(loud, Operator) and loud.name == "relu"
    call = loud.bind(x)
    call()
    assert call.out.tolist() == [0, 2, 3]
    assert repr(loud) == repr(relu)


def test_a_subclass_that_adds_nothing_is_called_as_its_base(relu: Operator) -> None:
    plain = Plain(relu.bundle.handle, None, None, relu.bundle)
    x = draw(100)
    assert_same(plain(x), expected_relu(x))
    assert_same(plain(x.view(Named)), expected_relu(x))
    assert plain.wanted_target is None and plain.target == relu.target
    plain.note = 1  # type: ignore[attr-defined]
    reference = weakref.ref(plain)
    del plain
    gc.collect()
    assert reference() is None


def test_a_pickled_subclass_stays_one(relu: Operator) -> None:
    loud = Loud(relu, "hello")
    loud(floats(1))
    twin = pickle.loads(pickle.dumps(loud))
    assert type(twin) is Loud and (twin.note, twin.calls) == ("hello", 1)
    assert twin(floats(-1, 2)).tolist() == [0, 4]


# ---------------------------------------------------------------- copies and pickles


def test_copies_are_the_operator_itself(relu: Operator) -> None:
    assert copy.copy(relu) is relu
    assert copy.deepcopy([relu])[0] is relu


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(leaky: Operator, protocol: int) -> None:
    twin = pickle.loads(pickle.dumps(leaky, protocol))
    x = draw(100)
    assert same(twin(x), leaky(x)).all()
    assert repr(twin) == repr(leaky)
    assert twin.bundle.digest == leaky.bundle.digest
    assert twin.bundle.contents == leaky.bundle.contents


def test_a_pickle_needs_no_bundle_on_disk(tmp_path: Path) -> None:
    compiler.build(graphs.leaky_relu(alpha=0.5), [NATIVE], tmp_path / "a.bundle")
    op = dispatch.load(tmp_path / "a.bundle")
    pickled = pickle.dumps(op)
    shutil.rmtree(tmp_path / "a.bundle")
    assert op(floats(-1, 2)).tolist() == [-0.5, 2]
    again = pickle.dumps(op)
    for content in (pickled, again):
        twin = pickle.loads(content)
        assert twin(floats(-1, 2)).tolist() == [-0.5, 2]
        assert twin.bundle.path == tmp_path / "a.bundle"


def test_a_pickle_asks_for_the_target_that_was_asked_for(tmp_path: Path) -> None:
    """The best one of the machine where it is opened, unless somebody named one."""
    compiler.build(graphs.relu(), list(targets.runnable()), tmp_path / "a.bundle")
    plainest = targets.runnable()[0]
    for wanted, found in ((None, NATIVE), (plainest, plainest)):
        twin = pickle.loads(pickle.dumps(dispatch.load(tmp_path / "a.bundle", target=wanted)))
        assert (twin.wanted_target, twin.target) == (wanted, found)


def test_who_unpickles_heeds_what_was_measured(relu: Operator, tmp_path: Path) -> None:
    """As who loads: thresholds that `relu-ops tune` found on this machine."""
    found = tuning.Thresholds(1000, 2000, 3000)
    measured = tuning.Tuning(targets.this_machine().cpu, 2, "2026-11-28", found)
    (tmp_path / "tuning.json").write_text(tuning.encode(measured))
    (tmp_path / "op.pickle").write_bytes(pickle.dumps(relu))
    code = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    op = pickle.load(file)
from relu_ops.native import _python as native
print(native.get_settings())
"""
    variables = {"RELU_OPS_TUNING": str(tmp_path / "tuning.json"), "RELU_OPS_NUM_THREADS": "2"}
    done = children.run(code, tmp_path / "op.pickle", **variables)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{(2, *found)}\n"


def test_a_pickle_of_one_of_several_operators(tmp_path: Path) -> None:
    models = {"one": graphs.relu(), "two": graphs.leaky_relu(alpha=0.5)}
    compiler.build(models, [NATIVE], tmp_path / "a.bundle")
    twin = pickle.loads(pickle.dumps(dispatch.load(tmp_path / "a.bundle", name="two")))
    assert twin.name == "two" and twin(floats(-1, 2)).tolist() == [-0.5, 2]


def test_a_tampered_pickle_is_refused(leaky: Operator) -> None:
    rebuild, arguments = leaky.__reduce__()
    name = manifest.image_file(leaky.target)
    place = next(k for k, one in enumerate(arguments) if isinstance(one, dict))

    def rebuilt(contents: dict[str, bytes]) -> Operator:
        return rebuild(*arguments[:place], contents, *arguments[place + 1 :])

    contents = arguments[place]
    x = draw(100)
    assert same(rebuilt(contents)(x), leaky(x)).all()
    image = bytearray(contents[name])
    image[len(image) // 2] ^= 1
    with pytest.raises(BundleError, match=re.escape(name)):
        rebuilt({**contents, name: bytes(image)})
    with pytest.raises(BundleError, match="extra"):
        rebuilt({**contents, "extra.image": b""})
    with pytest.raises(BundleError, match=re.escape(name)):
        rebuilt({k: v for k, v in contents.items() if k != name})
    with pytest.raises(BundleError, match=bundle.SUMS):
        rebuilt({k: v for k, v in contents.items() if k != bundle.SUMS})
    pickled = bytearray(pickle.dumps(leaky))
    at = pickled.find(contents[name][200:240])
    pickled[at + 20] ^= 1
    with pytest.raises(BundleError):
        pickle.loads(bytes(pickled))


# ---------------------------------------------------------------- threads, forks, modes


_CONTROL_SOURCE = """
#include <xmmintrin.h>
unsigned get_control(void) { return _mm_getcsr(); }
void set_control(unsigned value) { _mm_setcsr(value); }
"""
_FLUSH_TO_ZERO, _DENORMALS_ARE_ZERO, _ROUND_UP, _STICKY = 0x8000, 0x0040, 0x4000, 0x3F


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Reads and sets the register that says how the processor treats floats."""
    command = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if command is None:
        pytest.skip("no C compiler to build the helper that sets MXCSR")
    folder = tmp_path_factory.mktemp("control")
    source = folder / "control.c"
    source.write_text(_CONTROL_SOURCE)
    library = folder / "control.so"
    arguments = [command, "-shared", "-fPIC", "-O1", str(source), "-o", str(library)]
    subprocess.run(arguments, check=True, timeout=60)
    loaded = ctypes.CDLL(str(library))
    loaded.get_control.restype = ctypes.c_uint
    loaded.set_control.argtypes = [ctypes.c_uint]
    return loaded


@pytest.mark.parametrize(
    "mode",
    [_FLUSH_TO_ZERO, _DENORMALS_ARE_ZERO, _FLUSH_TO_ZERO | _DENORMALS_ARE_ZERO, _ROUND_UP],
    ids=hex,
)
@pytest.mark.parametrize("path", ["fast", "careful", "bound", "threads"])
def test_the_callers_float_mode_changes_no_bit_and_stays(
    leaky: Operator, control: ctypes.CDLL, mode: int, path: str
) -> None:
    x = draw(500)
    expected, out = leaky(x), np.empty(500, np.float32)
    given = x.view(Named) if path == "careful" else x
    bound = leaky.bind(x, out=out)
    before = control.get_control()
    with settings(3, 0 if path == "threads" else NEVER, NEVER):
        control.set_control(before | mode)
        try:
            if path == "bound":
                bound()
            else:
                leaky(given, out=out)
            after = control.get_control()
        finally:
            control.set_control(before)
    assert (out.view(np.uint32) == expected.view(np.uint32)).all()
    assert (after & ~_STICKY) == ((before | mode) & ~_STICKY)


def test_threads_share_an_operator(leaky: Operator) -> None:
    inputs = [np.roll(draw(1000), k) for k in range(8)]
    expected = [leaky(x) for x in inputs]
    wrong: list[int] = []

    def work(k: int) -> None:
        out = np.empty(1000, np.float32)
        for _ in range(300):
            leaky(inputs[k], out=out)
            careful = leaky(inputs[k].view(Named))
            if not (same(out, expected[k]).all() and same(careful, expected[k]).all()):
                wrong.append(k)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)
    assert not wrong


def hammer(relu: Operator, seconds: float) -> None:
    """Calls in a row that are split into different numbers of chunks."""
    outs = [np.empty(count, np.float32) for count in (2, 3, 5, 16, 40)]
    calls = [relu.bind(np.full(len(out), -1, np.float32), out=out) for out in outs]
    with settings(4, 0, NEVER):
        stop = time.monotonic() + seconds
        while time.monotonic() < stop:
            for out, call in zip(outs, calls, strict=True):
                out.fill(42)
                call()
                assert not out.any()


def test_workers_late_for_one_call_do_no_harm_to_the_next(relu: Operator) -> None:
    hammer(relu, seconds=1)


@pytest.mark.exhaustive
def test_workers_late_for_one_call_do_no_harm_to_the_next_for_a_minute(relu: Operator) -> None:
    hammer(relu, seconds=60)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_fork_after_use(leaky: Operator) -> None:
    x = draw(1000)
    expected = leaky(x)
    for _ in range(5):
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            right = same(leaky(x), expected).all() and same(leaky(x[::-1])[::-1], expected).all()
            os._exit(0 if right else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("columns", [3, 30_000])
def test_an_output_with_elements_in_one_place_is_refused(relu: Operator, columns: int) -> None:
    out = np.lib.stride_tricks.as_strided(np.zeros(columns, np.float32), (4, columns), (0, 4))
    before = out.copy()
    with pytest.raises(ArgumentError, match="has several elements in one place"):
        relu(np.ones((4, columns), np.float32), out=out)
    assert (out == before).all()
