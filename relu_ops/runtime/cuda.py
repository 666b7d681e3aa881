"""Runs an operator on a CUDA device: which arrays become what pointers, and on which stream.

Torch, CuPy and JAX arrays are taken where they lie, each of them by the methods of its own
package, which is never imported here. Nothing is copied behind the caller's back: an array in the
CPU's memory is refused. A call is put on a stream and does not wait for it, JAX apart (see there).
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from relu_ops.bundle import Bundle, Tensor
from relu_ops.errors import ArgumentError, ArgumentTypeError, DeviceError
from relu_ops.runtime import arrays, driver
from relu_ops.runtime.library import tvm_ffi
from relu_ops.runtime.operator import Operator
from relu_ops.semantics import DTYPES
from relu_ops.targets import Target

_REFUSALS = (TypeError, ValueError, BufferError, RuntimeError)

_DEFAULT_STREAMS = (0, 1)
"""The handles of a device's default stream: none, and CU_STREAM_LEGACY."""


@dataclass(frozen=True)
class View:
    """An array in a device's memory; strides are in elements.

    Attributes:
        address: Where its first element is.
        dtype: Its dtype's name, in our table or not.
        shape: Its shape.
        strides: Its strides.
        device: The number of its device; None where it is in the CPU's memory.
    """

    address: int
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    device: int | None


# ---------------------------------------------------------------------------------------------
# Kinds of arrays


class Kind(Protocol):
    """What is to be known of a package's arrays."""

    name: str

    def owns(self, x: Any) -> bool:
        """True for an array of this kind."""

    def view(self, x: Any) -> View:
        """Where an array is."""

    def why_not_written(self, x: Any) -> str | None:
        """The reason why an array cannot be an output."""

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int | None) -> Any:
        """A new array, whose memory is ordered by the stream; None is the current one."""

    def stream(self, device: int) -> int:
        """The handle of the stream that calls go to."""

    def finish(self, wait: Callable[[], None]) -> None:
        """What is to be done before outputs are given out."""


class Torch:
    """Tensors of torch."""

    name = "torch"

    def owns(self, x: Any) -> bool:
        """True for an array of this kind."""
        return arrays.is_torch(x)

    def view(self, x: Any) -> View:
        """Where an array is."""
        x = x.detach()
        if x.is_conj() or x.is_neg():
            raise ArgumentError("a tensor with a pending conjugation or negation was passed")
        dtype = str(x.dtype).rpartition(".")[2]
        device = (x.device.index or 0) if x.device.type == "cuda" else None
        return View(x.data_ptr(), dtype, tuple(x.shape), tuple(x.stride()), device)

    def why_not_written(self, x: Any) -> str | None:
        """The reason why an array cannot be an output."""
        return "requires grad, and cannot be written in place" if x.requires_grad else None

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int | None) -> Any:
        """A new array, whose memory is ordered by the stream."""
        torch = sys.modules["torch"]
        with (
            contextlib.nullcontext()
            if stream is None
            else torch.cuda.stream(
                # torch makes a new stream of the handle 0, and refuses 1.
                torch.cuda.default_stream(device)
                if stream in _DEFAULT_STREAMS
                else torch.cuda.ExternalStream(stream, device=device)
            )
        ):
            return torch.empty(shape, dtype=getattr(torch, dtype), device=f"cuda:{device}")

    def stream(self, device: int) -> int:
        """The current stream's handle."""
        torch = sys.modules["torch"]
        # What torch's own compiler asks: it makes no stream object, which takes a microsecond.
        raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)
        return int(raw(device) if raw else torch.cuda.current_stream(device).cuda_stream)

    def finish(self, wait: Callable[[], None]) -> None:
        """Nothing: whoever reads them joins the stream."""


class Cupy:
    """Arrays of CuPy."""

    name = "CuPy"

    def owns(self, x: Any) -> bool:
        """True for an array of this kind."""
        cupy = sys.modules.get("cupy")
        return cupy is not None and isinstance(x, cupy.ndarray)

    def view(self, x: Any) -> View:
        """Where an array is."""
        itemsize = x.dtype.itemsize
        if any(stride % itemsize for stride in x.strides):
            raise ArgumentError("an array was passed whose strides are not whole elements")
        strides = tuple(stride // itemsize for stride in x.strides)
        return View(x.data.ptr, x.dtype.name, tuple(x.shape), strides, int(x.device.id))

    def why_not_written(self, x: Any) -> str | None:
        """CuPy's arrays can always be written."""
        return None

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int | None) -> Any:
        """A new array, whose memory is ordered by the stream."""
        cupy = sys.modules["cupy"]
        on = (
            contextlib.nullcontext()
            if stream is None
            else cupy.cuda.Stream.null
            if stream in _DEFAULT_STREAMS
            else cupy.cuda.ExternalStream(stream, device)
        )
        with cupy.cuda.Device(device), on:
            return cupy.empty(shape, DTYPES[dtype].numpy)

    def stream(self, device: int) -> int:
        """The current stream's handle."""
        cuda = sys.modules["cupy"].cuda
        with cuda.Device(device):
            return int(cuda.get_current_stream().ptr)

    def finish(self, wait: Callable[[], None]) -> None:
        """Nothing: whoever reads them joins the stream."""


class Jax:
    """Arrays of JAX, which has no current stream to join: a call waits before and after.

    An output is a new array of JAX's own that nobody else has seen, filled where it lies.
    """

    name = "JAX"

    def owns(self, x: Any) -> bool:
        """True for an array of this kind."""
        jax = sys.modules.get("jax")
        return jax is not None and isinstance(x, jax.Array)

    def view(self, x: Any) -> View:
        """Where an array is, once it is computed."""
        x.block_until_ready()
        if len(x.devices()) != 1:
            raise ArgumentError("an array was passed that is spread over several devices")
        (on,) = x.devices()
        device = int(on.local_hardware_id or 0) if on.platform in ("gpu", "cuda") else None
        compact = tuple(int(np.prod(x.shape[d + 1 :], dtype=np.int64)) for d in range(x.ndim))
        address = 0 if x.size == 0 else x.unsafe_buffer_pointer()
        return View(address, x.dtype.name, tuple(x.shape), compact, device)

    def why_not_written(self, x: Any) -> str | None:
        """JAX's arrays never change."""
        return "is an array of JAX, which cannot be written"

    def empty(self, shape: tuple[int, ...], dtype: str, device: int, stream: int | None) -> Any:
        """A new array, computed."""
        jax = sys.modules["jax"]
        (on,) = [d for d in jax.local_devices(backend="gpu") if d.local_hardware_id == device]
        return jax.numpy.empty(shape, dtype, device=on).block_until_ready()

    def stream(self, device: int) -> int:
        """The device's default stream."""
        return 0

    def finish(self, wait: Callable[[], None]) -> None:
        """Wait: JAX reads on streams of its own."""
        wait()


KINDS: tuple[Kind, ...] = (Torch(), Cupy(), Jax())
"""Every kind of array that is taken."""


def kind_of(x: Any) -> Kind | None:
    """The kind of an array; None for anything else."""
    return next((kind for kind in KINDS if kind.owns(x)), None)


def stream_handle(stream: Any) -> int:
    """The handle of a stream: an int, or what torch, CuPy and cuda.core call a stream.

    Raises:
        ArgumentTypeError: It is none of them.
    """
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for attribute in ("cuda_stream", "ptr"):
        if hasattr(stream, attribute):
            return int(getattr(stream, attribute))
    raise ArgumentTypeError(
        f"stream must be a handle or a stream of torch or CuPy (not {type(stream).__name__})"
    )


@functools.cache
def _plain_tensors() -> tuple[Any, ...]:
    """The types that tvm-ffi reads, with torch's current stream, by torch's own C interface.

    None where it does not: then it would take them by DLPack, which tells no stream, and a call
    would be put on the default one. So it is for torch before 2.10, and for a tvm-ffi that does not
    know this interface's name, or was told to leave it alone.
    """
    torch = sys.modules["torch"]
    version = tuple(map(int, re.findall("[0-9]+", tvm_ffi().__version__)[:3]))
    told = os.environ.get("TVM_FFI_SKIP_DLPACK_C_EXCHANGE_API", "0") == "1"
    if told or version < (0, 1, 6) or not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        return ()
    return torch.Tensor, torch.nn.Parameter


def _are_plain(arrays: Sequence[Any], types: tuple[Any, ...]) -> bool:
    """Whether all are tensors that are what lies in memory: tvm-ffi overlooks a negation."""
    for x in arrays:  # noqa: SIM110  # a generator takes a tenth of a launch
        if x.__class__ not in types or x.is_neg():
            return False
    return True


# ---------------------------------------------------------------------------------------------
# The operator


class CudaOperator(Operator):
    """An operator on a CUDA device. Made by `relu_ops.load(path, device="cuda")`.

    Called as any operator, with torch, CuPy or JAX arrays on the device; the result is of the kind
    of the first array. A call is put on the current stream of that kind, or on `stream`, and
    returns at once: it can be captured in a CUDA graph.

    Attributes:
        device: "cuda:0", say: the device that was made ready.
    """

    def __init__(self, bundle: Bundle, target: Target, number: int) -> None:
        super().__init__(bundle, target)
        self.device = f"cuda:{number}"
        self._number = number
        assert self._library.prepare is not None
        with _device_errors():
            self._library.prepare(number, *driver.addresses())
        same = self.inputs and self.inputs[0].dtype == self.outputs[0].dtype
        self._torch_like_first = self._shaping == [0] and bool(same)

    # A device takes a stream where the CPU takes a number of threads.
    def __call__(  # type: ignore[override]
        self, *inputs: Any, out: Any = None, stream: Any = None
    ) -> Any:
        """Compute, on a stream.

        Args:
            *inputs: One array per input, of its dtype and of a shape that the model allows, all
                on one device.
            out: Where to write: an array (a sequence of them for several outputs) of the
                output's dtype and shape. It may be an input, but not overlap one otherwise.
            stream: Where to compute: a handle, or a stream of torch or CuPy; None for the
                current one of the arrays' kind.

        Returns:
            The output, or a tuple of outputs: `out` where it was given.

        Raises:
            ArgumentTypeError: An argument has the wrong type or dtype.
            ArgumentError: An argument has the wrong shape or device, or lies in a way that would
                need a copy.
            DeviceError: The device or its driver failed.
        """
        if stream is None and self._single and inputs:
            torch = sys.modules.get("torch")
            # tvm-ffi reads a tensor, and torch's current stream, in less time than Python needs
            # to look at either; whatever it or the entry refuses is looked at with care.
            if torch is not None and _are_plain(inputs, _plain_tensors()):
                result = out
                if result is None and self._torch_like_first:
                    result = torch.empty_like(inputs[0])
                if _are_plain((result,), _plain_tensors()) and not result.requires_grad:
                    with contextlib.suppress(*_REFUSALS):
                        self._library.call(*inputs, result)
                        return result
        call = self._adapted(inputs, out, stream)
        call.compute(self._library.call_views, call.description.ctypes.data)
        return call.returned

    def bind(  # type: ignore[override]
        self, *inputs: Any, out: Any = None, stream: Any = None
    ) -> Any:
        """Convert the arguments once; the returned call computes on them as often as wanted.

        Each call goes to the stream given here or, if none was, to the one that is then current.

        Args:
            *inputs: As for a call; kept alive.
            out: As for a call; made where it is not given.
            stream: As for a call.

        Raises:
            ArgumentTypeError, ArgumentError, DeviceError: As for a call.
        """
        call = self._adapted(inputs, out, stream)
        with _entry_errors(self.name):
            function = self._library.bind_views(call.description.ctypes.data)
        return CudaBoundCall(call, function, follows=stream is None)

    def _adapted(self, inputs: Sequence[Any], out: Any, stream: Any) -> Adapted:
        self._check_input_count(inputs)
        given = self._outs(out)
        named = [*zip(self.inputs, inputs, strict=True)]
        named += [(t, x) for t, x in zip(self.outputs, given, strict=True) if x is not None]
        kinds = [self._kind(tensor, x) for tensor, x in named]
        kind = kinds[0] if kinds else None
        if kind is None:
            raise ArgumentError(f"{self.name} has no inputs: pass out", "an array on the device")
        if stream is None and any(other is not kind for other in kinds):
            raise ArgumentError(
                f"{self.name}: arrays of {' and '.join(sorted({k.name for k in kinds}))} have "
                "each a current stream of their own",
                "pass the stream to compute on, with stream=",
            )
        views = [self._view(k, t, x) for k, (t, x) in zip(kinds, named, strict=True)]
        device = self._common_device(named, views)
        handle = kind.stream(device) if stream is None else stream_handle(stream)
        shapes = arrays.check_shapes(
            self.bundle.manifest, [view.shape for view in views[: len(inputs)]]
        )
        remaining = iter(zip(kinds[len(inputs) :], views[len(inputs) :], strict=True))
        returned, results = [], []
        for one, tensor, shape in zip(given, self.outputs, shapes, strict=True):
            if one is None:
                one = kind.empty(shape, tensor.dtype, device, None if stream is None else handle)
                results.append(self._made(kind, one, tensor))
            else:
                own, view = next(remaining)
                self._check_out(own, one, view, tensor, shape)
                results.append(view)
            returned.append(one)
        return Adapted(
            self.name,
            kind,
            device,
            handle,
            arrays.pack(
                (view.address, view.dtype, view.device or 0, view.shape, view.strides)
                for view in [*views[: len(inputs)], *results]
            ),
            tuple(inputs),
            returned[0] if self._single else tuple(returned),
        )

    def _made(self, kind: Kind, one: Any, tensor: Tensor) -> View:
        """Where a new output is."""
        view = kind.view(one)
        if view.dtype != tensor.dtype:
            raise ArgumentTypeError(
                f"{self.name}: {kind.name} makes arrays of {view.dtype} where {tensor.name} must "
                f"be {tensor.dtype}",
                "jax.config.update('jax_enable_x64', True)" if kind.name == "JAX" else None,
            )
        return view

    def _kind(self, tensor: Tensor, x: Any) -> Kind:
        kind = kind_of(x)
        if kind is not None:
            return kind
        what = "a NumPy array" if isinstance(x, np.ndarray | np.generic) else type(x).__name__
        raise ArgumentTypeError(
            f"{self.name}: {tensor.name} must be a torch, CuPy or JAX array on {self.device} "
            f"(not {what})",
            "copy it to the device first, for example with torch.from_numpy(x).cuda()"
            if isinstance(x, np.ndarray | np.generic)
            else "hand it over by DLPack, for example with torch.from_dlpack(x)",
        )

    def _view(self, kind: Kind, tensor: Tensor, x: Any) -> View:
        what = f"{self.name}: {tensor.name}"
        try:
            view = kind.view(x)
        except ArgumentError as error:
            raise ArgumentError(f"{what}: {error.message}", error.hint) from None
        if view.device is None:
            raise ArgumentError(
                f"{what} is in the CPU's memory; this operator runs on {self.device}",
                "move it to the device, or load the bundle with device='cpu'",
            )
        if view.dtype != tensor.dtype:
            raise ArgumentTypeError(f"{what}.dtype must be {tensor.dtype} (not {view.dtype})")
        if len(view.shape) > arrays.MAXIMUM_ARRAY_RANK:
            raise ArgumentError(
                f"{what} has {len(view.shape)} dimensions; at most 16 are supported"
            )
        return view

    def _common_device(self, named: Sequence[tuple[Tensor, Any]], views: Sequence[View]) -> int:
        first = views[0].device
        for (tensor, _), view in zip(named, views, strict=True):
            if view.device != first:
                raise ArgumentError(
                    f"{self.name}: {tensor.name} is on cuda:{view.device}; {named[0][0].name} is "
                    f"on cuda:{first}: all arrays must be on one device"
                )
        assert first is not None
        return first

    def _check_out(
        self, kind: Kind, out: Any, view: View, tensor: Tensor, shape: tuple[int, ...]
    ) -> None:
        what = f"{self.name}: out for {tensor.name}"
        if view.shape != shape:
            raise ArgumentError(f"{what}.shape must be {shape} (not {view.shape})")
        if (reason := kind.why_not_written(out)) is not None:
            raise ArgumentError(f"{what} {reason}", "leave out away")
        if arrays.repeats_elements(view.shape, view.strides):
            raise ArgumentError(f"{what} has several elements in one place, and cannot be written")

    def __repr__(self) -> str:
        return super().__repr__()[:-1] + f", device={self.device}>"

    def __reduce__(self) -> tuple[Callable[..., Operator], tuple[Any, ...]]:
        restore, arguments = super().__reduce__()
        return restore, (*arguments, self._number)


# ---------------------------------------------------------------------------------------------
# Calls


@dataclass(frozen=True)
class Adapted:
    """A call whose arguments were checked.

    Attributes:
        name: The operator's.
        kind: The kind of the arrays.
        device: The number of their device.
        stream: The handle of the stream to compute on.
        description: The arrays, as the entry reads them.
        inputs: The inputs, as they were passed.
        returned: What the caller gets.
    """

    name: str
    kind: Kind
    device: int
    stream: int
    description: np.ndarray
    inputs: tuple[Any, ...]
    returned: Any

    def compute(self, function: Callable[..., None], *arguments: int) -> None:
        """Call a function of the library on the stream."""
        ffi: Any = tvm_ffi()
        device = ffi.device("cuda", self.device)
        with _entry_errors(self.name), ffi.use_raw_stream(device, self.stream):
            function(*arguments)
        self.kind.finish(lambda: _wait(self.device, self.stream))


class CudaBoundCall:
    """A call with its arrays converted once: calling it computes into the same outputs again.

    Attributes:
        inputs: The input arrays, as they were passed.
        out: The output, or a tuple of outputs.
    """

    def __init__(self, adapted: Adapted, function: Callable[[], None], *, follows: bool) -> None:
        ffi: Any = tvm_ffi()
        self.inputs, self.out = adapted.inputs, adapted.returned
        self._adapted = adapted
        self._function = function
        self._follows = follows
        self._on_stream = ffi.use_raw_stream
        self._device = ffi.device("cuda", adapted.device)

    def __call__(self) -> None:
        """Compute."""
        own = self._adapted
        stream = own.kind.stream(own.device) if self._follows else own.stream
        try:
            with self._on_stream(self._device, stream):
                self._function()
        except (ValueError, RuntimeError) as error:  # _entry_errors takes as long as a launch
            with _entry_errors(own.name):
                raise error from None
        own.kind.finish(lambda: _wait(own.device, stream))


def _wait(device: int, stream: int) -> None:
    """Wait for a stream."""
    with _device_errors():
        driver.synchronize(device, stream)


@contextlib.contextmanager
def _entry_errors(name: str) -> Iterator[None]:
    """Turn what the entry refuses into our errors."""
    with _device_errors():
        try:
            yield
        except ValueError as error:
            text = str(error).partition("\n")[0]
            raise ArgumentError(
                text if text.startswith(name) else f"{name}: {text}",
                "pass arrays that lie apart, each at a multiple of its element's size",
            ) from None


@contextlib.contextmanager
def _device_errors() -> Iterator[None]:
    try:
        yield
    except (ArgumentError, ArgumentTypeError):
        raise
    except (RuntimeError, OSError) as error:
        raise DeviceError(str(error)) from None
