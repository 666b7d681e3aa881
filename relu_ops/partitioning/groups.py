"""Finds the groups of a scope: maximal, convex, of nodes that relu_ops compiles.

Convex: no path leaves a group and comes back, so that it can be one node. Connected: what shares
nothing but an input stays apart. Of one shape: what is computed for a channel is not computed anew
for each of its elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from onnx import NodeProto

from relu_ops.compiler.frontend.scope import normal_domain
from relu_ops.contract.semantics import MINIMUM_OPSET, OPERATORS
from relu_ops.partitioning.graphs import Scope, Value, reads

_NO_WORK = {"Constant", "ConstantOfShape", "Identity"}
"""They compute nothing; a group with one of these alone is none."""


@dataclass
class Group:
    """Nodes that can be one.

    Attributes:
        scope: Where they stand.
        nodes: The nodes, in order.
        inputs: What they take from outside, without small constants; in order of use.
        outputs: What others take of them.
        constants: The small constants that they use.
    """

    scope: Scope
    nodes: list[NodeProto]
    inputs: list[str]
    outputs: list[str]
    constants: list[str]

    def show(self) -> str:
        """Their operators, in order."""
        return " ".join(node.op_type for node in self.nodes)

    @property
    def shape(self) -> Value:
        """What is known of the result."""
        return self.scope.value(self.outputs[0])


def is_in_scope(node: NodeProto, scope: Scope) -> bool:
    """Whether relu_ops compiles a node, as far as its name and the types of its values tell."""
    if normal_domain(node.domain) or node.op_type not in OPERATORS or node.op_type in _NO_WORK:
        return False
    if scope.opsets.get("", 0) < MINIMUM_OPSET or any(a.ref_attr_name for a in node.attribute):
        return False
    if len(node.output) != 1 or all(name in scope.constants for name in node.input if name):
        return False
    known = [*filter(None, node.input), *node.output]
    return all(name in scope.constants or scope.value(name).dtype for name in known)


class _Finder:
    """Unites the nodes of one scope, in topological order. Sets of nodes are bits of a number."""

    def __init__(self, scope: Scope, eligible: Sequence[bool]) -> None:
        self._scope, self._nodes, self._eligible = scope, list(scope.nodes), eligible
        self._maker = {n: k for k, node in enumerate(self._nodes) for n in node.output if n}
        self._members = {k: 1 << k for k, ok in enumerate(eligible) if ok}
        self._root = list(range(len(self._nodes)))
        # For each node those from which a path leads to it that leaves their group on its way.
        self._around: list[int] = []

    def run(self) -> list[list[int]]:
        """The groups, as numbers of nodes."""
        for k, node in enumerate(self._nodes):
            before = sorted({self._maker[name] for name in reads(node) if name in self._maker})
            mask = 0
            for p in before:
                mask |= self._around[p]
            self._around.append(mask)
            for p in before if self._eligible[k] else ():
                if self._eligible[p] and _fit(self._scope, self._nodes[p], node):
                    self._join(p, k)
            for p in before:
                if self._root[p] != self._root[k]:
                    self._around[k] |= 1 << p
        return [sorted(_bits(mask)) for _, mask in sorted(self._members.items())]

    def _join(self, p: int, k: int) -> None:
        """Unite the groups of two nodes, unless a path would leave the whole and come back."""
        a, b = self._root[p], self._root[k]
        if a == b:
            return
        together = self._members[a] | self._members[b]
        if any(self._around[m] & together for m in _bits(together)):
            return
        self._members[b] = together
        for m in _bits(self._members.pop(a)):
            self._root[m] = b


def _bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


def _fit(scope: Scope, producer: NodeProto, user: NodeProto) -> bool:
    """Whether two nodes' results are of one shape, as far as is known."""
    a, b = scope.value(producer.output[0]).shape, scope.value(user.output[0]).shape
    if a is None or b is None:
        return True
    return len(a) == len(b) and all(x == y and x is not None for x, y in zip(a, b, strict=True))


def find(scope: Scope, stands: Callable[[NodeProto], bool]) -> list[Group]:
    """The groups of a scope.

    Args:
        scope: The scope.
        stands: Whether a node may be taken at all.
    """
    nodes = list(scope.nodes)
    readers: dict[str, list[int]] = {}
    for k, node in enumerate(nodes):
        for name in reads(node):
            readers.setdefault(name, []).append(k)
    eligible = [is_in_scope(node, scope) and stands(node) for node in nodes]
    found = [_group(scope, nodes, numbers, readers) for numbers in _Finder(scope, eligible).run()]
    return [group for group in found if group.outputs]  # but for nodes whose results nobody needs


def _group(
    scope: Scope, every: Sequence[NodeProto], numbers: list[int], readers: dict[str, list[int]]
) -> Group:
    nodes, inside = [every[k] for k in numbers], set(numbers)
    made = [name for node in nodes for name in node.output]
    used = list(dict.fromkeys(n for node in nodes for n in node.input if n and n not in made))
    outputs = [n for n in made if n in scope.outputs or not inside.issuperset(readers.get(n, ()))]
    constants = [name for name in used if name in scope.constants]
    inputs = [name for name in used if name not in scope.constants]
    return Group(scope, nodes, inputs, outputs, constants)
