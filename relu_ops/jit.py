"""Compiles when asked and remembers: `compile`, through the compile cache.

The only place that knows the compiler, the cache and the runtime. A warm cache answers without
importing TVM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from relu_ops import cache, log, targets
from relu_ops.compiler.toolchain import producer, source_digest
from relu_ops.errors import require
from relu_ops.runtime import dispatch
from relu_ops.runtime.operator import Operator

if TYPE_CHECKING:
    from relu_ops.compiler.frontend import Model


def compile(model: Model, target: str = "native") -> Operator:
    """Compile a model for this machine, through the compile cache.

    Args:
        model: An `onnx.ModelProto`, its bytes, or the path of a file.
        target: A target by name; "native" is the best level that this machine's CPU runs. One of
            CUDA is compiled for, and loaded on, the first device.

    Returns:
        The operator.

    Raises:
        MissingDependencyError: onnx or TVM is not installed.
        ModelError: The model is not valid ONNX; as `UnsupportedError` if it is, but out of scope.
        TargetError: The target is not known or cannot run here.
        DeviceError: The target is one of CUDA, and there is no driver or device.
        BuildError: The target cannot be built for, or TVM made something unexpected.
    """
    require("onnx", "compile", "relu_ops.compile")
    from relu_ops.compiler import frontend

    proto = frontend.read_model(model)
    content = proto.SerializeToString(deterministic=True)
    return compiled(content, lambda: proto, target)


def compiled(identity: bytes, make_model: Callable[[], Any], target: str) -> Operator:
    """The operator of a model, out of the cache or compiled.

    Args:
        identity: What says which model it is.
        make_model: Makes it, where it has to be compiled.
        target: A target by name.
    """
    chosen = targets.resolve(target)
    if log.hears("DEBUG"):
        log.say("DEBUG", "compile: target %s: %s", chosen, targets.why(chosen, target))
    key = cache.key_of(identity, chosen.name, {**producer([chosen]), "sources": source_digest()})

    def make() -> dict[str, bytes]:
        require("tvm", "compile", "compiling an operator")
        from relu_ops import compiler

        return compiler.make(make_model(), [chosen.name])

    held = cache.fetch(key, make)
    return dispatch.operator_of(held, target=chosen.name, cuda=chosen.backend.ordinal)
