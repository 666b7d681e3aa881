"""AArch64: ARMv8-A with its vectors of 16 bytes (NEON)."""

from __future__ import annotations

import functools

from elftools.elf.enums import ENUM_RELOC_TYPE_AARCH64

from relu_ops.compiler import layout
from relu_ops.compiler.aarch64.lookup import TABLES
from relu_ops.compiler.cpu.backend import CpuBackend
from relu_ops.compiler.cpu.objects import Form, Relocation

_PAGE = 1 << 12
"""What adrp counts in, whatever pages the system has. An image is mapped at a multiple of it: its
places are as good as addresses."""

_ADR, _ADRP, _ADR_REACH = 0x10000000, 0x90000000, 1 << 20
_LAST_WORDS = 8
"""Bytes at the end of a page where no adrp may be: a Cortex-A53 may read a wrong place then
(erratum 843419)."""


def _page(word: int, place: int, meant: int) -> int | None:
    """The page of a place: adr where it reaches that, as linkers do for the erratum; else adrp."""
    distance, operation = (meant & -_PAGE) - place, _ADR
    if not -_ADR_REACH <= distance < _ADR_REACH:
        if place % _PAGE >= _PAGE - _LAST_WORDS:
            return None
        distance, operation = (meant // _PAGE - place // _PAGE), _ADRP
    return operation | word & 0x1F | (distance & 3) << 29 | (distance >> 2 & 0x7FFFF) << 5


_IMMEDIATE = 0x003FFC00
"""The bits of a place in a page, in an instruction that adds them or that loads."""


def _place_in_page(shift: int, word: int, _: int, meant: int) -> int:
    """The lower bits of an address, in units of what is loaded."""
    return word & ~_IMMEDIATE | (meant & (_PAGE - 1)) >> shift << 10


def _low(name: str, shift: int) -> Relocation:
    fill = functools.partial(_place_in_page, shift)
    return Relocation(f"R_AARCH64_{name}_ABS_LO12_NC", fill, multiple=1 << shift)


_RELOCATIONS = {  # by their numbers in <elf.h>
    275: Relocation("R_AARCH64_ADR_PREL_PG_HI21", _page),
    277: _low("ADD", 0),
    278: _low("LDST8", 0),
    284: _low("LDST16", 1),
    285: _low("LDST32", 2),
    286: _low("LDST64", 3),
    299: _low("LDST128", 4),
}

BACKEND = CpuBackend(
    machine=layout.AARCH64,
    triple="aarch64-unknown-linux-gnu",
    # A Cortex-A53 may multiply and add wrongly right after a load or a store (erratum 835769).
    features=("+neon", "+fix-cortex-a53-835769"),
    form=Form(
        machine="EM_AARCH64",
        relocations=_RELOCATIONS,
        names={number: name for name, number in ENUM_RELOC_TYPE_AARCH64.items()},
        filler=b"\0",  # udf
    ),
    tables=TABLES,
)
