"""The benchmark's cases: each graph, the dtypes and the data that it is timed on.

One table. What each peer does for a case is the row of the same graph in `peers`; shapes follow
from what the graph declares and from a number of elements, by one rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_ops.contract import reference
from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import ArgumentError, choice
from relu_ops.verification import special_values

if TYPE_CHECKING:
    from relu_ops.compiler.frontend import Model
    from relu_ops.contract import ir

ALIGNMENT = 64
"""Every array begins at a cache line: no peer is slowed down by where an array happens to lie."""

SPECIAL_ELEMENTS = 4096
"""All pairs of the 56 special values of a float type fit."""

COLUMNS = 512
CHANNELS = 64
PIXELS = 32 * 32

_CHUNK = 1 << 22


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: The name in records and on the command line.
        graph: The key of the idioms of `peers`; "" for a model that none fits.
        formula: What it computes, for people.
        dtypes: In which dtypes the committed record has it.
        make: Makes the model for a dtype.
        roundings: How often the contract rounds on the way to one result, constants included. A
            peer may round elsewhere (it may contract, or keep an attribute wider): it may differ
            by so many units in the last place of the largest intermediate value.
        alpha: The slope, for peers that are told it: a float32, as ONNX has it, also in float64.
        magnitude: The largest intermediate value, from the inputs; None where it is the result.
        arrange: Lays out inputs that come compact; None where they stay so.
        peers: Who takes part; empty for everybody.
    """

    name: str
    graph: str
    formula: str
    dtypes: tuple[str, ...]
    make: Callable[[str], Any]
    roundings: int = 0
    alpha: float = 0.0
    magnitude: Callable[..., np.ndarray] | None = None
    arrange: Callable[[Sequence[np.ndarray]], list[np.ndarray]] | None = None
    peers: tuple[str, ...] = ()

    def arranged(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Inputs of this case, laid out as it wants them, from compact ones."""
        return list(inputs) if self.arrange is None else self.arrange(inputs)

    def without_model(self) -> Case:
        """The same without what makes its model: to be pickled, for where no onnx is."""
        return replace(self, make=_made_elsewhere)


def _made_elsewhere(dtype: str) -> Any:
    raise NotImplementedError("the model is where the operator was compiled")


def _graph(name: str, **settings: Any) -> Callable[[str], Any]:
    def make(dtype: str) -> Any:
        from relu_ops import graphs

        return graphs.GRAPHS[name](dtype=dtype, **settings)

    return make


def _product_and_bias(x: np.ndarray, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return np.abs(x * scale) + np.abs(bias)


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, min(COLUMNS, x.size))


def _transposed(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    x = _rows(inputs[0])
    columns = aligned(x.shape[::-1], x.dtype)
    columns[...] = x.T
    return [columns.T]


def _every_second(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    x = _rows(inputs[0])
    twice = aligned((x.shape[0], 2 * x.shape[1]), x.dtype)
    twice[:, ::2] = twice[:, 1::2] = x
    return [twice[:, ::2]]


def _one_column(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    a, b = _rows(inputs[0]), _rows(inputs[1])
    return [a, b[:, :1].copy()]


_TAKE_ANY_LAYOUT = ("relu_ops", "relu_ops_out", "relu_ops_new", "numpy", "torch")
"""Peers that read arrays where they lie; the others would be timed on a copy."""

_SMALL_SLOPE, _SLOPE = float(np.float32(0.01)), float(np.float32(0.1))
_FLOATS = ("float32", "float16", "bfloat16", "float64")
_SINGLE = ("float32",)

# fmt: off
CASES: dict[str, Case] = {
    row.name: row
    for row in (
        Case("relu", "relu", "relu(x)", (*_FLOATS, "int8"), _graph("relu")),
        Case(
            "leaky_relu", "leaky_relu", "leaky_relu(x)",
            _FLOATS, _graph("leaky_relu"), 2, _SMALL_SLOPE,
        ),
        Case("relu_grad", "relu_grad", "dy where x > 0", _SINGLE, _graph("relu_grad")),
        Case("add_relu", "add_relu", "relu(a + b)", _SINGLE, _graph("add_relu"), 1),
        Case(
            "scale_bias_leaky_relu", "scale_bias_leaky_relu", "leaky_relu(x * scale + bias), rows",
            _SINGLE, _graph("scale_bias_leaky_relu", alpha=0.1), 4, _SLOPE, _product_and_bias,
        ),
        Case(
            "scale_bias_leaky_relu_nchw", "scale_bias_leaky_relu",
            "leaky_relu(x * scale + bias), NCHW", _SINGLE,
            _graph("scale_bias_leaky_relu", alpha=0.1, layout="nchw"), 4, _SLOPE, _product_and_bias,
        ),
        Case("relu6", "relu6", "relu6(x)", _SINGLE, _graph("relu6")),
        Case("prelu", "prelu", "prelu(x, slope), rows", _SINGLE, _graph("prelu"), 1),
        Case(
            "quantized_leaky_relu", "quantized_leaky_relu", "quantized leaky_relu(x)",
            ("int8",), _graph("quantized_leaky_relu"), 1, _SMALL_SLOPE,
        ),
        Case(
            "relu_transposed", "relu", "relu(x.T)", _SINGLE, _graph("relu"),
            arrange=_transposed, peers=_TAKE_ANY_LAYOUT,
        ),
        Case(
            "relu_strided", "relu", "relu(x[:, ::2])", _SINGLE, _graph("relu"),
            arrange=_every_second, peers=_TAKE_ANY_LAYOUT,
        ),
        Case(
            "add_relu_broadcast", "add_relu", "relu(a + column)", _SINGLE, _graph("add_relu"), 1,
            arrange=_one_column, peers=_TAKE_ANY_LAYOUT,
        ),
    )
}
# fmt: on
"""Every case by name, in the order of tables and pictures."""

_OPERATORS: dict[tuple[str, ...], str] = {
    ("Relu",): "relu",
    ("LeakyRelu",): "leaky_relu",
    ("Greater", "Where"): "relu_grad",
    ("Add", "Relu"): "add_relu",
    ("Mul", "Add", "LeakyRelu"): "scale_bias_leaky_relu",
    ("Clip",): "relu6",
    ("PRelu",): "prelu",
    ("DequantizeLinear", "LeakyRelu", "QuantizeLinear"): "quantized_leaky_relu",
}
"""The graph that a model of these operators probably is. A wrong guess costs nothing: every peer
is checked against the model itself before it is timed."""


def case_of(model: Model, name: str) -> Case:
    """Make a case of any model, with the idioms of a known graph where its operators are those.

    Args:
        model: The model, as for `relu_ops.compile`.
        name: What to call it.

    Raises:
        ArgumentError: It has no inputs or no outputs.
        ModelError: It is not valid ONNX; as `UnsupportedError` if it is, but out of scope.
    """
    from relu_ops.compiler import frontend

    proto = frontend.read_model(model)
    # Exporters (spox) end a graph with an Identity, for the name of its output.
    operators = tuple(n.op_type for n in proto.graph.node if n.op_type != "Identity")
    known = CASES.get(_OPERATORS.get(operators, ""))
    alphas = [a.f for n in proto.graph.node for a in n.attribute if a.name == "alpha"]
    dtypes = (_dtype_of_first_input(proto),)
    if known is None:
        return Case(name, "", " > ".join(operators), dtypes, lambda _: proto, len(operators))
    alpha = alphas[0] if alphas else known.alpha
    return replace(known, name=name, dtypes=dtypes, make=lambda _: proto, alpha=alpha)


def _dtype_of_first_input(proto: Any) -> str:
    from relu_ops.compiler import frontend

    graph = frontend.import_model(proto)
    if not graph.inputs or not graph.outputs:
        raise ArgumentError(f"bench: {proto.graph.name}: has no input or no output to time")
    return graph.inputs[0].dtype


def find(name: str) -> Case:
    """The case of a name.

    Raises:
        ArgumentError: There is none.
    """
    return CASES[choice("bench: case", name, CASES)]


# ---------------------------------------------------------------------------------------------
# Shapes and data


def extents(rank: int, elements: int) -> tuple[int, ...]:
    """The shape of about so many elements: rows of 512, or images of 64 channels, 32 by 32.

    >>> extents(2, 65536), extents(4, 65536), extents(4, 4096)
    ((128, 512), (1, 64, 32, 32), (1, 64, 8, 8))
    """
    elements = max(elements, 1)
    if rank <= 1:
        return (elements,) * rank
    if rank == 2:
        columns = min(COLUMNS, elements)
        return (elements // columns, columns)
    channels = min(CHANNELS, elements)
    pixels = min(PIXELS, elements // channels)
    width = 1 << (pixels.bit_length() // 2)
    image = (channels, pixels // width, width)
    return (*(1,) * (rank - 4), max(elements // int(np.prod(image)), 1), *image)[-rank:]


def shapes_of(inputs: Sequence[ir.Input], elements: int) -> list[tuple[int, ...]]:
    """The shapes of a graph's inputs for about so many elements of the largest.

    Dimensions that the graph fixes are as it says; those of one name are equal.
    """
    declared = max((t.shape for t in inputs if t.shape is not None), key=len, default=(None,))
    whole = _with_fixed(extents(len(declared), elements), declared, elements)
    symbols: dict[str, int] = {}
    shapes: list[tuple[int, ...]] = []
    for tensor in inputs:
        if tensor.shape is None:
            shapes.append((elements,))
            continue
        sizes = whole[len(whole) - len(tensor.shape) :]
        shapes.append(
            tuple(
                d if isinstance(d, int) else symbols.setdefault(d, size) if d else size
                for d, size in zip(tensor.shape, sizes, strict=True)
            )
        )
    return shapes


def _with_fixed(
    sizes: tuple[int, ...], declared: Sequence[int | str | None], elements: int
) -> tuple[int, ...]:
    """Put the dimensions that a model fixes into a shape; the first free one makes up for them."""
    fixed = [d if isinstance(d, int) else size for d, size in zip(declared, sizes, strict=True)]
    free = [axis for axis, d in enumerate(declared) if not isinstance(d, int)]
    if free and len(free) < len(fixed):
        rest = int(np.prod([size for axis, size in enumerate(fixed) if axis != free[0]]))
        fixed[free[0]] = max(elements // max(rest, 1), 1)
    return tuple(fixed)


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialized array that begins at a cache line."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def ordinary_inputs(graph: ir.Graph, elements: int, seed: int = 0) -> list[np.ndarray]:
    """The data that is timed: floats of a standard normal distribution, integers of any value."""
    draw = np.random.default_rng(seed)
    return [
        _ordinary(tensor.dtype, shape, draw)
        for tensor, shape in zip(graph.inputs, shapes_of(graph.inputs, elements), strict=True)
    ]


def _ordinary(dtype: str, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    row = DTYPES[dtype]
    x = aligned(shape, row.numpy)
    flat = x.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        if row.is_float:
            # In full precision: a peer that computes float64 as float32 is to be found out.
            part[...] = draw.standard_normal(part.size, "d" if row.bits > 32 else "f")
        elif row.kind == "bool":
            part[...] = draw.integers(0, 2, part.size)
        else:
            part[...] = draw.integers(0, 256, part.nbytes, dtype=np.uint8).view(row.numpy)
    return x


def special_inputs(graph: ir.Graph) -> list[np.ndarray]:
    """NaN, infinities, zeros, subnormals and the like: all pairs of them where two arrays meet.

    Inputs that are broadcast, such as a scale, keep ordinary values: a NaN there would hide all.
    """
    inputs = ordinary_inputs(graph, SPECIAL_ELEMENTS)
    whole = [x for x in inputs if x.size == max(x.size for x in inputs)]
    for k, x in enumerate(whole):
        values = special_values(str(x.dtype))
        repeated = np.repeat(values, len(values)) if k % 2 else values
        x.reshape(-1)[...] = np.resize(repeated, x.size)
    return inputs


def streams(inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> int:
    """How many arrays of the output's size are read, and at least one; the limit knows up to 3."""
    return max(sum(x.nbytes == outputs[0].nbytes for x in inputs), 1)


def expected_of(case: Case, graph: ir.Graph, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What the contract says: `reference.evaluate`, in slices where the arrays are large."""
    shape = np.broadcast_shapes(*(x.shape for x in inputs)) if inputs else ()
    if case.graph == "" or not shape or int(np.prod(shape)) <= _CHUNK:
        with np.errstate(all="ignore"):
            return reference.evaluate(graph, inputs)
    step = max(1, _CHUNK * shape[0] // int(np.prod(shape)))
    result: np.ndarray | None = None
    for start in range(0, shape[0], step):
        part = [_slice(x, len(shape), start, step) for x in inputs]
        with np.errstate(all="ignore"):
            (values,) = reference.evaluate(graph, part)
        if result is None:
            result = np.empty(shape, values.dtype)
        result[start : start + step] = values
    assert result is not None
    return [result]


def _slice(x: np.ndarray, rank: int, start: int, step: int) -> np.ndarray:
    return x[start : start + step] if x.ndim == rank and x.shape[0] > 1 else x
