"""The table, row by row: reference, lowering and documentation agree, on every target.

Where is NaN decided? In the row. Who says so? `semantics.OPERATORS`. Which test proves it? This
one: every primitive of the table on every special value.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import children
import numpy as np
import onnx
import onnx.defs
import pytest
from cases import TARGETS, compiled_everywhere
from onnx import helper

from relu_ops import compiler, graphs
from relu_ops.bundle import store as bundle
from relu_ops.compiler import frontend, rules
from relu_ops.contract import reference, semantics
from relu_ops.contract.semantics import DTYPES, OPERATORS, PRIMITIVES
from relu_ops.verification import same, special_values

BFLOAT16 = DTYPES["bfloat16"].numpy
SLOPES = (0, 0.001, -0.001, 0.01, -0.01, 0.1, 0.25, 0.3, 0.5, 1, 1.3, 2, -1, -0.25, 6e-8)
EDGE_SLOPES = (
    -0.0,
    1e-45,
    1 - 2**-24,
    1 + 2**-23,
    3.4e38,
    -3.4e38,
    *map(float, ("inf", "-inf", "nan")),
)
NARROW, WIDE = ("float16", "bfloat16"), ("float32", "float64")


def every_pattern(dtype: str) -> np.ndarray:
    return np.arange(1 << 16, dtype=np.uint16).view(DTYPES[dtype].numpy)


def assert_same(ours: np.ndarray, theirs: np.ndarray, what: str) -> None:
    wrong = ~same(ours, theirs)
    assert not wrong.any(), f"{what}: {wrong.sum()} of {wrong.size} differ"


def test_some_target_runs_here() -> None:
    assert TARGETS


def test_every_primitive_has_a_reference_and_a_lowering() -> None:
    assert set(reference.FUNCTIONS) == set(rules.RULES) == set(PRIMITIVES)


def test_every_operator_has_a_handler_in_the_frontend() -> None:
    assert set(frontend.HANDLERS) == set(OPERATORS)


def test_dtypes_have_the_names_and_numbers_of_onnx() -> None:
    for row in DTYPES.values():
        assert onnx.TensorProto.DataType.Value(row.onnx_name.upper()) == row.onnx_type
        assert helper.tensor_dtype_to_np_dtype(row.onnx_type) == row.numpy


def test_attributes_have_the_defaults_of_onnx() -> None:
    for name, row in OPERATORS.items():
        floats = {
            key: attribute.default_value.f
            for key, attribute in onnx.defs.get_schema(name, 18).attributes.items()
            if attribute.type == onnx.defs.OpSchema.AttrType.FLOAT and name != "Constant"
        }
        assert {key: float(np.float32(value)) for key, value in row.attributes.items()} == floats


def test_only_a_composition_has_no_rule_of_its_own_and_a_form() -> None:
    composed = {name for name, row in OPERATORS.items() if row.form == "composition"}
    assert {"HardSigmoid", "HardSwish"} <= composed
    for name, row in OPERATORS.items():
        assert row.primitive or row.form == "own" or name in composed


def test_the_documentation_is_generated_from_the_table() -> None:
    script = Path(__file__).parents[1] / "scripts" / "make_docs.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (
        0,
        "semantics.md: up to date\nc.md: up to date\nREADME.md: up to date\n",
        "",
    )


# What the table says in words, held as numbers: the reference itself is not trusted blindly.

NAN, INF, TINY = float("nan"), float("inf"), 1e-45
EXPECTED = {
    "Relu": ({}, [NAN, -0.0, 0.0, INF, 0.0, 0.0, TINY, 2.0]),
    "LeakyRelu": ({"alpha": 0.5}, [NAN, -0.0, 0.0, INF, -INF, -0.0, TINY, 2.0]),
    "ThresholdedRelu": ({"alpha": 2.0}, [0.0, 0.0, 0.0, INF, 0.0, 0.0, 0.0, 0.0]),
    "Abs": ({}, [NAN, 0.0, 0.0, INF, INF, TINY, TINY, 2.0]),
    "Neg": ({}, [NAN, 0.0, -0.0, -INF, INF, TINY, -TINY, -2.0]),
    "Sign": ({}, [NAN, 0.0, 0.0, 1.0, -1.0, -1.0, 1.0, 1.0]),
}
ARGUMENTS = np.array([NAN, -0.0, 0.0, INF, -INF, -TINY, TINY, 2.0], np.float32)


@pytest.mark.parametrize("operator", EXPECTED)
def test_reference_gives_the_numbers_of_the_row(operator: str) -> None:
    attributes, expected = EXPECTED[operator]
    result = reference.apply(operator, [ARGUMENTS], attributes)
    assert_same(result, np.array(expected, np.float32), operator)


def test_leaky_relu_with_alpha_zero_is_nan_at_minus_infinity() -> None:
    result = reference.apply("LeakyRelu", [np.array([-INF], np.float32)], {"alpha": 0.0})
    assert np.isnan(result).all()


def test_max_and_min_keep_nan_and_the_first_of_equal_zeros() -> None:
    a = np.array([NAN, 1.0, -0.0, 0.0], np.float32)
    b = np.array([1.0, NAN, 0.0, -0.0], np.float32)
    expected = np.array([NAN, NAN, -0.0, 0.0], np.float32)
    assert_same(reference.maximum(a, b), expected, "Max")
    assert_same(reference.minimum(a, b), expected, "Min")


def test_cast_to_integer_truncates_saturates_and_sends_nan_to_zero() -> None:
    x = np.array([NAN, INF, -INF, 127.9, 128.0, -128.9, -129.5, -0.7], np.float32)
    assert reference.cast(x, to="int8").tolist() == [0, 127, -128, 127, 127, -128, -128, 0]


def test_integer_division_never_traps() -> None:
    a = np.array([7, -7, 7, -128, 5], np.int8)
    b = np.array([2, 2, -2, -1, 0], np.int8)
    assert reference.div(a, b).tolist() == [3, -3, -3, -128, 0]


def test_narrow_products_are_rounded_once() -> None:
    # 2**-67 * 1.0078125 times itself lies just above a tie of bfloat16's subnormals.
    factor = np.array([(1 + 2**-7) * 2.0**-67], DTYPES["bfloat16"].numpy)
    assert float(reference.mul(factor, factor)[0]) == 2.0**-133


@pytest.mark.parametrize("operator", ["Mul", "Div"])
def test_float32_rounds_no_bfloat16_twice(operator: str) -> None:
    """Kernels compute these in float32, and round again: every significand, where it rounds too."""
    a, b = np.meshgrid(np.arange(128.0, 256), np.arange(128.0, 256))
    for exponent in range(-170, -115):
        half = exponent // 2
        other = exponent - half if operator == "Mul" else half - exponent
        pair = [np.ldexp(x, e).astype(BFLOAT16) for x, e in ((a, half), (b, other))]
        wide = [x.astype(np.float32) for x in pair]
        twice = (wide[0] * wide[1] if operator == "Mul" else wide[0] / wide[1]).astype(BFLOAT16)
        assert_same(twice, reference.apply(operator, pair, {}), f"2**{exponent}")


# The same numbers, of the compiled operators: they and the reference may not be wrong together.


def one_node(
    operator: str,
    dtype: str,
    inputs: str,
    opset: int,
    result: str | None = None,
    **attributes: float,
) -> onnx.ModelProto:
    """A model of one operator, of any rank; each letter of `inputs` names one."""
    element = helper.np_dtype_to_tensor_dtype(DTYPES[dtype].numpy)
    info = {n: helper.make_tensor_value_info(n, element, None) for n in f"{inputs}y"}
    if result is not None:
        made = helper.np_dtype_to_tensor_dtype(DTYPES[result].numpy)
        info["y"] = helper.make_tensor_value_info("y", made, None)
    node = helper.make_node(operator, list(inputs), ["y"], **attributes)
    graph = helper.make_graph([node], operator, [info[n] for n in inputs], [info["y"]])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def assert_kernels_give(
    model: onnx.ModelProto, inputs: list[np.ndarray], expected: np.ndarray
) -> None:
    """Also in the middle of vectors, and behind the last whole one."""
    whole = [np.tile(x, 40) if x.ndim else x for x in inputs]
    for name, operator in compiled_everywhere(model).items():
        assert_same(operator(*whole), np.tile(expected, 40), name)


@pytest.mark.parametrize("operator", EXPECTED)
def test_kernels_give_the_numbers_of_the_row(operator: str) -> None:
    attributes, expected = EXPECTED[operator]
    model = one_node(operator, "float32", "x", 18, **attributes)
    assert_kernels_give(model, [ARGUMENTS], np.array(expected, np.float32))


def test_kernels_of_leaky_relu_with_alpha_zero_give_nan_at_minus_infinity() -> None:
    model = one_node("LeakyRelu", "float32", "x", 16, alpha=0.0)
    assert_kernels_give(model, [np.float32([-INF, -1])], np.float32([NAN, -0.0]))


@pytest.mark.parametrize("operator", ["Max", "Min"])
def test_kernels_of_max_and_min_keep_nan_and_the_first_of_equal_zeros(operator: str) -> None:
    a, b = np.float32([NAN, 1.0, -0.0, 0.0]), np.float32([1.0, NAN, 0.0, -0.0])
    model = one_node(operator, "float32", "ab", 13)
    assert_kernels_give(model, [a, b], np.float32([NAN, NAN, -0.0, 0.0]))


def test_kernels_of_clip_keep_nan_and_equal_zeros() -> None:
    x, low, high = np.float32([NAN, -0.0, -1.0, 7.0, 3.0]), np.float32(0), np.float32(6)
    model = one_node("Clip", "float32", "xlh", 13)
    expected = np.float32([NAN, -0.0, 0.0, 6.0, 3.0])
    assert_kernels_give(model, [x, np.array(low), np.array(high)], expected)


def test_kernels_of_cast_to_integer_truncate_saturate_and_send_nan_to_zero() -> None:
    x = np.float32([NAN, INF, -INF, 127.9, 128.0, -128.9, -129.5, -0.7])
    model = one_node("Cast", "float32", "x", 13, "int8", to=onnx.TensorProto.INT8)
    assert_kernels_give(model, [x], np.int8([0, 127, -128, 127, 127, -128, -128, 0]))


def test_kernels_of_quantize_linear_round_halves_to_even() -> None:
    x, scale = np.float32([0.5, 1.5, 2.5, 3.5, -1.0, 300.0]), np.array(1, np.float32)
    model = one_node("QuantizeLinear", "float32", "xs", 19, "uint8")
    assert_kernels_give(model, [x, scale], np.uint8([0, 2, 2, 4, 0, 255]))


@pytest.mark.parametrize(("dtype", "bits"), [("float16", 10), ("bfloat16", 7)])
def test_kernels_round_float64_to_narrow_floats_once(dtype: str, bits: int) -> None:
    """A number just above a tie, of which float32 makes the tie."""
    x, expected = 1 + 2.0 ** -(bits + 1) + 2.0**-40, 1 + 2.0**-bits
    numpy = DTYPES[dtype].numpy
    model = one_node("Cast", "float64", "x", 13, dtype, to=helper.np_dtype_to_tensor_dtype(numpy))
    assert_kernels_give(model, [np.float64([x, -x])], np.array([expected, -expected], numpy))


_DIVISIONS = """
import numpy as np
from cases import compiled_everywhere
from test_semantics import one_node
least = np.iinfo(np.int32).min
a, b = np.int32([[7, -7, 7, least, 5], [2, 2, -2, -1, 0]]).repeat(40, axis=1)
expected = np.int32([3, -3, -3, least, 0]).repeat(40)
for name, operator in compiled_everywhere(one_node("Div", "int32", "ab", 14)).items():
    assert (operator(a, b) == expected).all(), name
print("fine")
"""


def test_kernels_of_integer_division_never_trap() -> None:
    """In a process of its own, which a trap would end."""
    done = children.run(_DIVISIONS)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


# On every pattern


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("graph", ["relu", "relu6", "relu_derivative", "thresholded_relu"])
def test_every_pattern_of_the_narrow_floats(graph: str, dtype: str) -> None:
    x = every_pattern(dtype)
    model = graphs.GRAPHS[graph](dtype=dtype)
    (expected,) = reference.evaluate(frontend.import_model(model), [x])
    for name, operator in compiled_everywhere(model).items():
        assert_same(operator(x), expected, name)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("alpha", SLOPES)
def test_every_pattern_of_the_narrow_floats_at_every_slope(alpha: float, dtype: str) -> None:
    x = every_pattern(dtype)
    model = graphs.leaky_relu(alpha=alpha, dtype=dtype)
    expected = reference.apply("LeakyRelu", [x], {"alpha": float(np.float32(alpha))})
    for name, operator in compiled_everywhere(model).items():
        assert_same(operator(x), expected, name)


@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("alpha", SLOPES + EDGE_SLOPES)
def test_wide_floats_at_every_slope(alpha: float, dtype: str) -> None:
    """Special values, every power of two and their neighbours, and patterns drawn at random."""
    unsigned = np.dtype(f"uint{DTYPES[dtype].bits}")
    drawn = np.random.default_rng(7).integers(0, np.iinfo(unsigned).max, 1 << 16, unsigned)
    exact = special_values(dtype).view(unsigned)
    limits = np.finfo(dtype)
    exponents = np.arange(limits.minexp - limits.nmant, limits.maxexp)
    step = np.ldexp(np.ones((), dtype), exponents).view(unsigned)
    near = np.concatenate([step - 1, step, step + 1])
    sign = unsigned.type(1 << (DTYPES[dtype].bits - 1))
    x = np.concatenate([exact, near, near | sign, drawn]).view(dtype)
    attributes = {"alpha": float(np.float32(alpha))}
    expected = reference.apply("LeakyRelu", [x], attributes)
    model = one_node("LeakyRelu", dtype, "x", 16, **attributes)
    for name, operator in compiled_everywhere(model).items():
        assert_same(operator(x), expected, f"{name}, {alpha}")


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("operator", ["Abs", "Neg", "Sign", "HardSigmoid", "HardSwish", "Clip"])
def test_every_pattern_of_the_other_one_input_operators(operator: str, dtype: str) -> None:
    model = one_node(operator, dtype, "x", opset=22)
    x = every_pattern(dtype)
    (expected,) = reference.evaluate(frontend.import_model(model), [x])
    for name, compiled in compiled_everywhere(model).items():
        assert_same(compiled(x), expected, name)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
def test_pairs_of_narrow_floats(operator: str, dtype: str) -> None:
    """Special values and subnormals against every pattern."""
    model = one_node(operator, dtype, "ab", opset=18)
    imported = frontend.import_model(model)
    compiled = compiled_everywhere(model)
    a = every_pattern(dtype)
    for b in special_values(dtype)[::3]:
        pairs = [a, np.full_like(a, b)]
        (expected,) = reference.evaluate(imported, pairs)
        for name, one in compiled.items():
            assert_same(one(*pairs), expected, f"{name}, b = {b}")


@pytest.mark.parametrize("alpha", [0.01, 0.1, -0.25])
def test_float32_sample(alpha: float) -> None:
    """Every 1,021st pattern of float32; all of them behind the marker."""
    x = np.arange(0, 1 << 32, 1021, dtype=np.uint32).view(np.float32)
    expected = reference.apply("LeakyRelu", [x], {"alpha": float(np.float32(alpha))})
    for name, operator in compiled_everywhere(graphs.leaky_relu(alpha=alpha)).items():
        assert_same(operator(x), expected, name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("graph", ["relu", "leaky_relu"])
def test_float32_every_pattern(graph: str) -> None:
    from relu_ops.verification import verify

    report = verify(graphs.GRAPHS[graph](), exhaustive=True)
    assert report.ok, str(report)
    assert all(row.cases >= 1 << 32 for row in report.rows if row.referee == "NumPy reference")


def test_semantics_version_is_in_the_bundle() -> None:
    held = bundle.from_contents("<memory>", compiler.make(graphs.relu(), TARGETS[:1]))
    assert held.manifest.semantics == semantics.SEMANTICS_VERSION
