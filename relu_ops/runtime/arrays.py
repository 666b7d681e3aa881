"""What array kinds become what pointers.

The fast path hands arrays to tvm-ffi as they are. Everything here is the careful path, taken
where that failed: it finds out what is wrong and says so, or makes what the kernel can take and
passes it by address. Nothing of the caller's is written but `out`.
"""

from __future__ import annotations

import sys
from array import array as python_array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from relu_ops import ir
from relu_ops.bundle import Manifest, Requirement, Tensor, Term
from relu_ops.errors import ArgumentError, ArgumentTypeError
from relu_ops.runtime import memory
from relu_ops.semantics import DTYPES, dlpack_type, dtype_name

_KIND_ORDER = ("bool", "uint", "int", "float")
_DLPACK_CPU = 1
MAXIMUM_ARRAY_RANK = 16


def is_torch(x: Any) -> bool:
    """True for a torch tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def has_dtype(x: Any) -> bool:
    """True for what is no array of a known kind and has a dtype all the same, as a Series has one.

    Such numbers are not converted, other than those of a list, whose type is nobody's choice.
    """
    protocols = ("__array__", "__array_interface__", "__array_struct__")
    return isinstance(x, memoryview | python_array) or any(hasattr(x, name) for name in protocols)


# ---------------------------------------------------------------------------------------------
# Inputs


def as_numpy(x: Any, spec: Tensor, operator: str) -> np.ndarray:
    """View or convert an argument as a NumPy array of the input's dtype, in native byte order.

    Arrays, and what knows how to become one, must have the dtype; Python numbers and sequences are
    converted to it as long as their kind allows (an int may become a float, never the other way).

    Raises:
        ArgumentTypeError: It is no array, or of another dtype.
        ArgumentError: It is not in the CPU's memory, or a number does not fit the dtype.
    """
    what = f"{operator}: {spec.name}"
    if isinstance(x, np.ndarray | np.generic):
        array = np.asarray(x)
    elif is_torch(x):
        array = _from_torch(x, what)
    elif hasattr(x, "__dlpack__"):
        array = from_dlpack(x, what)
    elif has_dtype(x):
        array = made_array(x, what)
    else:
        array = _from_python(x, spec, what)
    native = array.dtype.newbyteorder("=")
    if dtype_name(native) != spec.dtype:
        raise ArgumentTypeError(
            f"{what}.dtype must be {spec.dtype} (not {array.dtype.name})",
            f"convert it first, for example with {spec.name}.astype({spec.dtype!r})"
            if spec.dtype != "bfloat16"
            else "convert it first, with astype(ml_dtypes.bfloat16)",
        )
    if array.ndim > MAXIMUM_ARRAY_RANK:
        raise ArgumentError(f"{what} has {array.ndim} dimensions; at most 16 are supported")
    return array.astype(native, copy=False)


def _from_torch(x: Any, what: str) -> np.ndarray:
    torch = sys.modules["torch"]
    if x.device.type != "cpu":
        raise ArgumentError(
            f"{what} is on the device {x.device}; this operator runs on the CPU",
            f"move it with {what.split()[-1]}.cpu(), or load the bundle with device='cuda'",
        )
    x = x.detach().resolve_conj().resolve_neg()
    if x.dtype == torch.bfloat16:
        return x.view(torch.uint16).numpy().view(DTYPES["bfloat16"].numpy)
    return x.numpy()


def from_dlpack(x: Any, what: str) -> np.ndarray:
    """View what speaks DLPack, which need not say its dtype in any other way.

    Raises:
        ArgumentTypeError: It does not become an array.
        ArgumentError: It is not in the CPU's memory.
    """
    device = getattr(x, "__dlpack_device__", lambda: (_DLPACK_CPU, 0))()
    if int(device[0]) != _DLPACK_CPU:
        raise ArgumentError(
            f"{what} is not in the CPU's memory (DLPack device {int(device[0])}, {device[1]})",
            "copy it to the CPU first, or load the bundle with device='cuda'",
        )
    try:
        return np.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError, ValueError):
        pass
    return made_array(x, what)


def made_array(x: Any, what: str) -> np.ndarray:
    """What NumPy makes of an object that knows how to become an array.

    Raises:
        ArgumentTypeError: It does not become one.
    """
    try:
        return np.asarray(x)
    except Exception as error:  # another library's: a JAX value while it is traced, for example
        raise ArgumentTypeError(
            f"{what} cannot be made an array: {str(error).partition(chr(10))[0]}"
        ) from error


def _from_python(x: Any, spec: Tensor, what: str) -> np.ndarray:
    """Convert numbers and (nested) sequences, weakly typed as NumPy treats Python scalars."""
    try:
        found = np.asarray(x)
    except (ValueError, TypeError, OverflowError) as error:
        raise ArgumentTypeError(f"{what} cannot be made an array: {error}") from error
    target = DTYPES[spec.dtype]
    source = dtype_name(found.dtype)
    if source is None:
        raise ArgumentTypeError(f"{what} must be an array of {spec.dtype} (not {type(x).__name__})")
    kind = DTYPES[source].kind
    weak = {"int": "uint"}.get(kind, kind)  # a Python int has no sign of its own
    if found.size and _KIND_ORDER.index(weak) > _KIND_ORDER.index(target.kind):
        raise ArgumentTypeError(
            f"{what} must be {spec.dtype}; it holds numbers of kind {kind}, which it cannot keep"
        )
    try:
        return np.asarray(x if found.size else found, dtype=target.numpy)
    except OverflowError as error:
        raise ArgumentError(f"{what}: {error}") from error


def is_view_of(view: np.ndarray, given: Any, spec: Tensor) -> bool:
    """False where what `as_numpy` made of a caller's array is apart from it: a copy.

    Numbers and sequences have no memory to be apart from.
    """
    has_memory = is_torch(given) or hasattr(given, "__dlpack__") or has_dtype(given)
    if isinstance(given, np.generic) or not has_memory or view.size == 0:
        return True
    return np.may_share_memory(as_numpy(given, spec, ""), view)


# ---------------------------------------------------------------------------------------------
# Shapes


def check_shapes(manifest: Manifest, shapes: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Hold the shapes of the inputs against the manifest; return those of the outputs.

    Raises:
        ArgumentError: They do not fit; the message says what would.
    """
    symbols: dict[str, tuple[int, str]] = {}
    for spec, shape in zip(manifest.inputs, shapes, strict=True):
        _check_declared(manifest.operator, spec, shape, symbols)
    for requirement in manifest.requirements:
        _check_requirement(manifest, requirement, shapes)
    return [_broadcast(manifest, terms, shapes) for terms in manifest.output_terms]


def _check_declared(
    operator: str, spec: Tensor, shape: tuple[int, ...], symbols: dict[str, tuple[int, str]]
) -> None:
    if spec.shape is None:
        return
    declared = show_shape(spec.shape)
    if len(shape) != len(spec.shape):
        raise ArgumentError(f"{operator}: {spec.name}.shape must be {declared} (not {shape})")
    for dim, extent in zip(spec.shape, shape, strict=True):
        if isinstance(dim, str):
            expected, source = symbols.setdefault(dim, (extent, spec.name))
            if expected != extent:
                raise ArgumentError(
                    f"{operator}: {spec.name}.shape must be {declared} with {dim} = {expected}, "
                    f"as {source} has it (not {shape})"
                )
        elif dim is not None and dim != extent:
            raise ArgumentError(f"{operator}: {spec.name}.shape must be {declared} (not {shape})")


def show_shape(shape: Sequence[int | str | None] | None) -> str:
    """A declared shape, for people.

    >>> show_shape(("N", 512)), show_shape(("N",)), show_shape(None)
    ('(N, 512)', '(N,)', 'any shape')
    """
    if shape is None:
        return "any shape"
    dims = show_dims(shape)
    return f"({dims[0]},)" if len(dims) == 1 else f"({', '.join(dims)})"


def show_dims(shape: Sequence[int | str | None]) -> list[str]:
    """The dimensions of a declared shape, for people: "?" where one is free."""
    return ["?" if dim is None else str(dim) for dim in shape]


def _terms(terms: Sequence[Term]) -> list[ir.Term]:
    return [ir.Term(t.input, tuple(t.shape), ir.View(t.trailing, t.axis, t.block)) for t in terms]


def _broadcast(
    manifest: Manifest, terms: Sequence[Term], shapes: Sequence[tuple[int, ...]]
) -> tuple[int, ...]:
    try:
        return ir.broadcast_terms(_terms(terms), list(shapes))
    except ValueError:
        named = [
            f"{manifest.inputs[t.input].name} {shapes[t.input]}"
            if t.input is not None
            else f"a constant {t.shape}"
            for t in _terms(terms)
        ]
        raise ArgumentError(
            f"{manifest.operator}: these shapes do not broadcast together: {', '.join(named)}"
        ) from None


def _check_requirement(
    manifest: Manifest, requirement: Requirement, shapes: Sequence[tuple[int, ...]]
) -> None:
    source = _broadcast(manifest, requirement.terms, shapes)
    into = _broadcast(manifest, requirement.into, shapes)
    if not ir.fits_into(source, into):
        raise ArgumentError(
            f"{manifest.operator}: {requirement.what} of shape {source} must broadcast into {into}"
        )


# ---------------------------------------------------------------------------------------------
# Outputs


def check_out(out: Any, spec: Tensor, shape: tuple[int, ...], operator: str) -> np.ndarray:
    """View a caller's output array as NumPy.

    Raises:
        ArgumentTypeError: It is no array that can be written, or of another dtype.
        ArgumentError: Its shape is another, or it is read-only.
    """
    what = f"{operator}: out for {spec.name}"
    if is_torch(out):
        if out.requires_grad:
            raise ArgumentError(f"{what} requires grad, and cannot be written in place")
        array = _from_torch(out, what)
    elif isinstance(out, np.ndarray):
        array = np.asarray(out)
    else:
        raise ArgumentTypeError(
            f"{what} must be a NumPy array or a torch tensor (not {type(out).__name__})"
        )
    if dtype_name(array.dtype) != spec.dtype:
        order = "" if array.dtype.isnative else " of foreign byte order"
        raise ArgumentTypeError(
            f"{what}.dtype must be {spec.dtype} (not {array.dtype.name}{order})"
        )
    if array.shape != shape:
        raise ArgumentError(f"{what}.shape must be {shape} (not {array.shape})")
    if not array.flags.writeable:
        raise ArgumentError(f"{what} is read-only", "pass a writable array, or leave out away")
    if repeats_elements(array.shape, array.strides):
        raise ArgumentError(
            f"{what} has several elements in one place (strides {array.strides})",
            "pass an array whose elements lie apart",
        )
    return array


def repeats_elements(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """True where an array has several elements in one place: a dimension that does not move.

    >>> repeats_elements((4, 3), (0, 4)), repeats_elements((1, 3), (0, 4))
    (True, False)
    """
    return 0 not in shape and any(d > 1 and not s for d, s in zip(shape, strides, strict=True))


def allocate(spec: Tensor, shape: tuple[int, ...], like: Sequence[Any]) -> tuple[Any, np.ndarray]:
    """Make an output: a torch tensor where an input is one, else a NumPy array.

    Returns:
        What the caller gets, and a NumPy view of it.

    Raises:
        ArgumentError: No memory could hold it.
    """
    if ir.size(max(d, 1) for d in shape) * DTYPES[spec.dtype].itemsize >= 2**63:
        raise ArgumentError(f"the output {spec.name} of shape {shape} is larger than any memory")
    if any(is_torch(x) for x in like):
        torch = sys.modules["torch"]
        tensor = torch.empty(shape, dtype=getattr(torch, spec.dtype))
        return tensor, _from_torch(tensor, spec.name)
    array = memory.empty(shape, DTYPES[spec.dtype].numpy)
    return array, array


# ---------------------------------------------------------------------------------------------
# Addresses


def is_addressable(array: np.ndarray) -> bool:
    """True where the kernel can take an array as it lies: aligned, strides in whole elements."""
    itemsize = array.dtype.itemsize
    return array.flags.aligned and all(s % itemsize == 0 for s in array.strides)


def apart_from(array: np.ndarray, outs: Sequence[np.ndarray]) -> np.ndarray:
    """The input itself, or a copy where writing an output would change it under way."""
    for out in outs:
        if not np.may_share_memory(array, out):
            continue
        same = (
            len(outs) == 1
            and array.ctypes.data == out.ctypes.data
            and (array.shape, array.strides) == (out.shape, out.strides)
            and array.dtype.itemsize == out.dtype.itemsize
        )
        if not same:
            return array.copy()
    return array


def describe(arrays: Sequence[np.ndarray], dtypes: Sequence[str]) -> np.ndarray:
    """The description of arrays in the CPU's memory."""
    return pack(
        (x.ctypes.data, dtype, 0, x.shape, [s // x.dtype.itemsize for s in x.strides])
        for x, dtype in zip(arrays, dtypes, strict=True)
    )


def pack(rows: Iterable[tuple[int, str, int, Sequence[int], Sequence[int]]]) -> np.ndarray:
    """The description of arrays that compiler/entry.c reads: see prepare_from_description.

    Args:
        rows: Of each array its address, its dtype, the number of its device, its shape and its
            strides in elements.
    """
    words: list[int] = []
    for address, dtype, device, shape, strides in rows:
        words += [address, *dlpack_type(dtype), device, len(shape), *shape, *strides]
    return np.array(words, np.int64)
