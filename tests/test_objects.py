"""Objects that TVM makes, and objects made wrong on purpose: each is refused by what is in it."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable

import pytest
from elftools.elf.elffile import ELFFile

from relu_ops import graphs, targets
from relu_ops.compiler import frontend
from relu_ops.compiler.cpu import codegen, objects
from relu_ops.compiler.x86.backend import BACKEND as X86
from relu_ops.errors import BuildError

HINT = "\nhint: relu_ops knows what apache-tvm 0.27 makes of its kernels: install that version"
WHAT = "leaky_relu for x86-64-v3: "

SECTION_FIELDS = {"name": 0, "type": 4, "flags": 8, "size": 32, "info": 44, "alignment": 48}
"""Where they lie in a section's header, as <elf.h> has it."""


class Object:
    """The object of leaky_relu, to be edited."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)
        elf = ELFFile(io.BytesIO(content))
        self.names = [section.name for section in elf.iter_sections()]
        self.sections = elf["e_shoff"]
        self.sizes = [section["sh_size"] for section in elf.iter_sections()]
        self.offsets = [section["sh_offset"] for section in elf.iter_sections()]
        symbols = elf.get_section_by_name(".symtab")
        self.symbols = [symbol.name for symbol in symbols.iter_symbols()]

    def section(self, name: str, /, **fields: int) -> None:
        for field, number in fields.items():
            at = self.sections + 64 * self.names.index(name) + SECTION_FIELDS[field]
            size = 4 if field in ("name", "type", "info") else 8
            self.content[at : at + size] = number.to_bytes(size, "little")

    def symbol(self, name: str, *, at: int, number: int, size: int = 2) -> None:
        """Change a field of a symbol: info is at 4, its section at 6, its value at 8."""
        begin = self.offsets[self.names.index(".symtab")] + 24 * self.symbols.index(name) + at
        self.content[begin : begin + size] = number.to_bytes(size, "little")

    def relocation(self, *, at: int, number: int, size: int = 8) -> None:
        """Change a field of the first one: the place at 0, type at 8, symbol at 12, sum at 16."""
        begin = self.offsets[self.names.index(".rela.text")] + at
        self.content[begin : begin + size] = number.to_bytes(size, "little", signed=True)

    @property
    def first_place(self) -> int:
        """Where the first relocation is."""
        (place,) = struct.unpack_from(
            "<Q", self.content, self.offsets[self.names.index(".rela.text")]
        )
        return int(place)


KERNELS = ("tile_0", "tile_0_stream", "tile_1")


@pytest.fixture(scope="module")
def whole() -> bytes:
    graph, target = frontend.import_model(graphs.leaky_relu()), targets.parse("x86-64-v3")
    return codegen.object_code(X86.schedule(graph, target), X86.options(target))


def read(content: bytes, kernels: tuple[str, ...] = KERNELS) -> objects.Code:
    return objects.read(content, kernels, "leaky_relu for x86-64-v3", X86.form)


def test_what_an_object_gives(whole: bytes) -> None:
    code = read(whole)
    elf = ELFFile(io.BytesIO(whole))
    assert code.text == elf.get_section_by_name(".text").data()
    assert [c.content for c in code.constants] == [elf.get_section_by_name(".rodata.cst4").data()]
    places = elf.get_section_by_name(".rela.text").iter_relocations()
    assert [r.at for r in code.references] == [r["r_offset"] for r in places]
    assert len(code.references) > 5
    symbols = elf.get_section_by_name(".symtab")
    assert code.entries == tuple(symbols.get_symbol_by_name(k)[0]["st_value"] for k in KERNELS)
    assert read(whole) == code and hash(read(whole)) == hash(code)


def test_helpers_that_nothing_uses_are_left_out(whole: bytes) -> None:
    helpers = ELFFile(io.BytesIO(whole)).get_section_by_name(".text.tvm.fp16.conv")
    assert helpers["sh_size"] > 500
    code = read(whole)
    assert helpers.data()[:64] not in code.text + b"".join(c.content for c in code.constants)


def test_what_is_not_referred_to_is_left_out(whole: bytes) -> None:
    """The constants of a kernel that reads none of them."""
    edited = Object(whole)
    edited.section(".rela.text", info=edited.names.index(".debug_info"))
    assert read(edited.content).constants == ()


WRONG: dict[str, tuple[Callable[[Object], object], str]] = {
    "written to": (
        lambda o: o.section(".rodata.cst4", flags=0x13),
        "has data that is written to, in .rodata.cst4 (it must have none)",
    ),
    "a writable section beside it": (
        lambda o: o.section(".debug_str", flags=0x3),
        "has data that is written to, in .debug_str (it must have none)",
    ),
    "code that is written to": (
        lambda o: o.section(".text", flags=0x7),
        "has data that is written to, in .text (it must have none)",
    ),
    "thread-local": (
        lambda o: o.section(".rodata.cst4", flags=0x403),
        "has thread-local data, in .rodata.cst4 (it must have none)",
    ),
    "another section": (
        lambda o: o.section(".debug_frame", flags=0x2),
        "has a section .debug_frame of type SHT_PROGBITS and flags 0x2 (it must have code in .text "
        "and constants in .rodata alone)",
    ),
    "constants that run": (
        lambda o: o.section(".rodata.cst4", flags=0x16),
        "has a section .rodata.cst4 of type SHT_PROGBITS and flags 0x16 (it must have code in "
        ".text and constants in .rodata alone)",
    ),
    "constants without content": (
        lambda o: o.section(".rodata.cst4", type=8),
        "has a section .rodata.cst4 of type SHT_NOBITS and flags 0x12 (it must have code in .text "
        "and constants in .rodata alone)",
    ),
    "functions before the kernels": (
        lambda o: o.section(".rodata.cst4", type=14),
        "has a section .rodata.cst4 of type SHT_INIT_ARRAY and flags 0x12 (it must have code in "
        ".text and constants in .rodata alone)",
    ),
    "no code": (
        lambda o: o.section(".text", flags=0),
        "has 0 sections .text (it must have one)",
    ),
    "constants that are not there": (
        lambda o: o.section(".rodata.cst4", flags=0x10),
        "has a relocation at {first} of .text to .rodata.cst4 (it must be to .rodata)",
    ),
    "two sections of code": (
        lambda o: o.section(".text.tvm.fp16.conv", name=name_of(o, ".text")),
        "has 2 sections .text (it must have one)",
    ),
    "no symbols": (
        lambda o: o.section(".symtab", type=1),
        "has no table of symbols",
    ),
    "an undefined symbol": (
        lambda o: o.symbol("__truncsfhf2", at=6, number=0),
        "needs the symbol __truncsfhf2 (it must need none)",
    ),
    "common data": (
        lambda o: o.symbol("tile_1", at=6, number=0xFFF2),
        "has a symbol tile_1 in SHN_COMMON (it must be in a section)",
    ),
    "an absolute symbol": (
        lambda o: o.symbol("tile_1", at=6, number=0xFFF1),
        "has a symbol tile_1 in SHN_ABS (it must be in a section)",
    ),
    "a thread-local symbol": (
        lambda o: o.symbol("tile_1", at=4, number=0x16, size=1),
        "has a symbol tile_1 of type STT_TLS",
    ),
    "a symbol that is computed": (
        lambda o: o.symbol("tile_1", at=4, number=0x1A, size=1),
        "has a symbol tile_1 of type STT_LOOS",
    ),
    "a call": (
        lambda o: o.relocation(at=8, number=4, size=4),
        "has a relocation R_X86_64_PLT32 at {first} of .text (it must be R_X86_64_PC32)",
    ),
    "an address": (
        lambda o: o.relocation(at=8, number=1, size=4),
        "has a relocation R_X86_64_64 at {first} of .text (it must be R_X86_64_PC32)",
    ),
    "an unknown relocation": (
        lambda o: o.relocation(at=8, number=77, size=4),
        "has a relocation 77 at {first} of .text (it must be R_X86_64_PC32)",
    ),
    "a relocation outside": (
        lambda o: o.relocation(at=0, number=o.sizes[o.names.index(".text")] - 3),
        "has a relocation at {last} of .text, which has {size} bytes",
    ),
    "a relocation to code": (
        lambda o: o.relocation(at=12, number=o.symbols.index("tile_1"), size=4),
        "has a relocation at {first} of .text to .text (it must be to .rodata)",
    ),
    "a relocation to helpers": (
        lambda o: o.relocation(at=12, number=o.symbols.index("__extendhfsf2"), size=4),
        "has a relocation at {first} of .text to .text.tvm.fp16.conv (it must be to .rodata)",
    ),
    "a relocation behind its section": (
        lambda o: o.relocation(at=16, number=12 - 4),
        "has a relocation at {first} of .text to 12 of .rodata.cst4, which has 12 bytes",
    ),
    "a relocation before its section": (
        lambda o: o.relocation(at=16, number=-9),
        "has a relocation at {first} of .text to -5 of .rodata.cst4, which has 12 bytes",
    ),
    "constants with relocations": (
        lambda o: o.section(".rela.debug_info", info=o.names.index(".rodata.cst4")),
        "has relocations in .rodata.cst4 (it must have them in .text alone)",
    ),
    "constants that are wider than a line": (
        lambda o: o.section(".rodata.cst4", alignment=128),
        "wants .rodata.cst4 at a multiple of 128 bytes (it must be a power of two up to 64)",
    ),
    "an alignment that is none": (
        lambda o: o.section(".rodata.cst4", alignment=12),
        "wants .rodata.cst4 at a multiple of 12 bytes (it must be a power of two up to 64)",
    ),
    "a kernel within a line": (
        lambda o: o.symbol("tile_1", at=8, number=16, size=8),
        "has the function tile_1 at 16 of .text (it must be at a multiple of 64 inside of .text)",
    ),
    "a kernel outside": (
        lambda o: o.symbol("tile_1", at=8, number=1 << 20, size=8),
        "has the function tile_1 at 1048576 of .text (it must be at a multiple of 64 inside of "
        ".text)",
    ),
    "a kernel in constants": (
        lambda o: o.symbol("tile_1", at=6, number=o.names.index(".rodata.cst4")),
        "has the function tile_1 at {tile_1} of .rodata.cst4 (it must be at a multiple of 64 "
        "inside of .text)",
    ),
    "a kernel that is no function": (
        lambda o: o.symbol("tile_1", at=4, number=0x11, size=1),
        "has no function tile_1",
    ),
    "another processor": (
        lambda o: o.content.__setitem__(18, 183),
        "is ELFCLASS64, ELFDATA2LSB, EM_AARCH64, ET_REL (it must be ELFCLASS64, ELFDATA2LSB, "
        "EM_X86_64, ET_REL)",
    ),
    "an object of 32 bits": (
        lambda o: o.content.__setitem__(4, 1),
        "is ELFCLASS32, ELFDATA2LSB, EM_X86_64, ET_REL (it must be ELFCLASS64, ELFDATA2LSB, "
        "EM_X86_64, ET_REL)",
    ),
    "a big-endian object": (
        lambda o: o.content.__setitem__(5, 2),
        "is ELFCLASS64, ELFDATA2MSB, 15872, 256 (it must be ELFCLASS64, ELFDATA2LSB, "
        "EM_X86_64, ET_REL)",
    ),
    "a shared library": (
        lambda o: o.content.__setitem__(16, 3),
        "is ELFCLASS64, ELFDATA2LSB, EM_X86_64, ET_DYN (it must be ELFCLASS64, ELFDATA2LSB, "
        "EM_X86_64, ET_REL)",
    ),
    "no object": (
        lambda o: o.content.__setitem__(0, 0),
        "cannot be read (ELFError: Magic number does not match)",
    ),
}


def name_of(edited: Object, section: str) -> int:
    """Where a section's name is among all names."""
    at = edited.sections + 64 * edited.names.index(section)
    return int.from_bytes(edited.content[at : at + 4], "little")


@pytest.mark.parametrize("name", WRONG)
def test_what_an_image_cannot_hold_is_refused(whole: bytes, name: str) -> None:
    edit, message = WRONG[name]
    edited = Object(whole)
    size = edited.sizes[edited.names.index(".text")]
    first, tile_1 = edited.first_place, read(whole).entries[2]
    edit(edited)
    with pytest.raises(BuildError) as caught:
        read(bytes(edited.content))
    wanted = message.format(first=first, last=size - 3, size=size, tile_1=tile_1)
    assert str(caught.value) == f"{WHAT}the object that TVM made {wanted}{HINT}"


def test_a_kernel_that_is_missing(whole: bytes) -> None:
    with pytest.raises(BuildError) as caught:
        read(whole, ("tile_0", "tile_2"))
    assert str(caught.value) == f"{WHAT}the object that TVM made has no function tile_2{HINT}"


@pytest.mark.parametrize("trailing", [1, 4])
def test_a_reference_may_have_a_number_behind_it(whole: bytes, trailing: int) -> None:
    """An instruction may end after its distance, from which the processor does not count then."""
    edited = Object(whole)
    edited.relocation(at=16, number=-4 - trailing)
    assert read(bytes(edited.content)).references[0].offset == -4 - trailing


def test_objects_that_end_early_are_refused(whole: bytes) -> None:
    elf = ELFFile(io.BytesIO(whole))
    ends = {section["sh_offset"] for section in elf.iter_sections()}
    for end in sorted({0, 1, 63, 64, 1000, len(whole) - 1, *ends, *(e + 1 for e in ends)}):
        if end < len(whole):
            with pytest.raises(BuildError, match=f"^{WHAT}the object that TVM made "):
                read(whole[:end])


def test_a_section_that_ends_early_is_named(whole: bytes) -> None:
    edited = Object(whole)
    edited.section(".text", size=len(whole))
    begin = edited.offsets[edited.names.index(".text")]
    with pytest.raises(BuildError) as caught:
        read(bytes(edited.content))
    assert caught.value.message == (
        f"{WHAT}the object that TVM made ends after {len(whole) - begin} of the {len(whole)} bytes "
        "of .text"
    )


def test_damage_of_any_kind_is_a_build_error_or_none(whole: bytes) -> None:
    draw = random.Random(0)
    elf = ELFFile(io.BytesIO(whole))
    tables = [elf.get_section_by_name(name) for name in (".symtab", ".rela.text", ".strtab")]
    places = [*range(64), *range(elf["e_shoff"], len(whole))]
    for table in tables:
        places += range(table["sh_offset"], table["sh_offset"] + table["sh_size"])
    refused = 0
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 1, 3))):
            damaged[draw.choice(places)] = draw.randrange(256)
        try:
            read(bytes(damaged))
        except BuildError as error:
            assert error.message.startswith(f"{WHAT}the object that TVM made ")
            refused += 1
    assert refused > 100
