"""What each peer does for each graph, as those who know it best would write it.

One dictionary a framework, keyed by `Case.graph`. The framework is passed in, so that nothing here
imports one. All compute into arrays that were made before, wherever the framework can.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Call = Callable[[], Any]
Arrays = Sequence[Any]

# ---------------------------------------------------------------------------------------------
# NumPy: (inputs, y, alpha) -> call. Constants are arrays of the right dtype already: converting a
# Python number costs 0.3 us a call. Comparisons of idioms: NumPy 2.4.6, AMD Zen 4.


def _numpy_relu(inputs: Arrays, y: np.ndarray, alpha: float) -> Call:
    (x,), zero = inputs, np.zeros((), y.dtype)
    return lambda: np.maximum(x, zero, out=y)


def _numpy_leaky_relu(inputs: Arrays, y: np.ndarray, alpha: float) -> Call:
    (x,), slope = inputs, np.array(alpha, np.float32).astype(y.dtype)

    def call() -> None:  # right for slopes up to 1
        np.multiply(x, slope, out=y)
        np.maximum(y, x, out=y)

    return call


def _numpy_relu_grad(inputs: Arrays, y: np.ndarray, alpha: float) -> Call:
    (dy, x), zero, mask = inputs, np.zeros((), y.dtype), np.empty(y.shape, bool)

    def call() -> None:  # 0.3 ms at 1M elements, where copyto with a mask takes 4.9
        np.greater(x, zero, out=mask)
        np.multiply(dy, mask, out=y)

    return call


def _numpy_add_relu(inputs: Arrays, y: np.ndarray, alpha: float) -> Call:
    (a, b), zero = inputs, np.zeros((), y.dtype)

    def call() -> None:
        np.add(a, b, out=y)
        np.maximum(y, zero, out=y)

    return call


def _numpy_scale_bias_leaky_relu(inputs: Arrays, y: np.ndarray, alpha: float) -> Call:
    x, scale, bias = inputs
    slope, scratch = np.array(alpha, np.float32).astype(y.dtype), np.empty_like(y)

    def call() -> None:
        np.multiply(x, scale, out=y)
        np.add(y, bias, out=y)
        np.multiply(y, slope, out=scratch)
        np.maximum(y, scratch, out=y)

    return call


def _numpy_relu6(inputs: Arrays, y: np.ndarray, alpha: float) -> Call:
    (x,), zero, six = inputs, np.zeros((), y.dtype), np.array(6, y.dtype)
    return lambda: np.clip(x, zero, six, out=y)


def _numpy_prelu(inputs: Arrays, y: np.ndarray, alpha: float) -> Call:
    (x, slope), zero, scratch = inputs, np.zeros((), y.dtype), np.empty_like(y)

    def call() -> None:  # of the forms that are right for any slope, the one without a mask
        np.minimum(x, zero, out=scratch)
        np.multiply(scratch, slope, out=scratch)
        np.maximum(x, zero, out=y)
        np.add(y, scratch, out=y)

    return call


def quantized_table(alpha: float, scale: float = 0.05) -> np.ndarray:
    """The 256 results of the quantized chain, by the bits of x as uint8."""
    x = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32) * np.float32(scale)
    y = np.where(x < 0, np.float32(alpha) * x, x) / np.float32(scale)
    return np.clip(np.rint(y), -128, 127).astype(np.int8)


def _numpy_quantized(inputs: Arrays, y: np.ndarray, alpha: float) -> Call:
    bits, table = inputs[0].view(np.uint8), quantized_table(alpha)
    return lambda: np.take(table, bits, out=y, mode="wrap")  # the fastest mode with out=


NUMPY: dict[str, Callable[[Arrays, np.ndarray, float], Call]] = {
    "relu": _numpy_relu,
    "leaky_relu": _numpy_leaky_relu,
    "relu_grad": _numpy_relu_grad,
    "add_relu": _numpy_add_relu,
    "scale_bias_leaky_relu": _numpy_scale_bias_leaky_relu,
    "relu6": _numpy_relu6,
    "prelu": _numpy_prelu,
    "quantized_leaky_relu": _numpy_quantized,
}

# ---------------------------------------------------------------------------------------------
# torch, eager: (torch, inputs, y, alpha) -> call. Those that return a tensor cannot write into y.


def _torch_relu_grad(torch: Any, inputs: Arrays, y: Any, alpha: float) -> Call:
    backward = torch.ops.aten.threshold_backward.grad_input  # what autograd calls
    return lambda: backward(*inputs, 0, grad_input=y)


def _torch_add_relu(torch: Any, inputs: Arrays, y: Any, alpha: float) -> Call:
    a, b = inputs
    return lambda: torch.relu_(torch.add(a, b, out=y))


def _torch_scale_bias_leaky_relu(torch: Any, inputs: Arrays, y: Any, alpha: float) -> Call:
    (x, scale, bias), leaky = inputs, torch.nn.functional.leaky_relu_
    return lambda: leaky(torch.addcmul(bias, x, scale, out=y), alpha)


def _torch_prelu(torch: Any, inputs: Arrays, y: Any, alpha: float) -> Call:
    x, slope = inputs
    weight = slope.reshape(-1)
    return lambda: torch.prelu(x, weight)


def _torch_quantized(torch: Any, inputs: Arrays, y: Any, alpha: float) -> Call:
    with warnings.catch_warnings():  # it is to be removed, in favour of nothing for elementwise
        warnings.simplefilter("ignore")
        x = torch._make_per_tensor_quantized_tensor(inputs[0], 0.05, 0)
    return lambda: torch.ops.quantized.leaky_relu(x, alpha, False, 0.05, 0)


TORCH: dict[str, Callable[[Any, Arrays, Any, float], Call]] = {
    "relu": lambda torch, x, y, _: lambda: torch.clamp_min(x[0], 0, out=y),
    "leaky_relu": lambda torch, x, y, alpha: (
        lambda: torch._C._nn.leaky_relu(x[0], alpha, out=y)  # functional.leaky_relu has no out=
    ),
    "relu_grad": _torch_relu_grad,
    "add_relu": _torch_add_relu,
    "scale_bias_leaky_relu": _torch_scale_bias_leaky_relu,
    "relu6": lambda torch, x, y, _: lambda: torch.clamp(x[0], 0, 6, out=y),
    "prelu": _torch_prelu,
    "quantized_leaky_relu": _torch_quantized,
}

# ---------------------------------------------------------------------------------------------
# Expressions, for compilers that fuse them: (framework, alpha, inputs...) -> result.


def _torch_quantized_expression(torch: Any, alpha: float, x: Any) -> Any:
    real = torch.nn.functional.leaky_relu(x.to(torch.float32) * 0.05, alpha)
    return torch.clamp(torch.round(real / 0.05), -128, 127).to(torch.int8)


TORCH_EXPRESSIONS: dict[str, Callable[..., Any]] = {
    "relu": lambda torch, alpha, x: torch.relu(x),
    "leaky_relu": lambda torch, alpha, x: torch.nn.functional.leaky_relu(x, alpha),
    "relu_grad": lambda torch, alpha, dy, x: torch.where(x > 0, dy, 0.0),
    "add_relu": lambda torch, alpha, a, b: torch.relu(a + b),
    "scale_bias_leaky_relu": lambda torch, alpha, x, scale, bias: torch.nn.functional.leaky_relu(
        x * scale + bias, alpha
    ),
    "relu6": lambda torch, alpha, x: torch.clamp(x, 0, 6),
    "prelu": lambda torch, alpha, x, slope: torch.where(x < 0, slope * x, x),
    "quantized_leaky_relu": _torch_quantized_expression,
}


def _jax_leaky(jnp: Any, alpha: float, x: Any) -> Any:
    return jnp.where(x < 0, x.dtype.type(alpha) * x, x)


def _jax_quantized(jnp: Any, alpha: float, x: Any) -> Any:
    real = _jax_leaky(jnp, alpha, x.astype(jnp.float32) * jnp.float32(0.05))
    return jnp.clip(jnp.round(real / jnp.float32(0.05)), -128, 127).astype(jnp.int8)


JAX: dict[str, Callable[..., Any]] = {
    "relu": lambda jnp, alpha, x: jnp.maximum(x, 0),
    "leaky_relu": _jax_leaky,
    "relu_grad": lambda jnp, alpha, dy, x: jnp.where(x > 0, dy, 0),
    "add_relu": lambda jnp, alpha, a, b: jnp.maximum(a + b, 0),
    "scale_bias_leaky_relu": lambda jnp, alpha, x, scale, bias: _jax_leaky(
        jnp, alpha, x * scale + bias
    ),
    "relu6": lambda jnp, alpha, x: jnp.clip(x, 0, 6),
    "prelu": lambda jnp, alpha, x, slope: jnp.where(x < 0, slope * x, x),
    "quantized_leaky_relu": _jax_quantized,
}

# ---------------------------------------------------------------------------------------------
# Loops, for numba: the scalar expression of one element, from x0, x1, x2 and constants of its
# dtype. x0 runs over the whole output.

NUMBA: dict[str, str] = {
    "relu": "zero if x0 < zero else x0",
    "leaky_relu": "alpha * x0 if x0 < zero else x0",
    "relu_grad": "x0 if x1 > zero else zero",
    "add_relu": "zero if x0 + x1 < zero else x0 + x1",
    "scale_bias_leaky_relu": "leaky(x0 * x1 + x2, alpha, zero)",
    "relu6": "zero if x0 < zero else (six if x0 > six else x0)",
    "prelu": "x1 * x0 if x0 < zero else x0",
    "quantized_leaky_relu": "table[np.uint8(x0)]",
}

# ---------------------------------------------------------------------------------------------
# CuPy: (cupy, inputs, y, alpha) -> call.

CUPY: dict[str, Callable[[Any, Arrays, Any, float], Call]] = {
    "relu": lambda cupy, x, y, _: lambda: cupy.maximum(x[0], 0, out=y),
    "leaky_relu": lambda cupy, x, y, alpha: _cupy(cupy, "x", "x < 0 ? T({0}) * x : x", x, y, alpha),
    "relu_grad": lambda cupy, x, y, _: _cupy(cupy, "dy, x", "x > 0 ? dy : T(0)", x, y, 0),
    "add_relu": lambda cupy, x, y, _: _cupy(cupy, "a, b", "a + b < T(0) ? T(0) : a + b", x, y, 0),
    "scale_bias_leaky_relu": lambda cupy, x, y, alpha: _cupy(
        cupy, "x, s, b", "x * s + b < T(0) ? T({0}) * (x * s + b) : x * s + b", x, y, alpha
    ),
    "relu6": lambda cupy, x, y, _: lambda: cupy.clip(x[0], 0, 6, out=y),
    "prelu": lambda cupy, x, y, _: _cupy(cupy, "x, s", "x < 0 ? s * x : x", x, y, 0),
}


def _cupy(cupy: Any, names: str, expression: str, inputs: Arrays, y: Any, alpha: float) -> Call:
    """One fused kernel, which is how CuPy's documentation says to write a chain."""
    declared = ", ".join(f"T {name.strip()}" for name in names.split(","))
    body = f"y = {expression.format(repr(float(np.float32(alpha))))}"
    kernel = cupy.ElementwiseKernel(declared, "T y", body, "benchmark")
    return lambda: kernel(*inputs, y)
