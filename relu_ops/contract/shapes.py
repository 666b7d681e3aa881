"""How shapes are written for people: numbers, names, and "?" where a dimension is free."""

from __future__ import annotations

from collections.abc import Sequence


def show(shape: Sequence[int | str | None] | None) -> str:
    """A shape in a sentence, as Python writes a tuple.

    >>> show(("N", 512)), show((None,)), show(None)
    ('(N, 512)', '(?,)', 'any shape')
    """
    if shape is None:
        return "any shape"
    dims = _dims(shape)
    return f"({dims[0]},)" if len(dims) == 1 else f"({', '.join(dims)})"


def in_brackets(shape: Sequence[int | str | None] | None) -> str:
    """A shape behind a dtype.

    >>> in_brackets(("N", None)), in_brackets(())
    ('[N, ?]', '[]')
    """
    return "" if shape is None else f"[{', '.join(_dims(shape))}]"


def _dims(shape: Sequence[int | str | None]) -> list[str]:
    return ["?" if dim is None else str(dim) for dim in shape]
