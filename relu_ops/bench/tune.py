"""Measures from which sizes on threads and streaming stores pay on this machine.

Each question is asked of ReLU of float32, the operator with the least arithmetic, at sizes that
double: two ways take turns, and a way wins where its median is at least GAIN faster. The threshold
is the size from which on it wins at every larger one; where it never does, it is never used.
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from relu_ops import graphs, jit, targets
from relu_ops.bench import environment
from relu_ops.runtime import threads, tuning
from relu_ops.runtime.operator import BoundCall, Operator
from relu_ops.runtime.threads import Settings

GAIN = 0.03
NEVER = 2**61
_ROUNDS = 22
_SAMPLE_SECONDS = 1e-3
_IDLE_SECONDS = 1e-3
_BYTES_PER_ELEMENT = 8  # read and written


def steps() -> list[tuple[str, list[int]]]:
    """The questions, and the sizes in bytes moved at which they are asked."""
    cache = environment.last_level_cache_bytes()
    stream = [cache * 2**k // 4 for k in range(7)]  # a virtual machine has a part of its host's
    return [
        ("parallel_bytes", [2**k for k in range(14, 23)]),
        ("wake_bytes", [2**k for k in range(18, 26)]),
        ("stream_bytes", stream),
    ]


def tune(
    progress: Callable[..., Iterable[Any]] = lambda items, total, title: items,
) -> tuning.Tuning:
    """Measure the thresholds of this machine, for the threads in force. Takes about a minute.

    Args:
        progress: Shows how far it is: called with the sizes, their number and a title.

    Returns:
        What was measured; nothing is stored.
    """
    operator = jit.compile(graphs.relu())
    before = threads.settings()
    count = before.threads
    plan = [(name, size) for name, sizes in steps() for size in sizes]
    wins: dict[str, list[tuple[int, bool]]] = {name: [] for name, _ in steps()}
    try:
        for name, size in progress(plan, len(plan), "tune"):
            wins[name].append((size, _wins(operator, name, size, count)))
    finally:
        threads.configure(before)
    thresholds = tuning.Thresholds(**{name: threshold(answers) for name, answers in wins.items()})
    today = datetime.date.today().isoformat()
    return tuning.Tuning(targets.this_machine().cpu, count, today, thresholds)


def threshold(wins: list[tuple[int, bool]]) -> int:
    """The smallest size from which on every one wins; NEVER where the largest does not.

    >>> threshold([(1, True), (2, False), (4, True), (8, True)]), threshold([(1, False)]) == NEVER
    (4, True)
    """
    found = NEVER
    for size, won in reversed(wins):
        if not won:
            break
        found = size
    return found


def _wins(operator: Operator, name: str, size: int, count: int) -> bool:
    """Whether the way that a threshold is about is faster at a size."""
    if count < 2 and name != "stream_bytes":
        return False
    plain, way, sample = {
        "parallel_bytes": (Settings(1, NEVER, NEVER), Settings(count, 0, NEVER), _busy),
        "wake_bytes": (Settings(1, NEVER, NEVER), Settings(count, 0, NEVER), _lone),
        "stream_bytes": (Settings(count, 0, NEVER), Settings(count, 0, 0), _busy),
    }[name]
    x = np.ones(size // _BYTES_PER_ELEMENT, np.float32)
    call = operator.bind(x, out=np.empty_like(x))
    seconds: dict[Settings, list[float]] = {plain: [], way: []}
    for _ in range(_ROUNDS):
        for settings, found in seconds.items():
            threads.configure(settings)
            found.append(sample(call))
    return statistics.median(seconds[way]) < statistics.median(seconds[plain]) * (1 - GAIN)


def _busy(call: BoundCall) -> float:
    """Seconds of a call among many."""
    call()
    start, repeats = time.perf_counter(), 0
    while (now := time.perf_counter()) - start < _SAMPLE_SECONDS or not repeats:
        for _ in range(1 + repeats):
            call()
        repeats += 1 + repeats
    return (now - start) / repeats


def _lone(call: BoundCall) -> float:
    """Seconds of a call after a while in which every worker fell asleep, and of a next step.

    That reads the output on one thread, and pays for what another core has in its cache.
    """
    idle = time.perf_counter() + _IDLE_SECONDS
    while time.perf_counter() < idle:
        pass
    start = time.perf_counter()
    call()
    call.out.max()
    return time.perf_counter() - start
