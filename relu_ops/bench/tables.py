"""Shows records as text: for a terminal, for the README, and several side by side."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from relu_ops.bench import checking, peers, record
from relu_ops.bench.cases import CASES
from relu_ops.bench.machines import Cell, Column, Side
from relu_ops.bench.record import LIMIT, WARM, Comparison, Record, Timing
from relu_ops.errors import ArgumentError, counted

OURS = tuple(p.name for p in peers.PEERS.values() if p.ours)

_NAME_WIDTH = 22
_CELL_WIDTH = 13
_SIDE_WIDTH, _WIDE_CELL = 30, 18


def count(elements: int) -> str:
    """A number of elements, short.

    >>> [count(n) for n in (16, 1024, 65536, 1 << 24, 1000)]
    ['16', '1k', '64k', '16M', '1,000']
    """
    for unit, letter in ((1 << 20, "M"), (1 << 10, "k")):
        if elements >= unit and elements % unit == 0:
            return f"{elements // unit}{letter}"
    return f"{elements:,}"


def microseconds(seconds: float) -> str:
    """Seconds as microseconds, to three digits.

    >>> [microseconds(s) for s in (1.2345e-7, 1.2345e-5, 1.2345e-2)]
    ['0.123', '12.3', '12,345']
    """
    value = seconds * 1e6
    digits = 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"


# ---------------------------------------------------------------------------------------------
# The terminal


def render(found: Record) -> str:
    """A record as tables: one for each case, dtype, target and mode; sizes side by side."""
    parts = [_heading(found)]
    for key in dict.fromkeys(place[:4] for place in found.places()):
        parts.append(_table(found, key))
    parts += [text for text in (_processes(found), _skipped(found)) if text]
    return "\n\n".join(parts)


def _heading(found: Record) -> str:
    settings = found.settings
    others = found.machine.get("share_of_others")
    busy = "" if others is None else f"; others had {others:.0%} of the processors"
    on = found.machine.get("on")
    where = described(found, on) if on else found.machine["cpu"]
    return (
        f"{where}, {counted(settings['threads'], 'thread')}, medians of "
        f"{settings['rounds']} samples in microseconds; {found.created}{busy}"
    )


def described(found: Record, name: str) -> str:
    """A machine in words: what it is called, its processor, and what of it could be used."""
    machine = found.machine
    host = machine.get("host")
    also = f" ({host})" if host and host != name else ""
    processors, memory = machine.get("affinity"), machine.get("usable_memory_bytes")
    parts = [f"{name}{also}: {machine['cpu']}"]
    if processors:
        parts.append(f"{len(processors)} of {counted(machine['processors'], 'processor')}")
    if memory:
        parts.append(f"{memory / 2**20:,.0f} MiB")
    return ", ".join(parts)


def _table(found: Record, key: tuple[str, str, str, str]) -> str:
    case, dtype, target, mode = key
    sizes = [place[4] for place in found.places() if place[:4] == key]
    columns = {size: found.at((*key, size)) for size in sizes}
    names = [n for n in peers.PEERS if any(n in column for column in columns.values())]
    lines = [f"{case}, {dtype}, {target}, {mode}", _row("elements", map(count, sizes))]
    shapes = [next(iter(columns[size].values())).shape for size in sizes]
    if any(len(shape) > 1 for shape in shapes):
        lines.append(_row("shape", ("x".join(map(str, shape)) or "-" for shape in shapes)))
    for name in names:
        cells = [columns[s].get(name) for s in sizes]
        note = _note(found, (case, dtype, target), name)
        lines.append(_row(name, (microseconds(t.median) if t else "-" for t in cells)) + note)
    limits = [record.limit_of(columns[s].values()) for s in sizes]
    if any(limits):
        lines.append(_row("limit", (microseconds(t.median) if t else "-" for t in limits)))
        lines.append(_row("share of the limit", _shares(columns, sizes)))
    lines.append(_row("best peer / relu_ops", _leads(columns, sizes)))
    lines += _verified(t for column in columns.values() for t in column.values())
    return "\n".join(lines)


def _row(name: str, cells: Iterable[str]) -> str:
    return f"{name:<{_NAME_WIDTH}}" + "".join(f"{cell:>{_CELL_WIDTH}}" for cell in cells)


def _verified(timings: Iterable[Timing]) -> list[str]:
    """Against what the outputs were compared, and by how many contestants they are right."""
    said = {t.contestant: t.is_right for t in timings if t.verified}
    if not said:
        return []
    equal = sum(said.values())
    return [
        f"verified on these arrays against the NumPy reference: {equal} of {len(said)} equal it"
    ]


def _note(found: Record, key: tuple[str, str, str], name: str) -> str:
    for d in found.deviations:
        if (d.case, d.dtype, d.target) == key and d.contestant == name:
            counts = {k: d.ordinary.get(k, 0) + d.special.get(k, 0) for k in d.ordinary | d.special}
            return f"   differs: {checking.describe(counts)}"
    return ""


def own(column: dict[str, Timing]) -> Timing | None:
    """The timing of relu_ops that is compared: the bound call, or the best that is there."""
    return next((column[name] for name in OURS if name in column), None)


def share(column: dict[str, Timing], of: Timing | None = None) -> float | None:
    """The limit's time over that of relu_ops, or of another; None where one is missing."""
    mine = of or own(column)
    limits = [t for t in column.values() if t.is_limit]
    return min((record.ratio(t, mine) for t in limits), default=None) if mine else None


def lead(column: dict[str, Timing]) -> tuple[float, str] | None:
    """The best peer's time over that of relu_ops, and its name; None where one is missing."""
    mine = own(column)
    others = [t for t in column.values() if not t.is_limit and t.contestant not in OURS]
    leads = [(record.ratio(t, mine), t.contestant) for t in others] if mine else []
    return min(leads, default=None)


def _shares(columns: dict[int, dict[str, Timing]], sizes: Sequence[int]) -> list[str]:
    shares = [share(columns[size]) for size in sizes]
    return ["-" if s is None else f"{s:.0%}" for s in shares]


def _leads(columns: dict[int, dict[str, Timing]], sizes: Sequence[int]) -> list[str]:
    leads = [lead(columns[size]) for size in sizes]
    return ["-" if one is None else f"{one[0]:.2f}" for one in leads]


def _processes(found: Record) -> str:
    if not found.processes:
        return ""
    header = ("start s", "peak MB", "installed MB")
    lines = ["whole processes: start to the first result", _row("", header)]
    for p in found.processes:
        median = sorted(p.first_result_seconds)[len(p.first_result_seconds) // 2]
        cells = (f"{median:.2f}", f"{p.peak_bytes / 1e6:.0f}", f"{p.installed_bytes / 1e6:.0f}")
        lines.append(_row(p.contestant, cells))
    return "\n".join(lines)


def _skipped(found: Record) -> str:
    lines = []
    for s in found.skipped:
        where = f" ({s.case}, {s.dtype})" if s.case else ""
        hint = f"; {s.hint}" if s.hint else ""
        lines.append(f"left out: {s.contestant}{where}: {s.reason}{hint}")
    return "\n".join(dict.fromkeys(lines))


# ---------------------------------------------------------------------------------------------
# Two records of one machine


def render_comparison(rows: Sequence[Comparison]) -> str:
    """Two records side by side; `*` marks a difference beyond the spread of the samples."""
    if not rows:
        return "nothing is in both records"
    lines = []
    for key in dict.fromkeys((r.case, r.dtype, r.target, r.mode) for r in rows):
        lines.append(", ".join(key))
        lines.append(_row("elements, contestant", ("before us", "after us", "ratio")))
        for r in rows:
            if (r.case, r.dtype, r.target, r.mode) == key:
                name = f"{count(r.elements):>6} {r.contestant}"
                cells = (microseconds(r.before_seconds), microseconds(r.after_seconds))
                mark = " *" if r.beyond_spread else ""
                lines.append(f"{name:<40}{cells[0]:>10}{cells[1]:>12}{r.ratio:>8.2f}{mark}")
    beyond = sum(r.beyond_spread for r in rows)
    lines.append(f"{beyond} of {len(rows)} differ by more than the spread of their samples (*)")
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------
# Several machines


def render_machines(columns: Sequence[Column], rows: Sequence[Side]) -> str:
    """Records of several machines: medians in microseconds, and the ratio to the first column."""
    lines = [
        f"{described(c.record, c.title)}, {c.target}, "
        f"{counted(c.record.settings['threads'], 'thread')}, {c.record.created}"
        for c in columns
    ]
    if not rows:
        return "\n".join([*lines, "nothing is in more than one of the records"])
    width = max(_WIDE_CELL, *(len(c.title) + 2 for c in columns))
    for key in dict.fromkeys((r.case, r.dtype, r.mode) for r in rows):
        lines += ["", f"{', '.join(key)}: microseconds, and how many times those of the first"]
        titles = "".join(f"{c.title:>{width}}" for c in columns)
        lines.append(f"{'elements, contestant':<{_SIDE_WIDTH}}{titles}")
        for r in rows:
            if (r.case, r.dtype, r.mode) == key:
                name = f"{count(r.elements):>6} {r.contestant}"
                cells = "".join(f"{_side(cell):>{width}}" for cell in r.cells)
                lines.append(f"{name:<{_SIDE_WIDTH}}{cells}")
    compared = [cell for r in rows for cell in r.cells if cell is not None and cell.verified]
    right = sum(cell.verified.startswith("bit for bit") for cell in compared)
    said = "verified against the NumPy reference on each machine: "
    said += f"{right} of {len(compared)} equal it"
    return "\n".join([*lines, said])


def _side(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    times = "" if cell.ratio is None else f" {cell.ratio:5.2f}x"
    return microseconds(cell.median_seconds) + times


# ---------------------------------------------------------------------------------------------
# The README

_MARKED = re.compile(
    r"(?P<begin><!-- benchmark-table: (?P<path>\S+) -->\n).*?(?P<end><!-- /benchmark-table -->)",
    re.DOTALL,
)
_README_SIZES = (16, 1 << 10, 1 << 16, 1 << 20, 1 << 24, 1 << 26)


def readme(text: str, root: Path) -> str:
    """The README with its table made anew from the record that its marker names.

    Args:
        text: The README as it is.
        root: The folder that the marker's path starts from.

    Raises:
        ArgumentError: There is not one pair of markers, or the record cannot be read.
    """
    found = _MARKED.findall(text)
    if len(found) != 1:
        raise ArgumentError(
            f"README.md must have one table between benchmark-table markers (not {len(found)})"
        )

    def table(match: re.Match[str]) -> str:
        content = readme_table(record.read(root / match["path"]))
        return f"{match['begin']}\n{content}\n{match['end']}"

    return _MARKED.sub(table, text)


def with_marker(text: str, path: str) -> str:
    """The README with its marker naming the record at another path."""
    return _MARKED.sub(lambda m: m[0].replace(m["path"], path, 1), text)


def readme_table(found: Record) -> str:
    """The README's table: relu_ops at the best level, its lead and its share of the limit."""
    target = found.machine["levels"][-1]
    present = {t.elements for t in found.timings if t.mode == WARM and t.target == target}
    sizes = [size for size in _README_SIZES if size in present]
    lines = [
        f"{found.machine['cpu']} ({target}), {found.settings['threads']} threads, "
        f"{found.created[:10]}. Each cell: the median time of a bound call, how many times as "
        "long the fastest peer takes, and the share of the limit (medians over the rounds).",
        "",
        "| elements | " + " | ".join(count(size) for size in sizes) + " |",
        "| --- |" + " ---: |" * len(sizes),
    ]
    for case, dtype in dict.fromkeys(p[:2] for p in found.places() if p[2:4] == (target, WARM)):
        formula = CASES[case].formula if case in CASES else case
        cells = [_readme_cell(found.at((case, dtype, target, WARM, s))) for s in sizes]
        label = f"`{formula}`" + ("" if dtype == "float32" else f" {dtype}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    everybody = dict.fromkeys(
        t.contestant for t in found.timings if not t.contestant.startswith(LIMIT)
    )
    names = [peers.PEERS[n].title for n in everybody if n in peers.PEERS and n not in OURS]
    lines += ["", f"Peers: {'; '.join(names)}."]
    return "\n".join(lines) + "\n"


def _readme_cell(column: dict[str, Timing]) -> str:
    mine, ahead, part = own(column), lead(column), share(column)
    if mine is None:
        return ""
    text = f"{microseconds(mine.median)} us"
    text += f", {ahead[0]:.1f}x" if ahead else ""
    return text + (f", {part:.0%}" if part is not None else "")
