"""Which operands pass a gradient on, and which values get one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from relu_ops.contract import ir
from relu_ops.contract.semantics import DTYPES, OPERATORS


class Paths:
    """The ways that gradients take through a graph, from the floating outputs on."""

    def __init__(self, graph: ir.Graph, straight_through: bool) -> None:
        self._values = graph.values
        self.straight_through = straight_through
        self._reached = self._reachable(graph)

    def reached(self, index: int) -> bool:
        """True for a value that some floating output gives a gradient to."""
        return index in self._reached

    def into(self, index: int) -> Iterator[tuple[int, int]]:
        """The operands of a value that get a gradient of it: their positions, and values."""
        value = self._values[index]
        if value.kind == "view":
            yield from ((0, a) for a in value.arguments if a is not None)
        elif value.kind == "apply":
            names, derivatives = OPERATORS[value.operator].operands, self._derivatives(value)
            for position, operand in enumerate(value.arguments):
                if operand is None or names[position] not in derivatives:
                    continue
                if self._is_float(operand) or self.estimates(operand):
                    yield position, operand

    def estimates(self, index: int) -> bool:
        """True for a quantized value that passes an estimate on, where one is asked for."""
        return self.straight_through and self._values[index].operator == "QuantizeLinear"

    def _derivatives(self, value: ir.Value) -> Mapping[str, str]:
        found = OPERATORS[value.operator].derivatives
        if value.operator == "DequantizeLinear" and self.straight_through:
            return {"x": "dy", **found}
        return found

    def _is_float(self, index: int) -> bool:
        return DTYPES[self._values[index].dtype].is_float

    def _reachable(self, graph: ir.Graph) -> set[int]:
        pending = [o.value for o in graph.outputs if self._is_float(o.value)]
        seen: set[int] = set()
        while pending:
            index = pending.pop()
            if index not in seen:
                seen.add(index)
                pending += [operand for _, operand in self.into(index)]
        return seen
