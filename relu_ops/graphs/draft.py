"""A graph while it is written: its arguments checked and noted, its nodes and initializers added.

Decided here: the opset and IR version, and what is written into a file beside the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from numbers import Integral, Real
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import ArgumentError, ArgumentTypeError, choice

OPSET = 18
"""onnxruntime's CPU kernels cover most dtypes here: float64 LeakyRelu and int64 Relu run at 18 and
not at 20 to 26 (onnxruntime 1.31.1)."""

IR_VERSION = 8
"""The IR version that came with opset 18."""

_LARGEST_DIMENSION = 2**63 - 1

Shape = tuple[int | str, ...]


class Draft:
    """One graph while it is written: what was declared so far, under one name and one dtype."""

    def __init__(self, name: str, dtype: str, allowed: Collection[str]) -> None:
        self.name = name
        self.dtype = choice(f"{name}: dtype", dtype, allowed, ArgumentTypeError)
        self.element_type = DTYPES[dtype].onnx_type
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
        array = np.asarray(value).astype(DTYPES[dtype or self.dtype].numpy)
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
        if not np.isfinite(rounded.astype(DTYPES[dtype].numpy)):
            raise ArgumentError(
                f"{name}: {argument} must be finite in {dtype} (not {value!r})",
                f"the largest number of {dtype} is {ml_dtypes.finfo(DTYPES[dtype].numpy).max}",
            )
    return rounded


def _float(value: float) -> float:
    """A real as a float; infinite where it is too large for one, as an integer can be."""
    try:
        return float(value)
    except OverflowError:
        return float("inf")
