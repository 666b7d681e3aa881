"""The thresholds that `relu-ops tune` measured on this machine, kept in one small file.

Whoever has not tuned gets safe defaults (the core's). What was measured on another processor, or
cannot be read, counts as not tuned: a lost file never stops an operator.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, NamedTuple

from relu_ops.errors import ArgumentError

if TYPE_CHECKING:
    from pathlib import Path

VARIABLE = "RELU_OPS_TUNING"


class Thresholds(NamedTuple):
    """From how many bytes on, read and written by a call, it pays; see threads.Settings."""

    parallel_bytes: int
    stream_bytes: int
    wake_bytes: int


class Tuning(NamedTuple):
    """What was measured, and on what.

    Attributes:
        cpu: The processor's model name.
        threads: Threads that were used.
        measured: The day, as ISO 8601.
        thresholds: The result.
    """

    cpu: str
    threads: int
    measured: str
    thresholds: Thresholds


def path() -> Path:
    """Where the file is: RELU_OPS_TUNING, or relu_ops/tuning.json in the user's configuration."""
    from pathlib import Path

    return Path(_path())


def _path() -> str:
    """As `path`, for whoever runs operators: to import pathlib takes milliseconds."""
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    usual = os.path.join(folder, "relu_ops", "tuning.json")
    return os.path.expanduser(os.environ.get(VARIABLE) or usual)


def encode(tuning: Tuning) -> str:
    """What was measured, as JSON."""
    import json

    return json.dumps({**tuning._asdict(), "thresholds": tuning.thresholds._asdict()}, indent=1)


def decode(content: bytes | str) -> Tuning:
    """What was measured, from JSON.

    Raises:
        TypeError, ValueError: It is something else.
    """
    import json

    plain = json.loads(content)
    found = Tuning(**{**plain, "thresholds": Thresholds(**plain["thresholds"])})
    kinds = [type(value) for value in (*found[:3], *found.thresholds)]
    if kinds != [str, int, str, int, int, int]:
        raise TypeError("a field is of another type")
    if not all(0 <= value < 2**62 for value in found.thresholds):
        raise ValueError("a threshold is out of range")
    return found


@functools.cache
def _read(path: str) -> Tuning | None:
    try:
        with open(path, "rb") as file:
            return decode(file.read())
    except (OSError, LookupError, RecursionError, TypeError, ValueError):
        return None


def thresholds(threads: int) -> Thresholds | None:
    """What was measured on this processor for so many threads; None where nothing was."""
    known = _read(_path())
    if known is None or known.threads != threads:
        return None
    from relu_ops import targets

    return known.thresholds if known.cpu == targets.this_machine().cpu else None


def store(tuning: Tuning) -> Path:
    """Write the file, as a whole or not at all.

    Raises:
        ArgumentError: It cannot be written.
    """
    file = path()
    if str(file).startswith("~"):
        raise ArgumentError(f"{file}: there is no home directory", f"set {VARIABLE} to a path")
    part = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(encode(tuning) + "\n", encoding="utf-8")
        part.replace(file)
    except OSError as error:
        raise ArgumentError(
            f"{file}: cannot be written: {error.strerror}", f"set {VARIABLE} to another path"
        ) from error
    _read.cache_clear()
    return file
