"""relu_ops behind the interfaces of others, one module each; none is imported before it is used.

`onnx_backend` is a standard `onnx.backend.base.Backend`; `onnxruntime` a library of custom
operators for its sessions, and a session of our own in its clothes; `onnx_reference` the same
operators for `onnx.reference`; `torch` and `jax` have operators for programs that train; `tvm_ffi`
has them as functions for TVM, JAX and C++.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from relu_ops.errors import require

if TYPE_CHECKING:
    from relu_ops.interop import jax, onnx_backend, onnx_reference, onnxruntime, torch, tvm_ffi

# What each module imports beyond the base install, and the extra that installs it.
_NEEDS: dict[str, tuple[str, str] | None] = {
    "jax": ("jax", "jax"),
    "onnx_backend": ("onnx", "compile"),
    "onnx_reference": ("onnx", "compile"),
    "onnxruntime": None,
    "torch": ("torch", "torch"),
    "tvm_ffi": ("tvm_ffi", "compile"),
}

__all__ = ["jax", "onnx_backend", "onnx_reference", "onnxruntime", "torch", "tvm_ffi"]


def __getattr__(name: str) -> Any:
    if name not in _NEEDS:
        raise AttributeError(f"module 'relu_ops.interop' has no attribute {name!r}")
    if needed := _NEEDS[name]:
        module, extra = needed
        require(module, extra, f"relu_ops.interop.{name}")
    return importlib.import_module(f"relu_ops.interop.{name}")


def __dir__() -> list[str]:
    return sorted(__all__)
