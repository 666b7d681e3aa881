"""relu_ops as a standard ONNX backend (`onnx.backend.base.Backend`).

A model is compiled through the compile cache and run on the CPU. What is out of scope is refused
when it is prepared, with the error that `relu_ops.compile` raises; nothing falls back to another
runtime.

>>> from onnx import parser
>>> model = parser.parse_model('''<ir_version: 8, opset_import: ["": 18]>
... small (float[N] x) => (float[N] y) { y = LeakyRelu <alpha = 0.5> (x) }''')
>>> prepare(model, "CPU").run([[-2.0, 3.0]])
(array([-1.,  3.], dtype=float32),)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.backend.base import Backend, BackendRep

from relu_ops import jit, targets
from relu_ops.compiler import frontend
from relu_ops.compiler.frontend import Model
from relu_ops.errors import ArgumentError, ArgumentTypeError, ModelError, TargetError, counted
from relu_ops.runtime.operator import Operator

__all__ = [
    "ReluOpsBackend",
    "ReluOpsBackendRep",
    "is_compatible",
    "prepare",
    "run_model",
    "run_node",
    "supports_device",
]


class ReluOpsBackendRep(BackendRep):
    """A prepared model.

    Attributes:
        operator: The compiled operator.
    """

    def __init__(self, operator: Operator) -> None:
        self.operator = operator

    def run(self, inputs: Any, **kwargs: Any) -> tuple[np.ndarray, ...]:
        """Run the model once.

        Args:
            inputs: A list or tuple with one array per graph input, in order; or a mapping from
                their names; or, for a model with one input, the array itself.
            **kwargs: Options of other backends; they change nothing here.

        Returns:
            One array per graph output, in order.

        Raises:
            ArgumentTypeError: An input is missing, or of the wrong type or dtype.
            ArgumentError: An input has the wrong shape.
        """
        results = self.operator(*self._positional(inputs))
        return results if isinstance(results, tuple) else (results,)

    def _positional(self, inputs: Any) -> Sequence[Any]:
        if isinstance(inputs, list | tuple):
            return inputs
        if not isinstance(inputs, Mapping):
            return [inputs]
        names = [tensor.name for tensor in self.operator.inputs]
        if set(inputs) != set(names):
            raise ArgumentTypeError(
                f"{self.operator.name}: inputs must have the names {', '.join(names)} "
                f"(not {', '.join(map(str, inputs))})"
            )
        return [inputs[name] for name in names]


class ReluOpsBackend(Backend):
    """Compiles and runs ONNX models whose graphs are in scope; see `semantics.OPERATORS`."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """True for the CPU ("CPU", "CPU:0"), where this machine's CPU can run a target."""
        if device.upper() not in ("CPU", "CPU:0"):
            return False
        try:
            targets.native()
        except TargetError:
            return False
        return True

    @classmethod
    def is_compatible(cls, model: Model, device: str = "CPU", **kwargs: Any) -> bool:
        """True where `prepare` would accept the model and the device. Compiles nothing."""
        try:
            frontend.import_model(model)
        except ModelError:
            return False
        return cls.supports_device(device)

    @classmethod
    def prepare(
        cls, model: Model, device: str = "CPU", *, target: str = "native", **kwargs: Any
    ) -> ReluOpsBackendRep:
        """Compile a model.

        Args:
            model: The model, as for `relu_ops.compile`.
            device: "CPU".
            target: A CPU target by name; "native" is the best that this machine runs.
            **kwargs: Options of other backends; they change nothing here.

        Raises:
            ArgumentError: The device is not the CPU.
            ModelError: The model is not valid ONNX; as `UnsupportedError` if it is, but out of
                scope.
            TargetError: The target is not known or cannot run here.
        """
        if not cls.supports_device(device):
            raise ArgumentError(
                f"device must be 'CPU' (not {device!r})", "leave it out: operators run on the CPU"
            )
        return ReluOpsBackendRep(jit.compile(model, target))

    @classmethod
    def run_model(
        cls, model: Model, inputs: Any, device: str = "CPU", **kwargs: Any
    ) -> tuple[np.ndarray, ...]:
        """Compile a model and run it once; see `prepare` and `ReluOpsBackendRep.run`."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[np.dtype, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[np.ndarray, ...]:
        """Run one node.

        Args:
            node: The node.
            inputs: One array per input that the node names, in order.
            device: "CPU".
            outputs_info: Accepted for the interface; the outputs' types follow from the node.
            **kwargs: `opset_version`, the opset of the node (default: the newest that onnx
                knows), and what `prepare` takes.

        Raises:
            ArgumentTypeError: The number of inputs or the dtype of one is wrong.
            ModelError: As for `prepare`.
        """
        opset = kwargs.pop("opset_version", onnx.defs.onnx_opset_version())
        arrays = [np.asarray(x) for x in (inputs if isinstance(inputs, list | tuple) else [inputs])]
        model = _model_of_node(node, arrays, opset)
        return cls.run_model(model, arrays, device, **kwargs)


def _model_of_node(
    node: onnx.NodeProto, arrays: Sequence[np.ndarray], opset: int
) -> onnx.ModelProto:
    names = list(dict.fromkeys(name for name in node.input if name))
    if len(names) != len(arrays):
        raise ArgumentTypeError(
            f"{node.op_type} takes {counted(len(names), 'input')} ({', '.join(names)}), "
            f"not {len(arrays)}"
        )
    inputs = [
        helper.make_tensor_value_info(name, _element_type(name, array.dtype), array.shape)
        for name, array in zip(names, arrays, strict=True)
    ]
    outputs = [helper.make_empty_tensor_value_info(name) for name in node.output if name]
    graph = helper.make_graph([node], node.name or node.op_type, inputs, outputs)
    opsets = [helper.make_opsetid("", opset)]
    if node.domain not in ("", "ai.onnx"):
        opsets.append(helper.make_opsetid(node.domain, 1))
    model = helper.make_model(graph, opset_imports=opsets)
    try:
        return onnx.shape_inference.infer_shapes(model)
    except Exception as error:
        raise ModelError(f"the node is not valid ONNX: {str(error).strip()}") from error


def _element_type(name: str, dtype: np.dtype) -> int:
    try:
        return helper.np_dtype_to_tensor_dtype(dtype.newbyteorder("="))
    except (KeyError, ValueError) as error:
        raise ArgumentTypeError(f"{name}.dtype {dtype} is not a type of ONNX") from error


is_compatible = ReluOpsBackend.is_compatible
prepare = ReluOpsBackend.prepare
run_model = ReluOpsBackend.run_model
run_node = ReluOpsBackend.run_node
supports_device = ReluOpsBackend.supports_device
