"""What a server does with a bundle, on the base install alone: numpy, ml_dtypes and small helpers.

    python base_run.py BUNDLE

The bundle holds leaky_relu with alpha 0.1. Exits with 0 where everything is right.
"""

from __future__ import annotations

import sys

import numpy as np

import relu_ops
from relu_ops.errors import ArgumentError, ArgumentTypeError


def right(x: np.ndarray, y: object) -> None:
    expected = np.where(x < 0, np.float32(0.1) * x, x)
    assert isinstance(y, np.ndarray) and y.dtype == np.float32
    np.testing.assert_array_equal(y.view(np.uint32), expected.view(np.uint32))


def refused(kind: type[Exception], call: object, *arguments: object) -> None:
    try:
        call(*arguments)  # type: ignore[operator]
    except kind as error:
        assert str(error).startswith("leaky_relu: "), error
    else:
        raise AssertionError(f"{kind.__name__} was not raised")


def main(path: str) -> None:
    op = relu_ops.load(path)
    for count in (0, 1, 7, 16, 1000, 3_000_000):
        x = np.linspace(-9, 9, count, dtype=np.float32)
        right(x, op(x))
        out = np.empty_like(x)
        assert op(x, out=out) is out
        right(x, out)
        call = op.bind(x, out=out)
        out[:] = 7
        call()
        right(x, out)
    square = np.arange(-50, 50, dtype=np.float32).reshape(10, 10)
    for view in (square.T, square[::2, ::-3], square[0], square[:, None, 3]):
        right(np.ascontiguousarray(view), np.ascontiguousarray(op(view)))
    frozen = square.copy()
    frozen.flags.writeable = False
    right(square, op(frozen))
    right(np.float32(square), op(square.tolist()))
    # The core's own refusals, which the careful way of a call rewords.
    small = np.empty((3, 3), np.float32)
    refused(ArgumentError, lambda: op.compute((square, small)))
    refused(ArgumentTypeError, op, square.astype(np.float64))
    refused(ArgumentError, lambda: op(square, out=np.empty((3, 3), np.float32)))
    relu_ops.set_num_threads(1)
    right(square, op(square))
    needless = {"onnx", "tvm", "tvm_ffi", "elftools"} & set(sys.modules)
    assert not needless, needless


if __name__ == "__main__":
    main(sys.argv[1])
