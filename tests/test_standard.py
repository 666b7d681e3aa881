"""What `relu` and `leaky_relu` take, and what they say of the rest."""

from __future__ import annotations

import array
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import children
import images
import numpy as np
import pytest

import relu_ops
from relu_ops import graphs, standard
from relu_ops.compiler.cuda import codegen as codegen_cuda
from relu_ops.contract import reference
from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import (
    ArgumentError,
    ArgumentTypeError,
    BundleError,
    DeviceError,
    ModelError,
)
from relu_ops.verification import random_values, same, special_values

FLOATS = graphs.dtypes("leaky_relu")


def test_the_dtypes_are_those_of_the_graphs() -> None:
    assert {name: graphs.dtypes(name) for name in ("relu", "leaky_relu")} == standard._DTYPES


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
        f"{bundle}: is a bundle, not a model\nhint: a bundle is loaded with relu_ops.load"
    )
    with pytest.raises(ModelError, match=r"is a directory, not a model\nhint: pass a file"):
        relu_ops.compile(tmp_path)
    with pytest.raises(BundleError) as refused:
        relu_ops.load(model)
    assert str(refused.value) == (
        f"{model}: no bundle can be read there: Not a directory\n"
        "hint: build a bundle of a model first: relu_ops.build, or relu-ops build"
    )


# ---------------------------------------------------------------- any slope


def slopes(dtype: str) -> list[float]:
    """Every kind of number that is finite in a dtype, and some that are no float32."""
    with np.errstate(invalid="ignore"):  # a signalling NaN
        special = special_values("float32").astype(np.float64)
    bound = standard._BOUNDS.get(dtype, standard._BOUNDS["float32"])
    found = [float(a) for a in special if np.isfinite(a) and abs(a) < min(bound, 3.3e38)]
    return [*found, 0.1, -0.7, 1 / 3, 2**-24 + 2**-30, 2**-149 * 1.7, 0.01, np.nextafter(0.01, 1)]


def leaky(x: np.ndarray, alpha: float) -> np.ndarray:
    with np.errstate(all="ignore"):
        return reference.leaky_relu(x, alpha=alpha)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_slope_has_the_bits_of_the_constant(dtype: str) -> None:
    x = np.concatenate([special_values(dtype), random_values(dtype, 500, np.random.default_rng(0))])
    for alpha in slopes(dtype):
        assert same(relu_ops.leaky_relu(x, alpha=alpha), leaky(x, alpha)).all(), alpha


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_graph_of_any_slope_is_leaky_relu(dtype: str) -> None:
    """Of every slope: those that `leaky_relu` refuses, too."""
    x = special_values(dtype)
    for alpha in special_values("float32"):
        with np.errstate(all="ignore"):
            slope = reference._like(alpha, x)
            assert same(reference.prelu(x, slope), leaky(x, alpha)).all(), alpha


@pytest.mark.parametrize("dtype", FLOATS)
def test_where_a_slope_stops_being_finite(dtype: str) -> None:
    x = np.array([-1], DTYPES[dtype].numpy)
    bound = standard._BOUNDS.get(dtype, standard._BOUNDS["float32"])
    last = float(np.nextafter(np.float32(min(bound, 3.4e38)), np.float32(0)))
    for alpha in (last, -last):
        assert np.isfinite(relu_ops.leaky_relu(x, alpha=alpha).astype(np.float64)).all()
    for alpha in (bound, -bound, 1e300, np.inf, -np.inf, np.nan, 10**400, np.float64(1e39)):
        for ask in (
            lambda alpha=alpha: relu_ops.leaky_relu(x, alpha=alpha),
            lambda alpha=alpha: graphs.leaky_relu(alpha=alpha, dtype=dtype),
        ):
            with pytest.raises(ArgumentError) as caught:
                ask()
            assert str(caught.value).startswith(
                f"leaky_relu: alpha must be finite in {dtype} (not "
            )


def test_what_is_rounded_to_infinity_first_is_refused() -> None:
    """65519.998 is below float16's bound, and as a float32 it is 65520."""
    x = np.float16([-1])
    assert relu_ops.leaky_relu(x, alpha=65519.99).tolist() == [-65504]
    with pytest.raises(ArgumentError, match=r"finite in float16 \(not 65519\.9999\)\nhint: "):
        relu_ops.leaky_relu(x, alpha=65519.9999)


_MANY_SLOPES = """
import os, sys
from pathlib import Path
import numpy as np, relu_ops
from relu_ops import cache
x = np.float32([-2, 3])
relu_ops.leaky_relu(x, alpha=0.5)

def held():
    return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("memfd")

before = held()
for alpha in np.linspace(-3, 3, 10_000).tolist():
    expected = np.where(x < 0, np.float32(alpha) * x, x)
    assert relu_ops.leaky_relu(x, alpha=alpha).tobytes() == expected.tobytes()
assert held() == before
print(len(cache.entries()))
relu_ops.leaky_relu(x)
relu_ops.leaky_relu(x, alpha=0.01)
print(len(cache.entries()))
"""


def test_ten_thousand_slopes_are_one_operator(tmp_path: Path) -> None:
    """No compilation, no descriptor and no mapping for a new one; the usual one has its own."""
    done = children.run(_MANY_SLOPES, RELU_OPS_CACHE=str(tmp_path / "cache"))
    assert (done.stdout, done.stderr) == ("1\n2\n", "")


def test_zeros_of_either_sign_are_two_slopes() -> None:
    x = np.float32([-1])
    for _ in range(2):
        assert np.signbit(relu_ops.leaky_relu(x, alpha=0.0)).tolist() == [True]
        assert np.signbit(relu_ops.leaky_relu(x, alpha=-0.0)).tolist() == [False]


@pytest.mark.parametrize(
    "alpha",
    [
        *(2, -3, np.int64(2), np.uint8(7), np.float64(0.3), np.float32(0.3), np.float16(0.3)),
        *(Fraction(1, 3), np.float32(0.01), np.float64(0.01)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_real_number_is_a_slope(dtype: str, alpha: Any) -> None:
    x = np.array([-4, 5], DTYPES[dtype].numpy)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = relu_ops.leaky_relu(x, alpha=alpha)
    assert same(found, leaky(x, float(alpha))).all()


@pytest.mark.parametrize(
    "alpha",
    [0.5 + 1j, np.complex64(0.5 + 1j), "0.5", None, True, np.True_, [0.5], np.ones(2)],
    ids=repr,
)
def test_a_slope_is_one_real_number(alpha: Any) -> None:
    """By either name the same is refused with the same words."""
    for ask in (
        lambda: relu_ops.leaky_relu(np.ones(2, np.float32), alpha=alpha),
        lambda: graphs.leaky_relu(alpha=alpha),
    ):
        with pytest.raises(ArgumentTypeError) as caught:
            ask()
        assert caught.value.message == f"leaky_relu: alpha must be a real number (not {alpha!r})"


@pytest.mark.parametrize("alpha", [0.01, 0.25])
def test_out_is_written_and_returned(alpha: float) -> None:
    x = np.float32([-8, 4])
    out = np.empty_like(x)
    assert relu_ops.leaky_relu(x, alpha, out) is out
    assert same(out, leaky(x, alpha)).all()
    assert relu_ops.leaky_relu(x, alpha=alpha, out=x) is x
    assert same(out, x).all()
    assert relu_ops.relu(x, x) is x and x.tolist() == [0, 4]


# ---------------------------------------------------------------- what was met


_LOOK_UPS = """
import numpy as np, relu_ops
from relu_ops import standard
asked = []
own_dtype = standard._own_dtype
standard._own_dtype = lambda x, graph: asked.append(graph) or own_dtype(x, graph)
for dtype in ("<f2", "<f4", "<f8"):
    for shape in ((3,), (2, 3), ()):
        x = np.full(shape, -1, dtype)
        assert (relu_ops.relu(x) == 0).all()
        assert (relu_ops.leaky_relu(x, alpha=2.0) == -2).all()
        assert (relu_ops.leaky_relu(x) < 0).all()
        assert (relu_ops.leaky_relu(x, 0.01) < 0).all()
print(*asked)
"""


def test_an_operator_is_looked_up_once() -> None:
    done = children.run(_LOOK_UPS)
    assert (done.stdout, done.stderr) == (" ".join(["relu leaky_relu leaky_relu"] * 3) + "\n", "")


def test_what_has_no_dtype_is_float32() -> None:
    assert relu_ops.relu([-1.5, 2]).dtype == np.float32
    assert relu_ops.leaky_relu([-1.5, 2], alpha=2).tolist() == [-3, 2]
    assert relu_ops.relu(memoryview(np.array([-1.5, 2]))).dtype == np.float64


def test_every_byte_order() -> None:
    for dtype in ("<f4", ">f4", "<f8", ">f8"):
        x = np.array([-4, 5], dtype)
        for _ in range(2):
            assert relu_ops.relu(x).tolist() == [0, 5]
            assert relu_ops.leaky_relu(x, alpha=0.5).tolist() == [-2, 5]
            assert relu_ops.leaky_relu(x, alpha=0.5).dtype == np.dtype(dtype).newbyteorder("=")


class WithADtype:
    """What has an attribute of that name, which is no dtype of an array library."""

    def __init__(self, dtype: object) -> None:
        self.dtype = dtype

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return np.float32([-1, 2])


@pytest.mark.parametrize("dtype", ["float64", None, [], {}, np.float64, 5], ids=repr)
def test_an_attribute_that_is_no_dtype(dtype: object) -> None:
    for _ in range(2):
        assert relu_ops.relu(WithADtype(dtype)).dtype == np.float32
        assert relu_ops.leaky_relu(WithADtype(dtype), alpha=3).tolist() == [-3, 2]


def test_a_refusal_has_no_other_error_before_it() -> None:
    """A traceback shows what was wrong with the argument, and not how that was found."""
    for x in (np.ones(2, np.uint8), "text", [None]):
        for function in (relu_ops.relu, relu_ops.leaky_relu):
            with pytest.raises(ArgumentTypeError) as caught:
                function(x)
            error: BaseException | None = caught.value
            while error is not None:
                assert not isinstance(error, LookupError | AttributeError)
                error = error.__cause__ or error.__context__


def test_torch_tensors_have_dtypes_of_their_own() -> None:
    torch = pytest.importorskip("torch", reason="pip install 'relu_ops[torch]'")
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = torch.tensor([-2.0, 3.0], dtype=dtype)
        for found in (relu_ops.leaky_relu(x, alpha=0.5), relu_ops.leaky_relu(x, 0.5, x)):
            assert found.dtype == dtype and found.tolist() == [-1, 3]
        assert relu_ops.relu(-x).tolist() == [1, 0]


# ---------------------------------------------------------------- compiling


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compiled, kept, and not loaded."""
    monkeypatch.setenv("RELU_OPS_CUDA_DRIVER", "libno_driver.so.1")
    monkeypatch.setattr(codegen_cuda, "fat_binary", lambda *_: images.FAT_BINARY)
    monkeypatch.setattr(codegen_cuda, "requirements", lambda _: ("cuda_13.0", "sm_90"))
    with pytest.raises(DeviceError, match=r"^CUDA's driver cannot be used: libno_driver\.so\.1: "):
        relu_ops.compile(graphs.relu(), target="cuda-sm_90")


_WARM = """
import sys, numpy as np, relu_ops
x = np.float32([-2, 3])
print(relu_ops.relu(x), relu_ops.leaky_relu(x), relu_ops.leaky_relu(x, alpha=0.5))
heavy = {"onnx", "tvm", "tvm_ffi", "filelock", "elftools", "torch", "msgspec"}
print(sorted(heavy & set(sys.modules)))
"""


def test_a_warm_cache_needs_nothing_that_compiles() -> None:
    children.run(_WARM)
    done = children.run(_WARM)
    assert done.stdout.splitlines() == ["[0. 3.] [-0.02  3.  ] [-1.  3.]", "[]"]
    assert done.stderr == ""
