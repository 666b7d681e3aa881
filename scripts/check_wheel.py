"""Runs the standard operators of an installed wheel, on the base install alone.

    python scripts/check_wheel.py

Every dtype, the usual slope and another: bits as the NumPy reference has them, nothing compiled and
nothing of a compiler loaded. Exits with 0 where all of it is right.
"""

from __future__ import annotations

import sys

import numpy as np

import relu_ops
from relu_ops import standard
from relu_ops.contract import reference
from relu_ops.contract.semantics import DTYPES


def main() -> None:
    """Run what the wheel holds."""
    assert standard.BUNDLE.is_dir(), f"{standard.BUNDLE} is missing"
    for name, dtype in DTYPES.items():
        if dtype.kind not in ("float", "int"):
            continue
        x = (np.arange(-300, 300) / (4 if dtype.is_float else 1)).astype(dtype.numpy)
        same(relu_ops.relu(x), reference.relu(x), f"relu of {name}")
        if dtype.is_float:
            for alpha in (0.01, 0.001):
                expected = reference.leaky_relu(x, alpha=alpha)
                same(relu_ops.leaky_relu(x, alpha), expected, f"leaky_relu of {name}, {alpha}")
    needless = {"onnx", "tvm", "tvm_ffi", "elftools"} & set(sys.modules)
    assert not needless, f"{', '.join(sorted(needless))} was loaded"


def same(y: np.ndarray, expected: np.ndarray, what: str) -> None:
    """Compare bit for bit."""
    bits = f"u{expected.dtype.itemsize}"
    assert y.dtype == expected.dtype, f"{what}: {y.dtype}"
    assert np.array_equal(y.view(bits), expected.view(bits)), f"{what}: other bits"


if __name__ == "__main__":
    main()
