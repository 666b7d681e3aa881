"""Graphs of one 8-bit number: a table of 256 results instead of arithmetic.

A quantized chain (dequantize, activate, quantize) maps every input byte to an output byte, and its
division costs more than all memory traffic. The table is what the contract (`reference`) says, so
the bits are the same. It pays where registers hold it: with AVX-512, where one instruction picks
among 64 pairs of bytes (quantized leaky_relu, int8, 1M elements, 2 threads: 45 us instead of 239;
AMD EPYC, Zen 4, 2026-11-21).
"""

from __future__ import annotations

import hashlib

import numpy as np

from relu_ops import ir, reference
from relu_ops.compiler.schedule import leaves_of
from relu_ops.semantics import DTYPES

VECTOR_BYTES = 64
"""The vectors that the lookup is written for."""

_WORDS = 32  # of two bytes, in a vector


def table_of(graph: ir.Graph) -> np.ndarray | None:
    """The result for every input byte, in the order of the bytes; None where it is none of those.

    A graph that stays within 8 bits is left to arithmetic, which is as fast.
    """
    leaves = leaves_of(graph)
    if len(leaves) != 1 or len(graph.outputs) != 1 or len(graph.inputs) != 1:
        return None
    value, output = graph.values[leaves[0].value], graph.values[graph.outputs[0].value]
    if value.kind != "input" or not _is_byte(leaves[0].dtype) or not _is_byte(output.dtype):
        return None
    if all(DTYPES[graph.values[index].dtype].bits <= 8 for index in graph.live_values()):
        return None
    rank = 1 if graph.inputs[0].shape is None else len(graph.inputs[0].shape)
    if rank == 0:
        return None
    every = np.arange(256, dtype=np.uint8).view(DTYPES[leaves[0].dtype].numpy)
    with np.errstate(all="ignore"):
        (results,) = reference.evaluate(graph, [every.reshape(256, *(1,) * (rank - 1))])
    return results.reshape(-1).view(np.uint8) if results.size == 256 else None


def _is_byte(dtype: str) -> bool:
    return DTYPES[dtype].kind in ("int", "uint") and DTYPES[dtype].bits == 8


def function_of(table: np.ndarray, lanes: int) -> tuple[str, str]:
    """The name and the LLVM IR of a function of `lanes` bytes, at most VECTOR_BYTES, to as many."""
    name = f"relu_ops.lookup.{hashlib.sha256(table.tobytes()).hexdigest()[:16]}.x{lanes}"
    return name, _scalar(name, table) if lanes == 1 else _vector(name, table, lanes)


def _scalar(name: str, table: np.ndarray) -> str:
    entries = ", ".join(f"i8 {entry}" for entry in table)
    return (
        f"@{name}.table = private unnamed_addr constant [256 x i8] [{entries}], align 64\n"
        f"define internal i8 @{name}(i8 %x) alwaysinline {{\n"
        "  %i = zext i8 %x to i64\n"
        f"  %p = getelementptr [256 x i8], ptr @{name}.table, i64 0, i64 %i\n"
        "  %r = load i8, ptr %p\n  ret i8 %r\n}\n"
    )


def _vector(name: str, table: np.ndarray, lanes: int) -> str:
    """Even and odd bytes apart, as words: 7 bits pick a pair of bytes, the lowest one of them."""
    words, pick = f"<{_WORDS} x i16>", "@llvm.x86.avx512.vpermi2var.hi.512"
    quarters = [_constant(quarter) for quarter in table.view("<u2").reshape(4, _WORDS)]
    lines = [
        f"declare {words} {pick}({words}, {words}, {words})",
        f"define internal <{lanes} x i8> @{name}(<{lanes} x i8> %x) alwaysinline {{",
        f"  %whole = {_resized('%x', lanes, VECTOR_BYTES)}",
        f"  %v = bitcast <{VECTOR_BYTES} x i8> %whole to {words}",
        f"  %even = and {words} %v, {_every(255)}",
        f"  %odd = lshr {words} %v, {_every(8)}",
    ]
    for h in ("even", "odd"):
        pair = f"{words} %{h}.pair"
        low, high = (
            f"call {words} {pick}({words} {quarters[k]}, {pair}, {words} {quarters[k + 1]})"
            for k in (0, 2)
        )
        lines += [
            f"  %{h}.pair = lshr {words} %{h}, {_every(1)}",
            f"  %{h}.low = {low}",
            f"  %{h}.high = {high}",
            f"  %{h}.upper = icmp ugt {words} %{h}, {_every(127)}",
            f"  %{h}.both = select <{_WORDS} x i1> %{h}.upper, {words} %{h}.high, {words} %{h}.low",
            f"  %{h}.bit = and {words} %{h}, {_every(1)}",
            f"  %{h}.shift = shl {words} %{h}.bit, {_every(3)}",
            f"  %{h}.first = lshr {words} %{h}.both, %{h}.shift",
            f"  %{h}.byte = and {words} %{h}.first, {_every(255)}",
        ]
    return "\n".join(
        [
            *lines,
            f"  %left = shl {words} %odd.byte, {_every(8)}",
            f"  %joined = or {words} %even.byte, %left",
            f"  %bytes = bitcast {words} %joined to <{VECTOR_BYTES} x i8>",
            f"  %r = {_resized('%bytes', VECTOR_BYTES, lanes)}",
            f"  ret <{lanes} x i8> %r\n}}\n",
        ]
    )


def _constant(numbers: np.ndarray | list[int]) -> str:
    return f"<{', '.join(f'i16 {int(number)}' for number in numbers)}>"


def _every(number: int) -> str:
    return _constant([number] * _WORDS)


def _resized(value: str, lanes: int, to: int) -> str:
    """A shuffle that keeps what fits; what is added is never looked at."""
    places = ", ".join(f"i32 {k if k < lanes else 0}" for k in range(to))
    kind = f"<{lanes} x i8>"
    return f"shufflevector {kind} {value}, {kind} poison, <{to} x i32> <{places}>"
