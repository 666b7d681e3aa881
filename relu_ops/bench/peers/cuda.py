"""Peers on a CUDA device, timed by the device's own events: torch, CuPy, relu_ops, and a copy.

Untested where no device is: then each is left out, and says so. Where torch is not installed, or
is built without CUDA, relu_ops and the copy are timed by the driver alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from relu_ops.bench.peers import device
from relu_ops.bench.peers import torch as eager
from relu_ops.bench.peers.problem import NO_DEVICE, Arrays, Call, Prepared, Problem, Skipped, idiom
from relu_ops.bench.peers.torch import as_torch, from_torch

_ABSENT = Skipped(NO_DEVICE, "torch sees no CUDA device")


def _torch_sees_a_device() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return bool(torch.cuda.is_available())


def _tensors(problem: Problem) -> tuple[Any, list[Any], Any] | None:
    """torch, the inputs and the output on the device; None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    return (
        torch,
        [as_torch(x).to("cuda") for x in problem.inputs],
        as_torch(problem.outs[0]).to("cuda"),
    )


def _prepared(torch: Any, problem: Problem, y: Any, call: Callable[[], Any]) -> Prepared:
    dtype = problem.outs[0].dtype

    def outputs(_: Any) -> list[np.ndarray]:
        torch.cuda.synchronize()
        return [from_torch(y.cpu(), dtype)]

    def fill(values: Sequence[np.ndarray]) -> None:
        y.copy_(as_torch(values[0]))

    return Prepared(call, outputs, seconds=_device_clock(torch, call), fill=fill)


def _device_clock(torch: Any, call: Callable[[], Any]) -> Callable[[int], float]:
    """Seconds between two events on the stream that the calls are put on."""

    def seconds(repeats: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    return seconds


def bound(problem: Problem) -> Prepared:
    """relu_ops, bound once to tensors on the device."""
    if not _torch_sees_a_device():
        return device.bound(problem)
    ready = _tensors(problem)
    assert ready is not None
    torch, inputs, y = ready
    return _prepared(torch, problem, y, problem.operator.bind(*inputs, out=y))


def torch_eager(problem: Problem) -> Prepared | Skipped:
    """torch, with out= where the operator has it."""
    ready = _tensors(problem)
    if ready is None:
        return _ABSENT
    torch, inputs, y = ready
    call = idiom(eager.IDIOMS, problem)(torch, inputs, y, problem.case.alpha)
    if call() is y:
        return _prepared(torch, problem, y, call)
    dtype = problem.outs[0].dtype
    return Prepared(
        call, lambda made: [from_torch(made.cpu(), dtype)], True, _device_clock(torch, call)
    )


def torch_compiled(problem: Problem) -> Prepared | Skipped:
    """torch.compile of the whole expression, for this very shape."""
    ready = _tensors(problem)
    if ready is None:
        return _ABSENT
    torch, inputs, y = ready
    expression, alpha = idiom(eager.EXPRESSIONS, problem), problem.case.alpha

    def function(out: Any, *arguments: Any) -> None:
        out.copy_(expression(torch, alpha, *arguments))

    torch._dynamo.reset()
    compiled = torch.compile(function, dynamic=False, fullgraph=True)
    return _prepared(torch, problem, y, lambda: compiled(y, *inputs))


# CuPy: (cupy, inputs, y, alpha) -> call.
_CUPY: dict[str, Callable[[Any, Arrays, Any, float], Call]] = {
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


def cupy(problem: Problem) -> Prepared | Skipped:
    """CuPy: an ufunc, or one fused kernel, on torch's memory and stream."""
    ready = _tensors(problem)
    if ready is None:
        return _ABSENT
    import cupy as cupy_module

    torch, inputs, y = ready
    stream = cupy_module.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)
    arrays = [cupy_module.from_dlpack(x) for x in inputs]
    make = idiom(_CUPY, problem)
    inner = make(cupy_module, arrays, cupy_module.from_dlpack(y), problem.case.alpha)
    stream.use()
    return _prepared(torch, problem, y, inner)


def limits(problem: Problem) -> Iterator[tuple[str, Callable[[int], float]]]:
    """The limit on a device: what its own copy takes for as many bytes.

    A copy reads and writes its array once; where an operator reads more, the copy is of a larger
    array, so that the bytes are the same.
    """
    if not _torch_sees_a_device():
        yield from device.limits(problem)
        return
    ready = _tensors(problem)
    assert ready is not None
    torch, inputs, y = ready
    whole = [x for x in inputs if x.numel() == y.numel()]
    half = (sum(x.numel() * x.element_size() for x in (*whole, y)) + 1) // 2
    source, target = (torch.empty(half, dtype=torch.uint8, device="cuda") for _ in range(2))
    source.random_()  # as data is: zeros draw less power, and can be moved faster
    yield "device-to-device copy", _device_clock(torch, lambda: target.copy_(source))
