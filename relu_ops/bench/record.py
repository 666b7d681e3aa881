"""The record of a benchmark: all samples, and everything needed to understand them.

A JSON file. Its format has a version; docs/benchmarks/README.md says what each field means. Numbers
are kept to four digits, which is more than a timing has.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from relu_ops.errors import ArgumentError

FORMAT = 2

WARM, COLD, CONSUME = "warm", "cold", "consume"
MODES = (WARM, COLD, CONSUME)
"""What a sample is: the call again and again; one call after the caches were cleared; the call and
then a sum over its output."""

LIMIT = "limit: "
"""What the names of the limit's loops begin with."""

BIT_FOR_BIT = "bit for bit with the NumPy reference"
"""What is said of a call whose outputs equal those; older records leave out with what."""
DIFFERS = "differs from the NumPy reference: "
"""What is said of another begins so."""

_DIGITS = 4


class _Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The base of what a record holds."""


class Timing(_Row, frozen=True):
    """The samples of one contestant.

    Attributes:
        case: What was computed.
        dtype: In which dtype.
        target: The level of relu_ops, TVM and the limit's loops.
        mode: One of `MODES`.
        elements: Elements of the output.
        bytes: Bytes that one call has to read and write, each array once.
        contestant: The name of a peer, or of a loop of the limit.
        repeats: Calls in a sample.
        seconds: Seconds per call, one number a sample.
        allocates: True where every call made its output anew.
        shape: Of the first output.
        verified: What comparing this very call's outputs with the NumPy reference gave:
            `BIT_FOR_BIT`, or how they differ. "" for a loop of the limit, which computes no
            operator.
        limit_seconds: The fastest loop of the limit, measured beside it; None where there is none.
        commit: Of relu_ops; "" outside a repository.
        machine: Its processor, how many threads everybody had, and the version of relu_ops.
    """

    case: str
    dtype: str
    target: str
    mode: str
    elements: int
    bytes: int
    contestant: str
    repeats: int
    seconds: tuple[float, ...]
    allocates: bool = False
    shape: tuple[int, ...] = ()
    verified: str = ""
    limit_seconds: float | None = None
    commit: str = ""
    machine: str = ""

    @property
    def place(self) -> tuple[str, str, str, str, int]:
        """Everything but who: what is to be compared with each other."""
        return self.case, self.dtype, self.target, self.mode, self.elements

    @property
    def is_right(self) -> bool:
        """True where its outputs were compared, and are those of the contract."""
        return self.verified.startswith("bit for bit")

    @property
    def is_limit(self) -> bool:
        """True for a loop of the limit."""
        return self.contestant.startswith(LIMIT)

    def quantile(self, q: float) -> float:
        """A quantile of the seconds per call."""
        return float(np.quantile(self.seconds, q))

    @property
    def median(self) -> float:
        """The median of the seconds per call."""
        return self.quantile(0.5)

    @property
    def spread(self) -> tuple[float, float]:
        """From the 20th to the 80th percentile of the seconds per call."""
        return self.quantile(0.2), self.quantile(0.8)

    @property
    def bytes_per_second(self) -> float:
        """At the median."""
        return self.bytes / self.median


class Deviation(_Row, frozen=True):
    """How the bits of a peer differ from the contract: counts of elements, by kind.

    Attributes:
        case: What was computed.
        dtype: In which dtype.
        target: The level.
        contestant: The name of the peer.
        ordinary: On ordinary data, of `cases.SPECIAL_ELEMENTS` elements or so.
        special: On special values: NaN, infinities, zeros, subnormals.
        elements: Of how many, of each kind of data.
    """

    case: str
    dtype: str
    target: str
    contestant: str
    ordinary: dict[str, int]
    special: dict[str, int]
    elements: int


class Skip(_Row, frozen=True):
    """A peer that was not timed.

    Attributes:
        contestant: The name of the peer.
        kind: Why: one of the kinds of `peers`.
        reason: In one line.
        hint: What to do about it.
        case: What was to be computed; "" for everything.
        dtype: In which dtype.
        target: The level.
        elements: At which size; 0 for all.
    """

    contestant: str
    kind: str
    reason: str
    hint: str = ""
    case: str = ""
    dtype: str = ""
    target: str = ""
    elements: int = 0


class Built(_Row, frozen=True):
    """An operator that was timed.

    Attributes:
        case: What it computes.
        dtype: In which dtype.
        target: For which level.
        formula: For people.
        model_sha256: Of the ONNX model.
        image_sha256: Of its image; in a record of format 1, of a shared library.
        image_bytes: The size of the image.
        build_seconds: How long compiling it took, without the cache; several times, or never.
    """

    case: str
    dtype: str
    target: str
    formula: str
    model_sha256: str
    image_sha256: str
    image_bytes: int
    build_seconds: tuple[float, ...] = ()


class Process(_Row, frozen=True):
    """A fresh process that computes relu of 16 elements once.

    Attributes:
        contestant: The name of a peer; "python" for an interpreter that does nothing.
        first_result_seconds: From its start to the first result, one number a process.
        peak_bytes: The largest resident memory at that moment.
        installed_bytes: The size of the package and of all that it needs, Python apart.
    """

    contestant: str
    first_result_seconds: tuple[float, ...]
    peak_bytes: int
    installed_bytes: int


class Record(_Row, frozen=True):
    """A whole benchmark.

    Attributes:
        format: The version of the format.
        created: When it began, in UTC.
        took_seconds: How long it took.
        machine: Processor, caches, threads, limits, kernel; see `environment.machine`.
        software: Versions and the commit; see `environment.software`.
        settings: Threads, rounds, and so on.
        operators: What was timed.
        timings: The samples.
        deviations: Whose bits differ.
        skipped: Who was left out.
        processes: Figures of whole processes.
    """

    format: int
    created: str
    took_seconds: float
    machine: dict[str, Any]
    software: dict[str, Any]
    settings: dict[str, Any]
    operators: tuple[Built, ...]
    timings: tuple[Timing, ...]
    deviations: tuple[Deviation, ...] = ()
    skipped: tuple[Skip, ...] = ()
    processes: tuple[Process, ...] = ()

    def at(self, place: tuple[str, str, str, str, int]) -> dict[str, Timing]:
        """The timings of one place, by contestant."""
        return {t.contestant: t for t in self.timings if t.place == place}

    def places(self) -> list[tuple[str, str, str, str, int]]:
        """Every place, in the order of the record."""
        return list(dict.fromkeys(t.place for t in self.timings))


def limit_of(timings: Iterable[Timing]) -> Timing | None:
    """The fastest loop of the limit among timings of one place, or None."""
    return min((t for t in timings if t.is_limit), key=lambda t: t.median, default=None)


def ratio(a: Timing, b: Timing) -> float:
    """How many times as long as b a takes: the median of that over the rounds.

    Both took their turn in every round, so that what slows a machine down for longer than a round
    (a virtual one above all) slows both. Where the rounds differ, the ratio of the medians.
    """
    if len(a.seconds) != len(b.seconds):
        return a.median / b.median
    return float(np.median(np.divide(a.seconds, b.seconds)))


def rounded(seconds: Iterable[float]) -> tuple[float, ...]:
    """Numbers with as many digits as a record keeps.

    >>> rounded([1.23456789e-06])
    (1.235e-06,)
    """
    return tuple(float(f"{s:.{_DIGITS}g}") for s in seconds)


def encode(record: Record) -> bytes:
    """The bytes of a record's file: one line a row, so that two can be compared as text."""
    fields = []
    for name in record.__struct_fields__:
        value = getattr(record, name)
        if isinstance(value, tuple):
            rows = b",\n  ".join(msgspec.json.encode(row) for row in value)
            text = b"[\n  " + rows + b"\n ]" if value else b"[]"
        else:
            text = msgspec.json.encode(value, order="sorted")
        fields.append(b' "' + name.encode() + b'": ' + text)
    return b"{\n" + b",\n".join(fields) + b"\n}\n"


def write(record: Record, path: str | os.PathLike[str]) -> None:
    """Write a record.

    Raises:
        ArgumentError: The file cannot be written.
    """
    try:
        Path(path).write_bytes(encode(record))
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be written: {error.strerror}") from error


def read(path: str | os.PathLike[str]) -> Record:
    """Read a record.

    Raises:
        ArgumentError: The file cannot be read, is no record, or is of another format.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be read: {error.strerror}", _MADE_BY) from error
    try:
        version = msgspec.json.decode(content, type=_Header).format
        if version not in (1, FORMAT):
            raise ArgumentError(
                f"{path}: the record's format is {version} (this version reads 1 and {FORMAT})"
            )
        return msgspec.structs.replace(decode(_upgraded(content)), format=FORMAT)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path}: is not a record of a benchmark: {error}", _MADE_BY) from error


def decode(content: bytes) -> Record:
    """The record of a text of this format.

    Raises:
        msgspec.DecodeError: It is none.
    """
    return msgspec.json.decode(content, type=Record)


_MADE_BY = "relu-ops bench --record FILE writes one"


class _Header(msgspec.Struct):
    format: int


def _upgraded(content: bytes) -> bytes:
    """The text of a record with the keys of this format: 1 was of the time of shared libraries."""
    for key in (b"sha256", b"bytes"):
        content = content.replace(b'"library_' + key + b'":', b'"image_' + key + b'":')
    return content


# ---------------------------------------------------------------------------------------------
# Comparing


class Comparison(_Row, frozen=True):
    """One contestant at one place, in two records.

    Attributes:
        case: What was computed.
        dtype: In which dtype.
        target: The level.
        mode: One of `MODES`.
        elements: Elements of the output.
        contestant: Who.
        before_seconds: The median of the first record.
        after_seconds: That of the second.
        ratio: The second over the first: below 1 is faster.
        beyond_spread: True where the ranges from the 20th to the 80th percentile lie apart.
    """

    case: str
    dtype: str
    target: str
    mode: str
    elements: int
    contestant: str
    before_seconds: float
    after_seconds: float
    ratio: float
    beyond_spread: bool


def compare(before: Record, after: Record) -> list[Comparison]:
    """Set two records side by side, wherever both have the same contestant at the same place.

    Args:
        before: The first.
        after: The second.
    """
    known = {(*t.place, t.contestant): t for t in before.timings}
    rows = []
    for new in after.timings:
        old = known.get((*new.place, new.contestant))
        if old is not None:
            apart = new.spread[0] > old.spread[1] or new.spread[1] < old.spread[0]
            medians = old.median, new.median
            ratio = medians[1] / medians[0]
            rows.append(Comparison(*new.place, new.contestant, *medians, ratio, apart))
    return rows
