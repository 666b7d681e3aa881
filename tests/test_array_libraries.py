"""JAX and CuPy arrays, where they are installed; torch's tests are in test_operator."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cases import SPECIALS, TARGETS, compiled, expected, same_bits

from relu_ops import graphs
from relu_ops.errors import ArgumentError, ArgumentTypeError

FLOATS = ("float16", "bfloat16", "float32")


def imported(name: str, how: str) -> Any:
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed: {how}")
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def jnp() -> Iterator[Any]:
    jax = imported("jax", "pip install 'relu_ops[jax]'")
    jax.config.update("jax_platforms", "cpu")
    yield importlib.import_module("jax.numpy")


def layouts(jnp: Any, x: np.ndarray) -> Iterator[Any]:
    whole = jnp.asarray(x)
    yield whole
    yield whole[7:]
    yield whole[::3]
    yield whole[: len(x) // 6 * 6].reshape(2, 3, -1).transpose(2, 0, 1)
    yield whole[:1]
    yield whole[0]
    yield whole[:0]
    yield jnp.broadcast_to(whole[:5], (4, 5))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_jax_in_numpy_out(jnp: Any, dtype: str, target: str) -> None:
    model = graphs.leaky_relu(alpha=0.1, dtype=dtype)
    op = compiled(model, target)
    for x in layouts(jnp, SPECIALS[dtype]):
        y = op(x)
        given = np.asarray(x)
        assert type(y) is np.ndarray
        assert same_bits(y, expected(model, [given])[0]), x.shape
        out = np.empty(x.shape, given.dtype)
        assert op(x, out=out) is out
        assert same_bits(out, y)
        call = op.bind(x, out=out)
        out[...] = 42
        call()
        assert same_bits(out, y)


def test_jax_with_numpy_as_the_other_input(jnp: Any) -> None:
    op = compiled(graphs.maxout(2), TARGETS[-1])
    a, b = np.arange(12, dtype=np.float32).reshape(3, 4), np.full(4, 5, np.float32)
    for x, y in ((jnp.asarray(a), b), (a, jnp.asarray(b)), (jnp.asarray(a), jnp.asarray(b))):
        assert same_bits(op(x, y), np.maximum(a, b))


def test_a_jax_array_is_never_written(jnp: Any) -> None:
    op = compiled(graphs.relu(), TARGETS[-1])
    x = jnp.asarray(np.float32([-1, 2]))
    with pytest.raises(ArgumentTypeError) as caught:
        op(x, out=x)
    assert str(caught.value).startswith("relu: out for y must be a NumPy array or a torch tensor")
    assert x.tolist() == [-1, 2]


def test_a_jax_array_of_another_dtype(jnp: Any) -> None:
    op = compiled(graphs.relu(), TARGETS[-1])
    with pytest.raises(ArgumentTypeError, match=r"^relu: x\.dtype must be float32 \(not int32\)"):
        op(jnp.arange(3))


def test_a_traced_jax_value_is_refused(jnp: Any) -> None:
    """Inside of a compiled JAX function there are no numbers yet."""
    op = compiled(graphs.relu(), TARGETS[-1])
    jax = importlib.import_module("jax")
    with pytest.raises(ArgumentTypeError, match=r"^relu: x cannot be made an array: "):
        jax.jit(lambda x: op(x))(jnp.ones(3))


def test_cupy_arrays_are_refused_with_a_hint() -> None:
    cupy = imported("cupy", "it needs CUDA")
    try:
        x = cupy.ones(3, "float32")
    except Exception as error:
        pytest.skip(f"cupy finds no device: {error}")
    op = compiled(graphs.relu(), TARGETS[-1])
    with pytest.raises(ArgumentError, match="is not in the CPU's memory"):
        op(x)
