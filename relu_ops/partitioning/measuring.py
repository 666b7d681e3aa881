"""Times groups and whole models, stock and partitioned, both in onnxruntime and in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from relu_ops.interop import onnxruntime as door
from relu_ops.partitioning import hosted

ROUNDS = 21
LEAST_GAIN = 1.05
"""What is less is not told from noise."""

_ROUND_SECONDS = 2e-3


class Times(NamedTuple):
    """Medians of one run, in seconds."""

    stock: float
    own: float

    @property
    def gain(self) -> float:
        """How many times as fast ours is."""
        return self.stock / self.own


def in_turn(stock: Callable[[], Any], own: Callable[[], Any], rounds: int = ROUNDS) -> Times:
    """Time two functions, a round of each after the other."""
    repeats = [_repeats(one) for one in (stock, own)]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for one, count, kept in zip((stock, own), repeats, times, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                one()
            kept.append((time.perf_counter() - start) / count)
    return Times(statistics.median(times[0]), statistics.median(times[1]))


def _repeats(one: Callable[[], Any]) -> int:
    one()
    start = time.perf_counter()
    one()
    return max(1, int(_ROUND_SECONDS / max(time.perf_counter() - start, 1e-7)))


def bound(session: Any, feeds: Mapping[str, np.ndarray]) -> Callable[[], Any]:
    """A run of a session on arrays that are bound once."""
    binding = session.io_binding()
    for name, x in feeds.items():
        binding.bind_cpu_input(name, x)
    for info in session.get_outputs():
        binding.bind_output(info.name, "cpu")
    return lambda: session.run_with_iobinding(binding)


def compare_group(
    model: onnx.ModelProto,
    kind: str,
    bundle: Path,
    digest: str,
    shapes: Sequence[tuple[int, ...]],
    threads: int | None,
) -> Times:
    """Time an operator of a bundle against the nodes that it stands for.

    Args:
        model: Those nodes.
        kind: What the operator's node is called.
        bundle: The bundle.
        digest: Its digest.
        shapes: Of the inputs.
        threads: Of both sessions.
    """
    own = onnx.ModelProto()
    own.CopyFrom(model)
    del own.graph.node[:], own.graph.initializer[:]
    inputs, outputs = ([info.name for info in part] for part in (own.graph.input, own.graph.output))
    own.graph.node.append(onnx.helper.make_node(kind, inputs, outputs, domain=door.DOMAIN))
    own.opset_import.add(domain=door.DOMAIN, version=1)
    sessions = [
        hosted.session_of(model.SerializeToString(), hosted.options_of(threads, timed=True)),
        hosted.session_of(
            own.SerializeToString(),
            hosted.with_bundle(hosted.options_of(threads, timed=True), bundle, digest),
        ),
    ]
    given = dict(zip(inputs, shapes, strict=True))
    feeds = hosted.random_arrays(sessions[0], given)
    stock, ours = (bound(session, feeds) for session in sessions)
    return in_turn(stock, ours)
