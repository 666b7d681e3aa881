"""What an operator is called with: special values, sizes, layouts, random draws, every pattern.

A case has a number, and is made from it and the seed alone: what a report prints can be repeated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from relu_ops.contract import ir
from relu_ops.contract.semantics import DTYPES, Dtype
from relu_ops.errors import ArgumentError
from relu_ops.verification.shapes import Shape, cut, shapes

PATTERNS = 1 << 22
"""How many bit patterns an exhaustive check takes at a time."""

_SIZES = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257, 1000, 4099)
_LAYOUT_SIZE = 600
_MOST_SPECIAL = 24
"""How many calls may show special values, where one holds few."""
_MOST_ELEMENTS = 1 << 20
"""What referees are given at a time; larger arrays repeat it."""
_DRAWS = 4
"""How many random draws there are of shapes that have no size to vary."""


# ---------------------------------------------------------------------------------------------
# Values


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


# ---------------------------------------------------------------------------------------------
# Cases


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        number: Its number in the plan.
        title: What it is called.
        small: The arrays that referees are given.
        shapes: The shapes of the arrays that the operator is given: they repeat `small`.
        lay_out: How these lie in memory.
        exhaustive: It is one of an exhaustive check.
    """

    number: int
    title: str
    small: tuple[np.ndarray, ...]
    shapes: tuple[Shape, ...]
    lay_out: Callable[[np.ndarray], np.ndarray] = np.ascontiguousarray
    exhaustive: bool = False

    @property
    def repeats(self) -> bool:
        """True where the operator is given more than the referees."""
        return any(x.shape != shape for x, shape in zip(self.small, self.shapes, strict=True))

    def inputs(self, *, thrifty: bool = False) -> list[np.ndarray]:
        """The arrays that the operator is given; thrifty ones repeat themselves in place."""
        return [
            x if x.shape == () else self.lay_out(x) if x.shape == shape else whole(x, shape)
            for x, shape in zip(self.small, self.shapes, strict=True)
            for whole in (_thrifty if thrifty else repeated,)
        ]


def repeated(x: np.ndarray, shape: Shape) -> np.ndarray:
    """An array of a shape that repeats a smaller one along every axis."""
    whole = np.empty(shape, x.dtype)
    for place, part in tiles(shape, x.shape):
        whole[place] = x[part]
    return whole


def _thrifty(x: np.ndarray, shape: Shape) -> np.ndarray:
    """The same, without memory for what repeats one element along an axis."""
    held = tuple(1 if m == 1 else n for m, n in zip(x.shape, shape, strict=True))
    return np.broadcast_to(repeated(x, held), shape)


_Slices = tuple[slice, ...]


def tiles(whole: Shape, small: Shape) -> Iterator[tuple[_Slices, _Slices]]:
    """Where a whole array repeats a small one: places in it, and the part that lies there."""
    if 0 in whole:
        return
    counts = [-(-n // m) for n, m in zip(whole, small, strict=True)]
    for at in np.ndindex(*counts):
        places = [
            slice(k * m, min((k + 1) * m, n)) for k, m, n in zip(at, small, whole, strict=True)
        ]
        yield tuple(places), tuple(slice(0, p.stop - p.start) for p in places)


@dataclass(frozen=True)
class Plan:
    """All cases of a graph, made one by one.

    Attributes:
        graph: The graph.
        seed: Of the random draws.
        steps: For each case its title and what makes it.
    """

    graph: ir.Graph
    seed: int
    steps: list[tuple[str, Callable[[int], Case]]]

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def first(self) -> list[Case]:
        """The first case, where there is one."""
        return [self[0]] if self.steps else []

    def __getitem__(self, number: int) -> Case:
        return self.steps[number][1](number)


def plan(graph: ir.Graph, seed: int, *, exhaustive: bool = False) -> Plan:
    """The cases to check a graph with; an empty plan where no shapes were found for it.

    Raises:
        ArgumentError: exhaustive was asked for and is not possible.
    """
    made = Plan(graph, seed, [])
    probe = shapes(graph, _LAYOUT_SIZE)
    if probe is None:
        return made
    if any(0 in shape for shape in probe):
        made.steps.append(("empty arrays", _drawn(graph, seed, 0)))
        return made
    if cut(graph, probe, _MOST_ELEMENTS) == probe:
        made.steps.extend(_special_steps(graph, probe))
        made.steps.extend(_sized_steps(graph, seed, probe))
    else:  # one call that holds everything: memory is slow
        made.steps.append((_MIXED, _mixed(graph, seed, probe)))
    if exhaustive:
        made.steps.extend(_pattern_steps(graph))
    return made


_Step = tuple[str, Callable[[int], Case]]


def _case(
    graph: ir.Graph,
    number: int,
    title: str,
    full: Sequence[Shape],
    values: Callable[[str, int], np.ndarray],
    lay_out: Callable[[np.ndarray], np.ndarray] = np.ascontiguousarray,
) -> Case:
    small = cut(graph, full, _MOST_ELEMENTS)
    arrays = [
        values(i.dtype, ir.size(shape)).reshape(shape)
        for i, shape in zip(graph.inputs, small, strict=True)
    ]
    return Case(number, title, tuple(arrays), tuple(full), lay_out)


# Special values


def _special_steps(graph: ir.Graph, probe: list[Shape]) -> Iterator[_Step]:
    """Every combination of special values, for graphs of at most two inputs that can be flat."""
    columns = [special_values(i.dtype) for i in graph.inputs]
    count = math.prod(len(c) for c in columns[:2])
    if len(columns) > 1 and shapes(graph, count) == [(count,)] * len(columns):
        yield "all pairs of special values", lambda number: _pairs(number, columns)
        return
    count = max((len(c) for c in columns), default=1)
    full = shapes(graph, count) or probe
    small = cut(graph, full, _MOST_ELEMENTS)
    held = [ir.size(shape) for shape in small]
    calls = max((-(-len(c) // n) for c, n in zip(columns, held, strict=True)), default=1)
    calls = min(max(calls, 1 if len(columns) < 2 else 5), _MOST_SPECIAL)
    for shift in range(calls):
        yield f"special values, shift {shift}", _shifted(graph, full, columns, shift)


def _pairs(number: int, columns: list[np.ndarray]) -> Case:
    grids = np.meshgrid(*(np.arange(len(c)) for c in columns[:2]), indexing="ij")
    picked = [columns[k][grids[k].ravel()] for k in range(2)]
    picked += [np.resize(c, picked[0].size) for c in columns[2:]]
    return Case(
        number, "all pairs of special values", tuple(picked), tuple(x.shape for x in picked)
    )


def _shifted(
    graph: ir.Graph, full: Sequence[Shape], columns: list[np.ndarray], shift: int
) -> Callable[[int], Case]:
    """Special values, each input at another place of its own: an array may hold few of them."""

    def make(number: int) -> Case:
        places = iter(range(len(columns)))

        def values(dtype: str, count: int) -> np.ndarray:
            place = next(places)
            column = columns[place]
            step = (2 * place + 1) * (count if count < len(column) else 7)
            return np.resize(np.roll(column, -shift * step), count)

        return _case(graph, number, f"special values, shift {shift}", full, values)

    return make


_MIXED = "special and random values"


def _mixed(graph: ir.Graph, seed: int, full: Sequence[Shape]) -> Callable[[int], Case]:
    """One half special values, each input at another place of its own, the other half random."""

    def make(number: int) -> Case:
        draw = np.random.default_rng([seed, number])
        places = iter(range(len(graph.inputs)))

        def values(dtype: str, count: int) -> np.ndarray:
            x, special = random_values(dtype, count, draw), special_values(dtype)
            # The first input runs through its values; the second stays for that long; and so on.
            stays = min(len(special) ** next(places), max(count // len(special), 1))
            x[: count // 2] = np.resize(np.repeat(special, stays), count // 2)
            return x

        return _case(graph, number, _MIXED, full, values)

    return make


# Random values: sizes and layouts


def _sized_steps(graph: ir.Graph, seed: int, probe: list[Shape]) -> Iterator[_Step]:
    sizes = [size for size in _SIZES if shapes(graph, size) is not None]
    if shapes(graph, 2 * _LAYOUT_SIZE) != probe:
        for size in sizes:
            yield f"size {size}", _drawn(graph, seed, size)
    else:
        for draw in range(_DRAWS):
            yield f"draw {draw}", _drawn(graph, seed, _LAYOUT_SIZE, f"draw {draw}")
    for title, lay_out in _LAYOUTS.items():
        yield title, _drawn(graph, seed, _LAYOUT_SIZE, title, lay_out)


def _drawn(
    graph: ir.Graph,
    seed: int,
    size: int,
    title: str | None = None,
    lay_out: Callable[[np.ndarray], np.ndarray] = np.ascontiguousarray,
) -> Callable[[int], Case]:
    def make(number: int) -> Case:
        draw = np.random.default_rng([seed, number])
        full = shapes(graph, size)
        assert full is not None
        shown = f"size {size}" if title is None else title
        return _case(graph, number, shown, full, lambda d, n: random_values(d, n, draw), lay_out)

    return make


def _misaligned(x: np.ndarray, offset: int) -> np.ndarray:
    memory = np.empty(x.nbytes + 64 + offset, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    view = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


_LAYOUTS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "every second element": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "negative strides": lambda x: x[..., ::-1].copy()[..., ::-1],
    "Fortran order": np.asfortranarray,
    "one element past 64 bytes": lambda x: _misaligned(x, x.dtype.itemsize),
    "one byte past 64 bytes": lambda x: _misaligned(x, 1),
    "foreign byte order": lambda x: (
        x.astype(x.dtype.newbyteorder(">")) if x.dtype.kind in "fiu" and x.dtype.itemsize > 1 else x
    ),
}


# Every bit pattern


def _pattern_steps(graph: ir.Graph) -> Iterator[_Step]:
    declared = [(None,) if i.shape is None else i.shape for i in graph.inputs]
    if len(declared) != 1 or len(declared[0]) != 1 or isinstance(declared[0][0], int):
        raise ArgumentError(
            f"{graph.name}: every bit pattern can be checked for one input of any shape",
            "leave out exhaustive; special values and random draws are checked all the same",
        )
    row = DTYPES[graph.inputs[0].dtype]
    if row.bits > 32:
        raise ArgumentError(
            f"{graph.name}: {row.name} has too many bit patterns to check them all",
            "leave out exhaustive; special values and random draws are checked all the same",
        )
    for start in range(0, 1 << row.bits, PATTERNS):
        yield f"patterns from {start:#x}", _patterns(row, start)


def _patterns(row: Dtype, start: int) -> Callable[[int], Case]:
    def make(number: int) -> Case:
        stop = min(start + PATTERNS, 1 << row.bits)
        bits = np.arange(start, stop, dtype=np.uint64).astype(f"u{row.itemsize}")
        x = bits.view(row.numpy) if row.kind != "bool" else bits.astype(bool)
        title = f"patterns from {start:#x}"
        return Case(number, title, (x,), (x.shape,), exhaustive=True)

    return make
