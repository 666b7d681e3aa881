"""Writes calls of local functions out as nodes, bound as the importer binds them.

For engines that know no functions, or lose the defaults of their attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import onnx
import onnx.defs
from onnx import FunctionProto, NodeProto, helper

from relu_ops.compiler.frontend.functions import Functions, bound, enter, operands_of
from relu_ops.compiler.frontend.scope import Frame, opsets_of
from relu_ops.errors import UnsupportedError

_Names = dict[str, str | None]
"""What a name inside stands for in the whole graph; None for an operand that a call leaves out."""


class _Written(NamedTuple):
    """A node that was written out: from which opset, None for one of ours, and from where."""

    node: NodeProto
    opset: int | None
    where: str


def without_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A model that the importer takes, with its calls written out, of one opset.

    Nodes that no output needs are left out.

    Raises:
        UnsupportedError: No one opset has the versions that the functions and the graph mean.
    """
    if not proto.functions:
        return proto
    writer = _Writer(proto)
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.functions[:], copy.graph.node[:], copy.opset_import[:]
    copy.graph.node.extend(one.node for one in writer.written)
    copy.opset_import.append(helper.make_opsetid("", _one_opset(proto, writer.written)))
    return copy


class _Writer:
    """Writes the nodes of a model.

    Attributes:
        written: The nodes so far.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.written: list[_Written] = []
        self._functions = Functions(proto)
        graph = proto.graph
        names = [e.name for e in (*graph.input, *graph.initializer)]
        own = dict.fromkeys([*names, *(name for node in graph.node for name in node.output)])
        self._taken = set(own)
        nodes, _ = self._functions.live(graph.node, (info.name for info in graph.output))
        self._write(
            nodes,
            {name: name for name in names},
            Frame(opsets_of(proto.opset_import)),
            {name: name for name in own},
        )

    def _write(
        self,
        nodes: Iterable[NodeProto],
        names: _Names,
        frame: Frame,
        results: Mapping[str, str],
    ) -> None:
        """Write nodes; `results` says under which name a value of theirs is wanted outside."""
        for node in nodes:
            function = self._functions.called(node)
            node = bound(frame.resolved(node), names, frame)
            outputs = [(results.get(n) or self._fresh(n)) if n else "" for n in node.output]
            if function is None:
                copy = NodeProto()
                copy.CopyFrom(node)
                copy.input[:] = [names[n] or "" if n else "" for n in node.input]
                copy.output[:] = outputs
                self.written.append(_Written(copy, frame.opsets[""], frame.describe(node)))
            else:
                self._write_call(function, node, names, frame, outputs)
            names.update(zip(node.output, outputs, strict=True))

    def _write_call(
        self,
        function: FunctionProto,
        node: NodeProto,
        names: _Names,
        frame: Frame,
        outputs: Sequence[str],
    ) -> None:
        inside, inner = enter(function, node, frame), operands_of(function, node, names)
        results = dict(zip(function.output, outputs, strict=False))
        self._write(self._functions.body(function, node), inner, inside, results)
        for formal, output in zip(function.output, outputs, strict=False):
            if output and inner[formal] != output:  # an operand is handed on, or one value twice
                handed_on = helper.make_node("Identity", [inner[formal] or ""], [output])
                self.written.append(_Written(handed_on, None, frame.describe(node)))

    def _fresh(self, name: str) -> str:
        """A name that nothing has yet."""
        found, number = name, 0
        while found in self._taken:
            number += 1
            found = f"{name}_{number}"
        self._taken.add(found)
        return found


_MEANT_OTHERWISE_BEFORE = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Less", "Greater", "Equal"), 7),
    **dict.fromkeys(("And", "Or", "Xor", "PRelu"), 7),
    "Clip": 11,
}
"""The opset that last changed how an operator is written or broadcasts; others only take more."""


def _one_opset(proto: onnx.ModelProto, written: Sequence[_Written]) -> int:
    """The newest opset that is used, if every node means there what it means where it stood."""
    own = opsets_of(proto.opset_import).get("")
    newest = max(o for o in (own, *(w.opset for w in written), 1) if o)
    for node, opset, where in written:
        if (opset or newest) < _MEANT_OTHERWISE_BEFORE.get(node.op_type, 0) <= newest:
            raise UnsupportedError(
                f"{where}: {node.op_type} of opset {opset} is written otherwise in opset "
                f"{newest}, which other nodes have"
            )
    return newest
