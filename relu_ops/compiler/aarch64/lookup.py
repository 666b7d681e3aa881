"""How AArch64 looks numbers up: by `tbl`, 64 bytes of a table at once."""

from __future__ import annotations

import numpy as np

from relu_ops.compiler.cpu.lookup import Tables, constant, every_byte

_REGISTER, _QUARTER = 16, 64
_KIND = f"<{_REGISTER} x i8>"


def _by_quarters(name: str, table: np.ndarray, lanes: int) -> str:
    """Each quarter of a table gives its results where an index is in it, and else what there was.

    With the most frequent result taken out of the table, quarters of zeros are left out: what is
    found nowhere is 0.
    """
    frequent = int(np.bincount(table).argmax())
    quarters = (table ^ frequent).reshape(4, 4, _REGISTER)
    one = f"{name}.one"
    lines = [
        f"declare {_KIND} @llvm.aarch64.neon.tbx4.v16i8({', '.join([_KIND] * 6)})",
        f"define internal {_KIND} @{one}({_KIND} %x) alwaysinline {{",
        f"  %y0 = or {_KIND} zeroinitializer, zeroinitializer",
    ]
    for number, quarter in enumerate(quarters, 1):
        lines += _quarter(quarter, number)
    lines += [f"  %r = xor {_KIND} %y4, {every_byte(frequent, _REGISTER)}", f"  ret {_KIND} %r\n}}"]
    return "\n".join([*lines, *_of_registers(name, one, lanes // _REGISTER)])


def _quarter(quarter: np.ndarray, number: int) -> list[str]:
    """The results so far, or those of a quarter."""
    before, least = f"%y{number - 1}", _QUARTER * (number - 1)
    if not quarter.any():
        return [f"  %y{number} = or {_KIND} {before}, {before}"]
    registers = ", ".join(f"{_KIND} {constant(row, 'i8')}" for row in quarter)
    return [
        f"  %x{number} = sub {_KIND} %x, {every_byte(least, _REGISTER)}",
        f"  %y{number} = call {_KIND} @llvm.aarch64.neon.tbx4.v16i8("
        f"{_KIND} {before}, {registers}, {_KIND} %x{number})",
    ]


def _of_registers(name: str, one: str, count: int) -> list[str]:
    """A function of so many registers, each looked up by itself."""
    lanes = count * _REGISTER
    kind = f"<{lanes} x i8>"
    lines = [f"define internal {kind} @{name}({kind} %x) alwaysinline {{"]
    for k in range(count):
        places = constant(range(k * _REGISTER, (k + 1) * _REGISTER), "i32")
        part = f"shufflevector {kind} %x, {kind} poison, <{_REGISTER} x i32> {places}"
        lines += [f"  %x{k} = {part}", f"  %r{k} = call {_KIND} @{one}({_KIND} %x{k})"]
    joined = f"shufflevector {_KIND} %r0, {_KIND} %r{count - 1}, <{lanes} x i32>"
    places = constant(range(lanes), "i32")
    return [*lines, f"  %r = {joined} {places}", f"  ret {kind} %r\n}}\n"]


TABLES = Tables({_REGISTER: _by_quarters, 2 * _REGISTER: _by_quarters})
