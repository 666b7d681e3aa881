"""The limit of the machine: copy and scale loops, compiled on the spot for a level.

What they move is what an operator has to move: so many arrays in, one out. The limit of a case is
the fastest of them, measured in the same rounds as everybody else.
"""

from __future__ import annotations

import ctypes
import functools
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from relu_ops.bench import cases
from relu_ops.compiler import toolchain
from relu_ops.errors import BuildError
from relu_ops.runtime import threads as thread_settings

_SOURCE = Path(__file__).with_name("limit.c")
# Loops must stay loops: neither a call of memcpy nor anything that fast math allows.
_FLAGS = (
    *("-x", "c", "-std=gnu11", "-O3", "-fno-tree-loop-distribute-patterns", "-fPIC"),
    *("-shared", "-pthread"),
)

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
    """The loops, compiled for one level.

    Attributes:
        target: The level.
        raw_sum: As `sum`, of an address and a number of bytes: for use inside a timed call.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self._library = _compiled(target)
        self.raw_sum = self._library.limit_sum

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
                *(loop.number, count, y.ctypes.data, *pointers, y.nbytes, repeats, int(consume))
            )
        return seconds

    def sum(self, y: np.ndarray) -> int:
        """The sum of the 64-bit words of a contiguous array, modulo 2**64."""
        total: int = self._library.limit_sum(y.ctypes.data, y.nbytes)
        return total

    def sweep(self, threads: int) -> None:
        """Clear the caches of so many threads by reading twice the last-level cache."""
        buffer = _sweep_buffer()
        with self.awake(threads) as count:
            self._library.limit_sweep(buffer.ctypes.data, buffer.nbytes, count)


@functools.cache
def of(target: str) -> Limit:
    """The loops of a level, compiled once in a process.

    Raises:
        BuildError: There is no C compiler, or it failed.
    """
    return Limit(target)


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
    size = 2 * thread_settings.last_level_cache_bytes()
    buffer = cases.aligned((size,), np.dtype(np.uint8))
    buffer[...] = 1
    return buffer


def _compiled(target: str) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix="relu_ops_limit_") as folder:
        path = Path(folder) / "limit.so"
        command = [*toolchain.c_compiler(), *_FLAGS, f"-march={target}", str(_SOURCE)]
        command += ["-o", str(path)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"the C compiler cannot be run: {error}") from error
        if done.returncode:
            raise BuildError(f"the limit's loops do not compile:\n{done.stderr.strip()}")
        return _declared(ctypes.CDLL(str(path)))


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.limit_start.argtypes = [ctypes.c_int]
    library.limit_start.restype = ctypes.c_int
    library.limit_stop.argtypes = []
    library.limit_stop.restype = None
    library.limit_run.argtypes = [
        *(ctypes.c_int, ctypes.c_int, pointer, pointer, pointer, pointer),
        *(size, ctypes.c_int64, ctypes.c_int),
    ]
    library.limit_run.restype = ctypes.c_double
    library.limit_sum.argtypes = [pointer, size]
    library.limit_sum.restype = ctypes.c_uint64
    library.limit_sweep.argtypes = [pointer, size, ctypes.c_int]
    library.limit_sweep.restype = None
    return library
