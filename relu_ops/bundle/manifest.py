"""The manifest of a bundle: which file is which operator's model or which target's image.

It says what made the bundle and what its images require of a machine, and repeats nothing that
stands in their tables. Nothing that runs an operator reads it. Knows JSON; never the file system.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from relu_ops import targets
from relu_ops.contract.semantics import SEMANTICS_VERSION
from relu_ops.errors import BundleError

FORMAT_VERSION = 2
"""Raised when the files of a bundle, or what stands in them, change; see docs/bundle.md."""

FILE = "manifest.json"

# The most operators that an image may hold, with names of 200 characters, take 3.7 MB. What a
# hostile one of this size parses to stays below 256 MiB.
_LARGEST = 2**22

_MODEL_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}\.onnx")
_NUMBERED = re.compile(r"operator-[0-9]+", re.IGNORECASE)


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """The base of every record in a manifest: no field unknown, none of a wrong type."""


class OperatorEntry(Record, frozen=True):
    """An operator, and the file of its model."""

    name: str
    model: str


class Requirements(Record, frozen=True):
    """What an image needs of a machine: features of the processor, as /proc/cpuinfo names them."""

    features: tuple[str, ...]


class ImageEntry(Record, frozen=True):
    """A target, and the file of its image."""

    file: str
    target: str
    requires: Requirements


class Manifest(Record, frozen=True):
    """What a bundle holds and what made it."""

    format: int
    semantics: int
    producer: dict[str, str]
    operators: tuple[OperatorEntry, ...]
    images: tuple[ImageEntry, ...]

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the targets that the bundle has an image for."""
        return tuple(image.target for image in self.images)

    @property
    def files(self) -> tuple[str, ...]:
        """The files that it names: models, then images."""
        return (*(entry.model for entry in self.operators), *(image.file for image in self.images))


def model_files(names: Sequence[str]) -> list[str]:
    """The files of the models of operators, by the operators' names.

    A name that can be one names its file. Two files never differ in their letters' case alone: not
    every file system would keep them apart.

    >>> model_files(["act1", "Act1", "a/b"])
    ['act1.onnx', 'operator-1.onnx', 'operator-2.onnx']
    """
    files: dict[str, str] = {}
    for number, name in enumerate(names):
        file = f"{name}.onnx"
        plain = _MODEL_FILE.fullmatch(file) and not _NUMBERED.fullmatch(name)
        if not plain or file.lower() in files:
            file = f"operator-{number}.onnx"
        files[file.lower()] = file
    return list(files.values())


def image_file(target: str) -> str:
    """The file of a target's image."""
    return f"{target}.image"


def encode(manifest: Manifest) -> bytes:
    """A manifest as it is written: the same bytes for the same content."""
    plain = msgspec.to_builtins(manifest)
    return (json.dumps(plain, indent=1, ensure_ascii=False, sort_keys=True) + "\n").encode()


def decode(encoded: bytes) -> Manifest:
    """Parse and check a manifest.

    Raises:
        BundleError: It is not a manifest of this format.
    """
    if len(encoded) > _LARGEST:
        raise BundleError(f"{FILE} has {len(encoded)} bytes; it must have at most {_LARGEST}")
    try:
        plain = json.loads(
            encoded.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_refuse
        )
        # What cannot be written again: numbers beyond float64, halves of surrogate pairs.
        json.dumps(plain, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{FILE} is not valid JSON: {_shortened(error)}") from error
    _check_format(plain)
    try:
        manifest = msgspec.convert(plain, Manifest, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise BundleError(f"{FILE} is not a manifest: {_shortened(error)}") from error
    _check_manifest(manifest)
    return manifest


def _check_format(plain: Any) -> None:
    """Say of another format what to do: its fields are others, and would be said to be wrong."""
    version = plain.get("format") if isinstance(plain, dict) else None
    if type(version) is not int or version == FORMAT_VERSION:
        return
    raise BundleError(
        f"{FILE} has format {_shortened(version)}; this relu_ops reads format {FORMAT_VERSION}",
        "the bundle was made by an older relu_ops: build it again"
        if version < FORMAT_VERSION
        else "the bundle was made by a newer relu_ops: upgrade with pip install --upgrade relu_ops",
    )


def _check_manifest(manifest: Manifest) -> None:
    """Check what the types do not say."""

    def check(holds: bool, what: str) -> None:
        if not holds:
            raise BundleError(f"{FILE}: {what}")

    check(
        1 <= manifest.semantics <= SEMANTICS_VERSION,
        f"semantics version {_shortened(manifest.semantics)} is not known",
    )
    check(bool(manifest.operators), "there must be an operator")
    check(bool(manifest.images), "there must be an image")
    names = [entry.name for entry in manifest.operators]
    check(len(set(names)) == len(names), "an operator is listed twice")
    for text in (*names, *(f for image in manifest.images for f in image.requires.features)):
        check(text.isprintable(), f"the name {_shortened(ascii(text))} is not printable")
    for entry in manifest.operators:
        named = _MODEL_FILE.fullmatch(entry.model) is not None
        check(named, f"{_shortened(repr(entry.model))} is not the name of a model's file")
    for image in manifest.images:
        known = targets.is_known(image.target)
        check(known, f"target {_shortened(image.target)} is not known")
        file = image_file(image.target)
        check(image.file == file, f"the file of {image.target} must be {file}")
    check(len(set(manifest.files)) == len(manifest.files), "a file is listed twice")


def _shortened(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:200] + "..."


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def printable(name: str) -> str:
    r"""A name that a bundle may hold: one with control characters is escaped.

    >>> print(printable("y:0"), printable("\x1b[2J"))
    y:0 \x1b[2J
    """
    return name if name.isprintable() else name.encode("unicode_escape").decode()
