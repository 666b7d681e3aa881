"""How x86-64 looks numbers up: by shuffles.

Beside the tables of bytes there is one for leaky_relu of bfloat16: what the product with the slope
adds to the bits of a number depends on the 7 bits of its significand alone, unless the result
leaves the normal numbers (1M elements, 2 threads: 31 us instead of 78; AMD EPYC, Zen 4,
2026-11-21). Only AVX-512 looks words up.
"""

from __future__ import annotations

import functools

import numpy as np

from relu_ops.compiler.cpu.lookup import Scheme, Tables, constant, every_byte
from relu_ops.compiler.emitter import Slope
from relu_ops.contract import reference
from relu_ops.contract.semantics import DTYPES

WORDS = 32
"""Words of two bytes in the vectors of AVX-512."""

_ALL, _FLAGS = f"<{WORDS} x i16>", f"<{WORDS} x i1>"
_INSTRUCTIONS = {
    16: "@llvm.x86.ssse3.pshuf.b.128",
    32: "@llvm.x86.avx2.pshuf.b",
    64: "@llvm.x86.avx512.vpermi2var.hi.512",
}
"""What looks up in vectors of so many bytes; the levels from x86-64-v2 on add one each."""

_PICK = _INSTRUCTIONS[64]


def _by_nibbles(name: str, table: np.ndarray, lanes: int) -> str:
    """Four bits pick from rows of 16 results, three bits the row, the highest one the half.

    A shuffle gives 0 where the highest bit of an index is set, so that a row of the lower half and
    its pair of the upper one are looked up apart and joined. Rows of zeros are left out here, and
    repeated ones by LLVM; with the most frequent result taken out of the table, the half that relu
    makes constant is zeros.
    """
    kind = f"<{lanes} x i8>"
    frequent = int(np.bincount(table).argmax())
    rows = (table ^ frequent).reshape(16, 16)
    lines = [
        f"declare {kind} {_INSTRUCTIONS[lanes]}({kind}, {kind})",
        f"define internal {kind} @{name}({kind} %x) alwaysinline {{",
        f"  %upper = xor {kind} %x, {every_byte(128, lanes)}",
    ]
    for k in range(8):
        lines += [
            f"  %low{k} = {_picked_byte(rows[k], '%x', lanes)}",
            f"  %high{k} = {_picked_byte(rows[k + 8], '%upper', lanes)}",
            f"  %y{k}.of8 = or {kind} %low{k}, %high{k}",
        ]
    for bit, count in ((16, 4), (32, 2), (64, 1)):
        lines += _halved(bit, count, lanes)
    lines += [f"  %r = xor {kind} %y0.of1, {every_byte(frequent, lanes)}", f"  ret {kind} %r\n}}\n"]
    return "\n".join(lines)


def _picked_byte(row: np.ndarray, index: str, lanes: int) -> str:
    """What the lowest four bits pick from a row, or 0 where the highest one is set."""
    kind = f"<{lanes} x i8>"
    if not row.any():
        return f"or {kind} zeroinitializer, zeroinitializer"
    repeated = constant(np.tile(row, lanes // 16), "i8")
    return f"call {kind} {_INSTRUCTIONS[lanes]}({kind} {repeated}, {kind} {index})"


def _halved(bit: int, count: int, lanes: int) -> list[str]:
    """Of every two of 2 * count candidates the one that a bit of x says."""
    kind = f"<{lanes} x i8>"
    chosen = [
        f"  %y{k}.of{count} = select <{lanes} x i1> %set{bit}, "
        f"{kind} %y{2 * k + 1}.of{2 * count}, {kind} %y{2 * k}.of{2 * count}"
        for k in range(count)
    ]
    return [
        f"  %bit{bit} = and {kind} %x, {every_byte(bit, lanes)}",
        f"  %set{bit} = icmp ne {kind} %bit{bit}, zeroinitializer",
        *chosen,
    ]


def _by_words(name: str, table: np.ndarray, lanes: int) -> str:
    """Even and odd bytes apart, as words: 7 bits pick a pair of bytes, the lowest one of them."""
    kind = f"<{lanes} x i8>"
    lines = [
        f"declare {_ALL} {_PICK}({_ALL}, {_ALL}, {_ALL})",
        f"define internal {kind} @{name}({kind} %x) alwaysinline {{",
        f"  %v = bitcast {kind} %x to {_ALL}",
        f"  %even = and {_ALL} %v, {_every(255)}",
        f"  %odd = lshr {_ALL} %v, {_every(8)}",
    ]
    for h in ("even", "odd"):
        low, high = _picked(table.view("<u2"), f"%{h}.pair")
        lines += [
            f"  %{h}.pair = lshr {_ALL} %{h}, {_every(1)}",
            f"  %{h}.low = {low}",
            f"  %{h}.high = {high}",
            f"  %{h}.upper = icmp ugt {_ALL} %{h}, {_every(127)}",
            f"  %{h}.both = select {_FLAGS} %{h}.upper, {_ALL} %{h}.high, {_ALL} %{h}.low",
            f"  %{h}.bit = and {_ALL} %{h}, {_every(1)}",
            f"  %{h}.shift = shl {_ALL} %{h}.bit, {_every(3)}",
            f"  %{h}.first = lshr {_ALL} %{h}.both, %{h}.shift",
            f"  %{h}.byte = and {_ALL} %{h}.first, {_every(255)}",
        ]
    return "\n".join(
        [
            *lines,
            f"  %left = shl {_ALL} %odd.byte, {_every(8)}",
            f"  %joined = or {_ALL} %even.byte, %left",
            f"  %r = bitcast {_ALL} %joined to {kind}",
            f"  ret {kind} %r\n}}\n",
        ]
    )


def _picked(table: np.ndarray, index: str) -> tuple[str, str]:
    """What the lowest six bits of every word pick from the two halves of a table of 128 words."""
    parts = [_constant(part) for part in table.reshape(4, WORDS)]
    low, high = (
        f"call {_ALL} {_PICK}({_ALL} {parts[k]}, {_ALL} {index}, {_ALL} {parts[k + 1]})"
        for k in (0, 2)
    )
    return low, high


def _constant(numbers: np.ndarray | list[int]) -> str:
    return constant(numbers, "i16")


def _every(number: int) -> str:
    return _constant([number] * WORDS)


_SCHEMES: dict[int, Scheme] = {
    16: _by_nibbles,
    32: _by_nibbles,
    64: _by_words,
}
"""How so many bytes are looked up at once.

By nibbles in 64 bytes, 64k random results take 5.6 us instead of 3.3 (AMD EPYC, Zen 4, one thread,
2026-11-21). Rows whose differences are summed up instead of chosen need fewer blends and more
subtractions: 0.86 to 1.3 times the time, by the table.
"""


_EXPONENT_OF_ONE = 127


@functools.cache
def slope_of(slope: int) -> Slope | None:
    """Leaky ReLU of `WORDS` patterns with a slope of that one; None where a table does not help.

    Multiplies every negative bfloat16. The table has what that adds to their patterns, by the
    significand; it holds for a range of exponents.
    """
    negative = np.arange(1 << 15, 1 << 16, dtype=np.uint16).view(DTYPES["bfloat16"].numpy)
    constant = np.full_like(negative, 0)
    constant.view(np.uint16)[:] = slope
    with np.errstate(all="ignore"):
        products = reference.mul(constant, negative).view(np.uint16).reshape(256, 128)
    added = products - negative.view(np.uint16).reshape(256, 128)
    # Normal results of normal numbers: neither exponent is 0 or 255.
    exponents = products >> 7 & 0xFF
    normal: np.ndarray = np.all((exponents > 0) & (exponents < 255), axis=1)
    normal[[0, 255]] = False
    if not normal[_EXPONENT_OF_ONE]:  # then most numbers that people have are outside
        return None
    first, end = int(normal.argmax()), 256 - int(normal[::-1].argmax())
    if not (added[first:end] == added[first]).all():
        return None
    name, least, count = f"relu_ops.slope.{slope:04x}", 0x8000 + first * 128, (end - first) * 128
    held = [
        f"  %above = sub {_ALL} %x, {_every(least)}",
        f"  %held = icmp ult {_ALL} %above, {_every(count)}",
    ]
    return Slope(_results(name, held, added[first]), _misses(f"{name}.misses", held))


def _results(name: str, held: list[str], table: np.ndarray) -> tuple[str, str]:
    """Six bits of the significand pick from a half of the table, the seventh one the half."""
    low, high = _picked(table, "%x")
    text = [
        f"declare {_ALL} {_PICK}({_ALL}, {_ALL}, {_ALL})",
        f"define internal {_ALL} @{name}({_ALL} %x) alwaysinline {{",
        f"  %low = {low}",
        f"  %high = {high}",
        f"  %bit = and {_ALL} %x, {_every(64)}",
        f"  %upper = icmp ne {_ALL} %bit, zeroinitializer",
        f"  %product = select {_FLAGS} %upper, {_ALL} %high, {_ALL} %low",
        *held,
        f"  %added = select {_FLAGS} %held, {_ALL} %product, {_ALL} zeroinitializer",
        f"  %r = add {_ALL} %x, %added",
        f"  ret {_ALL} %r\n}}\n",
    ]
    return name, "\n".join(text)


def _misses(name: str, held: list[str]) -> tuple[str, str]:
    """Where x < 0, from just below -0.0 down to -inf, and the table does not hold."""
    reduce = f"@llvm.vector.reduce.or.v{WORDS}i1"
    text = [
        f"declare i1 {reduce}({_FLAGS})",
        f"define internal i32 @{name}({_ALL} %x) alwaysinline {{",
        *held,
        f"  %below = sub {_ALL} %x, {_every(0x8001)}",
        f"  %negative = icmp ult {_ALL} %below, {_every(0xFF81 - 0x8001)}",
        f"  %missed = xor {_FLAGS} %negative, %held",  # what is held is negative
        f"  %any = call i1 {reduce}({_FLAGS} %missed)",
        "  %r = zext i1 %any to i32\n  ret i32 %r\n}\n",
    ]
    return name, "\n".join(text)


TABLES = Tables(_SCHEMES, lambda lanes, slope: slope_of(slope) if lanes == WORDS else None)
