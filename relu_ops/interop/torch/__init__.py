"""relu_ops inside programs of torch: operators with gradient, for eager code and torch.compile."""

from __future__ import annotations

from relu_ops.interop.torch.functions import leaky_relu, relu

__all__ = ["leaky_relu", "relu"]
