"""Models of other libraries, as a `ModelProto`. None of those libraries is imported here.

An object of a library is there only when its library is imported already, so that looking into
`sys.modules` is enough to know it. A model that spox builds is a `ModelProto` to begin with.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

from relu_ops.errors import ArgumentTypeError, ModelError

TAKEN = "a path, bytes, an onnx.ModelProto, an onnx_ir.Model or an onnxscript function"


def _is(model: Any, module: str, name: str) -> bool:
    """True for an object of a class, by the name under which its library has it."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(model, kind)


def _from_onnx_ir(model: Any) -> tuple[onnx.ModelProto, list[Path]]:
    """The model, and the folder of its external data, of which a proto knows nothing."""
    folders = {
        str(tensor.base_dir)
        for value in model.graph.initializers.values()
        if (tensor := value.const_value) is not None and hasattr(tensor, "base_dir")
    }
    proto = sys.modules["onnx_ir"].to_proto(model)
    return proto, [Path(folder or ".").resolve() for folder in sorted(folders)]


def _from_onnxscript(function: Any) -> tuple[onnx.ModelProto, list[Path]]:
    return function.to_model_proto(), []


def _from_torch(program: Any) -> tuple[onnx.ModelProto, list[Path]]:
    return _from_onnx_ir(program.model)


_CONVERTERS: dict[tuple[str, str], Callable[[Any], tuple[onnx.ModelProto, list[Path]]]] = {
    ("onnx_ir", "Model"): _from_onnx_ir,
    ("onnxscript", "OnnxFunction"): _from_onnxscript,
    ("torch.onnx", "ONNXProgram"): _from_torch,
}

_PARTS = (onnx.GraphProto, onnx.NodeProto, onnx.FunctionProto, onnx.TensorProto)


def _cause(error: BaseException) -> BaseException:
    """What an error came from first: libraries wrap it in the whole model's text."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def converted(model: Any) -> tuple[onnx.ModelProto, list[Path]]:
    """Convert an object of another library.

    Args:
        model: Anything.

    Returns:
        A model, and the folders where its external data may lie.

    Raises:
        ArgumentTypeError: It is nothing that holds a model.
        ModelError: Its library could not make a `ModelProto` of it.
    """
    for (module, name), convert in _CONVERTERS.items():
        if _is(model, module, name):
            try:
                return convert(model)
            except Exception as error:
                raise ModelError(
                    f"the {module}.{name} cannot be made an onnx.ModelProto: {_cause(error)}"
                ) from error
    hint = "wrap it with onnx.helper.make_model" if isinstance(model, _PARTS) else None
    raise ArgumentTypeError(f"model must be {TAKEN} (not {type(model).__name__})", hint)
