"""The table of deviations, tried on the engines it speaks of.

Every node of every cell is given to every referee alone: what differs from the contract, a row
covers. And the other way round: without any one row, for any one of its operators and dtypes,
something is left that no other row covers; and no row covers a result that is mere garbage.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import pytest
from cases import SPECIALS
from onnx import helper, numpy_helper
from test_cells import GROUPS, Draft, drafts, element_type

from relu_ops.compiler import frontend
from relu_ops.contract import reference
from relu_ops.contract.semantics import DTYPES
from relu_ops.verification import all_same, deviations, explain, same
from relu_ops.verification.deviations import DEVIATIONS, Deviation, Node
from relu_ops.verification.referees import CONTRACT, Referee, referees

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Question:
    """A model of one node and what it is given."""

    model: onnx.ModelProto
    arrays: Arrays

    @property
    def operator(self) -> str:
        return self.model.graph.node[0].op_type


def alone(draft: Draft, node: onnx.NodeProto) -> Question:
    """A model of one node of a draft, its output and what it reads."""
    model = draft.model()
    graph = model.graph
    kept = {
        "node": [node],
        "output": [o for o in graph.output if o.name in node.output],
        "input": [i for i in graph.input if i.name in node.input],
        "initializer": [i for i in graph.initializer if i.name in node.input],
    }
    for name, entries in kept.items():
        copies = [type(entry).FromString(entry.SerializeToString()) for entry in entries]
        graph.ClearField(name)
        getattr(graph, name).extend(copies)
    return Question(model, [np.asarray(draft.inputs[i.name][0]) for i in graph.input])


def questions(opset: int, reads: str) -> list[Question]:
    """Every node of every cell of a group, alone."""
    return [alone(draft, node) for draft in drafts(opset, reads) for node in draft.nodes]


def answers(question: Question) -> Iterator[tuple[Referee, Arrays, Arrays]]:
    """What each referee says, and the contract, where they differ."""
    graph = frontend.import_model(question.model)
    contract = reference.evaluate(graph, question.arrays)
    found, _ = referees(question.model, graph)
    for referee in found:
        try:
            theirs = referee.run(question.arrays)
        except Exception:
            assert referee.name != CONTRACT
            continue  # it does not compute this cell
        if not all_same(contract, theirs):
            yield referee, contract, theirs


@pytest.mark.parametrize(("opset", "reads"), GROUPS)
def test_every_difference_in_a_cell_has_a_known_cause(opset: int, reads: str) -> None:
    for question in questions(opset, reads):
        for referee, contract, theirs in answers(question):
            found = explain.explain(referee, question.model, question.arrays, contract, theirs)
            shown = onnx.printer.to_text(question.model)[:1000]
            assert not found.unexplained, f"{referee.name}: {found.unexplained}\n{shown}"


# ---------------------------------------------------------------- what cells do not show


def _question(
    operator: str,
    arrays: Sequence[np.ndarray],
    constants: Sequence[np.ndarray] = (),
    opset: int = 18,
    result: str | None = None,
    **attributes: Any,
) -> Question:
    names = [f"x{k}" for k in range(len(arrays))]
    others = [f"c{k}" for k in range(len(constants))]
    dtype = result or str(arrays[0].dtype)
    graph = helper.make_graph(
        [helper.make_node(operator, names + others, ["y"], **attributes)],
        "question",
        [
            helper.make_tensor_value_info(name, element_type(str(x.dtype)), x.shape)
            for name, x in zip(names, arrays, strict=True)
        ],
        [helper.make_tensor_value_info("y", element_type(dtype), None)],
        [numpy_helper.from_array(x, name) for name, x in zip(others, constants, strict=True)],
    )
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    return Question(model, list(arrays))


def _legacy_broadcast(operator: str, dtype: str) -> Question:
    """Two operands of which the second lies along the first axis of a square."""
    values = np.resize(SPECIALS[dtype], 16)
    if DTYPES[dtype].kind != "bool":
        values = np.arange(1, 17).astype(DTYPES[dtype].numpy)
    result = "bool" if operator in ("Less", "Greater", "Equal") else dtype
    other = values[3::4] if DTYPES[dtype].kind != "bool" else np.array([True, False, False, True])
    x = values.reshape(4, 4)
    return _question(operator, [x, other], (), 6, result, broadcast=1, axis=0)


def _every_bfloat16() -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16).view(DTYPES["bfloat16"].numpy)


def _more(operator: str, dtype: str) -> Iterator[Question]:
    row = DTYPES[dtype]
    binary = ("Add", "Sub", "Mul", "Div", "Less", "Greater", "Equal", "And", "Or", "Xor")
    if operator in binary and dtype != "bfloat16":
        yield _legacy_broadcast(operator, dtype)
    if operator == "PRelu" and dtype != "bfloat16":
        cube = np.arange(-9, 9).astype(row.numpy).reshape(2, 3, 3)
        yield _question("PRelu", [cube, np.arange(1, 4).astype(row.numpy)], opset=6)
    if operator == "LeakyRelu":
        yield _question("LeakyRelu", [SPECIALS[dtype]], alpha=float("inf"))
    if operator == "ThresholdedRelu":
        x = np.asarray([0.3, 0.1, 0.7], row.numpy)
        for alpha in (0.3, 0.1, 0.7):
            yield _question("ThresholdedRelu", [x], opset=22, alpha=alpha)
    if operator in ("Relu", "Max", "Min", "Clip") and row.is_float:
        yield from _zeros(operator, dtype)
    if operator in ("Cast", "CastLike"):
        yield from _between_ties(operator, dtype)


def _zeros(operator: str, dtype: str) -> Iterator[Question]:
    """Zeros of both signs, against zeros of both signs, in arrays of several sizes."""
    numpy = DTYPES[dtype].numpy
    for size, sign in itertools.product((1, 3, 100), (0.0, -0.0)):
        zeros = np.resize(np.asarray([0.0, -0.0], numpy), size)
        if operator in ("Max", "Min"):
            yield _question(operator, [zeros, np.full_like(zeros, sign)])
        elif operator == "Clip":
            yield _question(operator, [zeros], [np.asarray(sign, numpy)])
        else:
            yield _question(operator, [zeros])


def _between_ties(operator: str, dtype: str) -> Iterator[Question]:
    """Numbers just beside a tie of a 16-bit float, which another float rounds to it."""
    integers = [2**24 + 2**16 + 1, 2**31 - 2**23 + 1]
    floats = [1 + 2**-11 + 2**-40, 1 + 2**-8 + 2**-40]
    values = {"float64": floats, "int64": [*integers, 2**62 + 2**54 + 1]}
    values |= {"uint64": values["int64"], "int32": integers, "uint32": integers}
    for to in ("bfloat16", "float16"):
        if dtype in values:
            yield _cast(operator, np.asarray(values[dtype], DTYPES[dtype].numpy), to)


def _cast(operator: str, x: np.ndarray, to: str) -> Question:
    if operator == "Cast":
        return _question("Cast", [x], result=to, to=element_type(to))
    return _question("CastLike", [x], [np.zeros((), DTYPES[to].numpy)], result=to)


# ---------------------------------------------------------------- every row shows


@functools.cache
def deviating(engine: str, operator: str, dtype: str) -> list[Node]:
    """The nodes of an operator and a dtype at which an engine differs from the contract."""
    found = []
    asked = [q for opset, reads in GROUPS for q in _reading(opset, reads, operator, dtype)]
    for question in [*asked, *_more(operator, dtype)]:
        for referee, _, _ in answers(question):
            if referee.engine == engine and referee.trace is not None:
                trace = referee.trace(question.arrays)
                found += [node for node in _nodes(trace) if node.proto.op_type == operator]
    return [node for node in found if node.dtype == dtype]


SOURCES = {"Cast": ("CastLike",), "HardSigmoid": ("HardSwish",), "Where": ("LeakyRelu", "PRelu")}
"""Operators that engines replace by others."""


def _reading(opset: int, reads: str, operator: str, dtype: str) -> Iterator[Question]:
    """The questions of a group that may make an engine execute an operator on a dtype."""
    wide = "float16" if dtype == "float32" else dtype  # onnxruntime widens it
    if reads not in (dtype, wide):
        return
    for draft in _drafts(opset, reads):
        for node in draft.nodes:
            if node.op_type in (operator, *SOURCES.get(operator, ())):
                yield alone(draft, node)


@functools.cache
def _drafts(opset: int, reads: str) -> list[Draft]:
    return drafts(opset, reads)


def _nodes(trace: Any) -> Iterator[Node]:
    for proto in trace.program.nodes:
        operands = [trace.values[name] if name else None for name in proto.input]
        want = explain.by_contract(proto, operands, trace.program)
        yield Node(proto, trace.program.opset, operands, want, trace.values[proto.output[0]])


def covered(row: Deviation, node: Node) -> np.ndarray:
    """The elements that a row accounts for at a node."""
    if node.got.shape != node.want.shape:
        return np.asarray(row.covers_all(node))
    return ~same(node.got, node.want) & row.covers(node)


def missed_without(row: Deviation, nodes: Sequence[Node]) -> int:
    """How many elements nothing covers where a row is left out."""
    count = 0
    for node in nodes:
        mine = covered(row, node)
        for other in deviations.of(row.engine, node):
            if other is not row:
                mine = mine & ~covered(other, node)
        count += int(mine.sum())
    return count


TRIED = [(row, op, dtype) for row in DEVIATIONS for op in row.operators for dtype in row.dtypes]


def named(value: object) -> str:
    return getattr(value, "cause", str(value)).replace(" ", "-")


@pytest.mark.parametrize(
    ("row", "operator", "dtype"), [tried for tried in TRIED if tried[0].everywhere], ids=named
)
def test_every_row_shows(row: Deviation, operator: str, dtype: str) -> None:
    assert missed_without(row, deviating(row.engine, operator, dtype)), (
        f"{row.engine} no longer differs in {operator} of {dtype} because {row.cause}: remove it"
    )


@pytest.mark.parametrize(
    ("row", "operator"),
    [(row, op) for row in DEVIATIONS if not row.everywhere for op in row.operators],
    ids=named,
)
def test_every_row_shows_for_some_dtype(row: Deviation, operator: str) -> None:
    found = [missed_without(row, deviating(row.engine, operator, dtype)) for dtype in row.dtypes]
    assert any(found), f"{row.engine} no longer differs in {operator}: remove {row.cause}"


def test_a_row_that_nothing_shows_is_found() -> None:
    row = next(r for r in DEVIATIONS if r.operators == ("Sign",))
    nodes = deviating(row.engine, "Sign", row.dtypes[0])
    assert missed_without(row, nodes)
    assert not missed_without(replace(row, shows=lambda node: False), nodes)
    twice = replace(row)  # what another row covers as well
    assert twice is not row and not missed_without(twice, nodes)


# ---------------------------------------------------------------- no row is too wide

LEFT_OPEN = ("out of range is undefined", "beyond int32")
"""Where ONNX leaves the value open, a row says where, and cannot say what."""


def garbage(node: Node) -> list[np.ndarray]:
    """Results that no cause makes: other bits, the next number, and one that is nothing near."""
    want = node.want
    bits = np.dtype(f"u{want.dtype.itemsize}")
    flipped = [
        (np.ascontiguousarray(want).view(bits) ^ bits.type(mask)).view(want.dtype)
        for mask in (1, 1 << (8 * want.dtype.itemsize - 2))
    ]
    return [f.reshape(want.shape) for f in flipped] if want.dtype.kind != "b" else [~want]


def is_open(node: Node) -> np.ndarray:
    """Where the contract saturates, or gives 0 or the zero point for NaN."""
    if node.want.dtype.kind not in "iu":
        return np.zeros(node.want.shape, bool)
    limits = np.iinfo(node.want.dtype)
    nan = np.broadcast_to(np.isnan(node.x.astype(np.float64)), node.want.shape)
    if node.proto.op_type == "QuantizeLinear":
        with np.errstate(all="ignore"):
            nan = nan | ~(np.abs(deviations._quotient(node)) < 2.0**30)
    return nan | (node.want == limits.min) | (node.want == limits.max)


def wrongly_covered(row: Deviation, nodes: Sequence[Node]) -> int:
    """How many elements of garbage a row would let pass."""
    count = 0
    for node in nodes:
        if node.got.shape != node.want.shape:
            continue
        for bad in garbage(node):
            wrong = ~same(bad, node.want) & ~same(bad, node.got)
            fooled = row.covers(replace(node, got=np.where(wrong, bad, node.got))) & wrong
            if any(text in row.cause for text in LEFT_OPEN):
                fooled &= ~is_open(node)
            count += int(fooled.sum())
    return count


@pytest.mark.parametrize(("row", "operator", "dtype"), TRIED, ids=named)
def test_no_row_is_too_wide(row: Deviation, operator: str, dtype: str) -> None:
    assert not wrongly_covered(row, deviating(row.engine, operator, dtype))


@pytest.mark.parametrize("row", DEVIATIONS, ids=named)
def test_a_row_that_is_too_wide_is_found(row: Deviation) -> None:
    nodes = [n for op in row.operators for d in row.dtypes for n in deviating(row.engine, op, d)]
    assert wrongly_covered(replace(row, shows=lambda node: True), nodes)
