"""Compares what operators gave with what the referees give, and keeps rows and failures."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from relu_ops.contract import ir
from relu_ops.hosts.ssh import PYTHON
from relu_ops.verification.cases import Case, tiles
from relu_ops.verification.compare import all_same, same, show_bits, show_operand, ulp_distance
from relu_ops.verification.explain import explain
from relu_ops.verification.referees import (
    CONTRACT,
    Arrays,
    Referee,
    reason,
    referees,
    without_functions,
)
from relu_ops.verification.report import Report, Row

_SHOWN = 3
"""How many failures are told, and how many reasons for each."""


@dataclass(frozen=True)
class Command:
    """What repeats one case: a command line, or a call where the model is no file.

    Attributes:
        path: The file or the bundle; None where there is none.
        name: Which operator of the bundle, where that was said.
        seed: Of the random draws.
        device: Where it was checked.
        host: On which other machine, as ssh knows it; "" for this one.
        python: Which Python there.
    """

    path: str | None
    name: str | None
    seed: int
    device: str = "cpu"
    host: str = ""
    python: str = PYTHON

    def of(self, target: str, case: Case) -> str:
        """The line that repeats a case."""
        if self.path is None:
            every = ", exhaustive=True" if case.exhaustive else ""
            every += "" if self.device == "cpu" else f", device={self.device!r}"
            every += ", on=session" if self.host else ""
            options = f"seed={self.seed}, target={target!r}, case={case.number}{every}"
            return f"relu_ops.verify(model, {options})"
        path = f"./{self.path}" if self.path.startswith("-") else self.path
        every = " --exhaustive" if case.exhaustive else ""
        every += "" if self.device == "cpu" else f" --device {self.device}"
        if self.host:
            every += f" --on {shlex.quote(self.host)}"
            every += "" if self.python == PYTHON else f" --python {shlex.quote(self.python)}"
        named = "" if self.name is None else f" --name {shlex.quote(self.name)}"
        options = f"--seed {self.seed} --target {target} --case {case.number}{every}"
        return f"relu-ops verify {shlex.quote(path)}{named} {options}"


@dataclass(frozen=True)
class Expected:
    """What a referee gives for a case.

    Attributes:
        outputs: Its outputs.
        causes: How many elements of nodes each known cause touched, where it differs.
        unexplained: In words, what of its difference from the contract has no known cause.
    """

    outputs: Arrays
    causes: Mapping[str, int] = field(default_factory=dict)
    unexplained: Sequence[str] = ()


class Jury:
    """The referees of one model."""

    def __init__(self, proto: Any, graph: ir.Graph, report: Report) -> None:
        self._proto = proto
        self._referees, report.absent = referees(of_any_extent(proto), graph)
        self._absent = report.absent

    def ask(self, case: Case) -> dict[str, Expected]:
        """What every referee gives for a case; the contract first."""
        # They get plain arrays: onnxruntime reads foreign byte order as if it were native.
        inputs, found = list(case.small), dict[str, Expected]()
        for referee in self._referees:
            if referee.name in self._absent:
                continue
            try:
                outputs = [np.asarray(y) for y in referee.run(inputs)]
            except Exception as error:
                if referee.name == CONTRACT:
                    raise
                self._absent[referee.name] = reason(error)
            else:
                contract = found[CONTRACT].outputs if found else outputs
                found[referee.name] = self._judged(referee, inputs, outputs, contract)
        return found

    def _judged(
        self, referee: Referee, inputs: Arrays, outputs: Arrays, contract: Arrays
    ) -> Expected:
        if all_same(contract, outputs):
            return Expected(outputs)
        plain = without_functions(self._proto)
        verdict = explain(referee, plain, inputs, contract, outputs)
        return Expected(outputs, verdict.causes, verdict.unexplained)


def of_any_extent(proto: Any) -> Any:
    """The model with free dimensions, for who is given a part of the declared extents only."""
    import onnx

    free = onnx.ModelProto()
    free.CopyFrom(proto)
    del free.graph.value_info[:]
    for info in free.graph.input:
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_value != 1:
                dim.Clear()
    for info in free.graph.output:
        for dim in info.type.tensor_type.shape.dim:
            dim.Clear()
    return free


@dataclass(frozen=True)
class _Difference:
    """Where a part of an output is wrong.

    Attributes:
        wrong: A mask of its elements.
        ours: What the operator gave.
        right: What the referee gives.
        origin: Where the part begins in the output.
    """

    wrong: np.ndarray
    ours: np.ndarray
    right: np.ndarray
    origin: tuple[int, ...]


def _differences(
    ours: np.ndarray, theirs: np.ndarray, contract: np.ndarray | None
) -> Iterator[_Difference]:
    """Where an output is neither what a referee gives nor what the contract does, if that counts.

    The referee's may be smaller: it is repeated.
    """
    for place, part in tiles(ours.shape, theirs.shape):
        wrong = ~same(ours[place], theirs[part])
        if contract is not None and wrong.any():
            wrong &= ~same(ours[place], contract[part])
        if wrong.any():
            yield _Difference(wrong, ours[place], theirs[part], tuple(s.start for s in place))


class Judge:
    """Compares results and keeps the rows."""

    def __init__(self, report: Report, command: Command) -> None:
        self._report, self._command = report, command
        self._rows: dict[tuple[str, str], Row] = {}

    def compare(
        self,
        case: Case,
        target: str,
        inputs: Arrays,
        results: Arrays,
        expected: Mapping[str, Expected],
    ) -> None:
        """Compare the outputs of one call with what every referee gives."""
        contract = expected[CONTRACT].outputs
        right = _repeat(results, contract)
        for name, theirs in expected.items():
            row = self._row(name, target)
            row.deviations.update(theirs.causes)
            row.cases += sum(y.size for y in results)
            if right and not theirs.unexplained:
                continue
            for mine, other, base in zip(results, theirs.outputs, contract, strict=True):
                known = not theirs.unexplained
                other = base if known and other.shape != base.shape else other
                if mine.dtype != other.dtype or other.shape != base.shape:
                    self._other_kind(row, case, mine, other)
                    continue
                for one in _differences(mine, other, base if known else None):
                    self._mismatch(row, case, inputs, one, theirs.unexplained)

    def fail(self, case: Case, target: str, text: str) -> None:
        """Keep what went wrong beside the values."""
        self._row(CONTRACT, target).mismatches += 1
        self._tell(case, target, text)

    def _row(self, referee: str, target: str) -> Row:
        row = self._rows.get((referee, target))
        if row is None:
            row = self._rows[referee, target] = Row(referee, target)
            self._report.rows.append(row)
        return row

    def _other_kind(self, row: Row, case: Case, ours: np.ndarray, theirs: np.ndarray) -> None:
        row.mismatches += max(ours.size, 1)
        mine, other = (f"{y.dtype}{list(y.shape)}" for y in (ours, theirs))
        text = f"mismatch: {case.title}: {row.target}: {mine}   {row.referee}: {other}"
        self._tell(case, row.target, text)

    def _mismatch(
        self, row: Row, case: Case, inputs: Arrays, found: _Difference, why: Sequence[str]
    ) -> None:
        row.mismatches += int(found.wrong.sum())
        distance = ulp_distance(found.ours[found.wrong], found.right[found.wrong])
        row.largest_ulp = max(row.largest_ulp, float(distance.max(initial=0)))
        at = tuple(int(i) for i in np.argwhere(found.wrong)[0])
        place = [a + b for a, b in zip(at, found.origin, strict=True)]
        ours, right = show_bits(found.ours[at]), show_bits(found.right[at])
        lines = [
            f"mismatch: {case.title}, element {place}: input "
            + ", ".join(show_operand(x, place) for x in inputs),
            f"  {row.target}: {ours}   {row.referee}: {right}",
            *(f"  {row.referee}: {text}" for text in why[:_SHOWN]),
        ]
        self._tell(case, row.target, "\n".join(lines))

    def _tell(self, case: Case, target: str, text: str) -> None:
        if len(self._report.failures) < _SHOWN:
            command = self._command.of(target, case)
            self._report.failures.append(f"{text}\n  reproduce: {command}")


def _repeat(results: Arrays, contract: Arrays) -> bool:
    """True where results have the bits of the contract, repeated."""
    return all(
        mine.dtype == right.dtype and next(_differences(mine, right, None), None) is None
        for mine, right in zip(results, contract, strict=True)
    )
