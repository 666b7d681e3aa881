"""A bundle, or a model in scope, behind the interface of `onnxruntime.InferenceSession`.

Programs written for that class run an operator with it: names of inputs and outputs, lists of
arrays, bindings. Nothing of onnxruntime is needed. `interop.onnxruntime` has these names, too.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import ArgumentError
from relu_ops.runtime import dispatch
from relu_ops.runtime.operator import Operator, Tensor

PROVIDER = "CPUExecutionProvider"


class NodeArg(NamedTuple):
    """An input or output: `shape` has a name or None where an extent is open; [] is any rank."""

    name: str
    type: str
    shape: list[int | str | None]


def _node_arg(tensor: Tensor) -> NodeArg:
    return NodeArg(
        tensor.name, f"tensor({DTYPES[tensor.dtype].onnx_name})", list(tensor.shape or ())
    )


class InferenceSession:
    """An operator, called as onnxruntime is.

    >>> import numpy as np, relu_ops
    >>> session = InferenceSession(relu_ops.graphs.leaky_relu(alpha=0.5))
    >>> session.run(None, {"x": np.float32([-2, 3])})
    [array([-1.,  3.], dtype=float32)]
    """

    def __init__(
        self,
        path_or_bytes: Any,
        sess_options: Any = None,
        providers: Sequence[Any] | None = None,
        *,
        name: str | None = None,
        digest: str | None = None,
        target: str = "native",
        **options: Any,
    ) -> None:
        """Open a bundle or compile a model.

        Args:
            path_or_bytes: The directory of a bundle; or a model: the path of its file, its bytes,
                an `onnx.ModelProto`; or an `Operator`.
            sess_options: Taken as onnxruntime's class does; of it counts `intra_op_num_threads`.
            providers: The CPU's must be among them, where they are given.
            name: Which operator of a bundle.
            digest: The expected digest of a bundle.
            target: A target by name.
            **options: Others of onnxruntime's; they change nothing here.

        Raises:
            ArgumentError: Other providers alone are asked for; or as of `relu_ops.load`.
            ReluOpsError: As of `relu_ops.load` and `relu_ops.compile`.
        """
        names = [p if isinstance(p, str) else p[0] for p in providers or [PROVIDER]]
        if PROVIDER not in names:
            raise ArgumentError(
                f"providers must list {PROVIDER} (not {', '.join(names)})", "leave them out"
            )
        self._operator = _operator_of(path_or_bytes, name, digest, target)
        self._threads = getattr(sess_options, "intra_op_num_threads", 0) or None
        self._inputs = {tensor.name: k for k, tensor in enumerate(self._operator.inputs)}
        self._outputs = {tensor.name: k for k, tensor in enumerate(self._operator.outputs)}

    @property
    def operator(self) -> Operator:
        """The operator that it runs."""
        return self._operator

    def get_inputs(self) -> list[NodeArg]:
        """What it takes, in order."""
        return [_node_arg(tensor) for tensor in self._operator.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """What it gives, in order."""
        return [_node_arg(tensor) for tensor in self._operator.outputs]

    def get_providers(self) -> list[str]:
        """The CPU's."""
        return [PROVIDER]

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: Any = None,
    ) -> list[np.ndarray]:
        """Compute.

        Args:
            output_names: Which outputs, in which order; None for all.
            input_feed: An array for the name of each input.
            run_options: Taken for the interface; it changes nothing.

        Returns:
            The outputs.

        Raises:
            ArgumentError: A name is none of the operator's, or one is missing; or a shape is wrong.
            ArgumentTypeError: A dtype is wrong.
        """
        results = self._operator(*self._fed(input_feed), threads=self._threads)
        every = results if isinstance(results, tuple) else (results,)
        return [every[k] for k in self._chosen(output_names)]

    def _fed(self, feeds: Mapping[str, Any]) -> list[Any]:
        missing = [name for name in self._inputs if name not in feeds]
        unknown = [name for name in feeds if name not in self._inputs]
        if missing or unknown:
            what = f"lacks {', '.join(missing)}" if missing else f"has {unknown[0]!r}"
            raise ArgumentError(
                f"{self._operator.name}: input_feed {what}; the inputs are "
                f"{', '.join(self._inputs)}",
                "give an array for the name of each",
            )
        return [feeds[name] for name in self._inputs]

    def _chosen(self, names: Sequence[str] | None) -> list[int]:
        return [self.number_of_output(name) for name in names or self._outputs]

    def number_of_output(self, name: str) -> int:
        """The number of an output, by its name."""
        return _number(self._operator, "output", self._outputs, name)

    def number_of_input(self, name: str) -> int:
        """The number of an input, by its name."""
        return _number(self._operator, "input", self._inputs, name)

    def io_binding(self) -> IOBinding:
        """Arrays that are bound once, for `run_with_iobinding`."""
        return IOBinding(self)

    def run_with_iobinding(self, iobinding: IOBinding, run_options: Any = None) -> None:
        """Compute on the arrays of a binding.

        Raises:
            ArgumentError: An input is not bound; or as of `run`.
        """
        iobinding.run(self._threads)


def _number(op: Operator, role: str, numbers: Mapping[str, int], name: str) -> int:
    if name in numbers:
        return numbers[name]
    raise ArgumentError(f"{op.name}: has no {role} called {name!r}", f"it has {', '.join(numbers)}")


def _operator_of(model: Any, name: str | None, digest: str | None, target: str) -> Operator:
    if isinstance(model, Operator):
        return model
    if isinstance(model, str | os.PathLike) and Path(model).is_dir():
        return dispatch.load(model, name=name, digest=digest, target=target)
    from relu_ops import jit

    return jit.compile(model, target)


class IOBinding:
    """Arrays bound to the inputs and outputs of a session, as onnxruntime's class holds them.

    What is bound must live, and lie where it does, as long as it is bound.
    """

    def __init__(self, session: InferenceSession) -> None:
        self._session = session
        self._op = session.operator
        self._inputs: list[Any] = [None] * len(self._op.inputs)
        self._outputs: list[np.ndarray | None] = [None] * len(self._op.outputs)
        self._results: Sequence[np.ndarray] = ()
        self._call: Any = None

    def bind_cpu_input(self, name: str, arr_on_cpu: Any) -> None:
        """Bind an array to an input."""
        self._inputs[self._session.number_of_input(name)] = arr_on_cpu
        self._call = None

    def bind_input(
        self,
        name: str,
        device_type: str,
        device_id: int,
        element_type: Any,
        shape: Sequence[int],
        buffer_ptr: int,
    ) -> None:
        """Bind memory to an input: compact, of the input's dtype."""
        _check_cpu(device_type)
        tensor = self._op.inputs[self._session.number_of_input(name)]
        self.bind_cpu_input(name, _array_at(buffer_ptr, tensor, shape))

    def bind_output(
        self,
        name: str,
        device_type: str = "cpu",
        device_id: int = 0,
        element_type: Any = None,
        shape: Sequence[int] | None = None,
        buffer_ptr: int | None = None,
    ) -> None:
        """Bind memory to an output; without any, each run makes an array for it."""
        _check_cpu(device_type)
        number = self._session.number_of_output(name)
        self._outputs[number] = (
            None
            if buffer_ptr is None
            else _array_at(buffer_ptr, self._op.outputs[number], shape or ())
        )
        self._call = None

    def bind_ortvalue_input(self, name: str, ortvalue: Any) -> None:
        """Bind an `onnxruntime.OrtValue` to an input."""
        self.bind_input(name, ortvalue.device_name(), 0, None, *_place_of(ortvalue))

    def bind_ortvalue_output(self, name: str, ortvalue: Any) -> None:
        """Bind an `onnxruntime.OrtValue` to an output."""
        self.bind_output(name, ortvalue.device_name(), 0, None, *_place_of(ortvalue))

    def clear_binding_inputs(self) -> None:
        """Let every input go."""
        self._inputs, self._call = [None] * len(self._inputs), None

    def clear_binding_outputs(self) -> None:
        """Let every output go."""
        self._outputs, self._call = [None] * len(self._outputs), None

    def synchronize_inputs(self) -> None:
        """There is nothing to wait for on the CPU."""

    def synchronize_outputs(self) -> None:
        """There is nothing to wait for on the CPU."""

    def copy_outputs_to_cpu(self) -> list[np.ndarray]:
        """The outputs of the last run."""
        return list(self._results)

    def run(self, threads: int | None) -> None:
        """Compute: see `InferenceSession.run_with_iobinding`."""
        if self._call is not None:
            self._call()
            return
        for tensor, bound in zip(self._op.inputs, self._inputs, strict=True):
            if bound is None:
                raise ArgumentError(
                    f"{self._op.name}: no array is bound to {tensor.name}",
                    "bind one: bind_cpu_input",
                )
        if any(out is None for out in self._outputs):
            out: Any = self._outputs
            results = self._op(*self._inputs, out=out if len(out) > 1 else None, threads=threads)
            self._results = results if isinstance(results, tuple) else (results,)
            return
        outs = [out for out in self._outputs if out is not None]
        self._results = outs
        one = outs[0] if len(outs) == 1 else tuple(outs)
        try:
            self._call = self._op.bind(*self._inputs, out=one, threads=threads)
        except ArgumentError:  # what would be copied at every call, or a mistake: this says which
            self._op(*self._inputs, out=one, threads=threads)
        else:
            self._call()


def _check_cpu(device_type: str) -> None:
    if device_type.lower() != "cpu":
        raise ArgumentError(f"device_type must be 'cpu' (not {device_type!r})")


def _place_of(value: Any) -> tuple[Sequence[int], int]:
    return value.shape(), value.data_ptr()


def _array_at(address: int, tensor: Tensor, shape: Sequence[int]) -> np.ndarray:
    """An array over memory that somebody else owns."""
    dtype = DTYPES[tensor.dtype].numpy
    size = math.prod(shape) * dtype.itemsize
    memory: Any = (ctypes.c_byte * size).from_address(address) if size else b""
    return np.frombuffer(memory, dtype=dtype).reshape(shape)
