"""relu_ops behind the interfaces of others, one module each; none is imported before it is used.

`onnx_backend` is a standard `onnx.backend.base.Backend`; `torch` and `jax` have operators for
programs that train.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from relu_ops.errors import require

if TYPE_CHECKING:
    from relu_ops.interop import jax, onnx_backend, torch

# What each module imports beyond the base install, and the extra that installs it.
_NEEDS = {
    "jax": ("jax", "jax"),
    "onnx_backend": ("onnx", "compile"),
    "torch": ("torch", "torch"),
}

__all__ = ["jax", "onnx_backend", "torch"]


def __getattr__(name: str) -> Any:
    if name not in _NEEDS:
        raise AttributeError(f"module 'relu_ops.interop' has no attribute {name!r}")
    module, extra = _NEEDS[name]
    require(module, extra, f"relu_ops.interop.{name}")
    return importlib.import_module(f"relu_ops.interop.{name}")


def __dir__() -> list[str]:
    return sorted(__all__)
