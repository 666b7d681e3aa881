"""Arrays beside pages that nobody may touch: one byte too far is the end of the process."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

PAGE = mmap.PAGESIZE
PATTERN = 0xA5

_LIBC = ctypes.CDLL(None, use_errno=True)


class GuardedPages:
    """Some pages of memory between two pages that cannot be read or written.

    Attributes:
        bytes: What lies between.
    """

    def __init__(self, size: int) -> None:
        pages = -(-size // PAGE)
        self._memory = mmap.mmap(-1, (pages + 2) * PAGE)
        whole = np.frombuffer(self._memory, np.uint8)
        self.bytes = whole[PAGE : (pages + 1) * PAGE]
        for start in (whole.ctypes.data, whole.ctypes.data + (pages + 1) * PAGE):
            if _LIBC.mprotect(ctypes.c_void_p(start), ctypes.c_size_t(PAGE), 0):
                raise OSError(ctypes.get_errno(), "mprotect")

    def at_the_start(self, count: int, dtype: np.dtype, offset: int) -> np.ndarray:
        """An array that begins `offset` bytes after the lower guard page."""
        return self.bytes[offset : offset + count * dtype.itemsize].view(dtype)

    def at_the_end(self, count: int, dtype: np.dtype, offset: int) -> np.ndarray:
        """An array that ends `offset` bytes before the upper guard page."""
        stop = len(self.bytes) - offset
        return self.bytes[stop - count * dtype.itemsize : stop].view(dtype)
