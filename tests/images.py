"""Images written by hand, from image.h alone: what the tests of the reader damage.

A second writer, apart from the compiler's: it takes what the fields say, lays it out, and knows
where each field lies, so that a test can name the one that it makes lie.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TEXT, SEEN = "text", "seen"

STRUCTURES: dict[str, dict[str, Any]] = {
    "header": {
        "magic": "8s",
        "format": "I",
        "semantics": "I",
        "size": "Q",
        "machine": "I",
        "reserved": "I",
        "target": TEXT,
        "requires": [TEXT],
        "operators": ["operator"],
        "code_at": "I",
        "code_size": "I",
    },
    "operator": {
        "name": TEXT,
        "inputs": ["tensor"],
        "outputs": ["tensor"],
        "output_terms": ["terms"],
        "requirements": ["requirement"],
        "leaves": ["leaf"],
        "itemsizes": ["B"],
        "kernels": ["kernel"],
        "symbols": [TEXT],
        "vector_bytes": "I",
        "reserved": "I",
    },
    "tensor": {
        "name": TEXT,
        "code": "B",
        "bits": "B",
        "rank": "h",
        "reserved": "I",
        "dims": ["q"],
    },
    "term": {
        "block": "q",
        "trailing": "i",
        "axis": "i",
        "input": "i",
        "reserved": "I",
        "dims": ["q"],
    },
    "terms": {"terms": ["term"]},
    "requirement": {"what": TEXT, "terms": ["term"], "into": ["term"]},
    "leaf": {
        "block": "q",
        "trailing": "i",
        "axis": "i",
        "input": "i",
        "constant_at": "I",
        "dims": ["q"],
    },
    "kernel": {"call": "I", "stream": "I", "patterns": ["b"]},
    "cuda_kernel": {
        "name": TEXT,
        "binary_at": "I",
        "binary_size": "I",
        "lanes": "I",
        "unroll": "I",
        "patterns": ["b"],
    },
    TEXT: {"at": "I", "length": "I"},
}
"""By structure of image.h, its fields: a format of `struct`, another structure, or a table of
either. A view's fields stand where the view stands."""

STRUCTURES["cuda_operator"] = {**STRUCTURES["operator"], "kernels": ["cuda_kernel"]}

CUDA = 3
"""The machine whose kernels are functions of fat binaries."""

FAT_BINARY = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 112) + bytes(range(112))
"""Two lines of code that the reader takes for one, and no driver would."""

RET = b"\xc3" + b"\xcc" * 63
"""A kernel that computes nothing, and fills a line of 64 bytes."""


def _size(kind: Any) -> int:
    if isinstance(kind, list):
        return 8
    if kind in STRUCTURES:
        return sum(map(_size, STRUCTURES[kind].values()))
    return struct.calcsize(f"<{kind}")


@dataclass
class Image:
    """The bytes of an image, and where each field lies, as in "operators[0].inputs[1].rank"."""

    content: bytearray = field(default_factory=bytearray)
    places: dict[str, tuple[int, str]] = field(default_factory=dict)

    def changed(self, changes: Mapping[str, Any]) -> bytes:
        """The bytes with other values in some fields; "*name": bytes where a text or table lies."""
        content = bytearray(self.content)
        for name, value in changes.items():
            if name.startswith("*"):
                at = self.value(f"{name[1:]}.at")
                content[at : at + len(value)] = value
            else:
                at, form = self.places[name]
                struct.pack_into(f"<{form}", content, at, value)
        return bytes(content)

    def value(self, name: str) -> Any:
        """What a field says."""
        at, form = self.places[name]
        return struct.unpack_from(f"<{form}", self.content, at)[0]

    def reserve(self, size: int, multiple: int) -> int:
        """Room at the end."""
        self.content += b"\0" * (-len(self.content) % multiple)
        at = len(self.content)
        self.content += b"\0" * size
        return at

    def put(self, name: str, at: int, kind: Any, value: Any) -> None:
        """Write one value, and what it refers to behind all that is there."""
        if isinstance(kind, list):
            row = _size(kind[0])
            rows = self.reserve(row * len(value), 1 if row == 1 else 8)
            self.put_fields(name, at, {"at": "I", "count": "I"}, {"at": rows, "count": len(value)})
            for k, item in enumerate(value):
                self.put(f"{name}[{k}]", rows + row * k, kind[0], item)
        elif kind == TEXT and not isinstance(value, Mapping):
            encoded = value if isinstance(value, bytes) else value.encode()
            text = self.reserve(len(encoded) + 1, 1)
            self.content[text : text + len(encoded)] = encoded
            self.put(name, at, kind, {"at": text, "length": len(encoded)})
        elif kind in STRUCTURES:
            self.put_fields(name, at, STRUCTURES[kind], value)
        else:
            self.places[name] = (at, kind)
            struct.pack_into(f"<{kind}", self.content, at, value)

    def put_fields(self, name: str, at: int, fields: Mapping[str, Any], values: Any) -> None:
        """Write the fields of a structure."""
        for key, kind in fields.items():
            self.put(f"{name}.{key}" if name else key, at, kind, values[key])
            at += _size(kind)


def written(
    operators: list[dict[str, Any]],
    *,
    constants: bytes = b"",
    kernels: int = 1,
    target: str = "x86-64-v2",
    requires: tuple[str, ...] = (),
    machine: int = 1,
) -> Image:
    """Write an image.

    Entry points and fat binaries are given as lines of code, from 1 on, places of constants from
    the start of `constants`; all become places in the image. For CUDA the code is fat binaries, of
    two lines each.
    """
    image = Image()
    image.reserve(_size("header"), 64)
    constants_at = image.reserve(len(constants), 64)
    image.content[constants_at:] = constants
    code_at = image.reserve(64 * kernels, 64)
    image.content[code_at:] = FAT_BINARY * (kernels // 2) if machine == CUDA else RET * kernels
    header = {
        "magic": b"relu_ops",
        "format": 2,
        "semantics": 1,
        "size": 0,
        "machine": machine,
        "reserved": 0,
        "target": target,
        "requires": list(requires),
        "operators": operators,
        "code_at": code_at,
        "code_size": 64 * kernels,
    }
    fields = STRUCTURES["header"]
    if machine == CUDA:
        fields = {**fields, "operators": ["cuda_operator"]}
    image.put_fields("", 0, fields, header)
    moved: dict[str, Any] = {"size": len(image.content)}
    for name in image.places:
        value = image.value(name)
        if re.search(r"kernels\[\d+\]\.(call|stream|binary_at)$", name) and value:
            moved[name] = code_at + 64 * (value - 1)
        if name.endswith("constant_at") and image.value(name[:-11] + "input") < 0:
            moved[name] = constants_at + value
    image.content[:] = image.changed(moved)
    return image


def tensor(name: str, shape: list[int] | None = None, dtype: tuple[int, int] = (2, 32)) -> Any:
    """An input or output: of float32, where nothing else is said."""
    rank = -1 if shape is None else len(shape)
    code, bits = dtype
    return {
        "name": name,
        "code": code,
        "bits": bits,
        "rank": rank,
        "reserved": 0,
        "dims": shape or [],
    }


def term(
    source: int, dims: tuple[int, ...] = (), *, trailing: int = 0, axis: int = 0, block: int = 1
) -> Any:
    """What a shape depends on: an input, or -1 and a constant shape."""
    return {
        "block": block,
        "trailing": trailing,
        "axis": axis,
        "input": source,
        "reserved": 0,
        "dims": list(dims),
    }


def leaf(source: int, dims: tuple[int, ...] = (), *, constant_at: int = 0, **view: int) -> Any:
    """What a kernel reads: an input, or -1 and a constant's extents and place."""
    row = term(source, dims, **view)
    del row["reserved"]
    return {**row, "constant_at": constant_at}


def operator(name: str, **fields: Any) -> dict[str, Any]:
    """An operator y = f(x) of any shape, with a streaming kernel; or whatever else is said."""
    return {
        "name": name,
        "inputs": [tensor("x")],
        "outputs": [tensor("y")],
        "output_terms": [{"terms": [term(0)]}],
        "requirements": [],
        "leaves": [leaf(0)],
        "itemsizes": [4, 4],
        "kernels": [
            {"call": 1, "stream": 2, "patterns": [1, 1]},
            {"call": 3, "stream": 0, "patterns": [-1, -1]},
        ],
        "symbols": [],
        "vector_bytes": 16,
        "reserved": 0,
        **fields,
    }


def cuda_kernel(name: str, patterns: list[int], line: int = 1, lanes: int = 1) -> dict[str, Any]:
    """A kernel of the fat binary that begins at a line."""
    return {
        "name": name,
        "binary_at": line,
        "binary_size": len(FAT_BINARY),
        "lanes": lanes,
        "unroll": 4,
        "patterns": patterns,
    }


def cuda_operator(name: str, line: int = 1, **fields: Any) -> dict[str, Any]:
    """The same for CUDA, of the fat binary that begins at a line."""
    kernels = [cuda_kernel("tile_0", [1, 1], line, 4), cuda_kernel("tile_1", [-1, -1], line)]
    return operator(name, **{"kernels": kernels, "vector_bytes": 1, **fields})


def cuda(names: tuple[str, ...] = ("first", "second"), target: str = "cuda") -> Image:
    """An image for CUDA, whose operators have a fat binary each."""
    operators = [cuda_operator(name, 1 + 2 * k) for k, name in enumerate(names)]
    codes = ("cuda_13.0", "sm_75", "sm_90", "compute_90")
    lines = 2 * len(names)
    return written(operators, kernels=lines, target=target, requires=codes, machine=CUDA)


def plain() -> Image:
    """One operator of one input."""
    return written([operator("plain")], kernels=3)


def rich() -> Image:
    """Two operators, of which the second has one of everything that an operator may have."""
    second = operator(
        "zweiter \u00e9\u20ac\U0001f600",
        inputs=[
            tensor("x", [-2, 6, -3]),
            tensor("scale", [3], (2, 16)),
            tensor("any", None, (6, 8)),
        ],
        outputs=[tensor("y", [-2, 6, -3]), tensor("mask", None, (1, 64))],
        output_terms=[
            {"terms": [term(0), term(1, trailing=1, axis=1, block=2), term(-1, (6, 1))]},
            {"terms": [term(0), term(2)]},
        ],
        requirements=[
            {"what": "scale of x", "terms": [term(1, trailing=1)], "into": [term(0)]},
            {"what": "", "terms": [term(-1, (0, 4), axis=1, block=7)], "into": []},
        ],
        leaves=[
            leaf(0),
            leaf(1, trailing=1, axis=1, block=2),
            leaf(2),
            leaf(-1, (6, 1), constant_at=0),
            leaf(-1, (0, 5), constant_at=64),
        ],
        itemsizes=[4, 2, 1, 8, 4, 4, 8],
        kernels=[
            {"call": 1, "stream": 0, "patterns": [1, 0, 1, 0, 0, 1, 1]},
            {"call": 4, "stream": 0, "patterns": [-1] * 7},
        ],
        symbols=["batch", "width"],
        vector_bytes=64,
    )
    return written(
        [operator("first"), second],
        constants=bytes(range(48)),
        kernels=4,
        requires=("cx16", "pni"),
    )
