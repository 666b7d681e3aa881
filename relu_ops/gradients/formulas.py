"""The texts of `semantics.OPERATORS`, as nodes: what a derivative is, in Python's notation."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from relu_ops.contract.semantics import DTYPES
from relu_ops.gradients.writer import Writer

_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "Less",
    ast.LtE: "LessOrEqual",
    ast.Gt: "Greater",
    ast.GtE: "GreaterOrEqual",
    ast.Eq: "Equal",
}
_ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "Add",
    ast.Sub: "Sub",
    ast.Mult: "Mul",
    ast.Div: "Div",
}
_LOGIC: dict[type[ast.boolop], str] = {ast.And: "And", ast.Or: "Or"}


@dataclass(frozen=True)
class Formula:
    """Writes a formula of the table as nodes.

    Attributes:
        writer: Where to.
        dtype: The dtype of its numbers.
        names: What its names stand for; None for an operand that is absent.
    """

    writer: Writer
    dtype: str
    names: Mapping[str, Callable[[], str | None]]

    def value(self, text: str) -> str:
        """The value of a formula."""
        result = self._value(ast.parse(text, mode="eval").body)
        assert result is not None
        return result

    def _value(self, node: ast.expr) -> str | None:
        """A number; None for what depends on an operand that is absent."""
        if isinstance(node, ast.Name):
            return self.names[node.id]()
        if isinstance(node, ast.Constant):
            assert isinstance(node.value, int), node.value
            return self.writer.scalar(node.value, self._dtype_of_dy())
        if isinstance(node, ast.IfExp):
            return self._chosen(node)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return self._applied("Neg", node.operand)
        if isinstance(node, ast.BinOp):
            return self._applied(_ARITHMETIC[type(node.op)], node.left, node.right)
        assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name), ast.dump(node)
        assert node.func.id == "CastLike", node.func.id
        given = self._value(node.args[0])
        assert given is not None
        to = self.dtype
        return self.writer.node("Cast", [given], to, {"to": DTYPES[to].onnx_type})

    def _dtype_of_dy(self) -> str:
        name = self.names["dy"]()
        assert name is not None
        return self.writer.dtype(name)

    def _applied(self, operator: str, *operands: ast.expr) -> str | None:
        names = [self._value(operand) for operand in operands]
        first = names[0]
        if first is None or None in names:
            return None
        return self.writer.node(operator, names, self.writer.dtype(first))

    def _chosen(self, node: ast.IfExp) -> str | None:
        condition = self._condition(node.test)
        if isinstance(condition, bool):
            return self._value(node.body if condition else node.orelse)
        names = [condition, self._value(node.body), self._value(node.orelse)]
        return self.writer.node("Where", names, self.writer.dtype(names[1] or ""))

    def _condition(self, node: ast.expr) -> str | bool:
        """A condition; False where it compares with an operand that is absent."""
        if isinstance(node, ast.Name):
            name = self._value(node)
            assert name is not None
            return name
        if isinstance(node, ast.BoolOp):
            return self._combined(node)
        assert isinstance(node, ast.Compare) and len(node.ops) == 1, ast.dump(node)
        names = [self._value(node.left), self._value(node.comparators[0])]
        if None in names:
            return False
        if isinstance(node.ops[0], ast.NotEq):
            equal = self.writer.node("Equal", names, "bool")
            return self.writer.node("Not", [equal], "bool")
        return self.writer.node(_COMPARISONS[type(node.ops[0])], names, "bool")

    def _combined(self, node: ast.BoolOp) -> str | bool:
        conditions = [self._condition(one) for one in node.values]
        decides = isinstance(node.op, ast.Or)
        written = [one for one in conditions if not isinstance(one, bool)]
        if not decides and False in conditions:
            return False
        if not written:
            return False
        result = written[0]
        for one in written[1:]:
            result = self.writer.node(_LOGIC[type(node.op)], [result, one], "bool")
        return result
