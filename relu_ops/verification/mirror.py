"""An array's memory as bytes, to be copied elsewhere as it lies, between bytes to be left alone."""

from __future__ import annotations

import ctypes

import numpy as np

GUARD = 256
"""How many bytes on each side of an array must stay as they are; a copy of them begins at a
multiple of it, as what `cuMemAlloc` gives does."""
_MARK = 0xA5


class Mirror:
    """The bytes from an array's first to its last, and marked ones beside them.

    What lies between its elements in memory lies there in the bytes too, and they have the same
    place in a line of the cache.

    Attributes:
        array: The array.
        bytes: A copy of its memory.
        first: Where its first element begins in that.
    """

    def __init__(self, array: np.ndarray) -> None:
        low, high = np.lib.array_utils.byte_bounds(array) if array.size else (0, 0)
        self.array = array
        self._begin = GUARD + low % GUARD
        self.bytes = np.full(self._begin + (high - low) + GUARD, _MARK, np.uint8)
        if array.size:
            span = (ctypes.c_uint8 * (high - low)).from_address(low)
            self.bytes[self._begin : self._begin + (high - low)] = np.ctypeslib.as_array(span)
        self.first = self._begin + (array.__array_interface__["data"][0] - low if array.size else 0)

    def _elements(self, memory: np.ndarray) -> np.ndarray:
        own = self.array
        return np.ndarray(own.shape, own.dtype, memory.data, self.first, own.strides)

    def write(self, values: np.ndarray) -> None:
        """Put other values into the bytes; the array keeps its own."""
        if self.array.size:
            self._elements(self.bytes)[...] = values

    def copy_to(self, target: np.ndarray, found: np.ndarray) -> None:
        """Copy the elements back, and see that nothing else was written.

        Args:
            target: Where to.
            found: What became of the bytes elsewhere.

        Raises:
            AssertionError: A byte beside them was written.
        """
        kept = self.bytes.copy()
        if target.size:
            self._elements(kept)[...] = target[...] = self._elements(found)
        if not np.array_equal(kept, found):
            at = int(np.flatnonzero(kept != found)[0]) - self._begin
            raise AssertionError(
                f"byte {at} from an output's begin was written, beside its elements"
            )
