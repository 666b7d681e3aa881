"""The operator, and the careful way of a call.

`Operator` itself is native (native/python_call.c): it takes arrays that lie in memory as a
kernel can read them, in some tens of nanoseconds. What it does not understand, and what the core
refuses, comes here with the arguments as they were passed: the functions below convert what can be
converted, or say what is wrong. They are called from there by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import Parameter, Signature
from typing import Any, NamedTuple, NoReturn

import numpy as np

from relu_ops.contract.semantics import DTYPES, dlpack_type
from relu_ops.contract.shapes import in_brackets
from relu_ops.errors import ArgumentError, ArgumentTypeError, counted
from relu_ops.native._python import BoundCall, Operator
from relu_ops.runtime import arrays
from relu_ops.runtime.arrays import tensors_of_every_nature
from relu_ops.runtime.threads import check_count, heed_tuning

__all__ = ["BoundCall", "Operator", "Tensor", "tensors_of_every_nature"]

Dim = int | str | None


class Tensor(NamedTuple):
    """An input or output: its shape is None where the rank is open."""

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None


class Adapted(NamedTuple):
    """The arguments of a call as arrays that a kernel can take.

    Attributes:
        views: The inputs.
        results: Where the outputs belong, as NumPy arrays.
        returned: What the caller gets.
    """

    views: list[np.ndarray]
    results: list[np.ndarray]
    returned: Any


# ---------------------------------------------------------------------------------------------
# Calls


def careful_call(op: Operator, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
    """Compute, whatever the arguments are.

    Raises:
        ArgumentTypeError: An argument has the wrong type or dtype.
        ArgumentError: An argument has the wrong shape or device, or there are too many; or
            threads is out of range.
    """
    if op.device != "cpu":
        from relu_ops.runtime import device

        return device.call(op, inputs, keywords)
    out, threads = _keywords(op, keywords)
    views, results, returned = _adapt(op, inputs, out)
    targets = [r if arrays.is_addressable(r) else np.empty_like(r) for r in results]
    op.compute((*views, *targets), threads)
    for result, target in zip(results, targets, strict=True):
        if target is not result:
            np.copyto(result, target)
    return returned


def careful_bind(op: Operator, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> BoundCall:
    """Bind a call; arrays that would have to be copied at every call are refused.

    Raises:
        ArgumentTypeError: As for a call.
        ArgumentError: As for a call, or an array would have to be copied.
    """
    if op.device != "cpu":
        from relu_ops.runtime import device

        return device.bind(op, inputs, keywords)
    out, threads = _keywords(op, keywords)
    views, results, returned = _adapt(op, inputs, out)
    for tensor, given, view in zip(op.inputs, inputs, views, strict=True):
        if not arrays.is_view_of(view, given, tensor):
            raise ArgumentError(
                f"{op.name}: {tensor.name} cannot be bound as it lies in memory: it would have to "
                "be copied at every call",
                "pass an aligned array of native byte order, apart from out",
            )
    for tensor, result in zip(op.outputs, results, strict=True):
        if not arrays.is_addressable(result):
            raise ArgumentError(
                f"{op.name}: out for {tensor.name} is misaligned", "pass an aligned array"
            )
    return op.bound((*views, *results), threads, inputs, returned)


def refuse_new() -> NoReturn:
    """Say where operators come from, to whoever calls the class.

    Raises:
        ArgumentTypeError: Always.
    """
    raise ArgumentTypeError(
        "an Operator is not made by calling the class",
        "compile a model with relu_ops.compile, or load a bundle with relu_ops.load",
    )


def _keywords(op: Operator, keywords: Mapping[str, Any]) -> tuple[Any, int]:
    """The values of `out` and of `threads`, 0 for the process's default."""
    unknown = [name for name in keywords if name not in ("out", "threads")]
    if unknown:
        raise ArgumentTypeError(
            # In Python's words: polars looks for them.
            f"{op.name} got an unexpected keyword argument {unknown[0]!r}: it takes out and "
            "threads",
            "pass inputs by position",
        )
    threads = keywords.get("threads")
    return keywords.get("out"), 0 if threads is None else check_count("threads", threads)


def _adapt(op: Operator, inputs: Sequence[Any], out: Any) -> Adapted:
    """Make arrays that the kernel can take; the core checks them."""
    check_input_count(op, inputs)
    views = [arrays.as_numpy(x, t, op.name) for x, t in zip(inputs, op.inputs, strict=True)]
    shapes = op.output_shapes([view.shape for view in views])
    pairs = [
        arrays.allocate(tensor, shape, inputs)
        if one is None
        else (one, arrays.check_out(one, tensor, shape, op.name))
        for one, tensor, shape in zip(outs_of(op, out), op.outputs, shapes, strict=True)
    ]
    results = [array for _, array in pairs]
    _check_apart(op, results)
    addressable = [v if arrays.is_addressable(v) else v.copy() for v in views]
    returned = tuple(one for one, _ in pairs)
    return Adapted(
        [arrays.apart_from(view, results) for view in addressable],
        results,
        returned[0] if len(returned) == 1 else returned,
    )


def check_input_count(op: Operator, inputs: Sequence[Any]) -> None:
    """Refuse a call with more or fewer inputs than an operator has."""
    if len(inputs) != len(op.inputs):
        names = ", ".join(tensor.name for tensor in op.inputs)
        raise ArgumentTypeError(
            f"{op.name} takes {counted(len(op.inputs), 'input')} ({names}), not {len(inputs)}",
            "pass one array for each, by position, and where to write as out",
        )


def outs_of(op: Operator, out: Any) -> Sequence[Any]:
    """One array or None an output."""
    count = len(op.outputs)
    if out is None:
        return [None] * count
    if count == 1 and not isinstance(out, tuple | list):
        return [out]
    if not isinstance(out, tuple | list) or len(out) != count:
        names = ", ".join(tensor.name for tensor in op.outputs)
        wanted = "an array, or a tuple of one" if count == 1 else f"a tuple of {count} arrays"
        kind = type(out).__name__
        given = f"{kind} of {len(out)}" if isinstance(out, tuple | list) else kind
        raise ArgumentTypeError(
            f"{op.name}: out must be {wanted} ({names}), not {given}", arrays.OUT_HINT
        )
    return out


def _check_apart(op: Operator, results: Sequence[np.ndarray]) -> None:
    for k, a in enumerate(results):
        for b in results[:k]:
            if np.may_share_memory(a, b):
                raise ArgumentError(
                    f"{op.name}: the outputs must not overlap or interleave in memory",
                    "pass arrays that lie apart",
                )


def refuse_arguments(call: BoundCall) -> NoReturn:
    """Say that a bound call has its arguments already."""
    raise ArgumentTypeError(
        f"{call.name}: a bound call takes no arguments", "write new numbers into call.inputs"
    )


def refuse_copies(call: BoundCall) -> NoReturn:
    """Say that a bound call is neither pickled nor copied."""
    raise ArgumentTypeError(
        f"{call.name}: a bound call belongs to its arrays, and cannot be pickled or copied",
        "pickle the operator and bind it again",
    )


# ---------------------------------------------------------------------------------------------
# What an operator says of itself

_LARGEST_NUMBER = 2**31 - 1
"""Of a device, in C; there are fewer."""

_DTYPE_NAMES = {dlpack_type(name): name for name in DTYPES}


def declared_tensors(rows: Sequence[tuple[str, int, int, Any]]) -> tuple[Tensor, ...]:
    """The tensors of rows (name, DLPack's code, bits, shape)."""
    return tuple(Tensor(name, _DTYPE_NAMES[code, bits], s) for name, code, bits, s in rows)


def representation(op: Operator) -> str:
    """`repr` of an operator."""

    def show(tensors: Sequence[Tensor]) -> str:
        return ", ".join(f"{t.name}: {t.dtype}{in_brackets(t.shape)}" for t in tensors)

    return (
        f"<relu_ops.Operator {op.name}({show(op.inputs)}) -> ({show(op.outputs)}), "
        f"target={op.target}{'' if op.device == 'cpu' else f', device={op.device}'}>"
    )


def signature(op: Operator) -> Signature:
    """The signature of a call, for `inspect` and whoever asks it."""
    names = [tensor.name for tensor in op.inputs]
    keywords = ("out", "threads" if op.device == "cpu" else "stream")
    usable = all(name.isidentifier() for name in names) and len({*names, *keywords}) == (
        len(names) + 2
    )
    if not usable:  # ONNX allows any text
        names = [f"x{k}" for k in range(len(names))]
    return Signature(
        [Parameter(name, Parameter.POSITIONAL_ONLY) for name in names]
        + [Parameter(n, Parameter.KEYWORD_ONLY, default=None) for n in keywords]
    )


def reduced(op: Operator) -> tuple[Any, ...]:
    """How an operator is pickled: with all files of its bundle, so that it runs elsewhere too."""
    held, number = op.bundle, number_of(op.device)
    files = dict(held.contents)
    arguments = (str(held.path), files, op.name, op.wanted_target, type(op), number)
    own = getattr(op, "__dict__", None)  # of a subclass
    return (_restored, arguments, own) if own else (_restored, arguments)


def token(op: Operator) -> tuple[Any, ...]:
    """What dask knows an operator by: what it computes, wherever it was read from."""
    return ("relu_ops.Operator", op.bundle.digest, op.name, op.wanted_target)


def _restored(
    path: str,
    contents: dict[str, bytes],
    name: str,
    target: str | None,
    kind: type[Operator],
    cuda: int = -1,
) -> Operator:
    """Unpickle: the files are checked against their digests as if they came from a directory."""
    from relu_ops.bundle import store as bundles

    held = bundles.from_contents(path, contents)
    heed_tuning()
    return Operator.__new__(kind, held.handle, name, target, held, cuda)


def number_of(device: str) -> int:
    """The number of a CUDA device; -1 for the CPU.

    >>> number_of("cuda:1"), number_of("cuda"), number_of("cpu")
    (1, 0, -1)

    Raises:
        ArgumentError: It is no device.
    """
    kind, _, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if device == "cpu":
        return -1
    if kind == "cuda" and (device == "cuda" or (number.isascii() and number.isdecimal())):
        return min(int(number or 0), _LARGEST_NUMBER)
    raise ArgumentError(
        f"device must be 'cpu', 'cuda' or 'cuda:N' (not {device!r})", "for example 'cuda:0'"
    )
