"""Goes from the outputs of a graph to its inputs, and adds up gradients on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from relu_ops.contract import ir
from relu_ops.contract.semantics import DTYPES, OPERATORS
from relu_ops.errors import UnsupportedError
from relu_ops.gradients.formulas import Formula
from relu_ops.gradients.paths import Paths
from relu_ops.gradients.writer import Writer


@dataclass
class Backward:
    """Goes from the outputs to the inputs, the last value first, adding up gradients.

    As torch does: what a value gets of its users is summed in the order in which they are met.
    """

    graph: ir.Graph
    writer: Writer
    paths: Paths
    _sums: dict[int, str] = field(default_factory=dict)

    def run(self, chosen: Sequence[int]) -> dict[str, str]:
        """The gradients of the chosen inputs, by their names."""
        self._seed()
        wanted = self._leading_to(chosen)
        for index in reversed(self.graph.live_values()):
            if index in self._sums:
                for position, operand in self.paths.into(index):
                    if operand in wanted:
                        self._pass(index, position, operand)
        inputs = self.graph.inputs
        return {inputs[self.graph.values[k].input].name: self._sums[k] for k in chosen}

    def _seed(self) -> None:
        for output in self.graph.outputs:
            dtype = self.graph.values[output.value].dtype
            if DTYPES[dtype].is_float:
                self._add(output.value, self.writer.upstream(output, dtype))

    def _leading_to(self, chosen: Sequence[int]) -> set[int]:
        """What depends on the chosen inputs by operands that pass a gradient on."""
        found = set(chosen)
        for index in self.graph.live_values():
            if any(operand in found for _, operand in self.paths.into(index)):
                found.add(index)
        return found

    def _add(self, index: int, name: str) -> None:
        known = self._sums.get(index)
        dtype = self.writer.dtype(name)
        self._sums[index] = name if known is None else self.writer.node("Add", [known, name], dtype)

    def _pass(self, index: int, position: int, operand: int) -> None:
        """Give an operand its part of a value's gradient."""
        value = self.graph.values[index]
        if value.kind == "view":
            self._refuse_view(operand)
        row = OPERATORS[value.operator]
        if value.operator == "DequantizeLinear" and row.operands[position] == "x":
            self._check_pair(value, self.graph.values[operand])
            self._add(operand, self._sums[index])
            return
        formula = row.derivatives[row.operands[position]]
        dtype = self.graph.values[operand].dtype
        result = Formula(self.writer, dtype, self._environment(index)).value(formula)
        if self.writer.dtype(result) != dtype:
            result = self.writer.node("Cast", [result], dtype, {"to": DTYPES[dtype].onnx_type})
        self._add(operand, result)

    def _refuse_view(self, operand: int) -> None:
        raise UnsupportedError(
            f"gradient: {self.writer.value(operand)} lies along an axis that is not its last, so "
            "that its gradient cannot be summed to its shape",
            "give it that shape, [C, 1, 1] for channels of NCHW; "
            "onnx.version_converter.convert_version does it for old opsets",
        )

    # ---- what a formula's names stand for

    def _environment(self, index: int) -> dict[str, Callable[[], str | None]]:
        """What makes each name's value when a formula has it: what none has is not written."""
        value = self.graph.values[index]
        found: dict[str, Callable[[], str | None]] = {"dy": lambda: self._sums[index]}
        for name, operand in zip(OPERATORS[value.operator].operands, value.arguments, strict=True):
            found[name] = partial(self._operand, operand)
        for name, number in value.attributes.items():
            found[name] = partial(self.writer.scalar, number, value.dtype)
        if value.operator == "QuantizeLinear":
            return found | self._quotients(index)
        if value.operator == "DequantizeLinear":
            found["level"] = lambda: self._level(value)
        return found

    def _operand(self, index: int | None) -> str | None:
        return None if index is None else self.writer.value(index)

    def _cast(self, name: str, to: str) -> str:
        if self.writer.dtype(name) == to:
            return name
        return self.writer.node("Cast", [name], to, {"to": DTYPES[to].onnx_type})

    def _level(self, value: ir.Value) -> str:
        """T(x - zero_point) of a DequantizeLinear."""
        x, _, zero_point = value.arguments
        assert x is not None
        # The difference is exact: in float32 of levels of 16 bits, in float64 of those of 32.
        exact = "float32" if DTYPES[self.graph.values[x].dtype].bits <= 16 else "float64"
        level = self._cast(self.writer.value(x), exact)
        if zero_point is not None:
            other = self._cast(self.writer.value(zero_point), exact)
            level = self.writer.node("Sub", [level, other], exact)
        return self._cast(level, value.dtype)

    def _quotients(self, index: int) -> dict[str, Callable[[], str | None]]:
        """The names of QuantizeLinear: its quotient's operands, and where it is not saturated."""
        value = self.graph.values[index]
        x, scale, zero_point = value.arguments
        assert x is not None and scale is not None
        precision = value.attributes["precision"]
        levels = np.zeros((), np.int64)
        if zero_point is not None:
            levels = self._constant_zero_point(zero_point).astype(np.int64)
        limits = np.iinfo(DTYPES[value.dtype].numpy)
        bounds = _unsaturated(limits.min - levels, limits.max - levels, precision)
        return {
            "dy": lambda: self._cast(self._sums[index], precision),
            "x": lambda: self._cast(self.writer.value(x), precision),
            "scale": lambda: self._cast(self.writer.value(scale), precision),
            "lowest": lambda: self.writer.constant(bounds[0]),
            "highest": lambda: self.writer.constant(bounds[1]),
        }

    def _constant_zero_point(self, index: int) -> np.ndarray:
        value = self.graph.values[index]
        if value.kind == "view":
            source = self._constant_zero_point(value.arguments[0] or 0)
            return source.reshape(value.view.shape(source.shape))
        if value.array is None:
            raise UnsupportedError(
                f"gradient: the zero point {self.writer.value(index)} must be a constant, from "
                "which follows where a straight-through estimate ends",
                "make it an initializer",
            )
        return value.array

    def _check_pair(self, dequantize: ir.Value, quantize: ir.Value) -> None:
        for name, own, other in zip(
            ("scale", "zero point"), dequantize.arguments[1:], quantize.arguments[1:], strict=True
        ):
            if not self._alike(own, other):
                raise UnsupportedError(
                    f"gradient: a straight-through estimate needs one {name} in QuantizeLinear and "
                    "in the DequantizeLinear that reads it",
                    "name the same initializer in both",
                )

    def _alike(self, a: int | None, b: int | None) -> bool:
        if a == b:
            return True
        if a is None or b is None:
            return False
        one, other = self.graph.values[a], self.graph.values[b]
        if one.kind == other.kind == "view" and one.view == other.view:
            return self._alike(one.arguments[0], other.arguments[0])
        if one.array is None or other.array is None:
            return False
        return one.terms == other.terms and np.array_equal(one.array, other.array)


def _unsaturated(
    lowest: np.ndarray, highest: np.ndarray, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """The outermost numbers of a dtype that are still rounded to whole numbers between bounds."""
    return _outermost(lowest, -1, dtype), _outermost(highest, 1, dtype)


def _outermost(whole: np.ndarray, side: int, dtype: str) -> np.ndarray:
    number = DTYPES[dtype].numpy
    found = (whole + side * 0.5).astype(number)
    inward = np.asarray(-side * np.inf, number)
    while (beyond := side * (np.rint(found.astype(np.float64)) - whole) > 0).any():
        found = np.where(beyond, np.nextafter(found, inward), found).astype(number)
    return found
