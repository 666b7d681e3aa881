"""The thresholds that `relu-ops tune` measured on this machine, kept in one small file.

Whoever has not tuned gets safe defaults (threads.py). What was measured on another processor, or
cannot be read, counts as not tuned: a lost file never stops an operator.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import msgspec

from relu_ops import targets
from relu_ops.errors import ArgumentError

VARIABLE = "RELU_OPS_TUNING"


class Thresholds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From how many bytes on, read and written by a call, it pays; see threads.Settings."""

    parallel_bytes: int
    stream_bytes: int
    wake_bytes: int

    def __post_init__(self) -> None:
        if not all(0 <= value < 2**62 for value in msgspec.structs.astuple(self)):
            raise ValueError("a threshold is out of range")


class Tuning(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(folder).expanduser() / "relu_ops" / "tuning.json"


@functools.cache
def _read(file: Path) -> Tuning | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Tuning)
    except (OSError, RuntimeError, msgspec.MsgspecError, ValueError):
        return None


def thresholds(threads: int) -> Thresholds | None:
    """What was measured on this processor for so many threads; None where nothing was."""
    try:
        known = _read(path())
    except RuntimeError:  # no home directory
        return None
    if known is None or known.cpu != targets.this_machine().cpu or known.threads != threads:
        return None
    return known.thresholds


def store(tuning: Tuning) -> Path:
    """Write the file, as a whole or not at all.

    Raises:
        ArgumentError: It cannot be written.
    """
    file = path()
    part = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(msgspec.json.format(msgspec.json.encode(tuning), indent=1) + b"\n")
        part.replace(file)
    except OSError as error:
        raise ArgumentError(
            f"{file}: cannot be written: {error.strerror}", f"set {VARIABLE} to another path"
        ) from error
    _read.cache_clear()
    return file
