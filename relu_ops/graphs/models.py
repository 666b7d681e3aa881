"""What is done with a model, of ours or of others: its gradient, a copy with ranks, its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING

import onnx
from onnx import helper

from relu_ops.contract.shapes import in_brackets
from relu_ops.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from relu_ops.compiler.frontend import Model


def gradient(
    model: Model,
    inputs: Sequence[str] | None = None,
    *,
    straight_through: bool = False,
    keep_outputs: bool = False,
) -> onnx.ModelProto:
    """Make the vector-Jacobian product of a model: gradients of inputs, of those of outputs.

    What a derivative is where several are right (at zero, at ties, at bounds, at NaN) stands beside
    each operator in docs/semantics.md. Integer and boolean paths have none. To differentiate twice,
    pass the result again.

    Args:
        model: As for `relu_ops.compile`; every graph in scope.
        inputs: The inputs whose gradients are wanted, by their names; None for all that have one.
        straight_through: Pass gradients through a QuantizeLinear and the DequantizeLinear that
            reads it as if there were none, where the quotient is not saturated.
        keep_outputs: Let the model compute its own outputs too, before the gradients.

    Returns:
        A model. Its inputs are those of `model` and, for each floating output y, its gradient dy,
        of the shape of y. Its outputs are dx for each chosen input x, in their order (a name
        that is taken gets a _). They have the shape of the iteration: what the upstream gradients
        and the operands of x's users broadcast to. Where x was broadcast, its gradient is the sum
        of dx over what was repeated, which is left to the caller.

    Raises:
        ModelError: The model is not valid ONNX; as `UnsupportedError` if it is, but it or its
            gradient is out of scope.
        ArgumentError: A name is none of an input with a gradient, or no input has one.
        ArgumentTypeError: inputs is no list of names, or model nothing that holds a model.

    >>> from relu_ops.graphs import leaky_relu
    >>> made = gradient(leaky_relu(alpha=0.1))
    >>> [node.op_type for node in made.graph.node]
    ['Greater', 'Mul', 'Where']
    >>> [value.name for value in (*made.graph.input, *made.graph.output)]
    ['x', 'dy', 'dx']
    """
    from relu_ops import gradients

    return gradients.gradient(
        model, inputs, straight_through=straight_through, keep_outputs=keep_outputs
    )


def with_rank(model: Model, rank: int) -> onnx.ModelProto:
    """Copy a model, giving inputs and outputs of unknown rank `rank` symbolic dimensions.

    Args:
        model: Any model, as for `relu_ops.compile`; it is left as it is.
        rank: The number of dimensions, 0 for a scalar. All values get the same ones.

    Returns:
        The copy, which `onnx.checker` takes.

    Raises:
        ArgumentTypeError: The rank is no integer.
        ArgumentError: It is negative.
        ModelError: The model is not valid ONNX.

    >>> from relu_ops.graphs import relu
    >>> ranked = with_rank(relu(), rank=2)
    >>> print(describe(ranked.graph.input[0]))
    x: float32[dim_0, dim_1]
    >>> onnx.checker.check_model(ranked, full_check=True)
    """
    if not isinstance(rank, Integral) or isinstance(rank, bool):
        raise ArgumentTypeError(f"with_rank: rank must be an integer (not {rank!r})")
    if rank < 0:
        raise ArgumentError(f"with_rank: rank must be at least 0 (not {rank})")
    copy = _read(model)
    for value in (*copy.graph.input, *copy.graph.output):
        if not value.type.tensor_type.HasField("shape"):
            shape = [f"dim_{axis}" for axis in range(rank)]
            element_type = value.type.tensor_type.elem_type
            value.CopyFrom(helper.make_tensor_value_info(value.name, element_type, shape))
    return copy


def describe(value: onnx.ValueInfoProto) -> str:
    """Write a graph input or output as `name: dtype[dimensions]`, with ... for unknown rank.

    >>> from relu_ops.graphs import relu
    >>> print(describe(relu().graph.input[0]))
    x: float32[...]
    """
    from relu_ops.compiler.frontend import scope

    tensor = value.type.tensor_type
    dtype = scope.ELEMENT_TYPES.get(tensor.elem_type) or scope.element_type_name(tensor.elem_type)
    return f"{value.name}: {dtype}{in_brackets(scope.written_shape(tensor)) or '[...]'}"


def serialize(model: Model) -> bytes:
    """Return the bytes of a model's file: the same bytes for equal models, always.

    Args:
        model: Any model, as for `relu_ops.compile`. Its external data come into the bytes.

    Raises:
        ModelError: The model is not valid ONNX.

    >>> from relu_ops.graphs import relu
    >>> serialize(relu()) == serialize(relu())
    True
    """
    content: bytes = _read(model).SerializeToString(deterministic=True)
    return content


def _read(model: Model) -> onnx.ModelProto:
    from relu_ops.compiler import frontend

    return frontend.read_model(model)
