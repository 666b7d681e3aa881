"""Objects for AArch64: how code finds its constants, and relocations that are refused by name."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import capstone
import pytest
from test_objects import HINT, Object

from relu_ops import graphs, targets
from relu_ops.compiler import frontend, image
from relu_ops.compiler.aarch64.backend import BACKEND
from relu_ops.compiler.cpu import codegen, objects
from relu_ops.compiler.cpu.backend import CpuBackend
from relu_ops.compiler.cpu.disassembly import functions
from relu_ops.compiler.cpu.objects import Code, Constants, Reference
from relu_ops.errors import BuildError

TARGET = targets.parse("aarch64")
RELOCATIONS = {each.name: each for each in BACKEND.form.relocations.values()}
PAGE = RELOCATIONS["R_AARCH64_ADR_PREL_PG_HI21"]
ALLOWED = " or ".join(RELOCATIONS)
WHAT = "quantized for aarch64: "
KERNELS = ("tile_0", "tile_1")


@pytest.fixture(scope="module")
def whole() -> bytes:
    graph = frontend.import_model(graphs.quantized_leaky_relu())
    return codegen.object_code(BACKEND.schedule(graph, TARGET), BACKEND.options(TARGET))


def read(content: bytes) -> Code:
    return objects.read(bytes(content), KERNELS, "quantized for aarch64", BACKEND.form)


def test_what_an_object_gives(whole: bytes) -> None:
    code = read(whole)
    found = {reference.relocation.name for reference in code.references}
    assert {PAGE.name, "R_AARCH64_ADD_ABS_LO12_NC", "R_AARCH64_LDST128_ABS_LO12_NC"} <= found
    assert all(reference.at % 4 == 0 for reference in code.references)
    assert read(whole) == code and hash(read(whole)) == hash(code)


WRONG: dict[str, tuple[Callable[[Object], object], str]] = {
    "a call": (
        lambda o: o.relocation(at=8, number=283, size=4),
        f"has a relocation R_AARCH64_CALL26 at {{first}} of .text (it must be {ALLOWED})",
    ),
    "a jump": (
        lambda o: o.relocation(at=8, number=282, size=4),
        f"has a relocation R_AARCH64_JUMP26 at {{first}} of .text (it must be {ALLOWED})",
    ),
    "an address": (
        lambda o: o.relocation(at=8, number=257, size=4),
        f"has a relocation R_AARCH64_ABS64 at {{first}} of .text (it must be {ALLOWED})",
    ),
    "a table of addresses": (
        lambda o: o.relocation(at=8, number=311, size=4),
        f"has a relocation R_AARCH64_ADR_GOT_PAGE at {{first}} of .text (it must be {ALLOWED})",
    ),
    "an unknown relocation": (
        lambda o: o.relocation(at=8, number=99, size=4),
        f"has a relocation 99 at {{first}} of .text (it must be {ALLOWED})",
    ),
    "behind its section": (
        lambda o: o.relocation(at=16, number=1 << 20),
        "has a relocation at {first} of .text to 1048576 of .rodata.cst16, which has {size} bytes",
    ),
    "before its section": (
        lambda o: o.relocation(at=16, number=-1),
        "has a relocation at {first} of .text to -1 of .rodata.cst16, which has {size} bytes",
    ),
    "a load from the middle of a vector": (
        lambda o: (o.relocation(at=8, number=299, size=4), o.relocation(at=16, number=8)),
        "has a relocation R_AARCH64_LDST128_ABS_LO12_NC at {first} of .text to 8 of .rodata.cst16, "
        "which lies at a multiple of 16 (it must be to one of 16)",
    ),
    "another processor": (
        lambda o: o.content.__setitem__(18, 62),
        "is ELFCLASS64, ELFDATA2LSB, EM_X86_64, ET_REL (it must be ELFCLASS64, ELFDATA2LSB, "
        "EM_AARCH64, ET_REL)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_an_image_cannot_hold_is_refused(whole: bytes, name: str) -> None:
    edit, message = WRONG[name]
    edited = Object(whole)
    first, size = edited.first_place, edited.sizes[edited.names.index(".rodata.cst16")]
    edit(edited)
    with pytest.raises(BuildError) as caught:
        read(bytes(edited.content))
    wanted = message.format(first=first, size=size)
    assert str(caught.value) == f"{WHAT}the object that TVM made {wanted}{HINT}"


# ---------------------------------------------------------------- where constants lie

ADRP = (0x90000003).to_bytes(4, "little")  # adrp x3, of the page of the instruction itself


def page_of(word: int, place: int) -> tuple[str, int]:
    """The name of an instruction, and the page that it finds: as capstone reads it."""
    decoder = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    (one,) = decoder.disasm_lite(word.to_bytes(4, "little"), place)
    register, _, number = one[3].partition(", #")
    assert register == "x3"
    return one[2], int(number, 0)


def test_near_pages_are_found_by_adr_and_others_by_adrp() -> None:
    draw, names = random.Random(0), set()
    for _ in range(3000):
        place = 4 * draw.randrange(1 << 26)
        reach = draw.choice((1 << 12, 1 << 20, 1 << 22, 1 << 31))
        meant = max(0, place + draw.randrange(-reach, reach))
        filled = PAGE.fill(int.from_bytes(ADRP, "little"), place, meant)
        if filled is None:
            assert place % 4096 >= 4088 and abs(meant - place) >= (1 << 20) - 4096
            continue
        name, page = page_of(filled, place)
        assert page == meant & -4096
        assert (name == "adr") == (-(1 << 20) <= page - place < 1 << 20)
        names.add(name)
    assert names == {"adr", "adrp"}


@pytest.mark.parametrize(
    ("name", "instruction", "size"),
    [
        ("ADD", 0x91000000, 1),
        ("LDST8", 0x39400000, 1),
        ("LDST16", 0x79400000, 2),
        ("LDST32", 0xB9400000, 4),
        ("LDST64", 0xF9400000, 8),
        ("LDST128", 0x3DC00000, 16),
    ],
)
def test_the_place_in_a_page_is_counted_in_what_is_loaded(
    name: str, instruction: int, size: int
) -> None:
    kind = RELOCATIONS[f"R_AARCH64_{name}_ABS_LO12_NC"]
    decoder = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    for low in range(size, 4096, size):
        filled = kind.fill(instruction | 0xFFF << 10, 64, 0x7000 + low)  # what stood there goes
        assert filled is not None
        (one,) = decoder.disasm_lite(filled.to_bytes(4, "little"), 64)
        assert one[3].endswith((f", #0x{low:x}]", f", #{low}]", f", #0x{low:x}", f", #{low}"))


def code_with_adrp(at: int) -> Code:
    text = bytes(at) + ADRP + bytes(128 - at - 4)
    return Code(text, (Constants(b"abcd", 4),), (Reference(at, 0, 0, PAGE),), (0,), b"\0")


def test_code_moves_where_a_processor_would_err() -> None:
    """An adrp among the last two instructions of a page: the code goes a line farther."""
    made = image._Image()
    made.content += bytes((1 << 21) + 4096 - 128 - len(made.content))
    for at, moved in ((116, 0), (120, 64), (124, 64)):
        before = len(made.content)
        (entry,) = image._put_code(made, code_with_adrp(at), [64])
        assert entry == before + moved and len(made.content) == entry + 128
        word = int.from_bytes(made.content[entry + at :][:4], "little")
        assert page_of(word, entry + at) == ("adrp", 0)
        made.content += bytes(-len(made.content) % 4096 + 4096 - 128)


def test_code_that_can_lie_nowhere_is_refused() -> None:
    made = image._Image()
    made.content += bytes((1 << 21) - len(made.content))
    references = tuple(Reference(at, 0, 0, PAGE) for at in range(0, 4096, 4))
    code = Code(ADRP * 1024, (Constants(b"abcd", 4),), references, (0,), b"\0")
    with pytest.raises(BuildError) as caught:
        image._put_code(made, code, [64])
    assert str(caught.value) == (
        f"the code at {(1 << 21) + 63 * 64} of the image cannot be so far from its constants, "
        "wherever it is moved\nhint: build its operators into several bundles"
    )


def test_what_fills_space_traps() -> None:
    """Behind a function lie no-operations up to its line; between codes, instructions that trap."""
    content = image.build([("op", frontend.import_model(graphs.relu()))], TARGET)
    assert BACKEND.form.filler * 4 == bytes(4)  # udf #0
    assert all(function.at % 64 == 0 for function in functions(content, "op"))


_MULTIPLIES = {"madd", "msub", "smaddl", "smsubl", "umaddl", "umsubl"}


def multiplied_after_memory(backend: CpuBackend, name: str) -> list[str]:
    """Where 64 bits are multiplied and added right behind a load or a store."""
    graph = frontend.import_model(graphs.MODELS[name]())
    _, code = backend.compiled("op", graph, TARGET)
    decoder = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    decoder.skipdata = True
    found = list(decoder.disasm_lite(code.text, 0))
    return [
        f"{first[2]} {first[3]}; {second[2]} {second[3]}"
        for first, second in itertools.pairwise(found)
        if first[2].startswith(("ld", "st")) and second[2] in _MULTIPLIES and second[3][0] == "x"
    ]


SOME = ("relu_int8", "relu_grad", "bias_relu", "add_relu", "scale_bias_leaky_relu")


@pytest.mark.parametrize("name", SOME)
def test_no_product_of_64_bits_is_summed_up_right_behind_a_load(name: str) -> None:
    """A Cortex-A53 (a Raspberry Pi 3) may give a wrong sum there: erratum 835769."""
    assert not multiplied_after_memory(BACKEND, name)


def test_a_product_behind_a_load_would_be_found() -> None:
    unaware = replace(BACKEND, features=("+neon",))
    assert any(multiplied_after_memory(unaware, name) for name in SOME)
