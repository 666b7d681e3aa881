"""Describes a bundle or a model, and shows what it is compiled to.

A description is plain data, for `json.dumps`; `render` writes it for people. Reads a bundle with
every digest checked and runs none of its code. Nodes need onnx, sources need TVM and machine code
needs capstone; without them a bundle still says what files, operators and targets it has.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from relu_ops import targets
from relu_ops.bundle import manifest as manifests
from relu_ops.bundle import store as bundles
from relu_ops.bundle.manifest import Manifest, printable
from relu_ops.bundle.store import Bundle
from relu_ops.compiler.cpu.disassembly import disassembly
from relu_ops.contract.shapes import in_brackets
from relu_ops.errors import (
    ArgumentError,
    MissingDependencyError,
    TargetError,
    UnsupportedError,
    require,
)
from relu_ops.targets import Target

if TYPE_CHECKING:
    import onnx

    from relu_ops.compiler.frontend import Model

_SHOWN_VALUES = 8
"""A tensor with more values than this is shown by its dtype and shape alone."""

_PURPOSE = "relu_ops.report.inspect"


def describe(path_or_model: Model | Bundle) -> dict[str, Any]:
    """Describe a bundle or an ONNX model.

    Args:
        path_or_model: A bundle's directory, a `Bundle` (as of `op.bundle`), or a model, as for
            `relu_ops.compile`.

    Returns:
        Plain data. For both: "kind" ("bundle" or "model"), "path", "operators" (each with "name",
        "inputs", "outputs", and "graph", which is None where onnx is not installed), "targets"
        with whether each runs on this machine, "size" in bytes and "sha256", a bundle's digest.
        For a bundle also its versions, files and producer; for a model "in_scope", and "why_not"
        where it is False.

    Raises:
        ArgumentError: There is no such file or directory.
        BundleError: The bundle is damaged.
        ModelError: The model is not valid ONNX. One that is, and out of scope, is described.
        MissingDependencyError: A model is asked for, and onnx is not installed.
    """
    held = _bundle_at(path_or_model)
    return _describe_model(path_or_model) if held is None else _describe_bundle(held)


def source(
    path_or_model: Model | Bundle,
    target: str | None = None,
    kind: str = "tir",
    name: str | None = None,
) -> str:
    """Show what an operator is compiled to: by this installation, or in a bundle.

    Args:
        path_or_model: As for `describe`.
        target: A target by name; by default "native", the best that this machine runs, for a
            bundle of those that it has.
        kind: One of the `forms` of the target's backend. "assembly" of a bundle is what its image
            holds; everything else is made anew of the model.
        name: Which operator of a bundle; None where it has one.

    Returns:
        The text.

    Raises:
        ArgumentError: The kind or name is another, or there is no such file or directory.
        BundleError: The bundle is damaged.
        ModelError: The model is not valid ONNX; as `UnsupportedError` if it is, but out of scope.
        TargetError: The target is not known.
        MissingDependencyError: onnx, TVM or capstone is not installed.
    """
    held = _bundle_at(path_or_model)
    chosen = _best_target(held) if target in (None, "native") else targets.resolve(target)
    if kind not in chosen.backend.forms:
        kinds = ", ".join(chosen.backend.forms)
        raise ArgumentError(
            f"source: kind must be one of {kinds} for {chosen} (not {kind!r})",
            "tir is TVM's loops, assembly the machine code that ships",
        )
    if held is None and name is not None:
        raise ArgumentError(
            f"source: name chooses an operator of a bundle, and a model is one (not {name!r})",
            "leave it out",
        )
    operator = None if held is None else held.operator_name(name)
    if kind == "assembly":
        require("capstone", "inspect", f"{_PURPOSE}.source of machine code")
    if held and operator and kind == "assembly" and chosen.name in held.manifest.targets:
        return disassembly(held.image(chosen.name), operator)
    for package in ("onnx", "tvm"):
        require(package, "compile", f"{_PURPOSE}.source")
    from relu_ops.compiler import backends, frontend, image

    graph = frontend.import_model(held.model(operator) if held and operator else path_or_model)
    if kind == "assembly":
        return disassembly(image.build([(graph.name, graph)], chosen), graph.name)
    return getattr(backends.of(chosen).sources(graph, chosen), kind)


def _best_target(held: Bundle | None) -> Target:
    """What a machine would run of a bundle, or its first target where that is nothing."""
    if held is None:
        return targets.native()
    machine = targets.this_machine()
    try:
        return targets.parse(held.handle.choose(machine.architecture, machine.flags))
    except TargetError:
        return targets.parse(held.manifest.targets[0])


def rebuild_check(path_or_bundle: str | os.PathLike[str] | Bundle) -> dict[str, Any]:
    """Build a bundle's own models again, for the same targets, and compare every byte.

    Args:
        path_or_bundle: A bundle's directory, or a `Bundle`.

    Returns:
        Plain data: "path", "identical", "files" (models and images, each with "path", "identical",
        "size", "rebuilt_size", and how many bytes are "different" from which "first_difference"
        on), "manifest" (the entries, beside the producer, that differ) and "tools" (those whose
        version "in_bundle" is not the one "here"). Images can only be expected to be identical
        where "tools" is empty.

    Raises:
        ArgumentError: There is no such directory, or it is a model.
        BundleError: The bundle is damaged.
        ModelError: A model of it is not valid ONNX; as `UnsupportedError` if it is, but out of
            scope.
        BuildError: A target cannot be built for, or TVM made something unexpected.
        MissingDependencyError: onnx or TVM is not installed.
    """
    held = _bundle_at(path_or_bundle)
    if held is None:
        raise ArgumentError(
            f"{path_or_bundle}: is no bundle, so there is nothing to compare with",
            "pass the directory of a bundle",
        )
    for package in ("onnx", "tvm"):
        require(package, "compile", f"{_PURPOSE}.rebuild_check")
    from relu_ops import compiler

    contents = compiler.make(_models(held), held.manifest.targets)
    rebuilt = manifests.decode(contents[manifests.FILE])
    files = [
        _comparison(name, held.contents[name], contents.get(name, b""))
        for name in held.manifest.files
    ]
    fields = _differing_fields(held.manifest, rebuilt)
    return {
        "path": str(held.path),
        "identical": all(file["identical"] for file in files) and not fields,
        "files": files,
        "manifest": fields,
        "tools": _differing_tools(held.manifest.producer, rebuilt.producer),
    }


def _models(held: Bundle) -> Model | dict[str, Model]:
    """A bundle's models, as `compiler.make` takes them to give the operators the same names."""
    from relu_ops.compiler import frontend

    models = {entry.name: held.contents[entry.model] for entry in held.manifest.operators}
    (name, model), *others = models.items()
    if others or printable(frontend.read_model(model).graph.name) != name:
        return models
    return model


def _comparison(name: str, held: bytes, rebuilt: bytes) -> dict[str, Any]:
    pairs = enumerate(zip(held, rebuilt, strict=False))
    places = [at for at, (a, b) in pairs if a != b] if held != rebuilt else []
    shorter, longer = sorted((len(held), len(rebuilt)))
    first = places[0] if places else shorter
    return {
        "path": name,
        "identical": held == rebuilt,
        "size": len(held),
        "rebuilt_size": len(rebuilt),
        "different": len(places) + longer - shorter,
        "first_difference": None if held == rebuilt else first,
    }


def _differing_fields(held: Manifest, rebuilt: Manifest) -> list[str]:
    """Entries of a manifest that differ. Files are compared, and the producer is shown."""
    names = [name for name in held.__struct_fields__ if name != "producer"]
    return [name for name in names if getattr(held, name) != getattr(rebuilt, name)]


def _differing_tools(held: Mapping[str, str], here: Mapping[str, str]) -> list[dict[str, str]]:
    return [
        {"name": name, "in_bundle": held.get(name, "absent"), "here": here.get(name, "absent")}
        for name in sorted({*held, *here})
        if held.get(name, "absent") != here.get(name, "absent")
    ]


def render_rebuild(report: Mapping[str, Any]) -> str:
    """Write what `rebuild_check` returned for people."""
    lines = [f"{report['path']}: {'identical' if report['identical'] else 'different'}"]
    lines += _table([(file["path"], _show_comparison(file)) for file in report["files"]])
    if report["manifest"]:
        lines += _table([("manifest.json", f"differs in {', '.join(report['manifest'])}")])
    if report["tools"]:
        reason = "" if report["identical"] else ", which may be the reason"
        lines += ["", f"made with other versions than this machine has{reason}"]
        lines += _table(
            [
                (t["name"], f"bundle: {t['in_bundle']}", f"here: {t['here']}")
                for t in report["tools"]
            ]
        )
    return "\n".join(_clean(line).rstrip() for line in lines)


def _show_comparison(file: Mapping[str, Any]) -> str:
    if file["identical"]:
        return f"identical, {_bytes(file['size'])}"
    sizes = f"{file['size']} bytes, {file['rebuilt_size']} rebuilt"
    return f"{file['different']} bytes differ from offset {file['first_difference']} on ({sizes})"


def _bundle_at(path_or_model: Model | Bundle) -> Bundle | None:
    """The bundle, or None where a model is meant."""
    if isinstance(path_or_model, Bundle):
        return path_or_model
    if not isinstance(path_or_model, str | os.PathLike):
        return None
    if os.path.isdir(path_or_model):
        return bundles.read(path_or_model)
    if not os.path.isfile(path_or_model):
        raise ArgumentError(
            f"{os.fspath(path_or_model)}: there is no such file or directory",
            "pass the directory of a bundle or an .onnx file",
        )
    return None


# ---------------------------------------------------------------------------------------------
# Bundles


def _describe_bundle(held: Bundle) -> dict[str, Any]:
    manifest = held.manifest
    return {
        "kind": "bundle",
        "path": str(held.path),
        "operators": [_held_operator(held, entry.name) for entry in manifest.operators],
        "sha256": held.digest,
        "size": sum(map(len, held.contents.values())),
        "format": manifest.format,
        "semantics": manifest.semantics,
        "targets": [
            {
                **_target(targets.parse(image.target)),
                "size": len(held.contents[image.file]),
                "requires": list(image.requires.features),
            }
            for image in manifest.images
        ],
        "files": [
            {"path": path, "size": len(content), "sha256": bundles.digest_of(content)}
            for path, content in held.contents.items()
        ],
        "producer": dict(manifest.producer),
    }


def _held_operator(held: Bundle, name: str) -> dict[str, Any]:
    """An operator of a bundle: its signature as the image has it, or else as the model has it."""
    try:
        require("onnx", "compile", "showing the graph")
    except MissingDependencyError as error:
        described = {"inputs": None, "outputs": None, "graph": None, "graph_missing": str(error)}
    else:
        from relu_ops.compiler import frontend

        described = {**_operator(frontend.read_model(held.model(name))), "graph_missing": None}
    return {**described, **_signature(held, name), "name": name}


def _signature(held: Bundle, name: str) -> dict[str, Any]:
    """Inputs and outputs, by an image that can be mapped here; none of its code runs."""
    from relu_ops.runtime.operator import Operator

    try:
        operator = Operator(held.handle, name, None, held)
    except TargetError:
        return {}
    return {
        "inputs": [_tensor(*tensor) for tensor in operator.inputs],
        "outputs": [_tensor(*tensor) for tensor in operator.outputs],
    }


def _target(target: Target) -> dict[str, Any]:
    reason = targets.why_not(target, targets.this_machine())
    return {"name": target.name, "runs_here": reason is None, "why_not": reason}


def _tensor(name: str, dtype: str, shape: Sequence[Any] | None) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": None if shape is None else list(shape)}


# ---------------------------------------------------------------------------------------------
# Models


def _describe_model(model: Model) -> dict[str, Any]:
    require("onnx", "compile", f"{_PURPOSE}.describe of a model")
    from relu_ops.compiler import frontend

    proto = frontend.read_model(model)
    content = proto.SerializeToString(deterministic=True)
    try:
        frontend.import_model(proto)
        why_not = None
    except UnsupportedError as error:
        why_not = str(error)
    path = Path(model) if isinstance(model, str | os.PathLike) else None
    return {
        "kind": "model",
        "path": None if path is None else str(path),
        "operators": [_operator(proto)],
        "sha256": bundles.digest_of(content if path is None else path.read_bytes()),
        "size": len(content) if path is None else path.stat().st_size,
        "in_scope": why_not is None,
        "why_not": why_not,
        "targets": [_target(targets.parse(name)) for name in targets.CPU_TARGETS],
        "producer": _producer(proto),
    }


def _operator(proto: onnx.ModelProto) -> dict[str, Any]:
    return {
        "name": proto.graph.name,
        "inputs": [_value(value) for value in _true_inputs(proto.graph)],
        "outputs": [_value(value) for value in proto.graph.output],
        "graph": _graph(proto),
    }


def _true_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Before IR version 4 every initializer stood among the inputs too."""
    constants = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in constants]


def _producer(proto: onnx.ModelProto) -> dict[str, str]:
    name = proto.producer_name
    return {name: proto.producer_version} if name else {}


def _value(value: onnx.ValueInfoProto) -> dict[str, Any]:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return _tensor(value.name, kind or "unknown", None)
    tensor = value.type.tensor_type
    shape = [_dim(dim) for dim in tensor.shape.dim] if tensor.HasField("shape") else None
    return _tensor(value.name, _dtype(tensor.elem_type), shape)


def _dim(dim: Any) -> int | str | None:
    if dim.HasField("dim_value"):
        return int(dim.dim_value)
    return str(dim.dim_param) or None


def _dtype(element_type: int) -> str:
    from onnx import TensorProto

    if element_type not in TensorProto.DataType.values():
        return f"type {element_type}"
    name: str = TensorProto.DataType.Name(element_type).lower()
    return {"float": "float32", "double": "float64"}.get(name, name)


def _graph(proto: onnx.ModelProto) -> dict[str, Any]:
    return {
        "name": proto.graph.name,
        "doc": proto.graph.doc_string or proto.doc_string,
        "ir_version": proto.ir_version,
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        "metadata": {entry.key: entry.value for entry in proto.metadata_props},
        "nodes": [_node(node) for node in proto.graph.node],
        "constants": [_constant(tensor) for tensor in proto.graph.initializer],
    }


def _node(node: onnx.NodeProto) -> dict[str, Any]:
    return {
        "name": node.name,
        "operator": node.op_type,
        "domain": node.domain or "ai.onnx",
        "inputs": list(node.input),
        "outputs": list(node.output),
        "attributes": {attribute.name: _attribute(attribute) for attribute in node.attribute},
    }


def _constant(tensor: onnx.TensorProto) -> dict[str, Any]:
    shape = [int(dim) for dim in tensor.dims]
    described = _tensor(tensor.name, _dtype(tensor.data_type), shape)
    if math.prod(shape) <= _SHOWN_VALUES:
        described["values"] = _values(tensor)
    return described


def _values(tensor: onnx.TensorProto) -> list[Any] | None:
    from onnx import numpy_helper

    try:
        return [_plain(element) for element in numpy_helper.to_array(tensor).reshape(-1)]
    except (ValueError, TypeError):  # a dtype that NumPy or JSON does not have
        return None


def _attribute(attribute: onnx.AttributeProto) -> Any:
    """An attribute as plain data: a graph or the like by its kind alone."""
    from onnx import AttributeProto, helper

    if attribute.type == AttributeProto.TENSOR:
        return _constant(attribute.t)
    if attribute.type not in _PLAIN_ATTRIBUTES:
        return f"<{AttributeProto.AttributeType.Name(attribute.type).lower()}>"
    value = helper.get_attribute_value(attribute)
    if _is_float(attribute):
        import numpy as np

        value = [np.float32(v) for v in value] if _is_list(value) else np.float32(value)
    return [_plain(v) for v in value] if _is_list(value) else _plain(value)


# onnx.AttributeProto's FLOAT, INT, STRING, FLOATS, INTS and STRINGS, whose numbers ONNX fixes.
_PLAIN_ATTRIBUTES = (1, 2, 3, 6, 7, 8)


def _is_float(attribute: onnx.AttributeProto) -> bool:
    return attribute.type in (1, 6)


def _is_list(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, bytes | str)


def _plain(value: Any) -> Any:
    """A number or string as JSON has it; a float as it is written shortest in its own type."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if isinstance(value, str | bool | int):
        return value
    if getattr(value, "dtype", None) is not None and value.dtype.kind in "biu":
        return value.item()
    number = float(str(value))
    return number if math.isfinite(number) else str(number)


# ---------------------------------------------------------------------------------------------
# For people


def render(description: Mapping[str, Any]) -> str:
    """Write a description for people.

    Args:
        description: What `describe` returned.

    Returns:
        Lines without one at the end. Control characters in names are escaped.
    """
    lines = _headline(description)
    for operator in description["operators"]:
        lines += ["", *_show_operator(operator, alone=len(description["operators"]) == 1)]
    lines += ["", *_show_targets(description)]
    if description["kind"] == "bundle":
        lines += ["", "files", *_table(_file_rows(description))]
    if description["producer"]:
        rows = [(name, version) for name, version in description["producer"].items()]
        lines += ["", "made by", *_table(rows)]
    return "\n".join(_clean(line).rstrip() for line in lines)


def _headline(description: Mapping[str, Any]) -> list[str]:
    rows = [("size", _bytes(description["size"])), ("sha256", description["sha256"])]
    if description["kind"] == "bundle":
        rows.append(("versions", "format {format}, semantics {semantics}".format(**description)))
    else:
        rows.append(("in scope", "yes" if description["in_scope"] else "no"))
    names = [operator["name"] or "without a name" for operator in description["operators"]]
    what = names[0] if len(names) == 1 else f"of {len(names)} operators"
    title = f"{description['kind']} {what}"
    if description["path"] is not None:
        title += f" in {description['path']}"
    lines = [title, *_table(rows)]
    if description.get("why_not"):
        lines += [f"    {line}" for line in description["why_not"].splitlines()]
    return lines


def _show_operator(operator: Mapping[str, Any], *, alone: bool) -> list[str]:
    lines = [] if alone else [f"operator {operator['name']}", ""]
    for section in ("inputs", "outputs"):
        tensors = operator[section]
        shown = ["cannot be told here"] if tensors is None else map(_show_tensor, tensors)
        lines += [section, *(f"  {line}" for line in shown), ""]
    return [*lines, *_show_graph(operator)]


def _show_tensor(tensor: Mapping[str, Any]) -> str:
    return f"{tensor['name']}: {tensor['dtype']}{in_brackets(tensor['shape']) or '[...]'}"


def _show_graph(operator: Mapping[str, Any]) -> list[str]:
    graph = operator["graph"]
    if graph is None:
        return ["graph", *(f"  {line}" for line in operator["graph_missing"].splitlines())]
    opsets = ", ".join(f"{domain} {version}" for domain, version in graph["opsets"].items())
    heading = f"graph (opset {opsets}, IR version {graph['ir_version']})"
    doc = [f"  # {line}" for line in graph["doc"].splitlines()]
    constants = [f"  {_show_constant(constant)}" for constant in graph["constants"]]
    return [heading, *doc, *constants, *(f"  {_show_node(node)}" for node in graph["nodes"])]


def _show_constant(constant: Mapping[str, Any]) -> str:
    values = constant.get("values")
    shown = "" if values is None else f" = {values[0] if not constant['shape'] else values}"
    return f"{constant['name']}: {constant['dtype']}{in_brackets(constant['shape'])}{shown}"


def _show_node(node: Mapping[str, Any]) -> str:
    domain = "" if node["domain"] == "ai.onnx" else f"{node['domain']}."
    arguments = [name or "-" for name in node["inputs"]]
    arguments += [f"{name}={_show_value(value)}" for name, value in node["attributes"].items()]
    return f"{', '.join(node['outputs'])} = {domain}{node['operator']}({', '.join(arguments)})"


def _show_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return _show_constant(value).removeprefix(f"{value['name']}: ")
    return str(value)


def _show_targets(description: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            target["name"],
            *([_bytes(target["size"])] if "size" in target else []),
            _show_where(target),
        )
        for target in description["targets"]
    ]
    heading = "targets" if description["kind"] == "bundle" else "targets it can be built for"
    return [heading, *_table(rows)]


def _show_where(target: Mapping[str, Any]) -> str:
    """Where a target runs; of CUDA, which drivers and devices an image is for."""
    devices = targets.parse(target["name"]).backend.devices(target.get("requires", ()))
    if devices is not None:
        return devices
    return "runs here" if target["runs_here"] else f"not here: {target['why_not']}"


def _file_rows(description: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (entry["path"], _bytes(entry["size"]), f"sha256 {entry['sha256']}")
        for entry in description["files"]
    ]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows with their columns aligned, indented by two."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]


def _bytes(count: int) -> str:
    """A number of bytes, in KB of 1000 from 10,000 on.

    >>> _bytes(9999), _bytes(12345)
    ('9999 bytes', '12.3 KB')
    """
    return f"{count} bytes" if count < 10_000 else f"{count / 1000:.1f} KB"


def _clean(line: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
