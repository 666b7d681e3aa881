"""numba: a loop in prange, or without threads."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from relu_ops.bench.peers.problem import (
    UNSUPPORTED,
    Prepared,
    Problem,
    Skipped,
    idiom,
    quantized_table,
)

# The scalar expression of one element, from x0, x1, x2 and constants of its dtype. x0 runs over the
# whole output.
EXPRESSIONS: dict[str, str] = {
    "relu": "zero if x0 < zero else x0",
    "leaky_relu": "alpha * x0 if x0 < zero else x0",
    "relu_grad": "x0 if x1 > zero else zero",
    "add_relu": "zero if x0 + x1 < zero else x0 + x1",
    "scale_bias_leaky_relu": "leaky(x0 * x1 + x2, alpha, zero)",
    "relu6": "zero if x0 < zero else (six if x0 > six else x0)",
    "prelu": "x1 * x0 if x0 < zero else x0",
    "quantized_leaky_relu": "table[np.uint8(x0)]",
}


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


def prepare(problem: Problem) -> Prepared | Skipped:
    """A loop in prange, or the same without threads where that is faster."""
    import numba

    if problem.outs[0].dtype.name in ("float16", "bfloat16"):
        return Skipped(UNSUPPORTED, f"numba has no {problem.outs[0].dtype.name} on the CPU")
    expression = idiom(EXPRESSIONS, problem)
    numba.set_num_threads(min(problem.threads, numba.config.NUMBA_NUM_THREADS))
    layout, arrays = _views(problem.inputs, problem.outs[0])
    dtype = problem.outs[0].dtype.name
    candidates = []
    for parallel in (False, True):
        kernel = _kernel(
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


def _views(inputs: Sequence[np.ndarray], y: np.ndarray) -> tuple[str, list[np.ndarray]]:
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
def _kernel(
    layout: str, count: int, expression: str, dtype: str, alpha: float, parallel: bool
) -> Callable[..., None]:
    import numba

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
        "prange": numba.prange,
        "zero": scalar(0),
        "six": scalar(6),
        "alpha": np.float32(alpha).astype(scalar),
        "table": quantized_table(alpha),
        "leaky": numba.njit(**settings)(_leaky),
    }
    exec(source, namespace)
    kernel = numba.njit(parallel=parallel, **settings)(namespace["kernel"])
    made: Callable[..., None] = kernel
    return made


def _leaky(x: Any, alpha: Any, zero: Any) -> Any:
    return alpha * x if x < zero else x
