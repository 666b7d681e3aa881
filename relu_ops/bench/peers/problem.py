"""What a peer is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from relu_ops.bench.cases import Case

Call = Callable[[], Any]
Arrays = Sequence[Any]

NOT_INSTALLED, UNSUPPORTED, WRONG, NO_DEVICE = "not installed", "unsupported", "wrong", "no device"
"""Why a peer may be left out."""


@dataclass(frozen=True)
class Problem:
    """What a peer is to compute.

    Attributes:
        case: The row of the table.
        dtype: Of the model.
        target: The level that compilers among the peers generate code for.
        operator: The model, compiled by relu_ops for the target.
        inputs: The input arrays.
        outs: The output arrays, made and touched before.
        threads: How many threads a peer may use.
    """

    case: Case
    dtype: str
    target: str
    operator: Any
    inputs: Sequence[np.ndarray]
    outs: Sequence[np.ndarray]
    threads: int

    @property
    def proto(self) -> Any:
        """The ONNX model, for peers that take one. Needs onnx."""
        from relu_ops.compiler import frontend

        return frontend.read_model(self.operator.bundle.model(self.operator.name))


@dataclass(frozen=True)
class Skipped:
    """A peer that does not take part, and why.

    Attributes:
        kind: One of the constants above.
        reason: In one line.
        hint: What to do about it, or "".
    """

    kind: str
    reason: str
    hint: str = ""


@dataclass(frozen=True)
class Prepared:
    """A peer that is ready.

    Attributes:
        call: Computes once; gives whatever the peer gives.
        outputs: From what the call gave to the NumPy arrays that it wrote.
        allocates: True where every call makes its outputs anew.
        seconds: Times so many calls and gives the seconds of all, where the host's clock does not
            tell (a device); None for the host's clock.
        keep: What has to stay alive.
        fill: Puts values into the outputs before a check, where they are not NumPy's to write.
    """

    call: Callable[[], Any]
    outputs: Callable[[Any], Sequence[np.ndarray]]
    allocates: bool = False
    seconds: Callable[[int], float] | None = None
    keep: tuple[Any, ...] = field(default=(), repr=False)
    fill: Callable[[Sequence[np.ndarray]], None] | None = None


def idiom(table: dict[str, Any], problem: Problem) -> Any:
    """The row of a case. A framework without one raises; that is why it is left out.

    Raises:
        NotImplementedError: There is no such row.
    """
    if problem.case.graph not in table or len(problem.outs) != 1:
        raise NotImplementedError(f"no idiom is written for {problem.case.name}")
    return table[problem.case.graph]


def into(outs: Sequence[np.ndarray]) -> Callable[[Any], Sequence[np.ndarray]]:
    """The outputs of a call that writes into arrays that it was given."""
    return lambda _: outs


def listed(result: Any) -> list[np.ndarray]:
    """The outputs of a call that gives one array or several."""
    return list(result) if isinstance(result, tuple | list) else [result]


def ranked(problem: Problem) -> Any:
    """The model with the rank of the arrays: many compilers take no other."""
    from relu_ops import graphs

    return graphs.with_rank(problem.proto, problem.outs[0].ndim)


def quantized_table(alpha: float, scale: float = 0.05) -> np.ndarray:
    """The 256 results of the quantized chain, by the bits of x as uint8."""
    x = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32) * np.float32(scale)
    y = np.where(x < 0, np.float32(alpha) * x, x) / np.float32(scale)
    return np.clip(np.rint(y), -128, 127).astype(np.int8)
