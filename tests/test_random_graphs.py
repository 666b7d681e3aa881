"""Random graphs in scope: the compiled operator against the reference and `onnx.reference`.

The first comparison is of every output, bit for bit. The second is node by node: a deviation of
`onnx.reference` is judged where it arises, by the table of `relu_ops.verification.deviations`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from cases import TARGETS, assert_same_bits, expected, fresh, name_of, random_array, run
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from relu_ops.compiler import frontend
from relu_ops.contract import reference
from relu_ops.contract.semantics import DTYPES, MINIMUM_OPSET, OPERATORS
from relu_ops.verification import explain
from relu_ops.verification.referees import ONNX_REFERENCE, referees

NEWEST_OPSET = onnx.defs.onnx_opset_version()
MOST_NODES = 20

Array = np.ndarray

_ONNX_TYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    **{f"tensor({name})": name for name in DTYPES if name not in ("float32", "float64")},
}

# ---------------------------------------------------------------- drawing a graph


@dataclass(frozen=True)
class Value:
    """A value of a graph under construction, with the shape it will have."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    constant: bool = False


@dataclass
class Case:
    """A model and the arrays to run it on."""

    opset: int
    rng: np.random.Generator
    base: tuple[int, ...]
    ranked: bool = True
    values: list[Value] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)

    def constant(self, array: Array) -> Value:
        """Add an initializer."""
        value = Value(f"c{len(self.constants)}", name_of(array), array.shape, constant=True)
        self.constants[value.name] = array
        return value

    def add(
        self,
        operator: str,
        operands: Iterable[Value | None],
        dtype: str,
        shape: tuple[int, ...],
        **attributes: Any,
    ) -> None:
        """Add a node with one output."""
        operands = list(operands)
        names = [o.name if o else "" for o in operands]
        constant = all(o is None or o.constant for o in operands)
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [name], f"n{name}", **attributes))
        self.values.append(Value(name, dtype, shape, constant))

    def model(self, outputs: Iterable[Value] | None = None) -> onnx.ModelProto:
        """The model, with other outputs than its own where they are given."""
        chosen = self.outputs if outputs is None else outputs
        graph = helper.make_graph(
            self.nodes,
            "random",
            self.inputs,
            [helper.make_tensor_value_info(v.name, _element_type(v.dtype), None) for v in chosen],
            [numpy_helper.from_array(a, name) for name, a in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)

    def __repr__(self) -> str:
        return f"Case(base={self.base}):\n{onnx.printer.to_text(self.model())}"


def _element_type(dtype: str) -> int:
    return helper.np_dtype_to_tensor_dtype(DTYPES[dtype].numpy)


@functools.cache
def allowed(operator: str, opset: int) -> dict[str, tuple[str, ...]] | None:
    """The dtypes of each parameter of an operator; None where the opset lacks it."""
    try:
        schema = onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return None
    types = {
        c.type_param_str: tuple(_ONNX_TYPES[t] for t in c.allowed_type_strs if t in _ONNX_TYPES)
        for c in schema.type_constraints
    }
    formals = [*schema.inputs, *schema.outputs]
    return {f.name: types.get(f.type_str) or (_ONNX_TYPES[f.type_str],) for f in formals}


def _broadcast(*operands: Value) -> tuple[int, ...]:
    return np.broadcast_shapes(*(o.shape for o in operands))


def _fits(source: Value, into: Value) -> bool:
    """True where a value broadcasts into another without enlarging it."""
    return len(source.shape) <= len(into.shape) and _broadcast(source, into) == into.shape


class Drawing:
    """Draws the nodes of one case; one method for each family of operators."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.rng = case.rng

    def pick(self, choices: Iterable[Any]) -> Any:
        """One of several; of values rather a late one that is not constant, for long chains."""
        pool = list(choices)
        if isinstance(pool[0], Value):
            if self.rng.integers(8):
                pool = [v for v in pool if not v.constant] or pool
            if self.flip():
                pool = pool[-4:]
        return pool[int(self.rng.integers(len(pool)))]

    def flip(self) -> bool:
        """True or False."""
        return bool(self.rng.integers(2))

    def of(self, dtype: str, condition: Callable[[Value], bool] = lambda _: True) -> list[Value]:
        return [v for v in self.case.values if v.dtype == dtype and condition(v)]

    def number(self) -> float:
        return float(np.float32(self.pick((-1.5, -0.25, 0.01, 0.1, 0.3, 0.5, 1.3, 2.0))))

    def node(self) -> None:
        """Draw a node: an operator that the opset has, for a value that it takes."""
        case = self.case
        choices = []
        for operator in OPERATORS:
            types = allowed(operator, case.opset)
            if types is not None:
                first = next(iter(types.values()))
                if any(v.dtype in first for v in case.values) or operator.startswith("Constant"):
                    choices.append(operator)
        operator = self.pick(choices)
        types = allowed(operator, case.opset)
        assert types is not None
        version = onnx.defs.get_schema(operator, case.opset, "").since_version
        method = getattr(self, f"_{operator.lower()}", self._elementwise)
        method(operator, version, types)

    def first(self, types: dict[str, tuple[str, ...]]) -> Value:
        return self.pick(v for v in self.case.values if v.dtype in next(iter(types.values())))

    def _elementwise(self, operator: str, version: int, types: dict[str, tuple[str, ...]]) -> None:
        schema = onnx.defs.get_schema(operator, self.case.opset, "")
        x = self.first(types)
        result = types[schema.outputs[0].name]
        dtype = result[0] if result == ("bool",) else x.dtype
        attributes = {
            name: self.number()
            for name in ("alpha", "beta")
            if name in schema.attributes and self.flip()
        }
        if len(schema.inputs) == 1:
            self.case.add(operator, [x], dtype, x.shape, **attributes)
        elif version < 7:
            y = self.pick(self.of(x.dtype, lambda v: _fits(v, x)))
            attributes = {} if y.shape == x.shape else {"broadcast": 1}
            self.case.add(operator, [x, y], dtype, x.shape, **attributes)
        else:
            y = self.pick(self.of(x.dtype))
            self.case.add(operator, [x, y], dtype, _broadcast(x, y))

    def _variadic(self, operator: str, version: int, types: dict[str, tuple[str, ...]]) -> None:
        x = self.first(types)
        others = self.of(x.dtype, lambda v: version >= 8 or v.shape == x.shape)
        operands = [x, *(self.pick(others) for _ in range(self.rng.integers(4)))]
        self.case.add(operator, operands, x.dtype, _broadcast(*operands))

    _max = _min = _variadic

    def _prelu(self, operator: str, version: int, types: dict[str, tuple[str, ...]]) -> None:
        x = self.first(types)
        if version >= 7 or not x.shape:
            slope = self.pick(self.of(x.dtype, lambda v: _fits(v, x)))
        elif len(x.shape) >= 2 and self.case.ranked:
            slope = self.case.constant(random_array(self.case.rng, x.dtype, x.shape[1:2]))
        else:
            slope = self.case.constant(random_array(self.case.rng, x.dtype, (1,)))
        self.case.add(operator, [x, slope], x.dtype, x.shape)

    def _clip(self, operator: str, version: int, types: dict[str, tuple[str, ...]]) -> None:
        x = self.first(types)
        which = self.pick(((), ("min",), ("max",), ("min", "max")))
        if version < 11:
            bounds = {name: self.number() for name in which}
            self.case.add(operator, [x], x.dtype, x.shape, **bounds)
            return
        operands = [
            self.case.constant(random_array(self.case.rng, x.dtype, ())) if name in which else None
            for name in ("min", "max")
        ]
        self.case.add(operator, [x, *operands], x.dtype, x.shape)

    def _where(self, operator: str, version: int, types: dict[str, tuple[str, ...]]) -> None:
        a = self.pick(v for v in self.case.values if v.dtype in types["X"])
        b, condition = self.pick(self.of(a.dtype)), self.pick(self.of("bool"))
        self.case.add(operator, [condition, a, b], a.dtype, _broadcast(condition, a, b))

    def _cast(self, operator: str, version: int, types: dict[str, tuple[str, ...]]) -> None:
        x, to = self.first(types), self.pick(types["output"])
        self.case.add(operator, [x], to, x.shape, to=_element_type(to))

    def _castlike(self, operator: str, version: int, types: dict[str, tuple[str, ...]]) -> None:
        x = self.first(types)
        like = self.pick(v for v in self.case.values if v.dtype in types["target_type"])
        self.case.add(operator, [x, like], like.dtype, x.shape)

    def _constant(self, operator: str, version: int, types: dict[str, tuple[str, ...]]) -> None:
        dtype = self.pick(types["output"])
        array = random_array(self.case.rng, dtype, self.shape())
        self.case.add(operator, [], dtype, array.shape, value=numpy_helper.from_array(array))

    def _constantofshape(
        self, operator: str, version: int, types: dict[str, tuple[str, ...]]
    ) -> None:
        dtype, shape = self.pick(types["output"]), self.shape()
        fill = numpy_helper.from_array(random_array(self.case.rng, dtype, (1,)))
        source = self.case.constant(np.asarray(shape, np.int64))
        self.case.add(operator, [source], dtype, shape, value=fill)

    def _scale(self, dtype: str, shape: tuple[int, ...]) -> Value:
        values = self.case.rng.choice((0.01, 0.1, 0.5, 1.0, 3.0), shape)
        if not DTYPES[dtype].is_float:
            values = np.maximum(values, 1)
        return self.case.constant(np.asarray(values, np.float64).astype(DTYPES[dtype].numpy))

    def _axis(self, x: Value, version: int) -> tuple[tuple[int, ...], dict[str, int]]:
        """The shape of scale and zero point, and the attribute that says where they lie."""
        if version < 13 or not x.shape or not self.case.ranked or self.flip():
            return (), {}
        axis = int(self.rng.integers(-len(x.shape), len(x.shape)))
        return (x.shape[axis],), {"axis": axis}

    def _quantizelinear(
        self, operator: str, version: int, types: dict[str, tuple[str, ...]]
    ) -> None:
        x = self.first(types)
        to = self.pick(types["y"])
        shape, attributes = self._axis(x, version)
        # Before version 19 scale is float32, then of the type of x, from 23 on of any.
        scales = (x.dtype,) if 19 <= version < 23 else types["y_scale"]
        operands = [x, self._scale(self.pick(scales), shape)]
        if to != "uint8" or self.flip():
            operands.append(self.case.constant(random_array(self.case.rng, to, shape)))
        self.case.add(operator, operands, to, x.shape, **attributes)

    def _dequantizelinear(
        self, operator: str, version: int, types: dict[str, tuple[str, ...]]
    ) -> None:
        x = self.first(types)
        shape, attributes = self._axis(x, version)
        scale = self._scale(self.pick(types["x_scale"]), shape)
        operands, to = [x, scale], scale.dtype
        if x.dtype != "int32" and self.flip():
            operands.append(self.case.constant(random_array(self.case.rng, x.dtype, shape)))
        if version >= 23 and self.flip():
            to = self.pick(types["y"])
            attributes["output_dtype"] = _element_type(to)
        self.case.add(operator, operands, to, x.shape, **attributes)

    def shape(self) -> tuple[int, ...]:
        """Some trailing dimensions of the base shape, some of them 1: all of them broadcast."""
        base = self.case.base
        first = 0 if self.flip() else int(self.rng.integers(len(base) + 1))
        return tuple(1 if self.rng.integers(4) == 0 else n for n in base[first:])


@st.composite
def cases(draw: Callable[..., Any]) -> Case:
    """A graph of 1 to 20 nodes with inputs of every kind of declared shape.

    What shrinks is the number of nodes, the opset and the base shape. The rest comes from a seed:
    drawn one by one, most graphs would be tiny and alike.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    base = draw(st.sampled_from(_BASES))
    case = Case(draw(st.integers(MINIMUM_OPSET, NEWEST_OPSET)), rng, base)
    nodes = draw(st.integers(1, MOST_NODES))
    drawing = Drawing(case)
    usable = allowed("Cast", case.opset)
    assert usable is not None
    pool = rng.choice(usable["input"], rng.integers(1, 4), replace=False).tolist()
    declared = drawing.pick(("static", "symbolic", "free", "unknown"))
    case.ranked = declared != "unknown"
    for _ in range(rng.integers(1, 5)):
        _draw_input(drawing, drawing.pick(pool), declared)
    for dtype in (*pool, "bool"):
        case.values.append(case.constant(random_array(rng, dtype, drawing.shape())))
    for _ in range(nodes):
        drawing.node()
    computed = [v for v in case.values if not v.constant]
    more = [drawing.pick(computed) for _ in range(rng.integers(4))]
    case.outputs = list(dict.fromkeys([case.values[-1], *more]))
    return case


_BASES = (
    *((3,), (70,), (2, 33), (5, 7), (3, 1, 16), (4, 2, 9), (2, 3, 5, 7), (2, 1, 2, 1, 20)),
    *((1000,), (1, 130), (17, 1), (), (1,), (0, 3), (4, 0)),
)
"""The shapes that all values of a graph broadcast to: every rank to 5, empty ones last."""


def _draw_input(drawing: Drawing, dtype: str, declared: str) -> None:
    case = drawing.case
    name, shape = f"x{len(case.inputs)}", drawing.shape()
    dims: dict[str, Any] = {
        "static": shape,
        # A symbol stands for one extent; a 1 may be named too.
        "symbolic": tuple(f"d{n}" for n in shape),
        "free": (None,) * len(shape),
        "unknown": None,
    }
    case.inputs.append(helper.make_tensor_value_info(name, _element_type(dtype), dims[declared]))
    case.arrays[name] = random_array(case.rng, dtype, shape)
    case.values.append(Value(name, dtype, shape))


# ---------------------------------------------------------------- against the reference


def check_against_reference(case: Case, target: str) -> None:
    model, arrays = case.model(), list(case.arrays.values())
    note(f"opset {case.opset}, arrays: {case.arrays}")
    results, wanted = run(fresh(model, target), arrays), expected(model, arrays)
    for value, result, want in zip(case.outputs, results, wanted, strict=True):
        assert_same_bits(result, want, f"output {value.name} on {target}", arrays)
        assert result.shape == value.shape


_COMMON: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=80, **_COMMON)
@given(case=cases())
def test_random_graph_gives_the_bits_of_the_reference(target: str, case: Case) -> None:
    check_against_reference(case, target)


@pytest.mark.exhaustive
@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=1500, **_COMMON)
@given(case=cases())
def test_many_random_graphs_give_the_bits_of_the_reference(target: str, case: Case) -> None:
    check_against_reference(case, target)


# ---------------------------------------------------------------- against onnx.reference


def check_against_onnx(case: Case) -> None:
    """What `onnx.reference` computes otherwise, at any node, has a cause that is known."""
    model, arrays = case.model(), list(case.arrays.values())
    graph = frontend.import_model(model)
    found, _ = referees(model, graph)
    contract = reference.evaluate(graph, arrays)
    for referee in found:
        if referee.engine != ONNX_REFERENCE:
            continue
        try:
            theirs = referee.run(arrays)
        except Exception as error:
            note(f"{referee.name}: {error}")
            continue
        verdict = explain.explain(referee, model, arrays, contract, theirs)
        assert not verdict.unexplained, f"{referee.name}: {verdict.unexplained}"


@settings(max_examples=400, **_COMMON)
@given(case=cases())
def test_random_graph_agrees_with_onnx_reference(case: Case) -> None:
    check_against_onnx(case)


@pytest.mark.exhaustive
@settings(max_examples=3000, **_COMMON)
@given(case=cases())
def test_many_random_graphs_agree_with_onnx_reference(case: Case) -> None:
    check_against_onnx(case)
