"""Checks a library before it is opened: only the shape of file that our linker makes passes.

The dynamic linker believes what it maps: a file that lies about a size, an offset or an index
ends the process. Every number that it would follow is checked here first, on the very bytes that
are then loaded, and wherever a linker writes one fact twice (segments and sections, the dynamic
table and the section headers, symbols and unwind tables) both must agree. Code itself is not
looked at: whoever makes it is trusted through the bundle's digest.

Formats: the System V gABI (ELF-64, little-endian), its x86-64 supplement, and the Linux Standard
Base for `.eh_frame_hdr`, GNU hash tables and symbol versions. Standard library alone.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from relu_ops.errors import BundleError


@dataclass(frozen=True)
class Allowance:
    """What a library of one kind of target may name.

    Attributes:
        needed: Shared libraries that it may ask for.
        imports: Functions that it may take from elsewhere.
        exports: Functions that it must offer, and no other.
    """

    needed: frozenset[str]
    imports: frozenset[str]
    exports: frozenset[str]


# Before glibc 2.34 threads were a library of their own.
_NEEDED_LIBRARIES = frozenset({"libc.so.6", "libpthread.so.0"})

# What every kind takes: what compilers make of assignments and loops, memory, errors, functions.
_COMMON_IMPORTS = frozenset(
    {
        *("bcmp", "memcmp", "memcpy", "memmove", "memset", "free", "malloc"),
        *("nanosleep", "pause", "pthread_self"),
        *("TVMFFIErrorSetRaisedFromCStrParts", "TVMFFIFunctionCreate"),
    }
)
_COMMON_EXPORTS = frozenset(
    {
        *("__tvm_ffi_call", "__tvm_ffi_call_views", "__tvm_ffi_configure", "__tvm_ffi_end"),
        *("__tvm_ffi_bind", "__tvm_ffi_bind_views"),
        *("relu_ops_bound", "relu_ops_compute"),
    }
)

ALLOWANCES = {
    "cpu": Allowance(
        needed=_NEEDED_LIBRARIES,
        imports=_COMMON_IMPORTS
        | {  # pool.c
            *("__register_atfork", "pthread_attr_destroy", "pthread_attr_init"),
            *("pthread_attr_setdetachstate", "pthread_create", "sigfillset", "sigprocmask"),
            *("syscall", "TVMFFIFunctionCall", "TVMFFIFunctionGetGlobal"),
            *("TVMFFIFunctionSetGlobal", "TVMFFIObjectDecRef"),
        },
        exports=_COMMON_EXPORTS,
    ),
    "cuda": Allowance(
        needed=_NEEDED_LIBRARIES,
        imports=_COMMON_IMPORTS
        | {  # contexts and modules of devices; the driver is found by the runtime
            *("calloc", "pthread_mutex_lock", "pthread_mutex_unlock", "snprintf"),
            "TVMFFIEnvGetStream",
        },
        exports=_COMMON_EXPORTS | {"__tvm_ffi_prepare"},
    ),
}
"""By the kind of target (`Target.kind`). A function that a library newly calls gets a place here;
tests/test_elf.py holds every library to its row, and every row to what libraries use."""

_HINT = "it is not as relu_ops builds it: build the bundle again"

# ---------------------------------------------------------------------------------------------
# The file format, as tables

_HEADER = struct.Struct("<4sBBBBB7sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_DYNAMIC = struct.Struct("<QQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QIIQ")  # r_info is read as its halves: type, symbol

# Fields of the header: where in the tuple, its name, and the values allowed.
_HEADER_FIELDS: tuple[tuple[int, str, tuple[int | bytes, ...]], ...] = (
    (0, "magic", (b"\x7fELF",)),
    (1, "class", (2,)),  # 64 bits
    (2, "byte order", (1,)),  # little-endian
    (3, "identification version", (1,)),
    (4, "operating system ABI", (0,)),  # System V
    (5, "ABI version", (0,)),
    (6, "padding", (bytes(7),)),
    (7, "file type", (3,)),  # ET_DYN
    (8, "machine", (62,)),  # EM_X86_64
    (9, "version", (1,)),
    (11, "program header offset", (_HEADER.size,)),
    (13, "flags", (0,)),
    (14, "header size", (_HEADER.size,)),
    (15, "program header size", (_SEGMENT.size,)),
    (16, "number of program headers", tuple(range(1, 17))),
    (17, "section header size", (_SECTION.size,)),
    (18, "number of section headers", tuple(range(1, 65))),
)

_READ, _READ_WRITE, _READ_EXECUTE = 4, 6, 5
_LOAD, _DYNAMIC_SEGMENT, _NOTE, _HEADERS = 1, 2, 4, 6
_EH_FRAME, _STACK, _RELRO, _PROPERTY = 0x6474E550, 0x6474E551, 0x6474E552, 0x6474E553

# Segments: name, permissions allowed, whether there must be one.
_SEGMENTS: dict[int, tuple[str, tuple[int, ...], bool]] = {
    _LOAD: ("PT_LOAD", (_READ, _READ_WRITE, _READ_EXECUTE), True),
    _DYNAMIC_SEGMENT: ("PT_DYNAMIC", (_READ_WRITE,), True),
    _NOTE: ("PT_NOTE", (_READ,), False),
    _HEADERS: ("PT_PHDR", (_READ,), False),
    _EH_FRAME: ("PT_GNU_EH_FRAME", (_READ,), True),
    _STACK: ("PT_GNU_STACK", (_READ_WRITE,), True),  # without it the stack becomes executable
    _RELRO: ("PT_GNU_RELRO", (_READ,), False),
    _PROPERTY: ("PT_GNU_PROPERTY", (_READ,), False),
}

_WRITE, _ALLOCATED, _EXECUTE = 1, 2, 4
_SECTION_FLAGS = 0x1 | 0x2 | 0x4 | 0x10 | 0x20 | 0x40 | 0x80  # no groups, threads, compression

# Sections of the dynamic linker's tables, by the tag that names their address.
_STRTAB, _SYMTAB, _HASH, _RELA, _JMPREL = 5, 6, 0x6FFFFEF5, 7, 23
_VERSYM, _VERNEED = 0x6FFFFFF0, 0x6FFFFFFE
_TABLES = {
    _STRTAB: 3,
    _SYMTAB: 11,
    _HASH: 0x6FFFFFF6,
    _RELA: 4,
    _JMPREL: 4,
    _VERSYM: 0x6FFFFFFF,
    _VERNEED: 0x6FFFFFFE,
}
_PROGRAM_BITS, _NO_BITS, _DYNAMIC_SECTION = 1, 8, 6
_REFUSED_SECTION_NAMES = {
    **{2: "SYMTAB", 5: "HASH", 9: "REL", 14: "INIT_ARRAY", 15: "FINI_ARRAY"},
    **{16: "PREINIT_ARRAY", 19: "RELR", 0x6FFFFFFD: "VERDEF"},
}
_SECTION_TYPES = {0, _PROGRAM_BITS, _DYNAMIC_SECTION, 7, _NO_BITS, 0x70000001, *_TABLES.values()}

# Sections that become read-only once they are relocated.
_RELRO_SECTIONS = {
    *(".data.rel.ro", ".data.rel.ro.local", ".dynamic", ".got", ".got.plt"),
    ".relro_padding",  # lld
}

_NULL, _NEEDED, _STRSZ, _SYMENT, _PLTGOT, _PLTRELSZ, _PLTREL = 0, 1, 10, 11, 3, 2, 20
_RELASZ, _RELAENT, _FLAGS, _FLAGS_1, _RELACOUNT = 8, 9, 30, 0x6FFFFFFB, 0x6FFFFFF9
_VERNEEDNUM = 0x6FFFFFFF

_TAG_NAMES = {
    **{_NEEDED: "NEEDED", _STRTAB: "STRTAB", _SYMTAB: "SYMTAB", _STRSZ: "STRSZ"},
    **{_SYMENT: "SYMENT", _HASH: "GNU_HASH", _PLTGOT: "PLTGOT", _PLTRELSZ: "PLTRELSZ"},
    **{_PLTREL: "PLTREL", _JMPREL: "JMPREL", _RELA: "RELA", _RELASZ: "RELASZ"},
    **{_RELAENT: "RELAENT", _FLAGS: "FLAGS", _FLAGS_1: "FLAGS_1", _RELACOUNT: "RELACOUNT"},
    **{_VERNEED: "VERNEED", _VERNEEDNUM: "VERNEEDNUM", _VERSYM: "VERSYM"},
}
_REFUSED_TAG_NAMES = {
    # A library of ours has no constructor: opening it runs none of its code.
    **{12: "INIT", 13: "FINI", 25: "INIT_ARRAY", 26: "FINI_ARRAY", 32: "PREINIT_ARRAY"},
    **{15: "RPATH", 29: "RUNPATH", 22: "TEXTREL", 14: "SONAME", 16: "SYMBOLIC", 17: "REL"},
    **{4: "HASH", 36: "RELR", 0x7FFFFFFD: "AUXILIARY", 0x7FFFFFFF: "FILTER"},
    **{0x6FFFFEFB: "DEPAUDIT", 0x6FFFFEFC: "AUDIT", 0x6FFFFFFC: "VERDEF"},
}
# Tags whose value is fixed or a set of bits.
_TAG_VALUES = {_SYMENT: (24,), _RELAENT: (24,), _PLTREL: (7,), _FLAGS: (0, 8), _FLAGS_1: (0, 1)}
# Tags that stand together; the first line must be there.
_TAG_GROUPS = (
    (_STRTAB, _STRSZ, _SYMTAB, _SYMENT, _HASH),
    (_RELA, _RELASZ, _RELAENT),
    (_JMPREL, _PLTRELSZ, _PLTREL),
    (_VERNEED, _VERNEEDNUM, _VERSYM),
)

_GLOB_DAT, _JUMP_SLOT, _RELATIVE = 6, 7, 8
_RELOCATION_NAMES = {_GLOB_DAT: "GLOB_DAT", _JUMP_SLOT: "JUMP_SLOT", _RELATIVE: "RELATIVE"}

_PAGE = 4096
_LARGEST_PAGE = 2**21
_LARGEST_IMAGE = 2**31  # of memory, once mapped
_VERSION_NAME = re.compile(r"GLIBC_2(\.[0-9]{1,3}){1,2}")


class _Segment(NamedTuple):
    type: int
    flags: int
    offset: int
    address: int
    physical: int
    file_size: int
    size: int
    alignment: int

    def holds(self, address: int, size: int) -> bool:
        return self.address <= address and address + size <= self.address + self.size


class _Section(NamedTuple):
    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int

    def holds(self, address: int, size: int) -> bool:
        return self.address <= address and address + size <= self.address + self.size


class _Symbol(NamedTuple):
    name: str
    section: int
    value: int
    size: int


class Refusal(Exception):
    """Why a file is refused: what was found, and what is allowed."""


def check(content: bytes, name: str, kind: str = "cpu") -> None:
    """Refuse a library that is not of the shape that our linker makes.

    Args:
        content: The file.
        name: What to call it in a message.
        kind: The kind of its target: a row of `ALLOWANCES`.

    Raises:
        BundleError: It is another kind of file, or one of its tables lies; the message names the
            file, what was found and what is allowed.
    """
    try:
        _Checker(content, ALLOWANCES[kind]).check()
    except Refusal as refusal:
        raise BundleError(f"{name}: {refusal}", _HINT) from refusal


def glibc_versions(content: bytes) -> set[tuple[int, ...]]:
    """The glibc symbol versions that a library, checked before, asks for."""
    checker = _Checker(content, ALLOWANCES["cpu"])
    checker.read()
    names = checker.versions().values()
    return {tuple(int(part) for part in name[len("GLIBC_") :].split(".")) for name in names}


def _refuse(what: str, found: object, allowed: object) -> NoReturn:
    shown = str(found)
    shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
    raise Refusal(f"{what} is {shown} (allowed: {allowed})")


def _listed(names: Iterable[object]) -> str:
    return ", ".join(map(str, names))


class _Checker:
    """Reads a library table by table; each method relies on the ones that `check` calls before."""

    def __init__(self, content: bytes, allowance: Allowance) -> None:
        self.content = content
        self.allowance = allowance
        self.segments: list[_Segment] = []
        self.sections: list[_Section] = []
        self.allocated: list[_Section] = []
        self.data: list[_Section] = []
        self.dynamic: dict[int, int] = {}
        self.tables: dict[int, _Section] = {}
        self.needed: list[str] = []

    def check(self) -> None:
        self.read()
        functions = self.functions()
        symbols = self.symbols(functions)
        self.check_hash(len(symbols))
        self.check_versions(symbols)
        self.check_relocations(symbols, functions)

    def read(self) -> None:
        """Read and check everything that says where something is."""
        section_offset, section_count, names_index = self.read_header()
        self.check_segments()
        self.read_sections(section_offset, section_count, names_index)
        self.check_sections()
        self.read_dynamic()
        self.match_tables()
        self.check_needed()

    # ------------------------------------------------------------------ header and segments

    def part(self, what: str, offset: int, size: int) -> bytes:
        """A range of the file."""
        if offset + size > len(self.content):
            _refuse(f"the end of {what}", offset + size, f"at most {len(self.content)}, the size")
        return self.content[offset : offset + size]

    def read_header(self) -> tuple[int, int, int]:
        if len(self.content) < _HEADER.size:
            _refuse("the size", len(self.content), f"at least {_HEADER.size}")
        header = _HEADER.unpack_from(self.content)
        for at, name, allowed in _HEADER_FIELDS:
            if header[at] not in allowed:
                bounds = allowed if len(allowed) < 3 else (f"{allowed[0]!r} to {allowed[-1]!r}",)
                _refuse(f"the {name} of the ELF header", header[at], _listed(bounds))
        program = self.part("the program headers", header[11], header[16] * _SEGMENT.size)
        self.segments = [_Segment(*fields) for fields in _SEGMENT.iter_unpack(program)]
        if header[19] >= header[18]:
            _refuse("the section of section names", header[19], f"below {header[18]}")
        return header[12], header[18], header[19]

    def check_segments(self) -> None:
        for segment in self.segments:
            name, flags, _ = _SEGMENTS.get(segment.type, (f"{segment.type:#x}", (), False))
            if not flags:
                allowed = _listed(row[0] for row in _SEGMENTS.values())
                _refuse("the type of a segment", name, allowed)
            if segment.flags not in flags:
                shown = _listed(map(_permissions, flags))
                _refuse(f"the permission of {name}", _permissions(segment.flags), shown)
            self.part(name, segment.offset, segment.file_size)
            if segment.file_size > segment.size:
                _refuse(f"the size of {name} in the file", segment.file_size, segment.size)
        for kind, (name, _, required) in _SEGMENTS.items():
            count = sum(s.type == kind for s in self.segments)
            if (required and not count) or (count > 1 and kind not in (_LOAD, _NOTE)):
                _refuse(f"the number of segments {name}", count, "1" if required else "0 or 1")
        self.check_loads()
        for segment in self.segments:
            if segment.type not in (_LOAD, _STACK):
                self.check_inside(segment)

    def loads(self) -> list[_Segment]:
        return [segment for segment in self.segments if segment.type == _LOAD]

    def check_loads(self) -> None:
        """Loaded segments are in order, on pages of their own, and begin with the header."""
        end = 0
        for load in self.loads():
            shift, alignment = load.address - load.offset, load.alignment
            if alignment & (alignment - 1) or not _PAGE <= alignment <= _LARGEST_PAGE:
                _refuse("the alignment of PT_LOAD", alignment, "a power of two of 4096 to 2**21")
            if shift % alignment:
                _refuse(
                    "the address of PT_LOAD less its offset", shift, f"multiples of {alignment}"
                )
            if end == 0 and (load.offset or load.address or load.file_size < _HEADER.size):
                _refuse("the first PT_LOAD", f"at {load.address:#x}", "the header, at 0")
            if load.address // _PAGE * _PAGE < end:
                _refuse("the address of PT_LOAD", hex(load.address), f"{end:#x} or more")
            end = -(-(load.address + load.size) // _PAGE) * _PAGE
            if end > _LARGEST_IMAGE:
                _refuse("the size in memory", end, f"at most {_LARGEST_IMAGE}")
            if load.size > load.file_size and load.flags != _READ_WRITE:
                _refuse("the memory beyond the file of PT_LOAD", load.size, load.file_size)

    def check_inside(self, segment: _Segment) -> None:
        """A segment that describes memory lies in a loaded one."""
        name = _SEGMENTS[segment.type][0]
        # A linker may round the read-only part up to the end of its page.
        size = segment.file_size if segment.type == _RELRO else segment.size
        load = next((s for s in self.loads() if s.holds(segment.address, max(size, 1))), None)
        if load is None or segment.offset - load.offset != segment.address - load.address:
            _refuse(f"the place of {name}", hex(segment.address), "inside a PT_LOAD")
        in_file = segment.address + segment.file_size <= load.address + load.file_size
        if not in_file or (segment.type != _RELRO and segment.size != segment.file_size):
            _refuse(f"the size of {name}", segment.size, "what the file holds of it")
        if segment.type == _RELRO:
            end = -(-(segment.address + segment.file_size) // _PAGE) * _PAGE
            if load.flags != _READ_WRITE or segment.address + segment.size > end:
                _refuse("the end of PT_GNU_RELRO", hex(segment.address + segment.size), hex(end))
        if segment.type == _HEADERS and (
            (segment.offset, segment.size) != (_HEADER.size, len(self.segments) * _SEGMENT.size)
        ):
            _refuse("PT_PHDR", f"at {segment.offset}", f"the program headers, at {_HEADER.size}")
        if segment.type in (_NOTE, _PROPERTY):
            _check_notes(self.part(name, segment.offset, segment.size), segment.alignment)

    # ------------------------------------------------------------------ sections

    def read_sections(self, offset: int, count: int, names_index: int) -> None:
        headers = self.part("the section headers", offset, count * _SECTION.size)
        rows = list(_SECTION.iter_unpack(headers))
        names = self.part("the section names", rows[names_index][4], rows[names_index][5])
        for name, kind, flags, address, at, size, *_ in rows:
            if kind not in _SECTION_TYPES:
                shown = f"SHT_{_REFUSED_SECTION_NAMES.get(kind, hex(kind))}"
                _refuse("the type of a section", shown, "those of a library without constructors")
            if kind != _NO_BITS:
                self.part("a section", at, size)
            self.sections.append(_Section(_text(names, name), kind, flags, address, at, size))
        self.allocated = [s for s in self.sections if s.flags & _ALLOCATED]
        self.data = [s for s in self.allocated if s.flags & _WRITE and s.type == _PROGRAM_BITS]

    def check_sections(self) -> None:
        """What is in memory lies in a segment with just its permissions, apart from the rest."""
        end = 0
        for section in sorted(self.allocated, key=lambda s: (s.address, s.size)):
            if section.flags & ~_SECTION_FLAGS:
                _refuse(f"the flags of {section.name}", hex(section.flags), hex(_SECTION_FLAGS))
            if section.address < end:
                _refuse(f"the address of {section.name}", hex(section.address), f">= {end:#x}")
            end = section.address + section.size
            self.check_section_inside(section)

    def check_section_inside(self, section: _Section) -> None:
        load = next((s for s in self.loads() if s.holds(section.address, section.size)), None)
        if load is None:
            _refuse(f"the place of {section.name}", hex(section.address), "inside a PT_LOAD")
        for flag, permission in ((_WRITE, 2), (_EXECUTE, 1)):
            if section.flags & flag and not load.flags & permission:
                _refuse(f"the segment of {section.name}", _permissions(load.flags), "its own")
        in_file = section.address + section.size <= load.address + load.file_size
        same = section.offset - load.offset == section.address - load.address
        if section.type != _NO_BITS and not (in_file and same):
            _refuse(f"the offset of {section.name}", hex(section.offset), "that of its segment")
        if section.flags & _WRITE and section.name not in _RELRO_SECTIONS:
            relro = next((s for s in self.segments if s.type == _RELRO), None)
            if relro is not None and section.address < relro.address + relro.size:
                _refuse(f"the place of {section.name}", hex(section.address), "behind PT_GNU_RELRO")

    # ------------------------------------------------------------------ the dynamic table

    def read_dynamic(self) -> None:
        segment = next(s for s in self.segments if s.type == _DYNAMIC_SEGMENT)
        kinds = [(s.address, s.size) for s in self.sections if s.type == _DYNAMIC_SECTION]
        if kinds != [(segment.address, segment.size)] or segment.size % _DYNAMIC.size:
            _refuse("PT_DYNAMIC", f"at {segment.address:#x}", "the section .dynamic")
        rows = self.part("PT_DYNAMIC", segment.offset, segment.size)
        self.needed_at: list[int] = []
        for tag, value in _DYNAMIC.iter_unpack(rows):
            if tag == _NULL:
                break
            self.read_tag(tag, value)
        else:
            _refuse("the end of the dynamic table", "missing", "DT_NULL")
        for group in _TAG_GROUPS:
            found = [tag for tag in group if tag in self.dynamic]
            if found != list(group) and (found or group is _TAG_GROUPS[0]):
                names = _listed(f"DT_{_TAG_NAMES[tag]}" for tag in group)
                _refuse("the dynamic table", f"without one of {names}", "all of them")

    def read_tag(self, tag: int, value: int) -> None:
        if tag not in _TAG_NAMES:
            shown = f"DT_{_REFUSED_TAG_NAMES[tag]}" if tag in _REFUSED_TAG_NAMES else hex(tag)
            _refuse("an entry of the dynamic table", shown, _listed(_TAG_NAMES.values()))
        name = f"DT_{_TAG_NAMES[tag]}"
        allowed = _TAG_VALUES.get(tag, (value,))
        if value not in allowed:
            _refuse(name, hex(value), _listed(map(hex, allowed)))
        if tag == _NEEDED:
            self.needed_at.append(value)
        elif tag in self.dynamic:
            _refuse(f"the number of entries {name}", 2, 1)
        else:
            self.dynamic[tag] = value

    def match_tables(self) -> None:
        """Each table that the dynamic table names is a section of its own, of the same size."""
        sizes = {_STRTAB: _STRSZ, _RELA: _RELASZ, _JMPREL: _PLTRELSZ}
        for tag, kind in _TABLES.items():
            if tag not in self.dynamic:
                continue
            address = self.dynamic[tag]
            size = self.dynamic[sizes[tag]] if tag in sizes else None
            for section in self.allocated:
                if (section.address, section.type) == (address, kind):
                    break
            else:
                _refuse(f"DT_{_TAG_NAMES[tag]}", hex(address), "the address of its section")
            if size not in (None, section.size):
                _refuse(f"the size of DT_{_TAG_NAMES[tag]}", size, section.size)
            self.tables[tag] = section
        for kind in set(_TABLES.values()):
            expected = sum(_TABLES[tag] == kind for tag in self.tables)
            count = sum(section.type == kind for section in self.allocated)
            if count != expected:
                _refuse(f"the number of sections of type {kind:#x}", count, expected)
        strings = self.table(_STRTAB)
        if not strings or strings[0] or strings[-1]:
            _refuse("the string table", "not delimited", "a zero byte at both ends")
        if _PLTGOT in self.dynamic and not self.writable(self.dynamic[_PLTGOT], 8):
            _refuse("DT_PLTGOT", hex(self.dynamic[_PLTGOT]), "inside a writable section")

    def table(self, tag: int) -> bytes:
        section = self.tables.get(tag)
        return b"" if section is None else self.part("", section.offset, section.size)

    def rows(self, tag: int, layout: struct.Struct) -> list[tuple[int, ...]]:
        content = self.table(tag)
        if len(content) % layout.size:
            _refuse(f"the size of DT_{_TAG_NAMES[tag]}", len(content), f"rows of {layout.size}")
        return list(layout.iter_unpack(content))

    def writable(self, address: int, size: int) -> bool:
        """True inside a section of data that the file holds and that is not the dynamic table."""
        return any(section.holds(address, size) for section in self.data)

    def check_needed(self) -> None:
        strings = self.table(_STRTAB)
        self.needed = [_text(strings, at) for at in self.needed_at]
        for name in self.needed:
            if name not in self.allowance.needed:
                _refuse("a needed library", repr(name), _listed(sorted(self.allowance.needed)))

    # ------------------------------------------------------------------ functions and symbols

    def functions(self) -> dict[int, int]:
        """Where every function begins, and its size, as the unwind tables have it."""
        segment = next(s for s in self.segments if s.type == _EH_FRAME)
        header = self.part("PT_GNU_EH_FRAME", segment.offset, segment.size)
        # Version 1; a pointer relative to itself, a count, a table relative to its start.
        if header[:4] != b"\x01\x1b\x03\x3b" or len(header) < 12:
            _refuse("the start of .eh_frame_hdr", header[:4].hex(), "011b033b")
        (count,) = struct.unpack_from("<I", header, 8)
        if 12 + 8 * count != len(header):
            _refuse("the number of rows of .eh_frame_hdr", count, (len(header) - 12) // 8)
        frames = next((s for s in self.sections if s.name == ".eh_frame"), None)
        if frames is None:
            _refuse("the section .eh_frame", "missing", "one")
        content = self.part(".eh_frame", frames.offset, frames.size)
        sizes = {}
        for start, frame in struct.iter_unpack("<ii", header[12:]):
            at = segment.address + frame - frames.address
            if not 0 <= at <= len(content) - 16:
                _refuse("a row of .eh_frame_hdr", hex(at), "inside .eh_frame")
            begin, size = struct.unpack_from("<iI", content, at + 8)
            if frames.address + at + 8 + begin != segment.address + start:
                _refuse("a row of .eh_frame_hdr", hex(start), "the function of its frame")
            sizes[segment.address + start] = size
        return sizes

    def symbols(self, functions: dict[int, int]) -> list[_Symbol]:
        """Every symbol after the first, which is empty."""
        rows, strings = self.rows(_SYMTAB, _SYMBOL), self.table(_STRTAB)
        if not rows or any(rows[0]):
            _refuse("the first symbol", "not empty", "an empty one")
        symbols = [_Symbol(_text(strings, r[0]), r[3], r[4], r[5]) for r in rows[1:]]
        names = {symbol.name for symbol in symbols}
        if len(names) != len(symbols):
            _refuse("a symbol", "there twice", "each once")
        for symbol, (_, info, other, *_) in zip(symbols, rows[1:], strict=True):
            self.check_symbol(symbol, info, other, functions)
        missing = sorted(self.allowance.exports - {s.name for s in symbols if s.section})
        if missing:
            _refuse("an exported function", f"missing: {missing[0]}", "all there")
        return symbols

    def check_symbol(
        self, symbol: _Symbol, info: int, other: int, functions: dict[int, int]
    ) -> None:
        shown = repr(symbol.name)
        what, allowed = (
            ("an exported symbol", self.allowance.exports)
            if symbol.section
            else ("an undefined symbol", self.allowance.imports)
        )
        if symbol.name not in allowed:
            _refuse(what, shown, _listed(sorted(allowed)))
        binding, kind = info >> 4, info & 15
        if binding != 1 or other or kind not in ((2,) if symbol.section else (0, 2)):
            _refuse(f"the binding of {shown}", f"{info:#x}, {other:#x}", "a global function")
        if not symbol.section:
            if symbol.value or symbol.size:
                _refuse(f"the value of the undefined {shown}", hex(symbol.value), "0")
            return
        section = self.sections[symbol.section] if symbol.section < len(self.sections) else None
        if section is None or not section.flags & _EXECUTE:
            _refuse(f"the section of {shown}", symbol.section, "one with code")
        known = functions.get(symbol.value) == symbol.size
        if not (known and symbol.size and section.holds(symbol.value, symbol.size)):
            _refuse(f"the place of {shown}", hex(symbol.value), "a function, from start to end")

    def check_hash(self, count: int) -> None:
        """The hash table leads to symbols alone, and every chain ends. `count` has no empty one."""
        table, count = self.table(_HASH), count + 1
        if len(table) < 16:
            _refuse("the size of the hash table", len(table), "at least 16")
        buckets, first, words, _ = struct.unpack_from("<IIII", table)
        expected = 16 + 8 * words + 4 * buckets + 4 * (count - first)
        if not (buckets and words and words & (words - 1) == 0 and 1 <= first < count):
            _refuse("the hash table", f"{buckets} buckets, {words} words, from {first}", "sane")
        if expected != len(table):
            _refuse("the size of the hash table", len(table), expected)
        starts = struct.unpack_from(f"<{buckets}I", table, 16 + 8 * words)
        wrong = [start for start in starts if start and not first <= start < count]
        if wrong:
            _refuse("a bucket of the hash table", wrong[0], f"0, or {first} to {count - 1}")
        if not table[-4] & 1:
            _refuse("the last chain of the hash table", "open", "one that ends")

    # ------------------------------------------------------------------ versions

    def versions(self) -> dict[int, str]:
        """Symbol versions asked for, by their index."""
        content, strings = self.table(_VERNEED), self.table(_STRTAB)
        found: dict[int, str] = {}
        at = 0
        for remaining in range(self.dynamic.get(_VERNEEDNUM, 0), 0, -1):
            version, count, file, first, following = _at("<HHIII", content, at)
            library = _text(strings, file)
            if version != 1 or library not in self.needed:
                _refuse("a library with versions", repr(library), _listed(self.needed))
            self.read_versions(content, at + first, count, found)
            if (following == 0) != (remaining == 1):
                _refuse("the next library with versions", following, "0 at the end alone")
            at += following
        return found

    def read_versions(self, content: bytes, at: int, count: int, found: dict[int, str]) -> None:
        strings = self.table(_STRTAB)
        for remaining in range(count, 0, -1):
            _, flags, index, name, following = _at("<IHHII", content, at)
            text = _text(strings, name)
            if not _VERSION_NAME.fullmatch(text) or flags:
                _refuse("a symbol version", repr(text), "GLIBC_2.N, not weak")
            if index < 2 or index in found or index > 64:
                _refuse("the index of a symbol version", index, "2 to 64, each once")
            if (following == 0) != (remaining == 1):
                _refuse("the next symbol version", following, "0 at the end alone")
            found[index] = text
            at += following

    def check_versions(self, symbols: Sequence[_Symbol]) -> None:
        if _VERSYM not in self.tables:
            return
        known = {0, 1, *self.versions()}
        indices = [row[0] for row in self.rows(_VERSYM, struct.Struct("<H"))]
        if len(indices) != len(symbols) + 1:
            _refuse("the number of versions of symbols", len(indices), len(symbols) + 1)
        for index in indices:
            if index not in known:
                _refuse("the version of a symbol", index, _listed(sorted(known)))

    # ------------------------------------------------------------------ relocations

    def check_relocations(self, symbols: Sequence[_Symbol], functions: dict[int, int]) -> None:
        data, calls = self.rows(_RELA, _RELOCATION), self.rows(_JMPREL, _RELOCATION)
        places = [row[0] for row in data + calls]
        for place in places:
            if place % 8 or not self.writable(place, 8):
                _refuse("the place of a relocation", hex(place), "aligned, in a writable section")
        if len(set(places)) != len(places):
            _refuse("the place of a relocation", "there twice", "each once")
        relative = [row for row in data if row[1] == _RELATIVE]
        leading = self.dynamic.get(_RELACOUNT, len(relative))
        if leading != len(relative) or data[:leading] != relative:
            _refuse("DT_RELACOUNT", leading, f"{len(relative)}, at the start")
        for _, _, symbol, addend in relative:
            self.check_target(symbol, addend, functions)
        self.check_bound(data[leading:], _GLOB_DAT, symbols)
        self.check_bound(calls, _JUMP_SLOT, symbols)
        # The stubs that jump through them were laid out in the same order.
        if [row[0] for row in calls] != list(range(*_consecutive(calls))):
            _refuse("the places of JUMP_SLOT", "with gaps", "one behind the other")
        used = {row[2] for row in data + calls}
        for index, one in enumerate(symbols, 1):
            if not one.section and index not in used:
                _refuse(f"the undefined {one.name!r}", "used nowhere", "used")

    def check_target(self, symbol: int, address: int, functions: dict[int, int]) -> None:
        """What a pointer is made to point at: data of the library, or the start of a function."""
        if symbol:
            _refuse("the symbol of RELATIVE", symbol, "0")
        section = next((s for s in self.allocated if s.holds(address, 0)), None)
        if section is None:
            _refuse("the target of RELATIVE", hex(address), "inside the library")
        if section.flags & _EXECUTE and address not in functions:
            _refuse("the target of RELATIVE", hex(address), "the start of a function")

    def check_bound(
        self, rows: Sequence[tuple[int, ...]], kind: int, symbols: Sequence[_Symbol]
    ) -> None:
        """Relocations against symbols: all of one kind, each symbol once."""
        for _, found, symbol, addend in rows:
            if found != kind:
                names = _listed(f"{n} {name}" for n, name in _RELOCATION_NAMES.items())
                _refuse("the type of a relocation", found, f"{names}, each in its place")
            if not 1 <= symbol <= len(symbols) or addend:
                _refuse(
                    "the symbol of a relocation", f"{symbol} + {addend}", f"1 to {len(symbols)}"
                )
        if len({row[2] for row in rows}) != len(rows):
            _refuse(f"the symbol of {_RELOCATION_NAMES[kind]}", "there twice", "each once")


def _consecutive(rows: Sequence[tuple[int, ...]]) -> tuple[int, int, int]:
    first = rows[0][0] if rows else 0
    return first, first + 8 * len(rows), 8


def _permissions(flags: int) -> str:
    shown = "".join(c if flags & bit else "-" for c, bit in (("r", 4), ("w", 2), ("x", 1)))
    return shown if flags < 8 else hex(flags)


def _text(strings: bytes, at: int) -> str:
    """A name in a table of strings."""
    end = strings.find(b"\0", at)
    if end < 0:
        _refuse("the place of a name", at, f"below {len(strings)}")
    return strings[at:end].decode("ascii", "backslashreplace")


def _at(layout: str, content: bytes, at: int) -> tuple[int, ...]:
    if at + struct.calcsize(layout) > len(content):
        _refuse("the place of a symbol version", at, f"below {len(content)}")
    return struct.unpack_from(layout, content, at)


def _check_notes(content: bytes, alignment: int) -> None:
    """Each note of a note segment ends inside it."""
    at = 0
    if alignment not in (4, 8):
        _refuse("the alignment of a note", alignment, "4, 8")
    while at < len(content):
        if at + 16 > len(content):
            _refuse("the end of a note", at + 16, f"at most {len(content)}")
        name_size, size = struct.unpack_from("<II", content, at)
        end = at + 16 + -(-size // alignment) * alignment
        if name_size != 4 or content[at + 12 : at + 16] != b"GNU\0" or end > len(content):
            _refuse("a note", f"{name_size} + {size} bytes", f"GNU's, of {len(content)} at most")
        at = end
