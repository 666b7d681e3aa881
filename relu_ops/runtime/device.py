"""Calls on a CUDA device: which arrays are taken, and on which stream they are computed.

The fast way (native/python_tensors.c) takes exact torch tensors. Everything else comes here: arrays
of torch, CuPy, JAX and whatever speaks DLPack, taken where they lie. Nothing is copied: an array in
the CPU's memory is refused. A call is put on a stream and does not wait for it, JAX apart (see
there). No package of arrays is imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import ArgumentError, ArgumentTypeError
from relu_ops.native import _python as native
from relu_ops.native._python import BoundCall, Operator
from relu_ops.runtime import arrays, driver

Shape = tuple[int, ...]

_CPU, _CUDA = 1, 2
"""Of DLPack's kinds of devices."""

_DEFAULT_STREAMS = (0, 1)
"""The handles of a device's default stream: none, and CU_STREAM_LEGACY, which DLPack calls it."""

_NO_WAITING = -1
"""In place of a stream: an array is taken as it is, without a wait."""

_SHAPE, _READ_ONLY = 6, 8
"""Places in a row of `native.capsule_row`."""


# ---------------------------------------------------------------------------------------------
# Packages of arrays


class Package(Protocol):
    """What is to be known of a package's arrays."""

    name: str
    waits: bool
    """True where who reads an output joins no stream, so that a call has to be over."""
    has_stream: bool
    """True where it has a current stream, on which its arrays are ready."""

    def owns(self, x: Any) -> bool:
        """True for an array of this package."""

    def plain(self, x: Any, what: str) -> Any:
        """The array as it lies in memory."""

    def why_not_written(self, x: Any) -> str | None:
        """The reason why an array cannot be an output."""

    def empty(self, shape: Shape, dtype: str, device: int, stream: int | None) -> Any:
        """A new array, whose memory is ordered by the stream; None is the current one."""

    def stream(self, device: int) -> int:
        """The handle of the current stream."""


class Torch:
    """Tensors of torch."""

    name, waits, has_stream = "torch", False, True

    def owns(self, x: Any) -> bool:
        """True for an array of this package."""
        return arrays.is_torch(x)

    def plain(self, x: Any, what: str) -> Any:
        """The tensor as it lies in memory: a negated or conjugated view is resolved."""
        return arrays.plain_tensor(x, what, "cuda")

    def why_not_written(self, x: Any) -> str | None:
        """The reason why a tensor cannot be an output."""
        return arrays.why_not_written(x)

    def empty(self, shape: Shape, dtype: str, device: int, stream: int | None) -> Any:
        """A new tensor, whose memory is ordered by the stream."""
        torch = sys.modules["torch"]
        where = {"dtype": getattr(torch, dtype), "device": f"cuda:{device}"}
        if stream is None:
            return torch.empty(shape, **where)
        # torch makes a new stream of the handle 0, and refuses 1.
        on = (
            torch.cuda.default_stream(device)
            if stream in _DEFAULT_STREAMS
            else torch.cuda.ExternalStream(stream, device=device)
        )
        with torch.cuda.stream(on):
            return torch.empty(shape, **where)

    def stream(self, device: int) -> int:
        """The handle of torch's current stream."""
        return int(sys.modules["torch"].cuda.current_stream(device).cuda_stream)


class Cupy:
    """Arrays of CuPy."""

    name, waits, has_stream = "CuPy", False, True

    def owns(self, x: Any) -> bool:
        """True for an array of this package."""
        cupy = sys.modules.get("cupy")
        return cupy is not None and isinstance(x, cupy.ndarray)

    def plain(self, x: Any, what: str) -> Any:
        """The array itself."""
        return x

    def why_not_written(self, x: Any) -> str | None:
        """CuPy's arrays can always be written."""
        return None

    def empty(self, shape: Shape, dtype: str, device: int, stream: int | None) -> Any:
        """A new array, whose memory is ordered by the stream."""
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(device):
            if stream is None:
                return cupy.empty(shape, DTYPES[dtype].numpy)
            on = (
                cupy.cuda.Stream.null
                if stream in _DEFAULT_STREAMS
                else cupy.cuda.ExternalStream(stream, device)
            )
            with on:
                return cupy.empty(shape, DTYPES[dtype].numpy)

    def stream(self, device: int) -> int:
        """The handle of CuPy's current stream."""
        cuda = sys.modules["cupy"].cuda
        with cuda.Device(device):
            return int(cuda.get_current_stream().ptr)


class Jax:
    """Arrays of JAX, which has no current stream to join: a call waits until it is done.

    Inputs are ready for the stream by DLPack. An output is a new array of JAX's own that nobody
    else has seen, filled where it lies.
    """

    name, waits, has_stream = "JAX", True, False

    def owns(self, x: Any) -> bool:
        """True for an array of this package."""
        jax = sys.modules.get("jax")
        return jax is not None and isinstance(x, jax.Array)

    def plain(self, x: Any, what: str) -> Any:
        """The array itself, if it is a single one."""
        jax = sys.modules["jax"]
        if isinstance(x, jax.core.Tracer):
            raise ArgumentTypeError(
                f"{what} is traced by a transformation of JAX, which this operator does not know",
                "call it outside of jit, vmap and grad",
            )
        if len(x.devices()) != 1:
            raise ArgumentError(f"{what} is spread over several devices", "pass one device's part")
        return x

    def why_not_written(self, x: Any) -> str | None:
        """JAX's arrays never change."""
        return "is an array of JAX, which cannot be written"

    def empty(self, shape: Shape, dtype: str, device: int, stream: int | None) -> Any:
        """A new array, computed."""
        jax = sys.modules["jax"]
        (on,) = [d for d in jax.local_devices(backend="gpu") if d.local_hardware_id == device]
        made = jax.numpy.empty(shape, dtype, device=on).block_until_ready()
        if made.dtype.name != dtype:
            raise ArgumentTypeError(
                f"JAX makes arrays of {made.dtype.name} where {dtype} is asked for",
                "jax.config.update('jax_enable_x64', True)",
            )
        return made

    def stream(self, device: int) -> int:
        """The device's default stream."""
        return 0


class AnyDlpack:
    """Whatever speaks DLPack, of a package that is not known: on the default stream, into `out`."""

    name, waits, has_stream = "DLPack", False, False

    def owns(self, x: Any) -> bool:
        """True for what can be handed over by DLPack."""
        return hasattr(x, "__dlpack__") and hasattr(x, "__dlpack_device__")

    def plain(self, x: Any, what: str) -> Any:
        """The array itself."""
        return x

    def why_not_written(self, x: Any) -> str | None:
        """Its own DLPack says it."""
        return None

    def empty(self, shape: Shape, dtype: str, device: int, stream: int | None) -> Any:
        """Nobody knows how to make one."""
        raise ArgumentError(
            "out must be given where the inputs are neither of torch nor of CuPy nor of JAX",
            "pass an array on the device, of the output's dtype and shape",
        )

    def stream(self, device: int) -> int:
        """The device's default stream."""
        return 0


PACKAGES: tuple[Package, ...] = (Torch(), Cupy(), Jax(), AnyDlpack())
"""Every package whose arrays are taken; the first that owns one counts."""


def stream_handle(stream: Any) -> int:
    """The handle of a stream: an int, or what torch, CuPy and cuda.core call a stream.

    >>> stream_handle(7)
    7

    Raises:
        ArgumentTypeError: It is none of them.
    """
    if isinstance(stream, int) and not isinstance(stream, bool) and 0 <= stream < 1 << 64:
        return stream
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for attribute in ("cuda_stream", "ptr"):
        if hasattr(stream, attribute):
            return int(getattr(stream, attribute))
    shown = repr(stream) if isinstance(stream, int) else type(stream).__name__
    raise ArgumentTypeError(
        f"stream must be a handle, or a stream of torch or CuPy (not {shown})",
        "pass for example torch.cuda.current_stream(), or leave it out",
    )


# ---------------------------------------------------------------------------------------------
# Calls


class Adapted(NamedTuple):
    """The arguments of a call, taken where they lie.

    Attributes:
        rows: Inputs and outputs, as the core takes them.
        held: What keeps their memory.
        package: Whose arrays they are.
        device: The number of their device.
        stream: The handle of the stream to compute on.
        follows: Whether nobody named that stream: it is the current one.
        returned: What the caller gets.
    """

    rows: tuple[Any, ...]
    held: list[Any]
    package: Package
    device: int
    stream: int
    follows: bool
    returned: Any


def call(op: Operator, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    """Compute on a stream, whatever the arguments are.

    Raises:
        ArgumentTypeError: An argument has the wrong type or dtype.
        ArgumentError: An argument has the wrong shape or device.
        DeviceError: The device or its driver failed.
    """
    adapted = _adapt(op, inputs, keywords)
    op.compute_on(adapted.rows, adapted.stream)
    if adapted.package.waits:
        driver.synchronize(adapted.device, adapted.stream)
    return adapted.returned


def bind(op: Operator, inputs: tuple[Any, ...], keywords: Mapping[str, Any]) -> BoundCall:
    """Bind a call. Each run goes to the stream that is given or, if none is, then current.

    Raises:
        ArgumentTypeError: As for a call.
        ArgumentError: As for a call, or the arrays are of JAX, which never change.
    """
    adapted = _adapt(op, inputs, keywords)
    package, device = adapted.package, adapted.device
    if package.waits:
        raise ArgumentError(
            f"{op.name}: arrays of {package.name} cannot be bound: they never change",
            "call the operator, which gives a new one each time",
        )
    return op.bound_on(
        adapted.rows,
        None if adapted.follows else adapted.stream,
        lambda: package.stream(device),
        isinstance(package, Torch),
        inputs,
        adapted.returned,
        adapted.held,
    )


def _adapt(op: Operator, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> Adapted:
    from relu_ops.runtime import operator as careful

    out, stream = _keywords(op, keywords)
    careful.check_input_count(op, inputs)
    outs = careful.outs_of(op, out)
    named = [*zip(op.inputs, inputs, strict=True)]
    named += [(t, x) for t, x in zip(op.outputs, outs, strict=True) if x is not None]
    owners = [_package_of(op, tensor, x) for tensor, x in named]
    if not owners:
        raise ArgumentError(f"{op.name} has no inputs: pass out", "an array on the device")
    package = owners[0]
    if stream is None and any(owner is not package for owner in owners):
        names = " and ".join(sorted({owner.name for owner in owners}))
        raise ArgumentError(
            f"{op.name}: arrays of {names} have each a current stream of their own",
            "pass the stream to compute on, with stream=",
        )
    device = _device_of(op, named)
    handle = package.stream(device) if stream is None else stream_handle(stream)
    taken = _Taken(op, handle, stream is None)
    views = [
        taken.take(owner, x, f"{op.name}: {tensor.name}")
        for owner, (tensor, x) in zip(owners, named[: len(inputs)], strict=False)
    ]
    shapes = op.output_shapes([view[_SHAPE] for view in views])
    returned = [
        taken.make(package, tensor, shape, device, None if stream is None else handle)
        if one is None
        else taken.take_out(one, tensor)
        for one, tensor, shape in zip(outs, op.outputs, shapes, strict=True)
    ]
    result = returned[0] if len(returned) == 1 else tuple(returned)
    return Adapted(tuple(taken.rows), taken.held, package, device, handle, stream is None, result)


def _keywords(op: Operator, keywords: Mapping[str, Any]) -> tuple[Any, Any]:
    """The values of `out` and of `stream`."""
    unknown = [name for name in keywords if name not in ("out", "stream")]
    if unknown:
        raise ArgumentTypeError(
            f"{op.name} takes the keywords out and stream on a device (not {unknown[0]!r})",
            "pass inputs by position",
        )
    return keywords.get("out"), keywords.get("stream")


def _package_of(op: Operator, tensor: Any, x: Any) -> Package:
    for package in PACKAGES:
        if package.owns(x):
            return package
    raise ArgumentTypeError(
        f"{op.name}: {tensor.name} must be an array on {op.device} (not {type(x).__name__})",
        "pass one of torch, CuPy or JAX, or one that speaks DLPack",
    )


def _device_of(op: Operator, named: Sequence[tuple[Any, Any]]) -> int:
    """The number of the device that the first array is on; all must be on one."""
    first = -1
    for tensor, x in named:
        kind, number = map(int, x.__dlpack_device__())
        what = f"{op.name}: {tensor.name}"
        if kind != _CUDA:
            where = "in the CPU's memory" if kind == _CPU else f"on DLPack's device {kind}"
            numpy = isinstance(x, np.ndarray | np.generic)
            raise ArgumentError(
                f"{what} is {where}; this operator runs on {op.device}",
                "copy it to the device first, for example with torch.from_numpy(x).cuda()"
                if numpy
                else "move it to the device, or load the bundle with device='cpu'",
            )
        if first not in (-1, number):
            raise ArgumentError(
                f"{what} is on cuda:{number}; {named[0][0].name} is on cuda:{first}: all arrays "
                "must be on one device",
                "copy one of them to the device of the other",
            )
        first = number
    return first


class _Taken:
    """Arrays that were taken by DLPack, for computing on a stream: by default the current one.

    Attributes:
        rows: What the core is given of each, in order.
        held: What keeps their memory.
    """

    def __init__(self, op: Operator, stream: int, follows: bool) -> None:
        self.op, self.stream, self.follows = op, stream, follows
        self.rows: list[Any] = []
        self.held: list[Any] = []

    def take(self, package: Package, x: Any, what: str) -> tuple[Any, ...]:
        """Take an array; whoever made it lets the stream wait for it, if it must. Its row."""
        plain = package.plain(x, what)
        is_ready = self.follows and package.has_stream
        try:
            capsule = _capsule(plain, _NO_WAITING if is_ready else self.stream or 1)
            row = native.capsule_row(capsule)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise ArgumentTypeError(
                f"{what} cannot be handed over by DLPack: {str(error).partition(chr(10))[0]}",
                "pass an ordinary array on the device",
            ) from error
        self.rows.append(row)
        self.held += [plain, capsule]
        return row

    def take_out(self, x: Any, tensor: Any) -> Any:
        """Take what a caller passed as an output; the same."""
        what = f"{self.op.name}: out for {tensor.name}"
        package = _package_of(self.op, tensor, x)
        reason = package.why_not_written(x)
        if reason is not None:
            raise ArgumentError(f"{what} {reason}", "pass another one, or leave out away")
        row = self.take(package, x, what)
        if row[_READ_ONLY]:
            raise ArgumentError(f"{what} is read-only", "pass a writable array")
        return x

    def make(
        self, package: Package, tensor: Any, shape: Shape, device: int, stream: int | None
    ) -> Any:
        """Make an output, and take it."""
        made = package.empty(shape, tensor.dtype, device, stream)
        self.take(package, made, f"{self.op.name}: {tensor.name}")
        return made


def _capsule(x: Any, stream: int) -> Any:
    """An array by DLPack; producers before version 1 know no version to ask for."""
    try:
        return x.__dlpack__(stream=stream, max_version=(1, 1))
    except TypeError:
        return x.__dlpack__(stream=stream)
