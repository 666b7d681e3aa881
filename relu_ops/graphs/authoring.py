"""The graphs: their operators, the order of these, and so where each rounds.

What an operator computes is the table of `relu_ops.contract.semantics`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import onnx

from relu_ops.errors import ArgumentTypeError, choice
from relu_ops.graphs.draft import Draft

_BFLOAT16_THRESHOLDED_RELU = (22, 10)
"""Opset and IR version: ThresholdedRelu knows bfloat16 from opset 22 on."""

_QUANTIZATION = (19, 9)
"""Opset and IR version: onnx.reference knows DequantizeLinear from opset 19 on (onnx 1.23.2)."""

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_RELU = (*_FLOATS, "int8", "int16", "int32", "int64")
_PRELU = (*_FLOATS, "int32", "int64", "uint32", "uint64")
_ALL = (*_RELU, "uint8", "uint16", "uint32", "uint64")
_QUANTIZED = ("int8", "uint8")


def relu(dtype: str = "float32") -> onnx.ModelProto:
    """Make y = 0 where x < 0, else x.

    Args:
        dtype: A float or signed integer type, by name.

    Returns:
        A model with input x and output y, of any rank.

    Raises:
        ArgumentTypeError: ONNX's Relu has no such dtype.

    >>> [node.op_type for node in relu().graph.node]
    ['Relu']
    """
    draft = Draft("relu", dtype, _RELU)
    draft.input("x")
    draft.node("Relu", ["x"], "y")
    return draft.model("y", "y = 0 where x < 0, else x")


def leaky_relu(alpha: float = 0.01, dtype: str = "float32") -> onnx.ModelProto:
    """Make y = alpha * x where x < 0, else x.

    Args:
        alpha: The slope below zero; rounded to float32, then to dtype.
        dtype: A float type, by name.

    Returns:
        A model with input x and output y, of any rank.

    Raises:
        ArgumentError: alpha is not finite in dtype.
        ArgumentTypeError: alpha is no number, or ONNX's LeakyRelu has no such dtype.

    >>> leaky_relu(alpha=0.1).graph.doc_string
    'y = 0.1 * x where x < 0, else x'
    """
    draft = Draft("leaky_relu", dtype, _FLOATS)
    slope = draft.real("alpha", alpha)
    draft.input("x")
    draft.node("LeakyRelu", ["x"], "y", alpha=slope)
    return draft.model("y", f"y = {slope!s} * x where x < 0, else x")


def prelu(
    channels: int | None = None, layout: str = "last", dtype: str = "float32"
) -> onnx.ModelProto:
    """Make y = slope * x where x < 0, else x, with one learned slope per channel.

    Args:
        channels: The number of channels, or None for a symbolic dimension.
        layout: "last" (x is rows x channels) or "nchw" (batch x channels x height x width).
        dtype: A float type, int32, int64, uint32 or uint64, by name.

    Returns:
        A model with inputs x and slope ([channels], or [channels, 1, 1] for NCHW) and output y.

    Raises:
        ArgumentError: channels is below 1, or the layout is unknown.
        ArgumentTypeError: channels is no integer, or ONNX's PRelu has no such dtype.

    >>> from relu_ops.graphs import describe
    >>> print(describe(prelu(layout="nchw").graph.input[1]))
    slope: float32[channels, 1, 1]
    """
    draft = Draft("prelu", dtype, _PRELU)
    shape, channel_shape = draft.layout(channels, layout)
    draft.input("x", shape)
    draft.input("slope", channel_shape)
    draft.node("PRelu", ["x", "slope"], "y")
    return draft.model("y", "y = slope * x where x < 0, else x", shape)


def leaky_relu_of_any_slope(dtype: str = "float32") -> onnx.ModelProto:
    """Make y = alpha * x where x < 0, else x, for a slope that is given at each call.

    What `relu_ops.leaky_relu` computes with, where the slope is not the usual one. No graph of
    `GRAPHS`: to an author, one slope per array is a PRelu of his own.

    Args:
        dtype: A float type, by name.

    Returns:
        A model with inputs x, of any rank, and alpha, one number; and output y.

    Raises:
        ArgumentTypeError: ONNX's LeakyRelu has no such dtype.

    >>> from relu_ops.graphs import describe
    >>> print(describe(leaky_relu_of_any_slope().graph.input[1]))
    alpha: float32[]
    """
    draft = Draft("leaky_relu", dtype, _FLOATS)
    draft.input("x")
    draft.input("alpha", ())
    draft.node("PRelu", ["x", "alpha"], "y")
    return draft.model("y", "y = alpha * x where x < 0, else x")


def leaky_relu_grad_of_any_slope(dtype: str = "float32") -> onnx.ModelProto:
    """Make dx = dy where x > 0, else alpha * dy, for a slope that is given at each call.

    Args:
        dtype: A float type, by name.

    Returns:
        A model with inputs dy and x, of one shape and any rank, and alpha, one number; and output
        dx.

    Raises:
        ArgumentTypeError: ONNX's LeakyRelu has no such dtype.

    >>> [value.name for value in leaky_relu_grad_of_any_slope().graph.input]
    ['dy', 'x', 'alpha']
    """
    draft = Draft("leaky_relu_grad", dtype, _FLOATS)
    draft.input("dy")
    draft.input("x")
    draft.input("alpha", ())
    draft.positive("x")
    draft.node("Mul", ["alpha", "dy"], "leaked")
    draft.node("Where", ["positive", "dy", "leaked"], "dx")
    return draft.model("dx", "dx = dy where x > 0, else alpha * dy")


def thresholded_relu(alpha: float = 1.0, dtype: str = "float32") -> onnx.ModelProto:
    """Make y = x where x > alpha, else 0.

    Args:
        alpha: The threshold; rounded to float32, then to dtype.
        dtype: A float type, by name; bfloat16 needs opset 22, which is then the model's.

    Returns:
        A model with input x and output y, of any rank.

    Raises:
        ArgumentError: alpha is not finite in dtype.
        ArgumentTypeError: alpha is no number, or ONNX's ThresholdedRelu has no such dtype.

    >>> [thresholded_relu(dtype=d).opset_import[0].version for d in ("float32", "bfloat16")]
    [18, 22]
    """
    draft = Draft("thresholded_relu", dtype, _FLOATS)
    if dtype == "bfloat16":
        draft.opset, draft.ir_version = _BFLOAT16_THRESHOLDED_RELU
    threshold = draft.real("alpha", alpha)
    draft.input("x")
    draft.node("ThresholdedRelu", ["x"], "y", alpha=threshold)
    return draft.model("y", f"y = x where x > {threshold!s}, else 0")


def relu6(dtype: str = "float32") -> onnx.ModelProto:
    """Make y = x clipped to 0 and 6.

    Args:
        dtype: Any float or integer type, by name.

    Returns:
        A model with input x and output y, of any rank.

    Raises:
        ArgumentTypeError: ONNX's Clip has no such dtype.

    >>> [initializer.name for initializer in relu6().graph.initializer]
    ['low', 'high']
    """
    draft = Draft("relu6", dtype, _ALL)
    draft.input("x")
    draft.constant("low", 0)
    draft.constant("high", 6)
    draft.node("Clip", ["x", "low", "high"], "y")
    return draft.model("y", "y = min(max(x, 0), 6)")


def relu_derivative(dtype: str = "float32") -> onnx.ModelProto:
    """Make y = 1 where x > 0, else 0: the derivative of ReLU, 0 at 0.

    Args:
        dtype: A float or signed integer type, by name.

    Returns:
        A model with input x and output y, of any rank.

    Raises:
        ArgumentTypeError: ONNX's Relu has no such dtype.

    >>> [node.op_type for node in relu_derivative().graph.node]
    ['Greater', 'Cast']
    """
    draft = Draft("relu_derivative", dtype, _RELU)
    draft.input("x")
    draft.positive("x")
    draft.node("Cast", ["positive"], "y", to=draft.element_type)
    return draft.model("y", "y = 1 where x > 0, else 0")


def leaky_relu_derivative(alpha: float = 0.01, dtype: str = "float32") -> onnx.ModelProto:
    """Make y = 1 where x > 0, else alpha: the derivative of Leaky ReLU, alpha at 0.

    Args:
        alpha: The slope below zero; rounded to float32, then to dtype.
        dtype: A float type, by name.

    Returns:
        A model with input x and output y, of any rank.

    Raises:
        ArgumentError: alpha is not finite in dtype.
        ArgumentTypeError: alpha is no number, or ONNX's LeakyRelu has no such dtype.

    >>> [node.op_type for node in leaky_relu_derivative().graph.node]
    ['Greater', 'Where']
    """
    draft = Draft("leaky_relu_derivative", dtype, _FLOATS)
    slope = draft.real("alpha", alpha)
    draft.input("x")
    draft.positive("x")
    draft.constant("one", 1)
    draft.constant("alpha", slope)
    draft.node("Where", ["positive", "one", "alpha"], "y")
    return draft.model("y", f"y = 1 where x > 0, else {slope!s}")


def relu_grad(dtype: str = "float32") -> onnx.ModelProto:
    """Make dx = dy where x > 0, else 0: the backward pass of ReLU.

    Args:
        dtype: A float or signed integer type, by name.

    Returns:
        A model with inputs dy and x, of one shape and any rank, and output dx.

    Raises:
        ArgumentTypeError: ONNX's Relu has no such dtype.

    >>> [value.name for value in relu_grad().graph.input]
    ['dy', 'x']
    """
    draft = Draft("relu_grad", dtype, _RELU)
    draft.input("dy")
    draft.input("x")
    draft.positive("x")
    draft.node("Where", ["positive", "dy", "zero"], "dx")
    return draft.model("dx", "dx = dy where x > 0, else 0")


def leaky_relu_grad(alpha: float = 0.01, dtype: str = "float32") -> onnx.ModelProto:
    """Make dx = dy where x > 0, else alpha * dy: the backward pass of Leaky ReLU.

    Args:
        alpha: The slope below zero; rounded to float32, then to dtype.
        dtype: A float type, by name.

    Returns:
        A model with inputs dy and x, of one shape and any rank, and output dx.

    Raises:
        ArgumentError: alpha is not finite in dtype.
        ArgumentTypeError: alpha is no number, or ONNX's LeakyRelu has no such dtype.

    >>> [node.op_type for node in leaky_relu_grad().graph.node]
    ['Greater', 'Mul', 'Where']
    """
    draft = Draft("leaky_relu_grad", dtype, _FLOATS)
    slope = draft.real("alpha", alpha)
    draft.input("dy")
    draft.input("x")
    draft.positive("x")
    draft.constant("alpha", slope)
    draft.node("Mul", ["alpha", "dy"], "leaked")
    draft.node("Where", ["positive", "dy", "leaked"], "dx")
    return draft.model("dx", f"dx = dy where x > 0, else {slope!s} * dy")


def bias_relu(
    channels: int | None = None, layout: str = "last", dtype: str = "float32"
) -> onnx.ModelProto:
    """Make y = relu(x + bias), with one bias per channel.

    Args:
        channels: The number of channels, or None for a symbolic dimension.
        layout: "last" (x is rows x channels) or "nchw" (batch x channels x height x width).
        dtype: A float or signed integer type, by name.

    Returns:
        A model with inputs x and bias ([channels], or [channels, 1, 1] for NCHW) and output y.

    Raises:
        ArgumentError: channels is below 1, or the layout is unknown.
        ArgumentTypeError: channels is no integer, or ONNX's Relu has no such dtype.

    >>> from relu_ops.graphs import describe
    >>> print(describe(bias_relu(channels=512).graph.input[0]))
    x: float32[rows, 512]
    """
    draft = Draft("bias_relu", dtype, _RELU)
    shape, channel_shape = draft.layout(channels, layout)
    draft.input("x", shape)
    draft.input("bias", channel_shape)
    draft.node("Add", ["x", "bias"], "biased")
    draft.node("Relu", ["biased"], "y")
    return draft.model("y", "y = relu(x + bias)", shape)


def add_relu(dtype: str = "float32") -> onnx.ModelProto:
    """Make y = relu(x + residual): the end of a residual block.

    Args:
        dtype: A float or signed integer type, by name.

    Returns:
        A model with inputs x and residual, of one shape and any rank, and output y.

    Raises:
        ArgumentTypeError: ONNX's Relu has no such dtype.

    >>> [node.op_type for node in add_relu().graph.node]
    ['Add', 'Relu']
    """
    draft = Draft("add_relu", dtype, _RELU)
    draft.input("x")
    draft.input("residual")
    draft.node("Add", ["x", "residual"], "sum")
    draft.node("Relu", ["sum"], "y")
    return draft.model("y", "y = relu(x + residual)")


def scale_bias_relu(
    channels: int | None = None, layout: str = "last", dtype: str = "float32"
) -> onnx.ModelProto:
    """Make y = relu(x * scale + bias): batch norm, folded into two vectors, then ReLU.

    The product is rounded before the sum, as two ONNX operators are: no fused multiply-add.

    Args:
        channels: The number of channels, or None for a symbolic dimension.
        layout: "last" (x is rows x channels) or "nchw" (batch x channels x height x width).
        dtype: A float or signed integer type, by name.

    Returns:
        A model with inputs x, scale and bias (both [channels], or [channels, 1, 1] for NCHW) and
        output y.

    Raises:
        ArgumentError: channels is below 1, or the layout is unknown.
        ArgumentTypeError: channels is no integer, or ONNX's Relu has no such dtype.

    >>> [node.op_type for node in scale_bias_relu().graph.node]
    ['Mul', 'Add', 'Relu']
    """
    draft = Draft("scale_bias_relu", dtype, _RELU)
    shape = draft.scale_bias(channels, layout)
    draft.node("Relu", ["biased"], "y")
    return draft.model("y", "y = relu(x * scale + bias)", shape)


def scale_bias_leaky_relu(
    alpha: float = 0.1,
    channels: int | None = None,
    layout: str = "last",
    dtype: str = "float32",
) -> onnx.ModelProto:
    """Make y = leaky_relu(x * scale + bias): batch norm, folded into two vectors, then Leaky ReLU.

    The product is rounded before the sum, as two ONNX operators are: no fused multiply-add.

    Args:
        alpha: The slope below zero; rounded to float32, then to dtype. Darknet, where this chain
            follows every convolution, has 0.1.
        channels: The number of channels, or None for a symbolic dimension.
        layout: "last" (x is rows x channels) or "nchw" (batch x channels x height x width).
        dtype: A float type, by name.

    Returns:
        A model with inputs x, scale and bias (both [channels], or [channels, 1, 1] for NCHW) and
        output y.

    Raises:
        ArgumentError: alpha is not finite in dtype, channels is below 1, or the layout is unknown.
        ArgumentTypeError: alpha is no number, channels is no integer, or ONNX's LeakyRelu has no
            such dtype.

    >>> from relu_ops.graphs import describe
    >>> for value in scale_bias_leaky_relu(alpha=0.1, channels=512).graph.input:
    ...     print(describe(value))
    x: float32[rows, 512]
    scale: float32[512]
    bias: float32[512]
    """
    draft = Draft("scale_bias_leaky_relu", dtype, _FLOATS)
    slope = draft.real("alpha", alpha)
    shape = draft.scale_bias(channels, layout)
    draft.node("LeakyRelu", ["biased"], "y", alpha=slope)
    return draft.model("y", f"y = leaky_relu(x * scale + bias), alpha {slope!s}", shape)


def maxout(pieces: int = 2, dtype: str = "float32") -> onnx.ModelProto:
    """Make y = the largest of several inputs, element by element.

    Args:
        pieces: How many inputs; at least 2.
        dtype: Any float or integer type, by name.

    Returns:
        A model with inputs x0, x1, ... of one shape and any rank, and output y.

    Raises:
        ArgumentError: pieces is below 2.
        ArgumentTypeError: pieces is no integer, or ONNX's Max has no such dtype.

    >>> [value.name for value in maxout(pieces=3).graph.input]
    ['x0', 'x1', 'x2']
    """
    draft = Draft("maxout", dtype, _ALL)
    names = [f"x{index}" for index in range(draft.integer("pieces", pieces, low=2))]
    for name in names:
        draft.input(name)
    draft.node("Max", names, "y")
    return draft.model("y", f"y = max({', '.join(names)})")


def quantized_leaky_relu(
    alpha: float = 0.01,
    x_scale: float = 0.05,
    x_zero_point: int | None = None,
    y_scale: float = 0.05,
    y_zero_point: int | None = None,
    dtype: str = "int8",
) -> onnx.ModelProto:
    """Make y = quantize(leaky_relu(dequantize(x))), between 8-bit tensors.

    Args:
        alpha: The slope below zero; rounded to float32, in which the chain computes.
        x_scale: What one step of x is worth, above 0; rounded to float32. At the default, int8
            spans -6.4 to 6.35, the range of ReLU6.
        x_zero_point: The x that means 0; None for the middle (0 of int8, 128 of uint8).
        y_scale: What one step of y is worth, as x_scale.
        y_zero_point: The y that means 0, as x_zero_point.
        dtype: "int8" or "uint8".

    Returns:
        A model with input x and output y, of any rank.

    Raises:
        ArgumentError: alpha or a scale is not finite in float32, a scale is not above 0, or a
            zero point is outside dtype.
        ArgumentTypeError: alpha or a scale is no number, a zero point is no integer, or
            dtype is another.

    >>> [node.op_type for node in quantized_leaky_relu().graph.node]
    ['DequantizeLinear', 'LeakyRelu', 'QuantizeLinear']
    """
    draft = Draft("quantized_leaky_relu", dtype, _QUANTIZED)
    draft.opset, draft.ir_version = _QUANTIZATION
    slope = draft.real("alpha", alpha, "float32")
    draft.input("x")
    draft.quantization("x", x_scale, x_zero_point)
    draft.quantization("y", y_scale, y_zero_point)
    draft.node("DequantizeLinear", ["x", "x_scale", "x_zero_point"], "real")
    draft.node("LeakyRelu", ["real"], "rectified", alpha=slope)
    draft.node("QuantizeLinear", ["rectified", "y_scale", "y_zero_point"], "y")
    return draft.model("y", f"y = quantize(leaky_relu(dequantize(x))), alpha {slope!s}")


GRAPHS: dict[str, Callable[..., onnx.ModelProto]] = {
    make.__name__: make
    for make in (
        relu,
        leaky_relu,
        prelu,
        thresholded_relu,
        relu6,
        relu_derivative,
        leaky_relu_derivative,
        relu_grad,
        leaky_relu_grad,
        bias_relu,
        add_relu,
        scale_bias_relu,
        scale_bias_leaky_relu,
        maxout,
        quantized_leaky_relu,
    )
}
"""Every graph by name. Each takes `dtype`, has a default for every argument, and is a file of
`models/` at its defaults."""

MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    **GRAPHS,
    "relu_float16": partial(relu, dtype="float16"),
    "relu_bfloat16": partial(relu, dtype="bfloat16"),
    "relu_int8": partial(relu, dtype="int8"),
    "leaky_relu_alpha_0_001": partial(leaky_relu, alpha=0.001),
    "leaky_relu_float16": partial(leaky_relu, dtype="float16"),
    "leaky_relu_bfloat16": partial(leaky_relu, dtype="bfloat16"),
    "prelu_nchw": partial(prelu, layout="nchw"),
    "bias_relu_nchw": partial(bias_relu, layout="nchw"),
    "scale_bias_relu_nchw": partial(scale_bias_relu, layout="nchw"),
    "scale_bias_leaky_relu_nchw": partial(scale_bias_leaky_relu, layout="nchw"),
    "scale_bias_leaky_relu_512": partial(scale_bias_leaky_relu, channels=512),
    "maxout_4": partial(maxout, pieces=4),
    "quantized_leaky_relu_uint8": partial(quantized_leaky_relu, dtype="uint8"),
}
"""The files of `models/`: a name without ".onnx", and what makes the model."""


def dtypes(graph: str) -> tuple[str, ...]:
    """Return the dtypes that a graph of `GRAPHS` can be made in.

    Args:
        graph: A key of `GRAPHS`.

    Raises:
        ArgumentError: There is no such graph.

    >>> dtypes("leaky_relu")
    ('float16', 'bfloat16', 'float32', 'float64')
    """
    make = GRAPHS[choice("dtypes: graph", graph, GRAPHS)]
    return tuple(dtype for dtype in _ALL if _is_made_in(make, dtype))


def _is_made_in(make: Callable[..., onnx.ModelProto], dtype: str) -> bool:
    try:
        make(dtype=dtype)
    except ArgumentTypeError:
        return False
    return True
