"""Memory of large outputs: recycled when the last view dies, never while one lives."""

from __future__ import annotations

import gc
import mmap
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from cases import TARGETS, compiled

from relu_ops import graphs
from relu_ops.errors import ArgumentError
from relu_ops.runtime import arrays, memory
from relu_ops.runtime.operator import Operator

LARGE = memory.LEAST_BYTES // 4
F32 = np.dtype(np.float32)


@pytest.fixture(autouse=True)
def nothing_free() -> Iterator[None]:
    memory._free.clear()
    yield
    memory._free.clear()


@pytest.fixture(scope="module")
def relu() -> Operator:
    return compiled(graphs.relu(), TARGETS[-1])


def test_a_block_comes_back_when_the_array_dies() -> None:
    array = memory.empty((LARGE,), F32)
    address = array.ctypes.data
    other = memory.empty((LARGE,), F32)
    assert other.ctypes.data != address
    del array
    assert memory.empty((LARGE,), F32).ctypes.data == address


@pytest.mark.parametrize("view", [lambda a: a[5:7], lambda a: a.T, memoryview, lambda a: [a]])
def test_a_view_keeps_the_block(view: object) -> None:
    array = memory.empty((2, LARGE), F32)
    array[...] = 7
    kept = view(array)  # type: ignore[operator]
    del array
    gc.collect()
    assert not memory._free
    memory.empty((2, LARGE), F32)[...] = 9
    assert (np.asarray(kept) == 7).all()
    del kept
    gc.collect()
    assert len(memory._free) == 2


def test_it_is_an_ordinary_array() -> None:
    for order in "CF":
        array = memory.empty((3, LARGE), F32, order)
        flags = array.flags
        assert flags.writeable and flags.aligned and flags[f"{order}_CONTIGUOUS"]
        assert array.shape == (3, LARGE) and array.dtype == F32
        assert array.ctypes.data % memory._HUGE_PAGE == 0
    assert memory.empty((3,), F32).base is None


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_an_output_lies_as_the_first_input_does(dtype: type) -> None:
    """Of a large array, and of a small one, which the native way makes."""
    for rows in (5, LARGE):
        columns = np.zeros((rows, 2), np.float32, "F")
        like = arrays._empty_like(columns, columns.shape, np.dtype(dtype))
        assert like.flags.f_contiguous and like.dtype == dtype
        stepped = np.zeros((rows, 4), np.float32)[:, ::2]
        assert arrays._empty_like(stepped, stepped.shape, F32).shape == stepped.shape
        other = arrays._empty_like(columns, (2, rows), np.dtype(dtype))
        assert other.shape == (2, rows) and other.flags.c_contiguous


def test_large_outputs_are_recycled(relu: Operator) -> None:
    """In every memory order: the native way leaves them to this module."""
    x = np.ones((2, LARGE), np.float32)
    for given in (x, np.asfortranarray(x)):
        y = relu(given)
        address = y.ctypes.data
        assert y.flags.c_contiguous == given.flags.c_contiguous
        assert not memory._free
        del y
        assert len(memory._free) == 1
        assert relu(given).ctypes.data == address
    small = np.ones(LARGE - 1, np.float32)
    memory._free.clear()
    relu(small)
    assert not memory._free


def test_a_sandbox_that_refuses_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said, and blocks are recycled all the same: the system keeps them."""

    class Unadvised(mmap.mmap):
        def madvise(self, *advice: int) -> None:
            refusals.append(advice)
            raise PermissionError(1, "Operation not permitted")

    refusals: list[object] = []
    unraised: list[object] = []
    monkeypatch.setattr(mmap, "mmap", Unadvised)
    monkeypatch.setattr(sys, "unraisablehook", unraised.append)
    address = memory.empty((LARGE,), F32).ctypes.data
    assert memory.empty((LARGE,), F32).ctypes.data == address
    assert len(refusals) >= 2 and not unraised


def test_what_is_kept_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MOST_FREE_BYTES", 4 * memory.LEAST_BYTES)
    arrays = [memory.empty((LARGE,), F32) for _ in range(8)]
    arrays.append(memory.empty((8 * LARGE,), F32))
    arrays.clear()
    assert 0 < sum(map(len, memory._free)) <= 4 * memory.LEAST_BYTES
    assert not memory._in_use


def test_results_stay_apart(relu: Operator) -> None:
    x = np.arange(-LARGE, LARGE, dtype=np.float32)
    first = relu(x)
    second = relu(-x)
    assert not np.may_share_memory(first, second)
    assert (first == np.maximum(x, 0)).all() and (second == np.maximum(-x, 0)).all()


def test_threads_take_and_give_back_at_once(relu: Operator) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        x = np.full(LARGE + 1024 * (number % 2), number, np.float32)
        for _ in range(4):
            if not (relu(x) == number).all():
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(1, 9)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong and not memory._in_use


def test_the_number_of_threads_of_one_call(relu: Operator) -> None:
    x = np.linspace(-1, 1, LARGE, dtype=np.float32)
    out, expected = np.empty_like(x), np.maximum(x, 0)
    for threads in (1, 2, 5, 256):
        out.fill(9)
        assert relu(x, out=out, threads=threads) is out
        assert (out == expected).all()
        out.fill(9)
        relu.bind(x, out=out, threads=threads)()
        assert (out == expected).all()
    for wrong in (0, 257, -1):
        with pytest.raises(ValueError, match=rf"threads must be 1 to 256 \(not {wrong}\)"):
            relu(x, threads=wrong)
        with pytest.raises(ValueError, match="threads must be 1 to 256"):
            relu.bind(x, threads=wrong)
    with pytest.raises(TypeError, match=r"threads must be an int or None \(not float\)"):
        relu(x, threads=1.0)  # type: ignore[arg-type]


def test_no_room_is_said_as_numpy_says_it() -> None:
    for shape, error in (((1 << 45,), MemoryError), ((1 << 31, 1 << 31), ValueError)):
        with pytest.raises(error):
            memory.empty(shape, F32)
    assert not memory._in_use


def test_inputs_that_broadcast_beyond_all_memory() -> None:
    add = compiled(graphs.add_relu(), TARGETS[-1])
    for extent, error in ((1 << 22, MemoryError), (1 << 31, ArgumentError)):
        a = np.broadcast_to(np.float32(1), (extent, 1))
        b = np.broadcast_to(np.float32(1), (1, extent))
        with pytest.raises(error):
            add(a, b)
