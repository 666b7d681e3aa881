"""Lets an operator on another machine be checked as one that is here: NumPy arrays in and out.

Inputs go there as they lie in memory; outputs come back with the bytes beside them. Cases, referees
and comparisons stay here: the other machine needs nothing for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from relu_ops.bundle.store import Bundle
from relu_ops.contract.semantics import DTYPES, dtype_name
from relu_ops.hosts.session import Session
from relu_ops.verification.mirror import Mirror


class There:
    """An operator on another machine.

    Attributes:
        target: The image that runs.
    """

    def __init__(self, session: Session, name: str, target: str | None, cuda: int) -> None:
        loaded, _ = session.ask("load", name=name, target=target, cuda=cuda)
        self.target: str = loaded["target"]
        self._session, self._number = session, loaded["number"]

    def __call__(self, *inputs: np.ndarray, out: Any = None) -> Any:
        """Send the inputs, compute there, and take the outputs.

        Raises:
            AssertionError: A byte beside an output was written.
        """
        outs = [] if out is None else list(out) if isinstance(out, tuple | list) else [out]
        mirrors = [Mirror(np.asarray(x)) for x in (*inputs, *outs)]
        shapes, memories = self._session.ask(
            "call",
            [mirror.bytes for mirror in mirrors],
            doing="run an operator",
            number=self._number,
            arrays=list(map(_described, mirrors)),
            outs=len(outs),
        )
        if out is None:
            made = tuple(_array(one, memory) for one, memory in zip(shapes, memories, strict=True))
            return made if len(made) > 1 else made[0]
        for y, mirror, memory in zip(outs, mirrors[len(inputs) :], memories, strict=True):
            mirror.copy_to(y, np.frombuffer(memory, np.uint8))
        return out


def send(session: Session, bundle: Bundle) -> None:
    """Send a bundle there, for operators to be loaded of."""
    files = bundle.contents
    path = str(bundle.path)
    session.ask("open", list(files.values()), path=path, names=list(files), doing="take a bundle")


def _described(mirror: Mirror) -> dict[str, Any]:
    """How an array lies in its mirror."""
    x = mirror.array
    name = dtype_name(x.dtype if x.dtype.isnative else x.dtype.newbyteorder())
    assert name is not None
    lies = {"shape": x.shape, "strides": x.strides, "first": mirror.first}
    return {"dtype": name, "swapped": not x.dtype.isnative, **lies}


def _array(lies: dict[str, Any], memory: bytearray) -> np.ndarray:
    return np.frombuffer(memory, DTYPES[lies["dtype"]].numpy).reshape(lies["shape"])
