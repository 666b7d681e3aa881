"""Measures: everybody in one process, in turns, round by round, in shuffled order.

Nobody is timed who was not checked right before on the very call and arrays. Between two samples
the process comes to rest, so that threads of one library that still spin do not slow down the next.
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import hashlib
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from relu_ops import targets
from relu_ops.bench import cases, checking, environment, limit, peers, process, record
from relu_ops.bench.cases import Case
from relu_ops.bench.peers import cuda
from relu_ops.bench.peers.problem import Prepared, Problem, Skipped
from relu_ops.bench.record import (
    BIT_FOR_BIT,
    COLD,
    CONSUME,
    LIMIT,
    WARM,
    Built,
    Deviation,
    Record,
    Skip,
    Timing,
)
from relu_ops.errors import ArgumentError, ReluOpsError, TargetError
from relu_ops.runtime import driver
from relu_ops.runtime import threads as thread_settings
from relu_ops.verification import Progress

DEFAULT_SIZES = (16, 1 << 10, 1 << 16, 1 << 20, 1 << 24)
ALL_SIZES = (16, *(1 << k for k in range(8, 27, 2)))

_REST_SECONDS = 2e-4
_LONGEST_REST_SECONDS = 0.1
# The threads that swept have to be asleep: one that still runs would push the next one's worker
# onto the caller's processor (torch's p80 was 15 ms where its median is 2).
_AFTER_SWEEP_SECONDS = 1e-4
_CALIBRATION_SECONDS = 0.02
_LONG_CALL_SECONDS = 5e-3
_FEWEST_ROUNDS = 7


@dataclass(frozen=True)
class Group:
    """What is measured together: one case at one size, by several peers, in several modes."""

    case: Case
    dtype: str
    target: str
    elements: int
    modes: tuple[str, ...] = (WARM,)
    peers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How it is measured.

    Attributes:
        threads: How many threads everybody may use.
        rounds: Samples of each contestant; half as many where a call takes milliseconds.
        sample_seconds: How long a sample of short calls lasts.
        processes: Whether to start fresh processes, and to build without the cache.
        seed: Of the data and of the order.
    """

    threads: int = field(default_factory=lambda: thread_settings.default_settings().threads)
    rounds: int = 21
    sample_seconds: float = 3e-3
    processes: bool = False
    seed: int = 0


QUICK: dict[str, Any] = {"rounds": 9, "sample_seconds": 1e-3}
"""Settings for a look."""

MakeOperator = Callable[[Case, str, str], Any]


def compiled(case: Case, dtype: str, target: str) -> Any:
    """The operator of a case, through the compile cache."""
    from relu_ops import jit

    return jit.compile(case.make(dtype), target)


def plan(
    chosen: Sequence[Case],
    levels: Sequence[str] = ("native",),
    sizes: Sequence[int] = DEFAULT_SIZES,
    dtypes: Sequence[str] = (),
    modes: Sequence[str] = (WARM,),
    names: Sequence[str] = (),
) -> list[Group]:
    """Every combination of the arguments, as groups.

    Args:
        chosen: The cases.
        levels: Targets by name.
        sizes: Numbers of elements.
        dtypes: Those to take of each case's; empty for the first alone.
        modes: Of `record.MODES`.
        names: Peers; empty for all of a target's kind. Of several targets of a kind the first has
            all, the others those that generate code for it: to the rest it makes no difference.

    Raises:
        ArgumentError: Nothing is left to measure.
        TargetError: A target is not known or cannot run here.
    """
    resolved = list(dict.fromkeys(_runnable(level) for level in levels))
    groups = []
    for case, level in itertools.product(chosen, resolved):
        everybody = _participants(level, resolved, names)
        who = tuple(name for name in everybody if not case.peers or name in case.peers)
        for dtype in [d for d in case.dtypes if d in dtypes] if dtypes else case.dtypes[:1]:
            groups += [Group(case, dtype, level, size, tuple(modes), who) for size in sizes]
    if not groups:
        listed = "; ".join(f"{c.name}: {', '.join(c.dtypes)}" for c in chosen)
        raise ArgumentError(f"bench: no case has such a dtype ({listed})")
    return groups


def _participants(level: str, levels: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    device = targets.parse(level).backend.device
    first = next(other for other in levels if targets.parse(other).backend.device == device)
    return tuple(
        p.name
        for p in peers.PEERS.values()
        if p.device == device and (not names or p.name in names) and (level == first or p.by_target)
    )


def _runnable(level: str) -> str:
    target = targets.resolve(level)
    _CHECKS[target.backend.device](target)
    return target.name


def _check_device(target: targets.Target) -> None:
    """Refuse a CUDA target before anything is compiled where there is no device."""
    found = driver.probe()
    if not found.gpus:
        raise TargetError(
            f"bench: target {target} cannot be measured: {found.problem or 'there is no device'}",
            f"measure for {', '.join(targets.runnable())}",
        )


def estimated_seconds(group: Group, settings: Settings) -> float:
    """About how long a group takes: for the progress bar, and for plans that must end in time."""
    call = group.elements * 12 / 8e9  # about 12 bytes an element, at what most peers reach
    sample = max(call * 2, settings.sample_seconds * 1.7) + 2 * _REST_SECONDS
    contestants = len(group.peers) + 4
    total = 0.05 * len(group.peers) + 1.5 * ("torch_compile" in group.peers) + 20 * call
    for mode in group.modes:
        extra = 0.006 if mode == COLD else 0.0
        total += contestants * (_rounds(settings, call) * (sample + extra) + _CALIBRATION_SECONDS)
    return total


def _rounds(settings: Settings, call_seconds: float) -> int:
    if call_seconds < _LONG_CALL_SECONDS:
        return settings.rounds
    return min(settings.rounds, max(_FEWEST_ROUNDS, settings.rounds // 2))


def measure(
    groups: Sequence[Group],
    settings: Settings | None = None,
    make: MakeOperator = compiled,
    progress: Progress = lambda items, total, title: items,
) -> Record:
    """Measure groups.

    Args:
        groups: What to measure.
        settings: How.
        make: Gives the operator of a case, dtype and target.
        progress: Shows how far it is, in seconds of estimated time.

    Returns:
        The record.

    Raises:
        ReluOpsError: relu_ops itself failed or computed something wrong.
    """
    settings = settings or Settings()
    began, created = time.monotonic(), datetime.datetime.now(datetime.UTC)
    usage = environment.Usage()
    measurement = _Measurement(settings, make)
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
class _Contestant:
    """Somebody who is timed: seconds of so many calls."""

    name: str
    sample: Callable[[int], float]
    allocates: bool = False
    repeats: int = 1
    seconds: list[float] = field(default_factory=list)


@dataclass
class _Ready:
    """A problem and those who were found fit to be timed on it."""

    problem: Problem
    limit: limit.Limit | None
    prepared: dict[str, Prepared]
    verified: dict[str, str]


class _Measurement:
    """The state of one benchmark: what was found so far."""

    def __init__(self, settings: Settings, make: MakeOperator) -> None:
        self.settings = settings
        self.make = make
        self.timings: list[Timing] = []
        self.deviations: list[Deviation] = []
        self.skipped: list[Skip] = []
        self.processes: list[record.Process] = []
        self.operators: dict[tuple[str, str, str], Built] = {}
        # Operators that are measured together are of one bundle, or of this very version's cache.
        self.made_by: dict[str, str] = {}
        self._subjects: dict[tuple[str, str, str], tuple[Any, Any, Any]] = {}
        self._unfit: dict[tuple[str, str, str, str], Skipped] = {}
        self._examined: set[tuple[str, str, str, str]] = set()
        self._random = random.Random(settings.seed)
        self._commit = environment.commit()

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
            rounds = self._calibrate(contestants, mode)
            self._take_turns(contestants, mode, rounds, ready.limit)
            self._keep(group, mode, contestants, ready)

    # --- preparing and checking

    def _subject(self, group: Group) -> tuple[Any, Any, Any]:
        """The operator, its model and its graph."""
        key = (group.case.name, group.dtype, group.target)
        if key not in self._subjects:
            from relu_ops.compiler import frontend

            operator = self.make(group.case, group.dtype, group.target)
            proto = frontend.read_model(operator.bundle.model(operator.name))
            self._subjects[key] = operator, proto, frontend.import_model(proto)
            self.made_by = operator.bundle.manifest.producer
            self.operators[key] = self._built(group, operator, proto)
        return self._subjects[key]

    def _built(self, group: Group, operator: Any, proto: Any) -> Built:
        model = operator.bundle.model(operator.name)
        image = operator.bundle.image(operator.target)
        seconds = process.build_seconds(proto, group.target) if self.settings.processes else ()
        return Built(
            *(group.case.name, group.dtype, group.target, group.case.formula),
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
        operator, proto, _ = self._subject(group)
        made = Problem(
            *(group.case, group.dtype, group.target, proto, operator, inputs, outs),
            self.settings.threads,
        )
        return made, expected

    def _ready(self, group: Group) -> _Ready:
        """Prepare everybody, check everybody, and keep those who are right."""
        _, _, graph = self._subject(group)
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
        return checking.refusal(found) or (made, checking.describe(found) or BIT_FOR_BIT)

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

    # --- timing

    def _calibrate(self, contestants: Sequence[_Contestant], mode: str) -> int:
        """Find how many calls make a sample, and how many rounds there is time for."""
        typical = [_typical_seconds(contestant) for contestant in contestants]
        for contestant, seconds in zip(contestants, typical, strict=True):
            wanted = round(self.settings.sample_seconds / seconds)
            contestant.repeats = 1 if mode == COLD else max(1, wanted)
        return _rounds(self.settings, float(np.median(typical)) if typical else 0.0)

    def _take_turns(
        self,
        contestants: Sequence[_Contestant],
        mode: str,
        rounds: int,
        loops: limit.Limit | None,
    ) -> None:
        order = list(contestants)
        collecting = gc.isenabled()
        gc.disable()
        try:
            for _ in range(rounds):
                self._random.shuffle(order)
                for contestant in order:
                    _rest()
                    if mode == COLD and loops is not None:
                        loops.sweep(self.settings.threads)
                        _spin(_AFTER_SWEEP_SECONDS)
                    else:
                        _warm_up(contestant)
                    seconds = contestant.sample(contestant.repeats)
                    contestant.seconds.append(seconds / contestant.repeats)
        finally:
            if collecting:
                gc.enable()

    def _keep(
        self, group: Group, mode: str, contestants: Iterable[_Contestant], ready: _Ready
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


_CHECKS: Mapping[str, Callable[[targets.Target], None]] = {
    "cpu": targets.check_runs,
    "cuda": _check_device,
}
_LIMITS: Mapping[str, Callable[[Problem], Iterable[tuple[str, Callable[[int], float]]]]] = {
    "cpu": lambda _: (),
    "cuda": cuda.limits,
}
"""By what a target runs on: whether it can here; and limits beside the loops of a processor."""


def _contestants(ready: _Ready, mode: str, group: Group) -> Iterator[_Contestant]:
    problem, loops = ready.problem, ready.limit
    for name, seconds in _LIMITS[targets.parse(group.target).backend.device](problem):
        yield _Contestant(f"{LIMIT}{name}", seconds)
    for name, prepared in ready.prepared.items():
        call = prepared.call
        if mode == CONSUME and loops is not None:
            call = _and_sum(prepared, loops)
        sample = prepared.seconds or _host_clock(call)
        yield _Contestant(name, sample, prepared.allocates)
    if loops is None or len(problem.outs) != 1:
        return
    (y,) = problem.outs
    count = cases.streams(problem.inputs, problem.outs)
    inputs = [x for x in problem.inputs if x.nbytes == y.nbytes][:count] or [np.zeros_like(y)]
    moved = (count + 1) * y.nbytes
    for loop, threads in limit.contestants(group.dtype, len(inputs), moved, problem.threads):
        yield _Contestant(
            f"{LIMIT}{loop.name}, {threads} thread{'s' * (threads > 1)}",
            _loop_clock(loops, loop, y, inputs, threads, mode == CONSUME),
        )


def _host_clock(call: Callable[[], Any]) -> Callable[[int], float]:
    def sample(repeats: int) -> float:
        turns = itertools.repeat(None, repeats)
        start = time.perf_counter()
        for _ in turns:
            call()
        return time.perf_counter() - start

    return sample


def _loop_clock(
    loops: limit.Limit,
    loop: limit.Loop,
    y: np.ndarray,
    inputs: Sequence[np.ndarray],
    threads: int,
    consume: bool,
) -> Callable[[int], float]:
    return lambda repeats: loops.run(loop, y, inputs, repeats, threads, consume)


def _and_sum(prepared: Prepared, loops: limit.Limit) -> Callable[[], Any]:
    """The call and then a sum over its output, by one thread: the next step of a pipeline."""
    call, outputs, add = prepared.call, prepared.outputs, loops.sum
    if not prepared.allocates:
        y = outputs(None)[0]
        address, size, raw = ctypes.c_void_p(y.ctypes.data), y.nbytes, loops.raw_sum

        def step() -> None:
            call()
            raw(address, size)

        return step
    return lambda: add(outputs(call())[0])


def _typical_seconds(contestant: _Contestant) -> float:
    """The least that a call takes, over some milliseconds of calls.

    Not the first call, nor a mean: where a thread is woken on the caller's own processor, a call
    of 50 us takes 10 ms once, and with a sample of that one call it would every time.
    """
    repeats, least = 1, contestant.sample(1)
    deadline = time.perf_counter() + _CALIBRATION_SECONDS
    while time.perf_counter() < deadline:
        seconds = contestant.sample(repeats)
        least = min(least, seconds / repeats)
        if seconds < _CALIBRATION_SECONDS / 20:
            repeats *= 2
    _rest()
    return max(least, 1e-9)


def _warm_up(contestant: _Contestant) -> None:
    """Bring the arrays into the caches, and let threads wake and find their processors.

    The host of a virtual machine takes up to some milliseconds to give it back a processor that
    was idle, and until then a call on two threads takes as long as on one. This mode is not about
    waking: `cold` is.
    """
    contestant.sample(max(1, 2 * contestant.repeats // 3))


def _spin(seconds: float) -> None:
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        pass


def _rest() -> None:
    """Wait until no other thread of this process runs: those of some libraries spin for a while.

    This thread stays awake: a processor that slept, or that the next worker is woken on, would
    make the first calls after it wait.
    """
    deadline = time.perf_counter() + _LONGEST_REST_SECONDS
    while time.perf_counter() < deadline:
        used, start = time.process_time(), time.perf_counter()
        _spin(_REST_SECONDS)
        others = (time.process_time() - used) - (time.perf_counter() - start)
        if others < _REST_SECONDS / 10:
            return
