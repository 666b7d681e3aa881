"""Checks compiled operators against referees, bit for bit.

Four referees: the NumPy reference (the contract), onnxruntime, onnx.reference, and onnx.reference
on the ONNX function bodies, which breaks ties. Referees can be wrong: where one is known to
differ, `DEVIATIONS` says how and why, and the difference is counted under that cause. Nothing is
compared with a tolerance.
"""

from __future__ import annotations

import itertools
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_ops import bundle as bundles
from relu_ops import ir, reference, targets
from relu_ops.errors import ArgumentError, ReluOpsError, TargetError, require
from relu_ops.runtime import dispatch
from relu_ops.runtime.operator import Operator
from relu_ops.semantics import DTYPES, Dtype

if TYPE_CHECKING:
    from relu_ops.compiler.frontend import Model

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
"""Wraps an iteration of known length to show how far it is: (items, total, description)."""

_CHUNK = 1 << 22
_SHOWN_MISMATCHES = 3
_EXTENTS = (2, 3, 5, 17)
_SIZES = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257, 1000, 4099)


# ---------------------------------------------------------------------------------------------
# Referees


@dataclass(frozen=True)
class Deviation:
    """A known difference of a referee from the contract.

    Attributes:
        referee: The name of the referee.
        operators: The ONNX operators it shows in; a graph with one of them may differ.
        dtypes: The dtypes it shows in; empty means any.
        kind: How the results differ: both are zeros ("zero sign"), one is NaN ("nan"), the
            results are integers or bools ("value"), or the referee has the very bits that the
            graph gives when float16 is computed as float32 throughout ("float32").
        cause: Why, in one line.
    """

    referee: str
    operators: frozenset[str]
    dtypes: frozenset[str]
    kind: str
    cause: str


def _deviation(referee: str, operators: str, dtypes: str, kind: str, cause: str) -> Deviation:
    return Deviation(referee, frozenset(operators.split()), frozenset(dtypes.split()), kind, cause)


# Each was seen: a row that nothing shows any more is to be removed.
DEVIATIONS: tuple[Deviation, ...] = (
    _deviation(
        "onnxruntime",
        "*",
        "float16",
        "float32",
        "float16 graphs are computed in float32, attributes too, and rounded once at the end",
    ),
    _deviation(
        "onnxruntime",
        "Where",
        "float16 float32 float64",
        "zero sign",
        "Where adds the two masked branches, and -0.0 + 0.0 is 0.0",
    ),
    _deviation(
        "onnxruntime",
        "Max",
        "float32 float64",
        "zero sign",
        "Max keeps the second of two equal zeros",
    ),
    _deviation(
        "onnxruntime",
        "LeakyRelu PRelu",
        "float16 float64",
        "zero sign",
        "the sign of a product that underflows is lost",
    ),
    _deviation("onnxruntime", "Sign", "float16", "nan", "the sign of a float16 NaN is a number"),
    _deviation(
        "onnxruntime",
        "Cast QuantizeLinear",
        "float16 float32 float64",
        "value",
        "float to integer out of range is undefined in ONNX, and left to the processor",
    ),
    _deviation(
        "onnx.reference",
        "HardSigmoid HardSwish",
        "float16",
        "float32",
        "the attributes stay float32, and so does the arithmetic",
    ),
    _deviation(
        "onnx.reference",
        "Relu Max Min",
        "",
        "zero sign",
        "numpy.maximum returns either of two equal zeros",
    ),
    _deviation(
        "onnx.reference",
        "LeakyRelu",
        "",
        "zero sign",
        "computed as a sum of masked branches, which loses the sign of zero",
    ),
    _deviation(
        "onnx.reference", "PRelu", "", "zero sign", "multiplies unless x > 0, so at zero too"
    ),
    _deviation(
        "onnx.reference", "Sign", "bfloat16", "zero sign", "ml_dtypes returns a zero as it is"
    ),
    _deviation(
        "onnx.reference",
        "Cast QuantizeLinear",
        "float16 bfloat16 float32 float64",
        "value",
        "float to integer out of range is undefined in ONNX, and left to NumPy",
    ),
    _deviation(
        "function body",
        "Relu Max Min",
        "",
        "zero sign",
        "the body's Max is numpy.maximum in onnx.reference",
    ),
)


@dataclass(frozen=True)
class Referee:
    """Something that computes what the operator should."""

    name: str
    run: Callable[[Sequence[np.ndarray]], list[np.ndarray]]


def _referees(proto: Any, graph: ir.Graph) -> tuple[list[Referee], dict[str, str]]:
    """The referees that can run a model, and why the others cannot."""
    found = [Referee("NumPy reference", lambda inputs: reference.evaluate(graph, inputs))]
    absent: dict[str, str] = {}
    for name, make in (
        ("onnxruntime", _onnxruntime),
        ("onnx.reference", _onnx_reference),
        ("function body", _function_body),
    ):
        try:
            found.append(Referee(name, make(proto)))
        except Exception as error:  # a referee that refuses a model is not a failure of ours
            absent[name] = str(error).strip().partition("\n")[0][:160] or type(error).__name__
    return found, absent


def _onnxruntime(proto: Any) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    require("onnxruntime", "verify", "the referee onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [i.name for i in session.get_inputs()]
    return lambda inputs: session.run(None, dict(zip(names, inputs, strict=True)))


def _onnx_reference(proto: Any) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(proto)

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        with np.errstate(all="ignore"):
            results = evaluator.run(None, dict(zip(evaluator.input_names, inputs, strict=True)))
        return [np.asarray(r) for r in results]

    return run


def _function_body(proto: Any) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    from onnx.inliner import inline_selected_functions

    expanded = inline_selected_functions(proto, [], exclude=True, inline_schema_functions=True)
    if [n.op_type for n in expanded.graph.node] == [n.op_type for n in proto.graph.node]:
        raise ValueError("no operator of the model has a function body")
    return _onnx_reference(expanded)


# ---------------------------------------------------------------------------------------------
# Cases


def special_values(dtype: str) -> np.ndarray:
    """The values that decide semantics: every kind of float, or an integer type's edges."""
    row = DTYPES[dtype]
    if row.kind == "bool":
        return np.array([False, True])
    if not row.is_float:
        limits = np.iinfo(row.numpy)
        edges = {limits.min, limits.min + 1, -2, -1, 0, 1, 2, 3, 7, limits.max - 1, limits.max}
        kept = sorted(v for v in edges if limits.min <= v <= limits.max)
        return np.array(kept, row.numpy)
    return _special_floats(row)


def _special_floats(row: Dtype) -> np.ndarray:
    unsigned = np.dtype(f"uint{row.bits}")
    mantissa = {"float16": 10, "bfloat16": 7, "float32": 23, "float64": 52}[row.name]
    infinity = ((1 << (row.bits - 1 - mantissa)) - 1) << mantissa
    one = np.array(1, row.numpy).view(unsigned).item()
    patterns = [0, 1, 2, (1 << mantissa) - 1, 1 << mantissa, infinity - 1, infinity]
    patterns += [infinity + 1, infinity | (1 << (mantissa - 1)), infinity + (1 << mantissa) - 1]
    patterns += [one - 1, one, one + 1, one + (1 << (mantissa - 1)), one + (1 << mantissa)]
    both = [*patterns, *(p | (1 << (row.bits - 1)) for p in patterns)]
    numbers = np.array([0.1, 0.5, 2.5, 3, 3.5, 6, 10, 100, 127.5, 128, 255.5, 256, 300], np.float64)
    drawn = np.concatenate([numbers, -numbers]).astype(row.numpy)
    return np.concatenate([np.array(both, unsigned).view(row.numpy), drawn])


def random_values(dtype: str, count: int, draw: np.random.Generator) -> np.ndarray:
    """Half any bit pattern, half numbers of everyday size."""
    row = DTYPES[dtype]
    if row.kind == "bool":
        return draw.integers(0, 2, count).astype(bool)
    raw = draw.integers(0, 256, count * row.itemsize, dtype=np.uint8).view(row.numpy)
    if row.is_float:
        raw[: count // 2] = draw.normal(0, 4, count // 2).astype(row.numpy)
    return raw


@dataclass(frozen=True)
class Case:
    """One call: what it is called, and its inputs."""

    number: int
    title: str
    inputs: tuple[np.ndarray, ...]


def cases(graph: ir.Graph, seed: int) -> Iterator[Case]:
    """The calls to check a graph with: special values, sizes, layouts and random draws."""
    draw = np.random.default_rng(seed)
    numbers = itertools.count()
    for title, inputs in itertools.chain(
        _special_cases(graph), _sized_cases(graph, draw), _layout_cases(graph, draw)
    ):
        yield Case(next(numbers), title, tuple(inputs))


def _special_cases(graph: ir.Graph) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Every combination of special values, for graphs of at most two inputs that can be flat."""
    columns = [special_values(i.dtype) for i in graph.inputs]
    if len(columns) == 1 or any(i.shape is not None for i in graph.inputs):
        count = max((len(c) for c in columns), default=1)
        for shift in range(1 if len(columns) < 2 else 5):
            rolled = [np.roll(np.resize(c, count), 7 * k * shift) for k, c in enumerate(columns)]
            yield f"special values, shift {shift}", _shaped(graph, rolled, count)
    elif len(columns) > 1:
        grids = np.meshgrid(*(np.arange(len(c)) for c in columns[:2]), indexing="ij")
        picked = [columns[k][grids[k].ravel()] for k in range(2)]
        picked += [np.resize(c, picked[0].size) for c in columns[2:]]
        yield "all pairs of special values", picked


def _sized_cases(
    graph: ir.Graph, draw: np.random.Generator
) -> Iterator[tuple[str, list[np.ndarray]]]:
    for size in _SIZES:
        values = [random_values(i.dtype, max(size, 1), draw) for i in graph.inputs]
        yield f"size {size}", _shaped(graph, values, size)


def _layout_cases(
    graph: ir.Graph, draw: np.random.Generator
) -> Iterator[tuple[str, list[np.ndarray]]]:
    for title, lay_out in _LAYOUTS.items():
        values = [random_values(i.dtype, 600, draw) for i in graph.inputs]
        yield title, [lay_out(x) for x in _shaped(graph, values, 600)]


def _shaped(graph: ir.Graph, values: Sequence[np.ndarray], size: int) -> list[np.ndarray]:
    """Give values the declared shapes: symbols have the same extent everywhere."""
    symbols: dict[str, int] = {}
    arrays = []
    for spec, x in zip(graph.inputs, values, strict=True):
        if spec.shape is None:
            arrays.append(np.resize(x, size))
            continue
        shape = []
        for position, dim in enumerate(spec.shape):
            free = size if position == 0 and len(spec.shape) == 1 else _EXTENTS[position % 4]
            if isinstance(dim, str):
                shape.append(symbols.setdefault(dim, free))
            else:
                shape.append(free if dim is None else dim)
        arrays.append(np.resize(x, tuple(shape)) if ir.size(shape) else np.empty(shape, x.dtype))
    return arrays


def _misaligned(x: np.ndarray, offset: int) -> np.ndarray:
    memory = np.empty(x.nbytes + 64 + offset, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    view = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def _strided(x: np.ndarray) -> np.ndarray:
    wide = np.repeat(x, 2, axis=-1) if x.ndim else x
    return wide[..., ::2] if x.ndim else x


_LAYOUTS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "every second element": _strided,
    "negative strides": lambda x: x[..., ::-1].copy()[..., ::-1] if x.ndim else x,
    "Fortran order": lambda x: np.asfortranarray(x),
    "one element past 64 bytes": lambda x: _misaligned(x, x.dtype.itemsize),
    "one byte past 64 bytes": lambda x: _misaligned(x, 1),
    "foreign byte order": lambda x: (
        x.astype(x.dtype.newbyteorder(">")) if x.dtype.kind in "fiu" and x.dtype.itemsize > 1 else x
    ),
}


# ---------------------------------------------------------------------------------------------
# Comparing


def same(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """True where two arrays have the same bits, NaN as NaN."""
    if ours.dtype != theirs.dtype:
        return np.zeros(ours.shape, bool)
    bits = np.dtype(f"u{ours.dtype.itemsize}")
    equal = np.ascontiguousarray(ours).view(bits) == np.ascontiguousarray(theirs).view(bits)
    if equal.all() or ours.dtype.kind in "iub":
        return equal
    with np.errstate(all="ignore"):
        return equal | ((ours != ours) & (theirs != theirs))


def ulp_distance(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """How many representable values lie between two arrays; for integers, the difference.

    A NaN against a number counts as the largest distance.
    """
    a, b = _ordinal(ours), _ordinal(theirs)
    with np.errstate(all="ignore"):
        distance = np.abs(a - b)
        if ours.dtype.kind not in "iub":
            one_nan = (ours != ours) != (theirs != theirs)
            distance = np.where(one_nan, np.inf, distance)
    return distance


def _ordinal(x: np.ndarray) -> np.ndarray:
    if x.dtype.kind in "iub":
        return x.astype(np.longdouble)
    bits = x.dtype.itemsize * 8
    raw = np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}").astype(np.longdouble)
    sign = np.longdouble(2) ** (bits - 1)
    return np.where(raw >= sign, sign - raw, raw)


def _kind(ours: np.ndarray, theirs: np.ndarray, in_float32: np.ndarray | None) -> np.ndarray:
    """How each pair of different elements differs: a name of `Deviation.kind`, or "other"."""
    if ours.dtype.kind in "iub":
        return np.full(ours.shape, "value")
    with np.errstate(all="ignore"):
        zeros = (ours == 0) & (theirs == 0)
        nans = (ours != ours) != (theirs != theirs)
    wide = same(theirs, in_float32) if in_float32 is not None else np.zeros(ours.shape, bool)
    return np.select([wide, zeros, nans], ["float32", "zero sign", "nan"], "other")


def _in_float32(proto: Any) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]] | None:
    """The model with float32 in the place of float16; None where there is no float16 in it.

    HardSwish is a function of two operators to the referees, and its HardSigmoid is rounded.
    """
    from onnx import TensorProto, numpy_helper
    from onnx.inliner import inline_selected_functions

    from relu_ops.compiler import frontend

    wide = inline_selected_functions(proto, [("", "HardSwish")], False, True)
    narrow = [
        info.type.tensor_type
        for info in (*wide.graph.input, *wide.graph.output, *wide.graph.value_info)
        if info.type.tensor_type.elem_type == TensorProto.FLOAT16
    ]
    if not narrow:
        return None
    for tensor_type in narrow:
        tensor_type.elem_type = TensorProto.FLOAT
    attributes = [a for node in wide.graph.node for a in node.attribute]
    for tensor in (*wide.graph.initializer, *(a.t for a in attributes if a.HasField("t"))):
        if tensor.data_type == TensorProto.FLOAT16:
            array = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for attribute in attributes:
        if attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
            attribute.i = TensorProto.FLOAT
    if any(node.op_type == "HardSwish" for node in proto.graph.node):
        _round_hard_sigmoids(wide)
    try:
        graph = frontend.import_model(wide)
    except ReluOpsError:  # an operator that has no float32 form
        return None
    was_narrow = [o.type.tensor_type.elem_type == TensorProto.FLOAT16 for o in proto.graph.output]

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        widened = [x.astype(np.float32) if x.dtype == np.float16 else x for x in inputs]
        with np.errstate(all="ignore"):
            results = reference.evaluate(graph, widened)
            return [
                y.astype(np.float16) if n else y for y, n in zip(results, was_narrow, strict=True)
            ]

    return run


def _round_hard_sigmoids(wide: Any) -> None:
    """Round the result of every HardSigmoid of a float32 model to float16 and back, in place."""
    from onnx import TensorProto, helper

    nodes = []
    for node in wide.graph.node:
        nodes.append(node)
        if node.op_type == "HardSigmoid":
            final, node.output[0] = node.output[0], f"{node.output[0]}.wide"
            narrow, to = f"{final}.narrow", TensorProto.FLOAT16
            nodes.append(helper.make_node("Cast", [node.output[0]], [narrow], to=to))
            nodes.append(helper.make_node("Cast", [narrow], [final], to=TensorProto.FLOAT))
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del wide.graph.node[:]
    wide.graph.node.extend(kept)


@dataclass
class Row:
    """What one referee found on one target.

    Attributes:
        referee: The referee's name.
        target: The target's name.
        cases: Elements compared.
        mismatches: Elements that differ, known deviations aside.
        largest_ulp: The largest distance among the mismatches, in units in the last place.
        deviations: How many elements differ for each known cause.
    """

    referee: str
    target: str
    cases: int = 0
    mismatches: int = 0
    largest_ulp: float = 0.0
    deviations: Counter[str] = field(default_factory=Counter)


@dataclass
class Report:
    """The outcome of `verify`.

    Attributes:
        operator: The operator's name.
        rows: One row per referee and target.
        absent: Referees that could not run, with the reason.
        skipped: Targets that could not run, with the reason.
        failures: Mismatches in words: input bits, both outputs' bits, how to reproduce.
    """

    operator: str
    rows: list[Row] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True where something was compared and nothing differed."""
        return bool(self.rows) and all(r.mismatches == 0 and r.cases > 0 for r in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        rows = [{**vars(row), "deviations": dict(row.deviations)} for row in self.rows]
        return {**vars(self), "rows": rows, "ok": self.ok}

    def __str__(self) -> str:
        head = f"{'target':<11} {'referee':<16} {'elements':>13} {'mismatches':>11} {'ULP':>5}"
        lines = [f"verify {self.operator}", head]
        for row in self.rows:
            lines.append(
                f"{row.target:<11} {row.referee:<16} {row.cases:>13,} {row.mismatches:>11,} "
                f"{row.largest_ulp:>5g}"
            )
            lines += [f"{'':<12}{n:,} x {cause}" for cause, n in sorted(row.deviations.items())]
        lines += [f"not compared with {name}: {why}" for name, why in self.absent.items()]
        lines += [f"not run on {name}: {why}" for name, why in self.skipped.items()]
        lines += self.failures
        lines.append("ok: every bit agrees" if self.ok else "FAILED")
        return "\n".join(lines)


class _Judge:
    """Compares results and keeps the rows."""

    def __init__(self, proto: Any, report: Report, reproduce: str) -> None:
        self.report = report
        self.reproduce = reproduce
        self.operators = {"*", *(node.op_type for node in proto.graph.node)}
        self.in_float32 = _in_float32(proto)
        self.rows: dict[tuple[str, str], Row] = {}

    def compare(
        self,
        referee: str,
        target: str,
        case: Case,
        ours: Sequence[np.ndarray],
        theirs: Sequence[np.ndarray],
    ) -> None:
        row = self.rows.get((referee, target))
        if row is None:
            row = self.rows[referee, target] = Row(referee, target)
            self.report.rows.append(row)
        for k, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            row.cases += mine.size
            if mine.shape != other.shape:
                self._fail(row, case, np.ones(1, bool), mine.reshape(-1)[:1], other.reshape(-1)[:1])
                continue
            wrong = ~same(mine, other)
            if wrong.any():
                self._judge(row, case, wrong, mine, other, k)

    def _judge(
        self, row: Row, case: Case, wrong: np.ndarray, mine: np.ndarray, other: np.ndarray, k: int
    ) -> None:
        wide = None if self.in_float32 is None else self.in_float32(case.inputs)[k]
        kinds = _kind(mine, other, wide)
        dtypes = {str(x.dtype.name) for x in (*case.inputs, mine)}
        for known in DEVIATIONS:
            if known.referee != row.referee or not known.operators & self.operators:
                continue
            if known.dtypes and not known.dtypes & dtypes:
                continue
            explained = wrong & (kinds == known.kind)
            row.deviations[known.cause] += int(explained.sum())
            wrong = wrong & ~explained
        row.deviations = +row.deviations
        if wrong.any():
            self._fail(row, case, wrong, mine, other)

    def _fail(
        self, row: Row, case: Case, wrong: np.ndarray, mine: np.ndarray, other: np.ndarray
    ) -> None:
        row.mismatches += int(wrong.sum())
        distance = ulp_distance(mine[wrong], other[wrong])
        row.largest_ulp = max(row.largest_ulp, float(distance.max(initial=0)))
        if len(self.report.failures) >= _SHOWN_MISMATCHES:
            return
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        inputs = [show_bits(x[at]) if x.shape == mine.shape else "-" for x in case.inputs]
        self.report.failures.append(
            f"mismatch: {case.title}, element {list(at)}: input {', '.join(inputs)}\n"
            f"  {row.target}: {show_bits(mine[at])}   {row.referee}: {show_bits(other[at])}\n"
            f"  reproduce: {self.reproduce} --target {row.target} --case {case.number}"
        )


def show_bits(value: Any) -> str:
    """A number with its bits.

    >>> show_bits(np.float32(-0.0))
    '-0.0 (0x80000000)'
    """
    scalar = np.asarray(value)
    bits = int(scalar.view(f"u{scalar.dtype.itemsize}"))
    return f"{scalar.item()} (0x{bits:0{scalar.dtype.itemsize * 2}x})"


# ---------------------------------------------------------------------------------------------
# The whole check


def verify(
    model: Model,
    *,
    name: str | None = None,
    target: str | None = None,
    exhaustive: bool = False,
    seed: int = 0,
    case: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Check a model or a bundle against every referee, on every target that runs here.

    Args:
        model: A bundle's directory; or an `onnx.ModelProto`, its bytes or the path of a file,
            which is compiled for every x86 level.
        name: Which operator of a bundle; None where it has one.
        target: Only this target.
        exhaustive: Also check every bit pattern of the input against the NumPy reference and
            onnxruntime: for operators of one input of at most 32 bits.
        seed: Of the random draws.
        case: Only the case of this number.
        progress: Shows how far an exhaustive check is.

    Returns:
        The report; `report.ok` says whether every bit agreed.

    Raises:
        ArgumentError: exhaustive was asked for and is not possible, or there is no such case,
            seed or operator.
        TargetError: No target can run here.
        ModelError, BundleError: The model or bundle is not valid.
    """
    require("onnx", "verify", "relu_ops.verify")
    if seed < 0:
        raise ArgumentError(f"verify: seed must be at least 0 (not {seed})")
    from relu_ops.compiler import frontend

    bundle, path = _bundle_of(model, target)
    operator = bundle.operator_name(name)
    proto = frontend.read_model(bundle.model(operator))
    graph = frontend.import_model(proto)
    report = Report(operator)
    operators = _operators(bundle, operator, target, report)
    referees, report.absent = _referees(proto, graph)
    named = "" if name is None else f" --name {shlex.quote(name)}"
    judge = _Judge(proto, report, f"relu-ops verify {path}{named} --seed {seed}")
    last = 0
    for one in cases(graph, seed):
        last = one.number
        if case in (None, one.number):
            _check_case(judge, one, operators, referees, report)
    if case is not None and not 0 <= case <= last:
        raise ArgumentError(f"verify: case must be 0 to {last} (not {case})")
    if exhaustive:
        _check_every_pattern(judge, graph, operators, referees[:2], progress)
    return report


def _bundle_of(model: Any, target: str | None) -> tuple[bundles.Bundle, str]:
    if isinstance(model, str | os.PathLike) and Path(model).is_dir():
        return bundles.read(model), shlex.quote(os.fspath(model))
    from relu_ops import compiler

    names = [target] if target else list(targets.CPU_TARGETS)
    files = compiler.make(model, names)
    shown = shlex.quote(os.fspath(model)) if isinstance(model, str | os.PathLike) else "MODEL"
    return bundles.from_contents(shown, files), shown


def _operators(
    bundle: bundles.Bundle, name: str, target: str | None, report: Report
) -> dict[str, Operator]:
    """An operator for each target that can run; the others go into the report."""
    if target is not None:
        operator = dispatch.operator_of(bundle, name=name, target=target)
        return {operator.target: operator}  # "native" names none
    found = {}
    for one in bundle.manifest.targets:
        try:
            found[one] = dispatch.operator_of(bundle, name=name, target=one)
        except TargetError:
            report.skipped[one] = targets.why_not(targets.parse(one), targets.this_machine()) or ""
    if not found:
        dispatch.operator_of(bundle, name=name)  # raises with every reason
    return found


def _check_case(
    judge: _Judge,
    case: Case,
    operators: Mapping[str, Operator],
    referees: Sequence[Referee],
    report: Report,
) -> None:
    # Referees get plain arrays: onnxruntime reads foreign byte order as if it were native.
    plain = [np.array(x, x.dtype.newbyteorder("="), order="C") for x in case.inputs]
    expected = {}
    for referee in referees:
        if referee.name in report.absent:
            continue
        try:
            expected[referee.name] = [np.asarray(y) for y in referee.run(plain)]
        except Exception as error:
            if referee is referees[0]:
                raise
            report.absent[referee.name] = str(error).strip().partition("\n")[0][:160]
    for target, operator in operators.items():
        results = operator(*case.inputs)
        results = results if isinstance(results, tuple) else (results,)
        plain_case = Case(case.number, case.title, tuple(plain))
        for name, theirs in expected.items():
            judge.compare(name, target, plain_case, results, theirs)


def _check_every_pattern(
    judge: _Judge,
    graph: ir.Graph,
    operators: Mapping[str, Operator],
    referees: Sequence[Referee],
    progress: Progress | None,
) -> None:
    if len(graph.inputs) != 1 or graph.inputs[0].shape not in (None, (None,)):
        raise ArgumentError(
            f"{graph.name}: every bit pattern can be checked for one input of any shape",
            "leave out exhaustive; special values and random draws are checked all the same",
        )
    row = DTYPES[graph.inputs[0].dtype]
    if row.bits > 32:
        raise ArgumentError(f"{graph.name}: {row.name} has too many bit patterns to check them all")
    starts = range(0, 1 << row.bits, _CHUNK)
    shown = (
        starts if progress is None else progress(starts, len(starts), f"{graph.name} {row.name}")
    )
    outs: dict[str, Any] = dict.fromkeys(operators)
    for start in shown:
        stop = min(start + _CHUNK, 1 << row.bits)
        bits = np.arange(start, stop, dtype=np.uint64).astype(f"u{row.itemsize}")
        x = bits.view(row.numpy) if row.kind != "bool" else bits.astype(bool)
        case = Case(-1, f"patterns from {start:#x}", (x,))
        expected = [(r.name, r.run([x])) for r in referees if r.name not in judge.report.absent]
        for target, operator in operators.items():
            outs[target] = operator(x, out=outs[target] if stop - start == _CHUNK else None)
            results = outs[target] if isinstance(outs[target], tuple) else (outs[target],)
            for name, theirs in expected:
                judge.compare(name, target, case, results, theirs)
