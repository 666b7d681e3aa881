"""Measures: prepares everybody, checks everybody, has those who are right timed, keeps it all.

Nobody is timed who was not checked right before on the very call and arrays.
"""

from __future__ import annotations

import datetime
import gc
import hashlib
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from relu_ops import targets
from relu_ops.bench import cases, checking, environment, limit, peers, process, record
from relu_ops.bench.cases import Case
from relu_ops.bench.peers import cuda
from relu_ops.bench.peers.problem import Prepared, Problem, Skipped
from relu_ops.bench.planning import Group, Settings, estimated_seconds
from relu_ops.bench.record import (
    BIT_FOR_BIT,
    CONSUME,
    DIFFERS,
    LIMIT,
    WARM,
    Built,
    Deviation,
    Record,
    Skip,
    Timing,
)
from relu_ops.bench.turns import Contestant, and_sum, host_clock, loop_clock, take_turns
from relu_ops.contract import ir
from relu_ops.errors import ReluOpsError
from relu_ops.runtime import threads as thread_settings
from relu_ops.verification import Progress

MakeOperator = Callable[[Case, str, str], Any]


def compiled(case: Case, dtype: str, target: str) -> Any:
    """The operator of a case, through the compile cache."""
    from relu_ops import jit

    return jit.compile(case.make(dtype), target)


def imported(operator: Any) -> ir.Graph:
    """What an operator computes, by its model."""
    from relu_ops.compiler import frontend

    return frontend.import_model(frontend.read_model(operator.bundle.model(operator.name)))


def measure(
    groups: Sequence[Group],
    settings: Settings | None = None,
    make: MakeOperator = compiled,
    progress: Progress = lambda items, total, title: items,
    graph_of: Callable[[Any], ir.Graph] = imported,
) -> Record:
    """Measure groups.

    Args:
        groups: What to measure.
        settings: How.
        make: Gives the operator of a case, dtype and target.
        progress: Shows how far it is, in seconds of estimated time.
        graph_of: What an operator computes: the reference evaluates it.

    Returns:
        The record.

    Raises:
        ReluOpsError: relu_ops itself failed or computed something wrong.
    """
    settings = settings or Settings()
    began, created = time.monotonic(), datetime.datetime.now(datetime.UTC)
    usage = environment.Usage()
    measurement = _Measurement(settings, make, graph_of)
    with thread_settings.num_threads(settings.threads):
        seconds = [max(1, round(estimated_seconds(group, settings))) for group in groups]
        extra = process.ESTIMATED_SECONDS if settings.processes else 0
        steps = measurement.run(groups, seconds)
        for _ in progress(steps, sum(seconds) + extra, "bench"):
            pass
    return Record(
        format=record.FORMAT,
        created=created.isoformat(timespec="seconds"),
        took_seconds=round(time.monotonic() - began, 1),
        machine=environment.machine() | {"share_of_others": usage.share_of_others()},
        software=environment.software() | {"made_by": measurement.made_by},
        settings=_described(settings),
        operators=tuple(measurement.operators.values()),
        timings=tuple(measurement.timings),
        deviations=tuple(measurement.deviations),
        skipped=tuple(dict.fromkeys(measurement.skipped)),
        processes=tuple(measurement.processes),
    )


def _described(settings: Settings) -> dict[str, Any]:
    own = thread_settings.settings()
    return {
        **vars(settings),
        "relu_ops": own._asdict(),
        "swept_bytes": 2 * environment.last_level_cache_bytes(),
        "alignment": cases.ALIGNMENT,
    }


@dataclass
class _Ready:
    """A problem and those who were found fit to be timed on it."""

    problem: Problem
    limit: limit.Limit | None
    prepared: dict[str, Prepared]
    verified: dict[str, str]


class _Measurement:
    """The state of one benchmark: what was found so far."""

    def __init__(
        self, settings: Settings, make: MakeOperator, graph_of: Callable[[Any], ir.Graph]
    ) -> None:
        self.settings = settings
        self.make, self.graph_of = make, graph_of
        self.timings: list[Timing] = []
        self.deviations: list[Deviation] = []
        self.skipped: list[Skip] = []
        self.processes: list[record.Process] = []
        self.operators: dict[tuple[str, str, str], Built] = {}
        # Operators that are measured together are of one bundle, or of this very version's cache.
        self.made_by: dict[str, str] = {}
        self._subjects: dict[tuple[str, str, str], tuple[Any, ir.Graph]] = {}
        self._unfit: dict[tuple[str, str, str, str], Skipped] = {}
        self._examined: set[tuple[str, str, str, str]] = set()
        self._random = random.Random(settings.seed)
        self._commit, self._machine = environment.commit(), environment.said(settings.threads)

    def run(self, groups: Sequence[Group], seconds: Sequence[int]) -> Iterator[None]:
        """Measure; yield once for each second that was estimated."""
        if self.settings.processes:
            for done in process.measure():
                if isinstance(done, record.Process):
                    self.processes.append(done)
                else:
                    yield None
        for group, estimate in zip(groups, seconds, strict=True):
            self._measure(group)
            gc.collect()  # the arrays of the largest sizes, before the next are made
            yield from itertools.repeat(None, estimate)

    def _measure(self, group: Group) -> None:
        ready = self._ready(group)
        for mode in group.modes:
            if mode != WARM and ready.limit is None:
                continue  # clearing caches and reading outputs need the C loops
            contestants = list(_contestants(ready, mode, group))
            take_turns(contestants, mode, self.settings, ready.limit, self._random)
            self._keep(group, mode, contestants, ready)

    # --- preparing and checking

    def _subject(self, group: Group) -> tuple[Any, ir.Graph]:
        """The operator and its graph."""
        key = _key(group)
        if key not in self._subjects:
            operator = self.make(group.case, group.dtype, group.target)
            self._subjects[key] = operator, self.graph_of(operator)
            self.made_by = operator.bundle.manifest.producer
            self.operators[key] = self._built(group, operator)
        return self._subjects[key]

    def _built(self, group: Group, operator: Any) -> Built:
        model = operator.bundle.model(operator.name)
        image = operator.bundle.image(operator.target)
        seconds = process.build_seconds(model, group.target) if self.settings.processes else ()
        return Built(
            *(*_key(group), group.case.formula),
            hashlib.sha256(model).hexdigest(),
            hashlib.sha256(image).hexdigest(),
            len(image),
            record.rounded(seconds),
        )

    def _problem(self, group: Group, inputs: Sequence[np.ndarray], graph: Any) -> Any:
        inputs = group.case.arranged(inputs)
        expected = cases.expected_of(group.case, graph, inputs)
        outs = [cases.aligned(y.shape, y.dtype) for y in expected]
        for y in outs:
            y.reshape(-1).view(np.uint8)[...] = 0  # every page is there before anybody writes
        operator, _ = self._subject(group)
        made = Problem(
            *(group.case, group.dtype, group.target, operator, inputs, outs),
            self.settings.threads,
        )
        return made, expected

    def _ready(self, group: Group) -> _Ready:
        """Prepare everybody, check everybody, and keep those who are right."""
        _, graph = self._subject(group)
        for name in group.peers:
            self._examine(group, name, graph)
        inputs = cases.ordinary_inputs(graph, group.elements, self.settings.seed)
        problem, expected = self._problem(group, inputs, graph)
        prepared: dict[str, Prepared] = {}
        verified: dict[str, str] = {}
        for name in group.peers:
            if (*_key(group), name) in self._unfit:
                continue
            made = self._checked(peers.find(name), problem, expected)
            if isinstance(made, Skipped):
                self._skip(group, name, made, group.elements)
            else:
                prepared[name], verified[name] = made
        return _Ready(problem, self._limit(group), prepared, verified)

    def _limit(self, group: Group) -> limit.Limit | None:
        if not targets.parse(group.target).backend.processors:
            return None  # a device's limit is its own copy
        loops = limit.of(group.target)
        if isinstance(loops, Skipped):
            self.skipped.append(Skip("limit", loops.kind, loops.reason, loops.hint))
            return None
        return loops

    def _checked(
        self, peer: peers.Peer, problem: Problem, expected: Sequence[np.ndarray]
    ) -> tuple[Prepared, str] | Skipped:
        """A peer that is ready, and how it compares with the contract on these very arrays."""
        made = peers.prepare(peer, problem)
        if isinstance(made, Skipped):
            return made
        found = _checked_call(peer, made, problem, expected)
        if isinstance(found, Skipped):
            return found
        said = f"{DIFFERS}{checking.describe(found)}" if found else BIT_FOR_BIT
        return checking.refusal(found) or (made, said)

    def _examine(self, group: Group, name: str, graph: Any) -> None:
        """Once for each case: what a peer does to special values, and to ordinary ones."""
        key = (*_key(group), name)
        if key in self._examined:
            return
        self._examined.add(key)
        peer = peers.find(name)
        absent = peers.why_not(peer)
        if absent is not None:
            self._unfit[key] = absent
            self.skipped.append(Skip(name, absent.kind, absent.reason, absent.hint))
            return
        ordinary = cases.ordinary_inputs(graph, cases.SPECIAL_ELEMENTS, self.settings.seed)
        counts: list[dict[str, int]] = []
        for inputs in (ordinary, cases.special_inputs(graph)):
            found: Counter[str] | Skipped | None
            found = self._examined_on(peer, group, inputs, graph)
            if not isinstance(found, Skipped):
                counts.append(dict(sorted(found.items())))
                # What it does to special values is shown; on ordinary data it has to be right.
                found = checking.refusal(found) if len(counts) == 1 else None
            if found is not None:
                self._unfit[key] = found
                self._skip(group, name, found)
                return
        if any(counts):
            usual, special = counts
            size = cases.SPECIAL_ELEMENTS
            self.deviations.append(Deviation(*_key(group), name, usual, special, size))

    def _examined_on(
        self, peer: peers.Peer, group: Group, inputs: Sequence[np.ndarray], graph: Any
    ) -> Counter[str] | Skipped:
        problem, expected = self._problem(group, inputs, graph)
        made = peers.prepare(peer, problem)
        if isinstance(made, Skipped):
            return made
        return _checked_call(peer, made, problem, expected)

    def _skip(self, group: Group, name: str, why: Skipped, elements: int = 0) -> None:
        self.skipped.append(Skip(name, why.kind, why.reason, why.hint, *_key(group), elements))

    def _keep(
        self, group: Group, mode: str, contestants: Iterable[Contestant], ready: _Ready
    ) -> None:
        y = ready.problem.outs[0]
        moved = sum(x.nbytes for x in (*ready.problem.inputs, *ready.problem.outs))
        rows = [
            Timing(
                *(*_key(group), mode, y.size, moved, c.name, c.repeats),
                record.rounded(c.seconds),
                c.allocates,
                y.shape,
                ready.verified.get(c.name, ""),
                commit=self._commit,
                machine=self._machine,
            )
            for c in contestants
        ]
        fastest = record.limit_of(rows)
        if fastest is not None:
            (seconds,) = record.rounded([fastest.median])
            rows = [msgspec.structs.replace(row, limit_seconds=seconds) for row in rows]
        self.timings += rows


def _key(group: Group) -> tuple[str, str, str]:
    return group.case.name, group.dtype, group.target


def _checked_call(
    peer: peers.Peer, made: Prepared, problem: Problem, expected: Sequence[np.ndarray]
) -> Counter[str] | Skipped:
    """How a call differs from the contract, or why it cannot be made. relu_ops may do neither."""
    if peer.ours:
        found = checking.check(problem.case, made, problem.inputs, expected)
        if found:
            raise ReluOpsError(
                f"{peer.name}: {problem.case.name} in {problem.dtype} for {problem.target} at "
                f"{expected[0].size} elements is wrong: {checking.describe(found)}"
            )
        return found
    try:
        return checking.check(problem.case, made, problem.inputs, expected)
    except Exception as error:  # a peer may raise anything, also at its first call
        return peers.unsupported(error)


_LIMITS: Mapping[str, Callable[[Problem], Iterable[tuple[str, Callable[[int], float]]]]] = {
    "cpu": lambda _: (),
    "cuda": cuda.limits,
}
"""Limits beside the loops of a processor, by what a target runs on."""


def _contestants(ready: _Ready, mode: str, group: Group) -> Iterator[Contestant]:
    problem, loops = ready.problem, ready.limit
    for name, seconds in _LIMITS[targets.parse(group.target).backend.device](problem):
        yield Contestant(f"{LIMIT}{name}", seconds)
    for name, prepared in ready.prepared.items():
        call = prepared.call
        if mode == CONSUME and loops is not None:
            call = and_sum(prepared, loops)
        sample = prepared.seconds or host_clock(call)
        yield Contestant(name, sample, prepared.allocates)
    if loops is None or len(problem.outs) != 1:
        return
    (y,) = problem.outs
    count = cases.streams(problem.inputs, problem.outs)
    inputs = [x for x in problem.inputs if x.nbytes == y.nbytes][:count] or [np.zeros_like(y)]
    moved = (count + 1) * y.nbytes
    for loop, threads in limit.contestants(group.dtype, len(inputs), moved, problem.threads):
        yield Contestant(
            f"{LIMIT}{loop.name}, {threads} thread{'s' * (threads > 1)}",
            loop_clock(loops, loop, y, inputs, threads, mode == CONSUME),
        )
