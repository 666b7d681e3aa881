"""Calls by Python's own convention: results and refusals as by tvm-ffi's, off where not safe."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest
from cases import compiled, same_bits

from relu_ops import graphs
from relu_ops.errors import ArgumentError, ArgumentTypeError
from relu_ops.runtime import arrays as conversions
from relu_ops.runtime import headers, library, threads
from relu_ops.runtime.operator import Operator

DTYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int8, np.int64)


def operator(dtype: type) -> Operator:
    return compiled(graphs.relu(dtype=np.dtype(dtype).name), "native")


@pytest.fixture(scope="module", params=DTYPES, ids=lambda d: np.dtype(d).name)
def relu(request: pytest.FixtureRequest) -> Operator:
    return operator(request.param)


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(headers, "array_type", lambda: 0)
        library.configure_all(threads.settings())
        yield
    library.configure_all(threads.settings())


def arrays(relu: Operator) -> list[np.ndarray]:
    dtype = ml_dtypes.bfloat16 if relu.inputs[0].dtype == "bfloat16" else relu.inputs[0].dtype
    x = np.arange(-60, 60).astype(dtype)
    large = np.tile(x, 200)
    shaped = x.reshape(2, 3, 4, 5)
    return [
        x,
        x[::-1],
        x[::7],
        shaped,
        shaped.T,
        shaped[:, 1:, ::2],
        x[:0],
        x[5],
        large,
        large[::3],
    ]


def results(relu: Operator) -> list[np.ndarray]:
    found = []
    for x in arrays(relu):
        x = np.asarray(x)
        out = np.full(x.shape, 9, x.dtype)
        assert relu(x, out=out) is out
        assert same_bits(relu(x), out)
        found.append(out)
    return found


def test_it_is_on_here() -> None:
    assert headers.array_type() == id(np.ndarray)


def test_the_same_with_and_without(relu: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = results(relu)
    monkeypatch.setattr(headers, "array_type", lambda: 0)
    library.configure_all(threads.settings())
    try:
        x = arrays(relu)[0]
        inputs, out = (x,), x.copy()
        assert relu._compute(inputs, out) is None
        for a, b in zip(taken, results(relu), strict=True):
            assert same_bits(a, b)
    finally:
        monkeypatch.undo()
        library.configure_all(threads.settings())


def test_what_it_takes(relu: Operator) -> None:
    few, many = arrays(relu)[0], arrays(relu)[-2]
    assert few.size < library.FEW_ELEMENTS < many.size
    for x in (few, many):
        for count in ((), (1,), (3,)):
            out = np.ones_like(x)
            assert relu._compute((x,), out, *count) is out
            assert same_bits(out, relu._careful_call((x,), None, None))


def test_the_items_of_a_tuple_may_begin_elsewhere(
    relu: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told that they begin one item later, an operator takes the second one for the first."""
    x = arrays(relu)[0]
    one_later = tuple.__basicsize__ + object.__basicsize__ // 2
    with monkeypatch.context() as patch:
        patch.setattr(headers, "_items_at", lambda: one_later)
        library.configure_all(threads.settings())
        try:
            # The count says one item, and the tuple has a second behind it.
            inputs, out = (None, x), np.ones_like(x)
            count = headers._Tuple.from_address(id(inputs))
            count.count = 1
            try:
                done = relu._compute(inputs, out)
            finally:
                count.count = 2
        finally:
            patch.undo()
            library.configure_all(threads.settings())
    assert done is out
    assert same_bits(out, relu(x))


def test_it_keeps_the_number_of_references() -> None:
    relu = operator(np.float32)
    for size in (8, 2 * library.FEW_ELEMENTS):
        x = np.ones(size, np.float32)
        y, inputs = np.empty_like(x), (x,)
        watched = (x, y, inputs)
        before = [sys.getrefcount(thing) for thing in watched]
        for _ in range(100):
            relu._compute(inputs, y)
            relu._compute(inputs, None)
            relu(x, out=y)
        assert [sys.getrefcount(thing) for thing in watched] == before


def test_what_it_leaves_to_others() -> None:
    relu = operator(np.float32)
    x = np.ones(8, np.float32)
    raw = np.zeros(33, np.uint8)
    misaligned = raw[1:33].view(np.float32)
    frozen = x.copy()
    frozen.flags.writeable = False
    subclass = np.ma.masked_array(x)
    for given, out in (
        ((x,), None),
        ((x,), [0.0] * 8),
        ((x, x), x.copy()),
        ((), x.copy()),
        (("x",), x.copy()),
        ((x.astype(">f4"),), x.copy()),
        ((x.astype(np.float64),), x.copy()),
        ((x.astype(np.longdouble),), x.copy()),
        ((np.zeros(8, "M8[s]"),), x.copy()),
        ((np.array([None] * 8),), x.copy()),
        ((misaligned,), x.copy()),
        ((subclass,), x.copy()),
        ((x,), frozen),
        ((x,), misaligned),
        ((x,), np.empty(7, np.float32)),
    ):
        assert relu._compute(given, out) is None
    assert (relu(misaligned) == 0).all() and (relu(subclass) == 1).all()
    with pytest.raises(ArgumentError, match="out for y is read-only"):
        relu(x, out=frozen)
    with pytest.raises(ArgumentTypeError, match=r"x.dtype must be float32 \(not float64\)"):
        relu(x.astype(np.float64), out=x)


def described(relu: Operator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return conversions.describe([x, y], relu._dtypes)


def test_a_bound_function(relu: Operator) -> None:
    for x in arrays(relu):
        x = np.asarray(x)
        for count in ((), (1,), (2,)):
            y, z = np.ones_like(x), np.ones_like(x)
            call = relu._library.bound(described(relu, x, y).ctypes.data, *count)
            other = relu._library.bind_views(described(relu, x, z).ctypes.data, *count)
            for _ in range(2):
                assert call() is None and other() is None
                assert same_bits(y, z) and same_bits(y, relu(x))
            with pytest.raises(TypeError, match="takes no arguments"):
                call(1)


def test_what_cannot_be_bound() -> None:
    relu = operator(np.float32)
    x = np.ones(8, np.float32)
    fits = described(relu, x, x.copy()).ctypes.data
    wrong = described(relu, x, np.ones(7, np.float32)).ctypes.data
    for arguments in ((), (fits, 257), (fits, -1), (fits, 1, 1), (wrong,)):
        assert relu._library.bound(*arguments) is None
        with pytest.raises((TypeError, ValueError)):
            relu._library.bind_views(*arguments)


def test_a_bound_function_lets_go_of_its_memory() -> None:
    relu = operator(np.float32)
    x = np.ones((2, 3, 4), np.float32)[:, ::2]
    description = described(relu, x, np.empty_like(x))
    none = sys.getrefcount(None)
    before = resident_bytes()
    for _ in range(100_000):
        call = relu._library.bound(description.ctypes.data)
        call()
    assert sys.getrefcount(None) - none < 1000
    del call
    gc.collect()
    assert resident_bytes() - before < 20 << 20  # a plan has 600 bytes and more


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.parametrize(("size", "released"), [(8, False), (4 * library.FEW_ELEMENTS, True)])
def test_others_run_meanwhile(size: int, released: bool) -> None:
    """With so long a turn, another thread gets one only from who gives up his own."""
    relu = operator(np.float32)
    call = relu.bind(np.ones(size, np.float32))
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
        before = turns[0]
        for _ in range(2000):
            call()
        assert (turns[0] > before) == released
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        thread.join()


def test_off_without_the_gil(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    assert not headers._are_readable()


def test_off_where_a_field_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert headers._are_readable()
    monkeypatch.setitem(headers._TYPE_NUMBERS, "float32", 12)
    assert not headers._are_readable()
    monkeypatch.undo()
    for name in ("rank", "shape", "byte_strides", "flags", "data"):
        fields = [(n, k) for n, k in headers._Array._fields_]
        at = [n for n, _ in fields].index(name)
        other = (at + 1) % len(fields)
        swapped = fields.copy()
        swapped[at], swapped[other] = fields[other], fields[at]
        layout = type("_Array", (headers.ctypes.Structure,), {"_fields_": tuple(swapped)})
        monkeypatch.setattr(headers, "_Array", layout)
        assert not headers._are_readable(), name
        monkeypatch.undo()
