"""Which groups win, where nothing is measured.

Each rule has its measurement: one run in onnxruntime 1.32, bound, 2 threads, float32 of [1, 64,
112, 112] (AMD EPYC, Zen 4 or 5, 2026-11-28). What onnxruntime fuses into its Conv or Gemm never
comes here: see `hosted`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from relu_ops.partitioning.graphs import Dim, Value
from relu_ops.partitioning.groups import Group


@dataclass(frozen=True)
class Rule:
    """Groups that win from some size on.

    Attributes:
        operators: One of them is in the group; none named: there are two nodes and more.
        elements: From how many elements of the result on.
        why: What a report says.
        guesses: It holds where extents are not known, too: what it gains outweighs a wrong guess.
    """

    operators: frozenset[str]
    elements: int
    why: str
    guesses: bool = True


RULES = (
    # PRelu runs on one thread in onnxruntime: 1,762 us, and 67 here.
    Rule(frozenset({"PRelu"}), 1 << 10, "onnxruntime runs PRelu on one thread"),
    # Scale, bias and leaky: 198 us and 67; add and relu: 141 and 95.
    Rule(frozenset(), 1 << 14, "one pass over memory instead of several"),
    # 142 us and 66; Clip 69 and 39.
    Rule(
        frozenset({"HardSwish", "Clip"}), 1 << 16, "onnxruntime's kernel takes twice as long", False
    ),
)

USUAL_EXTENT = 32
"""What an extent counts for that is not known, but for the first, a batch: that is 1."""


def elements_of(value: Value, dims: Mapping[str, int]) -> int:
    """How many elements a value has, about."""
    if value.shape is None:
        return USUAL_EXTENT**2
    return math.prod(_extent(k, dim, dims) for k, dim in enumerate(value.shape))


def is_known(value: Value, dims: Mapping[str, int]) -> bool:
    """Whether every extent is, but for the first."""
    return value.shape is not None and all(
        isinstance(dim, int) or str(dim) in dims for dim in value.shape[1:]
    )


def _extent(position: int, dim: Dim, dims: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    return dims.get(str(dim), 1 if position == 0 else USUAL_EXTENT)


def decide(group: Group, dims: Mapping[str, int]) -> tuple[bool, str]:
    """Whether a group is taken, and why or why not."""
    kinds = {node.op_type for node in group.nodes}
    elements = elements_of(group.shape, dims)
    fitting = [
        rule
        for rule in RULES
        if (kinds & rule.operators if rule.operators else len(group.nodes) > 1)
    ]
    sized = is_known(group.shape, dims)
    for rule in fitting:
        if elements >= rule.elements and (sized or rule.guesses):
            return True, rule.why
    if fitting and elements >= fitting[-1].elements:
        return False, "its size is not known: give inputs or extents, or measure"
    if fitting:
        return False, f"about {elements} elements are too few to gain"
    return False, "onnxruntime is as fast here"
