"""relu_ops behind the interfaces of others, one module each; none is imported before it is used.

`onnx_backend` is a standard `onnx.backend.base.Backend`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from relu_ops.errors import require

if TYPE_CHECKING:
    from relu_ops.interop import onnx_backend

# What each module imports beyond the base install, and the extra that installs it.
_NEEDS = {"onnx_backend": ("onnx", "compile")}

__all__ = ["onnx_backend"]


def __getattr__(name: str) -> Any:
    if name not in _NEEDS:
        raise AttributeError(f"module 'relu_ops.interop' has no attribute {name!r}")
    module, extra = _NEEDS[name]
    require(module, extra, f"relu_ops.interop.{name}")
    return importlib.import_module(f"relu_ops.interop.{name}")


def __dir__() -> list[str]:
    return sorted(__all__)
