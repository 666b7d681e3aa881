"""Which shapes a graph is tried with, and how little of them says everything.

Dimensions that broadcast against each other are one *extent*, and so are those of one symbol.
Where the declared extents make arrays too large for the referees, some are cut down: the inputs
repeat what the cut ones hold, and so must the outputs, so that every element of the full ones is
still compared. An extent along which a constant lies cannot be cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from relu_ops.contract import ir

Shape = tuple[int, ...]

_EXTENTS = (2, 3, 5)
"""What free dimensions are given but the last, by their position; the first two at high ranks."""

_MOST_FREE = 1 << 20
"""No array shall have more elements, if free dimensions can help it."""

_Axis = tuple[int, int]
"""An input, and one of its dimensions, counted from the last."""


@dataclass(frozen=True)
class _Meeting:
    """Dimensions that broadcast against each other.

    Attributes:
        members: Axes of inputs, and how often each element is repeated along them.
        constants: Extents that constants have there.
        into: Those that the others must not enlarge; none where all are alike.
        into_constants: The extents of constants that they must not enlarge.
    """

    members: frozenset[tuple[_Axis, int]]
    constants: frozenset[int]
    into: frozenset[_Axis]
    into_constants: frozenset[int]


def shapes(graph: ir.Graph, size: int) -> list[Shape] | None:
    """A shape for each input that the graph allows; None where none was found.

    Args:
        graph: The graph.
        size: The extent of a free dimension that is the last, and of an unknown rank.
    """
    declared = [(None,) if i.shape is None else i.shape for i in graph.inputs]
    found = _found(graph, declared, size)
    # A symbol in several places makes the square of its extent, or more.
    while found is not None and size > 1 and _largest(graph, found) > _MOST_FREE:
        size //= 4
        smaller = _found(graph, declared, size)
        if smaller is None or smaller == found:
            break
        found = smaller
    return found


def _found(graph: ir.Graph, declared: Sequence[ir.Shape], size: int) -> list[Shape] | None:
    axes = [(k, a) for k, shape in enumerate(declared) for a in range(len(shape))]
    # A dimension that meets two constants may have to be 1, and which one is not known before.
    for ones in ([], *([axis] for axis in axes), axes):
        found = _Solver(graph, declared, size).solve(ones)
        if _allowed(graph, found):
            return found
    return None


def output_shapes(graph: ir.Graph, inputs: Sequence[Shape]) -> list[Shape]:
    """The shapes of the outputs."""
    terms = (graph.values[output.value].terms for output in graph.outputs)
    return [ir.broadcast_terms(t, list(inputs)) for t in terms]


def _allowed(graph: ir.Graph, inputs: list[Shape]) -> bool:
    try:
        output_shapes(graph, inputs)
        return all(
            ir.fits_into(ir.broadcast_terms(r.terms, inputs), ir.broadcast_terms(r.into, inputs))
            for r in graph.requirements
        )
    except ValueError:
        return False


class _Solver:
    """Gives every axis of every input an extent, static ones first."""

    def __init__(self, graph: ir.Graph, declared: Sequence[ir.Shape], free: int) -> None:
        self.declared = declared
        self.free = free
        self.meetings = _meetings(graph, declared)
        self.found: dict[_Axis, int] = {}
        self.symbols: dict[_Axis, str] = {}
        for k, shape in enumerate(declared):
            for axis, dim in enumerate(reversed(shape)):
                if isinstance(dim, int):
                    self.found[k, axis] = dim
                elif isinstance(dim, str):
                    self.symbols[k, axis] = dim

    def solve(self, ones: Sequence[_Axis]) -> list[Shape]:
        """A shape for each input, with an extent of 1 for some axes that are not static."""
        for axis in ones:
            if axis not in self.found:
                self._settle(axis, 1)
        axes = [(k, a) for k, shape in enumerate(self.declared) for a in range(len(shape))]
        # The highest ranks first: what they are given decides for the vectors beside them.
        for axis in sorted(axes, key=lambda axis: -len(self.declared[axis[0]])):
            while self._spread():
                pass
            if axis not in self.found:
                self._settle(axis, self._preferred(axis))
        return [
            tuple(self.found[k, a] for a in reversed(range(len(shape))))
            for k, shape in enumerate(self.declared)
        ]

    def _preferred(self, axis: _Axis) -> int:
        rank = len(self.declared[axis[0]])
        outer = _EXTENTS if rank <= len(_EXTENTS) + 1 else _EXTENTS[:2]
        extent = self.free if axis[1] == 0 else outer[(rank - 1 - axis[1]) % len(outer)]
        repeats = {m for meeting in self.meetings for a, m in meeting.members if a == axis}
        beside = {
            m
            for meeting in self.meetings
            for _, m in meeting.members
            if any(a == axis for a, _ in meeting.members)
        }
        return extent if max(repeats, default=1) > 1 else extent * math.lcm(*beside)

    def _settle(self, axis: _Axis, extent: int) -> None:
        self.found[axis] = extent
        name = self.symbols.get(axis)
        for other, symbol in self.symbols.items():
            if symbol == name:
                self.found.setdefault(other, extent)

    def _spread(self) -> bool:
        """Settle what follows from what is settled; True where there was something."""
        before = len(self.found)
        for meeting in self.meetings:
            known = {self.found[a] * m for a, m in meeting.members if a in self.found}
            extents = (known | meeting.constants) - {1}
            into = [*(self.found.get(a, 0) for a in meeting.into), *meeting.into_constants]
            if into and all(n == 1 for n in into):
                extents = {1}
            for axis, repeats in meeting.members:
                if axis not in self.found and len(extents) == 1:
                    self._settle(axis, max(extents) // repeats)
        return len(self.found) > before


def _meetings(graph: ir.Graph, declared: Sequence[ir.Shape]) -> list[_Meeting]:
    """Every set of dimensions that broadcast against each other, in any value that is needed."""
    found: dict[_Meeting, None] = {}
    for requirement in graph.requirements:
        terms = requirement.terms | requirement.into
        found.update(dict.fromkeys(_aligned(terms, requirement.into, declared)))
    for index in graph.live_values():
        value = graph.values[index]
        if value.kind == "apply":
            operands = [graph.values[a].terms for a in value.arguments if a is not None]
            terms = frozenset().union(value.terms, *operands)
            found.update(dict.fromkeys(_aligned(terms, frozenset(), declared)))
    return list(found)


def _aligned(
    terms: Iterable[ir.Term], into: frozenset[ir.Term], declared: Sequence[ir.Shape]
) -> Iterator[_Meeting]:
    """The meetings of some terms, one for each dimension, counted from the last."""
    ranks = {t: _rank(t, declared) for t in terms}
    for position in range(max(ranks.values(), default=0)):
        members: set[tuple[_Axis, int]] = set()
        constants: set[int] = set()
        held: set[_Axis] = set()
        fixed: set[int] = set()
        for term, rank in ranks.items():
            own = position - term.view.trailing
            if position >= rank or own < 0:
                continue
            repeats = term.view.block if position == term.view.axis else 1
            if term.input is None:
                constants.add(term.shape[-1 - own] * repeats)
                if term in into:
                    fixed.add(term.shape[-1 - own] * repeats)
                continue
            members.add(((term.input, own), repeats))
            if term in into:
                held.add((term.input, own))
        # Where what must not be enlarged has no such dimension, it is 1 there.
        if into and not held and not fixed:
            fixed.add(1)
        yield _Meeting(frozenset(members), frozenset(constants), frozenset(held), frozenset(fixed))


def _rank(term: ir.Term, declared: Sequence[ir.Shape]) -> int:
    own = term.shape if term.input is None else declared[term.input]
    return len(own) + term.view.trailing


# ---------------------------------------------------------------------------------------------
# Cutting


def cut(graph: ir.Graph, full: Sequence[Shape], most: int) -> list[Shape]:
    """Smaller shapes whose repetition gives the full ones; the full ones where they are small.

    Args:
        graph: The graph.
        full: The shapes of the inputs.
        most: No output shall have more elements, if that can be reached.
    """
    meetings = _meetings(graph, full)
    small = [list(shape) for shape in full]
    for axes in _outermost_first(meetings, full):
        elements = _largest(graph, small)
        if elements <= most:
            break
        whole = small[axes[0][0]][-1 - axes[0][1]]
        kept = max(1, most // max(elements // whole, 1))
        for k, axis in axes:
            small[k][-1 - axis] = min(kept, whole)
    return [tuple(shape) for shape in small]


def _largest(graph: ir.Graph, inputs: Sequence[Sequence[int]]) -> int:
    shapes = [tuple(shape) for shape in inputs]
    return max(ir.size(shape) for shape in [*shapes, *output_shapes(graph, shapes)])


def _outermost_first(meetings: list[_Meeting], full: Sequence[Shape]) -> list[list[_Axis]]:
    """The extents that can be cut: for each, the axes that have it."""
    groups: list[tuple[set[_Axis], bool]] = []
    for meeting in meetings:
        axes = {a for a, _ in meeting.members if full[a[0]][-1 - a[1]] != 1}
        fixed = bool(meeting.constants - {1}) or any(repeats > 1 for _, repeats in meeting.members)
        apart = []
        for group, is_fixed in groups:
            if group & axes:
                axes, fixed = axes | group, fixed or is_fixed
            else:
                apart.append((group, is_fixed))
        groups = [*apart, (axes, fixed)]
    free = [sorted(axes) for axes, fixed in groups if axes and not fixed]
    alike = [axes for axes in free if len({full[k][-1 - a] for k, a in axes}) == 1]
    return sorted(alike, key=lambda axes: -max(a for _, a in axes))
