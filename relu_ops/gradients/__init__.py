"""Differentiates graphs: the vector-Jacobian product of a model, as another model in scope.

The graph is imported first, so that versions of operators, functions and constants are behind, and
written anew with its derivatives. What a derivative is stands in `semantics.OPERATORS`, as a text.

One module each: `paths` (what passes a gradient on), `formulas` (the texts of the table, as nodes),
`backward` (going from the outputs to the inputs), `writer` (a graph as an ONNX model).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx

from relu_ops.compiler import frontend
from relu_ops.contract import ir
from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import ArgumentError, ArgumentTypeError, UnsupportedError, choice
from relu_ops.gradients.backward import Backward
from relu_ops.gradients.paths import Paths
from relu_ops.gradients.writer import Writer

if TYPE_CHECKING:
    from relu_ops.compiler.frontend import Model

__all__ = ["gradient", "names", "rewritten"]


def gradient(
    model: Model,
    inputs: Sequence[str] | None,
    *,
    straight_through: bool,
    keep_outputs: bool,
) -> onnx.ModelProto:
    """See `relu_ops.graphs.gradient`."""
    graph = frontend.import_model(model)
    paths = Paths(graph, straight_through)
    chosen = _chosen(graph, inputs, paths)
    _check_outputs(graph)
    writer = Writer(graph)
    cotangents = Backward(graph, writer, paths).run(chosen)
    return writer.model(cotangents, keep_outputs)


def rewritten(model: Model) -> onnx.ModelProto:
    """A model as it is imported: without functions, in operators of the opsets that are written."""
    return Writer(frontend.import_model(model)).model({}, keep_outputs=True)


def names(graph: ir.Graph, straight_through: bool) -> list[str]:
    """The names of the inputs that have a gradient."""
    paths = Paths(graph, straight_through)
    inputs = ((k, value) for k, value in enumerate(graph.values) if value.kind == "input")
    return [graph.inputs[value.input].name for k, value in inputs if paths.reached(k)]


def _chosen(graph: ir.Graph, wanted: Sequence[str] | None, paths: Paths) -> list[int]:
    """The values of the inputs whose gradients are wanted."""
    if isinstance(wanted, str):
        raise ArgumentTypeError(
            "gradient: inputs must be a list of names (not a text)", f"pass [{wanted!r}]"
        )
    places = {graph.inputs[v.input].name: k for k, v in enumerate(graph.values) if v.input >= 0}
    with_gradient = names(graph, paths.straight_through)
    if wanted is None:
        wanted = with_gradient
    elif not wanted:
        raise ArgumentError("gradient: inputs must name at least one input (it is empty)")
    if len(set(wanted)) < len(wanted):
        raise ArgumentError(f"gradient: inputs must name each input once (not {list(wanted)})")
    for name in wanted:
        choice("gradient: inputs", name, list(places))
        if name not in with_gradient:
            raise ArgumentError(_why_none(graph, name), _hint(paths))
    if not wanted:
        raise ArgumentError(
            f"gradient: no input of {graph.name} has a gradient: every path to an output goes "
            "through integers, booleans or operators without a derivative",
            _hint(paths),
        )
    return [places[name] for name in wanted]


def _check_outputs(graph: ir.Graph) -> None:
    """Refuse outputs of several shapes: of a sum over both, the smaller's part counts too often."""
    floats = [o for o in graph.outputs if DTYPES[graph.values[o.value].dtype].is_float]
    shapes = {o.shape for o in floats if o.shape is not None}
    if len(shapes) > 1:
        raise UnsupportedError(
            f"gradient: the outputs {', '.join(o.name for o in floats)} are declared in "
            f"{len(shapes)} shapes, and gradients are in the one shape of the iteration",
            "make a model of each shape, and differentiate them apart",
        )


def _why_none(graph: ir.Graph, name: str) -> str:
    dtype = next(one.dtype for one in graph.inputs if one.name == name)
    if not DTYPES[dtype].is_float:
        return f"gradient: {name} is {dtype}, and only floating inputs have a gradient"
    return (
        f"gradient: {name} has no gradient: every path to an output goes through integers, "
        "booleans or operators without a derivative"
    )


def _hint(paths: Paths) -> str:
    table = "docs/semantics.md lists the derivatives"
    return (
        table if paths.straight_through else f"{table}; quantized chains have straight_through=True"
    )
