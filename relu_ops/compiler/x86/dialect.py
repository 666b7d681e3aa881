"""How machine code of x86-64 is shown."""

from __future__ import annotations

import re
from typing import Any

from relu_ops.compiler.cpu.disassembly import Dialect, Instruction


def _decoder() -> Any:
    import capstone

    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    decoder.syntax = capstone.CS_OPT_SYNTAX_ATT
    return decoder


def _read(instruction: Instruction) -> int | None:
    at, size, _, operands = instruction
    read = re.search(r"(-?)(?:0x)?([0-9a-f]*)\(%rip\)", operands)
    return at + size + int(f"{read[1]}{read[2] or 0}", 16) if read else None


DIALECT = Dialect(_decoder, ("nop", "int3"), _read)
