"""Gradients of graphs: what the table says, on every target; and what torch and JAX compute.

The formulas of `semantics.OPERATORS` are computed here by NumPy, element by element or array by
array, and never by way of a graph.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from cases import (
    FEW_SPECIALS,
    FLOATS,
    TARGETS,
    assert_same_bits,
    compiled,
    compiled_everywhere,
    expected,
    random_array,
    run,
    same_bits,
)
from hypothesis import HealthCheck, assume, given, settings
from onnx import helper
from test_image import Reading, built
from test_random_graphs import Case, cases

from relu_ops import graphs
from relu_ops.compiler import frontend, layout
from relu_ops.contract import ir, reference
from relu_ops.contract.semantics import DTYPES, OPERATORS
from relu_ops.errors import ArgumentError, ArgumentTypeError, UnsupportedError

Array = np.ndarray

DIFFERENTIABLE = [name for name, row in OPERATORS.items() if row.derivatives]


def model_of(text: str, opset: int = 18) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]>\n{text}')


def outputs(model: onnx.ModelProto) -> list[str]:
    return [value.name for value in model.graph.output]


def inputs(model: onnx.ModelProto) -> list[str]:
    return [value.name for value in model.graph.input]


# ---------------------------------------------------------------- the formulas, by NumPy


class Evaluation(ast.NodeVisitor):
    """A formula of the table, computed on arrays."""

    def __init__(self, names: Mapping[str, Array | None]) -> None:
        self.names = names

    def of(self, text: str) -> Array:
        with np.errstate(all="ignore"):
            result: Array = self.visit(ast.parse(text, mode="eval").body)
        return result

    def visit_Name(self, node: ast.Name) -> Array | None:
        return self.names[node.id]

    def visit_Constant(self, node: ast.Constant) -> Array:
        dy = self.names["dy"]
        assert dy is not None
        return np.asarray(node.value).astype(dy.dtype)

    def visit_IfExp(self, node: ast.IfExp) -> Array:
        test = self.visit(node.test)
        if test is False:
            return self.visit(node.orelse)
        return np.where(test, self.visit(node.body), self.visit(node.orelse))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Array:
        assert isinstance(node.op, ast.USub)
        return np.negative(self.visit(node.operand))

    def visit_BinOp(self, node: ast.BinOp) -> Array:
        functions = {ast.Mult: reference.mul, ast.Div: reference.div, ast.Sub: reference.sub}
        return functions[type(node.op)](self.visit(node.left), self.visit(node.right))

    def visit_Compare(self, node: ast.Compare) -> Array | bool:
        left, right = self.visit(node.left), self.visit(node.comparators[0])
        if left is None or right is None:
            return False
        functions = {ast.Lt: np.less, ast.LtE: np.less_equal, ast.Gt: np.greater}
        functions |= {ast.GtE: np.greater_equal, ast.Eq: np.equal, ast.NotEq: np.not_equal}
        return functions[type(node.ops[0])](left, right)

    def visit_BoolOp(self, node: ast.BoolOp) -> Array | bool:
        values = [self.visit(one) for one in node.values]
        if isinstance(node.op, ast.And):
            return False if any(v is False for v in values) else np.logical_and.reduce(values)
        kept = [v for v in values if v is not False]
        result: Array | bool = False
        for one in kept:
            result = one if result is False else np.logical_or(result, one)
        return result

    def visit_Call(self, node: ast.Call) -> Array:
        assert isinstance(node.func, ast.Name) and node.func.id == "CastLike"
        given, like = (self.visit(one) for one in node.args)
        return reference.cast(given, to=_name(like))


def _name(array: Array) -> str:
    return next(name for name, row in DTYPES.items() if row.numpy == array.dtype)


def test_every_formula_is_of_the_rows_own_names() -> None:
    special = {"level", "lowest", "highest", "CastLike", "dy", "alpha"}
    for operator, row in OPERATORS.items():
        assert set(row.derivatives) <= set(row.operands), operator
        for text in row.derivatives.values():
            names = {n.id for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Name)}
            assert names <= {*row.operands, *special}, operator


def test_every_row_has_a_derivative_or_says_why_none() -> None:
    without = {name for name, row in OPERATORS.items() if not row.derivatives and not row.choice}
    logic = {"Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"}
    logic |= {"Not", "And", "Or", "Xor"}
    assert without == logic | {"CastLike", "Identity", "Constant", "ConstantOfShape"}


# ---------------------------------------------------------------- one operator, every target

ATTRIBUTES: dict[str, dict[str, Any]] = {
    "LeakyRelu": {"alpha": 0.3},
    "ThresholdedRelu": {"alpha": 0.7},
}
SHAPES = {"Clip": {"low": (), "high": ()}}


def one_node(operator: str, dtype: str, names: Sequence[str]) -> onnx.ModelProto:
    """A model of one operator whose operands are inputs; the name "" is none."""
    element = helper.np_dtype_to_tensor_dtype(DTYPES[dtype].numpy)
    bool_type = onnx.TensorProto.BOOL
    shapes = SHAPES.get(operator, {})
    infos = [
        helper.make_tensor_value_info(
            n, bool_type if n == "condition" else element, shapes.get(n, None)
        )
        for n in names
        if n
    ]
    attributes = dict(ATTRIBUTES.get(operator, {}))
    to = element
    if operator == "Cast":
        attributes["to"] = to = onnx.TensorProto.FLOAT if dtype == "float64" else 11
    node = helper.make_node(operator, list(names), ["y"], **attributes)
    result = helper.make_tensor_value_info("y", to, None)
    graph = helper.make_graph([node], operator.lower(), infos, [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)


UNARY = [n for n in DIFFERENTIABLE if len(OPERATORS[n].operands) == 1]
BINARY = [n for n in DIFFERENTIABLE if len(OPERATORS[n].operands) == 2]


def check_one(operator: str, dtype: str, names: Sequence[str], arrays: dict[str, Array]) -> None:
    """Every derivative of a row, on every target, against its text."""
    model = one_node(operator, dtype, names)
    made = graphs.gradient(model)
    row = OPERATORS[operator]
    wanted = [n for n in names if n in row.derivatives]
    assert outputs(made) == [f"d{n}" for n in wanted]
    given = [arrays[n] for n in (*filter(None, names), "dy")]
    environment: dict[str, Any] = dict.fromkeys(row.operands) | arrays
    for name, number in ATTRIBUTES.get(operator, {}).items():
        environment[name] = reference.cast(np.asarray(np.float32(number)), to=dtype)
    shape = np.broadcast_shapes(*(a.shape for a in arrays.values()))
    texts = [Evaluation(environment).of(row.derivatives[n]) for n in wanted]
    for target, op in compiled_everywhere(made).items():
        for name, result, text in zip(wanted, run(op, given), texts, strict=True):
            want = np.broadcast_to(text, shape)
            assert_same_bits(result, want, f"d{name} of {operator} on {target}", given)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("operator", UNARY)
def test_operators_of_one_operand(operator: str, dtype: str) -> None:
    values = FEW_SPECIALS[dtype]
    result = dtype if operator != "Cast" else ("float32" if dtype == "float64" else "float64")
    x, dy = np.meshgrid(values, FEW_SPECIALS[result])
    check_one(operator, dtype, ["x"], {"x": x.copy(), "dy": dy.copy()})


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("operator", BINARY)
def test_operators_of_two_operands(operator: str, dtype: str) -> None:
    values = FEW_SPECIALS[dtype]
    a, b = (m.copy() for m in np.meshgrid(values, values))
    names = OPERATORS[operator].operands
    for dy in values[::5]:
        arrays = {names[0]: a, names[1]: b, "dy": np.full_like(a, dy)}
        check_one(operator, dtype, names, arrays)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bounds", [("low", "high"), ("low", ""), ("", "high")])
def test_clip(dtype: str, bounds: tuple[str, str]) -> None:
    values = FEW_SPECIALS[dtype]
    few = [np.asarray(v, values.dtype) for v in (np.nan, -1.0, 0.0, 0.5, np.inf, -np.inf)]
    dy = np.full_like(values, 3)
    for low, high in itertools.product(few, few):
        arrays = {"x": values, "dy": dy, "low": low, "high": high}
        chosen = {n: a for n, a in arrays.items() if n in ("x", "dy", *bounds)}
        check_one("Clip", dtype, ["x", *bounds], chosen)


@pytest.mark.parametrize("dtype", FLOATS)
def test_where(dtype: str) -> None:
    a = random_array(np.random.default_rng(0), dtype, (200,))
    condition = np.arange(200) % 3 == 0
    arrays = {"condition": condition, "a": a, "b": -a, "dy": a[::-1].copy()}
    check_one("Where", dtype, ["condition", "a", "b"], arrays)


def test_hard_sigmoid_has_no_slope_at_its_bounds() -> None:
    text = "g (float[N] x) => (float[N] y) { y = HardSigmoid <alpha = 0.25, beta = 0.5> (x) }"
    made = graphs.gradient(model_of(text))
    x = np.float32([-3, -2, -1.999, 0, 1.999, 2, 3, np.nan])
    for op in compiled_everywhere(made).values():
        assert op(x, np.full_like(x, 8)).tolist() == [0, 0, 2, 2, 2, 0, 0, 0]


# ---------------------------------------------------------------- what is made


def test_names_and_order() -> None:
    made = graphs.gradient(graphs.scale_bias_leaky_relu(channels=8))
    assert inputs(made) == ["x", "scale", "bias", "dy"]
    assert outputs(made) == ["dx", "dscale", "dbias"]
    assert [graphs.describe(v) for v in made.graph.output] == [
        f"{name}: float32[rows, 8]" for name in ("dx", "dscale", "dbias")
    ]
    chosen = graphs.gradient(graphs.scale_bias_leaky_relu(), ["bias", "x"])
    assert outputs(chosen) == ["dbias", "dx"]
    kept = graphs.gradient(graphs.leaky_relu(), keep_outputs=True)
    assert outputs(kept) == ["y", "dx"] and inputs(kept) == ["x", "dy"]


def test_names_that_are_taken() -> None:
    text = "g (float[N] x, float[N] dy) => (float[N] y, float[N] dx) { y = Mul(x, dy) dx = Neg(x) }"
    made = graphs.gradient(model_of(text))
    assert inputs(made) == ["x", "dy", "dy_", "ddx"]
    assert outputs(made) == ["dx_", "ddy"]
    arrays = [np.float32([v]) for v in (2, 3, 5, 7)]
    dx, ddy = run(compiled(made, "native"), arrays)
    assert (dx.tolist(), ddy.tolist()) == ([3 * 5 - 7], [2 * 5])


@pytest.mark.parametrize("name", graphs.MODELS)
def test_every_model_of_the_catalogue(name: str) -> None:
    model = graphs.MODELS[name]()
    no_gradient = ("derivative", "quantized", "int8")
    if any(word in name for word in no_gradient):
        with pytest.raises(ArgumentError, match=r"^gradient: no input of \w+ has a gradient"):
            graphs.gradient(model)
        return
    made = graphs.gradient(model)
    assert made == graphs.gradient(model), "the same bytes every time"
    for rank in (1, 4):
        onnx.checker.check_model(graphs.with_rank(made, rank), full_check=True)
    assert outputs(graphs.gradient(made))


def test_the_opset_is_the_first_that_has_all() -> None:
    assert graphs.gradient(graphs.leaky_relu()).opset_import[0].version == 18
    bfloat16 = graphs.thresholded_relu(dtype="bfloat16")
    assert graphs.gradient(bfloat16, keep_outputs=True).opset_import[0].version == 22


def test_onnxruntime_runs_it() -> None:
    made = graphs.gradient(graphs.scale_bias_leaky_relu())
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(s).astype("f4") for s in ((5, 3), (3,), (3,), (5, 3))]
    session = onnxruntime.InferenceSession(
        graphs.serialize(made), providers=["CPUExecutionProvider"]
    )
    theirs = session.run(None, dict(zip(inputs(made), arrays, strict=True)))
    for ours, one in zip(run(compiled(made, "native"), arrays), theirs, strict=True):
        assert_same_bits(ours, one, "onnxruntime", arrays)


def test_forward_and_backward_are_one_kernel() -> None:
    """As many kernels as the graph alone has, one for each pattern of broadcasting."""
    alone = graphs.scale_bias_leaky_relu()
    both = graphs.gradient(alone, keep_outputs=True)
    assert outputs(both) == ["y", "dx", "dscale", "dbias"]
    counts = []
    for model in (alone, both):
        read = Reading(built(frontend.import_model(model)))
        counts.append(len(read.rows(layout.KERNEL, read.operators[0]["kernels"])))
    assert counts[0] == counts[1]


def test_an_input_that_several_operators_read() -> None:
    text = "g (float[N] x) => (float[N] y) { a = Mul(x, x) b = Add(a, x) y = Mul(b, x) }"
    made = graphs.gradient(model_of(text))
    x, dy = np.float64([1, 2, -3]).astype("f4"), np.float32([1, 1, 2])
    wanted = (3 * x * x + 2 * x) * dy
    assert compiled(made, "native")(x, dy).tolist() == wanted.tolist()


def test_functions_are_gone_into() -> None:
    text = """<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
    g (float[N] x) => (float[N] y) { y = local.twice(x) }
    <domain: "local", opset_import: ["" : 18]>
    twice (x) => (y) { h = LeakyRelu <alpha = 0.5> (x) y = Add(h, h) }"""
    made = graphs.gradient(onnx.parser.parse_model(text))
    x = np.float32([-1, 2])
    assert compiled(made, "native")(x, np.float32([3, 3])).tolist() == [3, 6]


# ---------------------------------------------------------------- broadcasting


def summed(gradient: Array, shape: tuple[int, ...]) -> Array:
    """What a caller does for an operand that was broadcast."""
    leading = gradient.ndim - len(shape)
    axes = tuple(k for k in range(gradient.ndim) if k < leading or shape[k - leading] == 1)
    return gradient.sum(axis=axes).reshape(shape)


def test_broadcast_operands_have_the_shape_of_the_iteration(torch: Any) -> None:
    text = """g (double[A, B] x, double[B] s, double[] t) => (double[A, B] y) {
      u = Mul(s, t)  v = Mul(x, u)  y = LeakyRelu <alpha = 0.25> (v) }"""
    made = graphs.gradient(model_of(text))
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(s) for s in ((4, 3), (3,), ())]
    dy = rng.standard_normal((4, 3))
    results = run(compiled(made, "native"), [*arrays, dy])
    assert [r.shape for r in results] == [(4, 3)] * 3
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    y = torch.nn.functional.leaky_relu(tensors[0] * (tensors[1] * tensors[2]), 0.25)
    y.backward(torch.tensor(dy))
    for array, result, tensor in zip(arrays, results, tensors, strict=True):
        np.testing.assert_allclose(summed(result, array.shape), tensor.grad, rtol=1e-13)


# ---------------------------------------------------------------- random graphs


def numpy_gradients(
    graph: ir.Graph, arrays: Sequence[Array], upstream: Sequence[Array]
) -> dict[str, Array]:
    """Gradients of a graph, by going back through it in NumPy."""
    values: dict[int, Array | None] = {}
    for index in graph.live_values():
        values[index] = reference._evaluate_value(graph.values[index], values, arrays)
    sums: dict[int, Array] = {}

    def add(index: int, part: Array) -> None:
        sums[index] = reference.add(sums[index], part) if index in sums else part

    floats = [o for o in graph.outputs if DTYPES[graph.values[o.value].dtype].is_float]
    with np.errstate(all="ignore"):
        for output, dy in zip(floats, upstream, strict=True):
            add(output.value, dy)
        for index in reversed(graph.live_values()):
            value = graph.values[index]
            if index not in sums or value.kind != "apply":
                continue
            row = OPERATORS[value.operator]
            names: dict[str, Any] = {"dy": sums[index]}
            for name, operand in zip(row.operands, value.arguments, strict=True):
                names[name] = None if operand is None else values[operand]
            if "alpha" in value.attributes:
                number = np.asarray(np.float32(value.attributes["alpha"]))
                names["alpha"] = reference.cast(number, to=value.dtype)
            if value.operator == "DequantizeLinear":
                names["level"] = level(names, value.dtype)
            for name, operand in zip(row.operands, value.arguments, strict=True):
                if operand is None or name not in row.derivatives:
                    continue
                dtype = graph.values[operand].dtype
                if DTYPES[dtype].is_float:
                    add(
                        operand,
                        reference.cast(Evaluation(names).of(row.derivatives[name]), to=dtype),
                    )
    return {
        graph.inputs[v.input].name: sums[k]
        for k, v in enumerate(graph.values)
        if v.kind == "input" and k in sums
    }


def level(names: Mapping[str, Any], dtype: str) -> Array:
    found = names["x"].astype(np.int64)
    if names["zero_point"] is not None:
        found = found - names["zero_point"].astype(np.int64)
    return reference.cast(found, to=dtype)


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(case=cases())
def test_random_graphs(case: Case) -> None:
    """Gradients as NumPy goes back; and the outputs as they were, of the graph written anew."""
    model, arrays = case.model(), list(case.arrays.values())
    graph = frontend.import_model(model)
    try:
        made = graphs.gradient(model, keep_outputs=True)
    except ArgumentError as error:
        assert "no input of random has a gradient" in error.message
        return
    except UnsupportedError as error:
        assert "lies along an axis" in error.message or "are declared in" in error.message
        assume(False)
    kept = expected(model, arrays)
    upstream = [
        random_array(case.rng, _name(k), k.shape) for k in kept if DTYPES[_name(k)].is_float
    ]
    results = run(compiled(made, TARGETS[-1]), [*arrays, *upstream])
    for result, want in zip(results[: len(kept)], kept, strict=True):
        assert_same_bits(result, want, "an output", arrays)
    wanted = numpy_gradients(graph, arrays, upstream)
    assert len(wanted) == len(results) - len(kept)
    for name, result in zip(wanted, results[len(kept) :], strict=True):
        want = np.broadcast_to(wanted[name], result.shape)
        assert_same_bits(result, want, f"the gradient of {name}", [*arrays, *upstream])


# ---------------------------------------------------------------- torch and JAX


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: pip install 'relu_ops[torch]'")
    yield importlib.import_module("torch")


@pytest.fixture(scope="module")
def jax() -> Iterator[Any]:
    if importlib.util.find_spec("jax") is None:
        pytest.skip("JAX is not installed: pip install 'relu_ops[jax]'")
    module = importlib.import_module("jax")
    before = module.config.jax_enable_x64
    module.config.update("jax_enable_x64", True)
    yield module
    module.config.update("jax_enable_x64", before)


HEAD = "g (T[N] a, T[N] b, T[N] c) => (T[N] y)"
TORCH: dict[str, tuple[str, Callable[[Any, Any, Any, Any], Any], str]] = {
    # The graph, what torch computes, and where it chooses another derivative.
    "relu": ("y = Relu(a)", lambda t, a, b, c: t.relu(a), "a != a"),
    "leaky_relu": (
        "y = LeakyRelu <alpha = 0.3> (a)",
        lambda t, a, b, c: t.nn.functional.leaky_relu(a, float(np.float32(0.3))),
        "",
    ),
    "thresholded_relu": (
        "y = ThresholdedRelu <alpha = 0.5> (a)",
        lambda t, a, b, c: t.nn.functional.threshold(a, 0.5, 0.0),
        "a != a",
    ),
    "max": ("y = Max(a, b)", lambda t, a, b, c: t.maximum(a, b), "(a != a) | (b != b)"),
    "min": ("y = Min(a, b)", lambda t, a, b, c: t.minimum(a, b), "(a != a) | (b != b)"),
    "neg": ("y = Neg(a)", lambda t, a, b, c: -a, ""),
    "add": ("y = Add(a, b)", lambda t, a, b, c: a + b, ""),
    "sub": ("y = Sub(a, b)", lambda t, a, b, c: a - b, ""),
    "mul": ("y = Mul(a, b)", lambda t, a, b, c: a * b, ""),
    "div": ("y = Div(a, b)", lambda t, a, b, c: a / b, ""),
    "chain": (
        "p = Mul(a, b) s = Add(p, c) y = LeakyRelu <alpha = 0.25> (s)",
        lambda t, a, b, c: t.nn.functional.leaky_relu(a * b + c, 0.25),
        "",
    ),
    "where": (
        "m = Less(a, b) y = Where(m, a, c)",
        lambda t, a, b, c: t.where(a < b, a, c),
        "",
    ),
}
"""Abs differs in the sign of a zero alone; relu6, hard sigmoid and PRelu are below."""


def drawn(dtype: str, count: int, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [random_array(rng, dtype, (4000,)) for _ in range(count)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", TORCH)
def test_torch_computes_the_same_bits(torch: Any, name: str, dtype: str) -> None:
    text, function, elsewhere = TORCH[name]
    head = HEAD.replace("T[", "float[" if dtype == "float32" else "double[")
    made = graphs.gradient(model_of(f"{head} {{ {text} }}"))
    a, b, c, dy = drawn(dtype, 4)
    tensors = [torch.from_numpy(x.copy()).requires_grad_() for x in (a, b, c)]
    function(torch, *tensors).backward(torch.from_numpy(dy.copy()))
    kept = ~eval(elsewhere) if elsewhere else np.ones(a.shape, bool)
    results = run(compiled(made, TARGETS[-1]), [a, b, c, dy])
    for result, name_of_input in zip(results, outputs(made), strict=True):
        tensor = tensors["abc".index(name_of_input[1])]
        assert_same_bits(result[kept], tensor.grad.numpy()[kept], name_of_input, [])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_computes_the_same_bits_of_other_operators(torch: Any, dtype: str) -> None:
    functional = torch.nn.functional
    x, dy = drawn(dtype, 2)
    for made, function, kept in (
        (graphs.relu6(dtype=dtype), functional.relu6, x == x),
        (model_of(_typed("g (T[N] x) => (T[N] y) { y = Abs(x) }", dtype)), torch.abs, x != 0),
    ):
        tensor = torch.from_numpy(x.copy()).requires_grad_()
        function(tensor).backward(torch.from_numpy(dy.copy()))
        ours = compiled(graphs.gradient(made), TARGETS[-1])(x, dy)
        kept = kept & (x == x)
        assert_same_bits(ours[kept], tensor.grad.numpy()[kept], made.graph.name, [])


def _typed(text: str, dtype: str) -> str:
    return text.replace("T[", "float[" if dtype == "float32" else "double[")


def test_torch_computes_the_same_bits_of_prelu(torch: Any) -> None:
    x, dy = (one.reshape(-1, 8) for one in drawn("float32", 2))
    slope = np.float32([0.25, -1, 0, 2, 1e-30, 0.3, 1, 0.01])
    dx, _ = run(compiled(graphs.gradient(graphs.prelu()), TARGETS[-1]), [x, slope, dy])
    tensor = torch.from_numpy(x.copy()).requires_grad_()
    torch.nn.functional.prelu(tensor, torch.from_numpy(slope)).backward(torch.from_numpy(dy))
    assert_same_bits(dx, tensor.grad.numpy(), "dx of PRelu")


JAX: dict[str, tuple[str, Callable[[Any, Any, Any], Any], str]] = {
    "relu": ("y = Relu(a)", lambda jax, a, b: jax.nn.relu(a), ""),
    "leaky_relu": (
        "y = LeakyRelu <alpha = 0.25> (a)",
        lambda jax, a, b: jax.nn.leaky_relu(a, 0.25),
        "a == 0",
    ),
    "relu6": ("y = Clip(a, l, h)", lambda jax, a, b: jax.nn.relu6(a), ""),
    "max": ("y = Max(a, b)", lambda jax, a, b: jax.numpy.maximum(a, b), ""),
    "min": ("y = Min(a, b)", lambda jax, a, b: jax.numpy.minimum(a, b), ""),
    "mul": ("y = Mul(a, b)", lambda jax, a, b: a * b, ""),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", JAX)
def test_jax_computes_the_same_bits(jax: Any, name: str, dtype: str) -> None:
    """But for the sign of zeros, and subnormals, which XLA takes for zero."""
    text, function, elsewhere = JAX[name]
    head = "g (T[N] a, T[N] b) => (T[N] y) <T l = {0}, T h = {6}>"
    head = head.replace("T[", "float[" if dtype == "float32" else "double[")
    head = head.replace("<T l", f"<{'float' if dtype == 'float32' else 'double'} l")
    head = head.replace(", T h", f", {'float' if dtype == 'float32' else 'double'} h")
    made = graphs.gradient(model_of(f"{head} {{ {text} }}"))
    a, b, dy = drawn(dtype, 3)
    tiny = np.finfo(dtype).tiny
    a, b, dy = (np.where(abs(one) < 16 * tiny, one.dtype.type(0), one) for one in (a, b, dy))
    dy = np.where(np.isfinite(dy), dy, one_like(dy))
    _, back = jax.vjp(lambda *given: function(jax, *given), a, b)
    found = [np.asarray(one) for one in back(jax.numpy.asarray(dy))]
    kept = ~eval(elsewhere) if elsewhere else np.ones(a.shape, bool)
    for result, name_of_input in zip(
        run(compiled(made, TARGETS[-1]), [a, b, dy]), outputs(made), strict=True
    ):
        theirs = found["ab".index(name_of_input[1])]
        ours = np.where(abs(result) < 16 * tiny, result.dtype.type(0), result)
        theirs = np.where(abs(theirs) < 16 * tiny, theirs.dtype.type(0), theirs)
        assert_same_bits(ours[kept], theirs[kept], name_of_input, [])


def one_like(x: Array) -> Array:
    return np.ones((), x.dtype)


# ---------------------------------------------------------------- differences, second derivatives

SMOOTH = {
    "hard swish": "g (double[N] a, double[N] b) => (double[N] y) { y = HardSwish(a) }",
    "hard sigmoid": "g (double[N] a, double[N] b) => (double[N] y) { y = HardSigmoid(a) }",
    "quotient": "g (double[N] a, double[N] b) => (double[N] y) { c = HardSwish(a) y = Div(c, b) }",
    "largest of four": """g (double[N] a, double[N] b) => (double[N] y) {
        p = Mul(a, b)  q = Sub(a, b)  y = Max(p, q, a, b) }""",
    "clipped": """g (double[N] a, double[N] b) => (double[N] y)
        <double l = {-0.75}, double h = {1.5}> {
        p = Mul(a, a)  q = Sub(p, b)  y = Clip(q, l, h) }""",
    "two outputs": """g (double[N] a, double[N] b) => (double[N] y, double[N] z) {
        y = PRelu(a, b)  p = Abs(b)  z = Mul(p, y) }""",
    "through float32": """g (double[N] a, double[N] b) => (double[N] y) {
        f = Cast <to = 1> (a)  g = Cast <to = 11> (f)  y = Mul(g, b) }""",
}


@pytest.mark.parametrize("name", SMOOTH)
def test_finite_differences(name: str) -> None:
    """Along random directions, at points where no operator has a corner nearby."""
    model = model_of(SMOOTH[name])
    made = graphs.gradient(model)
    rng = np.random.default_rng(5)
    a, b = (np.round(rng.standard_normal(500) * 2, 2) + 0.0137 for _ in range(2))
    a, b = a, b + 0.0011
    step = 1e-3 if "float32" in name else 1e-6
    zeros = np.zeros_like(a)
    graph = frontend.import_model(model)
    for direction in ((np.ones_like(a), zeros), (zeros, np.ones_like(a))):
        up = reference.evaluate(graph, [a + step * direction[0], b + step * direction[1]])
        down = reference.evaluate(graph, [a - step * direction[0], b - step * direction[1]])
        slopes = [(u - d) / (2 * step) for u, d in zip(up, down, strict=True)]
        dys = [rng.standard_normal(500) for _ in up]
        wanted = sum(dy * slope for dy, slope in zip(dys, slopes, strict=True))
        found = dict(zip(outputs(made), run(compiled(made, "native"), [a, b, *dys]), strict=True))
        ours = sum(found.get(f"d{n}", zeros) * d for n, d in zip("ab", direction, strict=True))
        tolerance = 2e-4 if "float32" in name else 1e-6
        np.testing.assert_allclose(ours, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["chain", "div", "mul", "leaky_relu"])
def test_second_derivatives_are_those_of_torch(torch: Any, name: str) -> None:
    text, function, _ = TORCH[name]
    head = HEAD.replace("T[", "double[")
    once = graphs.gradient(model_of(f"{head} {{ {text} }}"), ["a"])
    twice = graphs.gradient(once)
    rng = np.random.default_rng(3)
    a, b, c, dy, dda = (rng.standard_normal(300) for _ in range(5))
    tensors = {
        n: torch.tensor(v, requires_grad=True) for n, v in zip("abc", (a, b, c), strict=True)
    }
    upstream = torch.tensor(dy, requires_grad=True)
    (first,) = torch.autograd.grad(
        function(torch, *tensors.values()), tensors["a"], upstream, create_graph=True
    )
    first.backward(torch.tensor(dda))
    found = dict(
        zip(outputs(twice), run(compiled(twice, "native"), [a, b, c, dy, dda]), strict=True)
    )
    assert found
    by_name = {**{f"d{n}": t for n, t in tensors.items()}, "ddy": upstream}
    for key, result in found.items():
        wanted = by_name[key.rstrip("_")].grad.numpy()
        np.testing.assert_allclose(result, wanted, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------- quantized chains


def fake_quantize(
    dtype: str = "int8", scale: float = 0.25, point: int = 3, other: float | None = None
) -> onnx.ModelProto:
    name = {"int8": "int8", "uint8": "uint8"}[dtype]
    return model_of(
        f"""g (float[N] x) => (float[N] y)
        <float s = {{{scale}}}, {name} z = {{{point}}}, float t = {{{other or scale}}}> {{
          q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, t, z) }}"""
    )


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("point", [0, 3, 120])
def test_straight_through_is_torchs(torch: Any, dtype: str, point: int) -> None:
    """To the last half step: levels at the bounds pass, saturated ones do not."""
    made = graphs.gradient(fake_quantize(dtype, 0.25, point), straight_through=True)
    x = (np.arange(-2400, 2400) / 32).astype(np.float32)
    dy = np.random.default_rng(0).standard_normal(x.size).astype(np.float32)
    limits = np.iinfo(dtype)
    tensor = torch.from_numpy(x.copy()).requires_grad_()
    torch.fake_quantize_per_tensor_affine(
        tensor, 0.25, point, int(limits.min), int(limits.max)
    ).backward(torch.from_numpy(dy))
    for target, op in compiled_everywhere(made).items():
        wanted = tensor.grad.numpy() + 0  # torch multiplies by 0 where it masks: -0.0
        assert_same_bits(op(x, dy), wanted, target, [x, dy])


def test_straight_through_is_asked_for() -> None:
    with pytest.raises(ArgumentError, match=r"quantized chains have straight_through=True$"):
        graphs.gradient(fake_quantize())
    with pytest.raises(ArgumentError, match="x has no gradient: every path"):
        graphs.gradient(fake_quantize(), ["x"])


def test_straight_through_beside_another_path() -> None:
    """Without the estimate only the other path counts; with it both do."""
    text = """g (float[N] x) => (float[N] y) <float s = {0.5}, int8 z = {0}> {
      q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  y = Sub(x, d) }"""
    x, dy = np.float32([1, 100]), np.float32([2, 3])
    plain, through = (
        compiled(graphs.gradient(model_of(text), straight_through=on), "native")
        for on in (False, True)
    )
    assert plain(x, dy).tolist() == [2, 3]
    assert through(x, dy).tolist() == [0, 3]


def test_straight_through_needs_a_pair() -> None:
    with pytest.raises(UnsupportedError, match="needs one scale in QuantizeLinear and in the"):
        graphs.gradient(fake_quantize(other=0.5), straight_through=True)
    text = """g (float[N] x, int8 z) => (float[N] y) <float s = {0.5}> {
      q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z) }"""
    with pytest.raises(UnsupportedError, match="the zero point z must be a constant"):
        graphs.gradient(model_of(text), straight_through=True)


def test_straight_through_per_channel(torch: Any) -> None:
    text = """g (float[N, 2, M] x) => (float[N, 2, M] y)
      <float[2] s = {0.25, 2}, int8[2] z = {0, -100}> {
      q = QuantizeLinear <axis = 1> (x, s, z)  y = DequantizeLinear <axis = 1> (q, s, z) }"""
    made = graphs.gradient(model_of(text, 21), straight_through=True, keep_outputs=True)
    x = np.random.default_rng(0).uniform(-600, 600, (3, 2, 50)).astype(np.float32)
    y, dx = run(compiled(made, "native"), [x, np.ones_like(x)])
    tensor = torch.from_numpy(x).requires_grad_()
    theirs = torch.fake_quantize_per_channel_affine(
        tensor, torch.tensor([0.25, 2]), torch.tensor([0, -100]).int(), 1, -128, 127
    )
    theirs.sum().backward()
    assert same_bits(y, theirs.detach().numpy()) and same_bits(dx, tensor.grad.numpy())


def test_the_scale_of_dequantized_weights() -> None:
    text = """g (int8[N] x, float s) => (float[N] y) <int8 z = {3}> {
      y = DequantizeLinear(x, s, z) }"""
    made = graphs.gradient(model_of(text))
    x = np.int8([-128, 3, 127])
    found = compiled(made, "native")(x, np.float32(0.5), np.float32([1, 2, 3]))
    assert found.tolist() == [-131, 0, 372]


# ---------------------------------------------------------------- refusals


def refused(kind: type[Exception], message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}$"):
        call()


HINT = "docs/semantics.md lists the derivatives; quantized chains have straight_through=True"


def test_names_of_inputs() -> None:
    model = graphs.prelu()
    refused(
        ArgumentTypeError,
        "gradient: inputs must be a list of names (not a text)\nhint: pass ['x']",
        lambda: graphs.gradient(model, "x"),
    )
    refused(
        ArgumentError,
        "gradient: inputs must name at least one input (it is empty)",
        lambda: graphs.gradient(model, []),
    )
    refused(
        ArgumentError,
        "gradient: inputs must name each input once (not ['x', 'x'])",
        lambda: graphs.gradient(model, ["x", "x"]),
    )
    refused(
        ArgumentError,
        "gradient: inputs must be one of x, slope (not 'y')\nhint: pass one of these names",
        lambda: graphs.gradient(model, ["x", "y"]),
    )


def test_inputs_without_a_gradient() -> None:
    text = (
        "g (float[N] x, int32[N] k, bool[N] c) => (float[N] y) { z = Sign(x) y = Where(c, z, x) }"
    )
    refused(
        ArgumentError,
        f"gradient: k is int32, and only floating inputs have a gradient\nhint: {HINT}",
        lambda: graphs.gradient(model_of(text), ["k"]),
    )
    assert outputs(graphs.gradient(model_of(text))) == ["dx"]
    sign = "g (float[N] x) => (float[N] y) { y = Sign(x) }"
    refused(
        ArgumentError,
        "gradient: x has no gradient: every path to an output goes through integers, booleans or "
        "operators without a derivative\n"
        f"hint: {HINT}",
        lambda: graphs.gradient(model_of(sign), ["x"]),
    )


def test_what_lies_along_another_axis() -> None:
    """The opset-6 slope lies along axis 1: nothing in scope gives its gradient that shape."""
    text = "g (float[N, 3, M] x, float[3] s) => (float[N, 3, M] y) { y = PRelu(x, s) }"
    with pytest.raises(UnsupportedError, match="lies along an axis that is not its last"):
        graphs.gradient(model_of(text, 6))


def test_outputs_of_several_shapes() -> None:
    """Summed over the rows, the gradient by w would count once a row."""
    text = (
        "g (float[R, N] x, float[N] z) => (float[R, N] y, float[N] w) { y = Mul(x, z) w = Neg(z) }"
    )
    with pytest.raises(UnsupportedError, match="the outputs y, w are declared in 2 shapes"):
        graphs.gradient(model_of(text))
