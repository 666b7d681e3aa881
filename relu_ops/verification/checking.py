"""The whole check: every case, on every target that runs here or a device, by every referee.

It ends: after some seconds what is left is named and not run (unless every pattern was asked
for), and no call is made whose arrays would not fit into memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from relu_ops import targets
from relu_ops.bundle import store as bundles
from relu_ops.errors import ArgumentError, ArgumentTypeError, HostError, TargetError, require
from relu_ops.runtime import dispatch
from relu_ops.runtime.operator import number_of
from relu_ops.verification import cases, hosts
from relu_ops.verification.calls import Arrays, Guarded, TooLargeError, call, check_size, inputs_of
from relu_ops.verification.cases import Case
from relu_ops.verification.compare import all_same
from relu_ops.verification.device import OnDevice
from relu_ops.verification.judge import Command, Judge, Jury, of_any_extent
from relu_ops.verification.referees import CONTRACT
from relu_ops.verification.report import Report
from relu_ops.verification.shapes import output_shapes

if TYPE_CHECKING:
    from relu_ops.compiler.frontend import Model
    from relu_ops.hosts import Session

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Wraps an iteration of known length to show how far it is: (items, total, description)."""

_SECONDS = 12.0
"""After which no further case is begun."""


def verify(
    model: Model,
    *,
    name: str | None = None,
    target: str | None = None,
    device: str = "cpu",
    exhaustive: bool = False,
    seed: int = 0,
    case: int | None = None,
    progress: Progress | None = None,
    on: Session | None = None,
) -> Report:
    """Check a model or a bundle against every referee, on every target that runs here.

    It takes some 20 seconds at most, if the compiler is as quick as usual; what is left out is in
    the report. With `exhaustive` it takes as long as it takes.

    Args:
        model: A bundle's directory; or a model, as for `relu_ops.compile`, which is compiled for
            every target of the processor or, for a device, for the target `cuda`.
        name: Which operator of a bundle; None where it has one.
        target: Only this target.
        device: "cpu", or a CUDA device: "cuda" (the first), "cuda:1". Arrays are copied there and
            back, by the driver alone.
        exhaustive: Also check every bit pattern of the input: for operators of one input of at
            most 32 bits.
        seed: Of the random draws.
        case: Only the case of this number; those of an exhaustive check come last.
        progress: Shows how far the check is.
        on: Another machine, from `relu_ops.hosts.connect`: operators run there, and the rest here.

    Returns:
        The report; `report.ok` says whether every bit agreed.

    Raises:
        ArgumentError: exhaustive was asked for and is not possible, or there is no such case,
            seed, operator or device.
        TargetError: No target can run here.
        DeviceError: There is no driver or no such device, or it failed while the code was loaded.
        HostError: The connection to the other machine was lost.
        ModelError, BundleError: The model or bundle is not valid.
    """
    require("onnx", "verify", "relu_ops.verify")
    for what, value in (("seed", seed), ("case", 0 if case is None else case)):
        if not isinstance(value, SupportsIndex):
            raise ArgumentTypeError(
                f"verify: {what} must be an int (not {type(value).__name__})",
                "leave it out for the usual check",
            )
    if seed < 0:
        raise ArgumentError(f"verify: seed must be at least 0 (not {seed})", "leave it out for 0")
    cuda = number_of(device)
    machine = targets.this_machine() if on is None else on.machine
    everything = targets.of_architecture(machine) if cuda < 0 else ("cuda",)
    chosen = [targets.resolve(target, machine).name] if target else everything
    subject = _subject(model, name, chosen, seed, exhaustive)
    plan = subject.plan
    if case is not None and not 0 <= case < max(len(plan), 1):
        raise ArgumentError(f"verify: case must be 0 to {len(plan) - 1} (not {case})")
    report = Report(subject.name, unchecked=subject.unchecked, host=on.host if on else "")
    operators = _operators(subject, target, _loader(subject, cuda, on), report, cuda, machine)
    command = Command(subject.path, name, seed, device, *([on.host, on.python] if on else []))
    check = _Check(subject, operators, report, command)
    numbers = range(len(plan)) if case is None else [case] * min(len(plan), 1)
    title = f"verify {plan.graph.name}"
    shown = numbers if progress is None else progress(numbers, len(numbers), title)
    _run(check, plan, shown, bounded=case is None and not exhaustive)
    return report


def _run(check: _Check, plan: cases.Plan, numbers: Iterable[int], *, bounded: bool) -> None:
    report, end, left = check.report, time.monotonic() + _SECONDS, 0
    if not len(plan):
        report.unchecked.append("everything: no shapes were found that the model allows")
    for number in numbers:
        if bounded and report.rows and time.monotonic() > end:
            left += 1
            continue
        check.run(plan[number])
    if left:
        report.unchecked.append(
            f"the last {left} of {len(plan)} cases: {_SECONDS:g} s had passed; with a number of "
            f"{len(plan) - left} to {len(plan) - 1} as case, one is"
        )


@dataclass(frozen=True)
class _Subject:
    """What is checked.

    Attributes:
        bundle: The bundle that has the operator, for every target.
        name: The operator's name.
        path: Where the model or the bundle lies, where it does.
        proto: The model.
        plan: What it is called with.
        unchecked: What cannot be.
    """

    bundle: bundles.Bundle
    name: str
    path: str | None
    proto: Any
    plan: cases.Plan
    unchecked: list[str] = field(default_factory=list)


def _subject(
    model: Any, name: str | None, names: Sequence[str], seed: int, exhaustive: bool
) -> _Subject:
    path = os.fsdecode(model) if isinstance(model, str | os.PathLike) else None
    if path is not None and Path(path).is_dir():
        return _read(bundles.read(path), name, path, seed, exhaustive)
    subject = _read(_compiled(model, names), name, path, seed, exhaustive)
    try:
        for case in subject.plan.first:
            check_size(case, subject.plan.graph)
    except TooLargeError as error:
        loose = _read(_compiled(of_any_extent(subject.proto), names), name, path, seed, exhaustive)
        loose.unchecked.append(f"the declared shapes: {error}; free dimensions are instead")
        return loose
    return subject


def _compiled(model: Any, names: Sequence[str]) -> bundles.Bundle:
    from relu_ops import compiler

    return bundles.from_contents("the model", compiler.make(model, names))


def _read(
    bundle: bundles.Bundle, name: str | None, path: str | None, seed: int, exhaustive: bool
) -> _Subject:
    from relu_ops.compiler import frontend

    operator = bundle.operator_name(name)
    proto = frontend.read_model(bundle.model(operator))
    plan = cases.plan(frontend.import_model(proto), seed, exhaustive=exhaustive)
    return _Subject(bundle, operator, path, proto, plan)


_Load = Callable[[str | None], Any]
"""Gives the operator of an image by its target's name; of the best one, where that is None."""


def _loader(subject: _Subject, cuda: int, on: Session | None) -> _Load:
    """What loads operators, wherever they are to run."""
    if on is not None:
        hosts.send(on, subject.bundle)
        return lambda target: hosts.There(on, subject.name, target, cuda)

    def load(target: str | None) -> Any:
        operator = dispatch.operator_of(subject.bundle, name=subject.name, target=target, cuda=cuda)
        return operator if cuda < 0 else OnDevice(operator)

    return load


def _operators(
    subject: _Subject,
    target: str | None,
    load: _Load,
    report: Report,
    cuda: int,
    machine: targets.Machine,
) -> dict[str, Callable[..., Any]]:
    """An operator for each target that can run; the others go into the report."""
    if target is not None or cuda >= 0:
        operator = load(target)
        return {operator.target: operator}  # "native" names none
    found: dict[str, Callable[..., Any]] = {}
    for one in subject.bundle.manifest.targets:
        try:
            found[one] = load(one)
        except TargetError:
            report.skipped[one] = targets.why_not(targets.parse(one), machine) or ""
    if not found:
        load(None)  # raises with every reason
    return found


class _Check:
    """Runs case after case, on every target."""

    def __init__(
        self,
        subject: _Subject,
        operators: Mapping[str, Callable[..., Any]],
        report: Report,
        command: Command,
    ) -> None:
        self.report = report
        self._graph, self._operators = subject.plan.graph, operators
        self._jury = Jury(subject.proto, self._graph, report)
        self._judge = Judge(report, command)

    def run(self, case: Case) -> None:
        """Check one case."""
        try:
            check_size(case, self._graph)
        except TooLargeError as error:
            self.report.unchecked.append(f"case {case.number}, {case.title}: {error}")
            return
        inputs = inputs_of(case, self._graph)
        shapes = output_shapes(self._graph, case.shapes)
        self.report.empty = all(0 in shape for shape in shapes)
        expected = self._jury.ask(case)
        guarded = Guarded(expected[CONTRACT].outputs, shapes)
        for target, operator in self._operators.items():
            try:
                results = _results(operator, case, inputs, guarded)
            except HostError:
                raise
            except Exception as error:
                text = f"failed: {case.title}: {type(error).__name__}: {error}"
                self._judge.fail(case, target, text)
                continue
            if guarded.broken():
                self._judge.fail(case, target, f"wrote outside of its outputs: {case.title}")
            for one in results:
                self._judge.compare(case, target, inputs, one, expected)


def _results(
    operator: Callable[..., Any], case: Case, inputs: Arrays, guarded: Guarded
) -> list[Arrays]:
    """What an operator gives: into given outputs, and into its own where these are others."""
    given = call(operator, inputs, guarded.prepare())
    if case.repeats or case.exhaustive:  # large: once is enough
        return [given]
    own = call(operator, inputs, None)
    return [given] if all_same(given, own) else [given, own]
