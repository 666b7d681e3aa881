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

One module each: `draft` (a graph while it is written), `authoring` (the graphs), `models` (what is
done with any model: its gradient, its bytes), `folder` (the files of `models/`).
"""

from __future__ import annotations

from relu_ops.graphs.authoring import (
    GRAPHS,
    MODELS,
    add_relu,
    bias_relu,
    dtypes,
    leaky_relu,
    leaky_relu_derivative,
    leaky_relu_grad,
    leaky_relu_grad_of_any_slope,
    leaky_relu_of_any_slope,
    maxout,
    prelu,
    quantized_leaky_relu,
    relu,
    relu6,
    relu_derivative,
    relu_grad,
    scale_bias_leaky_relu,
    scale_bias_relu,
    thresholded_relu,
)
from relu_ops.graphs.draft import IR_VERSION, OPSET
from relu_ops.graphs.folder import differences, export
from relu_ops.graphs.models import describe, gradient, serialize, with_rank

__all__ = [
    "GRAPHS",
    "IR_VERSION",
    "MODELS",
    "OPSET",
    "add_relu",
    "bias_relu",
    "describe",
    "differences",
    "dtypes",
    "export",
    "gradient",
    "leaky_relu",
    "leaky_relu_derivative",
    "leaky_relu_grad",
    "leaky_relu_grad_of_any_slope",
    "leaky_relu_of_any_slope",
    "maxout",
    "prelu",
    "quantized_leaky_relu",
    "relu",
    "relu6",
    "relu_derivative",
    "relu_grad",
    "scale_bias_leaky_relu",
    "scale_bias_relu",
    "serialize",
    "thresholded_relu",
    "with_rank",
]
