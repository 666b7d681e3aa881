"""Emits exact expressions in TIR: the few places where a default differs from the contract.

The hardware's, LLVM's or TVM's own would give other bits:

- a product that feeds a sum stays two roundings (`Emitter.product`);
- 16-bit floats are kept as their bits and rounded once per operator (`Emitter.narrow`);
- integers wrap (`Emitter.wrapping`): TVM tells LLVM that they never overflow.

Everything is emitted for a number of lanes: the same rules make a scalar and a vector kernel.
Nodes are constructed directly, and no simplifier runs behind: TVM's folds x + 0 and x * 0 as if
there were neither NaN nor -0.0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from relu_ops.contract.semantics import DTYPES, Dtype

Expr = Any
"""A TIR expression."""

_ZERO = tirx.IntImm("int64", 0)

STORAGE = {"float16": "uint16", "bfloat16": "uint16", "bool": "uint8"}
"""The TIR type of an element in memory, where it is not the dtype's own."""


def storage_type(dtype: str) -> str:
    """The TIR type that holds an element of `dtype` in memory."""
    return STORAGE.get(dtype, dtype)


@dataclass
class Operand:
    """A value inside a kernel.

    A 16-bit float is carried as its bits (`uint16`); everything else as itself, bool as a TIR
    bool.

    Attributes:
        dtype: Its dtype.
        expr: As it is carried.
        float32: The value of a 16-bit float, once it was emitted.
        pattern: The bits of a 16-bit float that is a constant.
    """

    dtype: str
    expr: Expr
    float32: Expr | None = None
    pattern: int | None = None

    @property
    def row(self) -> Dtype:
        """The row of `semantics.DTYPES`."""
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class Slope:
    """Leaky ReLU of bfloat16 patterns at once: names and LLVM IR of two functions.

    Attributes:
        results: Of a vector of patterns to those of their results.
        misses: Of such patterns to an int32 that is not 0 where one of those results is wrong.
    """

    results: tuple[str, str]
    misses: tuple[str, str]


class Emitter:
    """Emits expressions of one width, binding every intermediate result to a name.

    Attributes:
        lanes: Elements per expression.
        statements: What has been emitted so far, in order.
        externs: LLVM IR of the helpers used, by name.
        native_float16: True where the target converts float16 in hardware.
        cheap_select: True where a select is one instruction that overwrites no operand (AVX).
        slope_of: The table for a slope of some pattern, and so many lanes, where there is one.
        widest_bits: The widest element bound so far, but for what is computed in parts.
        fills_registers: Whether something needs whole registers: is looked up, or in parts.
    """

    def __init__(
        self,
        lanes: int,
        statements: list[Any],
        externs: dict[str, str],
        *,
        native_float16: bool,
        cheap_select: bool = True,
        slope_of: Callable[[int, int], Slope | None] = lambda lanes, pattern: None,
    ) -> None:
        self.lanes = lanes
        self.statements = statements
        self.externs = externs
        self.native_float16 = native_float16
        self.cheap_select = cheap_select
        self.slope_of = slope_of
        self.widest_bits = 8
        self.fills_registers = False

    # -- basics ----------------------------------------------------------------------------

    def type(self, dtype: str) -> str:
        """The TIR type of a dtype at this width."""
        return dtype if self.lanes == 1 else f"{dtype}x{self.lanes}"

    def splat(self, scalar: Expr) -> Expr:
        """Repeat a scalar expression over the lanes."""
        return scalar if self.lanes == 1 else tirx.Broadcast(scalar, self.lanes)

    def integer(self, dtype: str, value: int) -> Expr:
        """An integer constant."""
        return self.splat(tirx.IntImm(dtype, value) if value < 2**63 else _large(dtype, value))

    def floating(self, dtype: str, value: float) -> Expr:
        """A float32 or float64 constant."""
        return self.splat(tirx.FloatImm(dtype, value))

    def bind(self, dtype: str, expr: Expr) -> Expr:
        """Name an expression, so that using it twice does not compute it twice."""
        if dtype == "bool":
            return self._bind_bool(expr)
        self.widest_bits = max(self.widest_bits, int(dtype.lstrip("uintfloa")))
        # A local buffer, which LLVM keeps in a register. A TIR binding would do the same, but TVM's
        # code generator tells its analyzer of every one, and the time that takes to reason about
        # a chain of them doubles with each link.
        buffer = tirx.decl_buffer(
            (1,), self.type(dtype), name=f"v{len(self.statements)}", scope="local"
        )
        self.statements += [tirx.AllocBuffer(buffer), tirx.BufferStore(buffer, expr, [_ZERO])]
        return tirx.BufferLoad(buffer, [_ZERO])

    def _extern(self, operation: str, dtype: str, body: str, *operands: Expr) -> Expr:
        """Call one line of LLVM IR on integers of the same type; it is always inlined."""
        element = f"i{dtype.lstrip('uint')}"
        vector = element if self.lanes == 1 else f"<{self.lanes} x {element}>"
        name = f"relu_ops.{operation}.{element}x{self.lanes}"
        parameters = ", ".join(f"{vector} %{letter}" for letter in "ab"[: len(operands)])
        self.externs[name] = (
            f"define internal {vector} @{name}({parameters}) alwaysinline {{\n"
            f"  {body.format(t=vector)}\n  ret {vector} %r\n}}\n"
        )
        return tirx.call_pure_extern(self.type(dtype), name, *operands)

    def _bind_bool(self, expr: Expr) -> Expr:
        """TVM's code generator refuses to name a vector of bools: name bytes, which LLVM undoes."""
        chosen = tirx.Select(expr, self.integer("uint8", 1), self.integer("uint8", 0))
        return tirx.NE(self.bind("uint8", chosen), self.integer("uint8", 0))

    def bits(self, dtype: str, expr: Expr) -> Expr:
        """Reinterpret the bits of an expression, which must not be a literal zero.

        TVM reads a reinterpreted literal zero as a null pointer.
        """
        return tirx.reinterpret(self.type(dtype), expr)

    def cast(self, dtype: str, expr: Expr) -> Expr:
        """Convert a value that the type can hold, or round a float to a narrower one."""
        return tirx.Cast(self.type(dtype), expr)

    def wrapping(self, operation: str, dtype: str, a: Expr, b: Expr) -> Expr:
        """Integer add, sub or mul modulo 2**bits.

        TVM marks sums and products of 32 bits and more as never overflowing, which LLVM is free
        to exploit; a line of LLVM IR without that promise takes its place.
        """
        return self._extern(operation, dtype, f"%r = {operation} {{t}} %a, %b", a, b)

    def streamed(self, storage: str, address: Expr, value: Expr) -> Expr:
        """Store a whole vector past the cache, at an address that is a multiple of its size."""
        element = "i8" if storage == "bool" else _llvm_type(storage)
        name = f"relu_ops.stream.{element}x{self.lanes}"
        vector = f"<{self.lanes} x {element}>"
        size = self.lanes * int(storage.lstrip("uintfloa")) // 8
        self.externs[name] = (
            f"define internal void @{name}(ptr %p, {vector} %v) alwaysinline {{\n"
            f"  store {vector} %v, ptr %p, align {size}, !nontemporal !0\n  ret void\n}}\n"
            "!0 = !{i32 1}\n"
        )
        return tirx.call_extern("void", name, address, value)

    def product(self, dtype: str, a: Expr, b: Expr) -> Expr:
        """A floating-point product that no following sum can absorb into an FMA.

        TVM allows LLVM to contract; the fence is a no-op that ends the pattern.
        """
        return tirx.call_llvm_pure_intrin(self.type(dtype), "llvm.arithmetic.fence", tirx.Mul(a, b))

    def product_bfloat16(self, a: Operand, b: Operand) -> Operand:
        """The product of two bfloat16, rounded as one rounding does."""
        return self._by_float32(tirx.Mul, a, b)

    def quotient_bfloat16(self, a: Operand, b: Operand) -> Operand:
        """The quotient of two bfloat16, rounded as one rounding does."""
        return self._by_float32(tirx.Div, a, b)

    def _by_float32(
        self, operation: Callable[[Expr, Expr], Expr], a: Operand, b: Operand
    ) -> Operand:
        """A product or quotient of bfloat16, rounded to float32 and then to bfloat16.

        Two roundings, with the bits of one: the first never makes a tie of what was none. A product
        has 16 bits, which float32 holds, unless it lies below 2**-134, half the least bfloat16: by
        2**-142 at least, where the first rounding moves it by 2**-150 at most. Of a quotient
        float32 has more than 2 * 8 + 2 bits (Figueroa, 1995), unless it lies below 2**-126: there
        the first rounding moves it as little, and no tie is nearer than 2**-143.
        """
        with self._in_parts():
            result = self.bind("float32", operation(self._parted(a), self._parted(b)))
            joined = self._joined(self._upper_half_of_number(result))
            return Operand("bfloat16", self.bind("uint16", joined))

    def sloped_bfloat16(self, x: Operand, slope: Operand, plain: Callable[[], Operand]) -> Operand:
        """slope * x if x < 0 else x, by a table where there is one and it holds for every lane.

        Args:
            x: A bfloat16.
            slope: A constant one.
            plain: Emits the same as arithmetic.
        """
        table = None if slope.pattern is None else self.slope_of(self.lanes, slope.pattern)
        if table is None:
            return plain()
        self.externs |= dict([table.results, table.misses])
        found = tirx.call_pure_extern(self.type("uint16"), table.results[0], x.expr)
        misses = tirx.call_pure_extern("int32", table.misses[0], x.expr)
        return self._unless(tirx.NE(misses, tirx.IntImm("int32", 0)), plain, found)

    def _unless(self, is_rare: Expr, rare: Callable[[], Operand], common: Expr) -> Operand:
        """A bfloat16 whose bits are `common`, or what a branch for all lanes computes.

        With two branches: TVM tells LLVM that a single one is very likely taken.
        """
        result = tirx.decl_buffer((1,), self.type("uint16"), name="result", scope="local")
        before, self.statements = self.statements, []
        store = tirx.BufferStore(result, rare().expr, [_ZERO])
        rarely, self.statements = tirx.SeqStmt([*self.statements, store]), before
        mostly = tirx.BufferStore(result, common, [_ZERO])
        choice = tirx.IfThenElse(tirx.Not(is_rare), mostly, rarely)
        self.statements += [tirx.AllocBuffer(result), choice]
        return Operand("bfloat16", tirx.BufferLoad(result, [_ZERO]))

    def whole(self, dtype: str, x: Expr) -> Expr:
        """The nearest whole number, ties to even."""
        return tirx.call_llvm_pure_intrin(self.type(dtype), "llvm.roundeven", x)

    # -- 16-bit floats ---------------------------------------------------------------------

    def widened(self, x: Operand) -> Expr:
        """The value of an operand in its arithmetic type: float32 for the 16-bit floats."""
        if not x.row.is_narrow_float:
            return x.expr
        if x.float32 is None:
            widen = self._widen_bfloat16 if x.dtype == "bfloat16" else self._widen_float16
            x.float32 = self.bind("float32", widen(x.expr))
        return x.float32

    def _widen_bfloat16(self, bits: Expr) -> Expr:
        shifted = tirx.shift_left(self.cast("uint32", bits), self.integer("uint32", 16))
        return self.bits("float32", shifted)

    def _widen_float16(self, bits: Expr) -> Expr:
        if self.native_float16:
            return self.cast("float32", self.bits("float16", bits))
        # Without F16C: shift the exponent into place, then repair infinities and subnormals.
        wide = self.bind("uint32", self.cast("uint32", bits))
        u32 = lambda value: self.integer("uint32", value)
        magnitude = self.bind("uint32", tirx.shift_left(wide & u32(0x7FFF), u32(13)))
        normal = tirx.Add(magnitude, u32(112 << 23))
        special = tirx.Add(magnitude, u32(224 << 23))
        subnormal = self.bits(
            "uint32",
            tirx.Sub(
                self.bits("float32", tirx.Add(magnitude, u32(113 << 23))),
                self.bits("float32", u32(113 << 23)),
            ),
        )
        value = tirx.Select(
            tirx.GE(magnitude, u32(0x7C00 << 13)),
            special,
            tirx.Select(tirx.LT(magnitude, u32(0x0400 << 13)), subnormal, normal),
        )
        sign = tirx.shift_left(wide & u32(0x8000), u32(16))
        return self.bits("float32", value | sign)

    def narrow(self, dtype: str, x: Expr) -> Operand:
        """Round a float32 expression to a 16-bit float, once, to nearest even."""
        x = self.bind("float32", x)
        round_once = self._narrow_bfloat16 if dtype == "bfloat16" else self._narrow_float16
        return Operand(dtype, self.bind("uint16", round_once(x)))

    def _narrow_bfloat16(self, x: Expr) -> Expr:
        upper = tirx.shift_right(self._upper_half_rounded(x), self.integer("uint32", 16))
        return self.cast("uint16", upper)

    def _upper_half_rounded(self, x: Expr) -> Expr:
        """A bfloat16 in the upper half of a word, above bits that do not matter."""
        x = self.bind("float32", x)
        quiet = self.bits("uint32", x) | self.integer("uint32", 0x400000)
        return tirx.Select(unequal(x, x), quiet, self._upper_half_of_number(x))

    def _upper_half_of_number(self, x: Expr) -> Expr:
        """The same of a number, or of a NaN whose lower 16 bits are zero.

        The sum cannot carry into the sign of such a NaN. They are the only ones that x86 and
        AArch64 make of bfloat16 operands: an operand itself, made quiet, or 0x7FC00000.
        """
        u32 = lambda value: self.integer("uint32", value)
        bits = self.bind("uint32", self.bits("uint32", x))
        odd = tirx.shift_right(bits, u32(16)) & u32(1)
        return self.wrapping("add", "uint32", bits, tirx.Add(odd, u32(0x7FFF)))

    # A vector of words holds two bfloat16 in each: those with even numbers need one shift to become
    # float32, the others one mask. What is computed from them comes in this order, the even ones
    # first, and has to be joined again: less than half the instructions of widening one by one.

    @contextlib.contextmanager
    def _in_parts(self) -> Iterator[None]:
        """What is float32 here is two registers for one of bfloat16, and worth whole ones."""
        widest = self.widest_bits
        yield
        self.widest_bits, self.fills_registers = max(widest, 16), True

    def _parted(self, x: Operand) -> Expr:
        """The float32 values of a bfloat16 operand, those with even numbers first."""
        if self.lanes == 1 or x.pattern is not None:
            return self.widened(x)
        words, all_ = f"<{self.lanes // 2} x i32>", f"<{self.lanes} x i16>"
        name = f"relu_ops.part.x{self.lanes}"
        self.externs[name] = (
            f"define internal <{self.lanes} x float> @{name}({all_} %x) alwaysinline {{\n"
            f"  %w = bitcast {all_} %x to {words}\n"
            f"  %e = shl {words} %w, splat (i32 16)\n"
            f"  %o = and {words} %w, splat (i32 -65536)\n"
            f"  %r = shufflevector {words} %e, {words} %o, {self._places(range(self.lanes))}\n"
            f"  %f = bitcast <{self.lanes} x i32> %r to <{self.lanes} x float>\n"
            f"  ret <{self.lanes} x float> %f\n}}\n"
        )
        values = tirx.call_pure_extern(self.type("float32"), name, x.expr)
        return self.bind("float32", values)

    def _joined(self, upper: Expr) -> Expr:
        """The upper halves of words that come from parted operands, in their order again."""
        if self.lanes == 1:
            return self.cast("uint16", tirx.shift_right(upper, self.integer("uint32", 16)))
        n, all_, words = self.lanes, f"<{self.lanes} x i32>", f"<{self.lanes // 2} x i32>"
        name = f"relu_ops.join.x{n}"
        self.externs[name] = (
            f"define internal <{n} x i16> @{name}({all_} %x) alwaysinline {{\n"
            f"  %e = shufflevector {all_} %x, {all_} poison, {self._places(range(n // 2))}\n"
            f"  %o = shufflevector {all_} %x, {all_} poison, {self._places(range(n // 2, n))}\n"
            f"  %l = lshr {words} %e, splat (i32 16)\n"
            f"  %h = and {words} %o, splat (i32 -65536)\n"
            f"  %w = or {words} %l, %h\n"
            f"  %r = bitcast {words} %w to <{n} x i16>\n  ret <{n} x i16> %r\n}}\n"
        )
        return tirx.call_pure_extern(self.type("uint16"), name, upper)

    @staticmethod
    def _places(numbers: range) -> str:
        listed = ", ".join(f"i32 {number}" for number in numbers)
        return f"<{len(numbers)} x i32> <{listed}>"

    def _narrow_float16(self, x: Expr) -> Expr:
        if self.native_float16:
            return self.bits("uint16", self.cast("float16", x))
        # Without F16C: three ranges. A float sum aligns and rounds the subnormals.
        u32 = lambda value: self.integer("uint32", value)
        bits = self.bind("uint32", self.bits("uint32", x))
        magnitude = self.bind("uint32", bits & u32(0x7FFFFFFF))
        magic = 126 << 23
        aligned = tirx.Add(self.bits("float32", magnitude), self.bits("float32", u32(magic)))
        subnormal = self.wrapping("sub", "uint32", self.bits("uint32", aligned), u32(magic))
        odd = tirx.shift_right(magnitude, u32(13)) & u32(1)
        rebased = self.wrapping("sub", "uint32", magnitude, u32((112 << 23) - 0xFFF))
        normal = tirx.shift_right(self.wrapping("add", "uint32", rebased, odd), u32(13))
        special = tirx.Select(tirx.GT(magnitude, u32(0x7F800000)), u32(0x7E00), u32(0x7C00))
        value = tirx.Select(
            tirx.GE(magnitude, u32(0x47800000)),
            special,
            tirx.Select(tirx.LT(magnitude, u32(113 << 23)), subnormal, normal),
        )
        sign = tirx.shift_right(bits & u32(0x80000000), u32(16))
        return self.cast("uint16", value | sign)

    def narrow_from_float64(self, dtype: str, x: Expr) -> Operand:
        """Round a float64 expression to a 16-bit float, once.

        The way leads over float32 rounded to odd, which keeps what the second rounding needs
        (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
        """
        x = self.bind("float64", x)
        nearest = self.bind("float32", self.cast("float32", x))
        return self.narrow(dtype, self._to_odd(nearest, self.cast("float64", nearest), x))

    def _to_odd(self, nearest: Expr, approximate: Expr, exact: Expr) -> Expr:
        """Turn a float32 rounded to nearest into one rounded to odd.

        Args:
            nearest: The rounded value.
            approximate: The rounded value again, in a type and scale that can be compared with
                `exact`; where it is NaN, nearest is kept.
            exact: What was rounded.
        """
        u32 = lambda value: self.integer("uint32", value)
        bits = self.bind("uint32", self.bits("uint32", nearest))
        negative = tirx.NE(bits & u32(0x80000000), u32(0))
        above = self.bind("bool", tirx.LT(exact, approximate))
        below = self.bind("bool", tirx.GT(exact, approximate))
        too_large = tirx.Select(negative, below, above)
        truncated = tirx.Select(too_large, self.wrapping("sub", "uint32", bits, u32(1)), bits)
        odd = tirx.Select(tirx.Or(above, below), truncated | u32(1), bits)
        return self.bits("float32", odd)

    def rounded(self, dtype: str, expr: Expr) -> Operand:
        """The result of one operation in the arithmetic type of `dtype`, rounded to `dtype`."""
        if DTYPES[dtype].is_narrow_float:
            return self.narrow(dtype, expr)
        return Operand(dtype, self.bind(dtype, expr))

    # -- values ----------------------------------------------------------------------------

    def constant(self, array: np.ndarray, dtype: str) -> Operand:
        """A constant of one element."""
        row = DTYPES[dtype]
        element = array.reshape(())
        if row.is_narrow_float:
            pattern = int(element.view(np.uint16))
            value = self.floating("float32", float(element))
            return Operand(dtype, self.integer("uint16", pattern), value, pattern)
        if row.kind == "bool":
            return Operand(dtype, self.splat(tirx.IntImm("bool", int(element))))
        if not row.is_float:
            return Operand(dtype, self.integer(dtype, int(element)))
        if np.isnan(element):
            return Operand(dtype, self.floating(dtype, float("nan")))
        return Operand(dtype, self.floating(dtype, float(element)))

    def zero(self, dtype: str) -> Operand:
        """The constant 0 of a dtype."""
        return self.constant(np.zeros((), DTYPES[dtype].numpy), dtype)

    def loaded(self, dtype: str, expr: Expr) -> Operand:
        """An operand from its element in memory."""
        expr = self.bind(storage_type(dtype), expr)
        if dtype == "bool":
            expr = self.bind("bool", tirx.NE(expr, self.integer("uint8", 0)))
        return Operand(dtype, expr)

    def stored(self, x: Operand) -> Expr:
        """The element in memory of an operand."""
        if x.dtype == "bool":
            return tirx.Select(x.expr, self.integer("uint8", 1), self.integer("uint8", 0))
        return x.expr

    def select(self, condition: Expr, a: Operand, b: Operand) -> Operand:
        """a where the condition holds, else b, both as they are."""
        if a.dtype == "bool":
            chosen = tirx.Or(tirx.And(condition, a.expr), tirx.And(tirx.Not(condition), b.expr))
        else:
            chosen = tirx.Select(condition, a.expr, b.expr)
        return Operand(
            a.dtype, self.bind("bool" if a.dtype == "bool" else storage_type(a.dtype), chosen)
        )

    def is_nan(self, x: Operand) -> Expr:
        """True where a float is NaN; False for integers."""
        if not x.row.is_float:
            return self.splat(tirx.IntImm("bool", 0))
        return unequal(self.widened(x), self.widened(x))


def _llvm_type(storage: str) -> str:
    floats = {"float32": "float", "float64": "double"}
    return floats.get(storage, f"i{storage.lstrip('uint')}")


def unequal(a: Expr, b: Expr) -> Expr:
    """a != b, True where either is NaN: TVM's own NE is the ordered comparison of LLVM."""
    return tirx.Not(tirx.EQ(a, b))


def _large(dtype: str, value: int) -> Expr:
    return tirx.reinterpret(dtype, tirx.IntImm("int64", value - 2**64))
