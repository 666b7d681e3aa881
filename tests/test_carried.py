"""What an array carries beside its numbers: a result would lose it, so it is refused."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cases import TARGETS, compiled, same_bits

import relu_ops
from relu_ops import graphs
from relu_ops.errors import ArgumentError, ArgumentTypeError, ReluOpsError

NAN = float("nan")
VALUES = [-1.0, 2.0, NAN]


@pytest.fixture(scope="module")
def relu() -> relu_ops.Operator:
    return compiled(graphs.relu(), TARGETS[-1])


def library(name: str) -> Any:
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        pytest.skip(f"{name} is not installed: pip install pandas polars pyarrow 'dask[array]'")
    return importlib.import_module(name)


def refused(kind: type[ReluOpsError], message: str, act: Callable[[], Any]) -> None:
    with warnings.catch_warnings(), pytest.raises(kind) as caught:
        warnings.simplefilter("error")
        act()
    assert str(caught.value) == message
    assert type(caught.value) is kind


def assert_refused_everywhere(
    op: relu_ops.Operator, x: Any, kind: type[ReluOpsError], rest: str
) -> None:
    """By a call, by a bound one and by the function that compiles by itself; nothing is written."""
    out = np.full(2, 42, np.float32)
    refused(kind, f"relu: x{rest}", lambda: op(x))
    refused(kind, f"relu: x{rest}", lambda: op(x, out=out))
    refused(kind, f"relu: x{rest}", lambda: op.bind(x, out=out))
    refused(kind, f"relu: x{rest}", lambda: relu_ops.relu(x))
    assert out.tolist() == [42, 42]


def assert_taken(op: relu_ops.Operator, x: Any, wanted: Any) -> None:
    for y in (op(x), relu_ops.relu(x)):
        assert type(y) is np.ndarray
        assert same_bits(y, np.array(wanted, np.float32))


# ---------------------------------------------------------------- masks and units of NumPy's kin


def masked(values: Any, mask: Any) -> np.ma.MaskedArray:
    return np.ma.masked_array(np.array(values, np.float32), mask)


HIDDEN = (
    " has 1 masked element; the result would have no mask, so it must have none\n"
    "hint: pass x.filled(value), or x.data to compute on what the mask hides"
)


class Unmasked(np.ndarray):
    """As astropy has them: arrays with a mask that are none of NumPy's."""

    mask = np.array([True, True])


class Quantity(np.ndarray):
    """As astropy has them."""

    unit = "m / s"


def test_masked_arrays(relu: relu_ops.Operator) -> None:
    assert_refused_everywhere(relu, masked([-1, 2], [True, False]), ArgumentError, HIDDEN)
    four = HIDDEN.replace("1 masked element", "4 masked elements")
    assert_refused_everywhere(relu, masked([[-1, 2]] * 2, True), ArgumentError, four)
    assert_refused_everywhere(relu, masked(-1, True), ArgumentError, HIDDEN)


@pytest.mark.parametrize("mask", [np.ma.nomask, False, [False] * 3], ids=str)
def test_of_which_nothing_is_masked(relu: relu_ops.Operator, mask: Any) -> None:
    assert_taken(relu, masked(VALUES, mask), [0, 2, NAN])
    out = masked([7, 7, 7], mask)
    assert relu(np.array(VALUES, np.float32), out=out) is out
    assert same_bits(out.data, np.array([0, 2, NAN], np.float32))


def test_a_masked_array_is_not_written(relu: relu_ops.Operator) -> None:
    out = masked([7, 8], [False, True])
    x = np.array([-1, 2], np.float32)
    for act in (lambda: relu(x, out=out), lambda: relu.bind(x, out=out)):
        refused(
            ArgumentError,
            "relu: out for y has 1 masked element; the result would have no mask, so it must have "
            "none\nhint: pass a plain array (of a masked one, its data), or leave out away",
            act,
        )
    assert out.data.tolist() == [7, 8]


def test_in_sequences(relu: relu_ops.Operator) -> None:
    for x, where in (
        ([1.0, np.ma.masked], "x[1]"),
        ((masked([1, 2], [False, True]), [3.0, 4.0]), "x[0]"),
        ([[[1.0], masked([3], [True])]], "x[0][1]"),
    ):
        refused(
            ArgumentError,
            f"relu: {where}{HIDDEN.replace(' x.', f' {where}.')}",
            lambda x=x: relu(x),  # type: ignore[misc]
        )
    assert relu([masked([-1], False), [np.float32(2)]]).tolist() == [[0], [2]]


def test_sequences_that_hold_themselves(relu: relu_ops.Operator) -> None:
    itself: list[Any] = []
    itself[:] = [itself]
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for x in (itself, deep):
        with pytest.raises(ArgumentTypeError):
            relu(x)


def test_masks_of_others(relu: relu_ops.Operator) -> None:
    x = np.array([-1, 2], np.float32).view(Unmasked)
    rest = HIDDEN.replace("1 masked element", "2 masked elements").replace("x.data", "x.unmasked")
    assert_refused_everywhere(relu, x, ArgumentError, rest)


def test_what_becomes_a_masked_array(relu: relu_ops.Operator) -> None:
    """As a variable of a netCDF file does."""

    class Variable:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return masked([-1, 2], [False, True])

    assert_refused_everywhere(relu, Variable(), ArgumentError, HIDDEN)


def test_units(relu: relu_ops.Operator) -> None:
    x = np.array([-1, 2], np.float32).view(Quantity)
    rest = (
        " has the unit m / s; the result would have none, so it must have none\n"
        "hint: pass x.value, and give the result its unit"
    )
    assert_refused_everywhere(relu, x, ArgumentError, rest)
    x.unit = ""
    assert_taken(relu, x, [0, 2])


# ---------------------------------------------------------------- nulls


def nulls(count: int, how: str) -> str:
    return (
        f" has {count} null{'s' if count > 1 else ''}, and must have none: the result could not "
        f"tell them from NaN\nhint: pass {how}"
    )


PANDAS = "x.fillna(value) or x.dropna()"
POLARS = "x.fill_null(value) or x.drop_nulls()"
PYARROW = "x.fill_null(value) or x.drop_null()"
TABLE = "x.drop_null(), or fill_null(value) of each column"

# What makes one of a library's values of a list of numbers and None.
PANDAS_KINDS: dict[str, Callable[[Any, Any], Any]] = {
    "Series": lambda pd, v: pd.Series(v, dtype="Float32"),
    "Series of arrow": lambda pd, v: pd.Series(v, dtype="float32[pyarrow]"),
    "Index": lambda pd, v: pd.Index(v, dtype="Float32"),
    "array": lambda pd, v: pd.array(v, dtype="Float32"),
    "DataFrame": lambda pd, v: pd.DataFrame({"a": v}, dtype="Float32"),
    "mixed DataFrame": lambda pd, v: pd.DataFrame(
        {"a": np.zeros(len(v), np.float32), "b": pd.array(v, dtype="Float32")}
    ),
    "one name twice": lambda pd, v: pd.DataFrame(
        [[0.0, one] for one in v], columns=["a", "a"], dtype="Float32"
    ),
}
POLARS_KINDS: dict[str, Callable[[Any, Any], Any]] = {
    "Series": lambda pl, v: pl.Series(v, dtype=pl.Float32),
    "DataFrame": lambda pl, v: pl.DataFrame({"a": v}, schema={"a": pl.Float32}),
    "arrays": lambda pl, v: pl.Series([v], dtype=pl.Array(pl.Float32, len(v))),
}
PYARROW_KINDS: dict[str, Callable[[Any, Any], Any]] = {
    "Array": lambda pa, v: pa.array(v, pa.float32()),
    "ChunkedArray": lambda pa, v: pa.chunked_array([pa.array(v, pa.float32())] * 1),
    "Table": lambda pa, v: pa.table({"a": pa.array(v, pa.float32())}),
    "RecordBatch": lambda pa, v: pa.record_batch({"a": pa.array(v, pa.float32())}),
}


@pytest.mark.parametrize("kind", PANDAS_KINDS)
def test_pandas(relu: relu_ops.Operator, kind: str) -> None:
    pd = library("pandas")
    if "arrow" in kind:
        library("pyarrow")
    make = PANDAS_KINDS[kind]
    assert_refused_everywhere(relu, make(pd, [-1.0, None]), ArgumentError, nulls(1, PANDAS))
    if "mixed" not in kind and "twice" not in kind:  # those become arrays of objects
        wanted = np.maximum(np.asarray(make(pd, [-1.0, 2.0])), 0)
        assert_taken(relu, make(pd, [-1.0, 2.0]), wanted)


def test_pandas_of_other_dtypes(relu: relu_ops.Operator) -> None:
    """A NaN stays a NaN where pandas has nothing else; nulls of integers are refused as such."""
    pd = library("pandas")
    assert_taken(relu, pd.Series(VALUES, dtype="float32"), [0, 2, NAN])
    assert_taken(relu, pd.DataFrame({"a": VALUES}, dtype="float32"), [[0], [2], [NAN]])
    for dtype in ("Int8", "Float64"):
        x = pd.Series([None, 2, None], dtype=dtype)
        assert_refused_everywhere(relu, x, ArgumentError, nulls(2, PANDAS))


@pytest.mark.parametrize("kind", POLARS_KINDS)
def test_polars(relu: relu_ops.Operator, kind: str) -> None:
    pl = library("polars")
    make = POLARS_KINDS[kind]
    assert_refused_everywhere(relu, make(pl, [-1.0, None]), ArgumentError, nulls(1, POLARS))
    given = make(pl, VALUES)
    assert_taken(relu, given, np.maximum(np.asarray(given), 0))


@pytest.mark.parametrize("kind", PYARROW_KINDS)
def test_pyarrow(relu: relu_ops.Operator, kind: str) -> None:
    pa = library("pyarrow")
    make = PYARROW_KINDS[kind]
    how = TABLE if kind in ("Table", "RecordBatch") else PYARROW
    assert_refused_everywhere(relu, make(pa, [-1.0, None]), ArgumentError, nulls(1, how))
    given = make(pa, VALUES)
    assert_taken(relu, given, np.maximum(np.asarray(given), 0))


# ---------------------------------------------------------------- what is lazy


def test_dask(relu: relu_ops.Operator) -> None:
    da = library("dask.array")
    blocks = []

    def block(x: np.ndarray) -> np.ndarray:
        blocks.append(x.shape)
        return x

    x = da.from_array(np.array(VALUES, np.float32), chunks=2).map_blocks(
        block, dtype="float32", meta=np.zeros(0, np.float32)
    )
    assert_refused_everywhere(
        relu,
        x,
        ArgumentTypeError,
        " is lazy (dask): it must be an array that is there, and is not computed unasked\n"
        "hint: pass x.compute(), or x.map_blocks(op, dtype=x.dtype) to stay lazy",
    )
    assert blocks == []
    for y in (relu(x.compute()), x.map_blocks(relu, dtype=x.dtype).compute()):
        assert same_bits(y, np.array([0, 2, NAN], np.float32))


def test_what_holds_a_lazy_array(relu: relu_ops.Operator) -> None:
    """As xarray's do; dask asks its protocol too, which answers None where nothing is lazy."""

    class Labelled:
        def __init__(self, graph: Any) -> None:
            self.graph = graph

        def __dask_graph__(self) -> Any:
            return self.graph

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            assert self.graph is None, "it was computed"
            return np.array([-1, 2], np.float32)

    assert_refused_everywhere(
        relu,
        Labelled({}),
        ArgumentTypeError,
        " is lazy (dask): it must be an array that is there, and is not computed unasked\n"
        "hint: pass x.compute()",
    )
    assert_taken(relu, Labelled(None), [0, 2])
