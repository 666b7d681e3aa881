"""Imports an ONNX model into a `Graph`: decides what is in scope, and what a node means.

Here the differences between operator versions end: behind this module an operator has one form.
Knows onnx; never imports TVM. Everything that a model can get wrong is an error of this module.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx.checker
import onnx.defs
import onnx.external_data_helper
import onnx.inliner
import onnx.numpy_helper
import onnx.shape_inference
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import TensorProto

from relu_ops import ir, reference
from relu_ops.errors import ArgumentTypeError, ModelError, UnsupportedError
from relu_ops.native._python import LIMITS
from relu_ops.semantics import DTYPES, MINIMUM_OPSET, OPERATORS

Model: TypeAlias = onnx.ModelProto | bytes | str | os.PathLike[str]

_ONNX_NAMES = {"float32": "float", "float64": "double"}
"""ONNX's names of the dtypes that it calls otherwise."""

_ELEMENT_TYPES: dict[int, str] = {
    TensorProto.DataType.Value(_ONNX_NAMES.get(name, name).upper()): name for name in DTYPES
}

# Bounds on what a small file can make large, beside LIMITS, those of an image.
_MOST_DIMENSIONS = LIMITS["DECLARED_RANK"]
_MOST_INLINED_NODES = 100_000  # functions that call each other twice double at every level
_DEEPEST_CALL = 100
_LARGEST_EXTERNAL_BYTES = 2**30  # a model with its data has to fit into a protobuf, 2 GiB
_LARGEST_FOLDED_ELEMENTS = 2**24  # a constant lies in the library; what is larger is computed
_LARGEST_SHAPE_ELEMENTS = 2**60  # beyond, the bytes of an array are no 64-bit number

_SUPPORTED_DTYPES = f"supported dtypes: {', '.join(DTYPES)}"
_SUPPORTED_OPERATORS = f"supported operators: {', '.join(OPERATORS)}"


def import_model(model: Model) -> ir.Graph:
    """Import a model.

    Args:
        model: A `ModelProto`, its serialized bytes, or the path of a file. External data is read
            only for a path, and only from inside the model's folder.

    Returns:
        The normalised graph.

    Raises:
        ModelError: The model is not valid ONNX.
        UnsupportedError: It is, and needs what relu_ops does not compile.
    """
    proto = read_model(model)
    check_model(proto)
    return _Importer(proto).run()


# ---------------------------------------------------------------------------------------------
# Reading and checking


def read_model(model: Model) -> onnx.ModelProto:
    """Return the model as a `ModelProto` of its own, with external data loaded."""
    if isinstance(model, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
        folder = None
    elif isinstance(model, bytes | bytearray | memoryview):
        proto, folder = _parse(bytes(model), "the model"), None
    elif isinstance(model, str | os.PathLike):
        path = Path(model)
        try:
            content = path.read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            hint = "a bundle is loaded with relu_ops.load" if _is_bundle(path) else None
            raise ModelError(f"{path}: cannot be read: {reason}", hint) from error
        proto, folder = _parse(content, str(path)), path.resolve().parent
    else:
        raise ArgumentTypeError(
            f"model must be a path, bytes or an onnx.ModelProto (not {type(model).__name__})"
        )
    _check_texts(proto)
    _load_external_data(proto, folder)
    return proto


def _is_bundle(path: Path) -> bool:
    try:
        return (path / "manifest.json").is_file()
    except (OSError, ValueError):
        return False


def _parse(content: bytes, name: str) -> onnx.ModelProto:
    try:
        proto = onnx.ModelProto.FromString(content)
    except Exception as error:
        raise ModelError(f"{name}: is not an ONNX model: {error}") from error
    if not proto.HasField("graph") or not proto.opset_import:
        raise ModelError(f"{name}: is not an ONNX model: it has no graph or no opset_import")
    return proto


def _tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """The constants of the model and of its local functions."""
    yield from proto.graph.initializer
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        for node in nodes:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    yield attribute.t
                yield from attribute.tensors


def _load_external_data(proto: onnx.ModelProto, folder: Path | None) -> None:
    total = 0
    for tensor in _tensors(proto):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        if folder is None:
            raise ModelError(
                f"tensor {tensor.name!r} keeps its data in an external file, and the model was "
                "not given as a path",
                "pass the path of the .onnx file, or load it with onnx.load first",
            )
        _check_tensor(tensor)
        size = ir.size(tensor.dims) * DTYPES[_ELEMENT_TYPES[tensor.data_type]].itemsize
        total += max(size, 0)
        if total > _LARGEST_EXTERNAL_BYTES:
            raise UnsupportedError(
                f"the model's external data has more than {_LARGEST_EXTERNAL_BYTES} bytes"
            )
        _load_external_tensor(tensor, folder, size)


def _load_external_tensor(tensor: TensorProto, folder: Path, size: int) -> None:
    """Load `size` bytes: no more than the tensor's shape needs, however long the file is."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    try:
        path = (folder / location).resolve()
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
        if not location or Path(location).is_absolute() or not path.is_relative_to(folder):
            raise ValueError(f"{location!r} lies outside the model's folder")
        if not path.is_file():
            raise ValueError(f"{location!r} is not a file")
        if offset < 0 or length != size or size < 0:
            raise ValueError(f"offset {offset} or length {length} is wrong for {size} bytes")
        if path.stat().st_size < offset + size:
            raise ValueError(f"{location!r} has fewer than {offset} + {size} bytes")
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
    except (ValueError, OSError) as error:
        raise ModelError(f"tensor {tensor.name!r}: external data: {error}") from error
    tensor.raw_data = content
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


def _check_texts(message: Message) -> None:
    """Refuse what is no UTF-8: protobuf lets it pass, as bytes, and everything here wants text."""
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for inner in value if field.is_repeated else [value]:
                _check_texts(inner)
        elif field.type == FieldDescriptor.TYPE_STRING:
            for text in value if field.is_repeated else [value]:
                if not isinstance(text, str):
                    raise ModelError(f"the model has a {field.name} that is not UTF-8: {text!r}")


def check_model(proto: onnx.ModelProto) -> None:
    """Check a model with onnx's checker and its strict shape inference.

    Operators outside the scope are named before anything else is said of the model.

    Raises:
        ModelError: The model is malformed.
        UnsupportedError: An operator, an opset or a dtype is outside the scope.
    """
    _opset(proto)  # raises where it is outside the scope
    if proto.graph.sparse_initializer:
        raise UnsupportedError("the model has sparse initializers, which are not supported")
    _check_counts(proto.graph)
    _check_functions(proto)
    local = {(function.domain, function.name) for function in proto.functions}
    for node in proto.graph.node:
        if (node.domain, node.op_type) not in local:
            _check_scope(node, proto)
    for tensor in _tensors(proto):
        _check_tensor(tensor)
    try:
        onnx.checker.check_model(_with_shape_fields(proto), full_check=False)
        # Data propagation is left off: on a long 1-D tensor it takes gigabytes.
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    except Exception as error:
        raise ModelError(f"the model is not valid ONNX: {str(error).strip()}") from error


def _check_counts(graph: onnx.GraphProto) -> None:
    """As many inputs and outputs as an image may have; initializers may be listed as inputs."""
    initializers = {tensor.name for tensor in graph.initializer}
    inputs = [info for info in graph.input if info.name not in initializers]
    for noun, found in (("inputs", inputs), ("outputs", graph.output)):
        most = LIMITS[noun.upper()]
        if len(found) > most:
            raise UnsupportedError(
                f"the model has {len(found)} {noun}; it must have at most {most}"
            )


def _check_functions(proto: onnx.ModelProto) -> None:
    """Refuse local functions that call themselves, or that inline to a whole world of nodes."""
    functions = {(f.domain, f.name, f.overload): f.node for f in proto.functions}
    sizes: dict[tuple[str, str, str], int] = {}

    def inlined_size(nodes: Sequence[onnx.NodeProto], depth: int) -> int:
        if depth > _DEEPEST_CALL:
            raise ModelError(f"local functions call each other more than {_DEEPEST_CALL} deep")
        total = 0
        for node in nodes:
            called = (node.domain, node.op_type, node.overload)
            if called in functions and called not in sizes:
                sizes[called] = inlined_size(functions[called], depth + 1)
            total += sizes.get(called, 1)
        return total

    size = inlined_size(proto.graph.node, 0)
    if functions and size > _MOST_INLINED_NODES:
        raise UnsupportedError(
            f"the model's local functions inline to {size} nodes; at most {_MOST_INLINED_NODES} "
            "are supported"
        )


def _with_shape_fields(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for the checker, which wants a shape field where ONNX allows an unknown rank."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for info in [*copy.graph.input, *copy.graph.output]:
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.shape.SetInParent()
    return copy


def _check_tensor(tensor: TensorProto) -> None:
    if tensor.data_type not in _ELEMENT_TYPES:
        kind = _element_type_name(tensor.data_type)
        raise UnsupportedError(f"tensor {tensor.name!r} has dtype {kind}", _SUPPORTED_DTYPES)


def _element_type_name(element_type: int) -> str:
    try:
        return TensorProto.DataType.Name(element_type).lower()
    except ValueError:
        return f"number {element_type}"


def _opset(proto: onnx.ModelProto) -> int:
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if len(versions) != 1:
        raise ModelError(f"the model must import the ONNX opset once (not {len(versions)} times)")
    newest = onnx.defs.onnx_opset_version()
    if not 1 <= versions[0] <= newest:
        raise UnsupportedError(
            f"the model's opset is {versions[0]}; it must be {MINIMUM_OPSET} to {newest}",
            _CONVERT,
        )
    return versions[0]


_CONVERT = "convert it with onnx.version_converter.convert_version, or install a newer onnx"


def _schema(node: onnx.NodeProto, opset: int) -> onnx.defs.OpSchema:
    """The schema of a node; below the oldest opset, only if it was the same there already."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError as error:
        raise ModelError(f"{_describe(node)}: opset {opset} has no {node.op_type}") from error
    if opset < MINIMUM_OPSET:
        oldest = onnx.defs.get_schema(node.op_type, MINIMUM_OPSET, "")
        if oldest.since_version != schema.since_version:
            raise UnsupportedError(
                f"{_describe(node)}: {node.op_type} of opset {opset}; the model's opset must be "
                f"{MINIMUM_OPSET} to {onnx.defs.onnx_opset_version()}",
                _CONVERT,
            )
    return schema


def _describe(node: onnx.NodeProto) -> str:
    return f"node {node.name!r}" if node.name else f"node of output {list(node.output)}"


def _check_scope(node: onnx.NodeProto, proto: onnx.ModelProto) -> None:
    if node.domain in ("", "ai.onnx") and node.op_type in OPERATORS:
        return
    domain = node.domain or "ai.onnx"
    versions = {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import}
    raise UnsupportedError(
        f"{_describe(node)}: operator {node.op_type} of domain {domain}, "
        f"version {versions.get(domain, 'unknown')}, is not supported",
        _SUPPORTED_OPERATORS,
    )


# ---------------------------------------------------------------------------------------------
# Importing


class _Importer:
    """Builds the graph of one checked model."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        if proto.functions:
            proto = _inlined(proto)
        self.proto = proto
        self.opset = _opset(proto)
        self.values: list[ir.Value] = []
        self.shapes: list[ir.Shape | None] = []
        self.names: dict[str, int] = {}
        self.inputs: list[ir.Input] = []
        self.requirements: list[ir.Requirement] = []

    def run(self) -> ir.Graph:
        graph = self.proto.graph
        constants = {tensor.name: tensor for tensor in graph.initializer}
        for name, tensor in constants.items():
            self.names[name] = self.constant(_array(tensor))
        for info in graph.input:
            if info.name not in constants:
                self.names[info.name] = self._input(info)
        for node in graph.node:
            self._node(node)
        outputs = tuple(self._output(info) for info in graph.output)
        if not outputs:
            raise ModelError("the model has no outputs")
        result = ir.Graph(
            graph.name, tuple(self.inputs), outputs, tuple(self.values), tuple(self.requirements)
        )
        _check_blocks(result)
        return result

    def _input(self, info: onnx.ValueInfoProto) -> int:
        dtype, shape = _declared(info)
        if shape is not None and len(shape) > _MOST_DIMENSIONS:
            raise UnsupportedError(
                f"input {info.name!r} has rank {len(shape)}; it must be at most {_MOST_DIMENSIONS}"
            )
        index = len(self.inputs)
        self.inputs.append(ir.Input(info.name, dtype, shape))
        return self._add(ir.Value("input", dtype, frozenset({ir.Term(index)}), input=index), shape)

    def _output(self, info: onnx.ValueInfoProto) -> ir.Output:
        if info.name not in self.names:
            raise ModelError(f"output {info.name!r} is computed by no node")
        value = self.names[info.name]
        dtype, _ = _declared(info)
        if dtype != self.values[value].dtype:
            raise ModelError(
                f"output {info.name!r} is declared {dtype} and computed as "
                f"{self.values[value].dtype}"
            )
        return ir.Output(info.name, value, self.shapes[value])

    def _node(self, node: onnx.NodeProto) -> None:
        _check_scope(node, self.proto)
        schema = _schema(node, self.opset)
        try:
            operands = [self.names[name] if name else None for name in node.input]
        except KeyError as error:
            raise ModelError(f"{_describe(node)}: input {error} is computed by no node") from None
        _check_types(node, schema, [None if o is None else self.values[o].dtype for o in operands])
        call = _Call(self, node, schema.since_version, operands, _attributes(node))
        result = _HANDLERS[node.op_type](call)
        for name in node.output[:1]:
            self.names[name] = result

    def _add(self, value: ir.Value, shape: ir.Shape | None) -> int:
        self.values.append(value)
        self.shapes.append(shape)
        return len(self.values) - 1

    def constant(self, array: np.ndarray, shape: tuple[int, ...] | None = None) -> int:
        """Add a constant; `shape` repeats a single element without storing it repeatedly."""
        shape = array.shape if shape is None else shape
        _check_static_size(shape)
        bits = np.ascontiguousarray(array).reshape(-1).view(f"V{array.dtype.itemsize}")
        if bits.size and bool((bits == bits[0]).all()):
            array = array.reshape(-1)[:1].reshape(())
        dtype = next(name for name, row in DTYPES.items() if row.numpy == array.dtype)
        term = ir.Term(None, tuple(shape))
        return self._add(ir.Value("constant", dtype, frozenset({term}), array=array), tuple(shape))

    def seen(self, value: int, view: ir.View) -> int:
        """A view of a value."""
        if view == ir.View():
            return value
        source = self.values[value]
        terms = frozenset(ir.Term(t.input, t.shape, t.view.then(view)) for t in source.terms)
        shape = self.shapes[value]
        return self._add(
            ir.Value("view", source.dtype, terms, arguments=(value,), view=view),
            None if shape is None else _viewed_shape(shape, view),
        )

    def apply(
        self,
        operator: str,
        operands: Sequence[int | None],
        dtype: str,
        attributes: Mapping[str, Any] | None = None,
        shaped_by: Sequence[int] | None = None,
    ) -> int:
        """Add a primitive operator; fold it where every operand is constant.

        Args:
            operator: A name of `semantics.PRIMITIVES`.
            operands: Values; None where an optional operand is absent.
            dtype: The dtype of the result.
            attributes: What the reference and the lowering take beside the operands.
            shaped_by: The operands whose broadcast is the result's shape; default: all.
        """
        assert OPERATORS[operator].primitive
        present = [o for o in operands if o is not None]
        shaping = present if shaped_by is None else list(shaped_by)
        terms = frozenset().union(*(self.values[o].terms for o in shaping))
        shape = _broadcast_shapes([self.shapes[o] for o in shaping])
        attributes = dict(attributes or {})
        static = ir.broadcast_terms(terms, []) if all(t.input is None for t in terms) else None
        if static is not None:
            _check_static_size(static)
        if static is not None and self._is_foldable(present, static):
            arrays = [None if o is None else self.values[o].array for o in operands]
            folded = reference.apply(operator, arrays, attributes)
            if folded.shape != () and folded.shape != static:
                folded = np.broadcast_to(folded, static)
            return self.constant(folded, static)
        return self._add(
            ir.Value("apply", dtype, terms, operator, tuple(operands), attributes), shape
        )

    def _is_foldable(self, operands: Sequence[int], shape: tuple[int, ...]) -> bool:
        """True where every operand is constant, and the result is no larger than it should be."""
        values = [self.values[o] for o in operands]
        if any(v.array is None for v in values):
            return False
        uniform = all(v.array is not None and v.array.shape == () for v in values)
        return uniform or ir.size(shape) <= _LARGEST_FOLDED_ELEMENTS

    def require(self, what: str, value: int, into: Sequence[int]) -> None:
        """Demand that a value broadcasts into the shape of others, at the call at the latest."""
        terms = frozenset().union(*(self.values[o].terms for o in into))
        requirement = ir.Requirement(what, self.values[value].terms, terms)
        if all(t.input is None for t in requirement.terms | requirement.into):
            _check_requirement(requirement)
        else:
            self.requirements.append(requirement)


def _check_static_size(shape: Sequence[int]) -> None:
    if ir.size(max(d, 1) for d in shape) > _LARGEST_SHAPE_ELEMENTS:
        raise UnsupportedError(f"a constant has the shape {tuple(shape)}, larger than any memory")


def _check_blocks(graph: ir.Graph) -> None:
    """One dimension is split into blocks of one size: a kernel loops over it once."""
    sizes: dict[int, int] = {}
    for _, view in graph.reachable():
        if view.block > 1 and sizes.setdefault(view.axis, view.block) != view.block:
            raise UnsupportedError(
                f"the model quantizes one axis in blocks of {sizes[view.axis]} and {view.block}",
                "use one block size per axis",
            )


def _viewed_shape(shape: ir.Shape, view: ir.View) -> ir.Shape:
    static = view.shape(tuple(d if isinstance(d, int) else 0 for d in shape))
    named = (*shape, *(1,) * view.trailing)
    repeated = len(static) - 1 - view.axis if view.block > 1 else None
    return tuple(
        s if isinstance(d, int) else None if k == repeated else d
        for k, (d, s) in enumerate(zip(named, static, strict=True))
    )


def _check_requirement(requirement: ir.Requirement) -> None:
    into = ir.broadcast_terms(requirement.into, [])
    source = ir.broadcast_terms(requirement.terms, [])
    if not ir.fits_into(source, into):
        raise ModelError(f"{requirement.what} of shape {source} must broadcast into {into}")


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    try:
        return onnx.inliner.inline_local_functions(proto)
    except Exception as error:
        raise ModelError(f"the model's local functions cannot be inlined: {error}") from error


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    try:
        return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    except ValueError as error:  # a reference to a function's attribute, outside of functions
        raise ModelError(f"{_describe(node)}: an attribute has no value: {error}") from error


def _array(tensor: TensorProto) -> np.ndarray:
    # onnx would read it from the current directory.
    assert tensor.data_location != TensorProto.EXTERNAL
    try:
        return onnx.numpy_helper.to_array(tensor)
    except Exception as error:
        raise ModelError(f"tensor {tensor.name!r} cannot be read: {error}") from error


def _declared(info: onnx.ValueInfoProto) -> tuple[str, ir.Shape | None]:
    if not info.type.HasField("tensor_type"):
        raise UnsupportedError(f"{info.name!r} is not a tensor; only tensors are supported")
    tensor = info.type.tensor_type
    if tensor.elem_type not in _ELEMENT_TYPES:
        kind = _element_type_name(tensor.elem_type)
        raise UnsupportedError(f"{info.name!r} has dtype {kind}", _SUPPORTED_DTYPES)
    if not tensor.HasField("shape"):
        return _ELEMENT_TYPES[tensor.elem_type], None
    return _ELEMENT_TYPES[tensor.elem_type], tuple(_dim(d) for d in tensor.shape.dim)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> ir.Dim:
    if dim.HasField("dim_value"):
        if dim.dim_value < 0:
            raise ModelError(f"a dimension must not be negative (not {dim.dim_value})")
        return dim.dim_value
    return dim.dim_param or None


def _broadcast_shapes(shapes: Sequence[ir.Shape | None]) -> ir.Shape | None:
    result: ir.Shape = ()
    for shape in shapes:
        if shape is None:
            return None
        rank = max(len(result), len(shape))
        left = (1,) * (rank - len(result)) + result
        right = (1,) * (rank - len(shape)) + shape
        result = tuple(_broadcast_dims(a, b) for a, b in zip(left, right, strict=True))
    return result


def _broadcast_dims(a: ir.Dim, b: ir.Dim) -> ir.Dim:
    if a == 1 or a == b:
        return b
    if b == 1:
        return a
    static = [d for d in (a, b) if isinstance(d, int)]
    if len(static) == 2:
        raise ModelError(f"dimensions {a} and {b} do not broadcast together")
    return static[0] if static else None


def _check_types(
    node: onnx.NodeProto, schema: onnx.defs.OpSchema, dtypes: Sequence[str | None]
) -> None:
    """Hold a node's operand dtypes against its schema: the checker does not."""
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    bound: dict[str, str] = {}
    for position, dtype in enumerate(dtypes):
        if dtype is None:
            continue
        formal = schema.inputs[min(position, len(schema.inputs) - 1)]
        types = allowed.get(formal.type_str, {formal.type_str})
        if f"tensor({_ONNX_NAMES.get(dtype, dtype)})" not in types:
            raise ModelError(
                f"{_describe(node)}: {node.op_type}-{schema.since_version} does not take {dtype} "
                f"for {formal.name}; it takes {', '.join(sorted(types))}"
            )
        if formal.is_homogeneous and bound.setdefault(formal.type_str, dtype) != dtype:
            raise ModelError(
                f"{_describe(node)}: {node.op_type}: {formal.name} is {dtype} and must be "
                f"{bound[formal.type_str]}, as the operand before it"
            )


# ---------------------------------------------------------------------------------------------
# What each operator means: one handler per row of semantics.OPERATORS


class _Call:
    """One node, seen by its handler."""

    def __init__(
        self,
        importer: _Importer,
        node: onnx.NodeProto,
        version: int,
        operands: list[int | None],
        attributes: dict[str, Any],
    ) -> None:
        self.importer = importer
        self.node = node
        self.version = version
        self.operands = operands
        self.attributes = attributes

    def operand(self, position: int) -> int | None:
        return self.operands[position] if position < len(self.operands) else None

    def required(self) -> list[int]:
        if None in self.operands:
            raise ModelError(
                f"{_describe(self.node)}: every input of {self.node.op_type} is needed"
            )
        return [o for o in self.operands if o is not None]

    def dtype(self, value: int) -> str:
        return self.importer.values[value].dtype

    def rank(self, value: int) -> int | None:
        shape = self.importer.shapes[value]
        return None if shape is None else len(shape)

    def scalar(self, value: float, like: int) -> int:
        """A float32 constant in the type of another value, as CastLike makes it."""
        to = {"to": self.dtype(like)}
        return self.importer.constant(reference.apply("Cast", [np.asarray(np.float32(value))], to))

    def apply(self, operator: str, *operands: int | None, dtype: str | None = None) -> int:
        first = next(o for o in operands if o is not None)
        return self.importer.apply(operator, operands, dtype or self.dtype(first))

    def along(self, value: int, target: int, axis: int, what: str) -> int:
        """Lay a value's last dimension along `axis` of a target of known rank."""
        rank, own = self.rank(target), self.rank(value)
        if axis == -1 and own == 1:
            return value
        if rank is None or own is None:
            raise UnsupportedError(
                f"{_describe(self.node)}: {what} along axis {axis} needs an input of known rank",
                "declare the shapes of the model's inputs; dimensions may be symbolic",
            )
        first = axis + rank if axis < 0 else axis
        if not 0 <= first <= rank - own:
            raise ModelError(
                f"{_describe(self.node)}: axis {axis} does not fit rank {rank} and {what} of "
                f"rank {own}"
            )
        return self.importer.seen(value, ir.View(rank - own - first))


Handler = Callable[[_Call], int]


def _same(operator: str, *, result: str | None = None) -> Handler:
    """Operands broadcast together, result of their type (or of `result`)."""

    def handle(call: _Call) -> int:
        return call.apply(operator, *call.required(), dtype=result)

    return handle


def _binary(operator: str, *, result: str | None = None) -> Handler:
    """A binary operator; before opset 7 its broadcasting is an attribute."""

    def handle(call: _Call) -> int:
        a, b = call.required()
        if call.version < 7:
            b = _legacy_operand(call, a, b)
        return call.apply(operator, a, b, dtype=result)

    return handle


def _legacy_operand(call: _Call, a: int, b: int) -> int:
    if call.attributes.get("broadcast", 0):
        if "axis" in call.attributes:
            b = call.along(b, a, call.attributes["axis"], "the second operand")
        call.importer.require(f"{_describe(call.node)}: the second operand", b, [a])
        return b
    call.importer.require(f"{_describe(call.node)}: the second operand", b, [a])
    call.importer.require(f"{_describe(call.node)}: the first operand", a, [b])
    return b


def _variadic(operator: str) -> Handler:
    def handle(call: _Call) -> int:
        operands = call.required()
        if not operands:
            raise ModelError(f"{_describe(call.node)}: {operator} needs at least one input")
        if call.version < 8:
            for other in operands[1:]:
                call.importer.require(f"{_describe(call.node)}: an operand", other, operands[:1])
                call.importer.require(f"{_describe(call.node)}: the first", operands[0], [other])
        result = operands[0]
        for other in operands[1:]:
            result = call.apply(operator, result, other)
        return result

    return handle


def _attributed(operator: str, default: float) -> Handler:
    """LeakyRelu and ThresholdedRelu: one float attribute alpha."""

    def handle(call: _Call) -> int:
        (x,) = call.required()
        alpha = float(np.float32(call.attributes.get("alpha", default)))
        return call.importer.apply(operator, [x], call.dtype(x), {"alpha": alpha})

    return handle


def _prelu(call: _Call) -> int:
    x, slope = call.required()
    if call.version < 7 and call.importer.shapes[slope] not in ((), (1,)):
        slope = call.along(slope, x, 1, "slope") if call.rank(slope) == 1 else slope
    call.importer.require(f"{_describe(call.node)}: slope", slope, [x])
    return call.importer.apply("PRelu", [x, slope], call.dtype(x), shaped_by=[x])


def _clip(call: _Call) -> int:
    x = call.operands[0]
    assert x is not None
    if call.version < 11:
        # The schema's defaults are float32's extremes: an infinity is clipped to them.
        largest = float(np.finfo(np.float32).max)
        bounds: list[int | None] = [
            call.scalar(call.attributes.get(name, default), x)
            for name, default in (("min", -largest), ("max", largest))
        ]
    else:
        bounds = [call.operand(1), call.operand(2)]
        scalar = call.importer.constant(np.zeros((), np.float32))
        for name, bound in zip(("min", "max"), bounds, strict=True):
            if bound is not None:
                call.importer.require(f"{_describe(call.node)}: {name}", bound, [scalar])
    if bounds == [None, None]:
        return x
    return call.importer.apply("Clip", [x, *bounds], call.dtype(x), shaped_by=[x])


def _hard_sigmoid(call: _Call, alpha: float | None = None, beta: float | None = None) -> int:
    (x,) = call.required()
    alpha = call.attributes.get("alpha", 0.2) if alpha is None else alpha
    beta = call.attributes.get("beta", 0.5) if beta is None else beta
    product = call.apply("Mul", x, call.scalar(alpha, x))
    line = call.apply("Add", product, call.scalar(beta, x))
    return call.apply("Max", call.apply("Min", line, call.scalar(1, x)), call.scalar(0, x))


def _hard_swish(call: _Call) -> int:
    (x,) = call.required()
    return call.apply("Mul", x, _hard_sigmoid(call, alpha=0.16666667163372, beta=0.5))


def _where(call: _Call) -> int:
    condition, a, b = call.required()
    return call.apply("Where", condition, a, b, dtype=call.dtype(a))


def _cast_to(call: _Call, x: int, to: str) -> int:
    if call.dtype(x) == to:
        return x
    return call.importer.apply("Cast", [x], to, {"to": to})


def _cast(call: _Call) -> int:
    (x,) = call.required()
    return _cast_to(call, x, _element_type(call, call.attributes.get("to"), "to"))


def _element_type(call: _Call, value: Any, what: str) -> str:
    if value not in _ELEMENT_TYPES:
        kind = _element_type_name(value) if isinstance(value, int) else repr(value)
        raise UnsupportedError(f"{_describe(call.node)}: {what} is {kind}", _SUPPORTED_DTYPES)
    return _ELEMENT_TYPES[value]


def _cast_like(call: _Call) -> int:
    x, like = call.required()
    return _cast_to(call, x, call.dtype(like))


def _identity(call: _Call) -> int:
    return call.required()[0]


def _constant(call: _Call) -> int:
    makers: dict[str, Callable[[Any], np.ndarray]] = {
        "value": _array,
        "value_float": lambda v: np.asarray(v, np.float32),
        "value_floats": lambda v: np.asarray(v, np.float32),
        "value_int": lambda v: np.asarray(v, np.int64),
        "value_ints": lambda v: np.asarray(v, np.int64),
    }
    names = list(call.attributes)
    if len(names) != 1 or names[0] not in makers:
        raise UnsupportedError(
            f"{_describe(call.node)}: Constant has the attributes {names}; it must have one of "
            f"{', '.join(makers)}"
        )
    return call.importer.constant(makers[names[0]](call.attributes[names[0]]))


def _constant_of_shape(call: _Call) -> int:
    (source,) = call.required()
    value = call.importer.values[source]
    if value.kind != "constant" or value.array is None:
        raise UnsupportedError(
            f"{_describe(call.node)}: the shape of ConstantOfShape must be a constant, so that "
            "the shape of every result follows from the shapes of the inputs"
        )
    static = ir.broadcast_terms(value.terms, [])
    if len(static) != 1 or static[0] > _MOST_DIMENSIONS:
        raise ModelError(
            f"{_describe(call.node)}: the shape must be a vector of at most {_MOST_DIMENSIONS} "
            f"numbers (not of shape {static})"
        )
    dims = [int(d) for d in np.broadcast_to(value.array, static)]
    if any(d < 0 for d in dims):
        raise ModelError(f"{_describe(call.node)}: {dims} is not a shape")
    fill = call.attributes.get("value")
    array = np.zeros(1, np.float32) if fill is None else _array(fill)
    if array.size != 1:
        raise ModelError(f"{_describe(call.node)}: value must have one element")
    return call.importer.constant(array.reshape(()), tuple(dims))


def _quantization_operands(call: _Call) -> tuple[int, int, int | None]:
    """The operands, with scale and zero point laid along their axis."""
    x, scale = call.operands[0], call.operands[1]
    assert x is not None and scale is not None
    zero_point = call.operand(2)
    if zero_point is not None:
        call.importer.require(f"{_describe(call.node)}: zero_point", zero_point, [scale])
    if call.attributes.get("block_size", 0):
        scale = _blocked(call, x, scale, "scale")
        zero_point = None if zero_point is None else _blocked(call, x, zero_point, "zero_point")
    elif call.version >= 13 and call.rank(scale) == 1 and call.importer.shapes[scale] != (1,):
        axis = call.attributes.get("axis", 1)
        axis = -1 if call.rank(x) == 1 else axis
        scale = call.along(scale, x, axis, "scale")
        if zero_point is not None and call.importer.shapes[zero_point] not in ((), (1,)):
            zero_point = call.along(zero_point, x, axis, "zero_point")
    call.importer.require(f"{_describe(call.node)}: scale", scale, [x])
    return x, scale, zero_point


def _blocked(call: _Call, x: int, value: int, what: str) -> int:
    """Repeat each scale or zero point over its block of x."""
    block, axis = call.attributes["block_size"], call.attributes.get("axis", 1)
    shape, own = call.importer.shapes[x], call.importer.shapes[value]
    where = f"{_describe(call.node)}: {what}"
    if shape is None or own is None or len(shape) != len(own):
        raise UnsupportedError(
            f"{where} in blocks needs an x of known rank, and that rank itself",
            "declare the shapes of the model's inputs; dimensions may be symbolic",
        )
    if block < 1 or not -len(shape) <= axis < len(shape):
        raise ModelError(f"{where}: block_size {block} or axis {axis} is out of range")
    if any(t.view.block > 1 for t in call.importer.values[value].terms):
        raise UnsupportedError(f"{where} comes out of another blocked quantization")
    whole, blocks = shape[axis], own[axis]
    if isinstance(whole, int) and isinstance(blocks, int) and whole != blocks * block:
        raise UnsupportedError(
            f"{where}: {blocks} blocks of {block} must be the {whole} elements of x along axis "
            f"{axis}: a shorter last block is not supported"
        )
    return call.importer.seen(value, ir.View(0, (len(shape) - 1 - axis) % len(shape), block))


def _quantize(call: _Call) -> int:
    x, scale, zero_point = _quantization_operands(call)
    declared = call.attributes.get("output_dtype", 0)
    to = "uint8" if zero_point is None else call.dtype(zero_point)
    if declared:
        to = _element_type(call, declared, "output_dtype")
    precision = call.attributes.get("precision", 0)
    attributes = {
        "to": to,
        "precision": _element_type(call, precision, "precision")
        if precision
        else call.dtype(scale),
    }
    if attributes["precision"] == "int32":
        attributes["precision"] = "float32"
    operands = [x, scale, zero_point]
    return call.importer.apply("QuantizeLinear", operands, to, attributes, shaped_by=[x])


def _dequantize(call: _Call) -> int:
    x, scale, zero_point = _quantization_operands(call)
    declared = call.attributes.get("output_dtype", 0)
    to = _element_type(call, declared, "output_dtype") if declared else call.dtype(scale)
    operands = [x, scale, zero_point]
    return call.importer.apply("DequantizeLinear", operands, to, {"to": to}, shaped_by=[x])


_HANDLERS: dict[str, Handler] = {
    "Relu": _same("Relu"),
    "LeakyRelu": _attributed("LeakyRelu", 0.01),
    "PRelu": _prelu,
    "ThresholdedRelu": _attributed("ThresholdedRelu", 1.0),
    "Clip": _clip,
    "Abs": _same("Abs"),
    "Neg": _same("Neg"),
    "Sign": _same("Sign"),
    "Max": _variadic("Max"),
    "Min": _variadic("Min"),
    "Add": _binary("Add"),
    "Sub": _binary("Sub"),
    "Mul": _binary("Mul"),
    "Div": _binary("Div"),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "Where": _where,
    "Less": _binary("Less", result="bool"),
    "LessOrEqual": _same("LessOrEqual", result="bool"),
    "Greater": _binary("Greater", result="bool"),
    "GreaterOrEqual": _same("GreaterOrEqual", result="bool"),
    "Equal": _binary("Equal", result="bool"),
    "Not": _same("Not"),
    "And": _binary("And"),
    "Or": _binary("Or"),
    "Xor": _binary("Xor"),
    "Cast": _cast,
    "CastLike": _cast_like,
    "Identity": _identity,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
