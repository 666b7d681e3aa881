"""The two ways of a call: the native one, and the careful one that it leaves the rest to.

Both give the same bits. What goes which way is part of what an operator promises: the first takes
tens of nanoseconds, the second tens of microseconds.
"""

from __future__ import annotations

import functools
import gc
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx.parser
import pytest
from cases import NEVER, compiled, fresh, same_bits, settings

from relu_ops import graphs
from relu_ops.errors import ArgumentError, ArgumentTypeError
from relu_ops.runtime import operator as careful_way
from relu_ops.runtime.operator import Operator

DTYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int8, np.int64)

FEW_ELEMENTS = 8192
"""Calls of so few keep the GIL (native/python_call.c)."""

MOST_FAST = 8
"""So many arrays go the native way (native/python.h)."""


def parsed(text: str) -> Operator:
    return fresh(
        onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 18]>\n{text}'), "native"
    )


def relu_of(dtype: Any) -> Operator:
    return compiled(graphs.relu(dtype=np.dtype(dtype).name), "native")


@pytest.fixture(scope="module", params=DTYPES, ids=lambda d: np.dtype(d).name)
def relu(request: pytest.FixtureRequest) -> Operator:
    return relu_of(request.param)


def arrays(relu: Operator) -> list[np.ndarray]:
    name = relu.inputs[0].dtype
    x = np.arange(-60, 60).astype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
    large = np.tile(x, 200)
    shaped = x.reshape(2, 3, 4, 5)
    return [
        x,
        x[::-1],
        x[::7],
        shaped,
        shaped.T,
        shaped[:, 1:, ::2],
        np.broadcast_to(x[:5], (4, 5)),
        x[:0],
        x[:0].reshape(3, 0, 2).T,
        x[5:6].reshape(()),
        x.reshape((1,) * 13 + (2, 3, 20)),
        large,
        large[::3],
    ]


# ---------------------------------------------------------------- the same both ways


def test_both_ways_give_the_same(relu: Operator, careful: list[Operator]) -> None:
    for x in arrays(relu):
        for keywords in ({}, {"threads": 1}, {"threads": 3}, {"out": None, "threads": None}):
            out = np.full(x.shape, 9, x.dtype)
            assert relu(x, **{**keywords, "out": out}) is out
            made = relu(x, **keywords)
            assert not careful
            assert same_bits(made, out)
            apart = careful_way.careful_call(relu, (x,), keywords)
            assert careful.pop() is relu and same_bits(apart, out)
            assert apart.strides == made.strides or x.size < 2
            assert type(made) is np.ndarray and made.flags.owndata and made.flags.writeable


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda x: x[:, ::-1], lambda x: x[::2]])
def test_both_ways_lay_a_result_out_alike(layout: Callable[[np.ndarray], np.ndarray]) -> None:
    """As the first input lies, where that has the shape of the output."""
    op = compiled(graphs.maxout(2), "native")
    x = layout(np.arange(24, dtype=np.float32).reshape(6, 4))
    for inputs in ((x, x), (x, np.float32(2) + np.zeros(4, np.float32)), (x[:1], x)):
        made = op(*inputs)
        apart = careful_way.careful_call(op, inputs, {})
        assert same_bits(made, apart) and made.strides == apart.strides


# ---------------------------------------------------------------- what goes which way


def test_what_the_native_way_takes(careful: list[Operator]) -> None:
    relu = relu_of(np.float32)
    x = np.arange(-6, 6, dtype=np.float32)
    frozen = x.copy()
    frozen.flags.writeable = False
    for given in (
        x,
        frozen,
        x[::-2],
        x.reshape(3, 4).T,
        np.broadcast_to(x, (3, 12)),
        np.broadcast_to(np.float32(-1), (5, 5)),
        np.lib.stride_tricks.sliding_window_view(x, 3),
        x[:0],
        x[0:1].reshape(()),
        np.ones((1,) * 16, np.float32),
        np.frombuffer(bytes(16), np.float32),
    ):
        assert same_bits(relu(given), np.maximum(given, 0) + np.float32(0))
        out = np.empty_like(given)
        assert relu(given, out=out, threads=2) is out
        name = "".join(["o", "ut"])  # the same text, of another object
        assert relu(given, **{name: out, "".join(["thr", "eads"]): 1}) is out
    assert relu(x[3:], out=x[3:]).base is x  # in place
    assert not careful


def test_it_takes_every_name_of_a_dtype(careful: list[Operator]) -> None:
    """C has two names for the integers of 64 bits, and NumPy a number for each."""
    for dtype, codes in (("int64", "lq"), ("int32", "i"), ("int16", "h"), ("int8", "b")):
        op = relu_of(dtype)
        for code in codes:
            x = np.array([-1, 2], code)
            assert x.dtype == dtype
            assert same_bits(op(x), np.array([0, 2], dtype))
            assert same_bits(op(x, out=np.empty(2, code)), np.array([0, 2], code))
    ints = parsed("g (uint64[N] a, bool[N] b) => (uint64[N] y, bool[N] z) { y=Max(a) z=Not(b) }")
    for code in "LQ":
        y, z = ints(np.array([1, 2], code), np.array([True, False]))
        assert (y.tolist(), z.tolist()) == ([1, 2], [False, True])
    assert not careful


def test_it_takes_several_outputs(careful: list[Operator]) -> None:
    op = parsed("g (float[N] x) => (float[N] y, float[N] z) { y = Relu(x)  z = Neg(x) }")
    x = np.array([-1, 2], np.float32)
    outs = (np.empty(2, np.float32), np.empty(2, np.float32))
    assert op(x, out=outs) is outs
    for y, z in (outs, op(x)):
        assert (y.tolist(), z.tolist()) == ([0, 2], [1, -2])
    assert not careful
    assert op(x, out=list(outs))[0] is outs[0] and len(careful) == 1


@pytest.mark.parametrize("count", [MOST_FAST - 1, MOST_FAST, 40])
def test_it_takes_so_many_arrays(count: int, careful: list[Operator]) -> None:
    names = [f"x{k}" for k in range(count)]
    declared = ", ".join(f"float[N] {name}" for name in names)
    op = parsed(f"g ({declared}) => (float[N] y) {{ y = Max({', '.join(names)}) }}")
    inputs = [np.full(3, k, np.float32) for k in range(count)]
    assert op(*inputs).tolist() == [count - 1] * 3
    assert len(careful) == (count >= MOST_FAST)
    with pytest.raises(
        ArgumentTypeError, match=rf"^g takes {count} inputs \(x0, x1, .*, not 1\nhint: "
    ):
        op(inputs[0])


def misaligned(count: int) -> np.ndarray:
    return np.zeros(4 * count + 1, np.uint8)[1:].view(np.float32)


class Named(np.ndarray):
    """A subclass of arrays."""


def test_what_the_careful_way_converts(careful: list[Operator]) -> None:
    relu = relu_of(np.float32)
    x = np.arange(-4, 4, dtype=np.float32)
    odd, records = misaligned(8), np.zeros(8, [("a", "u1"), ("x", "f4")])
    odd[...] = records["x"][...] = x
    for given in (
        x.tolist(),
        tuple(x.tolist()),
        x.astype(">f4"),
        x.view(Named),
        np.ma.masked_array(x),
        odd,
        records["x"],
        memoryview(x),
        list(map(np.float32, x)),
    ):
        assert same_bits(relu(given), np.maximum(x, 0))
        assert careful.pop() is relu and not careful
    for out in (
        misaligned(8),
        np.empty(8, np.float32).view(Named),
        np.zeros(8, records.dtype)["x"],
    ):
        assert relu(x, out=out) is out
        assert np.array_equal(out, np.maximum(x, 0))
        assert careful.pop() is relu and not careful
    whole = np.arange(-5, 4, dtype=np.float32)
    relu(whole[:-1], out=whole[1:])  # overlaps in part: as if it were copied
    assert whole.tolist() == [-5, 0, 0, 0, 0, 0, 0, 1, 2] and careful.pop() is relu
    assert relu(x, threads=np.int64(2)).tolist() == np.maximum(x, 0).tolist()
    assert careful.pop() is relu
    assert relu(x, out=(out := np.empty_like(x),)) is out and careful.pop() is relu


def test_what_the_careful_way_refuses(careful: list[Operator]) -> None:
    relu = relu_of(np.float32)
    x = np.ones(8, np.float32)
    frozen = x.copy()
    frozen.flags.writeable = False
    for inputs, out in (
        ((x,), [0.0] * 8),
        ((x, x), x.copy()),
        ((), x.copy()),
        (("x",), x.copy()),
        ((None,), None),
        ((x.astype(np.float64),), x.copy()),
        ((x.astype(np.float64),), None),
        ((x.astype(np.longdouble),), x.copy()),
        ((x.view(np.int32),), x.copy()),
        ((np.zeros(8, "M8[s]"),), x.copy()),
        ((np.array([None] * 8),), x.copy()),
        ((np.ones((1,) * 17, np.float32),), None),
        ((x,), frozen),
        ((x,), x.astype(">f4")),
        ((x,), x.astype(np.float16)),
        ((x,), np.empty(7, np.float32)),
        ((x,), np.empty((8, 1), np.float32)),
        ((x,), np.lib.stride_tricks.as_strided(x.copy(), (8,), (0,))),
    ):
        before = None if not isinstance(out, np.ndarray) else out.tobytes()
        with pytest.raises((ArgumentError, ArgumentTypeError)) as caught:
            relu(*inputs, out=out)
        assert careful.pop() is relu and not careful
        assert str(caught.value).startswith("relu")
        assert caught.value.__context__ is None  # of what the native way tried, nothing is left
        assert before is None or out.tobytes() == before


# ---------------------------------------------------------------- keywords

KEYWORDS = (
    "relu got an unexpected keyword argument {!r}: it takes out and threads\n"
    "hint: pass inputs by position"
)


@pytest.mark.parametrize(
    ("keywords", "kind", "message"),
    [
        ({"x": 1}, ArgumentTypeError, KEYWORDS.format("x")),
        ({"Out": 1}, ArgumentTypeError, KEYWORDS.format("Out")),
        ({"out": None, "more": 1}, ArgumentTypeError, KEYWORDS.format("more")),
        ({"threads": 0}, ArgumentError, "threads must be 1 to 256 (not 0)"),
        ({"threads": 257}, ArgumentError, "threads must be 1 to 256 (not 257)"),
        ({"threads": -1}, ArgumentError, "threads must be 1 to 256 (not -1)"),
        ({"threads": 2**70}, ArgumentError, f"threads must be 1 to 256 (not {2**70})"),
        ({"threads": True}, ArgumentTypeError, "threads must be an int or None (not bool)"),
        ({"threads": 1.0}, ArgumentTypeError, "threads must be an int or None (not float)"),
        ({"threads": "1"}, ArgumentTypeError, "threads must be an int or None (not str)"),
    ],
    ids=str,
)
def test_wrong_keywords(keywords: dict[str, Any], kind: type[Exception], message: str) -> None:
    relu = relu_of(np.float32)
    x = np.ones(3, np.float32)
    for call in (relu, relu.bind):
        with pytest.raises(kind, match=f"^{re.escape(message)}(\nhint: .*)?$") as caught:
            call(x, **keywords)
        assert caught.value.__context__ is None and caught.value.hint


def test_the_most_and_the_least_threads() -> None:
    relu = relu_of(np.float32)
    x = np.arange(-50_000, 50_000, dtype=np.float32)
    with settings(2, 0, NEVER):
        for threads in (1, 2, 256):
            assert same_bits(relu(x, threads=threads), np.maximum(x, 0))


# ---------------------------------------------------------------- what a call holds


def counted(things: tuple[Any, ...]) -> list[int]:
    return [sys.getrefcount(thing) for thing in things]


@pytest.mark.parametrize("size", [8, 2 * FEW_ELEMENTS])
def test_it_keeps_the_number_of_references(size: int) -> None:
    relu = relu_of(np.float32)
    x = np.ones(size, np.float32)
    y, strided, foreign = np.empty_like(x), np.ones(2 * size, np.float32)[::2], x.astype(">f4")
    short = np.empty(3, np.float32)
    keywords, outs = {"out": y, "threads": 2}, (y,)
    watched = (relu, x, y, strided, foreign, short, keywords, outs, x.dtype)
    others_use_too = (*keywords, None)

    def call() -> None:
        relu(x)
        relu(strided)
        relu(foreign)
        relu(x, out=y)
        relu(x, out=outs)
        relu(x, **keywords)
        relu.bind(x, **keywords)()
        for wrong in (lambda: relu(x, out=short), lambda: relu(), lambda: relu(x, threads=999)):
            with pytest.raises((ArgumentError, ArgumentTypeError)):
                wrong()

    call()
    gc.collect()
    before, roughly = counted(watched), counted(others_use_too)
    for _ in range(100):
        call()
    gc.collect()
    assert counted(watched) == before
    assert all(abs(a - b) < 50 for a, b in zip(counted(others_use_too), roughly, strict=True))


def test_several_outputs_keep_the_number_of_references() -> None:
    op = parsed("g (float[N] x) => (float[N] y, float[N] z) { y = Relu(x)  z = Neg(x) }")
    x = np.ones(8, np.float32)
    outs = (np.empty(8, np.float32), np.empty(8, np.float32))
    wrong = (outs[0], np.empty(7, np.float32))
    watched = (op, x, outs, *outs, wrong, wrong[1], x.dtype)
    before = counted(watched)
    for _ in range(100):
        op(x)
        op(x, out=outs)
        with pytest.raises(ArgumentError):
            op(x, out=wrong)
    assert counted(watched) == before


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_a_bound_call_lets_go_of_its_memory() -> None:
    relu = relu_of(np.float32)
    x = np.ones((2, 3, 4), np.float32)[:, ::2]
    y = np.empty_like(x)
    before, watched = resident_bytes(), counted((relu, x, y))
    for _ in range(100_000):
        call = relu.bound((x, y), 0, (x,), y)
        call()
    assert counted((x, y)) > watched[1:]
    del call
    assert counted((relu, x, y)) == watched
    assert resident_bytes() - before < 20 << 20  # a plan has 600 bytes and more


def test_what_cannot_be_bound() -> None:
    relu = relu_of(np.float32)
    x = np.ones(8, np.float32)
    for arrays, kind in (
        ((x,), TypeError),
        ([x, x], TypeError),
        ((x, None), TypeError),
        ((x, x.astype(np.float64)), TypeError),
        ((x, np.ones(7, np.float32)), ArgumentError),
        ((x, x[::-1]), ArgumentError),
    ):
        watched = counted((x, relu))
        for call in (
            lambda given=arrays: relu.bound(given, 0, (x,), x),
            lambda given=arrays: relu.compute(given),
        ):
            with pytest.raises(kind):
                call()
        assert counted((x, relu)) == watched
    with pytest.raises(ArgumentError, match="threads must be 1 to 256"):
        relu.bound((x, x.copy()), 257, (x,), x)


# ---------------------------------------------------------------- the GIL


def called(relu: Operator, x: np.ndarray, way: str) -> Callable[[], Any]:
    out = np.empty_like(x)
    return {
        "new": functools.partial(relu, x),
        "out": functools.partial(relu, x, out=out),
        "bound": relu.bind(x, out=out),
        "careful": functools.partial(relu.compute, (x, out)),
    }[way]


@pytest.mark.parametrize("way", ["new", "out", "bound", "careful"])
@pytest.mark.parametrize(
    ("size", "released"), [(8, False), (FEW_ELEMENTS, False), (FEW_ELEMENTS + 1, True)]
)
def test_others_run_meanwhile(size: int, released: bool, way: str) -> None:
    """With so long a turn, another thread gets one only from who gives up his own."""
    call = called(relu_of(np.float32), np.ones(size, np.float32), way)
    turns, stop = [0], threading.Event()

    def count() -> None:
        while not stop.is_set():
            turns[0] += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    thread = threading.Thread(target=count)
    thread.start()
    try:
        sys.setswitchinterval(1000)
        before, calls, limit = turns[0], 0, time.monotonic() + 30
        while turns[0] == before and (calls < 2000 or (released and time.monotonic() < limit)):
            call()
            calls += 1
        assert (turns[0] > before) == released
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()
