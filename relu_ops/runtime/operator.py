"""The operator: a checked bundle, one of its variants, and how it is called."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from relu_ops import bundle as bundles
from relu_ops.bundle import Bundle, Tensor, Term
from relu_ops.errors import ArgumentError, ArgumentTypeError, counted
from relu_ops.runtime import arrays, memory
from relu_ops.runtime.library import Library, open_library
from relu_ops.runtime.threads import check_count
from relu_ops.semantics import DTYPES
from relu_ops.targets import Target

_ndarray, _empty_like, _LEAST_BYTES = np.ndarray, np.empty_like, memory.LEAST_BYTES


class BoundCall(functools.partial[None]):
    """A call with its arrays converted once: calling it computes into the same outputs again.

    Attributes:
        name: The name of the operator.
        inputs: The input arrays, as they were passed.
        out: The output, or a tuple of outputs.
        views: What the call reads and writes; its function keeps them alive by itself.
    """

    name: str
    inputs: tuple[Any, ...]
    out: Any
    views: tuple[np.ndarray, ...]

    def __repr__(self) -> str:
        return f"<relu_ops.BoundCall of {self.name}>"

    def __reduce__(self) -> Any:
        raise ArgumentTypeError(
            f"{self.name}: a bound call belongs to its arrays, and cannot be pickled or copied",
            "pickle the operator and bind it again",
        )


class Operator:
    """A compiled operator. Made by `relu_ops.load` and `relu_ops.compile`.

    Call it with arrays: `y = op(x)`, `op(x, out=y)`, in place `op(x, out=x)`; with several outputs
    `out` is a sequence and so is the result. NumPy in, NumPy out; torch in, torch out; anything
    else that speaks DLPack on the CPU is taken, and gives NumPy arrays. Of a masked array the data
    are computed on, without the mask.

    Attributes:
        name: The name of the operator.
        inputs: Name, dtype and shape of every input.
        outputs: The same of every output.
        target: The target whose library is loaded.
        bundle: The bundle it came from.
    """

    def __init__(self, bundle: Bundle, target: Target) -> None:
        manifest = bundle.manifest
        self.name: str = manifest.operator
        self.inputs: tuple[Tensor, ...] = manifest.inputs
        self.outputs: tuple[Tensor, ...] = manifest.outputs
        self.target = target
        self.bundle = bundle
        entry = manifest.library(target.name)
        self._library: Library = open_library(
            bundle.contents[entry.path], f"{bundle.path}: {entry.path}", target.kind
        )
        self._compute = self._library.compute
        self._count, self._single = len(self.inputs), len(self.outputs) == 1
        self._dtypes = [tensor.dtype for tensor in self.inputs + self.outputs]
        self._shaping = _inputs_that_shape(manifest.output_terms)
        self._others = self._shaping[1:]
        self._output_dtype = DTYPES[self.outputs[0].dtype].numpy

    # The entry checks everything before it writes anything, so that a refusal can be answered by
    # the careful path from the start.

    def __call__(self, *inputs: Any, out: Any = None, threads: int | None = None) -> Any:
        """Compute.

        Args:
            *inputs: One array per input, of its dtype and of a shape that the model allows.
                Python numbers and sequences are converted.
            out: Where to write: an array (a sequence of them for several outputs) of the
                output's dtype and shape. It may be an input; an input that it overlaps otherwise
                is read as it was before.
            threads: How many threads this call uses at most, 1 to 256; None for the process's
                default (`relu_ops.set_num_threads`).

        Returns:
            The output, or a tuple of outputs: `out` where it was given.

        Raises:
            ArgumentTypeError: An argument has the wrong type or dtype.
            ArgumentError: An argument has the wrong shape or device, or there are too many; or
                threads is out of range.
        """
        result = self._new_output(inputs) if out is None else out
        if threads is None:
            done = self._compute(inputs, result)
        else:
            done = self._compute(inputs, result, check_count("threads", threads))
        return result if done is not None else self._careful_call(inputs, out, threads)

    def _new_output(self, inputs: tuple[Any, ...]) -> np.ndarray | None:
        """An output of the shape that the inputs broadcast to, where that is all there is to it.

        None otherwise. The entry checks the shape, as that of any output.
        """
        if len(inputs) != self._count or not self._shaping:
            return None
        for x in inputs:
            if type(x) is not _ndarray:
                return None
        x = inputs[self._shaping[0]]
        for k in self._others:
            if inputs[k].shape != x.shape:
                return self._broadcast_output(inputs)
        like = _empty_like if x.nbytes < _LEAST_BYTES else memory.empty_like
        return like(x, self._output_dtype)

    def _broadcast_output(self, inputs: tuple[Any, ...]) -> np.ndarray | None:
        try:
            shape = np.broadcast(*[inputs[k] for k in self._shaping]).shape
            return memory.empty(shape, self._output_dtype)
        except ValueError:  # they do not broadcast, or nothing could hold what they broadcast to
            return None

    def bind(self, *inputs: Any, out: Any = None, threads: int | None = None) -> BoundCall:
        """Convert the arguments once; the returned call computes on them as often as wanted.

        The arrays are kept alive, and read and written where they are: an array that would have
        to be copied (misaligned, foreign byte order, overlapping `out` in part) is refused.

        Args:
            *inputs: As for a call.
            out: As for a call; made where it is not given.
            threads: As for a call.

        Raises:
            ArgumentTypeError: As for a call.
            ArgumentError: As for a call, or an array would have to be copied.
        """
        views, results, returned = self._adapt(inputs, out)
        for tensor, given, view in zip(self.inputs, inputs, views, strict=True):
            if not arrays.is_view_of(view, given, tensor):
                raise ArgumentError(
                    f"{self.name}: {tensor.name} cannot be bound as it lies in memory: it would "
                    "have to be copied at every call",
                    "pass an aligned array of native byte order, apart from out",
                )
        for tensor, result in zip(self.outputs, results, strict=True):
            if not arrays.is_addressable(result):
                raise ArgumentError(f"{self.name}: out for {tensor.name} is misaligned")
        held = (*views, *results)
        description = arrays.describe(held, self._dtypes)
        described = (description.ctypes.data, _thread_count(threads))
        # What the one refuses without a word, the other refuses with one.
        function = self._library.bound(*described, held) or self._library.bind_views(*described)
        call = BoundCall(function)
        call.name, call.inputs, call.out, call.views = self.name, inputs, returned, held
        return call

    def _careful_call(self, inputs: Sequence[Any], out: Any, threads: int | None) -> Any:
        views, results, returned = self._adapt(inputs, out)
        targets = [r if arrays.is_addressable(r) else np.empty_like(r) for r in results]
        description = arrays.describe([*views, *targets], self._dtypes)
        self._library.call_views(description.ctypes.data, _thread_count(threads))
        for result, target in zip(results, targets, strict=True):
            if target is not result:
                np.copyto(result, target)
        return returned

    def _adapt(
        self, inputs: Sequence[Any], out: Any
    ) -> tuple[list[np.ndarray], list[np.ndarray], Any]:
        """Check everything; return arrays that the kernel can take, and what the caller gets."""
        self._check_input_count(inputs)
        views = [
            arrays.as_numpy(x, tensor, self.name)
            for x, tensor in zip(inputs, self.inputs, strict=True)
        ]
        shapes = arrays.check_shapes(self.bundle.manifest, [view.shape for view in views])
        given = self._outs(out)
        pairs = [
            arrays.allocate(tensor, shape, inputs)
            if one is None
            else (one, arrays.check_out(one, tensor, shape, self.name))
            for one, tensor, shape in zip(given, self.outputs, shapes, strict=True)
        ]
        results = [array for _, array in pairs]
        self._check_outs_apart(results)
        views = [
            arrays.apart_from(v if arrays.is_addressable(v) else v.copy(), results) for v in views
        ]
        returned = tuple(one for one, _ in pairs)
        return views, results, returned[0] if self._single else returned

    def _check_input_count(self, inputs: Sequence[Any]) -> None:
        if len(inputs) != self._count:
            names = ", ".join(tensor.name for tensor in self.inputs)
            raise ArgumentTypeError(
                f"{self.name} takes {counted(self._count, 'input')} ({names}), not {len(inputs)}"
            )

    def _outs(self, out: Any) -> Sequence[Any]:
        if out is None:
            return [None] * len(self.outputs)
        if self._single and not isinstance(out, tuple | list):
            return [out]
        if not isinstance(out, tuple | list) or len(out) != len(self.outputs):
            names = ", ".join(tensor.name for tensor in self.outputs)
            several = f"a tuple of {len(self.outputs)} arrays"
            wanted = "an array, or a tuple of one" if self._single else several
            kind = type(out).__name__
            given = f"{kind} of {len(out)}" if isinstance(out, tuple | list) else kind
            raise ArgumentTypeError(f"{self.name}: out must be {wanted} ({names}), not {given}")
        return out

    def _check_outs_apart(self, results: Sequence[np.ndarray]) -> None:
        for k, a in enumerate(results):
            for b in results[:k]:
                if np.may_share_memory(a, b):
                    raise ArgumentError(
                        f"{self.name}: the outputs must not overlap or interleave in memory",
                        "pass arrays that lie apart",
                    )

    def __repr__(self) -> str:
        def show(tensors: Sequence[Tensor]) -> str:
            return ", ".join(
                f"{t.name}: {t.dtype}"
                + ("" if t.shape is None else f"[{', '.join(arrays.show_dims(t.shape))}]")
                for t in tensors
            )

        return (
            f"<relu_ops.Operator {self.name}({show(self.inputs)}) -> ({show(self.outputs)}), "
            f"target={self.target}>"
        )

    # An operator never changes, so that a copy of it is itself.

    def __copy__(self) -> Operator:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Operator:
        return self

    def __reduce__(self) -> tuple[Callable[..., Operator], tuple[Any, ...]]:
        held = self.bundle
        return _restored, (str(held.path), held.encoded, dict(held.contents), self.target.name)


def _inputs_that_shape(output_terms: Sequence[Sequence[Term]]) -> list[int]:
    """The inputs whose shapes make that of the only output; none where it takes more than that."""
    terms = [t for t in output_terms[0] if t.input is not None or t.shape]  # no scalar constants
    plain = all(t.input is not None and t.trailing == 0 and t.block == 1 for t in terms)
    if not plain or len(output_terms) != 1:
        return []
    return [t.input for t in terms if t.input is not None]


def _thread_count(threads: int | None) -> int:
    """As a library takes it: 0 is the process's default."""
    return 0 if threads is None else check_count("threads", threads)


def _restored(
    path: str,
    encoded: bytes,
    contents: dict[str, bytes],
    target: str,
    number: int | None = None,
) -> Operator:
    """Unpickle: the files are checked against the manifest as if they came from a directory."""
    from relu_ops.runtime import dispatch

    held = bundles.from_contents(path, encoded, contents)
    return dispatch.operator_of(held, target=target, number=number)
