"""Peers that are given an idiom: NumPy, torch, JAX and numba."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from relu_ops.bench import idioms
from relu_ops.bench.peers import UNSUPPORTED, Prepared, Problem, Skipped

_BITS = {"bfloat16": "uint16"}
"""What torch reads instead of a NumPy dtype that it does not know."""


def idiom(table: dict[str, Any], problem: Problem) -> Any:
    """The row of a case. A framework without one raises; that is why it is left out.

    Raises:
        NotImplementedError: There is no such row.
    """
    if problem.case.graph not in table or len(problem.outs) != 1:
        raise NotImplementedError(f"no idiom is written for {problem.case.name}")
    return table[problem.case.graph]


def numpy(problem: Problem) -> Prepared:
    """The best idiom of NumPy, with out=."""
    make = idiom(idioms.NUMPY, problem)
    call = make(problem.inputs, problem.outs[0], problem.case.alpha)
    with np.errstate(all="ignore"):
        call()  # what cannot run says so here
    return Prepared(call, lambda _: problem.outs)


# ---------------------------------------------------------------------------------------------
# torch


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


def torch_eager(problem: Problem) -> Prepared:
    """torch, with out= where the operator has it."""
    torch, inputs, y = _torch(problem)
    call = idiom(idioms.TORCH, problem)(torch, inputs, y, problem.case.alpha)
    result = call()
    if result is y:
        return Prepared(call, lambda _: problem.outs, keep=(inputs, y))
    dtype = problem.outs[0].dtype
    return Prepared(call, lambda made: [from_torch(made, dtype)], True, keep=(inputs,))


def torch_compiled(problem: Problem) -> Prepared:
    """torch.compile of the whole expression, for this very shape, into the caller's array."""
    torch, inputs, y = _torch(problem)
    expression, alpha = idiom(idioms.TORCH_EXPRESSIONS, problem), problem.case.alpha

    def function(out: Any, *arguments: Any) -> None:
        out.copy_(expression(torch, alpha, *arguments))

    torch._dynamo.reset()  # else the ninth shape is not compiled any more
    compiled = torch.compile(function, dynamic=False, fullgraph=True)
    with torch.no_grad():
        compiled(y, *inputs)
    return Prepared(lambda: compiled(y, *inputs), lambda _: problem.outs, keep=(inputs, y))


# ---------------------------------------------------------------------------------------------
# JAX


def jax(problem: Problem) -> Prepared:
    """jax.jit. XLA makes its outputs anew at every call."""
    # XLA reads the number of its threads once, when the first array is made.
    for name in ("NPROC", "PJRT_NPROC"):
        os.environ.setdefault(name, str(problem.threads))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax as jax_module

    jax_module.config.update("jax_enable_x64", True)
    expression, alpha = idiom(idioms.JAX, problem), problem.case.alpha
    compiled = jax_module.jit(lambda *inputs: expression(jax_module.numpy, alpha, *inputs))
    inputs = [jax_module.device_put(x) for x in problem.inputs]
    ready = compiled.lower(*inputs).compile()
    return Prepared(
        lambda: ready(*inputs).block_until_ready(),
        lambda made: [np.asarray(made)],
        True,
        keep=(inputs,),
    )


# ---------------------------------------------------------------------------------------------
# numba

_TEMPLATES = {
    "flat": """
def kernel({inputs}, y):
    for i in prange(y.size):
        {flat_loads}
        y[i] = {expression}
""",
    # y[r, c], with parameters by column
    "columns": """
def kernel({inputs}, y):
    for r in prange(y.shape[0]):
        for c in range(y.shape[1]):
            x0 = a0[r, c]
            {column_loads}
            y[r, c] = {expression}
""",
    # y[r, c], with parameters by row: images of one channel each
    "rows": """
def kernel({inputs}, y):
    for r in prange(y.shape[0]):
        k = r % a1.size
        {row_loads}
        for c in range(y.shape[1]):
            x0 = a0[r, c]
            y[r, c] = {expression}
""",
}

# numba's clock starts after its compiler; two loops are compiled and the faster one taken, as the
# launch of a parallel one costs several microseconds.
_TRIALS = 25


def numba(problem: Problem) -> Prepared | Skipped:
    """A loop in prange, or the same without threads where that is faster."""
    import numba as numba_module

    if problem.outs[0].dtype.name in ("float16", "bfloat16"):
        return Skipped(UNSUPPORTED, f"numba has no {problem.outs[0].dtype.name} on the CPU")
    expression = idiom(idioms.NUMBA, problem)
    numba_module.set_num_threads(min(problem.threads, numba_module.config.NUMBA_NUM_THREADS))
    layout, arrays = _numba_views(problem.inputs, problem.outs[0])
    dtype = problem.outs[0].dtype.name
    candidates = []
    for parallel in (False, True):
        kernel = _numba_kernel(
            layout, len(problem.inputs), expression, dtype, problem.case.alpha, parallel
        )
        candidates.append(functools.partial(kernel, *arrays))
    call = min(candidates, key=_typical_seconds)
    return Prepared(call, lambda _: problem.outs)


def _typical_seconds(call: Callable[[], Any]) -> float:
    call()
    seconds = []
    for _ in range(_TRIALS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
        if sum(seconds) > 0.2:
            break
    return float(np.median(seconds))


def _numba_views(inputs: Sequence[np.ndarray], y: np.ndarray) -> tuple[str, list[np.ndarray]]:
    """The layout of the loop, and views for it, y last."""
    if all(x.shape == y.shape for x in inputs):
        return "flat", [x.reshape(-1) for x in (*inputs, y)]
    whole, *parameters = inputs
    flat = [p.reshape(-1) for p in parameters]
    if y.ndim == 2:
        return "columns", [whole, *flat, y]
    channels = y.shape[1]
    shape = (y.shape[0] * channels, -1)
    return "rows", [whole.reshape(shape), *flat, y.reshape(shape)]


@functools.cache
def _numba_kernel(
    layout: str, count: int, expression: str, dtype: str, alpha: float, parallel: bool
) -> Callable[..., None]:
    import numba as numba_module

    def loads(first: int, index: str, indent: int) -> str:
        lines = [f"x{k} = a{k}[{index}]" for k in range(first, count)]
        return ("\n" + " " * indent).join(lines)

    source = _TEMPLATES[layout].format(
        inputs=", ".join(f"a{k}" for k in range(count)),
        flat_loads=loads(0, "i", 8),
        column_loads=loads(1, "c", 12),
        row_loads=loads(1, "k", 8),
        expression=expression,
    )
    scalar = np.dtype(dtype).type
    settings = {"error_model": "numpy", "fastmath": False}
    namespace: dict[str, Any] = {
        "np": np,
        "prange": numba_module.prange,
        "zero": scalar(0),
        "six": scalar(6),
        "alpha": np.float32(alpha).astype(scalar),
        "table": idioms.quantized_table(alpha),
        "leaky": numba_module.njit(**settings)(_leaky),
    }
    exec(source, namespace)
    kernel = numba_module.njit(parallel=parallel, **settings)(namespace["kernel"])
    made: Callable[..., None] = kernel
    return made


def _leaky(x: Any, alpha: Any, zero: Any) -> Any:
    return alpha * x if x < zero else x
