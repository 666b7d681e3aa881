"""What an array carries beside its numbers, and a result would not: it is refused, not dropped.

A mask, nulls, a unit, a computation that has not happened. Each library is known by what its
objects offer, and none is imported. Gradients are torch's, and `arrays` sees to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from relu_ops.errors import ArgumentError, ArgumentTypeError, counted

_FILL = {
    "pandas": "{0}.fillna(value) or {0}.dropna()",
    "polars": "{0}.fill_null(value) or {0}.drop_nulls()",
    "pyarrow": "{0}.fill_null(value) or {0}.drop_null()",
    "pyarrow table": "{0}.drop_null(), or fill_null(value) of each column",
}
"""How nulls are taken away, in each library's words."""


_NUMBERS = float | int | np.generic


def check(x: Any, what: str) -> None:
    """Refuse an argument that carries what the result would not.

    Args:
        x: Anything that may become an array; also a list or tuple of such.
        what: What it is called, as the subject of the message; its last word is its name.

    Raises:
        ArgumentError: It has masked elements, nulls or a unit.
        ArgumentTypeError: It is lazy.
    """
    if type(x) is np.ndarray or isinstance(x, _NUMBERS):
        return
    if isinstance(x, list | tuple):
        for element, its_name in _elements(x, what):
            check(element, its_name)
    elif isinstance(x, np.ndarray):
        _check_subclass(x, what)
    else:
        _check_eager(x, what)
        _check_nulls(x, what)


def _elements(x: Any, what: str) -> Iterator[tuple[Any, str]]:
    """What a sequence holds at any depth and is no number; each once, where it holds itself."""
    pending, seen = [(x, what)], set[int]()
    while pending:
        one, name = pending.pop()
        if not isinstance(one, list | tuple):
            yield one, name
        elif id(one) not in seen:
            seen.add(id(one))
            pending += [
                (v, f"{name}[{k}]") for k, v in enumerate(one) if not isinstance(v, _NUMBERS)
            ]


def _check_subclass(x: np.ndarray, what: str) -> None:
    """Of a subclass of arrays: NumPy's masked arrays, astropy's, and quantities."""
    name = what.split()[-1]
    mask = getattr(x, "mask", None)
    if isinstance(mask, np.ndarray | np.bool_) and mask.dtype == np.bool_ and mask.any():
        data = "data" if isinstance(x, np.ma.MaskedArray) else "unmasked"
        raise ArgumentError(
            f"{what} has {counted(int(mask.sum()), 'masked element')}; the result would have no "
            "mask, so it must have none",
            f"pass {name}.filled(value), or {name}.{data} to compute on what the mask hides",
        )
    unit = getattr(x, "unit", getattr(x, "units", None))
    if unit is not None and str(unit) not in ("", "dimensionless"):
        raise ArgumentError(
            f"{what} has the unit {unit}; the result would have none, so it must have none",
            f"pass {name}.value, and give the result its unit",
        )


def _check_eager(x: Any, what: str) -> None:
    """Of dask's collections, and what holds one: they would be computed whole, here and now."""
    graph = None if isinstance(x, type) else getattr(x, "__dask_graph__", None)
    if not callable(graph) or graph() is None:
        return
    name = what.split()[-1]
    later = f", or {name}.map_blocks(op, dtype={name}.dtype)" if _is_dask_array(x) else ""
    raise ArgumentTypeError(
        f"{what} is lazy (dask): it must be an array that is there, and is not computed unasked",
        f"pass {name}.compute(){later}{' to stay lazy' if later else ''}",
    )


def _is_dask_array(x: Any) -> bool:
    return type(x).__module__.startswith("dask.array")


def _check_nulls(x: Any, what: str) -> None:
    """Of pandas, polars and pyarrow. A null is no NaN; a NaN is a number as any other."""
    for library, nulls in _nulls(x):
        if nulls:
            raise ArgumentError(
                f"{what} has {counted(nulls, 'null')}, and must have none: the result could not "
                "tell them from NaN",
                f"pass {_FILL[library].format(what.split()[-1])}",
            )


def _nulls(x: Any) -> Iterator[tuple[str, int]]:
    """The library of what can hold nulls, and how many there are; of a table also its columns'."""
    library = type(x).__module__.partition(".")[0]
    if library == "polars" and hasattr(x, "get_columns"):
        for column in x.get_columns():
            yield from _nulls(column)
    elif library == "polars" and hasattr(x, "null_count"):
        yield "polars", int(x.null_count())
        if hasattr(x.dtype, "shape"):  # an array in each row, with nulls of its own
            yield from _nulls(x.explode())
    elif isinstance(columns := getattr(x, "columns", None), list):
        yield "pyarrow table", sum(int(getattr(column, "null_count", 0)) for column in columns)
    elif isinstance(count := getattr(x, "null_count", None), int):
        yield "pyarrow", count
    elif callable(isna := getattr(x, "isna", None)):
        yield "pandas", sum(map(_count_of, _nullable_parts(x, isna)))


def _nullable_parts(x: Any, isna: Any) -> Iterator[Any]:
    """Where pandas has nulls: of columns whose dtype has one of its own, and not NaN for it."""
    if hasattr(x, "iloc") and getattr(x, "ndim", 1) == 2:
        for k, dtype in enumerate(x.dtypes):
            if _has_null(dtype):
                yield x.iloc[:, k].isna()
    elif _has_null(getattr(x, "dtype", None)):
        yield isna()


def _has_null(dtype: Any) -> bool:
    return str(getattr(dtype, "na_value", None)) == "<NA>"


def _count_of(nulls: Any) -> int:
    return int(np.asarray(nulls).sum())
