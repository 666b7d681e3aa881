"""Functions of onnxscript, which reads their source and looks names up in their module."""

from onnxscript import FLOAT, script, values
from onnxscript import opset18 as op

local = values.Opset("local", 1)


@script()
def typed(x: FLOAT["N"]) -> FLOAT["N"]:  # noqa: F821
    return op.LeakyRelu(x, alpha=0.5)


@script()
def untyped(x):
    return op.Relu(x)


@script(local)
def leaky(x, slope: float = 0.125):
    return op.LeakyRelu(x, alpha=slope)


@script()
def calling(x: FLOAT["N"]) -> FLOAT["N"]:  # noqa: F821
    return op.Add(leaky(x), leaky(x, slope=0.5))
