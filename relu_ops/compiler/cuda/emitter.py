"""Emits expressions for CUDA C++."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx

from relu_ops.compiler.emitter import Emitter, Expr, Operand
from relu_ops.contract.semantics import DTYPES


class CudaEmitter(Emitter):
    """Emits for CUDA C++, one element at a time: the primitives that differ from LLVM's.

    nvcc is told not to contract (-fmad=false), so that a product needs no fence. The functions
    called by name are in device.h.
    """

    def __init__(self, statements: list[Any]) -> None:
        super().__init__(1, statements, {}, native_float16=True)

    def bind(self, dtype: str, expr: Expr) -> Expr:
        """A variable of C++."""
        var = tirx.Var(f"v{len(self.statements)}", dtype)
        self.statements.append(tirx.Bind(var, expr))
        return var

    def floating(self, dtype: str, value: float) -> Expr:
        """A constant; TVM writes float64 with 15 decimals, so that 1e-20 would be 0."""
        if dtype == "float64" and np.isfinite(value) and value != 0:
            pattern = int(np.float64(value).view(np.int64))
            bits = tirx.IntImm("int64", pattern)
            return tirx.call_pure_extern("float64", "__longlong_as_double", bits)
        return super().floating(dtype, value)

    def wrapping(self, operation: str, dtype: str, a: Expr, b: Expr) -> Expr:
        """Computed unsigned and at least 32 bits wide: C++ leaves signed overflow undefined."""
        wide = "uint64" if DTYPES[dtype].bits == 64 else "uint32"
        node = {"add": tirx.Add, "sub": tirx.Sub, "mul": tirx.Mul}[operation]
        return tirx.Cast(dtype, node(tirx.Cast(wide, a), tirx.Cast(wide, b)))

    def product(self, dtype: str, a: Expr, b: Expr) -> Expr:
        """A product; nothing contracts it."""
        return tirx.Mul(a, b)

    def whole(self, dtype: str, x: Expr) -> Expr:
        """The nearest whole number, ties to even: CUDA has no other rounding mode set."""
        return tirx.call_pure_extern(dtype, "rint" if dtype == "float64" else "rintf", x)

    def product_bfloat16(self, a: Operand, b: Operand) -> Operand:
        """The device's own, with one rounding, where it has one."""
        bits = tirx.call_pure_extern("uint16", "relu_ops_multiply_bfloat16", a.expr, b.expr)
        return Operand("bfloat16", self.bind("uint16", bits))

    def _narrow_bfloat16(self, x: Expr) -> Expr:
        return tirx.call_pure_extern("uint16", "relu_ops_narrow_bfloat16", x)

    def _upper_half_rounded(self, x: Expr) -> Expr:
        wide = tirx.Cast("uint32", self._narrow_bfloat16(x))
        return tirx.shift_left(wide, self.integer("uint32", 16))

    def _upper_half_of_number(self, x: Expr) -> Expr:
        """Any NaN: the one that a device makes is all ones."""
        return self._upper_half_rounded(x)

    def _widen_float16(self, bits: Expr) -> Expr:
        return tirx.call_pure_extern("float32", "relu_ops_widen_float16", bits)

    def _narrow_float16(self, x: Expr) -> Expr:
        return tirx.call_pure_extern("uint16", "relu_ops_narrow_float16", x)
