"""Loads mutations of a library with a digest that matches, one after the other. Run as a child.

    python mutated_libraries.py BUNDLE FIRST COUNT

Mutation number k is the same in every run. Before each, its number is written to standard error,
so that whoever started this knows at which one it died; at the end comes, on standard output, how
many were refused and how many loaded, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import struct
import sys
from collections.abc import Callable

import msgspec

from relu_ops import bundle
from relu_ops.errors import BundleError
from relu_ops.runtime import dispatch

# Numbers that lie: edges of signed and unsigned types, page and table sizes, off by one and more.
_LIES = [0, 1, 2, 7, 8, 16, 24, 64, 0xFF, 0x1000, 0x200000, 2**31 - 1, 2**31, 2**32 - 1, 2**32]
_LIES += [2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1]
_STEPS = [-0x200000, -0x1000, -64, -24, -16, -8, -1, 1, 8, 16, 24, 64, 0x1000, 0x200000]
_TABLES = {  # by section type: the tables that the dynamic linker, or a tool after it, reads
    *(2, 3, 4, 5, 6, 7, 11, 14, 15, 0x6FFFFFF6, 0x6FFFFFFE, 0x6FFFFFFF),
}


def regions(library: bytes) -> list[tuple[int, int]]:
    """Where headers and tables lie: everything but code and data."""
    (sections,) = struct.unpack_from("<Q", library, 40)
    segments, _, count, names = struct.unpack_from("<HHHH", library, 56)
    found = [(0, 64), (64, 56 * segments), (sections, 64 * count)]
    rows = [struct.unpack_from("<IIQQQQ", library, sections + 64 * k) for k in range(count)]
    text = library[rows[names][4] :]
    for name, kind, _, _, offset, size in rows:
        called = text[name:].partition(b"\0")[0]
        if kind in _TABLES or called.startswith(b".eh_frame"):
            found.append((offset, size))
    return [region for region in found if region[1]]


def mutated(library: bytes, number: int) -> bytes:
    """Mutation `number`: one to three changes of headers and tables, or a shorter file."""
    draw = random.Random(number)
    content, places = bytearray(library), regions(library)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        kind = draw.choice(_KINDS)
        kind(draw, content, draw.choice(places))
    if draw.random() < 0.05:
        del content[draw.randrange(len(content)) :]
    return bytes(content)


Change = Callable[[random.Random, bytearray, tuple[int, int]], None]


def _flip(draw: random.Random, content: bytearray, region: tuple[int, int]) -> None:
    content[region[0] + draw.randrange(region[1])] ^= 1 << draw.randrange(8)


def _byte(draw: random.Random, content: bytearray, region: tuple[int, int]) -> None:
    content[region[0] + draw.randrange(region[1])] = draw.randrange(256)


def _word(draw: random.Random, content: bytearray, region: tuple[int, int]) -> None:
    size = draw.choice([s for s in (2, 4, 8) if s <= region[1]] or [1])
    at = region[0] + draw.randrange(region[1] // size) * size
    old = int.from_bytes(content[at : at + size], "little")
    new = draw.choice(_LIES) if draw.random() < 0.5 else old + draw.choice(_STEPS)
    content[at : at + size] = (new % 2 ** (8 * size)).to_bytes(size, "little")


def _swap(draw: random.Random, content: bytearray, region: tuple[int, int]) -> None:
    size = draw.choice([s for s in (8, 16, 24, 56, 64) if s <= region[1]] or [1])
    a, b = (region[0] + draw.randrange(region[1] // size) * size for _ in range(2))
    content[a : a + size], content[b : b + size] = content[b : b + size], content[a : a + size]


def _noise(draw: random.Random, content: bytearray, region: tuple[int, int]) -> None:
    size = min(draw.randrange(1, 33), region[1])
    at = region[0] + draw.randrange(region[1] - size + 1)
    content[at : at + size] = draw.randbytes(size)


_KINDS: list[Change] = [_flip, _byte, _word, _word, _swap, _noise]


def load(held: bundle.Bundle, library: bytes) -> bool:
    """True where a bundle with this library loads, False where it is refused."""
    target = held.manifest.targets[0]
    name = held.manifest.library(target).path
    contents = {**held.contents, name: library}
    files = tuple(
        msgspec.structs.replace(
            entry,
            sha256=bundle.digest_of(contents[entry.path]),
            size=len(contents[entry.path]),
        )
        for entry in held.manifest.files
    )
    manifest = bundle.encode(msgspec.structs.replace(held.manifest, files=files))
    try:
        changed = bundle.from_contents("mutated", manifest, contents)
        dispatch.operator_of(changed, target=target)
    except BundleError as error:
        assert len(str(error)) < 2000, error
        return False
    return True


def main(path: str, first: int, count: int) -> None:
    held = bundle.read(path)
    library = held.contents[held.manifest.library(held.manifest.targets[0]).path]
    assert load(held, library), "the library itself is refused"
    loaded = 0
    for number in range(first, first + count):
        os.write(2, f"{number}\n".encode())
        changed = mutated(library, number)
        loaded += load(held, changed)
    print(json.dumps({"loaded": loaded, "refused": count - loaded}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
