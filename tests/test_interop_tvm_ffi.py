"""Operators as functions of tvm-ffi."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest

import relu_ops
from relu_ops import graphs
from relu_ops.errors import ArgumentError, ArgumentTypeError

tvm_ffi = pytest.importorskip("tvm_ffi")
door = pytest.importorskip("relu_ops.interop.tvm_ffi")


def tensors(*arrays: np.ndarray) -> list[Any]:
    return [tvm_ffi.from_dlpack(x) for x in arrays]


def test_a_function_computes_into_its_last_arguments() -> None:
    op = relu_ops.compile(graphs.scale_bias_leaky_relu(alpha=0.5, channels=4))
    f = door.function(op)
    x = np.arange(-4, 4, dtype=np.float32).reshape(2, 4)
    scale, bias, y = np.full(4, 2, np.float32), np.ones(4, np.float32), np.empty_like(x)
    assert f(*tensors(x, scale, bias, y)) is None
    assert (y == op(x, scale, bias)).all()
    z = np.ascontiguousarray(x.T)
    f(*tensors(z.T, scale, bias, y))  # strides
    assert (y == op(x, scale, bias)).all()


def test_it_holds_what_it_needs() -> None:
    op = relu_ops.compile(graphs.relu())
    f = door.function(op)
    del op
    gc.collect()
    x = np.float32([-1, 2])
    f(*tensors(x, x))  # in place
    assert x.tolist() == [0, 2]


def test_what_is_wrong_is_a_sentence() -> None:
    f = door.function(relu_ops.compile(graphs.relu()))
    x, y = np.float32([-1, 2]), np.empty(2, np.float32)
    with pytest.raises(TypeError, match=r"relu takes 2 tensors, 1 inputs and 1 outputs \(it was"):
        f(*tensors(x))
    with pytest.raises(TypeError, match="relu: argument 1 must be a tensor"):
        f(*tensors(x), 3)
    with pytest.raises(TypeError, match=r"relu: x\.dtype must be float32 \(not float64\)"):
        f(*tensors(x.astype(np.float64), y))
    with pytest.raises(ValueError, match=r"relu: out for y\.shape must be \(2,\) \(not \(3,\)\)"):
        f(*tensors(x, np.empty(3, np.float32)))
    with pytest.raises(ArgumentTypeError, match=r"must be a relu_ops\.Operator"):
        door.function(np.abs)


def test_global_functions() -> None:
    op, other = relu_ops.compile(graphs.relu()), relu_ops.compile(graphs.leaky_relu(alpha=0.5))
    name = "relu_ops.test_global_functions"
    door.register(op, name)
    with pytest.raises(ArgumentError, match=f"has a global function called '{name}' already"):
        door.register(other, name)
    door.register(other, name, override=True)
    x = np.float32([-1, 2])
    tvm_ffi.get_global_func(name)(*tensors(x, x))
    assert x.tolist() == [-0.5, 2]
    tvm_ffi.registry.remove_global_func(name)


def test_tvm_calls_it() -> None:
    tvm = pytest.importorskip("tvm")
    f = door.function(relu_ops.compile(graphs.relu()))
    x, y = tvm.runtime.tensor(np.float32([-1, 2])), tvm.runtime.empty((2,), "float32")
    f(x, y)
    assert y.numpy().tolist() == [0, 2]


def test_threads() -> None:
    op = relu_ops.compile(graphs.leaky_relu(alpha=0.5))
    f, failures = door.function(op), []

    def work(seed: int) -> None:
        x = np.random.default_rng(seed).standard_normal(100_000).astype(np.float32)
        y = np.empty_like(x)
        for _ in range(20):
            f(*tensors(x, y))
            if not (y == np.where(x < 0, x * np.float32(0.5), x)).all():
                failures.append(seed)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
