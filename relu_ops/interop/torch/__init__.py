"""relu_ops inside programs of torch: operators with gradient, for eager code and torch.compile.

To torch each is an operator `relu_ops::NAME`. One module each: `library` (what torch is told of an
operator), `functions` (relu, leaky_relu), `wrapping` (any graph), `modules` (in the place of
torch.nn's), `exporting` (back to ONNX).
"""

from __future__ import annotations

from relu_ops.interop.torch.exporting import onnx_table
from relu_ops.interop.torch.functions import leaky_relu, relu
from relu_ops.interop.torch.modules import LeakyReLU, PReLU, ReLU, replace
from relu_ops.interop.torch.wrapping import Wrapped, wrap

__all__ = [
    "LeakyReLU",
    "PReLU",
    "ReLU",
    "Wrapped",
    "leaky_relu",
    "onnx_table",
    "relu",
    "replace",
    "wrap",
]
