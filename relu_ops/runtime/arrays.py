"""What array kinds become what pointers.

The native operator takes arrays as they are. Everything here is the careful way, taken where that
failed: it finds out what is wrong and says so, or makes what the kernel can take. Nothing of the
caller's is written but `out`. Shapes are the core's to check.
"""

from __future__ import annotations

import math
import sys
from array import array as python_array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from relu_ops.contract.semantics import DTYPES, dtype_name
from relu_ops.errors import ArgumentError, ArgumentTypeError
from relu_ops.native._python import LIMITS
from relu_ops.runtime import carried, memory

if TYPE_CHECKING:
    from relu_ops.runtime.operator import Tensor

_KIND_ORDER = ("bool", "uint", "int", "float")
_DLPACK_CPU = 1
MAXIMUM_ARRAY_RANK = LIMITS["RANK"]
OUT_HINT = "pass an array of the output's dtype and shape, or leave out away"


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
        ArgumentError: It is not in the CPU's memory, a number does not fit the dtype, or it carries
            what the result would not: a mask, nulls, a unit, a gradient.
    """
    what = f"{operator}: {spec.name}"
    carried.check(x, what)
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
            f"convert it first, {_conversion(x, spec)}",
        )
    if array.ndim > MAXIMUM_ARRAY_RANK:
        raise ArgumentError(
            f"{what} has {array.ndim} dimensions; at most {MAXIMUM_ARRAY_RANK} are supported",
            "reshape it first: dimensions that lie together can be one",
        )
    return array.astype(native, copy=False)


def _conversion(x: Any, spec: Tensor) -> str:
    """How an argument is converted to the dtype of an input."""
    if is_torch(x):
        return f"for example with {spec.name}.to(torch.{spec.dtype})"
    if spec.dtype == "bfloat16":
        return "with astype(ml_dtypes.bfloat16)"
    return f"for example with {spec.name}.astype({spec.dtype!r})"


def _from_torch(x: Any, what: str) -> np.ndarray:
    """View a tensor that is nothing but its memory."""
    torch = sys.modules["torch"]
    plain = plain_tensor(x, what)
    try:
        if plain.dtype == torch.bfloat16:
            return plain.view(torch.uint16).numpy().view(DTYPES["bfloat16"].numpy)
        return plain.numpy()
    except Exception as error:  # torch's, or of a mode that somebody has put around it
        raise _without_memory(what, error) from error


def _without_memory(what: str, error: Exception) -> ArgumentTypeError:
    return ArgumentTypeError(
        f"{what} has no plain memory: {str(error).partition(chr(10))[0]}",
        "pass an ordinary torch.Tensor in the CPU's memory",
    )


def plain_tensor(x: Any, what: str, device: str = "cpu") -> Any:
    """A tensor that is nothing but its memory, on a kind of device.

    A gradient that would be lost, and tensors that stand for something else (sparse, meta, fake,
    wrapped by torch.func), are refused; a negated or conjugated view is resolved.
    """
    torch = sys.modules["torch"]
    _check_dense(x, what, device)
    if x.requires_grad and torch.is_grad_enabled():
        name = what.split()[-1]
        raise ArgumentError(
            f"{what} requires a gradient, which this operator does not pass on",
            "call relu_ops.interop.torch.wrap(operator), which passes it on; or pass "
            f"{name}.detach(), or call it under torch.no_grad(), if none is wanted",
        )
    try:
        return x.detach().resolve_conj().resolve_neg()
    except Exception as error:
        raise _without_memory(what, error) from error


def tensors_of_every_nature() -> tuple[Any, ...]:
    """Tensors of torch, of which one is negated, one requires a gradient and one does neither.

    For native/python_tensors.c, which asks torch's library what it otherwise asks Python, and
    compares the answers once. No mode that somebody has put around the call sees them made.
    """
    torch = sys.modules["torch"]
    dispatch, functions = torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction()
    with dispatch, functions, torch.inference_mode(False):
        plain = torch.zeros(1, device="cpu", dtype=torch.float32)
        negated = torch.zeros(1, device="cpu", dtype=torch.complex64).conj().imag
        return plain, negated, plain.clone().requires_grad_()


def _check_dense(x: Any, what: str, device: str) -> None:
    torch, name = sys.modules["torch"], what.split()[-1]
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        raise ArgumentTypeError(
            f"{what} is wrapped by a transformation of torch.func, which this operator does not "
            "know",
            "call it outside of vmap, grad and jvp",
        )
    if x.layout is not torch.strided:
        raise ArgumentTypeError(
            f"{what} must be a dense tensor (not {x.layout})", f"pass {name}.to_dense()"
        )
    if x.device.type == "meta":
        raise ArgumentError(
            f"{what} is on the device meta: it has a shape and no elements",
            "pass a tensor in the CPU's memory" if device == "cpu" else "pass one on the device",
        )
    if x.device.type != device:
        raise ArgumentError(
            f"{what} is on the device {x.device}; this operator runs on "
            f"{'the CPU' if device == 'cpu' else device}",
            f"move it with {name}.{device}()",
        )


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
            "copy it to the CPU first",
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
        ArgumentError: What it becomes carries what the result would not.
    """
    try:
        found = np.asanyarray(x)
    except Exception as error:  # another library's: a JAX value while it is traced, for example
        raise ArgumentTypeError(
            f"{what} cannot be made an array: {str(error).partition(chr(10))[0]}"
        ) from error
    carried.check(found, what)  # a variable of a file becomes a masked array
    return np.asarray(found)


def _from_python(x: Any, spec: Tensor, what: str) -> np.ndarray:
    """Convert numbers and (nested) sequences, weakly typed as NumPy treats Python scalars."""
    try:
        found = np.asarray(x)
    except (ValueError, TypeError, OverflowError) as error:
        raise ArgumentTypeError(
            f"{what} cannot be made an array: {error}",
            "pass an array, a number, or sequences of numbers that are equally long",
        ) from error
    target = DTYPES[spec.dtype]
    source = dtype_name(found.dtype)
    if source is None:
        raise ArgumentTypeError(
            f"{what} must be an array of {spec.dtype} (not {_kind_of(x)})",
            "pass an array, a number, or a sequence of numbers",
        )
    kind = DTYPES[source].kind
    weak = {"int": "uint"}.get(kind, kind)  # a Python int has no sign of its own
    if found.size and _KIND_ORDER.index(weak) > _KIND_ORDER.index(target.kind):
        raise ArgumentTypeError(
            f"{what} must be {spec.dtype}; it holds numbers of kind {kind}, which it cannot keep",
            f"convert it on purpose, for example with numpy.array(x, {spec.dtype!r})",
        )
    try:
        return np.asarray(x if found.size else found, dtype=target.numpy)
    except OverflowError as error:
        bounds = np.iinfo(target.numpy)
        raise ArgumentError(
            f"{what}: {error}", f"{spec.dtype} holds {bounds.min} to {bounds.max}"
        ) from error


def _kind_of(x: Any) -> str:
    """What is neither a number nor a sequence of numbers; of a sequence, what it holds.

    >>> _kind_of("a"), _kind_of([1, "a"]), _kind_of([2**70])
    ('str', 'list of str', 'list of int beyond 64 bits')
    """
    if not isinstance(x, list | tuple):
        return "int beyond 64 bits" if isinstance(x, int) else type(x).__name__
    strange = (_kind_of(one) for one in x if dtype_name(np.asarray(one).dtype) is None)
    return f"{type(x).__name__} of {next(strange, 'numbers that no dtype holds together')}"


def is_view_of(view: np.ndarray, given: Any, spec: Tensor) -> bool:
    """False where what `as_numpy` made of a caller's array is apart from it: a copy.

    Numbers and sequences have no memory to be apart from.
    """
    has_memory = is_torch(given) or hasattr(given, "__dlpack__") or has_dtype(given)
    if isinstance(given, np.generic) or not has_memory or view.size == 0:
        return True
    return np.may_share_memory(as_numpy(given, spec, ""), view)


# ---------------------------------------------------------------------------------------------
# Outputs


def check_out(out: Any, spec: Tensor, shape: tuple[int, ...], operator: str) -> np.ndarray:
    """View a caller's output array as NumPy.

    Raises:
        ArgumentTypeError: It is no array that can be written, or of another dtype.
        ArgumentError: Its shape is another, it is read-only, or it carries a mask or a unit.
    """
    what = f"{operator}: out for {spec.name}"
    if is_torch(out):
        _check_writable(out, what)
        array = _from_torch(out, what)
    elif isinstance(out, np.ndarray):
        try:
            carried.check(out, what)
        except ArgumentError as error:
            hint = "pass a plain array (of a masked one, its data), or leave out away"
            raise ArgumentError(error.message, hint) from None
        array = np.asarray(out)
    else:
        raise ArgumentTypeError(
            f"{what} must be a NumPy array or a torch tensor (not {type(out).__name__})",
            OUT_HINT,
        )
    if dtype_name(array.dtype) != spec.dtype:
        order = "" if array.dtype.isnative else " of foreign byte order"
        raise ArgumentTypeError(
            f"{what}.dtype must be {spec.dtype} (not {array.dtype.name}{order})", OUT_HINT
        )
    if array.shape != shape:
        raise ArgumentError(f"{what}.shape must be {shape} (not {array.shape})", OUT_HINT)
    if not array.flags.writeable:
        raise ArgumentError(f"{what} is read-only", "pass a writable array, or leave out away")
    if repeats_elements(array.shape, array.strides):
        raise ArgumentError(
            f"{what} has several elements in one place (strides {array.strides})",
            "pass an array whose elements lie apart",
        )
    return array


def _check_writable(out: Any, what: str) -> None:
    reason = why_not_written(out)
    if reason is None:
        return
    requires = "pass a tensor that requires none, or leave out away"
    own = "pass a tensor of its own memory, such as torch.empty_like gives"
    raise ArgumentError(f"{what} {reason}", requires if out.requires_grad else own)


def why_not_written(out: Any) -> str | None:
    """The reason why a torch tensor cannot be an output; None where it can."""
    if out.requires_grad:
        return "requires grad, and cannot be written in place"
    if out.is_neg() or out.is_conj():  # resolving it would give a copy
        return "is a negated view, and cannot be written in place"
    return None


def repeats_elements(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """True where an array has several elements in one place: a dimension that does not move.

    >>> repeats_elements((4, 3), (0, 4)), repeats_elements((1, 3), (0, 4))
    (True, False)
    """
    return 0 not in shape and any(d > 1 and not s for d, s in zip(shape, strides, strict=True))


def allocate(spec: Tensor, shape: tuple[int, ...], like: Sequence[Any]) -> tuple[Any, np.ndarray]:
    """Make an output: a torch tensor where an input is one, else a NumPy array.

    An array has the memory order of the first input, where that is of the same shape.

    Returns:
        What the caller gets, and a NumPy view of it.

    Raises:
        ArgumentError: No memory could hold it.
    """
    if math.prod(max(d, 1) for d in shape) * DTYPES[spec.dtype].itemsize >= 2**63:
        raise ArgumentError(f"the output {spec.name} of shape {shape} is larger than any memory")
    if any(is_torch(x) for x in like):
        torch = sys.modules["torch"]
        tensor = torch.empty(shape, dtype=getattr(torch, spec.dtype), device="cpu")
        return tensor, _from_torch(tensor, spec.name)
    array = _empty_like(like[0] if like else None, shape, DTYPES[spec.dtype].numpy)
    return array, array


def _empty_like(first: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    if not isinstance(first, np.ndarray) or first.shape != shape or first.flags.c_contiguous:
        return memory.empty(shape, dtype)
    if first.flags.f_contiguous:
        return memory.empty(shape, dtype, "F")
    return np.empty_like(first, dtype, subok=False)


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
