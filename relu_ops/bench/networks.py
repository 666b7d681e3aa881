"""Networks that `relu_ops.partition` is tried on: as in their papers, with weights at random.

Each takes the input's height and width, and a factor for its channels, so that tests can have small
ones. They are written as exporters write them: NCHW, Conv with a bias, batch normalization folded
where exporters fold it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 17, 8


class _Net:
    """Nodes and weights of a network that is being written."""

    def __init__(self, name: str, size: int, width: float) -> None:
        self._name, self._width = name, width
        self._rng = np.random.default_rng(0)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[TensorProto] = []
        self._channels = {"x": 3}
        self._shape = [1, 3, size, size]

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        """A node of one output; its channels are those of its first input."""
        name = f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], name=f"n_{name}", **attributes))
        self._channels[name] = self._channels.get(inputs[0], 0)
        return name

    def weight(self, array: np.ndarray) -> str:
        """An initializer."""
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(array, name))
        return name

    def random(self, *shape: int, scale: float = 1.0, around: float = 0.0) -> str:
        """A random initializer."""
        return self.weight((around + scale * self._rng.standard_normal(shape)).astype(np.float32))

    def count(self, channels: int) -> int:
        """A number of channels, by the network's width: a multiple of 8."""
        return max(8, int(channels * self._width) // 8 * 8)

    def conv(
        self, x: str, channels: int, kernel: int = 3, stride: int = 1, dilation: int = 1,
        groups: int = 1, bias: bool = True, pad: bool = True,
    ) -> str:  # fmt: skip
        """A convolution to so many channels."""
        of = self._channels[x]
        scale = (2 / (of // groups * kernel * kernel)) ** 0.5
        inputs = [x, self.random(channels, of // groups, kernel, kernel, scale=scale)]
        if bias:
            inputs.append(self.random(channels, scale=0.1))
        side = dilation * (kernel // 2) if pad else 0
        y = self.op(
            "Conv", *inputs, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[side] * 4,
            dilations=[dilation] * 2, group=groups,
        )  # fmt: skip
        self._channels[y] = channels
        return y

    def norm(self, x: str) -> str:
        """Batch normalization, not folded."""
        n = self._channels[x]
        scale, bias = self.random(n, scale=0.1, around=1), self.random(n, scale=0.1)
        mean = self.random(n, scale=0.1)
        variance = self.weight(np.abs(self._rng.standard_normal(n)).astype(np.float32) + 0.5)
        return self.op("BatchNormalization", x, scale, bias, mean, variance)

    def prelu(self, x: str) -> str:
        """A slope a channel."""
        return self.op("PRelu", x, self.random(self._channels[x], 1, 1, scale=0.05, around=0.25))

    def pool(self, x: str) -> str:
        """The mean of each channel."""
        return self.op("GlobalAveragePool", x)

    def dense(self, x: str, features: int, of: int) -> str:
        """A matrix product with a bias."""
        flat = self.op("Flatten", x)
        weights = self.random(features, of, scale=of**-0.5)
        return self.op("Gemm", flat, weights, self.random(features, scale=0.1), transB=1)

    def channels(self, x: str) -> int:
        """How many a value has."""
        return self._channels[x]

    def set_channels(self, x: str, channels: int) -> None:
        """Say how many a value has that a node of another kind made."""
        self._channels[x] = channels

    def concat(self, *inputs: str) -> str:
        """Values after one another, by channels."""
        y = self.op("Concat", *inputs, axis=1)
        self._channels[y] = sum(self._channels[x] for x in inputs)
        return y

    def model(self, *outputs: str) -> onnx.ModelProto:
        """The network, checked and with shapes."""
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self._shape)
        ends = [helper.make_tensor_value_info(y, TensorProto.FLOAT, None) for y in outputs]
        graph = helper.make_graph(self._nodes, self._name, [x], ends, self._weights)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        model = onnx.shape_inference.infer_shapes(model, check_type=True)
        onnx.checker.check_model(model)
        return model


def face_resnet(units: Sequence[int], size: int = 112, width: float = 1) -> onnx.ModelProto:
    """A ResNet for face recognition, with PRelu (Deng et al., ArcFace, 2019)."""
    net = _Net("face_resnet", size, width)
    x = net.prelu(net.conv("x", net.count(64)))
    for stage, count in enumerate(units):
        for unit in range(count):
            x = _face_unit(net, x, net.count(64 << stage), 2 if unit == 0 else 1)
    side = size >> len(units)
    x = net.norm(x)
    return net.model(net.dense(x, 512, net.channels(x) * side * side))


def _face_unit(net: _Net, x: str, channels: int, stride: int) -> str:
    y = net.norm(x)
    y = net.prelu(net.conv(y, channels))
    y = net.conv(y, channels, stride=stride)
    if stride == 1 and net.channels(x) == channels:
        return net.op("Add", y, x)
    return net.op("Add", y, net.conv(x, channels, kernel=1, stride=stride, pad=False))


def mobile_face_net(size: int = 112, width: float = 1) -> onnx.ModelProto:
    """MobileFaceNet, with PRelu (Chen et al., 2018)."""
    net = _Net("mobile_face_net", size, width)
    x = net.prelu(net.conv("x", net.count(64), stride=2))
    x = net.prelu(net.conv(x, net.channels(x), groups=net.channels(x)))
    for expansion, channels, count, stride in (
        (2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1),
    ):  # fmt: skip
        for unit in range(count):
            x = _bottleneck(net, x, expansion, net.count(channels), stride if unit == 0 else 1)
    x = net.prelu(net.conv(x, net.count(512), kernel=1))
    x = net.conv(x, net.channels(x), kernel=size // 16, groups=net.channels(x), pad=False)
    return net.model(net.conv(x, 128, kernel=1))


def _bottleneck(net: _Net, x: str, expansion: int, channels: int, stride: int) -> str:
    wide = net.channels(x) * expansion
    y = net.prelu(net.conv(x, wide, kernel=1))
    y = net.prelu(net.conv(y, wide, stride=stride, groups=wide))
    y = net.conv(y, channels, kernel=1)
    return net.op("Add", x, y) if stride == 1 and net.channels(x) == channels else y


def mobile_net_v3(size: int = 224, width: float = 1) -> onnx.ModelProto:
    """MobileNetV3-Large, with HardSwish (Howard et al., 2019)."""
    net = _Net("mobile_net_v3", size, width)
    x = net.op("HardSwish", net.conv("x", net.count(16), stride=2))
    for kernel, expanded, channels, squeezed, kind, stride in (
        (3, 16, 16, False, "Relu", 1), (3, 64, 24, False, "Relu", 2),
        (3, 72, 24, False, "Relu", 1), (5, 72, 40, True, "Relu", 2),
        (5, 120, 40, True, "Relu", 1), (5, 120, 40, True, "Relu", 1),
        (3, 240, 80, False, "HardSwish", 2), (3, 200, 80, False, "HardSwish", 1),
        (3, 184, 80, False, "HardSwish", 1), (3, 184, 80, False, "HardSwish", 1),
        (3, 480, 112, True, "HardSwish", 1), (3, 672, 112, True, "HardSwish", 1),
        (5, 672, 160, True, "HardSwish", 2), (5, 960, 160, True, "HardSwish", 1),
        (5, 960, 160, True, "HardSwish", 1),
    ):  # fmt: skip
        y = net.op(kind, net.conv(x, net.count(expanded), kernel=1))
        wide = net.channels(y)
        y = net.op(kind, net.conv(y, wide, kernel=kernel, stride=stride, groups=wide))
        if squeezed:
            y = _squeeze(net, y)
        y = net.conv(y, net.count(channels), kernel=1)
        alike = stride == 1 and net.channels(x) == net.channels(y)
        x = net.op("Add", x, y) if alike else y
    x = net.pool(net.op("HardSwish", net.conv(x, net.count(960), kernel=1)))
    x = net.op("HardSwish", net.conv(x, net.count(1280), kernel=1))
    return net.model(net.dense(x, 1000, net.channels(x)))


def _squeeze(net: _Net, x: str) -> str:
    n = net.channels(x)
    y = net.op("Relu", net.conv(net.pool(x), max(8, n // 4), kernel=1))
    return net.op("Mul", x, net.op("HardSigmoid", net.conv(y, n, kernel=1), alpha=1 / 6))


def yolo(size: int = 416, width: float = 1) -> onnx.ModelProto:
    """Like YOLOv3-tiny (Redmon and Farhadi, 2018): Leaky ReLU, two heads; normalization folded."""
    net = _Net("yolo", size, width)

    def block(x: str, channels: int, kernel: int = 3) -> str:
        return net.op("LeakyRelu", net.conv(x, net.count(channels), kernel), alpha=0.1)

    x = "x"
    for channels in (16, 32, 64, 128):
        x = net.op("MaxPool", block(x, channels), kernel_shape=[2, 2], strides=[2, 2])
    middle = block(x, 256)
    x = net.op("MaxPool", middle, kernel_shape=[2, 2], strides=[2, 2])
    x = block(block(block(x, 512), 1024), 256, 1)
    first = net.conv(block(x, 512), 255, kernel=1)
    scales = net.weight(np.array([1, 1, 2, 2], np.float32))
    x = net.op("Resize", block(x, 128, 1), "", scales, mode="nearest")
    return net.model(first, net.conv(block(net.concat(x, middle), 256), 255, kernel=1))


def deep_lab(size: int = 257, width: float = 1) -> onnx.ModelProto:
    """Like DeepLabV3 (Chen et al., 2017): a residual network with ReLU and dilated branches."""
    net = _Net("deep_lab", size, width)
    x = net.op("Relu", net.conv("x", net.count(64), kernel=7, stride=2))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for stage, (count, stride, dilation) in enumerate(((2, 1, 1), (2, 2, 1), (2, 1, 2), (2, 1, 4))):
        for unit in range(count):
            wide, step = net.count(64 << stage), stride if unit == 0 else 1
            x = _residual(net, x, wide, step, dilation)
    branches = [net.op("Relu", net.conv(x, net.count(256), kernel=1))]
    branches += [net.op("Relu", net.conv(x, net.count(256), dilation=d)) for d in (6, 12, 18)]
    x = net.op("Relu", net.conv(net.concat(*branches), net.count(256), kernel=1))
    scales = net.weight(np.array([1, 1, 8, 8], np.float32))
    return net.model(net.op("Resize", net.conv(x, 21, kernel=1), "", scales, mode="linear"))


def _residual(net: _Net, x: str, channels: int, stride: int, dilation: int) -> str:
    y = net.op("Relu", net.conv(x, channels, stride=stride, dilation=dilation))
    y = net.conv(y, channels, dilation=dilation)
    if stride > 1 or net.channels(x) != channels:
        x = net.conv(x, channels, kernel=1, stride=stride, pad=False)
    return net.op("Relu", net.op("Add", y, x))


def quantized(size: int = 224, width: float = 1) -> onnx.ModelProto:
    """Convolutions with Leaky ReLU, quantized to 8 bits as QDQ: scales of one number."""
    net = _Net("quantized", size, width)
    x = _quantize(net, "x", 0.03)
    for channels, stride in ((32, 2), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2)):
        y = _quantize(net, _conv_quantized(net, x, net.count(channels), stride), 0.05)
        x = _quantize(net, net.op("LeakyRelu", y, alpha=0.1), 0.05)
    return net.model(net.dense(net.pool(x), 1000, net.channels(x)))


def _quantize(net: _Net, x: str, scale: float) -> str:
    step, zero = net.weight(np.asarray(scale, np.float32)), net.weight(np.asarray(128, np.uint8))
    return net.op("DequantizeLinear", net.op("QuantizeLinear", x, step, zero), step, zero)


def _conv_quantized(net: _Net, x: str, channels: int, stride: int) -> str:
    of = net.channels(x)
    values = np.random.default_rng(channels).integers(-127, 128, (channels, of, 3, 3), np.int8)
    step = net.weight(np.asarray((2 / (of * 9)) ** 0.5 / 73, np.float32))
    zero = net.weight(np.asarray(0, np.int8))
    weights = net.op("DequantizeLinear", net.weight(values), step, zero)
    y = net.op("Conv", x, weights, kernel_shape=[3, 3], strides=[stride] * 2, pads=[1] * 4)
    net.set_channels(y, channels)
    return y


NETWORKS: dict[str, Callable[..., onnx.ModelProto]] = {
    "IR-18, PRelu": lambda **how: face_resnet((2, 2, 2, 2), **how),
    "IR-50, PRelu": lambda **how: face_resnet((3, 4, 14, 3), **how),
    "MobileFaceNet, PRelu": mobile_face_net,
    "MobileNetV3, HardSwish": mobile_net_v3,
    "YOLO-like, Leaky ReLU": yolo,
    "DeepLab-like, ReLU": deep_lab,
    "quantized, Leaky ReLU": quantized,
}
"""By what a table calls them."""
