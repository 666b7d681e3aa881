"""Whether the declared shapes can work, decided before anything is built.

What a graph demands of shapes are *claims*: of each node that its operands broadcast together, of
some that one operand broadcasts into another. The extents in them are numbers, or symbols: a named
dimension is one symbol wherever it stands, a free one is a symbol of its own, and an input of
unknown rank has a symbol on every axis. If no extents satisfy all claims, the graph can never run,
and is refused. Where all dimensions are static this is exact: a graph that passes never fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from relu_ops.contract import ir
from relu_ops.contract.shapes import show as show_shape

Symbol = str | tuple[int, int]
"""A dimension's name; or an input and the axis, counted from its last, of one that has none."""

Extent = tuple[Symbol | None, int]
"""A number, or that many times what a symbol stands for."""

_UNIT: Extent = (None, 1)
_MOST_STEPS = 200_000
"""Looks at a constraint before the search gives up and lets the graph pass. What random graphs
need is some hundred; finding extents is as hard as satisfying clauses."""

_MOST_TERMS = 500_000
"""What claims may depend on, in all. Beyond, shapes are left to the calls: some 100,000 nodes could
each depend on another choice of 512 inputs."""

# ---------------------------------------------------------------------------------------------
# Shapes as they are declared


def broadcast(shapes: Iterable[ir.Shape | None]) -> ir.Shape | None:
    """The broadcast of declared shapes; None where a rank is unknown.

    Raises:
        ValueError: Two static extents contradict each other.
    """
    result: ir.Shape = ()
    known = True
    for shape in shapes:
        known = known and shape is not None
        pairs = zip_longest(reversed(result), reversed(shape or ()), fillvalue=1)
        result = tuple(_broadcast_dims(a, b) for a, b in pairs)[::-1]
    return result if known else None


def _broadcast_dims(a: ir.Dim, b: ir.Dim) -> ir.Dim:
    if a == 1 or a == b:
        return b
    if b == 1:
        return a
    static = [d for d in (a, b) if isinstance(d, int)]
    if len(static) == 2:
        raise ValueError(f"dimensions {a} and {b} do not broadcast together")
    return static[0] if static else None


def may_fit(source: ir.Shape | None, into: ir.Shape | None) -> bool:
    """False where no extents make one shape broadcast into the other.

    >>> may_fit((64,), (1, 64, 56, 56)), may_fit((64, 1, 1), (1, "C", None, None))
    (False, True)
    """
    if source is None or into is None:
        return True
    pairs = zip_longest(reversed(source), reversed(into), fillvalue=1)
    known = ((s, i) for s, i in pairs if isinstance(s, int) and isinstance(i, int))
    return all(s in (1, i) for s, i in known)


def advice(source: ir.Shape | None, into: ir.Shape | None) -> str:
    """What to do about a shape that does not broadcast into another."""
    if source is not None and into is not None and len(source) == 1:
        axes = [axis for axis, dim in enumerate(into[:-1]) if dim == source[0] != 1]
        axis = 1 if 1 in axes else axes[0] if axes else None
        if axis is not None:
            reshaped = (*source, *(1,) * (len(into) - 1 - axis))
            return (
                f"to lay it along axis {axis}, reshape it to {show_shape(reshaped)}: "
                "shapes are aligned at their last dimension"
            )
    return "shapes are aligned at their last dimension; there, extents must be equal, or 1"


# ---------------------------------------------------------------------------------------------
# Claims


@dataclass(frozen=True)
class Claim:
    """What a node demands of shapes.

    Attributes:
        text: What does not hold where this does not, as a message says it.
        hint: What to do then.
        terms: What must broadcast together.
        into: What it must broadcast into without enlarging it; None where it may enlarge.
    """

    text: str
    hint: str
    terms: frozenset[ir.Term]
    into: frozenset[ir.Term] | None = None


@dataclass(frozen=True)
class _Constraint:
    """A claim on one axis: every extent of `source` is 1 or that of `into`, which is one."""

    source: frozenset[Extent]
    into: frozenset[Extent]


def _extents(term: ir.Term, inputs: Sequence[ir.Input], rank: int) -> list[Extent]:
    """The extents of a term, the last axis first."""
    found: list[Extent]
    if term.input is None:
        found = [(None, dim) for dim in reversed(term.shape)]
    else:
        shape = inputs[term.input].shape
        dims: Iterable[ir.Dim] = (None,) * rank if shape is None else reversed(shape)
        found = [_extent(dim, term.input, axis) for axis, dim in enumerate(dims)]
    found = [_UNIT] * term.view.trailing + found
    if term.view.block > 1:
        symbol, number = found[term.view.axis]
        found[term.view.axis] = symbol, number * term.view.block
    return found


def _extent(dim: ir.Dim, source: int, axis: int) -> Extent:
    if isinstance(dim, int):
        return None, dim
    return (source, axis) if dim is None else dim, 1


def _rank(terms: Iterable[ir.Term], inputs: Sequence[ir.Input]) -> int:
    """The highest rank among terms of known rank: one of unknown rank may have as many axes."""
    shapes = ((t, t.shape if t.input is None else inputs[t.input].shape) for t in terms)
    return max((len(s) + t.view.trailing for t, s in shapes if s is not None), default=0)


def extents_along(terms: Iterable[ir.Term], inputs: Sequence[ir.Input], axis: int) -> int:
    """How many different extents terms have along an axis, counted from the last."""
    padding = [_UNIT] * (axis + 1)
    return len({(_extents(term, inputs, axis + 1) + padding)[axis] for term in terms})


class _Axes:
    """The extents of terms, axis by axis, up to a rank; each term is looked at once."""

    def __init__(self, inputs: Sequence[ir.Input], rank: int) -> None:
        self._inputs = inputs
        self._rank = rank
        self._known: dict[ir.Term, list[Extent]] = {}

    def of(self, terms: Iterable[ir.Term]) -> list[frozenset[Extent]]:
        """What stands on each axis, the last one first, without the 1s that change nothing."""
        every = [self._extents(term) for term in terms]
        columns = zip_longest(*every, [_UNIT] * self._rank, fillvalue=_UNIT)
        return [frozenset(column) - {_UNIT} for column in columns]

    def _extents(self, term: ir.Term) -> list[Extent]:
        if term not in self._known:
            self._known[term] = _extents(term, self._inputs, self._rank)
        return self._known[term]


def _constraints(claim: Claim, axes: _Axes) -> Iterator[_Constraint]:
    """A claim, axis by axis, without what holds anyhow."""
    source = axes.of(claim.terms)
    if claim.into is None:
        yield from (_Constraint(frozenset(), axis) for axis in source if len(axis) > 1)
        return
    for own, target in zip(source, axes.of(claim.into), strict=True):
        if not own <= target:
            yield _Constraint(own, target or frozenset({_UNIT}))
        if len(target) > 1:
            yield _Constraint(frozenset(), target)


# ---------------------------------------------------------------------------------------------
# Searching


class _GaveUpError(Exception):
    """The search took too many steps."""


class _Search:
    """Looks for extents that satisfy constraints. What nothing forces to be larger is 1."""

    def __init__(self, constraints: Iterable[_Constraint]) -> None:
        self.constraints = list(dict.fromkeys(constraints))
        extents = {e for c in self.constraints for e in c.source | c.into}
        numbers = {number for symbol, number in extents if symbol is None} | {1}
        factors = {number for symbol, number in extents if symbol is not None}
        self.candidates = sorted({n // f for n in numbers for f in factors if n % f == 0} | numbers)
        self.steps = 0

    def possible(self) -> bool:
        """False where no extents satisfy all; True where some do, or the search gave up."""
        try:
            return self._from({})
        except (_GaveUpError, RecursionError):
            return True

    def _from(self, fixed: dict[Symbol, int]) -> bool:
        choices = self._propagate(fixed)
        if choices is None:
            return True
        return any(self._from({**fixed, symbol: number}) for symbol, number in choices)

    def _propagate(self, fixed: dict[Symbol, int]) -> list[tuple[Symbol, int]] | None:
        """Fix what has one way only; then the fewest ways to mend a claim; None if all hold."""
        changed = True
        while changed:
            changed, fewest = False, None
            for constraint in self.constraints:
                options = self._options(constraint, fixed)
                if options is None:
                    continue
                if len(options) == 1:
                    fixed.update(options)
                    changed = True
                elif fewest is None or len(options) < len(fewest):
                    fewest = options
                if not options:
                    return options
        return fewest

    def _options(
        self, constraint: _Constraint, fixed: dict[Symbol, int]
    ) -> list[tuple[Symbol, int]] | None:
        """The ways to mend a constraint, each one symbol's extent; None where it holds."""
        self.steps += 1
        if self.steps > _MOST_STEPS:
            raise _GaveUpError
        values = {e: _value(e, fixed) for e in constraint.source | constraint.into}
        into = {values[e] for e in constraint.into} - {1}
        if not constraint.source:
            if len(into) < 2:
                return None
            return list(self._equal(constraint.into, into, fixed))
        wrong = [e for e in constraint.source if values[e] != 1 and values[e] not in into]
        if not wrong:
            return None
        wanted = {values[e] for e in wrong}
        options = list(self._equal(constraint.into, wanted, fixed))
        for symbol, _ in wrong:
            if symbol is not None and symbol not in fixed:
                options += [(symbol, number) for number in self.candidates]
        return list(dict.fromkeys(options))

    def _equal(
        self, extents: Iterable[Extent], wanted: Iterable[int], fixed: dict[Symbol, int]
    ) -> Iterator[tuple[Symbol, int]]:
        """What makes an extent that is still open one of the numbers wanted."""
        for symbol, factor in sorted(extents, key=str):
            if symbol is not None and symbol not in fixed:
                for number in sorted(wanted):
                    if factor and number % factor == 0:
                        yield symbol, number // factor


def _value(extent: Extent, fixed: dict[Symbol, int]) -> int:
    symbol, number = extent
    return number if symbol is None else number * fixed.get(symbol, 1)


def _few(claims: Iterable[Claim]) -> Iterator[Claim]:
    terms = 0
    for claim in claims:
        terms += len(claim.terms)
        if terms > _MOST_TERMS:
            return
        yield claim


def first_impossible(
    claims: Sequence[Claim], inputs: Sequence[ir.Input]
) -> tuple[int, bool] | None:
    """The first claim that cannot hold together with those before it.

    Args:
        claims: In the order of the nodes.
        inputs: The graph's inputs, with their declared shapes.

    Returns:
        Its index, and whether it cannot hold alone; None where all claims can hold at once.
    """
    looked_at = list(_few(claims))
    terms = frozenset().union(*(claim.terms | (claim.into or frozenset()) for claim in looked_at))
    axes = _Axes(inputs, _rank(terms, inputs))
    compiled = [list(_constraints(claim, axes)) for claim in looked_at]

    def possible(first: int, stop: int) -> bool:
        return _Search(c for one in compiled[first:stop] for c in one).possible()

    if possible(0, len(compiled)):
        return None
    holds, fails = 0, len(compiled)
    while fails - holds > 1:
        middle = (holds + fails) // 2
        holds, fails = (middle, fails) if possible(0, middle) else (holds, middle)
    return fails - 1, not possible(fails - 1, fails)
