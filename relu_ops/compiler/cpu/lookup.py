"""Tables instead of arithmetic: bytes and words that a vector instruction looks up.

What a table holds is what the contract (`reference`) says, so the bits are the same. A graph of one
8-bit number (dequantize, activate, quantize) maps every input byte to an output byte, and its
division costs more than all memory traffic: a table of 256 results, which every vector of 16 bytes
and more looks up by the `Tables` of its processor. Quantized leaky_relu of 64k int8 on one thread
takes 11 us instead of 55 on x86-64-v2 and 5 instead of 32 on x86-64-v3 (with a table of random
bytes 14 and 7; with a load for every byte 23 and 25), 1M on two threads 45 instead of 239 on
x86-64-v4 (AMD EPYC, Zen 4, 2026-11-21).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from relu_ops.compiler.emitter import Slope
from relu_ops.compiler.patterns import leaves_of
from relu_ops.contract import ir, reference
from relu_ops.contract.semantics import DTYPES

Scheme = Callable[[str, np.ndarray, int], str]
"""The LLVM IR of a function of some name, of a table, and so many bytes at once."""


@dataclass(frozen=True)
class Tables:
    """How a processor looks numbers up.

    Attributes:
        schemes: How so many bytes are looked up at once; others one by one.
        slope_of: Leaky ReLU of so many bfloat16 with a slope of some pattern; None where a table
            does not help.
    """

    schemes: Mapping[int, Scheme]
    slope_of: Callable[[int, int], Slope | None] = lambda lanes, pattern: None


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


def function_of(table: np.ndarray, lanes: int, schemes: Mapping[int, Scheme]) -> tuple[str, str]:
    """The name and the LLVM IR of a function of `lanes` bytes to as many.

    Args:
        table: The result for every byte.
        lanes: A power of two; the target has vectors of that many bytes.
        schemes: How its processor looks up.
    """
    name = f"relu_ops.lookup.{hashlib.sha256(table.tobytes()).hexdigest()[:16]}.x{lanes}"
    if lanes == 1:
        return name, _loaded(name, table)
    return name, schemes.get(lanes, _one_by_one)(name, table, lanes)


def _loaded(name: str, table: np.ndarray) -> str:
    entries = ", ".join(f"i8 {entry}" for entry in table)
    return (
        f"@{name}.table = private unnamed_addr constant [256 x i8] [{entries}], align 64\n"
        f"define internal i8 @{name}(i8 %x) alwaysinline {{\n"
        "  %i = zext i8 %x to i64\n"
        f"  %p = getelementptr [256 x i8], ptr @{name}.table, i64 0, i64 %i\n"
        "  %r = load i8, ptr %p\n  ret i8 %r\n}\n"
    )


def _one_by_one(name: str, table: np.ndarray, lanes: int) -> str:
    """A load for every byte: for tails, where a padded vector gains nothing.

    A row of 15 int8 takes 5 ns so and 8 by shuffles on x86-64-v2 (AMD EPYC, Zen 4, 2026-11-21).
    """
    kind, one = f"<{lanes} x i8>", f"{name}.one"
    lines = [f"define internal {kind} @{name}({kind} %x) alwaysinline {{"]
    for k in range(lanes):
        lines += [
            f"  %x{k} = extractelement {kind} %x, i32 {k}",
            f"  %y{k} = call i8 @{one}(i8 %x{k})",
            f"  %r{k} = insertelement {kind} {f'%r{k - 1}' if k else 'poison'}, i8 %y{k}, i32 {k}",
        ]
    return _loaded(one, table) + "\n".join([*lines, f"  ret {kind} %r{lanes - 1}\n}}\n"])


def constant(numbers: Iterable[int], element: str) -> str:
    """A vector in LLVM IR."""
    return f"<{', '.join(f'{element} {int(number)}' for number in numbers)}>"


def every_byte(number: int, lanes: int) -> str:
    """A vector of equal bytes in LLVM IR."""
    return constant([number] * lanes, "i8")
