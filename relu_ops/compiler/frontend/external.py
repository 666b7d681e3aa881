"""External data: tensors that keep their elements in a file beside the model.

Read only from inside the model's folder, or, where the model itself is a link into a store (the
hub's cache has `snapshots/` of links into `blobs/`), from the folder that the link leads to.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
from onnx import TensorProto

from relu_ops.compiler.frontend import limits
from relu_ops.compiler.frontend.scope import ELEMENT_TYPES, check_tensor
from relu_ops.contract import ir
from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import ModelError, UnsupportedError

_COPY = "copy the model and its data into one folder, as files, for example with cp -L"


def folders_of(path: Path) -> list[Path]:
    """Where the data of a model may lie: beside it, and beside what it is a link to."""
    return list(dict.fromkeys([path.parent.resolve(), path.resolve().parent]))


def tensors_of(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    """The constants of the model and of its local functions."""
    yield from proto.graph.initializer
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        for node in nodes:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    yield attribute.t
                yield from attribute.tensors
    for function in proto.functions:
        for default in function.attribute_proto:
            if default.type == onnx.AttributeProto.TENSOR:
                yield default.t
            yield from default.tensors


def _mentioned(graph: onnx.GraphProto) -> Iterator[str]:
    """The names that nodes read, those of graphs inside them too, and the outputs."""
    yield from (info.name for info in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _mentioned(inner)


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Drop constants in files that nothing mentions: whatever they are, they stop no model."""
    mentioned = set(_mentioned(graph))
    unused = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL and tensor.name not in mentioned
    }
    for entries in (graph.initializer, graph.input):  # before IR 4 they are inputs too
        kept = [entry for entry in entries if entry.name not in unused]
        if len(kept) < len(entries):
            copies = [type(entry).FromString(entry.SerializeToString()) for entry in kept]
            del entries[:]
            entries.extend(copies)


def load(proto: onnx.ModelProto, folders: Sequence[Path]) -> None:
    """Read the external data of a model into it."""
    _drop_unused(proto.graph)
    total = 0
    for tensor in tensors_of(proto):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        if not folders:
            raise ModelError(
                f"tensor {tensor.name!r} keeps its data in an external file, and the model was "
                "not given as a path",
                "pass the path of the .onnx file, or load it with onnx.load first",
            )
        check_tensor(tensor)
        size = ir.size(tensor.dims) * DTYPES[ELEMENT_TYPES[tensor.data_type]].itemsize
        total += max(size, 0)
        if total > limits.EXTERNAL_BYTES:
            raise UnsupportedError(
                f"the model's external data has more than {limits.EXTERNAL_BYTES} bytes"
            )
        _load_tensor(tensor, folders, size)


def _load_tensor(tensor: TensorProto, folders: Sequence[Path], size: int) -> None:
    """Load `size` bytes: no more than the tensor's shape needs, however long the file is."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    try:
        path = _file(location, folders)
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
        if offset < 0 or length != size or size < 0:
            raise ValueError(f"offset {offset} or length {length} is wrong for {size} bytes")
        if path.stat().st_size < offset + size:
            raise ValueError(f"{location!r} has fewer than {offset} + {size} bytes")
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
    except (ValueError, OSError) as error:
        hint = _COPY if isinstance(error, _LinkError) else None
        raise ModelError(f"tensor {tensor.name!r}: external data: {error}", hint) from error
    tensor.raw_data = content
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]


class _LinkError(ValueError):
    """A link leads outside the folders."""


def _file(location: str, folders: Sequence[Path]) -> Path:
    """The file that a location names, by no way out of the folders."""
    outside = f"{location!r} lies outside the model's folder"
    reached = [(folder / location).resolve() for folder in folders]
    inside = [path for path in reached if any(path.is_relative_to(f) for f in folders)]
    if not location or Path(location).is_absolute():
        raise ValueError(outside)
    for path in inside:
        if path.is_file():
            return path
    if len(inside) == len(reached):
        raise ValueError(f"{location!r} is not a file")
    lexically = Path(os.path.normpath(folders[0] / location))
    raise _LinkError(outside) if lexically.is_relative_to(folders[0]) else ValueError(outside)
