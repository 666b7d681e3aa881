"""What `relu_ops.partition` found and did, group by group: for people, and as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from relu_ops.errors import counted


@dataclass
class GroupReport:
    """One group of nodes.

    Attributes:
        where: The scope that it stands in; "" for the graph itself.
        nodes: Its operators, in order.
        outputs: The names of its results.
        shape: What is known of the first result.
        taken: Whether it is an operator now.
        why: Why, or why not.
        operator: The name of its operator in the bundle; None where it was left.
        stock_seconds: How long onnxruntime takes for it, where that was measured.
        own_seconds: How long the operator takes, in onnxruntime too.
    """

    where: str
    nodes: list[str]
    outputs: list[str]
    shape: str
    taken: bool
    why: str
    operator: str | None = None
    stock_seconds: float | None = None
    own_seconds: float | None = None


@dataclass
class Report:
    """A partitioned model.

    Attributes:
        path: The folder; None where nothing was written.
        digest: The digest of its bundle; None where no group was taken.
        groups: Every group that was found.
        checked: How the outputs of the partitioned model compare with the model's.
        causes: Where they differ: the known deviations of onnxruntime that explain it, and how
            many elements of nodes each touched.
        stock_seconds: How long a run of the model takes, where that was measured.
        own_seconds: How long a run of the partitioned model takes.
    """

    path: str | None = None
    digest: str | None = None
    groups: list[GroupReport] = field(default_factory=list)
    checked: str = ""
    causes: dict[str, int] = field(default_factory=dict)
    stock_seconds: float | None = None
    own_seconds: float | None = None

    @property
    def taken(self) -> list[GroupReport]:
        """The groups that are operators now."""
        return [group for group in self.groups if group.taken]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        found = counted(len(self.groups), "group")
        lines = [f"{found} of nodes found, {len(self.taken)} taken"]
        lines += [f"  {count} x {line}" for line, count in Counter(map(_line, self.groups)).items()]
        if self.stock_seconds is not None and self.own_seconds is not None:
            lines.append(f"the model: {_times(self.stock_seconds, self.own_seconds)}")
        lines.append(f"outputs: {self.checked}")
        lines += [f"  {count} elements: {cause}" for cause, count in self.causes.items()]
        return "\n".join(lines)


def _line(group: GroupReport) -> str:
    verdict = f"taken as {group.operator}" if group.taken else "left"
    where = f"{group.where}: " if group.where else ""
    line = f"{where}{' '.join(group.nodes)} {group.shape}: {verdict}: {group.why}"
    if group.stock_seconds is None or group.own_seconds is None:
        return line
    return f"{line}; {_times(group.stock_seconds, group.own_seconds)}"


def _times(stock: float, own: float) -> str:
    return f"{stock * 1e6:,.1f} us in onnxruntime, {own * 1e6:,.1f} so ({stock / own:.2f} times)"
