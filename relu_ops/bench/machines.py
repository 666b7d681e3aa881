"""Records of several machines, side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from relu_ops.bench import record
from relu_ops.bench.record import Record, Timing

LIMIT = "limit"
"""What stands for the contestant where it is a machine's own limit."""


@dataclass(frozen=True)
class Column:
    """One machine, or one record of it.

    Attributes:
        label: What it is called.
        record: What was measured there.
        target: For which target.
    """

    label: str
    record: Record
    target: str

    @property
    def title(self) -> str:
        """The label; with the target, where the record has several."""
        return f"{self.label}, {self.target}" if len(targets_of(self.record)) > 1 else self.label


class Cell(msgspec.Struct, frozen=True):
    """A timing on one machine.

    Attributes:
        machine: The title of its column.
        target: For which target.
        shape: Of the first output.
        verified: As in `record.Timing`.
        median_seconds: The median of the seconds per call.
        low_seconds: Their 20th percentile.
        high_seconds: Their 80th.
        ratio: The median over that of the first column; None where that has none.
    """

    machine: str
    target: str
    shape: tuple[int, ...]
    verified: str
    median_seconds: float
    low_seconds: float
    high_seconds: float
    ratio: float | None


class Side(msgspec.Struct, frozen=True):
    """One contestant, on one graph and size, on every machine.

    Attributes:
        case: What was computed.
        dtype: In which dtype.
        mode: One of `record.MODES`.
        elements: Elements of the output.
        contestant: Who; `LIMIT` for the fastest loop of each machine's limit.
        cells: One a column; None where it was not timed.
    """

    case: str
    dtype: str
    mode: str
    elements: int
    contestant: str
    cells: tuple[Cell | None, ...]


def columns_of(records: Sequence[Record], paths: Sequence[str | os.PathLike[str]]) -> list[Column]:
    """A column for each record and target.

    Args:
        records: The records.
        paths: What each was read from: its name says which it is, where its host does not.
    """
    hosts = [host_of(found) for found in records]
    columns = []
    for host, found, path in zip(hosts, records, paths, strict=True):
        label = host if host and hosts.count(host) == 1 else Path(path).stem
        columns += [Column(label, found, target) for target in targets_of(found)]
    return columns


def host_of(found: Record) -> str:
    """The machine of a record: as it was reached, or as it calls itself; "" where nobody says."""
    return found.machine.get("on") or found.machine.get("host") or ""


def targets_of(found: Record) -> list[str]:
    """The targets of a record, in its order."""
    return list(dict.fromkeys(t.target for t in found.timings))


def side_by_side(columns: Sequence[Column]) -> list[Side]:
    """Everything that more than one column has, in the order of the first that has it."""
    held = [_timings(column) for column in columns]
    rows = []
    for key in dict.fromkeys(key for timings in held for key in timings):
        found = [timings.get(key) for timings in held]
        if sum(timing is not None for timing in found) > 1:
            cells = (_cell(c, t, found[0]) for c, t in zip(columns, found, strict=True))
            rows.append(Side(*key, tuple(cells)))
    return rows


_Key = tuple[str, str, str, int, str]


def _timings(column: Column) -> dict[_Key, Timing]:
    """What a column has, by case, dtype, mode, elements and contestant; the limit as one."""
    found: dict[_Key, Timing] = {}
    for place in column.record.places():
        case, dtype, target, mode, elements = place
        if target != column.target:
            continue
        at = column.record.at(place)
        key = (case, dtype, mode, elements)
        found |= {(*key, name): t for name, t in at.items() if not t.is_limit}
        limit = record.limit_of(at.values())
        found |= {(*key, LIMIT): limit} if limit else {}
    return found


def _cell(column: Column, timing: Timing | None, first: Timing | None) -> Cell | None:
    if timing is None:
        return None
    (median, low, high) = record.rounded([timing.median, *timing.spread])
    ratio = timing.median / first.median if first else None
    said = (column.title, column.target, timing.shape, timing.verified)
    return Cell(*said, median, low, high, ratio and float(f"{ratio:.4g}"))
