"""How many threads an operator uses, and from which size on it does what.

The settings are the native core's, one set a process; their defaults too. What is decided here is
that thresholds which `relu-ops tune` measured on this machine take the place of the default ones.
"""

from __future__ import annotations

import contextlib
import operator
import re
from collections.abc import Iterator
from typing import NamedTuple

from relu_ops.errors import ArgumentError, ArgumentTypeError
from relu_ops.native import _python as native
from relu_ops.runtime import tuning

THREADS_VARIABLE = "RELU_OPS_NUM_THREADS"
_MOST_THREADS = native.LIMITS["THREADS"]
_DEFAULT = "None is the default: for a call the process's setting, for the process what it may use"


class Settings(NamedTuple):
    """How operators of this process run on the CPU. Sizes are bytes that a call reads and writes.

    Attributes:
        threads: How many a large call uses.
        parallel_bytes: From how many on a call uses more than one that is awake.
        stream_bytes: From how many on stores go past the cache.
        wake_bytes: How many, in one call or a burst of them, make up for waking threads.
    """

    threads: int
    parallel_bytes: int
    stream_bytes: int
    wake_bytes: int = 0


def settings() -> Settings:
    """The settings in force.

    Raises:
        ArgumentError: They are the default, and RELU_OPS_NUM_THREADS is no number from 1 to 256.
    """
    heed_tuning()
    return Settings(*native.get_settings())


def default_settings(count: int | None = None) -> Settings:
    """The settings that hold until somebody sets others.

    Args:
        count: Those for so many threads; by default RELU_OPS_NUM_THREADS, or as many as this
            process may use: its affinity, and the quotas of its cgroups.

    Raises:
        ArgumentError: RELU_OPS_NUM_THREADS is no number from 1 to 256.
    """
    default = Settings(*native.default_settings())
    if count is not None:
        default = default._replace(threads=count)
    measured = tuning.thresholds(default.threads)
    return default if measured is None else Settings(default.threads, *measured)


def configure(settings: Settings) -> None:
    """Put settings in force, for every operator of this process."""
    native.set_settings(*settings)


_heeded = False


def heed_tuning() -> None:
    """Put in force, once, what was measured on this machine, unless somebody has set something.

    Whoever makes an operator asks for it, so that importing this costs no look at the disk.

    Raises:
        ArgumentError: RELU_OPS_NUM_THREADS is no number from 1 to 256.
    """
    global _heeded
    if _heeded:
        return
    plain = native.default_settings()
    if native.get_settings() == plain and (found := default_settings()) != plain:
        configure(found)
    _heeded = True


def get_num_threads() -> int:
    """The number of threads that a large call uses."""
    return settings().threads


def set_num_threads(count: int | None) -> None:
    """Set the number of threads of every operator in this process.

    Args:
        count: 1 to 256, or None for the default: RELU_OPS_NUM_THREADS, or what this process may
            use.

    Raises:
        ArgumentTypeError: count is not an integer.
        ArgumentError: It is out of range.
    """
    configure(default_settings(None if count is None else check_count("count", count)))


@contextlib.contextmanager
def num_threads(count: int | None) -> Iterator[None]:
    """`set_num_threads` for a while; what was set before comes back."""
    before = settings()
    set_num_threads(count)
    try:
        yield
    finally:
        configure(before)


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
        raise ArgumentTypeError(
            f"{what} must be an int or None (not {type(count).__name__})", _DEFAULT
        )
    if not 1 <= number <= _MOST_THREADS:
        raise ArgumentError(f"{what} must be 1 to {_MOST_THREADS} (not {number})", _DEFAULT)
    return number


def parse_count(what: str, text: str) -> int:
    """A number of threads, as it was written.

    Raises:
        ArgumentError: It is not a number from 1 to 256.
    """
    if not re.fullmatch(r"[0-9]{1,3}", text) or not 1 <= int(text) <= _MOST_THREADS:
        raise ArgumentError(
            f"{what} must be 1 to {_MOST_THREADS} (not {text!r})",
            "leave it out for as many as the process may use",
        )
    return int(text)
