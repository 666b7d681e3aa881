"""Reads a model, in whatever it is held, as a `ModelProto` of one's own with all its data."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import google.protobuf.json_format  # type: ignore[import-untyped]
import google.protobuf.text_format  # type: ignore[import-untyped]
import onnx
import onnx.parser

from relu_ops.compiler.frontend import external, files, limits, objects
from relu_ops.compiler.frontend.check import check_texts
from relu_ops.errors import ModelError

if TYPE_CHECKING:
    import onnx_ir
    import onnxscript

    Model: TypeAlias = (
        onnx.ModelProto | bytes | str | os.PathLike[str] | onnx_ir.Model | onnxscript.OnnxFunction
    )
else:
    Model: TypeAlias = Any


def read_model(model: Model) -> onnx.ModelProto:
    """Return the model as a `ModelProto` of its own, with external data loaded.

    Args:
        model: As for `import_model`.

    Raises:
        ModelError: It cannot be read, or is no model.
        ArgumentTypeError: It is nothing that holds a model.
    """
    proto, folders = _read(model)
    check_texts(proto)
    external.load(proto, folders)
    return proto


def _read(model: Any) -> tuple[onnx.ModelProto, list[Path]]:
    if isinstance(model, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
        return proto, []
    if isinstance(model, bytes | bytearray | memoryview):
        return _parsed(bytes(model), "the model"), []
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        return _from_file(path), external.folders_of(path)
    return objects.converted(model)


def _from_file(path: Path) -> onnx.ModelProto:
    content, form = files.read(path), files.text_form(path)
    return _parsed(content, str(path)) if form is None else _text(content, form, str(path))


def _parsed(content: bytes, name: str) -> onnx.ModelProto:
    head = content[: files.HEAD_BYTES]
    files.check_head(head, name)
    try:
        proto = onnx.ModelProto.FromString(content)
        if not proto.HasField("graph"):
            raise ValueError("it has no graph")
    except Exception as error:
        files.check_binary(head, name)
        raise ModelError(f"{name}: is not an ONNX model: {error}") from error
    return proto


# ---------------------------------------------------------------------------------------------
# Text forms. Not by onnx.serialization, which warns at each use and reads any depth.


def _text(content: bytes, form: str, name: str) -> onnx.ModelProto:
    try:
        proto: onnx.ModelProto = _READERS[form](content.decode("utf-8-sig"))
        if not proto.HasField("graph"):
            raise ValueError("it has no graph")
    except Exception as error:
        said = " ".join(str(error).split())
        raise ModelError(
            f"{name}: is not an ONNX model in the form {form}, which its suffix says: {said}"
        ) from error
    return proto


_TOKENS = re.compile(r'"(?:\\.|[^"\\])*"|#[^\n]*|=>|[{<(\[]|[}>)\]]', re.DOTALL)
"""Of the text of onnx.printer: strings and comments, which hold brackets, an arrow, brackets."""


_STEPS = {**dict.fromkeys("{<([", 1), **dict.fromkeys("}>)]", -1)}


def _parse_onnxtxt(text: str) -> onnx.ModelProto:
    """Hold the depth down first: onnx's own parser ends the process where its stack does."""
    depth = 0
    for token in _TOKENS.finditer(text):
        depth += _STEPS.get(token.group(), 0)
        if depth > limits.TEXT_DEPTH:
            raise ValueError(f"it is nested more than {limits.TEXT_DEPTH} deep")
    return onnx.parser.parse_model(text)


_READERS: dict[str, Callable[[str], onnx.ModelProto]] = {
    "onnxtxt": _parse_onnxtxt,
    "json": lambda text: google.protobuf.json_format.Parse(text, onnx.ModelProto()),
    "textproto": lambda text: google.protobuf.text_format.Parse(text, onnx.ModelProto()),
}
