"""Images: the reader takes what the format says, and refuses all else, by name."""

from __future__ import annotations

import contextlib
import hashlib
import platform
import random
import shutil
import subprocess
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import children
import images
import pytest

from relu_ops.errors import BundleError, TargetError
from relu_ops.native import _python as native

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the images are for x86-64")

AGAIN = "it is not as relu_ops builds it: build the bundle again"
NEWER = "it was made by a newer relu_ops: upgrade with pip install --upgrade relu_ops"
OLDER = "it was made by an older relu_ops: build the bundle again"

ROOT = Path(__file__).parents[1]
RICH, PLAIN, CUDA = images.rich(), images.plain(), images.cuda()
SIZE, CODE, CODE_SIZE = (RICH.value(name) for name in ("size", "code_at", "code_size"))
OUTSIDE = 8000  # a place behind the image


def refused(content: bytes, message: str, hint: str = AGAIN) -> None:
    with pytest.raises(BundleError) as caught:
        native.open_image("image", content)
    assert str(caught.value) == f"image: {message}\nhint: {hint}"


def opened(made: images.Image) -> native.Bundle:
    return native.open_image("image", bytes(made.content))


# ---------------------------------------------------------------- what is right


def test_what_is_written_is_read() -> None:
    handle = opened(RICH)
    assert handle.targets == ("x86-64-v2",)
    assert handle.operators == ("first", "zweiter \u00e9\u20ac\U0001f600")
    assert handle.files == {"x86-64-v2.image": bytes(RICH.content)}
    assert handle.digest == hashlib.sha256(RICH.content).hexdigest()


def test_signatures() -> None:
    operator = native.Operator(opened(RICH), opened(RICH).operators[1])
    shown = [(t.name, t.dtype, t.shape) for t in (*operator.inputs, *operator.outputs)]
    assert shown == [
        ("x", "float32", ("batch", 6, "width")),
        ("scale", "float16", (3,)),
        ("any", "bool", None),
        ("y", "float32", ("batch", 6, "width")),
        ("mask", "uint64", None),
    ]


def test_the_digest_can_be_pinned() -> None:
    content = bytes(PLAIN.content)
    found = hashlib.sha256(content).hexdigest()
    assert native.open_image("image", content, found.upper()).digest == found
    with pytest.raises(BundleError) as caught:
        native.open_image("image", content, "0" * 64)
    assert caught.value.message == f"image: has the digest {found}; it must have {'0' * 64}"


DTYPES = {(2, 16), (2, 32), (2, 64), (4, 16), (6, 8)} | {
    (code, bits) for code in (0, 1) for bits in (8, 16, 32, 64)
}


def test_dtypes() -> None:
    """Every code and width: those of the contract are read, and no other."""
    kernels = [{"call": 1, "stream": 0, "patterns": [-1]}]
    one = images.written([images.operator("f", leaves=[], itemsizes=[1], kernels=kernels)])
    taken = set()
    for code in range(256):
        for bits in range(256):
            changes = {"code": code, "bits": bits}
            fields = {f"operators[0].outputs[0].{name}": v for name, v in changes.items()}
            itemsize = {"operators[0].itemsizes[0]": max(bits // 8, 1)}
            with contextlib.suppress(BundleError):
                native.open_image("image", one.changed({**fields, **itemsize}))
                taken.add((code, bits))
    assert taken == DTYPES


# ---------------------------------------------------------------- one lie each

HEADER: list[tuple[dict[str, Any], str]] = [
    ({"magic": b"relu_opt"}, "does not begin as an image of relu_ops does"),
    ({"size": SIZE - 1}, f"has {SIZE} bytes; it says that it has {SIZE - 1}"),
    ({"machine": 0}, "is for machine 0, which is not known"),
    ({"machine": 4}, "is for machine 4, which is not known"),
    ({"reserved": 1}, "a reserved field is 1; it must be 0"),
    ({"code_at": 160}, "its code begins at 160, which is no multiple of 64"),
    ({"code_at": 8000}, "256 bytes of code at 8000 end after the image"),
    ({"code_at": 2**32 - 64}, "256 bytes of code at 4294967232 end after the image"),
    ({"code_at": 64, "code_size": SIZE}, f"{SIZE} bytes of code at 64 end after the image"),
    ({"target.length": 0}, "its target is empty"),
    ({"target.length": 65536}, "target: has 65536 bytes; it may have 65535"),
    ({"target.length": 3}, "target: no NUL follows it"),
    ({"target.at": SIZE}, f"target: 9 bytes and a NUL at {SIZE} end after the image"),
    ({"target.at": 2**32 - 1}, "target: 9 bytes and a NUL at 4294967295 end after the image"),
    (
        {"target.at": 0, "target.length": SIZE},
        f"target: {SIZE} bytes and a NUL at 0 end after the image",
    ),
    ({"*target": b"x\n"}, "target: byte 1 is neither UTF-8 nor printable"),
    ({"*target": b"x86\0"}, "target: byte 3 is neither UTF-8 nor printable"),
    ({"requires.count": 65}, "65 required features; there may be 64"),
    ({"requires.at": 404}, "the required features begin at 404, which is no multiple of 8"),
    ({"requires[1].length": 0}, "required feature 1: its name is empty"),
    ({"*requires[1]": b"\x7f"}, "required feature 1: name: byte 0 is neither UTF-8 nor printable"),
    ({"operators.count": 0}, "there is no operator"),
    ({"operators.count": 4097}, "4097 operators; there may be 4096"),
    ({"operators.at": 433}, "the operators begin at 433, which is no multiple of 8"),
    ({"operators.at": OUTSIDE}, "160 bytes of operators at 8000 end after the image"),
    (
        {"operators.at": 432, "operators.count": 16},
        "1280 bytes of operators at 432 end after the image",
    ),
    (
        {"operators[1].name.at": RICH.value("operators[0].name.at"), "operators[1].name.length": 5},
        "operators 0 and 1 have one name",
    ),
]

# Fields of the second operator.
OPERATOR: list[tuple[dict[str, Any], str]] = [
    ({"name.length": 0}, "its name is empty"),
    ({"*name": b"\xff"}, "name: byte 0 is neither UTF-8 nor printable"),
    ({"vector_bytes": 0}, "vectors of 0 bytes; it must be a power of two up to 64"),
    ({"vector_bytes": 48}, "vectors of 48 bytes; it must be a power of two up to 64"),
    ({"vector_bytes": 128}, "vectors of 128 bytes; it must be a power of two up to 64"),
    ({"reserved": 7}, "a reserved field is 7; it must be 0"),
    ({"symbols.count": 8193}, "8193 symbols; there may be 8192"),
    ({"symbols[1].length": 0}, "symbol 1: its name is empty"),
    ({"*symbols[0]": b"\xc2\x9b31m"}, "symbol 0: name: byte 0 is neither UTF-8 nor printable"),
    # Inputs and outputs.
    ({"inputs.count": 513}, "513 inputs; there may be 512"),
    ({"inputs.at": 809}, "the inputs begin at 809, which is no multiple of 8"),
    ({"inputs.at": OUTSIDE}, "72 bytes of inputs at 8000 end after the image"),
    ({"inputs[1].code": 5}, "input 1: DLPack's type 5 of 16 bits is not known"),
    ({"inputs[2].bits": 1}, "input 2: DLPack's type 6 of 1 bits is not known"),
    ({"inputs[0].rank": -2}, "input 0: rank -2; it must be -1 to 8"),
    ({"inputs[0].rank": 9}, "input 0: rank 9; it must be -1 to 8"),
    ({"outputs[0].rank": 17}, "output 0: rank 17; it must be -1 to 16"),
    ({"inputs[0].rank": 2}, "input 0: 3 dimensions for rank 2"),
    ({"inputs[2].dims.count": 1}, "input 2: 1 dimensions for rank -1"),
    ({"inputs[0].dims[0]": -4}, "input 0: dimension 0 is -4; it must be -3 to 2**62 - 1"),
    (
        {"outputs[0].dims[1]": 2**62},
        "output 0: dimension 1 is 4611686018427387904; it must be -3 to 2**62 - 1",
    ),
    ({"inputs[0].reserved": 1}, "input 0: a reserved field is 1; it must be 0"),
    (
        {"inputs[1].name.at": SIZE},
        f"input 1: name: 5 bytes and a NUL at {SIZE} end after the image",
    ),
    ({"outputs.count": 0}, "there is no output"),
    ({"outputs.count": 513}, "513 outputs; there may be 512"),
    # What shapes depend on.
    ({"output_terms.count": 1}, "1 outputs' shapes for 2 outputs"),
    ({"output_terms.at": 4}, "the outputs' shapes begin at 4, which is no multiple of 8"),
    ({"output_terms[1].terms.count": 1025}, "shape of output 1: 1025 terms; there may be 1024"),
    ({"output_terms[0].terms[0].input": 3}, "shape of output 0: term 0: input 3 is none of 3"),
    ({"output_terms[0].terms[0].input": -2}, "shape of output 0: term 0: input -2 is none of 3"),
    (
        {"output_terms[0].terms[1].reserved": 1},
        "shape of output 0: term 1: a reserved field is 1; it must be 0",
    ),
    (
        {"output_terms[0].terms[0].dims.count": 1},
        "shape of output 0: term 0: an input's dimensions stand with the input alone",
    ),
    (
        {"output_terms[0].terms[0].dims.at": OUTSIDE},
        "shape of output 0: term 0: 0 bytes of dimensions at 8000 end after the image",
    ),
    (
        {"output_terms[0].terms[1].trailing": -1},
        "shape of output 0: term 1: -1 unit dimensions after 1; there may be 0 to 15",
    ),
    (
        {"output_terms[0].terms[1].trailing": 16},
        "shape of output 0: term 1: 16 unit dimensions after 1; there may be 0 to 15",
    ),
    (
        {"output_terms[1].terms[1].trailing": 17},
        "shape of output 1: term 1: 17 unit dimensions after 0; there may be 0 to 16",
    ),
    (
        {"output_terms[0].terms[1].axis": 2},
        "shape of output 0: term 1: dimension 2 from the last is repeated; there are 2",
    ),
    (
        {"output_terms[0].terms[1].axis": -1},
        "shape of output 0: term 1: dimension -1 from the last is repeated; there are 2",
    ),
    (
        {"output_terms[0].terms[1].block": 0},
        "shape of output 0: term 1: elements are repeated 0 times; it must be 1 to 2**31 - 1",
    ),
    (
        {"output_terms[0].terms[1].block": 2**31},
        "shape of output 0: term 1: elements are repeated 2147483648 times; "
        "it must be 1 to 2**31 - 1",
    ),
    (
        {"output_terms[1].terms[1].block": 2},
        "shape of output 1: term 1: it repeats elements of an array of any rank",
    ),
    (
        {"output_terms[1].terms[1].axis": 1},
        "shape of output 1: term 1: dimension 1 from the last is repeated; there are 0",
    ),
    (
        {"output_terms[0].terms[2].dims.count": 17},
        "shape of output 0: term 2: 17 dimensions; there may be 16",
    ),
    (
        {"output_terms[0].terms[2].dims[1]": -1},
        "shape of output 0: term 2: dimension 1 is -1; it must be 0 to 2**62 - 1",
    ),
    ({"requirements.count": 8193}, "8193 requirements; there may be 8192"),
    (
        {"requirements[0].what.length": 65536},
        "requirement 0: text: has 65536 bytes; it may have 65535",
    ),
    (
        {"requirements[0].terms.at": 1},
        "requirement 0: the terms begin at 1, which is no multiple of 8",
    ),
    (
        {"requirements[0].into[0].input": 3},
        "requirement 0: into: term 0: input 3 is none of 3",
    ),
    (
        {"requirements[1].terms[0].dims[0]": 2**61},
        "requirement 1: term 0: 2305843009213693952 elements are repeated 7 times: too many",
    ),
    # Operands.
    ({"leaves.count": 1025}, "1025 leaves; there may be 1024"),
    (
        {"leaves.at": 432, "leaves.count": 1024},
        "32768 bytes of leaves at 432 end after the image",
    ),
    ({"leaves[0].input": 3}, "leaf 0: input 3 is none of 3"),
    ({"leaves[0].constant_at": 64}, "leaf 0: a constant at 64 for an input"),
    (
        {"leaves[1].block": 0},
        "leaf 1: elements are repeated 0 times; it must be 1 to 2**31 - 1",
    ),
    (
        {"leaves[3].constant_at": 72},
        "leaf 3: its constant begins at 72, which is no multiple of 64",
    ),
    (
        {"leaves[3].constant_at": 2**32 - 64},
        "leaf 3: 48 bytes of its constant at 4294967232 end after the image",
    ),
    (
        {"leaves[3].dims[0]": 10**6},
        "leaf 3: 8000000 bytes of its constant at 64 end after the image",
    ),
    (
        {"leaves[3].dims[0]": 2**61},
        "leaf 3: its constant has more bytes than there are numbers for",
    ),
    ({"leaves[3].dims[1]": -1}, "leaf 3: dimension 1 is -1; it must be 0 to 2**62 - 1"),
    ({"itemsizes.count": 6}, "6 itemsizes for 7 operands"),
    ({"itemsizes.at": OUTSIDE}, "7 bytes of itemsizes at 8000 end after the image"),
    ({"itemsizes[0]": 2}, "leaf 0: 2 bytes an element; its dtype has 32 bits"),
    ({"itemsizes[3]": 0}, "leaf 3: 0 bytes an element; it must be 1, 2, 4 or 8"),
    ({"itemsizes[3]": 3}, "leaf 3: 3 bytes an element; it must be 1, 2, 4 or 8"),
    ({"itemsizes[3]": 16}, "leaf 3: 16 bytes an element; it must be 1, 2, 4 or 8"),
    ({"itemsizes[6]": 4}, "output 1: 4 bytes an element; its dtype has 64 bits"),
    # Kernels.
    ({"kernels.count": 0}, "there is no kernel"),
    ({"kernels.count": 17}, "17 kernels; there may be 16"),
    ({"kernels[0].call": 0}, "kernel 0: its function at 0 is not in the code"),
    ({"kernels[0].call": 64}, "kernel 0: its function at 64 is not in the code"),
    (
        {"kernels[0].call": CODE + 1},
        f"kernel 0: its function begins at {CODE + 1}, which is no multiple of 64",
    ),
    (
        {"kernels[0].call": CODE + CODE_SIZE},
        f"kernel 0: its function at {CODE + CODE_SIZE} is not in the code",
    ),
    ({"kernels[0].stream": 64}, "kernel 0: its streaming function at 64 is not in the code"),
    (
        {"kernels[0].stream": CODE + 8},
        f"kernel 0: its streaming function begins at {CODE + 8}, which is no multiple of 64",
    ),
    ({"kernels[0].patterns.count": 6}, "kernel 0: 6 patterns for 7 operands"),
    ({"kernels[0].patterns.count": 1025}, "kernel 0: 1025 patterns; there may be 1024"),
    (
        {"kernels[0].patterns.at": SIZE - 6},
        f"kernel 0: 7 bytes of patterns at {SIZE - 6} end after the image",
    ),
    ({"kernels[0].patterns[1]": 2}, "kernel 0: pattern 1 is 2; it must be -1, 0 or 1"),
    ({"kernels[0].patterns[1]": -2}, "kernel 0: pattern 1 is -2; it must be -1, 0 or 1"),
    (
        {"kernels[1].patterns[6]": 1},
        "kernel 1: pattern 6 is 1; the last kernel must take any strides",
    ),
]


def in_second(changes: dict[str, Any]) -> dict[str, Any]:
    """Changes of the second operator's fields."""
    return {
        "*" * name.startswith("*") + f"operators[1].{name.removeprefix('*')}": value
        for name, value in changes.items()
    }


BINARY = CUDA.value("code_at") + 128  # that of the second operator
END = CUDA.value("code_at") + CUDA.value("code_size")

# Fields of an image for CUDA; kernels are of its second operator.
CUDA_LIES: list[tuple[dict[str, Any], str]] = [
    ({"*requires[1]": b"sm_7x"}, "required feature 1 must be like cuda_13.0, sm_90 or compute_90"),
    (
        {"*requires[0]": b"cuda_1300"},
        "required feature 0 must be like cuda_13.0, sm_90 or compute_90",
    ),
    ({"*requires[2]": b"sm_09"}, "required feature 2 must be like cuda_13.0, sm_90 or compute_90"),
    ({"requires.count": 1}, "it does not say which devices it has code for"),
    ({"requires.count": 0}, "it does not say which devices it has code for"),
    *(
        ({f"operators[1].kernels[1].{name}": value}, f"operator 1: kernel 1: {text}")
        for name, value, text in (
            ("name.length", 0, "its name is empty"),
            (
                "binary_at",
                BINARY + 8,
                f"its fat binary begins at {BINARY + 8}, which is no multiple of 64",
            ),
            ("binary_at", 0, "its fat binary of 128 bytes at 0 is not in the code"),
            ("binary_at", END, f"its fat binary of 128 bytes at {END} is not in the code"),
            ("binary_at", BINARY - 64, f"what lies at {BINARY - 64} is no fat binary"),
            ("binary_at", BINARY - 128, "its fat binary is another one than that of kernel 0"),
            ("binary_size", 129, f"its fat binary of 129 bytes at {BINARY} is not in the code"),
            (
                "binary_size",
                2**32 - 1,
                f"its fat binary of 4294967295 bytes at {BINARY} is not in the code",
            ),
            ("binary_size", 15, "its fat binary has 15 bytes; a header has 16"),
            ("binary_size", 127, "its fat binary says that it has 112 bytes; it has 127"),
            ("lanes", 2, "chunks of 2 elements; it must be a power of two up to 1"),
            ("lanes", 0, "chunks of 0 elements; it must be a power of two up to 1"),
            ("unroll", 0, "0 chunks a thread; it must be 1 to 16"),
            ("unroll", 17, "17 chunks a thread; it must be 1 to 16"),
            ("patterns.count", 1, "1 patterns for 2 operands"),
            ("patterns[0]", 1, "pattern 0 is 1; the last kernel must take any strides"),
        )
    ),
    *(
        ({f"operators[1].kernels[0].{name}": value}, f"operator 1: kernel 0: {text}")
        for name, value, text in (
            ("lanes", 3, "chunks of 3 elements; it must be a power of two up to 16"),
            ("lanes", 32, "chunks of 32 elements; it must be a power of two up to 16"),
            ("patterns[0]", -1, "pattern 0 is -1; only the last kernel takes any strides"),
        )
    ),
    ({"operators[0].kernels.count": 17}, "operator 0: 17 kernels; there may be 16"),
    ({"operators[0].kernels.count": 0}, "operator 0: there is no kernel"),
]


@pytest.mark.parametrize(("changes", "message"), CUDA_LIES, ids=lambda value: str(value)[:60])
def test_lies_of_images_for_cuda(changes: dict[str, Any], message: str) -> None:
    refused(CUDA.changed(changes), message)


def test_an_image_for_cuda_is_data_to_the_processor() -> None:
    """It is read and its code is never mapped: that is for a driver."""
    assert opened(CUDA).operators == ("first", "second")
    changed = CUDA.changed({"*operators[0].kernels[0].name": b"tile_9"})
    assert native.open_image("image", changed).targets == ("cuda",)


LIES = HEADER + [(in_second(changes), f"operator 1: {text}") for changes, text in OPERATOR]


@pytest.mark.parametrize(
    ("changes", "message"), LIES, ids=[", ".join(map(str, c)) for c, _ in LIES]
)
def test_one_lie(changes: dict[str, Any], message: str) -> None:
    refused(RICH.changed(changes), message)


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"format": 3}, "has format 3; this relu_ops reads format 2", NEWER),
        ({"format": 2**32 - 1}, "has format 4294967295; this relu_ops reads format 2", NEWER),
        ({"format": 1}, "has format 1; this relu_ops reads format 2", OLDER),
        ({"semantics": 2}, "has semantics 2; this relu_ops knows up to 1", NEWER),
        ({"semantics": 0}, "has semantics 0; they begin with 1", AGAIN),
    ],
    ids=str,
)
def test_other_versions(changes: dict[str, Any], message: str, hint: str) -> None:
    refused(RICH.changed(changes), message, hint)


def test_a_newer_format_is_told_by_its_number_alone() -> None:
    """Whatever else it changes: only the first twelve bytes must stay where they are."""
    newer = RICH.changed({"format": 3, "size": 1, "machine": 9, "code_at": 3})
    refused(newer, "has format 3; this relu_ops reads format 2", NEWER)


def test_every_length() -> None:
    content = bytes(RICH.content)
    for size in range(64):
        refused(content[:size], f"has {size} bytes; the header of an image has 64")
    for size in [*range(64, SIZE), SIZE + 1]:
        refused((content + b"\0")[:size], f"has {size} bytes; it says that it has {SIZE}")


def test_tables_that_are_cut_are_refused() -> None:
    """An image that is as short as it says lacks what lies at its end."""
    for size in range(64, SIZE):
        with pytest.raises(BundleError, match=r"end after the image|no NUL follows"):
            native.open_image("image", RICH.changed({"size": size})[:size])


def test_operands_are_bounded() -> None:
    leaves = [images.leaf(0)] * 1023
    two = {"outputs": [images.tensor("y")] * 2, "output_terms": [{"terms": []}] * 2}
    kernels = [{"call": 1, "stream": 0, "patterns": [-1] * 1024}]
    most = images.operator("most", leaves=leaves[1:], itemsizes=[4] * 1024, kernels=kernels, **two)
    assert opened(images.written([most])).operators == ("most",)
    more = images.written([{**most, "leaves": leaves}])
    refused(bytes(more.content), "operator 0: 1025 operands; there may be 1024")


def busy_terms() -> bytes:
    """2**23 terms, in a table of 1024 that is named 8192 times."""
    requirement = {"what": "", "terms": [], "into": []}
    one = images.operator(
        "busy", requirements=[requirement] * 8192, output_terms=[{"terms": [images.term(0)] * 1024}]
    )
    made = images.written([one], kernels=3)
    place = {"at": made.value("operators[0].output_terms[0].terms.at"), "count": 1024}
    rows = [f"operators[0].requirements[{k}].terms" for k in range(8192)]
    return made.changed({f"{row}.{name}": value for row in rows for name, value in place.items()})


def busy_names() -> bytes:
    """2**29 bytes of names, in a text of 65535 that is named 8192 times."""
    one = images.operator("busy", symbols=["-" * 65535] + ["-"] * 8191)
    made = images.written([one], kernels=3)
    place = {name: made.value(f"operators[0].symbols[0].{name}") for name in ("at", "length")}
    rows = [f"operators[0].symbols[{k}]" for k in range(8192)]
    return made.changed({f"{row}.{name}": value for row in rows for name, value in place.items()})


@pytest.mark.parametrize(
    ("busy", "where"), [(busy_terms, "requirement 2040"), (busy_names, "symbol 1022")]
)
def test_shared_tables_do_not_keep_the_reader_busy(busy: Callable[[], bytes], where: str) -> None:
    refused(
        busy(),
        f"operator 0: {where}: its tables and names, counted as often as they are named, have more "
        "than 67108864 bytes",
    )


def test_a_name_that_is_too_long_is_cut_in_its_middle_between_characters() -> None:
    for letter in ("x", "\u00e9", "\u20ac", "\U0001f600"):
        for start in range(4):
            shown = "-" * start + letter * 5000
            with pytest.raises(BundleError) as caught:
                native.open_image(shown, b"")
            name, _, reason = caught.value.message.partition(": ")
            head, _, tail = name.partition("...")
            assert shown.startswith(head) and shown.endswith(tail) and head and tail
            assert 500 <= len(name.encode()) <= 511
            assert reason.startswith("has 0 bytes")


def test_operators_of_one_name_in_two_places_are_refused() -> None:
    content = images.written([images.operator("f"), images.operator("f")], kernels=3).content
    refused(bytes(content), "operators 0 and 1 have one name")


# ---------------------------------------------------------------- texts


def is_text(content: bytes) -> bool:
    """Python's opinion: UTF-8 without control characters."""
    try:
        return all(unicodedata.category(c) != "Cc" for c in content.decode())
    except UnicodeDecodeError:
        return False


def encoded_characters() -> Iterator[bytes]:
    edges = [0, 0x1F, 0x20, 0x7E, 0x7F, 0x80, 0x9F, 0xA0, 0x7FF, 0x800, 0xD7FF, 0xD800, 0xDFFF]
    edges += [0xE000, 0xFFFD, 0xFFFE, 0xFFFF, 0x10000, 0x10FFFF]
    draw = random.Random(0)
    for code in edges + [draw.randrange(0x110000) for _ in range(1000)]:
        yield chr(code).encode("utf-8", "surrogatepass")
    # Longer forms than needed, beyond Unicode, cut, and continued without a beginning.
    yield from (b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\xa0", b"\xe0\x9f\xbf", b"\xf0\x80\x80\xa0")
    yield from (b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xf8\x88\x80\x80")
    yield from (b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\x80", b"\xbf", b"\xfe", b"\xff")
    for _ in range(3000):
        yield draw.randbytes(draw.randrange(1, 5))


def test_texts_are_those_that_python_decodes() -> None:
    made = images.written([images.operator("name")], kernels=3)
    taken = 0
    for text in encoded_characters():
        name = text + b"-" * (4 - len(text))
        content = made.changed({"*operators[0].name": name})
        if is_text(name):
            assert native.open_image("image", content).operators == (f"{name.decode()}",)
            taken += 1
        else:
            with pytest.raises(BundleError, match="is neither UTF-8 nor printable"):
                native.open_image("image", content)
    assert taken > 1000


# ---------------------------------------------------------------- mapping


@pytest.mark.parametrize(("machine", "runs_on"), [(2, "AArch64 processors"), (3, "GPUs")])
def test_images_of_other_machines_are_read_and_not_mapped(machine: int, runs_on: str) -> None:
    target = {2: "aarch64", 3: "cuda"}[machine]
    handle = opened(
        images.cuda(("f",))
        if machine == images.CUDA
        else images.written([images.operator("f")], kernels=3, target=target, machine=machine)
    )
    assert (handle.targets, handle.operators) == ((target,), ("f",))
    reason = {
        2: f"the processor is {platform.machine()} (not aarch64)",
        3: "it runs on a GPU (not on the CPU)",
    }[machine]
    with pytest.raises(TargetError) as caught:
        native.Operator(handle, "f", target)
    assert str(caught.value) == (
        f"image: {target} cannot run on this machine: {reason}; it has:\n  {target}: {reason}\n"
        "hint: name one that can run, or none for the best; or build it for that target too"
    )


# Prints where executable memory lies that was not there at the start, its permissions and its file.
MAPS = """
import os
import images
import numpy as np
from relu_ops.native import _python as native

def executable():
    with open("/proc/self/maps") as maps:
        rows = [line.split() for line in maps]
    return {row[0]: (row[1], " ".join(row[5:])) for row in rows if "x" in row[1]}

def load(made, number=0):
    handle = native.open_image("image", bytes(made.content))
    return native.Operator(handle, handle.operators[number])

native.Operator  # the library is there from here on
np.zeros(1)
before = executable()

def new():
    return sorted(v for k, v in executable().items() if k not in before)
"""

SEALED = ("r-xp", "/memfd:relu_ops (deleted)")


def run_maps(code: str, **environment: str) -> list[str]:
    done = children.run(MAPS + code, **environment)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.splitlines()


def test_code_is_mapped_once_read_only_and_let_go() -> None:
    lines = run_maps("""
descriptors = os.listdir("/proc/self/fd")
handle = native.open_image("image", bytes(images.rich().content))
print(new())
both = [native.Operator(handle, name) for name in handle.operators]
print(new())
assert os.listdir("/proc/self/fd") == descriptors
del handle, both[1]
print(new())
both[0](np.zeros(3, np.float32))
del both
print(new())
""")
    assert lines == ["[]", f"[{SEALED}]", f"[{SEALED}]", "[]"]


def test_what_is_mapped_is_sealed() -> None:
    lines = run_maps("""
import fcntl
op = load(images.plain())
place = next(k for k, (_, name) in executable().items() if "memfd" in name)
try:
    file = os.open(f"/proc/self/map_files/{place}", os.O_RDONLY)
except PermissionError:
    print("not allowed")
else:
    everything = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    print(fcntl.fcntl(file, fcntl.F_GET_SEALS) & everything == everything)
""")
    if lines == ["not allowed"]:
        pytest.skip("/proc/self/map_files needs a capability")
    assert lines == ["True"]


def test_where_memory_files_are_refused_memory_is_used() -> None:
    lines = run_maps("""
import sandbox
sandbox.refuse("memfd_create")
op = load(images.plain())
op(np.zeros(3, np.float32))
print(new())
""")
    assert lines == ["[('r-xp', '')]"]


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        (("memfd_create", "mprotect(PROT_EXEC)"), "memfd_create"),
        (("mmap(PROT_EXEC)", "mprotect(PROT_EXEC)"), "mmap(PROT_EXEC)"),
    ],
    ids=str,
)
def test_where_all_is_refused_the_message_says_what(calls: tuple[str, ...], said: str) -> None:
    lines = run_maps(f"""
import sandbox
from relu_ops.errors import SystemRefusalError
sandbox.refuse(*{calls})
try:
    load(images.plain())
except SystemRefusalError as error:
    print(error)
print(new())
""")
    assert lines == [
        f"image: its code cannot be made executable: the system refused {said} (Operation not "
        "permitted), then mprotect(PROT_EXEC) (Operation not permitted)",
        "hint: let this process use memfd_create and map such memory executable, or let it make "
        "memory executable by mprotect: look at its seccomp filter, at SELinux (execmem), at "
        "systemd's MemoryDenyWriteExecute",
        "[]",
    ]


def test_threads_that_load_at_once_share_a_mapping() -> None:
    """Through ctypes, which lets go of the interpreter's lock."""
    lines = run_maps("""
import ctypes, threading
from pathlib import Path
core = ctypes.CDLL(str(Path(native.__file__).with_name("librelu_ops.so")))
content = bytes(images.rich().content)
before = executable()
for _ in range(300):
    bundle, start = ctypes.c_void_p(), threading.Barrier(4)
    size = ctypes.c_size_t(len(content))
    assert core.relu_ops_open_image(b"image", content, size, None, ctypes.byref(bundle)) == 0
    operators = [ctypes.c_void_p() for _ in range(4)]
    def load(op):
        start.wait()
        assert core.relu_ops_load(bundle, b"first", None, ctypes.byref(op)) == 0
    threads = [threading.Thread(target=load, args=(op,)) for op in operators]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(new()) == 1, new()
    core.relu_ops_close(bundle)
    [core.relu_ops_release(op) for op in operators]
    assert not new()
print("done")
""")
    assert lines == ["done"]


# ---------------------------------------------------------------- profilers

PERF = """
import os, time
handle = native.open_image("image", bytes(images.rich().content))
operators = [native.Operator(handle, name) for name in handle.operators]
start = next(k for k in executable() if k not in before).partition("-")[0]
print(os.getpid(), start, new())
"""


def test_profilers_are_told_the_names() -> None:
    pid, start, mapped = run_maps(PERF, RELU_OPS_PERF_MAP="1")[0].split(" ", 2)
    path = Path(f"/tmp/perf-{pid}.map")
    lines = path.read_text().splitlines()
    path.unlink()
    assert mapped == "[('r-xp', '')]"
    names = {"first::tile_0", "first::tile_0_stream", "first::tile_1"}
    names |= {f"{opened(RICH).operators[1]}::tile_{k}" for k in (0, 1)}
    assert {line.split(" ", 2)[2] for line in lines} == {f"relu_ops::{name}" for name in names}
    lines_of_code = {
        (int(at, 16) - int(start, 16), int(size, 16))
        for at, size, _ in (line.split(" ", 2) for line in lines)
    }
    assert lines_of_code == {(CODE + 64 * k, 64) for k in range(4)}


@pytest.mark.parametrize("environment", [{}, {"RELU_OPS_PERF_MAP": "0"}], ids=str)
def test_nobody_is_told_who_did_not_ask(environment: dict[str, str]) -> None:
    pid, _, mapped = run_maps(PERF, **environment)[0].split(" ", 2)
    assert mapped == f"[{SEALED}]"
    assert not Path(f"/tmp/perf-{pid}.map").exists()


def test_perf_shows_the_names(tmp_path: Path) -> None:
    perf, data = shutil.which("perf"), tmp_path / "perf.data"
    if not perf or subprocess.run([perf, "stat", "true"], capture_output=True).returncode:
        pytest.skip("perf is not there, or not allowed to count")
    path = tmp_path / "real.image"
    path.write_bytes(real_images()["real"])
    busy = """
import sys, time
with open(sys.argv[1], "rb") as file:
    op = native.Operator(native.open_image("image", file.read()), "leaky_relu")
x = np.ones(2000, np.float32)
y = np.empty_like(x)
end = time.monotonic() + 0.5
while time.monotonic() < end:
    op(x, out=y)
print(os.getpid())
"""
    before = [perf, "record", "-q", "-e", "cpu-clock:u", "-o", str(data)]
    done = children.run(MAPS + busy, path, before=before, RELU_OPS_PERF_MAP="1")
    assert done.returncode == 0, done.stderr
    report = subprocess.run(
        [perf, "report", "-i", str(data), "--stdio", "--sort", "symbol"],
        capture_output=True,
        text=True,
    )
    Path(f"/tmp/perf-{done.stdout.strip()}.map").unlink()
    assert "relu_ops::leaky_relu::tile_0" in report.stdout


# ---------------------------------------------------------------- mutations

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def mutate(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that reads mutations of images, below sanitizers: see mutate_images.c."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not there")
    folder = tmp_path_factory.mktemp("mutate")
    (folder / "empty.c").write_text("int main(void) { return 0; }")
    check = [compiler, *SANITIZERS, str(folder / "empty.c"), "-o", str(folder / "empty")]
    if subprocess.run(check, capture_output=True).returncode:
        pytest.skip("gcc has no sanitizers here")
    sources = [ROOT / "tests/native" / name for name in ("fuzz_image.c", "mutate_images.c")]
    sources += [p for p in (ROOT / "relu_ops/native").glob("*.c") if "python" not in p.name]
    includes = [f"-I{ROOT / 'relu_ops/native/include'}", f"-I{dlpack()}"]
    command = [compiler, "-std=c11", "-g", "-O1", "-pthread", *SANITIZERS]
    command += ["-Wall", "-Wextra", "-Werror"]
    command += ["-DRELU_OPS_SEMANTICS=1", '-DRELU_OPS_PACKAGE_VERSION="test"']
    command += includes
    program = folder / "mutate"
    subprocess.run([*command, *map(str, sources), "-o", str(program)], check=True)
    paths = []
    for name, content in real_images().items():
        paths.append(folder / f"{name}.image")
        paths[-1].write_bytes(content)
    return [str(program), *map(str, paths)]


def dlpack() -> Path:
    """Where dlpack.h is included from."""
    import tvm_ffi

    return Path(tvm_ffi.__file__).parent / "include"


def real_images() -> dict[str, bytes]:
    """Those of this file, and one that the compiler made."""
    from relu_ops import graphs, targets
    from relu_ops.compiler import frontend, image

    target = targets.parse("x86-64-v2")
    imported = {
        name: frontend.import_model(graphs.MODELS[name]())
        for name in ("leaky_relu", "scale_bias_leaky_relu_512", "quantized_leaky_relu")
    }
    return {
        "plain": bytes(PLAIN.content),
        "rich": bytes(RICH.content),
        "cuda": bytes(CUDA.content),
        "real": image.build(list(imported.items()), target),
    }


def read_mutations(mutate: list[str], first: int, count: int) -> None:
    program, *paths = mutate
    done = subprocess.run([program, str(first), str(count), *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    words = done.stdout.split()
    accepted, mapped, planned = (int(words[k]) for k in (2, 4, 7))
    assert words[:2] == [str(count), "mutations:"]
    assert 0 < accepted < count / 2 and mapped > 0 and planned > 0


def test_mutations(mutate: list[str]) -> None:
    read_mutations(mutate, 0, 5000)


@pytest.mark.exhaustive
def test_a_million_mutations(mutate: list[str]) -> None:
    read_mutations(mutate, 5000, 1_000_000)
