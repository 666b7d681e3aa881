"""The limit of the machine: copy and scale loops for each level, compiled with the package.

What they move is what an operator has to move: so many arrays in, one out. The limit of a case is
the fastest of them, measured in the same rounds as everybody else.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from relu_ops.bench import cases, environment
from relu_ops.bench.peers.problem import NOT_INSTALLED, UNSUPPORTED, Skipped
from relu_ops.native import _python

# A streaming store never wins where everything fits into a core's own cache, nor a second thread
# where one is done within a microsecond: those loops would only cost time.
_STREAMING_FROM = 256 * 1024
_THREADS_FROM = 32 * 1024


@dataclass(frozen=True)
class Loop:
    """One of the loops of limit.c.

    Attributes:
        name: What it does.
        number: Its place in limit.c.
        inputs: How many arrays it reads.
        streaming: Whether its stores go past the caches.
        dtypes: Whose data it computes on; empty means any.
    """

    name: str
    number: int
    inputs: int
    streaming: bool
    dtypes: tuple[str, ...] = ()


LOOPS: tuple[Loop, ...] = (
    Loop("copy", 0, 1, False),
    Loop("copy, streaming", 1, 1, True),
    Loop("scale", 2, 1, False, ("float32",)),
    Loop("scale, streaming", 3, 1, True, ("float32",)),
    Loop("combine 2", 4, 2, False),
    Loop("combine 2, streaming", 5, 2, True),
    Loop("combine 3", 6, 3, False),
    Loop("combine 3, streaming", 7, 3, True),
)


class Limit:
    """The loops of one level, which this machine has to run.

    Attributes:
        target: The level.
        raw_sum: As `sum`, of an address and a number of bytes: for use inside a timed call.
    """

    def __init__(self, target: str, library: ctypes.CDLL, level: int) -> None:
        self.target = target
        self.raw_sum = _sum_of(library, target)
        self._library = library
        self._level = level

    @contextmanager
    def awake(self, threads: int) -> Iterator[int]:
        """Keep threads spinning for jobs, within the `with` alone; gives how many there are."""
        try:
            yield self._library.limit_start(threads)
        finally:
            self._library.limit_stop()

    def run(
        self,
        loop: Loop,
        y: np.ndarray,
        inputs: Sequence[np.ndarray],
        repeats: int = 1,
        threads: int = 1,
        consume: bool = False,
    ) -> float:
        """Run a loop; return the seconds of all repeats.

        Args:
            loop: Which.
            y: Where to write; contiguous, at a multiple of 64 bytes.
            inputs: What to read: as many arrays as the loop reads, of the bytes of y.
            repeats: How often.
            threads: How many threads.
            consume: Sum up y after every repeat, by one thread.
        """
        pointers = [x.ctypes.data for x in inputs] + [None] * (3 - len(inputs))
        with self.awake(threads) as count:
            seconds: float = self._library.limit_run(
                *(self._level, loop.number, count, y.ctypes.data, *pointers),
                *(y.nbytes, repeats, int(consume)),
            )
        return seconds

    def sum(self, y: np.ndarray) -> int:
        """The sum of the 64-bit words of a contiguous array, modulo 2**64."""
        total: int = self.raw_sum(y.ctypes.data, y.nbytes)
        return total

    def sweep(self, threads: int) -> None:
        """Clear the caches of so many threads by reading twice the last-level cache."""
        buffer = _sweep_buffer()
        with self.awake(threads) as count:
            self._library.limit_sweep(self._level, buffer.ctypes.data, buffer.nbytes, count)


def path() -> Path:
    """Where the compiled loops are, if they are: beside the extension, wherever that was put."""
    return Path(_python.__file__).with_name("_limit.so")


@functools.cache
def of(target: str) -> Limit | Skipped:
    """The loops of a level, or why there are none: not every build of relu_ops has them."""
    file = path()
    if not file.is_file():
        return Skipped(
            NOT_INSTALLED,
            f"this build of relu_ops came without its loops ({file})",
            "install a wheel of relu_ops, or build it there",
        )
    try:
        library = _declared(ctypes.CDLL(str(file)))
    except OSError as error:
        return Skipped(UNSUPPORTED, f"its loops cannot be loaded: {error}", "install relu_ops anew")
    level: int = library.limit_level(target.encode())
    if level < 0:
        return Skipped(UNSUPPORTED, f"relu_ops has no loops for {target}")
    return Limit(target, library, level)


def contestants(
    dtype: str, inputs: int, moved_bytes: int, threads: int
) -> Iterator[tuple[Loop, int]]:
    """The loops and thread counts that could be the fastest for an operator.

    Args:
        dtype: Of its output.
        inputs: How many arrays of the output's size it reads.
        moved_bytes: What it reads and writes.
        threads: How many threads there are.
    """
    for loop in LOOPS:
        if loop.inputs != inputs or (loop.dtypes and dtype not in loop.dtypes):
            continue
        if loop.streaming and moved_bytes < _STREAMING_FROM:
            continue
        yield loop, 1
        if threads > 1 and moved_bytes >= _THREADS_FROM:
            yield loop, threads


@functools.cache
def _sweep_buffer() -> np.ndarray:
    size = 2 * environment.last_level_cache_bytes()
    buffer = cases.aligned((size,), np.dtype(np.uint8))
    buffer[...] = 1
    return buffer


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.limit_level.argtypes = [ctypes.c_char_p]
    library.limit_level.restype = ctypes.c_int
    library.limit_start.argtypes = [ctypes.c_int]
    library.limit_start.restype = ctypes.c_int
    library.limit_stop.argtypes = []
    library.limit_stop.restype = None
    library.limit_run.argtypes = [
        *(ctypes.c_int, ctypes.c_int, ctypes.c_int, pointer, pointer, pointer, pointer),
        *(size, ctypes.c_int64, ctypes.c_int),
    ]
    library.limit_run.restype = ctypes.c_double
    library.limit_sweep.argtypes = [ctypes.c_int, pointer, size, ctypes.c_int]
    library.limit_sweep.restype = None
    return library


def _sum_of(library: ctypes.CDLL, target: str) -> Callable[..., int]:
    function = library[f"limit_sum_{target.rpartition('-')[2]}"]
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    function.restype = ctypes.c_uint64
    return function
