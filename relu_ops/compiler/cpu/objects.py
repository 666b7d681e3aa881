"""Reads the object that TVM made of kernels: code, the constants it reads, and how it finds them.

Such an object needs nothing: no symbol of another one, no memory of its own to write to, no code
to run before it. Whoever maps an image does none of these for it, so whatever else an object holds
is refused, by name.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from relu_ops.compiler.layout import LINE
from relu_ops.errors import BuildError

TEXT = ".text"

# <elf.h>: what sections are, and how they are used.
_WRITE, _ALLOCATED, _EXECUTABLE, _MERGED, _STRINGS, _THREAD_LOCAL = 0x1, 0x2, 0x4, 0x10, 0x20, 0x400
_SYMBOLS = ("STT_NOTYPE", "STT_OBJECT", "STT_FUNC", "STT_SECTION", "STT_FILE")
_ALIGNMENTS = tuple(1 << k for k in range(LINE.bit_length()))

WORD = 4
"""Bytes that a relocation changes."""

_HINT = "relu_ops knows what apache-tvm 0.27 makes of its kernels: install that version"


@dataclass(frozen=True)
class Relocation:
    """How a word of code gets to know where constants lie, of one type that an object may have.

    Attributes:
        name: As <elf.h> has it.
        fill: The word, of what stood there, its own place and the place that is meant; None where
            it must not be at such a place.
        reach: How far from the word that may lie, in bytes.
        behind: How far behind the place that is meant the processor reads, at least.
        before: How far before what is read that place may lie, at most.
        multiple: What that place must be a multiple of.
    """

    name: str
    fill: Callable[[int, int, int], int | None]
    reach: int = 1 << 32
    behind: int = 0
    before: int = 0
    multiple: int = 1


@dataclass(frozen=True)
class Form:
    """What the objects for a processor look like.

    Attributes:
        machine: As pyelftools calls it: "EM_X86_64".
        relocations: Those that are applied, by number.
        names: Of every type of relocation that there is, by number.
        filler: A byte, of which as many as needed lie between one code and the next, and trap.
    """

    machine: str
    relocations: Mapping[int, Relocation]
    names: Mapping[int, str]
    filler: bytes


@dataclass(frozen=True)
class Constants:
    """A section that code reads."""

    content: bytes
    alignment: int


@dataclass(frozen=True)
class Reference:
    """A word of code that depends on a place in constants.

    Attributes:
        at: Where in the code.
        section: Which of the constants.
        offset: Where in these.
        relocation: How it depends.
    """

    at: int
    section: int
    offset: int
    relocation: Relocation


@dataclass(frozen=True)
class Code:
    """What an image takes of an object. Equal ones may share their place.

    Attributes:
        text: The machine code of all kernels, to lie at a multiple of LINE.
        constants: What it reads.
        references: Where it does.
        entries: Where in the code each kernel begins, in the order in which they were asked for.
        filler: A byte that may lie behind it: see `Form`.
    """

    text: bytes
    constants: tuple[Constants, ...]
    references: tuple[Reference, ...]
    entries: tuple[int, ...]
    filler: bytes


def read(content: bytes, kernels: Iterable[str], what: str, form: Form) -> Code:
    """Take an object apart.

    Args:
        content: An ELF object.
        kernels: The names of the functions that are called.
        what: What it was made of, as the subject of messages: "relu for x86-64-v3".
        form: What it must look like.

    Raises:
        BuildError: It is no such object, or holds or needs something that an image cannot give it.
    """
    try:
        return _Object(content, what, form).code(kernels)
    except BuildError:
        raise
    except Exception as error:  # pyelftools meets damage with whatever error it leads to
        raise BuildError(
            f"{what}: the object that TVM made cannot be read ({type(error).__name__}: {error})",
            _HINT,
        ) from error


class _Object:
    """An ELF object, each of its parts checked before it is used."""

    def __init__(self, content: bytes, what: str, form: Form) -> None:
        self.what = what
        self.form = form
        self.elf = ELFFile(io.BytesIO(content))
        self._check_machine()
        self.sections = list(self.elf.iter_sections())
        table = self.elf.get_section_by_name(".symtab")
        if not isinstance(table, SymbolTableSection):
            self.refuse("has no table of symbols")
        self.symbols = list(table.iter_symbols())

    def refuse(self, problem: str) -> NoReturn:
        raise BuildError(f"{self.what}: the object that TVM made {problem}", _HINT)

    def code(self, kernels: Iterable[str]) -> Code:
        for section in self.sections:
            self._check_section(section)
        for symbol in self.symbols[1:]:  # the first one is none
            self._check_symbol(symbol)
        texts = [
            number
            for number, section in enumerate(self.sections)
            if section.name == TEXT and section["sh_flags"] & _ALLOCATED
        ]
        if len(texts) != 1:
            self.refuse(f"has {len(texts)} sections {TEXT} (it must have one)")
        text = self._content(texts[0])
        means = [self._reference(r, len(text)) for r in self._relocations(texts[0])]
        used = sorted({one.section for one in means})
        return Code(
            text,
            tuple(self._constants(k) for k in used),
            tuple(replace(one, section=used.index(one.section)) for one in means),
            tuple(self._entry(name, texts[0], len(text)) for name in kernels),
            self.form.filler,
        )

    # -- what there is ---------------------------------------------------------------------

    def _check_machine(self) -> None:
        header = self.elf.header
        found = (header.e_ident.EI_CLASS, header.e_ident.EI_DATA, header.e_machine, header.e_type)
        wanted = ("ELFCLASS64", "ELFDATA2LSB", self.form.machine, "ET_REL")
        if found != wanted:
            self.refuse(f"is {', '.join(map(str, found))} (it must be {', '.join(wanted)})")

    def _check_section(self, section: Any) -> None:
        flags = section["sh_flags"]
        if not flags & _ALLOCATED:  # nothing of it is there when code runs
            return
        if flags & _THREAD_LOCAL:
            self.refuse(f"has thread-local data, in {section.name} (it must have none)")
        if flags & _WRITE:
            self.refuse(f"has data that is written to, in {section.name} (it must have none)")
        if section["sh_type"] != "SHT_PROGBITS" or flags & ~_allowed_flags(section.name):
            self.refuse(
                f"has a section {section.name} of type {section['sh_type']} and flags 0x{flags:x} "
                f"(it must have code in {TEXT} and constants in .rodata alone)"
            )

    def _check_symbol(self, symbol: Any) -> None:
        kind, place = symbol["st_info"]["type"], symbol["st_shndx"]
        if kind not in _SYMBOLS:
            self.refuse(f"has a symbol {symbol.name} of type {kind}")
        if kind == "STT_FILE":
            return
        if place == "SHN_UNDEF":
            self.refuse(f"needs the symbol {symbol.name} (it must need none)")
        if not isinstance(place, int):
            self.refuse(f"has a symbol {symbol.name} in {place} (it must be in a section)")

    # -- what is taken ---------------------------------------------------------------------

    def _content(self, number: int) -> bytes:
        section = self.sections[number]
        content: bytes = section.data()
        if len(content) != section["sh_size"]:
            self.refuse(
                f"ends after {len(content)} of the {section['sh_size']} bytes of {section.name}"
            )
        if section["sh_addralign"] not in _ALIGNMENTS:
            self.refuse(
                f"wants {section.name} at a multiple of {section['sh_addralign']} bytes (it must "
                f"be a power of two up to {LINE})"
            )
        return content

    def _constants(self, number: int) -> Constants:
        section = self.sections[number]
        if next(self._relocations(number), None) is not None:
            self.refuse(f"has relocations in {section.name} (it must have them in {TEXT} alone)")
        return Constants(self._content(number), section["sh_addralign"])

    def _relocations(self, number: int) -> Iterator[Any]:
        for section in self.sections:
            if isinstance(section, RelocationSection) and section["sh_info"] == number:
                yield from section.iter_relocations()

    def _reference(self, relocation: Any, size: int) -> Reference:
        """A word of the code, with the number of the section that it means."""
        at, number = relocation["r_offset"], relocation["r_info_type"]
        where = f"at {at} of {TEXT}"
        kind = self.form.relocations.get(number)
        if kind is None or not relocation.is_RELA():
            allowed = " or ".join(each.name for each in self.form.relocations.values())
            name = self.form.names.get(number, number)
            self.refuse(f"has a relocation {name} {where} (it must be {allowed})")
        if at > size - WORD:
            self.refuse(f"has a relocation {where}, which has {size} bytes")
        symbol = self.symbols[relocation["r_info_sym"]]
        section = self.sections[symbol["st_shndx"]]
        if not (_is_constants(section.name) and section["sh_flags"] & _ALLOCATED):
            self.refuse(f"has a relocation {where} to {section.name} (it must be to .rodata)")
        offset = symbol["st_value"] + relocation["r_addend"]
        read = offset + kind.behind
        if not -kind.before <= read < section["sh_size"]:
            self.refuse(
                f"has a relocation {where} to {read} of {section.name}, which has "
                f"{section['sh_size']} bytes"
            )
        if offset % kind.multiple or section["sh_addralign"] % kind.multiple:
            self.refuse(
                f"has a relocation {kind.name} {where} to {offset} of {section.name}, which lies "
                f"at a multiple of {section['sh_addralign']} (it must be to one of {kind.multiple})"
            )
        return Reference(at, symbol["st_shndx"], offset, kind)

    def _entry(self, name: str, text: int, size: int) -> int:
        for symbol in self.symbols:
            if symbol.name == name and symbol["st_info"]["type"] == "STT_FUNC":
                break
        else:
            self.refuse(f"has no function {name}")
        at: int = symbol["st_value"]
        if symbol["st_shndx"] != text or at >= size or at % LINE:
            section = self.sections[symbol["st_shndx"]]
            self.refuse(
                f"has the function {name} at {at} of {section.name} (it must be at a multiple of "
                f"{LINE} inside of {TEXT})"
            )
        return at


def _is_constants(section: str) -> bool:
    return section == ".rodata" or section.startswith(".rodata.")


def _allowed_flags(section: str) -> int:
    """Helpers may be there beside the kernels' code, in sections of their own: none is used."""
    if section == TEXT or section.startswith(f"{TEXT}."):
        return _ALLOCATED | _EXECUTABLE
    return _ALLOCATED | _MERGED | _STRINGS if _is_constants(section) else 0
