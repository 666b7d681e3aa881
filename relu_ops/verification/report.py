"""What `verify` found: a row for each referee and target, and every failure in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Row:
    """What one referee found on one target.

    Attributes:
        referee: The referee's name.
        target: The target's name.
        cases: Elements compared.
        mismatches: Elements that differ, known deviations aside.
        largest_ulp: The largest distance among the mismatches, in units in the last place.
        deviations: For each known cause, how many elements the referee computed otherwise, at
            the nodes where it does.
    """

    referee: str
    target: str
    cases: int = 0
    mismatches: int = 0
    largest_ulp: float = 0.0
    deviations: Counter[str] = field(default_factory=Counter)


@dataclass
class Report:
    """The outcome of `verify`.

    Attributes:
        operator: The operator's name.
        rows: One row per referee and target.
        absent: Referees that could not run, with the reason.
        skipped: Targets that could not run, with the reason.
        failures: Mismatches in words: input bits, both outputs' bits, how to reproduce.
        empty: The declared shapes leave no element to compare: shapes and dtypes were.
        unchecked: What was left out, and why.
        host: On which other machine, as ssh knows it; "" for this one.
    """

    operator: str
    rows: list[Row] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    empty: bool = False
    unchecked: list[str] = field(default_factory=list)
    host: str = ""

    @property
    def ok(self) -> bool:
        """True where something was compared and nothing differed."""
        agree = all(r.mismatches == 0 and (r.cases > 0 or self.empty) for r in self.rows)
        return bool(self.rows) and agree and not self.failures

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        rows = [{**vars(row), "deviations": dict(row.deviations)} for row in self.rows]
        return {**vars(self), "rows": rows, "ok": self.ok}

    def __str__(self) -> str:
        head = f"{'target':<11} {'referee':<16} {'elements':>13} {'mismatches':>11} {'ULP':>5}"
        lines = [f"verify {self.operator}{self.host and f' on {self.host}'}", head]
        for row in self.rows:
            lines.append(
                f"{row.target:<11} {row.referee:<16} {row.cases:>13,} {row.mismatches:>11,} "
                f"{row.largest_ulp:>5g}"
            )
            lines += [f"{'':<12}{n:,} x {cause}" for cause, n in sorted(row.deviations.items())]
        lines += [f"not compared with {name}: {why}" for name, why in self.absent.items()]
        lines += [f"not run on {name}: {why}" for name, why in self.skipped.items()]
        lines += [f"not checked: {what}" for what in self.unchecked]
        lines += self.failures
        lines.append(self._conclusion())
        return "\n".join(lines)

    def _conclusion(self) -> str:
        if not self.ok:
            return "FAILED" if any(r.mismatches for r in self.rows) or self.failures else _NOTHING
        return "ok: no element to compare; shapes and dtypes agree" if self.empty else _AGREE


_AGREE, _NOTHING = "ok: every bit agrees", "FAILED: nothing was compared"
