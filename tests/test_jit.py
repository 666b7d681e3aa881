"""What `relu` and `leaky_relu` take, and what they say of the rest."""

from __future__ import annotations

import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relu_ops
from relu_ops import graphs, jit
from relu_ops.errors import ArgumentError, ArgumentTypeError, BundleError, ModelError


def test_the_dtypes_are_those_of_the_graphs() -> None:
    assert {name: graphs.dtypes(name) for name in ("relu", "leaky_relu")} == jit._DTYPES


@pytest.mark.parametrize("dtype", ["uint8", "bool", "complex64", "longdouble", "object"])
@pytest.mark.parametrize("name", ["relu", "leaky_relu"])
def test_other_dtypes_are_refused_before_anything_is_compiled(name: str, dtype: str) -> None:
    x = np.ones(2, dtype)
    with pytest.raises(ArgumentTypeError) as caught:
        getattr(relu_ops, name)(x)
    assert str(caught.value) == (
        f"{name}: x.dtype must be one of {', '.join(graphs.dtypes(name))} (not {x.dtype})\n"
        "hint: convert it first, for example to float32"
    )


def test_integers_are_no_input_of_leaky_relu() -> None:
    with pytest.raises(ArgumentTypeError, match=r"^leaky_relu: x\.dtype must be .* \(not int64\)"):
        relu_ops.leaky_relu(np.array([-1, 2]))


class Exporter:
    """What speaks DLPack and nothing else, as nanobind's arrays do."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: object) -> object:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("dtype", ["float64", "int8"])
def test_dlpack_alone_is_enough(dtype: str) -> None:
    made = relu_ops.relu(Exporter(np.array([-1, 2], dtype)))
    assert made.dtype == dtype and made.tolist() == [0, 2]
    with pytest.raises(ArgumentTypeError, match=r"relu: x\.dtype must be .* \(not uint8\)"):
        relu_ops.relu(Exporter(np.ones(2, np.uint8)))


class Series:
    """An object of another library that knows how to become an array."""

    def __init__(self, *values: float, dtype: str) -> None:
        self.values = np.array(values, dtype)

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return self.values


@pytest.mark.parametrize(
    "given",
    [
        Series(-1, 1 + 2**-40, dtype="float64"),
        array.array("d", [-1, 1 + 2**-40]),
        memoryview(np.array([-1, 1 + 2**-40])),
    ],
    ids=["__array__", "array.array", "memoryview"],
)
def test_what_has_a_dtype_keeps_it(given: object) -> None:
    """They were taken for lists, and lost half their digits without a word."""
    made = relu_ops.relu(given)
    assert made.dtype == np.float64 and made.tolist() == [0, 1 + 2**-40]
    operator = relu_ops.compile(graphs.relu())
    with pytest.raises(ArgumentTypeError, match=r"^relu: x\.dtype must be float32 \(not float64\)"):
        operator(given)


def test_what_has_a_dtype_is_bound_where_it_lies() -> None:
    operator = relu_ops.compile(graphs.relu())
    given, out = array.array("f", [-1, 2]), np.zeros(2, np.float32)
    call = operator.bind(given, out=out)
    given[0] = 3
    call()
    assert out.tolist() == [3, 2]

    number = operator.bind(np.float32(2), out=np.zeros((), np.float32))  # no memory, and none lost
    number()
    assert number.out == 2

    class Copied(Series):
        def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
            return self.values.copy()

    with pytest.raises(ArgumentError, match="cannot be bound as it lies in memory"):
        operator.bind(Copied(-1, 2, dtype="float32"), out=out)


def test_what_cannot_become_an_array() -> None:
    class Broken(Series):
        def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
            raise RuntimeError("not today\nand not tomorrow")

    for function in (relu_ops.relu, relu_ops.compile(graphs.relu())):
        with pytest.raises(ArgumentTypeError) as caught:
            function(Broken(dtype="float32"))
        assert str(caught.value) == "relu: x cannot be made an array: not today"


def test_a_model_and_a_bundle_are_told_apart(tmp_path: Path) -> None:
    bundle, model = tmp_path / "relu.bundle", tmp_path / "relu.onnx"
    relu_ops.build(graphs.relu(), ["native"], bundle)
    model.write_bytes(graphs.relu().SerializeToString())
    with pytest.raises(ModelError) as caught:
        relu_ops.compile(bundle)
    assert str(caught.value) == (
        f"{bundle}: cannot be read: Is a directory\nhint: a bundle is loaded with relu_ops.load"
    )
    with pytest.raises(ModelError, match=r"Is a directory$"):
        relu_ops.compile(tmp_path)
    with pytest.raises(BundleError) as refused:
        relu_ops.load(model)
    assert str(refused.value) == (
        f"{model}: no bundle can be read there: Not a directory\n"
        "hint: build a bundle of a model first: relu_ops.build, or relu-ops build"
    )


@pytest.mark.parametrize("alpha", [0.5 + 1j, np.complex64(0.5 + 1j), "0.5", None], ids=repr)
def test_a_slope_is_one_real_number(alpha: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=r"leaky_relu: alpha must be a number"):
        relu_ops.leaky_relu(np.ones(2, np.float32), alpha=alpha)
