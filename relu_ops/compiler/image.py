"""Writes images: the operators of one target as tables and code, in one file that needs nothing.

native/image.h says what lies where, and native/image_reader.c reads it. Distances between code and
the constants that it reads are settled here, so that nobody has to link or relocate an image: it is
mapped wherever there is room. For CUDA the code is a fat binary an operator, which the driver takes
as it is. Equal tables, texts, constants and code are stored once, whichever
operator they come from. The same operators give the same bytes, on every system.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from relu_ops.compiler import backends, layout
from relu_ops.compiler.cpu.objects import Code
from relu_ops.compiler.layout import LINE
from relu_ops.compiler.patterns import Leaf, leaves_of
from relu_ops.contract import ir
from relu_ops.contract.semantics import DTYPES, SEMANTICS_VERSION, dlpack_type
from relu_ops.errors import ArgumentError, BuildError, UnsupportedError
from relu_ops.native import _python as native
from relu_ops.targets import Target

_ANY = -1
"""A rank, or an extent, that a model leaves open; below it are symbols."""

_NOTHING = (0, 0)
_LONG = 60
_LARGEST_IMAGE = (1 << 32) - 1
_PLACES = 64
"""How many are tried for code: the lines of a page, on which it depends whether one will do."""

Place = tuple[int, int]
"""Where a table or text begins, and how many rows or bytes it has."""


@dataclass(frozen=True)
class _Compiled:
    """An operator, its kernels and their code, or fat binary: see `backends.Backend`."""

    name: str
    graph: ir.Graph
    kernels: Sequence[Any]
    code: Code | bytes


def build(operators: Sequence[tuple[str, ir.Graph]], target: Target) -> bytes:
    """Compile graphs for a target, into one image.

    Args:
        operators: The name and the graph of each, in the order in which they are listed. Names,
            also those in a graph, must be printable.
        target: A target.

    Returns:
        The bytes of the image.

    Raises:
        ArgumentError: Two operators have one name.
        UnsupportedError: A graph has more of something than an image may hold: `native.LIMITS`.
        MissingDependencyError: The target is one of CUDA, and NVRTC is not installed.
        BuildError: TVM made something that an image cannot hold, or NVRTC does not know the target.
    """
    _check(operators, target)
    compiled = backends.of(target).compiled
    made = [_Compiled(name, graph, *compiled(name, graph, target)) for name, graph in operators]
    return _written(made, target)


def requirements(target: Target) -> tuple[str, ...]:
    """What an image of a target says of the machines that it runs on."""
    return backends.of(target).requirements(target)


# -- bounds ------------------------------------------------------------------------------------


def _check(operators: Sequence[tuple[str, ir.Graph]], target: Target) -> None:
    """Refuse what the runtime would refuse, before it is compiled."""
    names = [name for name, _ in operators]
    if len(set(names)) < len(names):
        twice = next(name for k, name in enumerate(names) if name in names[:k])
        raise ArgumentError(f"an image cannot hold two operators named {twice!r}")
    _bounded("the image", "OPERATORS", len(operators), "operators")
    _bounded(str(target), "FEATURES", len(target.flags), "required processor features")
    for name, graph in operators:
        _check_counts(name, graph)
        _check_ranks(name, graph)


def _check_counts(name: str, graph: ir.Graph) -> None:
    terms = [len(terms) for terms in _shapes(graph)]
    operands = len(leaves_of(graph)) + len(graph.outputs)
    for limit, count, noun in (
        ("INPUTS", len(graph.inputs), "inputs"),
        ("OUTPUTS", len(graph.outputs), "outputs"),
        ("OPERANDS", operands, "inputs, outputs and array constants"),
        ("REQUIREMENTS", len(graph.requirements), "shapes that must fit into others"),
        ("TERMS", max(terms), "inputs and constants that a shape depends on"),
    ):
        _bounded(name, limit, count, noun)


def _check_ranks(name: str, graph: ir.Graph) -> None:
    declared = {k: len(source.shape or ()) for k, source in enumerate(graph.inputs)}
    for number, rank in declared.items():
        what = f"{name}: input {graph.inputs[number].name!r}"
        _bounded(what, "DECLARED_RANK", rank, "dimensions")
    for term in (term for terms in _shapes(graph) for term in terms):
        rank = len(term.shape) if term.input is None else declared[term.input]
        what = "a constant" if term.input is None else f"input {graph.inputs[term.input].name!r}"
        _bounded(f"{name}: {what}, as it is used,", "RANK", rank + term.view.trailing, "dimensions")


def _shapes(graph: ir.Graph) -> list[frozenset[ir.Term]]:
    """What each shape depends on that the runtime computes."""
    required = [terms for r in graph.requirements for terms in (r.terms, r.into)]
    return [*(graph.values[output.value].terms for output in graph.outputs), *required]


def _bounded(what: str, limit: str, count: int, noun: str) -> None:
    if count > native.LIMITS[limit]:
        raise UnsupportedError(
            f"{what} has {count} {noun}; it must have at most {native.LIMITS[limit]}"
        )


# -- the image ---------------------------------------------------------------------------------


def _written(compiled: Sequence[_Compiled], target: Target) -> bytes:
    """Every part after those that it refers to: constants that code reads, code, tables.

    The arrays of a graph come with the tables: code is given their addresses, and never reads them
    by distance, which has to fit into 32 bits.
    """
    image = _Image()
    put_all = _put_binaries if isinstance(compiled[0].code, bytes) else _put_codes
    code_at, entries = put_all(image, [operator.code for operator in compiled])
    code_size = len(image.content) - code_at
    rows = [_Tables(image, one).row(entries[one.code]) for one in compiled]
    header = (
        *(layout.MAGIC, layout.FORMAT, SEMANTICS_VERSION),
        *(0, backends.of(target).machine, 0, image.text(target.name)),
        image.rows(layout.TEXT, [image.text(each) for each in requirements(target)]),
        *(image.rows(layout.OPERATOR, rows), code_at, code_size),
    )
    return image.finished(header)


class _Image:
    """An image in the making. Whatever is put twice lies there once.

    Attributes:
        content: Its bytes so far.
        places: Where what was put lies.
        read: Bytes of tables and texts, counted as often as they were put: so many a reader checks.
    """

    def __init__(self) -> None:
        self.content = bytearray(layout.HEADER.itemsize)
        self.places: dict[bytes, int] = {}
        self.read = 0

    def put(self, content: bytes, alignment: int) -> int:
        """Where it lies."""
        at = self.places.get(content)
        if at is None or at % alignment:
            at = self.places[content] = self.reserve(len(content), alignment)
            self.content[at:] = content
        return at

    def reserve(self, size: int, alignment: int) -> int:
        """Where the next `size` bytes may lie."""
        at = len(self.content) + -len(self.content) % alignment
        if at + size > _LARGEST_IMAGE:
            raise BuildError(
                f"the image has more than {_LARGEST_IMAGE} bytes, which its tables cannot count",
                "build its operators into several bundles",
            )
        self.content += bytes(at - len(self.content))
        return at

    def rows(self, kind: np.dtype, rows: Sequence[Any]) -> Place:
        """A table, at a multiple of 8 where its rows are not single bytes."""
        if not rows:
            return _NOTHING
        content = np.array(rows, kind).tobytes()
        self.read += len(content)
        return self.put(content, 1 if kind.itemsize == 1 else 8), len(rows)

    def text(self, text: str) -> Place:
        """A text, and a NUL after it."""
        encoded = text.encode()
        _bounded(f"the name {text[:_LONG]!r}...", "TEXT", len(encoded), "bytes")
        self.read += len(encoded) + 1
        return self.put(encoded + b"\0", 1), len(encoded)

    def finished(self, header: tuple[Any, ...]) -> bytes:
        """The bytes, with a header that knows their number."""
        noun = "bytes of tables and names, counted as often as they are used"
        _bounded("the image", "READ", self.read, noun)
        row = np.array(header, layout.HEADER)
        row["size"] = len(self.content)
        self.content[: layout.HEADER.itemsize] = row.tobytes()
        return bytes(self.content)


# -- code --------------------------------------------------------------------------------------


def _put_binaries(image: _Image, binaries: Iterable[Any]) -> tuple[int, dict[Any, list[int]]]:
    """Put fat binaries; where they begin, and of each its place and size."""
    code_at = image.reserve(0, LINE)
    return code_at, {each: [image.put(each, LINE), len(each)] for each in dict.fromkeys(binaries)}


def _put_codes(image: _Image, codes: Iterable[Any]) -> tuple[int, dict[Any, list[int]]]:
    """Put code for a CPU, after what it reads; where it begins, and the entries of each."""
    constants = {code: _put_constants(image, code) for code in dict.fromkeys(codes)}
    code_at = image.reserve(0, LINE)
    return code_at, {code: _put_code(image, code, places) for code, places in constants.items()}


def _put_constants(image: _Image, code: Code) -> list[int]:
    return [image.put(one.content, one.alignment) for one in code.constants]


def _put_code(image: _Image, code: Code, constants: Sequence[int]) -> list[int]:
    """Put code after other code, where it may be; where its kernels begin."""
    image.content += code.filler * (-len(image.content) % LINE)
    for _ in range(_PLACES):
        at = image.reserve(len(code.text), LINE)
        settled = _settled(code, at, constants)
        if settled is not None:
            image.content += settled
            return [at + entry for entry in code.entries]
        image.content += code.filler * LINE
    raise BuildError(
        f"the code at {at} of the image cannot be so far from its constants, wherever it is moved",
        "build its operators into several bundles",
    )


def _settled(code: Code, at: int, constants: Sequence[int]) -> bytes | None:
    """Code as it is at some place: where its constants lie stands in it. None: it must move."""
    text = bytearray(code.text)
    for reference in code.references:
        place, kind = at + reference.at, reference.relocation
        meant = constants[reference.section] + reference.offset
        if not -kind.reach <= meant - place < kind.reach:
            raise BuildError(
                f"the code at {place} of the image is {abs(meant - place)} bytes from its "
                f"constants; it must be less than {kind.reach}",
                "build its operators into several bundles",
            )
        (word,) = struct.unpack_from("<I", text, reference.at)
        filled = kind.fill(word, place, meant)
        if filled is None:
            return None
        struct.pack_into("<I", text, reference.at, filled)
    return bytes(text)


# -- tables ------------------------------------------------------------------------------------


class _Tables:
    """The tables of one operator, which share the names of its dimensions."""

    def __init__(self, image: _Image, operator: _Compiled) -> None:
        self.image = image
        self.operator = operator
        self.graph = operator.graph
        self.symbols: dict[str, int] = {}

    def row(self, entries: Sequence[int]) -> tuple[Any, ...]:
        """The operator, whose kernels' functions begin at `entries`.

        For CUDA these are the place and the size of its fat binary.
        """
        graph, image = self.graph, self.image
        values = [graph.values[output.value] for output in graph.outputs]
        leaves = leaves_of(graph)
        dtypes = [leaf.dtype for leaf in leaves] + [value.dtype for value in values]
        inputs = [self.tensor(each.name, each.dtype, each.shape) for each in graph.inputs]
        outputs = [
            self.tensor(output.name, value.dtype, output.shape)
            for output, value in zip(graph.outputs, values, strict=True)
        ]
        requirements = [
            (image.text(r.what), self.terms(r.terms), self.terms(r.into))
            for r in graph.requirements
        ]
        return (
            image.text(self.operator.name),
            image.rows(layout.TENSOR, inputs),
            image.rows(layout.TENSOR, outputs),
            image.rows(layout.TERMS, [(self.terms(value.terms),) for value in values]),
            image.rows(layout.REQUIREMENT, requirements),
            image.rows(layout.LEAF, [self.leaf(leaf) for leaf in leaves]),
            image.rows(layout.ITEMSIZE, [DTYPES[dtype].itemsize for dtype in dtypes]),
            self.kernels(entries),
            self.names_of_dimensions(),
            getattr(self.operator.kernels[0], "vector_bytes", 1),  # a device streams nothing
            0,
        )

    def names_of_dimensions(self) -> Place:
        """The symbols, once every shape is there."""
        _bounded(self.operator.name, "SYMBOLS", len(self.symbols), "names of dimensions")
        return self.image.rows(layout.TEXT, [self.image.text(symbol) for symbol in self.symbols])

    def dims(self, shape: ir.Shape) -> Place:
        """A shape, open dimensions among its extents."""
        return self.image.rows(layout.DIM, [self.dim(dim) for dim in shape])

    def dim(self, dim: ir.Dim) -> int:
        """A dimension."""
        if isinstance(dim, str):
            return _ANY - 1 - self.symbols.setdefault(dim, len(self.symbols))
        return _ANY if dim is None else dim

    def tensor(self, name: str, dtype: str, shape: ir.Shape | None) -> tuple[Any, ...]:
        """What an input or output is declared to be."""
        rank = _ANY if shape is None else len(shape)
        return self.image.text(name), *dlpack_type(dtype), rank, 0, self.dims(shape or ())

    def terms(self, terms: Iterable[ir.Term]) -> Place:
        """What a shape is the broadcast of."""
        rows = [
            (_seen(t.view), _ANY if t.input is None else t.input, 0, self.dims(t.shape))
            for t in ir.ordered(terms)
        ]
        return self.image.rows(layout.TERM, rows)

    def leaf(self, leaf: Leaf) -> tuple[Any, ...]:
        """An operand that is read: an input, or an array of the graph."""
        value = self.graph.values[leaf.value]
        if value.array is None:
            return _seen(leaf.view), value.input, 0, _NOTHING
        content = np.ascontiguousarray(value.array).tobytes()
        at = self.image.put(content, LINE)
        return _seen(leaf.view), _ANY, at, self.dims(next(iter(value.terms)).shape)

    def kernels(self, entries: Sequence[int]) -> Place:
        """The kernels, in the table that the machine has for them."""
        if isinstance(self.operator.code, bytes):
            return self.image.rows(layout.CUDA_KERNEL, self.cuda_kernels(*entries))
        return self.image.rows(layout.KERNEL, self.cpu_kernels(entries))

    def cuda_kernels(self, binary_at: int, binary_size: int) -> list[tuple[Any, ...]]:
        """Each kernel of a fat binary: its name in it, and how it is launched."""
        return [
            (
                *(self.image.text(kernel.name), binary_at, binary_size),
                *(kernel.lanes, kernel.unroll, self.patterns(kernel)),
            )
            for kernel in self.operator.kernels
        ]

    def cpu_kernels(self, entries: Sequence[int]) -> list[tuple[Any, ...]]:
        """Each kernel; its streaming twin's function follows its own."""
        following = iter(entries)
        return [
            (
                next(following),
                0 if kernel.stream is None else next(following),
                self.patterns(kernel),
            )
            for kernel in self.operator.kernels
        ]

    def patterns(self, kernel: Any) -> Place:
        """How a kernel takes each operand to lie."""
        return self.image.rows(layout.PATTERN, kernel.patterns)


def _seen(view: ir.View) -> tuple[int, int, int]:
    return view.block, view.trailing, view.axis
