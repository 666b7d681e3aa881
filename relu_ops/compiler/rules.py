"""Lowers primitive operators, bit for bit as `semantics.OPERATORS` says.

This is where every bit is decided: one function for each row of the table. An integer division
never traps (`div`), a conversion is never out of range (`_to_integer`); what else it takes to be
exact is the emitter's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tvm import tirx

from relu_ops.compiler.emitter import Emitter, Expr, Operand, unequal
from relu_ops.contract import ir
from relu_ops.contract.semantics import DTYPES, Dtype


def relu(e: Emitter, x: Operand) -> Operand:
    """0 if x < 0 else x: NaN and -0.0 compare as not less, and pass."""
    return e.select(_is_negative(e, x), e.zero(x.dtype), x)


def _is_negative(e: Emitter, x: Operand) -> Expr:
    """x < 0, for 16-bit floats on their bits: from just below -0.0 down to -inf, no NaN."""
    if not x.row.is_narrow_float:
        return tirx.LT(x.expr, e.zero(x.dtype).expr)
    infinity = 0xFC00 if x.dtype == "float16" else 0xFF80
    return tirx.And(
        tirx.GT(x.expr, e.integer("uint16", 0x8000)),
        tirx.LE(x.expr, e.integer("uint16", infinity)),
    )


def leaky_relu(e: Emitter, x: Operand, *, alpha: float) -> Operand:
    """alpha * x if x < 0 else x."""
    slope = _attribute(e, alpha, x.dtype)
    if x.dtype == "bfloat16":
        return e.sloped_bfloat16(x, slope, lambda: prelu(e, x, slope))
    if e.cheap_select or x.dtype == "float16" or alpha == 0 or np.isnan(alpha):
        return prelu(e, x, slope)
    return _farther(e, x, slope, is_steep=alpha > 1)


def _farther(e: Emitter, x: Operand, slope: Operand, *, is_steep: bool) -> Operand:
    """alpha * x where it lies above x, for alpha > 1 below; else x: one maximum or minimum of x86.

    Rounding keeps the order of numbers. So where x < 0, the product is there or has the bits of x;
    where x > 0, it is not; zeros are equal, a NaN compares with nothing, and x passes. Not so for
    alpha = 0 at -inf, nor where alpha is NaN.

    On v2, leaky_relu of 64k float32 takes 5.6 us so and 7.1 with a comparison and a select. With
    AVX it gains nothing, and scale_bias_leaky_relu (NCHW) of 1M takes 99 us instead of 87 (AMD
    EPYC, Zen 4, one thread, 2026-11-21).
    """
    product = mul(e, slope, x)
    compare = tirx.LT if is_steep else tirx.GT
    return e.select(compare(product.expr, x.expr), product, x)


def _attribute(e: Emitter, value: float, dtype: str) -> Operand:
    """A float32 attribute in the dtype of the input that it meets, rounded once."""
    number = np.asarray(np.float32(value))
    if not DTYPES[dtype].is_narrow_float or np.isnan(number):
        return cast(e, e.constant(number, "float32"), to=dtype)
    with np.errstate(over="ignore"):
        return e.constant(number.astype(DTYPES[dtype].numpy), dtype)


def prelu(e: Emitter, x: Operand, slope: Operand) -> Operand:
    return e.select(_is_negative(e, x), mul(e, slope, x), x)


def thresholded_relu(e: Emitter, x: Operand, *, alpha: float) -> Operand:
    """x if x > alpha else 0: NaN compares as not greater and gives 0."""
    threshold = _attribute(e, alpha, x.dtype)
    return e.select(tirx.GT(e.widened(x), e.widened(threshold)), x, e.zero(x.dtype))


def clip(e: Emitter, x: Operand, low: Operand | None, high: Operand | None) -> Operand:
    """The ONNX function body: two comparisons, so that NaN and equal zeros pass."""
    if low is not None:
        x = e.select(tirx.LT(e.widened(x), e.widened(low)), low, x)
    if high is not None:
        x = e.select(tirx.LT(e.widened(high), e.widened(x)), high, x)
    return x


def absolute(e: Emitter, x: Operand) -> Operand:
    """Clears the sign bit, of NaN too; an integer MIN stays itself."""
    if x.row.is_float:
        rest = e.integer(f"uint{x.row.bits}", (1 << (x.row.bits - 1)) - 1)
        return _with_bits(e, x, lambda bits: bits & rest)
    if x.row.kind == "uint":
        return x
    return e.select(_is_negative(e, x), negative(e, x), x)


def negative(e: Emitter, x: Operand) -> Operand:
    """Flips the sign bit, of NaN and zero too; integers wrap."""
    if x.row.is_float:
        sign_bit = e.integer(f"uint{x.row.bits}", 1 << (x.row.bits - 1))
        return _with_bits(e, x, lambda bits: tirx.bitwise_xor(bits, sign_bit))
    zero = e.zero(x.dtype).expr
    return Operand(x.dtype, e.bind(x.dtype, e.wrapping("sub", x.dtype, zero, x.expr)))


def _with_bits(e: Emitter, x: Operand, change: Callable[[Expr], Expr]) -> Operand:
    """A float with its bits changed; no arithmetic touches it."""
    if x.row.is_narrow_float:
        return Operand(x.dtype, e.bind("uint16", change(x.expr)))
    bits = change(e.bits(f"uint{x.row.bits}", x.expr))
    return Operand(x.dtype, e.bind(x.dtype, e.bits(x.dtype, bits)))


def sign(e: Emitter, x: Operand) -> Operand:
    """1, -1 or 0 by comparison, x itself where no comparison holds (NaN)."""
    wide, zero = e.widened(x), e.widened(e.zero(x.dtype))
    number = lambda value: cast(e, e.constant(np.asarray(value, np.int8), "int8"), to=x.dtype)
    result = e.select(tirx.EQ(wide, zero), e.zero(x.dtype), x)
    if x.row.kind != "uint":
        result = e.select(tirx.LT(wide, zero), number(-1), result)
    return e.select(tirx.GT(wide, zero), number(1), result)


def maximum(e: Emitter, a: Operand, b: Operand) -> Operand:
    """a if a >= b or a is NaN else b: a NaN b fails the comparison and is chosen."""
    return e.select(tirx.Or(tirx.GE(e.widened(a), e.widened(b)), e.is_nan(a)), a, b)


def minimum(e: Emitter, a: Operand, b: Operand) -> Operand:
    """a if a <= b or a is NaN else b."""
    return e.select(tirx.Or(tirx.LE(e.widened(a), e.widened(b)), e.is_nan(a)), a, b)


def add(e: Emitter, a: Operand, b: Operand) -> Operand:
    if a.row.is_float:
        return e.rounded(a.dtype, tirx.Add(e.widened(a), e.widened(b)))
    return Operand(a.dtype, e.bind(a.dtype, e.wrapping("add", a.dtype, a.expr, b.expr)))


def sub(e: Emitter, a: Operand, b: Operand) -> Operand:
    if a.row.is_float:
        return e.rounded(a.dtype, tirx.Sub(e.widened(a), e.widened(b)))
    return Operand(a.dtype, e.bind(a.dtype, e.wrapping("sub", a.dtype, a.expr, b.expr)))


def mul(e: Emitter, a: Operand, b: Operand) -> Operand:
    """One rounding: float32 holds a product of float16, and of bfloat16 what a rounding needs."""
    if not a.row.is_float:
        return Operand(a.dtype, e.bind(a.dtype, e.wrapping("mul", a.dtype, a.expr, b.expr)))
    if a.dtype == "bfloat16":
        return e.product_bfloat16(a, b)
    arithmetic = "float32" if a.dtype == "float16" else a.dtype
    return e.rounded(a.dtype, e.product(arithmetic, e.widened(a), e.widened(b)))


def div(e: Emitter, a: Operand, b: Operand) -> Operand:
    if not a.row.is_float:
        return _integer_div(e, a, b)
    if a.dtype == "bfloat16":
        return e.quotient_bfloat16(a, b)
    return e.rounded(a.dtype, tirx.Div(e.widened(a), e.widened(b)))


def _integer_div(e: Emitter, a: Operand, b: Operand) -> Operand:
    """Truncates; x / 0 is 0 and MIN / -1 is MIN: the CPU would trap on both."""
    row = a.row
    by_zero = e.bind("bool", tirx.EQ(b.expr, e.zero(b.dtype).expr))
    unsafe = by_zero
    if row.kind == "int":
        lowest = e.integer(row.name, int(np.iinfo(row.numpy).min))
        overflows = tirx.And(tirx.EQ(a.expr, lowest), tirx.EQ(b.expr, e.integer(row.name, -1)))
        unsafe = e.bind("bool", tirx.Or(by_zero, overflows))
    divisor = e.bind(row.name, tirx.Select(unsafe, e.integer(row.name, 1), b.expr))
    quotient = tirx.Div(a.expr, divisor)
    return Operand(
        row.name, e.bind(row.name, tirx.Select(by_zero, e.integer(row.name, 0), quotient))
    )


def where(e: Emitter, condition: Operand, a: Operand, b: Operand) -> Operand:
    return e.select(condition.expr, a, b)


def _comparison(node: Callable[[Expr, Expr], Expr]) -> Callable[..., Operand]:
    """Ordered comparisons: False where either is NaN."""

    def rule(e: Emitter, a: Operand, b: Operand) -> Operand:
        if a.dtype == "bool":
            same = tirx.Or(tirx.And(a.expr, b.expr), tirx.Not(tirx.Or(a.expr, b.expr)))
            return Operand("bool", e.bind("bool", same))
        return Operand("bool", e.bind("bool", node(e.widened(a), e.widened(b))))

    return rule


def logical_not(e: Emitter, a: Operand) -> Operand:
    return Operand("bool", e.bind("bool", tirx.Not(a.expr)))


def logical_and(e: Emitter, a: Operand, b: Operand) -> Operand:
    return Operand("bool", e.bind("bool", tirx.And(a.expr, b.expr)))


def logical_or(e: Emitter, a: Operand, b: Operand) -> Operand:
    return Operand("bool", e.bind("bool", tirx.Or(a.expr, b.expr)))


def logical_xor(e: Emitter, a: Operand, b: Operand) -> Operand:
    either, both = tirx.Or(a.expr, b.expr), tirx.And(a.expr, b.expr)
    return Operand("bool", e.bind("bool", tirx.And(either, tirx.Not(both))))


def cast(e: Emitter, x: Operand, *, to: str) -> Operand:
    """The exact value, rounded once."""
    target = DTYPES[to]
    if x.dtype == to:
        return x
    if target.kind == "bool":
        return Operand(to, e.bind("bool", unequal(e.widened(x), e.widened(e.zero(x.dtype)))))
    if x.dtype == "bool":
        one = e.constant(np.ones((), target.numpy), to)
        return e.select(x.expr, one, e.zero(to))
    if x.row.is_float and not target.is_float:
        return _to_integer(e, x, target)
    if target.is_narrow_float:
        return _to_narrow(e, x, to)
    return Operand(to, e.bind(to, e.cast(to, e.widened(x))))


def _to_narrow(e: Emitter, x: Operand, to: str) -> Operand:
    if x.row.is_float and x.dtype != "float64":
        return e.narrow(to, e.widened(x))
    if x.row.bits < 32:
        return e.narrow(to, e.cast("float32", x.expr))
    exact = _with_sticky_bits(e, x) if x.row.bits == 64 and not x.row.is_float else x.expr
    return e.narrow_from_float64(to, e.cast("float64", exact))


def _with_sticky_bits(e: Emitter, x: Operand) -> Expr:
    """A 64-bit integer that float64 holds exactly and that rounds to 16 bits as x does.

    From 2**53 on, the lowest 11 bits only say whether the value lies above a multiple of 2**11.
    """
    number = lambda value: e.integer(x.dtype, value)
    low = x.expr & number(0x7FF)
    floor = e.bits(x.dtype, tirx.bitwise_xor(x.expr, low))
    sticky = tirx.Select(tirx.NE(low, number(0)), floor | number(0x400), floor)
    large = tirx.GE(x.expr, number(2**53))
    if x.row.kind == "int":
        large = tirx.Or(large, tirx.LE(x.expr, number(-(2**53))))
    return tirx.Select(large, sticky, x.expr)


def _to_integer(e: Emitter, x: Operand, target: Dtype) -> Operand:
    """Truncates, saturates, NaN to 0; only values in range reach the conversion."""
    arithmetic = "float64" if x.dtype == "float64" else "float32"
    value = e.widened(x)
    limits = np.iinfo(target.numpy)
    number = lambda v: e.floating(arithmetic, v)
    # The first value that is too large is a power of two, exact in every float type.
    too_large = tirx.GE(value, number(float(int(limits.max) + 1)))
    # Between MIN - 1 and MIN, truncation gives MIN as saturation does.
    too_small = tirx.LT(value, number(float(limits.min)))
    too_large, too_small = e.bind("bool", too_large), e.bind("bool", too_small)
    outside = tirx.Or(tirx.Or(too_large, too_small), unequal(value, value))
    inside = e.bind(arithmetic, tirx.Select(outside, number(0.0), value))
    converted = e.cast(target.name, inside)
    saturated = tirx.Select(too_large, e.integer(target.name, int(limits.max)), converted)
    saturated = tirx.Select(too_small, e.integer(target.name, int(limits.min)), saturated)
    return Operand(target.name, e.bind(target.name, saturated))


def quantize_linear(
    e: Emitter,
    x: Operand,
    scale: Operand,
    zero_point: Operand | None,
    *,
    to: str,
    precision: str,
) -> Operand:
    """saturate(round_half_even(x / scale) + zero_point)."""
    quotient = div(e, cast(e, x, to=precision), cast(e, scale, to=precision))
    arithmetic = "float64" if precision == "float64" else "float32"
    whole = e.whole(arithmetic, e.widened(quotient))
    # 2**20 lies beyond every sum of a level and a zero point of 16 bits.
    level = _to_integer(e, Operand(arithmetic, e.bind(arithmetic, whole)), DTYPES["int32"])
    bound = 1 << 20
    level = _between(e, level, -bound, bound)
    if zero_point is not None:
        level = add(e, level, cast(e, zero_point, to="int32"))
    limits = np.iinfo(DTYPES[to].numpy)
    level = _between(e, level, int(limits.min), int(limits.max))
    return Operand(to, e.bind(to, e.cast(to, level.expr)))


def _between(e: Emitter, x: Operand, low: int, high: int) -> Operand:
    bounds = [e.constant(np.asarray(v, np.int32), "int32") for v in (low, high)]
    return clip(e, x, *bounds)


def dequantize_linear(
    e: Emitter, x: Operand, scale: Operand, zero_point: Operand | None, *, to: str
) -> Operand:
    """T(x - zero_point) * T(scale), the difference exact."""
    wide = "int64" if x.row.bits == 32 else "int32"
    level = cast(e, x, to=wide)
    if zero_point is not None:
        level = sub(e, level, cast(e, zero_point, to=wide))
    return mul(e, cast(e, level, to=to), cast(e, scale, to=to))


RULES: dict[str, Callable[..., Operand]] = {
    "Relu": relu,
    "LeakyRelu": leaky_relu,
    "PRelu": prelu,
    "ThresholdedRelu": thresholded_relu,
    "Clip": clip,
    "Abs": absolute,
    "Neg": negative,
    "Sign": sign,
    "Max": maximum,
    "Min": minimum,
    "Add": add,
    "Sub": sub,
    "Mul": mul,
    "Div": div,
    "Where": where,
    "Less": _comparison(tirx.LT),
    "LessOrEqual": _comparison(tirx.LE),
    "Greater": _comparison(tirx.GT),
    "GreaterOrEqual": _comparison(tirx.GE),
    "Equal": _comparison(tirx.EQ),
    "Not": logical_not,
    "And": logical_and,
    "Or": logical_or,
    "Xor": logical_xor,
    "Cast": cast,
    "QuantizeLinear": quantize_linear,
    "DequantizeLinear": dequantize_linear,
}
"""Every primitive of `semantics.OPERATORS`."""


def lower(graph: ir.Graph, e: Emitter, leaves: Callable[[ir.Key], Operand]) -> list[Operand]:
    """Emit a whole graph for one group of elements.

    Args:
        graph: The graph.
        e: Where to emit.
        leaves: Gives the loaded operand of each leaf among `graph.reachable()`.

    Returns:
        One operand per graph output.
    """
    done: dict[ir.Key, Operand] = {}
    for index, view in graph.reachable():
        value = graph.values[index]
        if value.is_leaf:
            result = leaves((index, view))
        elif value.array is not None:
            result = e.constant(value.array, value.dtype)
        else:
            inner = value.view.then(view)
            operands = [None if a is None else done[a, inner] for a in value.arguments]
            result = _apply(e, value, operands)
        done[index, view] = result
    return [done[output.value, ir.View()] for output in graph.outputs]


def _apply(e: Emitter, value: ir.Value, operands: Sequence[Operand | None]) -> Operand:
    if value.kind == "view":
        assert operands[0] is not None
        return operands[0]
    return RULES[value.operator](e, *operands, **value.attributes)
