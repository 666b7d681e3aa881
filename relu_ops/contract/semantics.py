"""The contract: what every output bit of every operator in scope is.

This module is data. The reference computes it, the lowering compiles it, the tests enumerate it
and `docs/semantics.md` prints it; a new row brings all four. It knows NumPy and nothing else.

The normative text is the ONNX function body of an operator at the model's opset, evaluated in the
tensor's own type T, rounded to nearest even once per ONNX operator: no contraction, no
flush-to-zero, no fast math. Where ONNX is silent, the row's rule decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import ml_dtypes
import numpy as np

SEMANTICS_VERSION = 1
"""Raised when a row changes an output bit; a bundle records the version it was built with."""

MINIMUM_OPSET = 6

Kind = Literal["float", "int", "uint", "bool"]
Form = Literal["together", "pair", "fold", "composition", "own"]


@dataclass(frozen=True)
class Dtype:
    """An element type: its name, its kind, how it lies in memory, and ONNX's number of it."""

    name: str
    kind: Kind
    bits: int
    numpy: np.dtype
    onnx_type: int

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return self.bits // 8

    @property
    def onnx_name(self) -> str:
        """What ONNX calls it, as in `tensor(float)`."""
        return {"float32": "float", "float64": "double"}.get(self.name, self.name)

    @property
    def is_float(self) -> bool:
        """True for the four binary floating-point types."""
        return self.kind == "float"

    @property
    def is_narrow_float(self) -> bool:
        """True for the 16-bit floats, whose arithmetic is done wider and rounded once."""
        return self.kind == "float" and self.bits == 16


DTYPES: dict[str, Dtype] = {
    row.name: row
    for row in (
        Dtype("float16", "float", 16, np.dtype(np.float16), 10),
        Dtype("bfloat16", "float", 16, np.dtype(ml_dtypes.bfloat16), 16),
        Dtype("float32", "float", 32, np.dtype(np.float32), 1),
        Dtype("float64", "float", 64, np.dtype(np.float64), 11),
        Dtype("int8", "int", 8, np.dtype(np.int8), 3),
        Dtype("int16", "int", 16, np.dtype(np.int16), 5),
        Dtype("int32", "int", 32, np.dtype(np.int32), 6),
        Dtype("int64", "int", 64, np.dtype(np.int64), 7),
        Dtype("uint8", "uint", 8, np.dtype(np.uint8), 2),
        Dtype("uint16", "uint", 16, np.dtype(np.uint16), 4),
        Dtype("uint32", "uint", 32, np.dtype(np.uint32), 12),
        Dtype("uint64", "uint", 64, np.dtype(np.uint64), 13),
        Dtype("bool", "bool", 8, np.dtype(np.bool_), 9),
    )
}

_BY_NUMPY = {row.numpy: name for name, row in DTYPES.items()}


def dtype_name(dtype: np.dtype) -> str | None:
    """Return the name of a native-endian NumPy dtype, or None where it is out of scope.

    >>> dtype_name(np.dtype("float32")), dtype_name(np.dtype("complex64"))
    ('float32', None)
    """
    return _BY_NUMPY.get(dtype)


_DLPACK_CODES = {"int": 0, "uint": 1, "float": 2, "bool": 6}
_DLPACK_BFLOAT16 = 4


def dlpack_type(dtype: str) -> tuple[int, int]:
    """The DLPack type code and bits of a dtype.

    >>> dlpack_type("float32"), dlpack_type("bfloat16")
    ((2, 32), (4, 16))
    """
    row = DTYPES[dtype]
    return _DLPACK_BFLOAT16 if dtype == "bfloat16" else _DLPACK_CODES[row.kind], row.bits


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        rule: The formula, in Python's notation, for operands of type T.
        nan: What a NaN operand gives.
        negative_zero: What -0.0 gives.
        note: The reason, and where others differ.
        primitive: True where the reference and the lowering have a rule of that name; False
            where the frontend rewrites the operator into primitive ones.
        form: How the frontend reads a node of it. "together": the operands broadcast together.
            "pair": so do two, which before opset 7 an attribute says how. "fold": so do any number,
            from the left. "composition": the rule is a formula of other rows, and what is computed
            is that text; a number in it, and an attribute, is a float32 rounded to T. "own": as
            `compiler.frontend.operators` has it.
        operands: The names of the operands, as the rule has them.
        attributes: The float32 attributes that a node may have, and their defaults.
        result: The dtype of the result, where it is not that of the first operand.
        derivatives: For each operand that has one, what it adds to that operand's gradient, of the
            gradient dy of the result: a formula in Python's notation, of operands, attributes, and
            operators of this table called by name. `relu_ops.gradients` makes graphs of these
            texts, so that what stands here is what is computed. An operand that may be absent
            bounds nothing: comparing with it is False.
        choice: Where several derivatives are right, the reason for this one; what others have.
    """

    rule: str
    nan: str = "NaN"
    negative_zero: str = "as IEEE 754"
    note: str = ""
    primitive: bool = True
    form: Form = "together"
    operands: tuple[str, ...] = ("x",)
    attributes: Mapping[str, float] = field(default_factory=dict)
    result: str | None = None
    derivatives: Mapping[str, str] = field(default_factory=dict)
    choice: str = ""


_PAIR = ("a", "b")
_QUANTIZED = ("x", "scale", "zero_point")
_TIES = (
    "at a tie half each, as torch and JAX; at NaN none, as JAX (torch: dy to both); more than two "
    "operands are a fold of pairs"
)

OPERATORS: dict[str, Row] = {
    "Relu": Row(
        "0 if x < 0 else x",
        negative_zero="-0.0",
        note="as onnxruntime; a plain max(x, 0) may lose NaN or the sign of zero",
        derivatives={"x": "dy if x > 0 else 0"},
        choice="0 at 0, as torch and JAX; 0 at NaN, as JAX (torch passes dy on)",
    ),
    "LeakyRelu": Row(
        "alpha * x if x < 0 else x",
        negative_zero="-0.0",
        note="alpha is a float32 attribute: it is rounded to T first, then the product is rounded "
        "to T; alpha = 0 at -inf gives NaN, so Relu is never compiled as LeakyRelu(0)",
        attributes={"alpha": 0.01},
        derivatives={"x": "dy if x > 0 else alpha * dy"},
        choice="alpha at 0, as torch (JAX: 1); alpha at NaN, as both",
    ),
    "PRelu": Row(
        "slope * x if x < 0 else x",
        negative_zero="-0.0",
        note="slope broadcasts to x, never the other way; at opset 6 a slope of length C lies "
        "along axis 1",
        form="own",
        operands=("x", "slope"),
        derivatives={"x": "dy if x > 0 else slope * dy", "slope": "0 if x > 0 else x * dy"},
        choice="the slope at 0 and at NaN, as torch; JAX has no such operator",
    ),
    "ThresholdedRelu": Row(
        "x if x > alpha else 0",
        nan="0",
        negative_zero="0",
        note="alpha is rounded to T first",
        attributes={"alpha": 1.0},
        derivatives={"x": "dy if x > alpha else 0"},
        choice="0 at alpha, as torch; 0 at NaN, of which the rule makes 0 (torch passes dy on)",
    ),
    "Clip": Row(
        "t = low if x < low else x; high if high < t else t",
        negative_zero="by comparison: x is kept when equal",
        note="the ONNX function body; a NaN bound bounds nothing; high wins where low > high; "
        "before opset 11 a missing bound is the largest finite float32, or its negative",
        form="own",
        operands=("x", "low", "high"),
        derivatives={
            "x": "0 if x <= low or high <= x or x != x else dy",
            "low": "0 if high < low else dy if x < low else 0",
            "high": "dy if high < (low if x < low else x) else 0",
        },
        choice="0 at the bounds, as relu6 of torch and JAX and lax.clamp (torch.clamp: dy; "
        "jnp.clip: half), and as Relu at 0; 0 at a NaN x, as torch and JAX",
    ),
    "Abs": Row(
        "x without its sign",
        negative_zero="0.0",
        note="integers wrap: |MIN| = MIN",
        derivatives={"x": "dy if x > 0 else -dy if x < 0 else 0"},
        choice="0 at 0 and at NaN, as torch (JAX: dy at 0, -dy at NaN)",
    ),
    "Neg": Row(
        "x with the sign flipped",
        negative_zero="0.0",
        note="integers wrap: -MIN = MIN",
        derivatives={"x": "-dy"},
    ),
    "Sign": Row(
        "1 if x > 0 else -1 if x < 0 else 0 if x == 0 else x",
        negative_zero="0.0",
        choice="none: it is 0 wherever there is one",
    ),
    "Max": Row(
        "a if a >= b or a is NaN else b",
        nan="NaN if any input is NaN",
        negative_zero="the first input is kept when equal",
        note="folded from the left over all inputs",
        form="fold",
        operands=_PAIR,
        derivatives={
            "a": "dy if a > b else dy / 2 if a == b else 0",
            "b": "dy if b > a else dy / 2 if a == b else 0",
        },
        choice=_TIES,
    ),
    "Min": Row(
        "a if a <= b or a is NaN else b",
        nan="NaN if any input is NaN",
        negative_zero="the first input is kept when equal",
        note="folded from the left over all inputs",
        form="fold",
        operands=_PAIR,
        derivatives={
            "a": "dy if a < b else dy / 2 if a == b else 0",
            "b": "dy if b < a else dy / 2 if a == b else 0",
        },
        choice=_TIES,
    ),
    "Add": Row(
        "a + b",
        note="integers wrap",
        form="pair",
        operands=_PAIR,
        derivatives={"a": "dy", "b": "dy"},
    ),
    "Sub": Row(
        "a - b",
        note="integers wrap",
        form="pair",
        operands=_PAIR,
        derivatives={"a": "dy", "b": "-dy"},
    ),
    "Mul": Row(
        "a * b",
        note="integers wrap; a product is never fused with a following sum",
        form="pair",
        operands=_PAIR,
        derivatives={"a": "dy * b", "b": "dy * a"},
    ),
    "Div": Row(
        "a / b",
        note="integers truncate; by zero gives 0 and MIN / -1 gives MIN, never a trap",
        form="pair",
        operands=_PAIR,
        derivatives={"a": "dy / b", "b": "-dy * (a / b / b)"},
        choice="rounded in the order of torch (JAX squares the divisor)",
    ),
    "HardSigmoid": Row(
        "Clip(x * alpha + beta, 0, 1)",
        note="the ONNX function body: product, sum, and the bits of its Min and Max",
        primitive=False,
        form="composition",
        attributes={"alpha": 0.2, "beta": 0.5},
        choice="by its rule: 0 at the bounds, as torch and JAX",
    ),
    "HardSwish": Row(
        "x * HardSigmoid(x, alpha=1/6, beta=0.5)",
        note="the ONNX function body; at -inf it gives NaN (-inf * 0)",
        primitive=False,
        form="composition",
        choice="by its rule, as a product of two",
    ),
    "Where": Row(
        "a if condition else b",
        nan="the chosen input as it is",
        negative_zero="kept",
        form="own",
        operands=("condition", "a", "b"),
        derivatives={"a": "dy if condition else 0", "b": "0 if condition else dy"},
    ),
    "Less": Row(
        "a < b",
        nan="False",
        negative_zero="equal to 0.0",
        form="pair",
        operands=_PAIR,
        result="bool",
    ),
    "LessOrEqual": Row(
        "a <= b",
        nan="False",
        negative_zero="equal to 0.0",
        operands=_PAIR,
        result="bool",
    ),
    "Greater": Row(
        "a > b",
        nan="False",
        negative_zero="equal to 0.0",
        form="pair",
        operands=_PAIR,
        result="bool",
    ),
    "GreaterOrEqual": Row(
        "a >= b",
        nan="False",
        negative_zero="equal to 0.0",
        operands=_PAIR,
        result="bool",
    ),
    "Equal": Row(
        "a == b",
        nan="False",
        negative_zero="equal to 0.0",
        form="pair",
        operands=_PAIR,
        result="bool",
    ),
    "Not": Row("not a", nan="-", negative_zero="-"),
    "And": Row(
        "a and b",
        nan="-",
        negative_zero="-",
        form="pair",
        operands=_PAIR,
    ),
    "Or": Row(
        "a or b",
        nan="-",
        negative_zero="-",
        form="pair",
        operands=_PAIR,
    ),
    "Xor": Row(
        "a != b",
        nan="-",
        negative_zero="-",
        form="pair",
        operands=_PAIR,
    ),
    "Cast": Row(
        "the exact value, rounded once",
        nan="NaN; 0 as an integer; True as a bool",
        negative_zero="kept; 0 as an integer; False as a bool",
        note="float to integer truncates and saturates (ONNX leaves it undefined, x86 and CUDA "
        "differ); integer to integer wraps; a bool is True where x != 0",
        form="own",
        derivatives={"x": "CastLike(dy, x)"},
        choice="between floats; to and from integers and booleans none",
    ),
    "CastLike": Row("Cast(x, to=type of the second input)", primitive=False, form="own"),
    "Identity": Row("x", nan="kept", negative_zero="kept", primitive=False, form="own"),
    "Constant": Row("the attribute", nan="kept", negative_zero="kept", primitive=False, form="own"),
    "ConstantOfShape": Row(
        "the attribute, repeated",
        nan="kept",
        negative_zero="kept",
        note="the shape must be a constant",
        primitive=False,
        form="own",
    ),
    "QuantizeLinear": Row(
        "saturate(round_half_even(x / scale) + zero_point)",
        nan="the zero point",
        negative_zero="the zero point",
        note="the quotient is rounded to the type of scale (or `precision`); the sum is exact",
        form="own",
        operands=_QUANTIZED,
        derivatives={"x": "dy if lowest <= x / scale and x / scale <= highest else 0"},
        choice="none, unless a straight-through estimate is asked for: then it and the "
        "DequantizeLinear that reads it pass dy on, from the lowest to the highest quotient that "
        "is not saturated, as torch's fake_quantize does",
    ),
    "DequantizeLinear": Row(
        "T(x - zero_point) * T(scale)",
        nan="-",
        negative_zero="-",
        note="T is the output's type; the difference is exact, then rounded to T, then the product",
        form="own",
        operands=_QUANTIZED,
        derivatives={"scale": "dy * level"},
        choice="level is T(x - zero_point); none for x, an integer",
    ),
}

GRADIENTS: dict[str, Row] = {
    "relu_derivative": Row("1 if x > 0 else 0", "0", "0", "the derivative at 0 is 0"),
    "leaky_relu_derivative": Row("1 if x > 0 else alpha", "alpha", "alpha"),
    "relu_grad": Row("dy if x > 0 else 0", "0", "0", "at a NaN x; dy passes as it is"),
    "leaky_relu_grad": Row("dy if x > 0 else alpha * dy", "alpha * dy", "alpha * dy"),
}
"""Graphs, not operators: what `relu_ops.graphs` composes from Greater, Where and Mul."""

PRIMITIVES: tuple[str, ...] = tuple(name for name, row in OPERATORS.items() if row.primitive)
