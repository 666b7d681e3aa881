"""How many threads an operator uses, and from which size on it does what.

The number of threads is what this process may really use: its affinity mask and its cgroup's
quota, not the machine's processors. The sizes are in bytes that a call reads and writes.
"""

from __future__ import annotations

import contextlib
import math
import operator
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from relu_ops.errors import ArgumentError, ArgumentTypeError
from relu_ops.runtime import tuning

THREADS_VARIABLE = "RELU_OPS_NUM_THREADS"
_MOST_THREADS = 256

# Measured on an AMD EPYC (Zen 4), 2 cores, 2026-11-21: relu float32, interleaved, medians.
#
# Two threads that are awake gain from 64 KiB on (0.61 against 0.73 us; 0.98 against 1.32 us at
# twice that) and lose at a quarter of it (0.38 against 0.21 us).
PARALLEL_BYTES = 64 * 2**10

# A thread that sleeps costs the caller about 10 us to wake: a lone call gains from 6 MiB on
# (8 MiB: 78 against 89 us; 4 MiB: 58 against 48 us). A burst of smaller calls wakes it once it
# has moved that much.
WAKE_BYTES = 6 * 2**20

# Streaming stores gain from about the size of the last-level cache on, here 32 MiB: 0.74 against
# 1.10 ms for add_relu that moves 48 MiB, 1.29 against 1.60 ms for relu and 64 MiB, but 0.62 against
# 0.54 ms for relu and 32 MiB. With a next step that reads the output at once it is 1.22 against
# 0.82 ms for relu and 32 MiB, 1.69 against 1.73 for add_relu and 48, 2.64 against 2.43 for relu and
# 64, 3.75 against 4.36 for add_relu and 96: from 5/4 of the cache on a loss of 8 % at most.
_STREAM_PER_CACHE = 5 / 4
_USUAL_CACHE_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Settings:
    """What a library is configured with.

    Attributes:
        threads: How many a large call uses.
        parallel_bytes: Bytes moved from which on a call uses more than one that is awake.
        stream_bytes: Bytes moved from which on stores go past the cache.
        wake_bytes: Bytes moved, by one call or by a burst of them, that make up for waking threads.
    """

    threads: int
    parallel_bytes: int
    stream_bytes: int
    wake_bytes: int = 0


def usable_threads() -> int:
    """The number of processors that this process may use: affinity and cgroup quota."""
    return max(1, min(len(os.sched_getaffinity(0)), _quota(), _MOST_THREADS))


def _quota() -> int:
    """The cgroup's processor quota, rounded up; a large number where there is none."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return math.ceil(int(quota) / int(period))
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        folder = Path("/sys/fs/cgroup/cpu")
        quota_us = int((folder / "cpu.cfs_quota_us").read_text())
        period_us = int((folder / "cpu.cfs_period_us").read_text())
        return math.ceil(quota_us / period_us) if quota_us > 0 else _MOST_THREADS
    return _MOST_THREADS


def default_threads() -> int:
    """RELU_OPS_NUM_THREADS, or what this process may use.

    Raises:
        ArgumentError: The variable is not a number from 1 to 256.
    """
    text = os.environ.get(THREADS_VARIABLE, "")
    return parse_count(THREADS_VARIABLE, text) if text else usable_threads()


def parse_count(what: str, text: str) -> int:
    """A number of threads, as it was written.

    Raises:
        ArgumentError: It is not a number from 1 to 256.
    """
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= _MOST_THREADS:
        raise ArgumentError(f"{what} must be 1 to {_MOST_THREADS} (not {text!r})")
    return int(text)


def last_level_cache_bytes() -> int:
    """The size of the largest cache of the first processor, or a usual one."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        with contextlib.suppress(OSError):
            match = re.fullmatch(r"(\d+)([KMG])\s*", path.read_text())
            if match:
                sizes.append(int(match[1]) << {"K": 10, "M": 20, "G": 30}[match[2]])
    return max(sizes, default=_USUAL_CACHE_BYTES)


_chosen: int | None = None


def settings() -> Settings:
    """The settings in force."""
    threads = default_threads() if _chosen is None else _chosen
    tuned = tuning.thresholds(threads)
    if tuned is not None:
        return Settings(threads, tuned.parallel_bytes, tuned.stream_bytes, tuned.wake_bytes)
    stream_bytes = int(_STREAM_PER_CACHE * last_level_cache_bytes())
    return Settings(threads, PARALLEL_BYTES, stream_bytes, WAKE_BYTES)


def get_num_threads() -> int:
    """The number of threads that a large call uses."""
    return settings().threads


def check_count(what: str, count: int) -> int:
    """A number of threads, as it was passed.

    Raises:
        ArgumentTypeError: It is not an integer.
        ArgumentError: It is out of range.
    """
    try:
        number = operator.index(count)
    except TypeError:
        number = None
    if number is None or isinstance(count, bool):
        raise ArgumentTypeError(f"{what} must be an int or None (not {type(count).__name__})")
    if not 1 <= number <= _MOST_THREADS:
        raise ArgumentError(f"{what} must be 1 to {_MOST_THREADS} (not {number})")
    return number


def set_num_threads(count: int | None) -> None:
    """Set the number of threads of every operator in this process.

    Args:
        count: 1 to 256, or None for the default: RELU_OPS_NUM_THREADS, or what this process may
            use.

    Raises:
        ArgumentTypeError: count is not an integer.
        ArgumentError: It is out of range.
    """
    global _chosen
    _chosen = None if count is None else check_count("count", count)
    from relu_ops.runtime import library

    library.configure_all(settings())


@contextlib.contextmanager
def num_threads(count: int | None) -> Iterator[None]:
    """`set_num_threads` for a while; what was set before comes back."""
    before = _chosen
    set_num_threads(count)
    try:
        yield
    finally:
        set_num_threads(before)
