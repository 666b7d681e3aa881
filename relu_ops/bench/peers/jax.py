"""JAX, under jit."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from relu_ops.bench.peers.problem import Prepared, Problem, idiom


def _leaky(jnp: Any, alpha: float, x: Any) -> Any:
    return jnp.where(x < 0, x.dtype.type(alpha) * x, x)


def _quantized(jnp: Any, alpha: float, x: Any) -> Any:
    real = _leaky(jnp, alpha, x.astype(jnp.float32) * jnp.float32(0.05))
    return jnp.clip(jnp.round(real / jnp.float32(0.05)), -128, 127).astype(jnp.int8)


# (jax.numpy, alpha, inputs...) -> result.
EXPRESSIONS: dict[str, Callable[..., Any]] = {
    "relu": lambda jnp, alpha, x: jnp.maximum(x, 0),
    "leaky_relu": _leaky,
    "relu_grad": lambda jnp, alpha, dy, x: jnp.where(x > 0, dy, 0),
    "add_relu": lambda jnp, alpha, a, b: jnp.maximum(a + b, 0),
    "scale_bias_leaky_relu": lambda jnp, alpha, x, scale, bias: _leaky(
        jnp, alpha, x * scale + bias
    ),
    "relu6": lambda jnp, alpha, x: jnp.clip(x, 0, 6),
    "prelu": lambda jnp, alpha, x, slope: jnp.where(x < 0, slope * x, x),
    "quantized_leaky_relu": _quantized,
}


def prepare(problem: Problem) -> Prepared:
    """jax.jit. XLA makes its outputs anew at every call."""
    # XLA reads the number of its threads once, when the first array is made.
    for name in ("NPROC", "PJRT_NPROC"):
        os.environ.setdefault(name, str(problem.threads))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax

    jax.config.update("jax_enable_x64", True)
    expression, alpha = idiom(EXPRESSIONS, problem), problem.case.alpha
    compiled = jax.jit(lambda *inputs: expression(jax.numpy, alpha, *inputs))
    inputs = [jax.device_put(x) for x in problem.inputs]
    ready = compiled.lower(*inputs).compile()
    return Prepared(
        lambda: ready(*inputs).block_until_ready(),
        lambda made: [np.asarray(made)],
        True,
        keep=(inputs,),
    )
