"""What the schedules of every target share: operands, and the ways in which they can lie.

A kernel computes rows of n elements. Rows advance every operand by a stride of its own; inside a
row an operand is contiguous (element by element), repeated (one element for the whole row) or
strided. How an operand lies is its *pattern*; a library holds one kernel for each combination of
patterns that the graph's declared shapes make likely, and a strided one that takes any.
"""

from __future__ import annotations

from dataclasses import dataclass

from relu_ops.contract import ir

CONTIGUOUS, REPEATED, STRIDED = 1, 0, -1
"""How an operand lies inside a row; the first two are the stride itself."""


@dataclass(frozen=True)
class Leaf:
    """An operand of the kernel: a value that is loaded, and how it is seen."""

    value: int
    view: ir.View
    dtype: str


def leaves_of(graph: ir.Graph) -> list[Leaf]:
    """The operands that a kernel of the graph loads, in the order of its parameters."""
    return [
        Leaf(index, view, graph.values[index].dtype)
        for index, view in graph.reachable()
        if graph.values[index].is_leaf
    ]


def pattern_sets(graph: ir.Graph) -> list[tuple[int, ...]]:
    """The combinations of patterns to compile: outputs last, and always contiguous."""
    leaves = leaves_of(graph)
    outputs = (CONTIGUOUS,) * len(graph.outputs)
    contiguous = (CONTIGUOUS,) * len(leaves)
    sets = [contiguous, tuple(_likely_pattern(graph, leaf) for leaf in leaves)]
    if len(leaves) == 2:
        sets += [(CONTIGUOUS, REPEATED), (REPEATED, CONTIGUOUS)]
    strided = (STRIDED,) * (len(leaves) + len(outputs))
    return [*dict.fromkeys(s + outputs for s in sets), strided]


def _likely_pattern(graph: ir.Graph, leaf: Leaf) -> int:
    value = graph.values[leaf.value]
    if leaf.view.trailing or (leaf.view.block > 1 and leaf.view.axis == 0):
        return REPEATED
    shape = (
        graph.inputs[value.input].shape if value.kind == "input" else next(iter(value.terms)).shape
    )
    return REPEATED if shape is not None and (not shape or shape[-1] == 1) else CONTIGUOUS
