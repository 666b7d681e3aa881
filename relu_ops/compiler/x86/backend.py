"""x86-64, as its psABI has it."""

from __future__ import annotations

from elftools.elf.enums import ENUM_RELOC_TYPE_x64

from relu_ops.compiler import layout
from relu_ops.compiler.cpu.backend import CpuBackend
from relu_ops.compiler.cpu.objects import WORD, Form, Relocation
from relu_ops.compiler.x86.lookup import TABLES

_R_X86_64_PC32 = 2

_IMMEDIATE = 4
"""At most so many bytes of an instruction follow the word; processors count from their end."""


def _distance(_: int, place: int, meant: int) -> int | None:
    return (meant - place) & 0xFFFFFFFF


_PC32 = Relocation("R_X86_64_PC32", _distance, 1 << 31, behind=WORD, before=_IMMEDIATE)

BACKEND = CpuBackend(
    machine=layout.X86_64,
    triple="x86_64-unknown-linux-gnu",
    form=Form(
        machine="EM_X86_64",
        relocations={_R_X86_64_PC32: _PC32},
        names={number: name for name, number in ENUM_RELOC_TYPE_x64.items()},
        filler=b"\xcc",  # int3
    ),
    tables=TABLES,
)
