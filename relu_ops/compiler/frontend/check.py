"""What must hold of a model before anything of it is imported, and of each node when it is.

Only what some output needs is held to the scope: a function, a node or a constant that nothing uses
stops no model. ONNX's checker looks at nodes and tensors one by one. At the whole model it is not
asked: it knows one opset for all, and refuses what every runtime takes (a domain listed twice, an
initializer of IR version 3 that is no input).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.defs
import onnx.numpy_helper
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import TensorProto

from relu_ops.compiler.frontend import limits
from relu_ops.compiler.frontend.functions import Functions
from relu_ops.compiler.frontend.scope import (
    Frame,
    check_opset,
    check_scope,
    check_tensor,
    opsets_of,
)
from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import ModelError, UnsupportedError


def check_texts(message: Message) -> None:
    """Refuse what is no UTF-8: protobuf lets it pass, as bytes, and everything here wants text."""
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                check_texts(inner)
        elif field.type == FieldDescriptor.TYPE_STRING:
            for text in value if field.is_repeated else [value]:
                if not isinstance(text, str):
                    raise ModelError(f"the model has a {field.name} that is not UTF-8: {text!r}")


def check_model(proto: onnx.ModelProto) -> None:
    """Check a model as a whole.

    Operators outside the scope are named before anything else is said of its nodes.

    Raises:
        ModelError: The model is malformed.
        UnsupportedError: An operator or an opset is outside the scope, or the model too large.
    """
    _check_version(proto)
    _check_bounds(proto.graph)
    if proto.graph.sparse_initializer:
        raise UnsupportedError("the model has sparse initializers, which are not supported")
    _check_unique("input", (info.name for info in proto.graph.input))
    _check_unique("initializer", (tensor.name for tensor in proto.graph.initializer))
    _check_single_assignment(proto.graph)
    functions = Functions(proto)
    functions.check()
    for node, frame in functions.reached(Frame(opsets_of(proto.opset_import))):
        check_scope(node, frame)


def _check_version(proto: onnx.ModelProto) -> None:
    if not 1 <= proto.ir_version <= onnx.IR_VERSION:
        raise ModelError(
            f"the model's ir_version is {proto.ir_version}; it must be 1 to {onnx.IR_VERSION}",
            "install a newer onnx" if proto.ir_version > onnx.IR_VERSION else None,
        )
    opsets = opsets_of(proto.opset_import)
    if "" in opsets:
        check_opset(opsets[""])


def _check_bounds(graph: onnx.GraphProto) -> None:
    if not graph.output:
        raise ModelError("the model has no outputs")
    constants = {tensor.name for tensor in graph.initializer}  # before IR 4, inputs too
    inputs = [info.name for info in graph.input if info.name not in constants]
    limits.hold(len(inputs), limits.INPUTS, "inputs")
    limits.hold(len(graph.output), limits.OUTPUTS, "outputs")
    names = [graph.name, *inputs, *(info.name for info in graph.output)]
    longest = max(len(name.encode()) for name in names)
    limits.hold(longest, limits.NAME_BYTES, "bytes", "a name in the model")


def _check_unique(what: str, names: Iterable[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise ModelError(f"the model has {count} {what}s of the name {name!r}")


def _check_single_assignment(graph: onnx.GraphProto) -> None:
    given = {info.name for info in (*graph.input, *graph.initializer)}
    computed = (name for node in graph.node for name in node.output if name)
    _check_unique("value", (*given, *computed))


# ---------------------------------------------------------------------------------------------
# One by one


@functools.cache
def _context(ir_version: int, opset: int) -> onnx.checker.C.CheckerContext:
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = ir_version, {"": opset}
    return context


def check_node(node: onnx.NodeProto, frame: Frame, ir_version: int) -> None:
    """Hold a node of ONNX's own against its schema: numbers of inputs, and attributes."""
    try:
        onnx.checker.check_node(node, _context(ir_version, frame.opsets[""]))
    except Exception as error:
        said = _said(error)
        hint = "a float has a point, in text too: 2.0" if "actual: 'INT'" in said else None
        raise ModelError(f"{frame.describe(node)} is not valid ONNX: {said}", hint) from error


def check_constant(tensor: TensorProto, ir_version: int) -> None:
    """Check an initializer: its dtype is in scope, and its data fit its shape."""
    check_tensor(tensor)
    limits.hold(len(tensor.dims), limits.DECLARED_RANK, "dimensions", f"tensor {tensor.name!r}")
    try:
        onnx.checker.check_tensor(tensor, _context(ir_version, 1))
    except Exception as error:
        raise ModelError(f"tensor {tensor.name!r} is not valid ONNX: {_said(error)}") from error


def array_of(tensor: TensorProto) -> np.ndarray:
    """The array that a tensor holds."""
    # onnx would read it from the current directory.
    assert tensor.data_location != TensorProto.EXTERNAL
    try:
        return onnx.numpy_helper.to_array(tensor)
    except Exception as error:
        raise ModelError(f"tensor {tensor.name!r} cannot be read: {error}") from error


def _said(error: Exception) -> str:
    """What onnx says, in one line."""
    return " ".join(str(error).partition("==> Context")[0].split())


def check_types(
    node: onnx.NodeProto, frame: Frame, schema: onnx.defs.OpSchema, dtypes: Sequence[str | None]
) -> None:
    """Hold a node's operand dtypes against its schema: the checker does not."""
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    bound: dict[str, str] = {}
    for position, dtype in enumerate(dtypes):
        if dtype is None:
            continue
        formal: Any = schema.inputs[min(position, len(schema.inputs) - 1)]
        types = allowed.get(formal.type_str, {formal.type_str})
        if f"tensor({DTYPES[dtype].onnx_name})" not in types:
            raise ModelError(
                f"{frame.describe(node)}: {node.op_type}-{schema.since_version} does not take "
                f"{dtype} for {formal.name}; it takes {', '.join(sorted(types))}",
                _taken_later(node.op_type, schema, position, dtype),
            )
        if formal.is_homogeneous and bound.setdefault(formal.type_str, dtype) != dtype:
            raise ModelError(
                f"{frame.describe(node)}: {node.op_type}: {formal.name} is {dtype} and must be "
                f"{bound[formal.type_str]}, as the operand before it",
                f"cast one of them: add a Cast node, or make the constant {bound[formal.type_str]}",
            )


def _taken_later(
    operator: str, schema: onnx.defs.OpSchema, position: int, dtype: str
) -> str | None:
    """From which opset on an operator takes a dtype that it does not take yet."""
    wanted = f"tensor({DTYPES[dtype].onnx_name})"
    for opset in range(schema.since_version + 1, onnx.defs.onnx_opset_version() + 1):
        later = onnx.defs.get_schema(operator, opset, "")
        formal = later.inputs[min(position, len(later.inputs) - 1)]
        for constraint in later.type_constraints:
            known = constraint.type_param_str == formal.type_str
            if known and wanted in constraint.allowed_type_strs:
                return (
                    f"from opset {opset} on it does: convert the model with "
                    "onnx.version_converter.convert_version"
                )
    return "cast to one that it takes: add a Cast node"
