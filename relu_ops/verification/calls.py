"""Calls an operator so that nothing it does wrong stays unseen, within a bound of memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from relu_ops.contract import ir
from relu_ops.contract.semantics import DTYPES
from relu_ops.verification.cases import Case, tiles
from relu_ops.verification.shapes import Shape, output_shapes

Arrays = list[np.ndarray]

LARGEST_BYTES = 2 << 30
"""Of the arrays of one call; half of what is free, where that is less."""
_LARGEST_REFEREED = 1 << 26
"""Elements of an array that referees are given: they make several more of its size."""
_GUARD = 64
_MARK = 0xA5
"""How many bytes on each side of an output must stay as they are, and what they hold."""


class TooLargeError(Exception):
    """A call cannot be made in the memory that is spared for it."""


def check_size(case: Case, graph: ir.Graph) -> None:
    """Refuse a case whose arrays do not fit into the memory that is spared for them.

    Raises:
        TooLargeError: They do not.
    """
    largest = max((x.shape for x in case.small), key=ir.size, default=())
    if ir.size(largest) > _LARGEST_REFEREED:
        raise TooLargeError(
            f"a constant lies along all of {list(largest)}: too many elements for referees"
        )
    needed, most = _output_bytes(case, graph), _most_bytes() // 2
    if needed > most:
        raise TooLargeError(
            f"the outputs have {needed:,} bytes, and {most:,} are spared for them here"
        )


def inputs_of(case: Case, graph: ir.Graph) -> Arrays:
    """The inputs of the operator: ordinary arrays, where there is memory for them."""
    inputs = _bytes([i.dtype for i in graph.inputs], case.shapes)
    return case.inputs(thrifty=inputs + _output_bytes(case, graph) > _most_bytes())


def _output_bytes(case: Case, graph: ir.Graph) -> int:
    dtypes = [graph.values[output.value].dtype for output in graph.outputs]
    return _bytes(dtypes, output_shapes(graph, case.shapes))


def _most_bytes() -> int:
    return min(LARGEST_BYTES, _free_bytes() // 2)


def _bytes(dtypes: Sequence[str], shapes: Sequence[Shape]) -> int:
    return sum(DTYPES[d].itemsize * ir.size(s) for d, s in zip(dtypes, shapes, strict=True))


def _free_bytes() -> int:
    """How many bytes of memory can be had, if the system says so."""
    try:
        text = Path("/proc/meminfo").read_text()
        return int(text.partition("MemAvailable:")[2].split()[0]) << 10
    except (OSError, ValueError, IndexError):
        return 2 * LARGEST_BYTES


def call(operator: Callable[..., Any], inputs: Arrays, outputs: Arrays | None) -> Arrays:
    """Call an operator, into given outputs or into new ones."""
    if outputs is None:
        results = operator(*inputs)
    else:
        results = operator(*inputs, out=outputs[0] if len(outputs) == 1 else tuple(outputs))
    return list(results) if isinstance(results, tuple) else [results]


class Guarded:
    """Outputs that hold what they must not keep, between bytes that must be left alone."""

    def __init__(self, expected: Arrays, shapes: Sequence[Shape]) -> None:
        self._expected = expected
        self._memories: list[np.ndarray] = []
        self.outputs = [self._output(y, shape) for y, shape in zip(expected, shapes, strict=True)]

    def _output(self, expected: np.ndarray, shape: Shape) -> np.ndarray:
        size = ir.size(shape) * expected.dtype.itemsize
        memory = np.empty(size + 3 * _GUARD, np.uint8)
        start = -memory.ctypes.data % _GUARD
        memory = memory[start : start + size + 2 * _GUARD]
        self._memories.append(memory)
        # Not a slice: of one without elements NumPy forgets where it began.
        return np.ndarray(shape, expected.dtype, memory, _GUARD)

    def prepare(self) -> Arrays:
        """The outputs, spoiled anew: touching fresh memory would take longer than all the rest."""
        for memory in self._memories:
            memory[:_GUARD] = memory[-_GUARD:] = _MARK
        for y, expected in zip(self.outputs, self._expected, strict=True):
            _spoil(y, expected)
        return self.outputs

    def broken(self) -> bool:
        """True where a byte beside an output was written."""
        return any(
            bool((side != _MARK).any())
            for memory in self._memories
            for side in (memory[:_GUARD], memory[-_GUARD:])
        )


def _spoil(y: np.ndarray, expected: np.ndarray) -> None:
    """Fill an output with the complement of what is expected."""
    unsigned = np.dtype(f"u{expected.dtype.itemsize}")
    wrong = np.invert(np.ascontiguousarray(expected).view(unsigned)).reshape(expected.shape)
    bits = y.view(unsigned)
    for place, part in tiles(y.shape, expected.shape):
        bits[place] = wrong[part]
