"""Compositions: operators whose rule in `semantics.OPERATORS` is a formula of other rows.

The text of the row is what is computed, in Python's notation: sums and products, and other
operators called by name.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from relu_ops.contract.semantics import OPERATORS

if TYPE_CHECKING:
    from relu_ops.compiler.frontend.operators import Call

_ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "Add",
    ast.Sub: "Sub",
    ast.Mult: "Mul",
    ast.Div: "Div",
}


def compose(
    call: Call, operator: str, operands: Sequence[int], attributes: Mapping[str, float]
) -> int:
    """The value of a composition.

    Args:
        call: The node; its importer makes the values.
        operator: The row.
        operands: Its operands.
        attributes: Those that are given; the others have their defaults.
    """
    row = OPERATORS[operator]
    names = dict(zip(row.operands, operands, strict=True))
    formula = _Formula(call, names, {**row.attributes, **attributes}, operands[0])
    return formula.value(ast.parse(row.rule, mode="eval").body)


@dataclass(frozen=True)
class _Formula:
    """A formula while it becomes values.

    Attributes:
        call: The node that it is of.
        operands: The values that its names stand for.
        attributes: The numbers that its other names stand for.
        like: The value whose dtype numbers take.
    """

    call: Call
    operands: Mapping[str, int]
    attributes: Mapping[str, float]
    like: int

    def value(self, node: ast.expr) -> int:
        """The value of a part of it."""
        if isinstance(node, ast.BinOp):
            operator = _ARITHMETIC[type(node.op)]
            return self.call.apply(operator, self.value(node.left), self.value(node.right))
        if isinstance(node, ast.Call):
            return self._called(node)
        if isinstance(node, ast.Name) and node.id in self.operands:
            return self.operands[node.id]
        return self.call.scalar(self._number(node), self.like)

    def _called(self, node: ast.Call) -> int:
        assert isinstance(node.func, ast.Name), ast.dump(node)
        operands = [self.value(one) for one in node.args]
        if OPERATORS[node.func.id].form != "composition":
            return self.call.apply(node.func.id, *operands)
        given = {one.arg or "": self._number(one.value) for one in node.keywords}
        return compose(self.call, node.func.id, operands, given)

    def _number(self, node: ast.expr) -> float:
        if isinstance(node, ast.Name):
            return self.attributes[node.id]
        if isinstance(node, ast.BinOp):
            assert isinstance(node.op, ast.Div), ast.dump(node)
            return self._number(node.left) / self._number(node.right)
        assert isinstance(node, ast.Constant), ast.dump(node)
        assert isinstance(node.value, int | float), ast.dump(node)
        return float(node.value)
