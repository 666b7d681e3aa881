"""More elements, and larger distances between them, than a 32-bit number can say."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
from cases import TARGETS, compiled

from relu_ops import graphs

CHUNK = 2**26
COUNTS = (2**31 - 1, 2**31, 2**31 + 1, 2**32 + 1)


def available_bytes() -> int:
    fields = Path("/proc/meminfo").read_text().split()
    return int(fields[fields.index("MemAvailable:") + 1]) * 1024


def need(size: int) -> None:
    if available_bytes() < size + 2**30:
        pytest.skip(f"needs {size / 2**30:.1f} GiB of memory and one to spare")


def sparse(size: int) -> np.ndarray:
    """Memory that takes room only where it is written."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    return np.frombuffer(mmap.mmap(-1, size, flags=flags), np.int8)


@pytest.mark.parametrize("step", [2**19, -(2**20), 2**22 + 1])
@pytest.mark.parametrize("target", TARGETS)
def test_elements_far_apart(target: str, step: int) -> None:
    """Both arrays span more than 2**32 bytes, and touch few of them."""
    op = compiled(graphs.relu("int8"), target)
    count = 2**32 // abs(step) + 3
    memories = [sparse(abs(step) * count) for _ in range(2)]
    x, y = (memory[::step] for memory in memories)
    x[...] = np.arange(count).astype(np.int8)
    op(x, out=y)
    assert (y == np.maximum(x, 0)).all()
    assert y.strides == (step,) and abs(step) * (count - 1) > 2**32
    grid = np.lib.stride_tricks.as_strided(memories[0], (3, 5), (2**31 + 7, 2**10))
    grid[...] = np.arange(-7, 8).reshape(3, 5)
    assert (op(grid) == np.maximum(grid, 0)).all()


def fill(x: np.ndarray) -> None:
    pattern = np.random.default_rng(0).integers(-128, 128, CHUNK - 3).astype(np.int8)
    for start in range(0, len(x), len(pattern)):
        part = x[start : start + len(pattern)]
        part[...] = pattern[: len(part)]


def assert_relu(y: np.ndarray, x: np.ndarray) -> None:
    for start in range(0, len(x), CHUNK):
        part = slice(start, start + CHUNK)
        assert np.array_equal(y[part], np.maximum(x[part], 0)), f"wrong from {start} on"


@pytest.mark.exhaustive
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("count", COUNTS)
def test_more_elements_than_32_bits_count(count: int, target: str) -> None:
    need(2 * count)
    op = compiled(graphs.relu("int8"), target)
    x = np.empty(count, np.int8)
    fill(x)
    y = np.full(count + 2, 42, np.int8)
    op(x, out=y[1:-1])
    assert_relu(y[1:-1], x)
    assert y[0] == y[-1] == 42
    y[1:-1] = x
    op(y[1:-1], out=y[1:-1])  # in place
    assert_relu(y[1:-1], x)
    assert y[0] == y[-1] == 42


@pytest.mark.exhaustive
@pytest.mark.parametrize("target", TARGETS)
def test_more_elements_than_32_bits_count_by_broadcasting(target: str) -> None:
    rows, columns = 2**17 + 1, 2**15 + 1
    need(rows * columns)
    op = compiled(graphs.maxout(2, dtype="int8"), target)
    column = np.arange(rows).astype(np.int8)[:, None]
    row = np.arange(columns).astype(np.int8)
    y = op(column, row)
    assert y.size > 2**32
    for start in range(0, rows, 2048):
        part = slice(start, start + 2048)
        assert np.array_equal(y[part], np.maximum(column[part], row))
