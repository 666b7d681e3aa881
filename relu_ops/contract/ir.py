"""The graph between frontend and everything behind it: typed, normalised, free of ONNX.

A `Graph` is a list of values in evaluation order. The frontend makes it, the reference evaluates
it, the lowering compiles it. Shapes are never computed here at compile time: a value's shape is
the broadcast of its *terms*, which are the inputs and constants it depends on, and is known when
arrays arrive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Dim = int | str | None
"""A declared dimension: static, symbolic, or free."""
Shape = tuple[Dim, ...]


@dataclass(frozen=True)
class Input:
    """A graph input: `shape` is None where the model leaves even the rank open."""

    name: str
    dtype: str
    shape: Shape | None


@dataclass(frozen=True, order=True)
class View:
    """How a value is seen by its user, when not as it is.

    Attributes:
        trailing: Unit dimensions appended: how a per-channel vector lies along an axis that is
            not the last.
        axis: The dimension, counted from the last, along which every element is repeated.
        block: How often: 1, or the block size of a blocked quantization.
    """

    trailing: int = 0
    axis: int = 0
    block: int = 1

    def then(self, outer: View) -> View:
        """This view, seen through another one. At most one of them may repeat."""
        assert self.block == 1 or outer.block == 1
        trailing = self.trailing + outer.trailing
        if self.block == 1:
            return View(trailing, outer.axis, outer.block)
        return View(trailing, self.axis + outer.trailing, self.block)

    def shape(self, shape: tuple[Any, ...]) -> tuple[Any, ...]:
        """The shape that a value of some shape has in this view."""
        seen = [*shape, *(1,) * self.trailing]
        if self.block > 1:
            seen[-1 - self.axis] *= self.block
        return tuple(seen)


@dataclass(frozen=True)
class Term:
    """Something a shape depends on: an input (by index), or a constant's own shape, in a view."""

    input: int | None
    shape: tuple[int, ...] = ()
    view: View = View()


@dataclass(frozen=True)
class Value:
    """One value of the graph.

    Attributes:
        kind: "input", "constant", "view" (of another value) or "apply".
        dtype: A name of `semantics.DTYPES`.
        terms: What the shape is the broadcast of.
        operator: The row of `semantics.OPERATORS`, for "apply".
        arguments: Indices of values; None where an optional operand is absent.
        attributes: The operator's scalar attributes, already in their final form.
        input: The index of the graph input, for "input".
        array: The array, for "constant": a single element where all are alike.
        view: For "view".
    """

    kind: str
    dtype: str
    terms: frozenset[Term]
    operator: str = ""
    arguments: tuple[int | None, ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    input: int = -1
    array: np.ndarray | None = None
    view: View = View()

    @property
    def is_leaf(self) -> bool:
        """True for what a kernel loads: inputs, and constants of more than one element."""
        return self.kind == "input" or (self.array is not None and self.array.shape != ())


Key = tuple[int, View]
"""A value of a graph, and how it is seen."""


@dataclass(frozen=True)
class Requirement:
    """The shape of `terms` must broadcast into the shape of `into` without enlarging it."""

    what: str
    terms: frozenset[Term]
    into: frozenset[Term]


@dataclass(frozen=True)
class Output:
    """A graph output: its name, its value and the shape to report."""

    name: str
    value: int
    shape: Shape | None


@dataclass(frozen=True)
class Graph:
    """A whole operator."""

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    values: tuple[Value, ...]
    requirements: tuple[Requirement, ...]

    def reachable(self) -> list[Key]:
        """What the outputs need, each value in every way in which it is seen, operands first."""
        seen: set[Key] = set()
        pending = [(output.value, View()) for output in self.outputs]
        while pending:
            index, view = pending.pop()
            if (index, view) not in seen:
                seen.add((index, view))
                value = self.values[index]
                inner = value.view.then(view)
                pending += [(a, inner) for a in value.arguments if a is not None]
        return sorted(seen)

    def live_values(self) -> list[int]:
        """Indices of the values that some output needs, in evaluation order."""
        return sorted({index for index, _ in self.reachable()})


def ordered(terms: Iterable[Term]) -> list[Term]:
    """Terms in a fixed order, so that what is generated from a set is the same every time."""
    return sorted(
        terms, key=lambda t: (t.input is None, t.input or 0, len(t.shape), t.shape, t.view)
    )


def term_shape(term: Term, input_shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The concrete shape of a term, given the shapes of the inputs."""
    shape = term.shape if term.input is None else tuple(input_shapes[term.input])
    return term.view.shape(shape)


def broadcast_terms(terms: Iterable[Term], input_shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The broadcast of several terms.

    Raises:
        ValueError: They do not broadcast together.
    """
    shape: tuple[int, ...] = ()
    for term in ordered(terms):
        shape = broadcast(shape, term_shape(term, input_shapes))
    return shape


def broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """Broadcast two shapes, as NumPy does, at any rank.

    >>> broadcast((3, 1), (4,))
    (3, 4)
    """
    rank = max(len(a), len(b))
    a, b = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    if any(m != n and m != 1 and n != 1 for m, n in zip(a, b, strict=True)):
        raise ValueError(f"shapes {a} and {b} do not broadcast together")
    return tuple(n if m == 1 else m for m, n in zip(a, b, strict=True))


def fits_into(source: tuple[int, ...], into: tuple[int, ...]) -> bool:
    """True where broadcasting `source` with `into` gives `into`, leading unit dimensions aside.

    >>> fits_into((1, 1, 3), (2, 3)), fits_into((2, 3), (3,))
    (True, False)
    """
    while len(source) > len(into) and source[0] == 1:
        source = source[1:]
    try:
        return broadcast(source, into) == into
    except ValueError:
        return False


def size(shape: Iterable[int]) -> int:
    """The number of elements of a shape."""
    return math.prod(shape)
