"""What is measured, where, and how: decided before anything is compiled or timed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from relu_ops import targets
from relu_ops.bench import peers
from relu_ops.bench.cases import Case
from relu_ops.bench.record import COLD, WARM
from relu_ops.bundle.store import Bundle
from relu_ops.errors import ArgumentError, TargetError
from relu_ops.runtime import driver
from relu_ops.runtime import threads as thread_settings

DEFAULT_SIZES = (16, 1 << 10, 1 << 16, 1 << 20, 1 << 24)
ALL_SIZES = (16, *(1 << k for k in range(8, 27, 2)))

REST_SECONDS = 2e-4
"""How long nothing may run before a sample."""
CALIBRATION_SECONDS = 0.02
"""How long it is tried how long a call takes."""
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


@dataclass(frozen=True)
class Place:
    """A machine that is measured on: what a plan has to know of it.

    Attributes:
        machine: Its processor.
        probe: Looks for its devices.
        threads: How many threads a call there uses by default.
        choose: The target of a bundle that is the best there.
    """

    machine: targets.Machine
    probe: Callable[[], driver.Probe]
    threads: Callable[[], int]
    choose: Callable[[Bundle], str]


def here() -> Place:
    """This machine."""
    return Place(
        targets.this_machine(),
        lambda: driver.probe(),
        lambda: thread_settings.default_settings().threads,
        lambda bundle: bundle.handle.choose(),
    )


def plan(
    chosen: Sequence[Case],
    levels: Sequence[str] = ("native",),
    sizes: Sequence[int] = DEFAULT_SIZES,
    dtypes: Sequence[str] = (),
    modes: Sequence[str] = (WARM,),
    names: Sequence[str] = (),
    place: Place | None = None,
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
        place: Where; here by default.

    Raises:
        ArgumentError: Nothing is left to measure.
        TargetError: A target is not known or cannot run here.
    """
    place = place or here()
    resolved = list(dict.fromkeys(_runnable(level, place) for level in levels))
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


def _runnable(level: str, place: Place) -> str:
    target = targets.resolve(level, place.machine)
    _CHECKS[target.backend.device](target, place)
    return target.name


def _check_processor(target: targets.Target, place: Place) -> None:
    targets.check_runs(target, place.machine)


def _check_device(target: targets.Target, place: Place) -> None:
    """Refuse a CUDA target before anything is compiled where there is no device."""
    found = place.probe()
    if not found.gpus:
        raise TargetError(
            f"bench: target {target} cannot be measured: {found.problem or 'there is no device'}",
            f"measure for {', '.join(targets.runnable(place.machine))}",
        )


_CHECKS: Mapping[str, Callable[[targets.Target, Place], None]] = {
    "cpu": _check_processor,
    "cuda": _check_device,
}
"""Whether a target can be measured at a place, by what it runs on."""


def estimated_seconds(group: Group, settings: Settings) -> float:
    """About how long a group takes: for the progress bar, and for plans that must end in time."""
    call = group.elements * 12 / 8e9  # about 12 bytes an element, at what most peers reach
    sample = max(call * 2, settings.sample_seconds * 1.7) + 2 * REST_SECONDS
    contestants = len(group.peers) + 4
    total = 0.05 * len(group.peers) + 1.5 * ("torch_compile" in group.peers) + 20 * call
    for mode in group.modes:
        extra = 0.006 if mode == COLD else 0.0
        total += contestants * (rounds(settings, call) * (sample + extra) + CALIBRATION_SECONDS)
    return total


def rounds(settings: Settings, call_seconds: float) -> int:
    """How many samples there is time for."""
    if call_seconds < _LONG_CALL_SECONDS:
        return settings.rounds
    return min(settings.rounds, max(_FEWEST_ROUNDS, settings.rounds // 2))
