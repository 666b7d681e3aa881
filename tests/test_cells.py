"""Every (operator, version, dtype) cell that ONNX's schemas allow in scope, bit for bit.

The cells are enumerated from `onnx.defs`, not from the frontend. Those of one opset that read the
same dtype become outputs of one model, which is compiled and compared with the reference on every
pair of special values. CI compiles each model for one target, in turn; `-m exhaustive` for all.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from cases import (
    FEW_SPECIALS,
    SPECIALS,
    TARGETS,
    assert_same_bits,
    expected,
    fresh,
    run,
    same_bits,
)
from onnx import helper, numpy_helper

from relu_ops.contract import reference
from relu_ops.contract.semantics import DTYPES, MINIMUM_OPSET, OPERATORS, dtype_name

_ONNX_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({name})": name for name in DTYPES if name not in ("float32", "float64")},
}

Schema = onnx.defs.OpSchema


@dataclass(frozen=True)
class Cell:
    """One cell: an operator at a version, with a dtype for each of its type parameters."""

    operator: str
    version: int
    types: tuple[tuple[str, str], ...]

    @property
    def opset(self) -> int:
        """The opset of the model: the first in scope that has this version."""
        return max(self.version, MINIMUM_OPSET)

    @property
    def schema(self) -> Schema:
        return onnx.defs.get_schema(self.operator, self.opset, "")

    def dtype(self, type_str: str) -> str:
        """The dtype of a formal parameter."""
        return dict(self.types).get(type_str) or _ONNX_TYPES[type_str]

    @property
    def reads(self) -> str:
        """The dtype of the data it reads; of what it makes, where it reads none."""
        data = {"Where": 1}.get(self.operator, 0)
        if self.operator in ("Constant", "ConstantOfShape"):
            return self.writes
        return self.dtype(self.schema.inputs[data].type_str)

    @property
    def writes(self) -> str:
        """The dtype of its output."""
        return self.dtype(self.schema.outputs[0].type_str)

    def __str__(self) -> str:
        return f"{self.operator}-{self.version}[{', '.join(f'{k}={v}' for k, v in self.types)}]"


def schemas_in_scope() -> list[Schema]:
    """Every version of every operator in scope that a model of opset 6 or newer can use."""
    found = []
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.name in OPERATORS:
            in_use = onnx.defs.get_schema(schema.name, max(schema.since_version, MINIMUM_OPSET), "")
            if in_use.since_version == schema.since_version:
                found.append(schema)
    order = list(OPERATORS)
    return sorted(found, key=lambda s: (order.index(s.name), s.since_version))


def cells_of(schema: Schema) -> Iterator[Cell]:
    """Every combination of dtypes in scope for a schema's type parameters."""
    names = [c.type_param_str for c in schema.type_constraints]
    choices = [
        [_ONNX_TYPES[t] for t in c.allowed_type_strs if t in _ONNX_TYPES]
        for c in schema.type_constraints
    ]
    for combination in itertools.product(*choices):
        yield Cell(schema.name, schema.since_version, tuple(zip(names, combination, strict=True)))


CELLS = [cell for schema in schemas_in_scope() for cell in cells_of(schema)]


@functools.cache
def groups() -> dict[tuple[int, str], list[Cell]]:
    """The cells that share models: those of one opset that read one dtype."""
    grouped: dict[tuple[int, str], list[Cell]] = {}
    for cell in CELLS:
        grouped.setdefault((cell.opset, cell.reads), []).append(cell)
    order = list(DTYPES)
    return dict(sorted(grouped.items(), key=lambda item: (item[0][0], order.index(item[0][1]))))


# ---------------------------------------------------------------- the models of a group


class Draft:
    """A model under construction: the nodes of some cells, each an output.

    Its inputs are `x` and `y`, two matrices that hold every pair of special values; `z` and
    `condition`, matrices of their own; vectors along a row or a column; and scalars.
    """

    def __init__(self, opset: int, reads: str) -> None:
        self.opset = opset
        self.rows, self.columns = len(SPECIALS[reads]), len(FEW_SPECIALS[reads])
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: dict[str, tuple[np.ndarray, tuple[str, ...]]] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.outputs: dict[str, str] = {}

    def operand(self, kind: str, dtype: str) -> str:
        """Name an input, made when it is first used."""
        name = f"{kind}_{dtype}"
        if name not in self.inputs:
            self.inputs[name] = getattr(self, f"_{kind}")(dtype)
        return name

    def _x(self, dtype: str) -> tuple[np.ndarray, tuple[str, ...]]:
        column = np.resize(SPECIALS[dtype], self.rows)
        return np.repeat(column[:, None], self.columns, axis=1), ("N", "M")

    def _y(self, dtype: str) -> tuple[np.ndarray, tuple[str, ...]]:
        row = np.resize(FEW_SPECIALS[dtype], self.columns)
        return np.repeat(row[None, :], self.rows, axis=0), ("N", "M")

    def _z(self, dtype: str) -> tuple[np.ndarray, tuple[str, ...]]:
        return np.resize(SPECIALS[dtype][::-1], (self.rows, self.columns)), ("N", "M")

    def _row(self, dtype: str) -> tuple[np.ndarray, tuple[str, ...]]:
        return np.resize(FEW_SPECIALS[dtype], self.columns), ("M",)

    def _column(self, dtype: str) -> tuple[np.ndarray, tuple[str, ...]]:
        return np.resize(SPECIALS[dtype][::-1], self.rows), ("N",)

    def _scalar(self, dtype: str) -> tuple[np.ndarray, tuple[str, ...]]:
        return SPECIALS[dtype][len(SPECIALS[dtype]) // 2], ()

    def constant(self, value: Any, dtype: str) -> str:
        """Name an initializer."""
        name = f"constant_{len(self.constants)}"
        self.constants[name] = np.asarray(value, DTYPES[dtype].numpy)
        return name

    def node(self, cell: Cell, operands: list[str], note: str = "", **attributes: Any) -> None:
        """Add a node whose output is an output of the model, named after its cell."""
        name = f"{cell} {note}".strip()
        assert name not in self.outputs, name
        self.nodes.append(helper.make_node(cell.operator, operands, [name], name, **attributes))
        self.outputs[name] = cell.writes

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "cells",
            [_info(name, dtype_name(a.dtype), dims) for name, (a, dims) in self.inputs.items()],
            [_info(name, dtype, None) for name, dtype in self.outputs.items()],
            [numpy_helper.from_array(a, name) for name, a in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def arrays(self) -> list[np.ndarray]:
        """The arrays for the inputs."""
        return [array for array, _ in self.inputs.values()]


def _info(name: str, dtype: str | None, dims: tuple[str, ...] | None) -> onnx.ValueInfoProto:
    assert dtype is not None
    return helper.make_tensor_value_info(name, element_type(dtype), dims)


def element_type(dtype: str) -> int:
    """ONNX's number of a dtype."""
    return helper.np_dtype_to_tensor_dtype(DTYPES[dtype].numpy)


# ---------------------------------------------------------------- the nodes of a cell


def _plain(draft: Draft, cell: Cell) -> None:
    """Elementwise operands, in the order of the schema."""
    kinds = "xyz"[: len(cell.schema.inputs)]
    operands = [
        draft.operand(kind, cell.dtype(formal.type_str))
        for kind, formal in zip(kinds, cell.schema.inputs, strict=True)
    ]
    draft.node(cell, operands)


def _binary(draft: Draft, cell: Cell) -> None:
    _plain(draft, cell)
    if cell.version < 7:
        x = draft.operand("x", cell.reads)
        column, row = draft.operand("column", cell.reads), draft.operand("row", cell.reads)
        draft.node(cell, [x, column], "axis=0", broadcast=1, axis=0)
        draft.node(cell, [x, row], "broadcast", broadcast=1)


def _variadic(draft: Draft, cell: Cell) -> None:
    operands = [draft.operand(kind, cell.reads) for kind in "xyz"]
    for count in (1, 2, 3):
        draft.node(cell, operands[:count], f"of {count}")


def _with_attributes(*variants: dict[str, float]) -> Any:
    def add(draft: Draft, cell: Cell) -> None:
        for variant in variants:
            note = ",".join(f"{k}={v}" for k, v in variant.items())
            draft.node(cell, [draft.operand("x", cell.reads)], note, **variant)

    return add


def _prelu(draft: Draft, cell: Cell) -> None:
    x = draft.operand("x", cell.reads)
    if cell.version < 7:
        draft.node(cell, [x, draft.operand("row", cell.reads)], "per channel")
        draft.node(cell, [x, draft.constant([3], cell.reads)], "shared")
    else:
        draft.node(cell, [x, draft.operand("y", cell.reads)])
        draft.node(cell, [x, draft.operand("scalar", cell.reads)], "scalar")


def _clip(draft: Draft, cell: Cell) -> None:
    x = draft.operand("x", cell.reads)
    if cell.version < 11:
        for variant in ({}, {"min": -0.1, "max": 2.5}, {"max": -0.0}, {"min": 3.0, "max": 1.0}):
            draft.node(cell, [x], str(variant), **variant)
        return
    one, six, few = (draft.constant(v, cell.reads) for v in (1, 6, 3))
    for operands in (["", ""], [one, six], ["", few], [few], [six, one]):
        draft.node(cell, [x, *operands], f"to {operands}")
    draft.node(cell, [x, draft.operand("scalar", cell.reads)], "from an input")
    if DTYPES[cell.reads].is_float:
        nan, zero, minus = (draft.constant(v, cell.reads) for v in (np.nan, 0.0, -0.0))
        draft.node(cell, [x, nan, six], "from NaN")
        draft.node(cell, [x, zero, minus], "to zeros")


def _where(draft: Draft, cell: Cell) -> None:
    kinds = {"condition": "bool", "x": cell.reads, "y": cell.reads}
    draft.node(cell, [draft.operand({"condition": "z"}.get(k, k), d) for k, d in kinds.items()])


def _cast(draft: Draft, cell: Cell) -> None:
    draft.node(cell, [draft.operand("x", cell.reads)], to=element_type(cell.writes))


def _cast_like(draft: Draft, cell: Cell) -> None:
    draft.node(cell, [draft.operand("x", cell.reads), draft.constant(0, cell.writes)])


def _constant(draft: Draft, cell: Cell) -> None:
    values = np.resize(SPECIALS[cell.writes], draft.columns)
    draft.node(cell, [], "row", value=numpy_helper.from_array(values))
    draft.node(cell, [], "scalar", value=numpy_helper.from_array(values[-1:].reshape(())))
    kind = {"float32": "float", "int64": "int"}.get(cell.writes)
    if cell.version >= 12 and kind:
        draft.node(cell, [], f"value_{kind}", **{f"value_{kind}": values[-1].item()})
        draft.node(cell, [], f"value_{kind}s", **{f"value_{kind}s": values.tolist()})


def _constant_of_shape(draft: Draft, cell: Cell) -> None:
    for k, value in enumerate(FEW_SPECIALS[cell.writes][:3]):
        fill = numpy_helper.from_array(value.reshape(1))
        shape = draft.constant([draft.rows, draft.columns], "int64")
        draft.node(cell, [shape], f"filled {k}", value=fill)
    if cell.writes == "float32":
        draft.node(cell, [draft.constant([1, draft.columns], "int64")], "default")


def _quantize(draft: Draft, cell: Cell) -> None:
    x, to = draft.operand("x", cell.reads), cell.writes
    scale_dtype = cell.dtype(cell.schema.inputs[1].type_str)
    limits = np.iinfo(DTYPES[to].numpy)
    for scale, zero_point in ((2, limits.max), (3, limits.min)):
        operands = [x, draft.constant(scale, scale_dtype), draft.constant(zero_point, to)]
        draft.node(cell, operands, f"by {scale}")
    if to == "uint8":
        draft.node(cell, [x, draft.operand("scalar", scale_dtype)], "default type")
    if cell.version >= 13:
        row = [x, draft.operand("row", scale_dtype)]
        draft.node(cell, [*row, draft.operand("row", to)], "per axis", axis=1)
    if cell.version >= 21:
        draft.node(cell, row, "output_dtype", output_dtype=element_type(to), axis=-1)
    if cell.version >= 23 and scale_dtype != "int32":
        operands = [*row, draft.operand("row", to)]
        for precision in ("float32", "float16", "bfloat16"):
            draft.node(cell, operands, precision, precision=element_type(precision))


def _dequantize(draft: Draft, cell: Cell) -> None:
    x, to = draft.operand("x", cell.reads), cell.writes
    scale_dtype = cell.dtype(cell.schema.inputs[1].type_str)
    more = {} if to == scale_dtype else {"output_dtype": element_type(to)}
    for scale in (0.1, 3e-39 if scale_dtype != "float16" else 6e-8):
        operands = [x, draft.constant(scale, scale_dtype), draft.constant(7, cell.reads)]
        draft.node(cell, operands, f"by {scale}", **more)
    draft.node(cell, [x, draft.operand("scalar", scale_dtype)], "no zero point", **more)
    if cell.version >= 13:
        row = [draft.operand("row", scale_dtype), draft.operand("row", cell.reads)]
        draft.node(cell, [x, *row], "per axis", axis=1, **more)


_BUILDERS: dict[str, Any] = {
    "LeakyRelu": _with_attributes({}, {"alpha": 0.3}, {"alpha": -1.5}, {"alpha": 0.0}),
    "ThresholdedRelu": _with_attributes({}, {"alpha": 0.1}, {"alpha": -0.0}, {"alpha": -2.0}),
    "HardSigmoid": _with_attributes({}, {"alpha": 0.3, "beta": -0.7}, {"alpha": -2.0}),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Less", "Greater", "Equal"), _binary),
    **dict.fromkeys(("And", "Or", "Xor"), _binary),
    **dict.fromkeys(("Max", "Min"), _variadic),
    "PRelu": _prelu,
    "Clip": _clip,
    "Where": _where,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
}
"""How to make nodes for a cell; an operator that is not here takes its operands elementwise."""


def drafts(opset: int, reads: str) -> list[Draft]:
    """The models of a group, of at most `MOST_OUTPUTS` outputs or one cell each."""
    made = [Draft(opset, reads)]
    for cell in groups()[opset, reads]:
        if len(made[-1].outputs) >= MOST_OUTPUTS:
            made.append(Draft(opset, reads))
        _BUILDERS.get(cell.operator, _plain)(made[-1], cell)
    return made


MOST_OUTPUTS = 24

GROUPS = list(groups())


# ---------------------------------------------------------------- the tests


@pytest.mark.parametrize(
    ("result", "wanted"),
    [
        ([0.0, 1.0], [np.nan, 1.0]),
        ([0.0, 1.0], [-0.0, 1.0]),
        ([1.0, np.nextafter(np.float32(1), 2)], [1.0, 1.0]),
        ([1e-45, 1.0], [0.0, 1.0]),
    ],
)
def test_the_comparison_sees_a_wrong_bit(result: list[float], wanted: list[float]) -> None:
    a, b = np.asarray(result, np.float32), np.asarray(wanted, np.float32)
    assert not same_bits(a, b)
    assert same_bits(b, b.copy())
    with pytest.raises(AssertionError, match=r"here: 1 of 2 elements differ, first at \(\d,\)"):
        assert_same_bits(a, b, "here")


def test_the_comparison_sees_dtype_and_shape() -> None:
    x = np.zeros(2, np.float32)
    assert not same_bits(x, x.astype(np.float64))
    assert not same_bits(x, x[None])
    with pytest.raises(AssertionError, match="here: float64, not float32"):
        assert_same_bits(x.astype(np.float64), x, "here")
    with pytest.raises(AssertionError, match=r"here: \(1, 2\), not \(2,\)"):
        assert_same_bits(x[None], x, "here")


@pytest.mark.parametrize("operator", ["Relu", "Max", "Less", "Abs"])
def test_a_cell_fails_where_reference_and_kernel_differ(
    operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = reference.FUNCTIONS[operator]

    def without_nan(*operands: np.ndarray, **attributes: Any) -> np.ndarray:
        return rule(
            *(np.nan_to_num(x, posinf=np.inf, neginf=-np.inf) for x in operands), **attributes
        )

    monkeypatch.setitem(reference.FUNCTIONS, operator, without_nan)
    draft = Draft(13, "float32")
    schema = onnx.defs.get_schema(operator, 13, "")
    types = {"T": "float32", "T1": "bool"}
    chosen = tuple((c.type_param_str, types[c.type_param_str]) for c in schema.type_constraints)
    _BUILDERS.get(operator, _plain)(draft, Cell(operator, schema.since_version, chosen))
    assert differences(draft, TARGETS[0])


def test_every_operator_and_version_has_cells() -> None:
    print(f"{len(CELLS)} cells in {len(GROUPS)} groups")
    assert {cell.operator for cell in CELLS} == set(OPERATORS)
    assert {(c.operator, c.version) for c in CELLS} == {
        (s.name, s.since_version) for s in schemas_in_scope()
    }
    assert {dtype for cell in CELLS for _, dtype in cell.types} == set(DTYPES)
    for opset in range(MINIMUM_OPSET, onnx.defs.onnx_opset_version() + 1):
        for operator in OPERATORS:
            try:
                schema = onnx.defs.get_schema(operator, opset, "")
            except onnx.defs.SchemaError:
                continue
            assert any((c.operator, c.version) == (operator, schema.since_version) for c in CELLS)


def differences(draft: Draft, target: str) -> list[str]:
    """Compile a model, compare every output with the reference; return what is wrong."""
    model, arrays = draft.model(), draft.arrays()
    results, wanted = run(fresh(model, target), arrays), expected(model, arrays)
    found = []
    for node, result, want in zip(draft.nodes, results, wanted, strict=True):
        (name,) = node.output
        operands = [draft.inputs[o][0] for o in node.input if o in draft.inputs]
        try:
            assert result.dtype == DTYPES[draft.outputs[name]].numpy, f"{name}: {result.dtype}"
            assert_same_bits(result, want, f"{name} on {target}", operands)
        except AssertionError as error:
            found.append(str(error))
    return found


def check(opset: int, reads: str, target: str) -> None:
    found = [text for draft in drafts(opset, reads) for text in differences(draft, target)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("opset", "reads", "target"),
    [(*group, TARGETS[k % len(TARGETS)]) for k, group in enumerate(GROUPS)],
)
def test_cells(opset: int, reads: str, target: str) -> None:
    check(opset, reads, target)


@pytest.mark.exhaustive
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("opset", "reads"), GROUPS)
def test_cells_on_every_target(opset: int, reads: str, target: str) -> None:
    check(opset, reads, target)
