"""Memory for large outputs: taken again once the last one is gone.

A fresh large array costs the system a page fault every few KiB, more than the arithmetic (relu
float32 on 16M elements: 6.8 ms into a fresh array, 2.8 into a used one; AMD EPYC, Zen 4, 2 threads,
2026-11-21). So the blocks of large outputs are kept for the next ones: few, in huge pages, and
given up to the system (MADV_FREE) while nobody uses them, so that it takes them back as soon as it
needs memory.
"""

from __future__ import annotations

import collections
import contextlib
import math
import mmap
import weakref
from typing import Any

import numpy as np

LEAST_BYTES = 32 * 2**20  # LARGE_OUTPUT_BYTES of native/python.h
"""Smaller outputs come from NumPy: the C library keeps them in its heap and reuses them better
(4 MiB: 60 us against 126; 16 MiB: 0.66 ms against 0.86). From here on it maps every one anew."""

MOST_FREE_BYTES = 2**30
"""What free blocks may hold in all; one that is larger is not kept."""

_HUGE_PAGE = 2 * 2**20

_free: collections.deque[mmap.mmap] = collections.deque()
_in_use: dict[int, Any] = {}


def empty(shape: tuple[int, ...], dtype: np.dtype, order: Any = "C") -> np.ndarray:
    """As `numpy.empty`, errors included, from recycled memory where the array is large."""
    nbytes = dtype.itemsize * math.prod(shape)
    if nbytes < LEAST_BYTES:
        return np.empty(shape, dtype, order)
    try:
        whole = _lease(nbytes)
    except (OSError, OverflowError):  # no room for as much: NumPy says it best
        return np.empty(shape, dtype, order)
    start = -whole.ctypes.data % _HUGE_PAGE
    return whole[start : start + nbytes].view(dtype).reshape(shape, order=order)


def _lease(nbytes: int) -> np.ndarray:
    """A block as an array of bytes.

    NumPy makes it the base of whatever is a view of it: the block is free when this array dies.
    """
    size = -(-nbytes // _HUGE_PAGE) * _HUGE_PAGE + _HUGE_PAGE
    block = _take(size) or _map(size)
    whole = np.frombuffer(block, np.uint8)
    key = id(block)

    def give_back(_: Any) -> None:
        del _in_use[key]
        _keep(block)

    _in_use[key] = weakref.ref(whole, give_back)
    return whole


def _map(size: int) -> mmap.mmap:
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _take(size: int) -> mmap.mmap | None:
    """A free block of exactly this size; one that another thread takes meanwhile is passed over."""
    for block in tuple(_free):
        if len(block) == size:
            try:
                _free.remove(block)
            except ValueError:
                continue
            return block
    return None


def _keep(block: mmap.mmap) -> None:
    """Runs wherever the last array dies, so it takes no lock: every step is one operation."""
    if len(block) > MOST_FREE_BYTES:
        return
    with contextlib.suppress(OSError):  # a sandbox that refuses it: the system cannot take it back
        block.madvise(mmap.MADV_FREE)
    _free.append(block)
    while sum(map(len, tuple(_free))) > MOST_FREE_BYTES:
        try:
            _free.popleft()
        except IndexError:
            return
