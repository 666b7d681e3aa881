"""Times contestants: in turns, round by round, in shuffled order, each after a rest.

Between two samples the process comes to rest, so that threads of one library that still spin do not
slow down the next.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from relu_ops.bench import limit
from relu_ops.bench.peers.problem import Prepared
from relu_ops.bench.planning import CALIBRATION_SECONDS, REST_SECONDS, Settings, rounds
from relu_ops.bench.record import COLD

_LONGEST_REST_SECONDS = 0.1
# The threads that swept have to be asleep: one that still runs would push the next one's worker
# onto the caller's processor (torch's p80 was 15 ms where its median is 2).
_AFTER_SWEEP_SECONDS = 1e-4


@dataclass
class Contestant:
    """Somebody who is timed: seconds of so many calls."""

    name: str
    sample: Callable[[int], float]
    allocates: bool = False
    repeats: int = 1
    seconds: list[float] = field(default_factory=list)


def take_turns(
    contestants: Sequence[Contestant],
    mode: str,
    settings: Settings,
    loops: limit.Limit | None,
    shuffled: random.Random,
) -> None:
    """Take the samples of everybody.

    Args:
        contestants: Who; they keep their seconds.
        mode: One of `record.MODES`.
        settings: How many, how long, on how many threads.
        loops: Clears caches; None where nothing can.
        shuffled: Says who is next.
    """
    count = _calibrate(contestants, mode, settings)
    order = list(contestants)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(count):
            shuffled.shuffle(order)
            for contestant in order:
                _rest()
                if mode == COLD and loops is not None:
                    loops.sweep(settings.threads)
                    _spin(_AFTER_SWEEP_SECONDS)
                else:
                    _warm_up(contestant)
                seconds = contestant.sample(contestant.repeats)
                contestant.seconds.append(seconds / contestant.repeats)
    finally:
        if collecting:
            gc.enable()


def _calibrate(contestants: Sequence[Contestant], mode: str, settings: Settings) -> int:
    """Find how many calls make a sample, and how many rounds there is time for."""
    typical = [_typical_seconds(contestant) for contestant in contestants]
    for contestant, seconds in zip(contestants, typical, strict=True):
        wanted = round(settings.sample_seconds / seconds)
        contestant.repeats = 1 if mode == COLD else max(1, wanted)
    return rounds(settings, float(np.median(typical)) if typical else 0.0)


def host_clock(call: Callable[[], Any]) -> Callable[[int], float]:
    """What times so many calls, by the processor's clock."""

    def sample(repeats: int) -> float:
        turns = itertools.repeat(None, repeats)
        start = time.perf_counter()
        for _ in turns:
            call()
        return time.perf_counter() - start

    return sample


def loop_clock(
    loops: limit.Limit,
    loop: limit.Loop,
    y: np.ndarray,
    inputs: Sequence[np.ndarray],
    threads: int,
    consume: bool,
) -> Callable[[int], float]:
    """What times so many runs of a loop of the limit."""
    return lambda repeats: loops.run(loop, y, inputs, repeats, threads, consume)


def and_sum(prepared: Prepared, loops: limit.Limit) -> Callable[[], Any]:
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


def _typical_seconds(contestant: Contestant) -> float:
    """The least that a call takes, over some milliseconds of calls.

    Not the first call, nor a mean: where a thread is woken on the caller's own processor, a call
    of 50 us takes 10 ms once, and with a sample of that one call it would every time.
    """
    repeats, least = 1, contestant.sample(1)
    deadline = time.perf_counter() + CALIBRATION_SECONDS
    while time.perf_counter() < deadline:
        seconds = contestant.sample(repeats)
        least = min(least, seconds / repeats)
        if seconds < CALIBRATION_SECONDS / 20:
            repeats *= 2
    _rest()
    return max(least, 1e-9)


def _warm_up(contestant: Contestant) -> None:
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
        _spin(REST_SECONDS)
        others = (time.process_time() - used) - (time.perf_counter() - start)
        if others < REST_SECONDS / 10:
            return
