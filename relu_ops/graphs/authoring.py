"""Authors rectifier graphs as ONNX models, and writes the files of `models/`.

Decided here: the operators of each graph, their order, and so where it rounds; the opset and IR
version; what is written into a file beside the graph. Equal arguments give equal bytes. Knows
onnx and NumPy; what an operator computes is the table of `relu_ops.contract.semantics`, and how it
is compiled is no concern of an author.

Shapes: where nothing broadcasts, inputs and outputs have no shape at all, which in ONNX says that
any rank will do (several such inputs have one shape, the caller's). Where a parameter broadcasts,
the rank is fixed and the dimensions are symbolic, or static where the author says so.

`onnx.checker` wants a shape of every graph input although ONNX's IR.md does not (onnx issues 2492
and 2932); `with_rank` makes the copy for it, and for any other tool that needs a rank.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from relu_ops.errors import ArgumentError, ArgumentTypeError, choice

if TYPE_CHECKING:
    from relu_ops.compiler.frontend import Model

OPSET = 18
"""onnxruntime's CPU kernels cover most dtypes here: float64 LeakyRelu and int64 Relu run at 18 and
not at 20 to 26 (onnxruntime 1.31.1)."""

IR_VERSION = 8
"""The IR version that came with opset 18."""

_BFLOAT16_THRESHOLDED_RELU = (22, 10)
"""Opset and IR version: ThresholdedRelu knows bfloat16 from opset 22 on."""

_QUANTIZATION = (19, 9)
"""Opset and IR version: onnx.reference knows DequantizeLinear from opset 19 on (onnx 1.23.2)."""

_FLOATS = ("float16", "bfloat16", "float32", "float64")
_RELU = (*_FLOATS, "int8", "int16", "int32", "int64")
_PRELU = (*_FLOATS, "int32", "int64", "uint32", "uint64")
_ALL = (*_RELU, "uint8", "uint16", "uint32", "uint64")
_QUANTIZED = ("int8", "uint8")

_ELEMENT_TYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}
"""The dtypes that ONNX calls by another name; the others are their own, in capitals."""

_LARGEST_DIMENSION = 2**63 - 1

Shape = tuple[int | str, ...]


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
    draft = _Draft("relu", dtype, _RELU)
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
    draft = _Draft("leaky_relu", dtype, _FLOATS)
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

    >>> print(describe(prelu(layout="nchw").graph.input[1]))
    slope: float32[channels, 1, 1]
    """
    draft = _Draft("prelu", dtype, _PRELU)
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

    >>> print(describe(leaky_relu_of_any_slope().graph.input[1]))
    alpha: float32[]
    """
    draft = _Draft("leaky_relu", dtype, _FLOATS)
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
    draft = _Draft("leaky_relu_grad", dtype, _FLOATS)
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
    draft = _Draft("thresholded_relu", dtype, _FLOATS)
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
    draft = _Draft("relu6", dtype, _ALL)
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
    draft = _Draft("relu_derivative", dtype, _RELU)
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
    draft = _Draft("leaky_relu_derivative", dtype, _FLOATS)
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
    draft = _Draft("relu_grad", dtype, _RELU)
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
    draft = _Draft("leaky_relu_grad", dtype, _FLOATS)
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

    >>> print(describe(bias_relu(channels=512).graph.input[0]))
    x: float32[rows, 512]
    """
    draft = _Draft("bias_relu", dtype, _RELU)
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
    draft = _Draft("add_relu", dtype, _RELU)
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
    draft = _Draft("scale_bias_relu", dtype, _RELU)
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

    >>> for value in scale_bias_leaky_relu(alpha=0.1, channels=512).graph.input:
    ...     print(describe(value))
    x: float32[rows, 512]
    scale: float32[512]
    bias: float32[512]
    """
    draft = _Draft("scale_bias_leaky_relu", dtype, _FLOATS)
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
    draft = _Draft("maxout", dtype, _ALL)
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
    draft = _Draft("quantized_leaky_relu", dtype, _QUANTIZED)
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


def gradient(
    model: Model,
    inputs: Sequence[str] | None = None,
    *,
    straight_through: bool = False,
    keep_outputs: bool = False,
) -> onnx.ModelProto:
    """Make the vector-Jacobian product of a model: gradients of inputs, of those of outputs.

    What a derivative is where several are right (at zero, at ties, at bounds, at NaN) stands beside
    each operator in docs/semantics.md. Integer and boolean paths have none. To differentiate twice,
    pass the result again.

    Args:
        model: As for `relu_ops.compile`; every graph in scope.
        inputs: The inputs whose gradients are wanted, by their names; None for all that have one.
        straight_through: Pass gradients through a QuantizeLinear and the DequantizeLinear that
            reads it as if there were none, where the quotient is not saturated.
        keep_outputs: Let the model compute its own outputs too, before the gradients.

    Returns:
        A model. Its inputs are those of `model` and, for each floating output y, its gradient dy,
        of the shape of y. Its outputs are dx for each chosen input x, in their order (a name
        that is taken gets a _). They have the shape of the iteration: what the upstream gradients
        and the operands of x's users broadcast to. Where x was broadcast, its gradient is the sum
        of dx over what was repeated, which is left to the caller.

    Raises:
        ModelError: The model is not valid ONNX; as `UnsupportedError` if it is, but it or its
            gradient is out of scope.
        ArgumentError: A name is none of an input with a gradient, or no input has one.
        ArgumentTypeError: inputs is no list of names, or model nothing that holds a model.

    >>> made = gradient(leaky_relu(alpha=0.1))
    >>> [node.op_type for node in made.graph.node]
    ['Greater', 'Mul', 'Where']
    >>> [value.name for value in (*made.graph.input, *made.graph.output)]
    ['x', 'dy', 'dx']
    """
    from relu_ops import gradients

    return gradients.gradient(
        model, inputs, straight_through=straight_through, keep_outputs=keep_outputs
    )


def with_rank(model: Model, rank: int) -> onnx.ModelProto:
    """Copy a model, giving inputs and outputs of unknown rank `rank` symbolic dimensions.

    Args:
        model: Any model, as for `relu_ops.compile`; it is left as it is.
        rank: The number of dimensions, 0 for a scalar. All values get the same ones.

    Returns:
        The copy, which `onnx.checker` takes.

    Raises:
        ArgumentTypeError: The rank is no integer.
        ArgumentError: It is negative.
        ModelError: The model is not valid ONNX.

    >>> ranked = with_rank(relu(), rank=2)
    >>> print(describe(ranked.graph.input[0]))
    x: float32[dim_0, dim_1]
    >>> onnx.checker.check_model(ranked, full_check=True)
    """
    if not isinstance(rank, Integral) or isinstance(rank, bool):
        raise ArgumentTypeError(f"with_rank: rank must be an integer (not {rank!r})")
    if rank < 0:
        raise ArgumentError(f"with_rank: rank must be at least 0 (not {rank})")
    copy = _read(model)
    for value in (*copy.graph.input, *copy.graph.output):
        if not value.type.tensor_type.HasField("shape"):
            shape = [f"dim_{axis}" for axis in range(rank)]
            element_type = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, element_type, shape))
    return copy


def describe(value: onnx.ValueInfoProto) -> str:
    """Write a graph input or output as `name: dtype[dimensions]`, with ... for unknown rank.

    >>> print(describe(relu().graph.input[0]))
    x: float32[...]
    """
    tensor = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    if not tensor.HasField("shape"):
        return f"{value.name}: {dtype}[...]"
    dims = (dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
    return f"{value.name}: {dtype}[{', '.join(dims)}]"


def serialize(model: Model) -> bytes:
    """Return the bytes of a model's file: the same bytes for equal models, always.

    Args:
        model: Any model, as for `relu_ops.compile`. Its external data come into the bytes.

    Raises:
        ModelError: The model is not valid ONNX.

    >>> serialize(relu()) == serialize(relu())
    True
    """
    content: bytes = _read(model).SerializeToString(deterministic=True)
    return content


def _read(model: Model) -> onnx.ModelProto:
    from relu_ops.compiler import frontend

    return frontend.read_model(model)


def export(folder: str | os.PathLike[str], check: bool = False) -> list[str]:
    """Write every model of `MODELS` and a README to a folder, each file in one step.

    Files of other names are left alone, `.onnx` ones too: `differences` reports those.

    Args:
        folder: Where to; made if it is not there.
        check: Write nothing; return the names of `differences` instead.

    Returns:
        The names of the files that were written.

    Raises:
        ArgumentError: folder is a file.
        OSError: A file cannot be written.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> "relu.onnx" in export(folder)
    True
    >>> export(folder, check=True)
    []
    """
    if check:
        return list(differences(folder))
    path = _folder(folder)
    path.mkdir(parents=True, exist_ok=True)
    files = dict(_files())
    for name, content in files.items():
        _write(path / name, content)
    return list(files)


def differences(folder: str | os.PathLike[str]) -> dict[str, str]:
    """Say where a folder differs from what `export` writes.

    Args:
        folder: A folder, which need not be there.

    Returns:
        For each file that is not as it should be, "missing", "changed", or "extra" (an `.onnx`
        file that is none of ours).

    Raises:
        ArgumentError: folder is a file.

    >>> differences("no such folder")["relu.onnx"]
    'missing'
    """
    path = _folder(folder)
    files = dict(_files())
    found = {name: _state(path / name, content) for name, content in files.items()}
    extra = {file.name: "extra" for file in sorted(path.glob("*.onnx")) if file.name not in files}
    return {name: state for name, state in (found | extra).items() if state}


class _Draft:
    """One graph while it is written: what was declared so far, under one name and one dtype."""

    def __init__(self, name: str, dtype: str, allowed: Collection[str]) -> None:
        self.name = name
        self.dtype = choice(f"{name}: dtype", dtype, allowed, ArgumentTypeError)
        self.element_type = _element_type(dtype)
        self.opset = OPSET
        self.ir_version = IR_VERSION
        self.metadata = {"graph": name, "dtype": dtype}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.nodes: list[onnx.NodeProto] = []

    def real(self, argument: str, value: float, dtype: str | None = None) -> np.float32:
        """Check and note a real argument; give it as float32, as an ONNX attribute holds it."""
        rounded = _real(self.name, argument, value, dtype or self.dtype)
        self.metadata[argument] = str(rounded)
        return rounded

    def integer(self, argument: str, value: int, low: int, high: int | None = None) -> int:
        """Check and note an integer argument."""
        checked = _integer(self.name, argument, value, low, high)
        self.metadata[argument] = str(checked)
        return checked

    def layout(self, channels: int | None, layout: str) -> tuple[Shape, Shape]:
        """Check and note a layout; give the shapes of x and of a vector over its channels."""
        size: int | str = "channels"
        if channels is not None:
            size = self.integer("channels", channels, 1, _LARGEST_DIMENSION)
        shapes: dict[str, tuple[Shape, Shape]] = {
            "last": (("rows", size), (size,)),
            "nchw": (("batch", size, "height", "width"), (size, 1, 1)),
        }
        self.metadata["layout"] = choice(f"{self.name}: layout", layout, shapes)
        return shapes[layout]

    def input(self, name: str, shape: Shape | None = None) -> None:
        """Declare a graph input; without a shape, of unknown rank."""
        self.inputs.append(helper.make_tensor_value_info(name, self.element_type, shape))

    def constant(self, name: str, value: float | np.float32, dtype: str | None = None) -> None:
        """Declare a scalar initializer, of the draft's dtype unless another is named."""
        array = np.asarray(value).astype(_numpy_dtype(dtype or self.dtype))
        self.constants.append(numpy_helper.from_array(array, name))

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        """Add a node, named after its operator and its output."""
        name = f"{operator}_{output}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name, **attributes))

    def positive(self, name: str) -> None:
        """Add zero, and positive = name > 0."""
        self.constant("zero", 0)
        self.node("Greater", [name, "zero"], "positive")

    def scale_bias(self, channels: int | None, layout: str) -> Shape:
        """Add biased = x * scale + bias with its inputs; give the shape of x."""
        shape, channel_shape = self.layout(channels, layout)
        self.input("x", shape)
        self.input("scale", channel_shape)
        self.input("bias", channel_shape)
        self.node("Mul", ["x", "scale"], "scaled")
        self.node("Add", ["scaled", "bias"], "biased")
        return shape

    def quantization(self, name: str, scale: float, zero_point: int | None) -> None:
        """Check, note and add the initializers of a quantized tensor's scale and zero point."""
        limits = np.iinfo(self.dtype)
        low, high = int(limits.min), int(limits.max)
        middle = (low + high + 1) // 2 if zero_point is None else zero_point
        self.constant(f"{name}_scale", self.scale(f"{name}_scale", scale), "float32")
        point = self.integer(f"{name}_zero_point", middle, low, high)
        self.constant(f"{name}_zero_point", point)

    def scale(self, argument: str, value: float) -> np.float32:
        """Check and note a quantization scale."""
        rounded = self.real(argument, value, "float32")
        if rounded <= 0:
            raise ArgumentError(f"{self.name}: {argument} must be above 0 (not {value!r})")
        return rounded

    def model(self, output: str, doc: str, shape: Shape | None = None) -> onnx.ModelProto:
        """Finish: one output of the draft's dtype, and what the file says about itself."""
        outputs = [helper.make_tensor_value_info(output, self.element_type, shape)]
        graph = helper.make_graph(
            self.nodes, self.name, self.inputs, outputs, self.constants, doc_string=doc
        )
        # No package version: a file changes when its graph does, not at every release.
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=self.ir_version,
            producer_name="relu_ops",
            doc_string=f"{self.name}: {doc}",
        )
        properties = {f"relu_ops.{key}": value for key, value in self.metadata.items()}
        helper.set_model_props(model, properties)
        return model


def _element_type(dtype: str) -> int:
    return _ELEMENT_TYPES.get(dtype) or TensorProto.DataType.Value(dtype.upper())


def _numpy_dtype(dtype: str) -> np.dtype:
    return helper.tensor_dtype_to_np_dtype(_element_type(dtype))


def _integer(name: str, argument: str, value: int, low: int, high: int | None) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise ArgumentTypeError(f"{name}: {argument} must be an integer (not {value!r})")
    if value < low:
        raise ArgumentError(f"{name}: {argument} must be at least {low} (not {value})")
    if high is not None and value > high:
        raise ArgumentError(f"{name}: {argument} must be at most {high} (not {value})")
    return int(value)


def _real(name: str, argument: str, value: float, dtype: str) -> np.float32:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise ArgumentTypeError(
            f"{name}: {argument} must be a real number (not {value!r})",
            "a number for each channel is an operand: graphs.prelu, graphs.scale_bias_leaky_relu",
        )
    with np.errstate(over="ignore"):
        rounded = np.float32(_float(value))
        if not np.isfinite(rounded.astype(_numpy_dtype(dtype))):
            raise ArgumentError(
                f"{name}: {argument} must be finite in {dtype} (not {value!r})",
                f"the largest number of {dtype} is {ml_dtypes.finfo(_numpy_dtype(dtype)).max}",
            )
    return rounded


def _float(value: float) -> float:
    """A real as a float; infinite where it is too large for one, as an integer can be."""
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _is_made_in(make: Callable[..., onnx.ModelProto], dtype: str) -> bool:
    try:
        make(dtype=dtype)
    except ArgumentTypeError:
        return False
    return True


def _folder(folder: str | os.PathLike[str]) -> Path:
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise ArgumentError(
            f"export: folder must be a directory ({path} is a file)", "name another folder"
        )
    return path


def _files() -> Iterator[tuple[str, bytes]]:
    """Every file of the folder, by name."""
    models = {f"{name}.onnx": make() for name, make in MODELS.items()}
    for name, model in models.items():
        yield name, serialize(model)
    yield "README.md", _readme(models).encode()


def _state(path: Path, content: bytes) -> str:
    if not path.is_file():
        return "missing"
    return "" if path.read_bytes() == content else "changed"


def _write(path: Path, content: bytes) -> None:
    """Replace a file in one step, so that a reader sees the old bytes or the new."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


_README = """\
<!-- Generated by relu_ops.graphs.export; do not edit. -->
# Models

The ONNX models that `relu_ops.graphs` authors, generated by `python scripts/export_models.py`;
with `--check` it compares them byte for byte. `[...]` is a tensor of any rank; several of them in
one model have one shape. `onnx.checker` wants a shape of every input, which ONNX itself does not:
`relu_ops.graphs.with_rank(model, rank)` makes the copy for it.

| file | computes | operators | inputs | outputs | opset |
| --- | --- | --- | --- | --- | --- |
"""


def _readme(models: dict[str, onnx.ModelProto]) -> str:
    return _README + "".join(_readme_row(name, model) for name, model in models.items())


def _readme_row(name: str, model: onnx.ModelProto) -> str:
    graph = model.graph
    cells = (
        f"[{name}]({name})",
        graph.doc_string,
        ", ".join(node.op_type for node in graph.node),
        ", ".join(f"`{describe(value)}`" for value in graph.input),
        ", ".join(f"`{describe(value)}`" for value in graph.output),
        str(model.opset_import[0].version),
    )
    return f"| {' | '.join(cells)} |\n"
