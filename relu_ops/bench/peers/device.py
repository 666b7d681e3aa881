"""relu_ops on a CUDA device, by the driver alone: what the base install of a machine can time."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from relu_ops.bench.peers.problem import Prepared, Problem
from relu_ops.runtime import driver
from relu_ops.runtime.operator import number_of
from relu_ops.verification.device import DeviceArray


def bound(problem: Problem) -> Prepared:
    """relu_ops, bound once to arrays on the device."""
    device = number_of(problem.operator.device)
    inputs = [DeviceArray(x, device) for x in problem.inputs]
    outs = [DeviceArray(y, device) for y in problem.outs]
    call = problem.operator.bind(*inputs, out=outs[0] if len(outs) == 1 else tuple(outs))

    def outputs(_: object) -> Sequence[np.ndarray]:
        for y, out in zip(problem.outs, outs, strict=True):
            out.copy_to(y)
        return problem.outs

    def fill(values: Sequence[np.ndarray]) -> None:
        for out, value in zip(outs, values, strict=True):
            out.write(value)

    return Prepared(call, outputs, seconds=_clock(device, call), keep=(inputs, outs), fill=fill)


def limits(problem: Problem) -> Iterator[tuple[str, Callable[[int], float]]]:
    """The limit on a device: what its own copy takes for as many bytes."""
    device = number_of(problem.operator.device)
    (y, *_) = problem.outs
    half = (sum(x.nbytes for x in problem.inputs if x.size == y.size) + y.nbytes + 1) // 2
    source, target = _Block(device, half), _Block(device, half)
    source.randomize()
    copy = lambda: driver.copy_within(device, target.address, source.address, half)  # noqa: E731
    yield "device-to-device copy", _clock(device, copy)


def _clock(device: int, call: Callable[[], object]) -> Callable[[int], float]:
    """Seconds by the device's own events, before the calls and after."""

    def work(repeats: int) -> None:
        for _ in range(repeats):
            call()

    return lambda repeats: driver.elapsed_seconds(device, lambda: work(repeats))


class _Block:
    """Some memory of a device, given back with the object."""

    def __init__(self, device: int, size: int) -> None:
        self.device, self.size = device, size
        self.address = driver.allocate(device, size)
        weakref.finalize(self, driver.free, device, self.address)

    def randomize(self) -> None:
        """Hold what data is like: zeros draw less power, and can be moved faster."""
        noise = np.random.default_rng(0).integers(0, 256, self.size, np.uint8)
        driver.copy_in(self.device, self.address, noise.ctypes.data, self.size)
