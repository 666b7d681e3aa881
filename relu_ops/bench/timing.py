"""Times a bound operator against NumPy and onnxruntime on the same arrays.

Every contestant is checked before it is timed: what is fast and wrong is left out, with the
reason. Contestants take turns round by round, so that drift of the machine hits all alike.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from relu_ops import bundle as bundles
from relu_ops import reference, targets
from relu_ops.errors import require
from relu_ops.runtime.operator import Operator
from relu_ops.verification import random_values, same

Call = Callable[[], Any]

DEFAULT_SIZES = (16, 1024, 65536, 1 << 20, 1 << 24)
_ROUNDS = 31
_SAMPLE_SECONDS = 2e-3

# The best idiom of NumPy for a graph of these operators, given (inputs, out).
_NUMPY_IDIOMS: dict[tuple[str, ...], Callable[..., Call]] = {
    ("Relu",): lambda inputs, out, _: lambda: np.maximum(inputs[0], 0, out=out),
    ("Add", "Relu"): lambda inputs, out, _: (
        lambda: np.maximum(np.add(inputs[0], inputs[1], out=out), 0, out=out)
    ),
    ("LeakyRelu",): lambda inputs, out, node: _numpy_leaky_relu(inputs[0], out, node),
}


def _numpy_leaky_relu(x: np.ndarray, out: np.ndarray, node: Any) -> Call:
    alpha = x.dtype.type(node.attribute[0].f if node.attribute else 0.01)

    def call() -> None:
        np.multiply(x, alpha, out=out)
        np.maximum(out, x, out=out)

    return call


@dataclass
class Timing:
    """The samples of one contestant at one size.

    Attributes:
        contestant: Its name.
        elements: Elements of the first input.
        bytes: Bytes read and written by one call, each array once.
        samples_seconds: Seconds per call, one value per round.
        differs: Elements whose bits differ from the contract, for a peer that has such.
    """

    contestant: str
    elements: int
    bytes: int
    samples_seconds: list[float] = field(default_factory=list)
    differs: int = 0

    def quantile(self, q: float) -> float:
        """A quantile of the seconds per call."""
        return float(np.quantile(self.samples_seconds, q))


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    return {
        "cpu": targets.this_machine().cpu,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def inputs_of(operator: Operator, elements: int) -> list[np.ndarray]:
    """Random inputs of about `elements` elements for an operator's declared shapes."""
    draw = np.random.default_rng(0)
    largest = max((len(t.shape or ()) for t in operator.inputs), default=0)
    extents = {1: (elements,), 2: (max(elements // 512, 1), 512)}
    sizes = extents.get(largest, (max(elements // (64 * 56 * 56), 1), 64, 56, 56))
    symbols: dict[str, int] = {}
    arrays = []
    for tensor in operator.inputs:
        if tensor.shape is None:
            shape: tuple[int, ...] = (elements,)
        else:
            ranked = zip(tensor.shape, sizes[-len(tensor.shape) :], strict=False)
            shape = tuple(
                d if isinstance(d, int) else symbols.setdefault(d or f"?{k}", s)
                for k, (d, s) in enumerate(ranked)
            )
        count = int(np.prod(shape))
        values = random_values(tensor.dtype, count, draw)
        if values.dtype.kind not in "iub":
            values = draw.standard_normal(count, np.float32).astype(values.dtype)
        arrays.append(values.reshape(shape))
    return arrays


def compare(
    operator: Operator, sizes: Sequence[int] = DEFAULT_SIZES, rounds: int = _ROUNDS
) -> Iterable[Timing]:
    """Time an operator and its peers at several sizes.

    Args:
        operator: The operator; timed as a bound call.
        sizes: Elements of the first input.
        rounds: Samples per contestant.

    Yields:
        One `Timing` per size and contestant, the operator first.
    """
    for elements in sizes:
        yield from _compare_at(operator, inputs_of(operator, elements), rounds)


def _compare_at(operator: Operator, inputs: list[np.ndarray], rounds: int) -> list[Timing]:
    from relu_ops.compiler import frontend

    proto = frontend.read_model(operator.bundle.contents[bundles.MODEL])
    expected = reference.evaluate(frontend.import_model(proto), inputs)
    calls: dict[str, Call] = {}
    outs: dict[str, list[np.ndarray]] = {}
    for name, make in _CONTESTANTS.items():
        mine = [np.zeros_like(y) for y in expected]
        call = make(operator, proto, inputs, mine)
        if call is not None:
            calls[name], outs[name] = call, mine
    moved = sum(x.nbytes for x in (*inputs, *expected))
    timings = {name: Timing(name, inputs[0].size, moved) for name in calls}
    repeats = {}
    for name, call in calls.items():
        call()
        wrong = [int((~same(a, b)).sum()) for a, b in zip(outs[name], expected, strict=True)]
        timings[name].differs = sum(wrong)
        repeats[name] = _repeats(call)
    for _ in range(rounds):
        for name, call in calls.items():
            timings[name].samples_seconds.append(_sample(call, repeats[name]))
    return list(timings.values())


def _repeats(call: Call) -> int:
    once = min(_sample(call, 1) for _ in range(3))
    return max(1, int(_SAMPLE_SECONDS / max(once, 1e-8)))


def _sample(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def _relu_ops(operator: Operator, _: Any, inputs: Any, outs: Any) -> Call:
    return operator.bind(*inputs, out=outs if len(outs) > 1 else outs[0])


def _numpy(_: Operator, proto: Any, inputs: Any, outs: Any) -> Call | None:
    idiom = _NUMPY_IDIOMS.get(tuple(node.op_type for node in proto.graph.node))
    if idiom is None or len(outs) != 1 or inputs[0].dtype.kind not in "fiu":
        return None
    return idiom(inputs, outs[0], proto.graph.node[0])


def _onnxruntime(_: Operator, proto: Any, inputs: Any, outs: Any) -> Call | None:
    require("onnxruntime", "verify", "timing onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        binding = session.io_binding()
        for name, x in zip([i.name for i in session.get_inputs()], inputs, strict=True):
            binding.bind_input(name, "cpu", 0, x.dtype, x.shape, x.ctypes.data)
        for name, y in zip([o.name for o in session.get_outputs()], outs, strict=True):
            binding.bind_output(name, "cpu", 0, y.dtype, y.shape, y.ctypes.data)
    except Exception:  # onnxruntime has no kernel for this model: it is left out
        return None
    return lambda: session.run_with_iobinding(binding)


_CONTESTANTS: dict[str, Callable[[Operator, Any, Any, Any], Call | None]] = {
    "relu_ops": _relu_ops,
    "NumPy": _numpy,
    "onnxruntime": _onnxruntime,
}


def table(timings: Sequence[Timing]) -> str:
    """The timings as a table for people: microseconds, and the ratio to relu_ops."""
    names = list(dict.fromkeys(t.contestant for t in timings))
    lines = [f"{'elements':>12}" + "".join(f"{name + ' us':>18}" for name in names)]
    for elements in dict.fromkeys(t.elements for t in timings):
        row = {t.contestant: t for t in timings if t.elements == elements}
        own = row[names[0]].quantile(0.5)
        cells = []
        for name in names:
            if name not in row:
                cells.append(f"{'-':>18}")
                continue
            median = row[name].quantile(0.5)
            ratio = "" if name == names[0] else f" ({median / own:.1f}x)"
            cells.append(f"{median * 1e6:,.2f}{ratio}".rjust(18))
        lines.append(f"{elements:>12,}" + "".join(cells))
    different = {t.contestant: t.differs for t in timings if t.differs}
    lines += [f"{name}: some bits differ from the contract" for name in different]
    return "\n".join(lines)
