"""How machine code of AArch64 is shown."""

from __future__ import annotations

from typing import Any

from relu_ops.compiler.cpu.disassembly import Dialect


def _decoder() -> Any:
    import capstone

    return capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)


DIALECT = Dialect(_decoder, ("nop", "udf"))  # what they read stands in them, as an address
