"""Disassembles the machine code that ships: what is in an image, not what is about to be in one.

Knows images and capstone; needs neither TVM nor a processor that could run the code. The image must
have been read by the runtime before, which checks every place that is followed here.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from relu_ops.compiler import layout
from relu_ops.errors import ArgumentError, require
from relu_ops.targets import parse

Instruction = tuple[int, int, str, str]
"""Address, size, name and operands."""

_PATTERNS = {1: "contiguous", 0: "repeated", -1: "strided"}


@dataclass(frozen=True)
class Dialect:
    """How the instructions of a processor are shown: `dialect.DIALECT` of its folder.

    Attributes:
        decoder: Makes capstone's decoder.
        fillers: The names of instructions that only fill space.
        read: Where an instruction reads at a distance from itself, which it does not say; or None.
    """

    decoder: Callable[[], Any]
    fillers: tuple[str, ...]
    read: Callable[[Instruction], int | None] = lambda _: None


@dataclass(frozen=True)
class Function:
    """A kernel, or its streaming twin.

    Attributes:
        name: As a profiler shows it: "leaky_relu::tile_0_stream".
        patterns: How each operand lies.
        at: Where it begins in the image.
        code: Its instructions, and what fills the space to the next one.
    """

    name: str
    patterns: tuple[str, ...]
    at: int
    code: bytes


def disassembly(image: bytes, operator: str) -> str:
    """The machine code of an operator, function by function; for x86-64 in AT&T's syntax.

    Addresses are places in the image. What an instruction reads by its distance stands beside it.

    Args:
        image: An image for a processor.
        operator: The name of one of its operators.

    Returns:
        The text, with a line an instruction.

    Raises:
        ArgumentError: There is no such operator; the message lists them.
        MissingDependencyError: capstone is not installed.
    """
    require("capstone", "inspect", "disassembling machine code")
    dialect = _dialect(image)
    return "\n".join(
        f"{function.name}:  # {', '.join(function.patterns)}\n"
        + "".join(f"{line}\n" for line in _lines(function, dialect))
        for function in functions(image, operator)
    )


def _dialect(image: bytes) -> Dialect:
    target = parse(_text(image, np.frombuffer(image, layout.HEADER, 1)[0]["target"]))
    module = f"relu_ops.compiler.{target.backend.folder}.dialect"
    dialect: Dialect = importlib.import_module(module).DIALECT
    return dialect


def functions(image: bytes, operator: str) -> list[Function]:
    """The functions of an operator, in the order of its kernels.

    Raises:
        ArgumentError: There is no such operator; the message lists them.
    """
    header = np.frombuffer(image, layout.HEADER, 1)[0]
    operators = _rows(image, layout.OPERATOR, header["operators"])
    named = {_text(image, row["name"]): row for row in operators}
    if operator not in named:
        raise ArgumentError(f"the image has no operator {operator!r}", f"it has {', '.join(named)}")
    # A function reaches to the next one, whichever operator that is of.
    tables = [_rows(image, layout.KERNEL, row["kernels"]) for row in operators]
    ends = {int(at) for kernels in tables for at in (*kernels["call"], *kernels["stream"])}
    ends.add(int(header["code_at"]) + int(header["code_size"]))
    return [
        Function(name, patterns, at, image[at : min(end for end in ends if end > at)])
        for name, patterns, at in _entries(image, operator, named[operator])
    ]


def _entries(image: bytes, operator: str, row: Any) -> Iterator[tuple[str, tuple[str, ...], int]]:
    """Name, patterns and place of each function."""
    for number, kernel in enumerate(_rows(image, layout.KERNEL, row["kernels"])):
        patterns = _rows(image, layout.PATTERN, kernel["patterns"])
        shown = tuple(_PATTERNS[int(pattern)] for pattern in patterns)
        for twin, at in (("", int(kernel["call"])), ("_stream", int(kernel["stream"]))):
            if at:
                yield f"{operator}::tile_{number}{twin}", shown, at


def _rows(image: bytes, kind: np.dtype, table: Any) -> np.ndarray:
    return np.frombuffer(image, kind, int(table["count"]), int(table["at"]))


def _text(image: bytes, text: Any) -> str:
    return image[text["at"] :][: text["length"]].decode()


# -- instructions ------------------------------------------------------------------------------


def _lines(function: Function, dialect: Dialect) -> Iterator[str]:
    """An instruction a line; a run of those that only fill space is one line."""
    decoder = dialect.decoder()
    decoder.skipdata = True  # what it does not know is shown as bytes
    instructions = decoder.disasm_lite(function.code, function.at)
    runs = itertools.groupby(instructions, key=lambda one: one[2].startswith(dialect.fillers))
    for fills, run in runs:
        if fills:
            found = list(run)
            size = sum(size for _, size, _, _ in found)
            yield f"{found[0][0]:8x}:\t# {size} bytes that fill a line"
        else:
            yield from (_line(instruction, dialect.read(instruction)) for instruction in run)


def _line(instruction: Instruction, read: int | None) -> str:
    at, _, name, operands = instruction
    line = f"{at:8x}:\t{name}\t{operands}".rstrip()
    return line if read is None else f"{line}\t# 0x{read:x}"
