"""What a file is: named by its size and its first bytes, before it is read whole.

People hand over what they have: a pointer of git-lfs, the page around a download, an archive, a
model of another library. Each is named for what it is, with what to do.
"""

from __future__ import annotations

import difflib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from relu_ops.compiler.frontend import limits
from relu_ops.errors import ModelError

HEAD_BYTES = 1024
"""How much of a file is looked at before the rest is read."""
_CHUNK_BYTES = 2**24

_UNPACK = "unpack it, and pass the .onnx file that is in it"
_EXPORT = "export the model to ONNX with the library that made it"


class _Kind(NamedTuple):
    """A kind of file: the bytes that it has at an offset, what it is, and what to do."""

    magic: bytes
    is_a: str
    hint: str
    offset: int = 0


_KINDS = (
    _Kind(
        b"version https://git-lfs.github.com/",
        "a git-lfs pointer, which stands for a file that was not fetched",
        "run `git lfs pull` in its repository, or download the file itself",
    ),
    _Kind(b"\x1f\x8b", "compressed with gzip", "decompress it, for example with gunzip"),
    _Kind(b"BZh", "compressed with bzip2", "decompress it, for example with bunzip2"),
    _Kind(b"\xfd7zXZ\0", "compressed with xz", "decompress it, for example with unxz"),
    _Kind(b"\x28\xb5\x2f\xfd", "compressed with zstd", "decompress it, for example with unzstd"),
    _Kind(b"\x04\x22\x4d\x18", "compressed with lz4", "decompress it, for example with unlz4"),
    _Kind(b"PK\x03\x04", "a zip archive (as the .pt files of torch are)", _UNPACK + "; " + _EXPORT),
    _Kind(b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    _Kind(b"Rar!\x1a\x07", "a rar archive", _UNPACK),
    _Kind(b"ustar", "a tar archive", _UNPACK, 257),
    _Kind(b"ORTM", "a model in onnxruntime's own format (.ort)", "pass its .onnx file", 4),
    _Kind(b"TFL3", "a TensorFlow Lite model", "convert it, for example with tf2onnx", 4),
    _Kind(b"\x89HDF\r\n\x1a\n", "an HDF5 file (as Keras writes)", "convert it with tf2onnx"),
    _Kind(b"\x93NUMPY", "a NumPy array", "pass a model; an array is what an operator takes"),
    _Kind(b"\x7fELF", "an ELF program or library", "pass a model"),
    _Kind(b"%PDF", "a PDF document", "pass a model"),
    _Kind(b"\x89PNG\r\n\x1a\n", "a PNG image", "pass a model"),
    *(_Kind(b"\x80" + bytes([k]), "a pickle (as torch saves)", _EXPORT) for k in range(2, 6)),
)
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<!--")
_FETCH = "download the file itself: this is what a server sent instead of it"

_TEXTS = {
    ".onnxtxt": "onnxtxt",
    ".onnxtext": "onnxtxt",
    ".json": "json",
    ".onnxjson": "json",
    ".textproto": "textproto",
    ".txtpb": "textproto",
    ".pbtxt": "textproto",
    ".prototxt": "textproto",
}
"""The text forms that onnx writes, by the suffixes by which it knows them."""


def text_form(path: Path) -> str | None:
    """The text form in which a file of this name is, or None."""
    return _TEXTS.get(path.suffix.lower())


def check_head(head: bytes, name: str) -> None:
    """Refuse what cannot be an ONNX model, by its first bytes.

    Args:
        head: Up to `HEAD_BYTES`, from the beginning.
        name: How a message calls it.

    Raises:
        ModelError: It is something else; the message says what.
    """
    if not head:
        raise ModelError(f"{name}: is not an ONNX model: it is empty", "export or copy it again")
    for kind in _KINDS:
        if head[kind.offset :].startswith(kind.magic):
            raise ModelError(f"{name}: is not an ONNX model: it is {kind.is_a}", kind.hint)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_PAGES):
        raise ModelError(f"{name}: is not an ONNX model: it is an HTML page", _FETCH)
    if text.startswith(b"<?xml"):
        raise ModelError(f"{name}: is not an ONNX model: it is XML", f"{_FETCH}; or, {_EXPORT}")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**27:
        raise ModelError(
            f"{name}: is not an ONNX model: it is a safetensors file, weights without a graph",
            _EXPORT,
        )


def check_binary(head: bytes, name: str) -> None:
    """Refuse text where a binary model is wanted, and say how its form is told."""
    text = head.removeprefix(b"\xef\xbb\xbf")
    if not _is_text(text):
        return
    start = text.lstrip()[:1]
    form, suffix = (
        ("JSON", ".json")
        if start == b"{"
        else ("the text of onnx.printer", ".onnxtxt")
        if start == b"<"
        else ("a protobuf's text form", ".textproto")
    )
    raise ModelError(
        f"{name}: is not an ONNX model in binary form: it is text",
        f"if it is a model in {form}, give the file the suffix {suffix}; others are "
        f"{', '.join(s for s in _TEXTS if s != suffix)}",
    )


def _is_text(head: bytes) -> bool:
    """True for printable text. A protobuf begins with a tag and a number below a space."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # not the end that was cut
            return False
        text = head[: error.start].decode()
    return all(c.isprintable() or c in "\t\r\n\f" for c in text)


def read(path: Path) -> bytes:
    """Read a file that may be a model.

    Raises:
        ModelError: It cannot be read, or is no model by its size or first bytes.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            bound = limits.FILE_BYTES if text_form(path) is None else limits.TEXT_BYTES
            head = file.read(HEAD_BYTES)
            check_head(head, str(path))
            if stat.S_ISREG(status.st_mode):
                _check_size(path, status.st_size, bound)
            content = b"".join([head, *_chunks(file, bound)])
    except IsADirectoryError as error:
        raise _directory(path) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, ModelError):
            raise
        hint = _advice(str(path)) or _nearby(path, error)
        raise ModelError(f"{path}: cannot be read: {reason}", hint) from error
    _check_size(path, len(content), bound)
    return content


def _chunks(file: BinaryIO, bound: int) -> Iterator[bytes]:
    """The rest of a file or a pipe, and no more than what shows that it is too long."""
    while bound >= 0 and (chunk := file.read(_CHUNK_BYTES)):
        bound -= len(chunk)
        yield chunk


def _check_size(path: Path, size: int, bound: int) -> None:
    if size > bound:
        hint = "keep its weights beside it: onnx.save(model, path, save_as_external_data=True)"
        if bound == limits.TEXT_BYTES:
            hint = "convert it: onnx.save(onnx.load(path), 'model.onnx')"
        raise ModelError(f"{path}: has {size} bytes; a model must have at most {bound}", hint)


def _advice(path: str) -> str | None:
    if "\n" in path or path.lstrip().startswith("<"):
        return "text of a model is read by onnx.parser.parse_model, and its result taken here"
    if path.startswith("~"):
        return "~ stands for the home directory in a shell only: os.path.expanduser(path)"
    return None


def _nearby(path: Path, error: Exception) -> str | None:
    """What a missing file may be a misspelling of."""
    if not isinstance(error, FileNotFoundError):
        return None
    if not path.parent.is_dir():
        return f"there is no directory {path.parent}"
    beside = [entry.name for entry in path.parent.glob("*.onnx")]
    near = difflib.get_close_matches(path.name, beside, 1, 0.8)
    if near:
        return f"{path.parent / near[0]} is there"
    return "pass the path of an .onnx file; a relative one begins in the current directory"


def _directory(path: Path) -> ModelError:
    """What a directory is, and which file of it to pass."""
    if any((path / name).is_file() for name in ("manifest.json", "SHA256SUMS")):
        return ModelError(
            f"{path}: is a bundle, not a model", "a bundle is loaded with relu_ops.load"
        )
    if (path / "saved_model.pb").is_file():
        return ModelError(
            f"{path}: is a TensorFlow SavedModel, not an ONNX model", "convert it with tf2onnx"
        )
    inside = sorted(entry.name for entry in path.glob("*.onnx"))[:3]
    hint = f"pass a file, for example {path / inside[0]}" if inside else "pass the .onnx file"
    return ModelError(f"{path}: is a directory, not a model", hint)
