"""Says why a referee differs from the contract: at which node, and for which known cause.

What is explained is the whole graph, by induction over its nodes. The contract, node by node,
gives what it gives as a whole (so the graph was understood). At every node the referee gives what
the contract gives *for the referee's own operands*, but for elements that a row of the table of
deviations covers. Then every other bit that differs follows from those elements.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from relu_ops.contract import ir, reference
from relu_ops.contract.semantics import DTYPES, dtype_name
from relu_ops.errors import ModelError
from relu_ops.verification import deviations
from relu_ops.verification.compare import all_same, same, show_bits, show_operand
from relu_ops.verification.deviations import Node
from relu_ops.verification.referees import Arrays, Program, Referee, Trace, program_of, reason

WIDENED = "float16 graphs are computed in float32 where there is no kernel, and rounded later"
"""The one cause that stands between nodes and not at one."""


@dataclass
class Verdict:
    """Why a referee differs.

    Attributes:
        causes: For each known cause, how many elements of nodes it touched.
        unexplained: In words, what no cause explains.
    """

    causes: Counter[str] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)


def explain(
    referee: Referee,
    proto: Any,
    inputs: Sequence[np.ndarray],
    contract: Arrays,
    theirs: Arrays,
) -> Verdict:
    """Say why a referee differs from the contract.

    Args:
        referee: Who differs.
        proto: The model, without local functions.
        inputs: The arrays that both were given.
        contract: The outputs of the contract.
        theirs: The outputs of the referee.
    """
    assert referee.trace is not None
    verdict = Verdict()
    try:
        trace = referee.trace(inputs)
        _check_whole(verdict, trace, program_of(proto), inputs, contract, theirs)
        for node in trace.program.nodes:
            _check_node(verdict, referee.engine, trace, node)
    except Exception as error:  # a node that means nothing to the contract, or to its own engine
        verdict.unexplained.append(f"its nodes cannot be seen one by one: {reason(error)}")
    return verdict


def _check_whole(
    verdict: Verdict,
    trace: Trace,
    program: Program,
    inputs: Sequence[np.ndarray],
    contract: Arrays,
    theirs: Arrays,
) -> None:
    if not all_same(trace.results, theirs):
        verdict.unexplained.append("its nodes, seen one by one, give other bits than its outputs")
    if not all_same(by_nodes(program, inputs), contract):
        verdict.unexplained.append("the contract gives other bits node by node than as a whole")
    executed = by_nodes(trace.program, inputs)
    if trace.program.widened:
        verdict.causes[WIDENED] += sum(
            int((~same(a, b)).sum()) for a, b in zip(executed, contract, strict=True)
        )
        verdict.causes = +verdict.causes
    elif not all_same(executed, contract):
        verdict.unexplained.append("the graph that it executes means something else")


def _check_node(verdict: Verdict, engine: str, trace: Trace, proto: Any) -> None:
    operands = [trace.values[name] if name else None for name in proto.input]
    got = trace.values[proto.output[0]]
    want = by_contract(proto, operands, trace.program)
    what = f"{proto.op_type} at opset {trace.program.opset}"
    node = Node(proto, trace.program.opset, operands, want, got)
    rows = list(deviations.of(engine, node))
    if (got.dtype, got.shape) != (want.dtype, want.shape):
        for row in rows:
            if got.dtype == want.dtype and row.covers_all(node):
                verdict.causes[row.cause] += want.size
                return
        verdict.unexplained.append(
            f"{what} gives {got.dtype}{list(got.shape)}, not {want.dtype}{list(want.shape)}"
        )
        return
    wrong = ~same(got, want)
    if not wrong.any():
        return
    for row in rows:
        explained = wrong & row.covers(node)
        verdict.causes[row.cause] += int(explained.sum())
        wrong &= ~explained
    verdict.causes = +verdict.causes
    if wrong.any():
        verdict.unexplained.append(f"{what} {_show_first(wrong, node)}")


def _show_first(wrong: np.ndarray, node: Node) -> str:
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    seen = [show_operand(x, at) for x in node.operands]
    return f"of {', '.join(seen)} is {show_bits(node.got[at])}, not {show_bits(node.want[at])}"


# ---------------------------------------------------------------------------------------------
# The contract, one node at a time


def by_nodes(program: Program, inputs: Sequence[np.ndarray]) -> Arrays:
    """What the contract gives for a program, node by node."""
    values = program.initializers | dict(zip(program.inputs, inputs, strict=True))
    for node in program.nodes:
        operands = [values[name] if name else None for name in node.input]
        values[node.output[0]] = by_contract(node, operands, program)
    return [values[name] for name in program.outputs]


def by_contract(proto: Any, operands: Sequence[np.ndarray | None], program: Program) -> np.ndarray:
    """What the contract gives for one node.

    Raises:
        ModelError: The node means nothing to it.
    """
    signature = tuple(None if x is None else _signature(x) for x in operands)
    # A shape has to be known where the graph is imported, and so has to be a constant there.
    fixed = proto.op_type == "ConstantOfShape"
    content = tuple(x.tobytes() for x in operands if x is not None) if fixed else ()
    given = [] if fixed else [x for x in operands if x is not None]
    node = proto.SerializeToString()
    try:
        graph = _graph_of(node, program.opset, signature, content)
    except ModelError:
        if program.opset < _SAME_SINCE:
            raise
        # Function bodies use Where-9 and the like on bfloat16, which only later versions list.
        graph = _graph_of(node, _newest_opset(), signature, content)
    return reference.evaluate(graph, given)[0]


_SAME_SINCE = 8
"""From here on, a later version of an operator in a function body takes more and means the same."""


def _newest_opset() -> int:
    from onnx import defs

    return int(defs.onnx_opset_version())


_Signature = tuple[str, tuple[int | None, ...]]


def _signature(x: np.ndarray) -> _Signature:
    """What of an array decides how a node is imported: dtype, rank, and where it has units."""
    return dtype_name(x.dtype) or str(x.dtype), tuple(1 if n == 1 else None for n in x.shape)


@functools.lru_cache(maxsize=4096)
def _graph_of(
    content: bytes,
    opset: int,
    signature: tuple[_Signature | None, ...],
    constants: tuple[bytes, ...],
) -> ir.Graph:
    """The graph of one node alone, its operands as inputs (or as constants)."""
    import onnx
    from onnx import helper, numpy_helper

    from relu_ops.compiler import frontend

    node = onnx.NodeProto.FromString(content)
    names = [f"operand_{k}" if s else "" for k, s in enumerate(signature)]
    del node.input[:]
    node.input.extend(names)
    node.output[0] = "result"
    infos = [
        helper.make_tensor_value_info(name, DTYPES[s[0]].onnx_type, s[1])
        for name, s in zip(names, signature, strict=True)
        if s
    ]
    initializers = [
        numpy_helper.from_array(np.frombuffer(data, np.int64), info.name)
        for data, info in zip(constants, infos, strict=False)
    ]
    inputs = [] if constants else infos
    output = _result_info(node, opset, inputs, initializers)
    graph = helper.make_graph([node], node.op_type, inputs, [output], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return frontend.import_model(model)


def _result_info(node: Any, opset: int, inputs: list[Any], initializers: list[Any]) -> Any:
    """The output's declaration: its dtype is what onnx infers."""
    import onnx
    from onnx import helper

    graph = helper.make_graph(
        [node], "node", inputs, [onnx.ValueInfoProto(name="result")], initializers
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.elem_type
    return helper.make_tensor_value_info("result", inferred, None)
