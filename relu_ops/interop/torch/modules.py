"""Modules in the place of torch.nn's, and `replace`, which puts them there."""

from __future__ import annotations

import functools

import torch

from relu_ops.errors import ArgumentTypeError
from relu_ops.interop.torch import library
from relu_ops.interop.torch.functions import leaky_relu, relu
from relu_ops.interop.torch.wrapping import Wrapped, wrap


def _into(x: torch.Tensor, y: torch.Tensor, inplace: bool) -> torch.Tensor:
    """The result; where it is wanted in place, in x."""
    return x.copy_(y) if inplace else y


class ReLU(torch.nn.ReLU):
    """`torch.nn.ReLU`, computed by relu_ops."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Compute 0 where input < 0, else input."""
        return _into(input, relu(input), self.inplace)


class LeakyReLU(torch.nn.LeakyReLU):
    """`torch.nn.LeakyReLU`, computed by relu_ops."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Compute negative_slope * input where input < 0, else input."""
        return _into(input, leaky_relu(input, self.negative_slope), self.inplace)


class PReLU(torch.nn.PReLU):
    """`torch.nn.PReLU`, computed by relu_ops."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Compute weight * input where input < 0, else input; a weight a channel, or one."""
        weight = self.weight
        if weight.numel() > 1 and input.dim() > 2:
            weight = weight.reshape(-1, *(1,) * (input.dim() - 2))
        return _PRELU(input, weight)


def _prelu(x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
    return _prelu_of(str(x.dtype).removeprefix("torch.")).op(x, slope)


_PRELU = library.compose("prelu", "(Tensor x, Tensor slope) -> Tensor", _prelu)


@functools.cache
def _prelu_of(dtype: str) -> Wrapped:
    """PRelu of any rank: how its slope lies is the module's."""
    from relu_ops import graphs

    model = graphs.prelu(dtype=dtype)
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.ClearField("shape")
    model.graph.name = f"prelu_{dtype}"
    return wrap(model)


_KINDS: dict[type, type] = {
    torch.nn.ReLU: ReLU,
    torch.nn.LeakyReLU: LeakyReLU,
    torch.nn.PReLU: PReLU,
}
"""What `replace` puts in whose place: modules of exactly these classes."""


def replace(module: torch.nn.Module) -> list[str]:
    """Put the activations of relu_ops in the place of torch.nn's, in a whole network.

    A module's class is changed, nothing else: parameters, hooks, names and its training mode stay,
    and an optimizer keeps its parameters. Functions such as `torch.relu` in a forward are not seen.

    Args:
        module: The network; it is changed.

    Returns:
        What was changed, a line each: the module's name and its class.

    Raises:
        ArgumentTypeError: It is no module.

    >>> replace(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()))
    ['1: ReLU']
    """
    if not isinstance(module, torch.nn.Module):
        raise ArgumentTypeError(
            f"replace: module must be a torch.nn.Module (not {type(module).__name__})"
        )
    changed = []
    for name, inner in module.named_modules():
        if type(inner) in _KINDS:
            inner.__class__ = _KINDS[type(inner)]
            changed.append(f"{name or 'the module itself'}: {type(inner).__name__}")
    return changed
