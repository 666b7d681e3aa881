"""torch, eager and compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from relu_ops.bench.peers.problem import Arrays, Call, Prepared, Problem, idiom

_BITS = {"bfloat16": "uint16"}
"""What torch reads instead of a NumPy dtype that it does not know."""


def _relu_grad(torch: Any, inputs: Arrays, y: Any, alpha: float) -> Call:
    backward = torch.ops.aten.threshold_backward.grad_input  # what autograd calls
    return lambda: backward(*inputs, 0, grad_input=y)


def _add_relu(torch: Any, inputs: Arrays, y: Any, alpha: float) -> Call:
    a, b = inputs
    return lambda: torch.relu_(torch.add(a, b, out=y))


def _scale_bias_leaky_relu(torch: Any, inputs: Arrays, y: Any, alpha: float) -> Call:
    (x, scale, bias), leaky = inputs, torch.nn.functional.leaky_relu_
    return lambda: leaky(torch.addcmul(bias, x, scale, out=y), alpha)


def _prelu(torch: Any, inputs: Arrays, y: Any, alpha: float) -> Call:
    x, slope = inputs
    weight = slope.reshape(-1)
    return lambda: torch.prelu(x, weight)


def _quantized(torch: Any, inputs: Arrays, y: Any, alpha: float) -> Call:
    with warnings.catch_warnings():  # it is to be removed, in favour of nothing for elementwise
        warnings.simplefilter("ignore")
        x = torch._make_per_tensor_quantized_tensor(inputs[0], 0.05, 0)
    return lambda: torch.ops.quantized.leaky_relu(x, alpha, False, 0.05, 0)


# Eager: (torch, inputs, y, alpha) -> call. Those that return a tensor cannot write into y.
IDIOMS: dict[str, Callable[[Any, Arrays, Any, float], Call]] = {
    "relu": lambda torch, x, y, _: lambda: torch.clamp_min(x[0], 0, out=y),
    "leaky_relu": lambda torch, x, y, alpha: (
        lambda: torch._C._nn.leaky_relu(x[0], alpha, out=y)  # functional.leaky_relu has no out=
    ),
    "relu_grad": _relu_grad,
    "add_relu": _add_relu,
    "scale_bias_leaky_relu": _scale_bias_leaky_relu,
    "relu6": lambda torch, x, y, _: lambda: torch.clamp(x[0], 0, 6, out=y),
    "prelu": _prelu,
    "quantized_leaky_relu": _quantized,
}


def _quantized_expression(torch: Any, alpha: float, x: Any) -> Any:
    real = torch.nn.functional.leaky_relu(x.to(torch.float32) * 0.05, alpha)
    return torch.clamp(torch.round(real / 0.05), -128, 127).to(torch.int8)


# For its compiler, which fuses them: (torch, alpha, inputs...) -> result.
EXPRESSIONS: dict[str, Callable[..., Any]] = {
    "relu": lambda torch, alpha, x: torch.relu(x),
    "leaky_relu": lambda torch, alpha, x: torch.nn.functional.leaky_relu(x, alpha),
    "relu_grad": lambda torch, alpha, dy, x: torch.where(x > 0, dy, 0.0),
    "add_relu": lambda torch, alpha, a, b: torch.relu(a + b),
    "scale_bias_leaky_relu": lambda torch, alpha, x, scale, bias: torch.nn.functional.leaky_relu(
        x * scale + bias, alpha
    ),
    "relu6": lambda torch, alpha, x: torch.clamp(x, 0, 6),
    "prelu": lambda torch, alpha, x, slope: torch.where(x < 0, slope * x, x),
    "quantized_leaky_relu": _quantized_expression,
}


def as_torch(x: np.ndarray) -> Any:
    """A tensor on the memory of an array."""
    import torch

    if x.dtype.name in _BITS:
        return torch.from_numpy(x.view(_BITS[x.dtype.name])).view(getattr(torch, x.dtype.name))
    return torch.from_numpy(x)


def from_torch(tensor: Any, dtype: np.dtype) -> np.ndarray:
    """An array on the memory of a tensor, which may be quantized."""
    import torch

    plain = tensor.int_repr() if tensor.is_quantized else tensor
    if dtype.name in _BITS:
        return np.asarray(plain.view(getattr(torch, _BITS[dtype.name])).numpy().view(dtype))
    return np.asarray(plain.numpy())


def _torch(problem: Problem) -> tuple[Any, list[Any], Any]:
    import torch

    torch.set_num_threads(problem.threads)
    return torch, [as_torch(x) for x in problem.inputs], as_torch(problem.outs[0])


def eager(problem: Problem) -> Prepared:
    """torch, with out= where the operator has it."""
    torch, inputs, y = _torch(problem)
    call = idiom(IDIOMS, problem)(torch, inputs, y, problem.case.alpha)
    result = call()
    if result is y:
        return Prepared(call, lambda _: problem.outs, keep=(inputs, y))
    dtype = problem.outs[0].dtype
    return Prepared(call, lambda made: [from_torch(made, dtype)], True, keep=(inputs,))


def compiled(problem: Problem) -> Prepared:
    """torch.compile of the whole expression, for this very shape, into the caller's array."""
    torch, inputs, y = _torch(problem)
    expression, alpha = idiom(EXPRESSIONS, problem), problem.case.alpha

    def function(out: Any, *arguments: Any) -> None:
        out.copy_(expression(torch, alpha, *arguments))

    torch._dynamo.reset()  # else the ninth shape is not compiled any more
    fused = torch.compile(function, dynamic=False, fullgraph=True)
    with torch.no_grad():
        fused(y, *inputs)
    return Prepared(lambda: fused(y, *inputs), lambda _: problem.outs, keep=(inputs, y))
