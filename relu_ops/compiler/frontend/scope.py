"""Where a node stands: its domain and opset, normalised before they are compared; its name.

One domain has two names, "" and "ai.onnx". A list of opsets may name a domain twice: nodes bind to
the highest version. A node of a local function binds to that function's opsets, not to the model's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx
import onnx.defs
from onnx import AttributeProto, TensorProto

from relu_ops.contract.semantics import DTYPES, MINIMUM_OPSET, OPERATORS
from relu_ops.errors import ModelError, UnsupportedError

ELEMENT_TYPES: dict[int, str] = {row.onnx_type: name for name, row in DTYPES.items()}
SUPPORTED_DTYPES = f"supported dtypes: {', '.join(DTYPES)}"
SUPPORTED_OPERATORS = f"supported operators: {', '.join(OPERATORS)}"

_CONVERT = "convert it with onnx.version_converter.convert_version"


def normal_domain(domain: str) -> str:
    """The one name of a domain.

    >>> normal_domain("ai.onnx"), normal_domain(""), normal_domain("local")
    ('', '', 'local')
    """
    return "" if domain == "ai.onnx" else domain


def opsets_of(imports: Iterable[onnx.OperatorSetIdProto]) -> dict[str, int]:
    """The version of each domain: the highest, where one is listed twice."""
    opsets: dict[str, int] = {}
    for entry in imports:
        domain = normal_domain(entry.domain)
        opsets[domain] = max(entry.version, opsets.get(domain, entry.version))
    return opsets


@dataclass(frozen=True)
class Frame:
    """What nodes stand in: the model's graph, or one call of a local function.

    Attributes:
        opsets: The version of each domain there.
        attributes: What a reference to an attribute stands for: None for one that has no default
            and was not given. The graph itself has no such attributes.
        caller: The call, and where that stands; None for the graph.
        function: What is called, by its name.
    """

    opsets: Mapping[str, int]
    attributes: Mapping[str, AttributeProto | None] | None = None
    caller: tuple[onnx.NodeProto, Frame] | None = None
    function: str = ""

    def describe(self, node: onnx.NodeProto) -> str:
        """A node, for a message: its name, or what it makes, and the calls that lead to it."""
        outputs = [output for output in node.output if output]
        name = f"node {node.name!r}" if node.name else f"node of output {outputs}"
        if self.caller is None:
            return name
        call, outside = self.caller
        return f"{name} of function {self.function}, called by {outside.describe(call)}"

    def resolved(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """The node with its domain normalised, and what its attributes refer to in their place.

        An attribute that refers to one which was not given, and has no default, is absent.
        """
        if node.domain == "" and not any(a.ref_attr_name for a in node.attribute):
            return node  # most nodes: nothing to copy, whatever tensors they hold
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.domain = normal_domain(node.domain)
        del copy.attribute[:]
        for attribute in node.attribute:
            found = self._value_of(node, attribute) if attribute.ref_attr_name else attribute
            if found is not None:
                copy.attribute.append(found)
                copy.attribute[-1].name = attribute.name
        return copy

    def _value_of(self, node: onnx.NodeProto, reference: AttributeProto) -> AttributeProto | None:
        wanted = reference.ref_attr_name
        if self.attributes is None:
            raise ModelError(
                f"{self.describe(node)}: attribute {reference.name!r} refers to the attribute "
                f"{wanted!r} of a function, and the node stands in none"
            )
        if wanted not in self.attributes:  # not absent, but lost: onnx.printer drops the defaults
            raise ModelError(
                f"{self.describe(node)}: attribute {reference.name!r} refers to {wanted!r}, which "
                "the function does not declare and the call does not give",
                "declare it in the function: in attribute, or with a default in attribute_proto",
            )
        found = self.attributes[wanted]
        if found is not None and reference.type not in (AttributeProto.UNDEFINED, found.type):
            raise ModelError(
                f"{self.describe(node)}: attribute {reference.name!r} must be a "
                f"{_type_name(reference)}, and {wanted!r}, to which it refers, is a "
                f"{_type_name(found)}"
            )
        return found


def _type_name(attribute: AttributeProto) -> str:
    return AttributeProto.AttributeType.Name(attribute.type)


def check_scope(node: onnx.NodeProto, frame: Frame) -> None:
    """Refuse an operator that is not in `semantics.OPERATORS`, by its name."""
    if normal_domain(node.domain) == "" and node.op_type in OPERATORS:
        return
    domain = node.domain or "ai.onnx"
    version = frame.opsets.get(normal_domain(node.domain), "unknown")
    raise UnsupportedError(
        f"{frame.describe(node)}: operator {node.op_type} of domain {domain}, "
        f"version {version}, is not supported",
        SUPPORTED_OPERATORS,
    )


def check_opset(version: int, whose: str = "the model") -> None:
    """Refuse a version of ONNX's own operators that this onnx does not know."""
    newest = onnx.defs.onnx_opset_version()
    if not 1 <= version <= newest:
        raise UnsupportedError(
            f"{whose}'s opset is {version}; it must be {MINIMUM_OPSET} to {newest}",
            "install a newer onnx" if version > newest else _CONVERT,
        )


def schema_of(node: onnx.NodeProto, frame: Frame) -> onnx.defs.OpSchema:
    """The schema of a node; below the oldest opset, only if it was the same there already."""
    opset = frame.opsets.get("")
    if opset is None:
        raise ModelError(
            f"{frame.describe(node)}: no opset_import there names the domain ai.onnx, so that the "
            f"version of {node.op_type} is unknown",
            "add it, for example onnx.helper.make_opsetid('', 18)",
        )
    check_opset(opset, f"function {frame.function}" if frame.caller else "the model")
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError as error:
        raise ModelError(f"{frame.describe(node)}: opset {opset} has no {node.op_type}") from error
    if opset < MINIMUM_OPSET:
        _check_unchanged(node, frame, schema, opset)
    return schema


def _check_unchanged(
    node: onnx.NodeProto, frame: Frame, schema: onnx.defs.OpSchema, opset: int
) -> None:
    oldest = onnx.defs.get_schema(node.op_type, MINIMUM_OPSET, "")
    if oldest.since_version != schema.since_version:
        raise UnsupportedError(
            f"{frame.describe(node)}: {node.op_type} of opset {opset}; the model's opset must be "
            f"{MINIMUM_OPSET} to {onnx.defs.onnx_opset_version()}",
            _CONVERT,
        )


def element_type_name(element_type: int) -> str:
    """ONNX's name of an element type, in lower case; its number where it has none."""
    try:
        return TensorProto.DataType.Name(element_type).lower()
    except ValueError:
        return f"number {element_type}"


def written_shape(tensor: onnx.TypeProto.Tensor) -> tuple[int | str | None, ...] | None:
    """The dimensions of a declaration as they are written; None where it has no shape."""
    return tuple(map(_dim, tensor.shape.dim)) if tensor.HasField("shape") else None


def _dim(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None


def check_tensor(tensor: TensorProto) -> None:
    """Refuse a tensor whose dtype is out of scope."""
    if tensor.data_type not in ELEMENT_TYPES:
        kind = element_type_name(tensor.data_type)
        raise UnsupportedError(f"tensor {tensor.name!r} has dtype {kind}", SUPPORTED_DTYPES)
