"""What `relu` and `leaky_relu` take, and what they say of the rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import relu_ops
from relu_ops import graphs, jit
from relu_ops.errors import ArgumentTypeError, BundleError, ModelError


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
