"""Who takes part: one table of peers behind one small interface.

A peer is asked to prepare a problem: it gives a call that computes it, or says why it cannot. All
are optional, all get the same arrays and the same number of threads.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

from relu_ops.bench.peers.problem import NOT_INSTALLED, UNSUPPORTED, Prepared, Problem, Skipped
from relu_ops.errors import ReluOpsError, choice


@dataclass(frozen=True)
class Peer:
    """One row of the table.

    Attributes:
        name: The name in records and on the command line.
        title: The name in pictures.
        package: As pip installs it; relu_ops itself for its own rows.
        module: What is imported.
        prepare: "module:function" of relu_ops.bench.peers, which makes a Prepared of a Problem.
        device: "cpu" or "cuda".
        by_target: Whether it generates other code for another target.
    """

    name: str
    title: str
    package: str
    module: str
    prepare: str
    device: str = "cpu"
    by_target: bool = False

    @property
    def ours(self) -> bool:
        """True for relu_ops itself."""
        return self.module == "relu_ops"


_OWN, _ORT, _T = "relu_ops", "onnxruntime", "torch"
PEERS: dict[str, Peer] = {
    row.name: row
    for row in (
        Peer("relu_ops", "relu_ops, bound", _OWN, _OWN, "own:bound", "cpu", True),
        Peer("relu_ops_out", "relu_ops, out=y", _OWN, _OWN, "own:out", "cpu", True),
        Peer("relu_ops_new", "relu_ops, y = op(x)", _OWN, _OWN, "own:new", "cpu", True),
        Peer("numpy", "NumPy", "numpy", "numpy", "numpy:prepare"),
        Peer("onnxruntime", "onnxruntime, bound", _ORT, _ORT, "onnxruntime:bound"),
        Peer("onnxruntime_run", "onnxruntime, run", _ORT, _ORT, "onnxruntime:run"),
        Peer("tvm", "TVM, stock", "apache-tvm", "tvm", "tvm:prepare", "cpu", True),
        Peer("torch", "torch", _T, _T, "torch:eager"),
        Peer("torch_compile", "torch.compile", _T, _T, "torch:compiled"),
        Peer("numba", "numba", "numba", "numba", "numba:prepare"),
        Peer("openvino", "OpenVINO", "openvino", "openvino", "openvino:prepare"),
        Peer("jax", "JAX", "jax", "jax", "jax:prepare"),
        Peer("litert", "LiteRT", "ai-edge-litert", "ai_edge_litert", "litert:prepare"),
        Peer("relu_ops_cuda", "relu_ops, bound", _OWN, _OWN, "cuda:bound", "cuda", True),
        Peer("torch_cuda", "torch", _T, _T, "cuda:torch_eager", "cuda"),
        Peer("torch_cuda_compile", "torch.compile", _T, _T, "cuda:torch_compiled", "cuda"),
        Peer("cupy", "CuPy", "cupy", "cupy", "cuda:cupy", "cuda"),
    )
}  # fmt: skip
"""Every peer by name, in the order of tables and pictures."""

_INSTALL = {"torch": "torch", "jax": "jax"}
"""Packages that an extra of relu_ops installs; the others have pip's own name."""


def find(name: str) -> Peer:
    """The peer of a name.

    Raises:
        ArgumentError: There is none.
    """
    return PEERS[choice("bench: peer", name, PEERS)]


def why_not(peer: Peer) -> Skipped | None:
    """Why a peer cannot take part at all; None where it can. Imports nothing."""
    if importlib.util.find_spec(peer.module) is None:
        name = f"relu_ops[{peer.package}]" if peer.package in _INSTALL else peer.package
        return Skipped(NOT_INSTALLED, f"{peer.package} is not installed", f"pip install '{name}'")
    return None


def prepare(peer: Peer, problem: Problem) -> Prepared | Skipped:
    """Ask a peer to prepare a problem. Whatever it raises is its reason for being left out.

    Args:
        peer: Who.
        problem: What.

    Raises:
        ReluOpsError: The peer is relu_ops itself: then it is a failure and no reason.
    """
    absent = why_not(peer)
    if absent is not None:
        return absent
    module, _, function = peer.prepare.partition(":")
    make = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    try:
        made: Prepared | Skipped = make(problem)
        return made
    except ReluOpsError:
        raise
    except Exception as error:  # a peer may raise anything; it may not stop the benchmark
        return unsupported(error)


def unsupported(error: Exception) -> Skipped:
    """A peer left out for what it raised, in one line."""
    text = " ".join(str(error).split())[:160]
    return Skipped(UNSUPPORTED, text or type(error).__name__)
