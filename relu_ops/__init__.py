"""ReLU and Leaky ReLU as compiled, deployable operators.

Author a rectifier graph as an ONNX model (`graphs`), compile it (`compile`, `build`), run it
without a compiler (`load`), check it (`verify`). See README.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from relu_ops._version import __version__

if TYPE_CHECKING:
    from relu_ops import errors, graphs, interop
    from relu_ops.compiler import build
    from relu_ops.errors import ReluOpsError
    from relu_ops.jit import compile
    from relu_ops.partitioning import partition
    from relu_ops.runtime.dispatch import load
    from relu_ops.runtime.operator import Operator
    from relu_ops.runtime.threads import get_num_threads, set_num_threads
    from relu_ops.standard import leaky_relu, relu
    from relu_ops.verification import verify

# Where each public name lives. A name is imported when it is first used, so that importing
# relu_ops loads no compiler, no onnx and no onnxruntime, and running a bundle never does.
_HOMES = {
    "Operator": "relu_ops.runtime.operator",
    "ReluOpsError": "relu_ops.errors",
    "build": "relu_ops.compiler",
    "get_num_threads": "relu_ops.runtime.threads",
    "set_num_threads": "relu_ops.runtime.threads",
    "compile": "relu_ops.jit",
    "leaky_relu": "relu_ops.standard",
    "load": "relu_ops.runtime.dispatch",
    "partition": "relu_ops.partitioning",
    "relu": "relu_ops.standard",
    "verify": "relu_ops.verification",
}
_MODULES = {"errors": None, "graphs": "onnx", "interop": None}
"""Public modules, and what each imports at its top beyond the base install."""

__all__ = [
    "Operator",
    "ReluOpsError",
    "__version__",
    "build",
    "compile",
    "errors",
    "get_num_threads",
    "graphs",
    "interop",
    "leaky_relu",
    "load",
    "partition",
    "relu",
    "set_num_threads",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _MODULES:
        if needed := _MODULES[name]:
            from relu_ops.errors import require

            require(needed, "compile", f"relu_ops.{name}")
        value = importlib.import_module(f"relu_ops.{name}")
    else:
        raise AttributeError(f"module 'relu_ops' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
