"""The operators of relu_ops as ONNX's own again, for `torch.onnx.export`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx

from relu_ops.interop.torch import functions, wrapping


def onnx_table() -> dict[Any, Callable[..., Any]]:
    """A table for `torch.onnx.export(..., dynamo=True, custom_translation_table=...)`.

    Returns:
        For each operator that there is in this process, `wrap`'s too, what writes it as ONNX's own
        operators: Relu, LeakyRelu, and the nodes of a wrapped model.

    Raises:
        ImportError: onnxscript, which torch exports with, is not installed.
    """
    from onnxscript import opset18

    def relu(x: Any) -> Any:
        return opset18.Relu(x)

    def leaky_relu(x: Any, negative_slope: float = 0.01) -> Any:
        return opset18.LeakyRelu(x, alpha=negative_slope)

    table: dict[Any, Callable[..., Any]] = {
        functions.RELU: relu,
        functions.LEAKY_RELU: leaky_relu,
    }
    for wrapped in wrapping.Wrapped.known():
        table[wrapped.op] = _translation(wrapped.rewritten())
    return table


def _translation(model: onnx.ModelProto) -> Callable[..., Any]:
    """What writes the nodes of a model."""
    import onnxscript

    opset = getattr(onnxscript, f"opset{model.opset_import[0].version}")

    def written(*inputs: Any) -> Any:
        values: dict[str, Any] = dict(
            zip((one.name for one in model.graph.input), inputs, strict=True)
        )
        for tensor in model.graph.initializer:
            values[tensor.name] = opset.Constant(value=tensor)
        for node in model.graph.node:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            operands = [values[name] if name else None for name in node.input]
            values[node.output[0]] = getattr(opset, node.op_type)(*operands, **attributes)
        results = tuple(values[one.name] for one in model.graph.output)
        return results[0] if len(results) == 1 else results

    return written
