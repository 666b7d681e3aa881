"""LiteRT, with models of its own format.

They are made with the schema that the package ai-edge-litert carries; TensorFlow is not needed.
Parameters such as a scale are constants of the model, as they are in those that users have.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from relu_ops.bench.peers.problem import UNSUPPORTED, Prepared, Problem, Skipped, into

_SCHEMA_VERSION = 3
_QUANTIZATION_SCALE = 0.05

Step = tuple[str, tuple[str, ...], str, dict[str, Any]]
"""An operator, its inputs, its output and its options."""

# x0, x1, x2 are the graph's inputs, y its output; anything else is an intermediate tensor.
_STEPS: dict[str, Callable[[float], tuple[Step, ...]]] = {
    "relu": lambda _: (("RELU", ("x0",), "y", {}),),
    "leaky_relu": lambda alpha: (("LEAKY_RELU", ("x0",), "y", {"alpha": alpha}),),
    "relu_grad": lambda _: (
        ("GREATER", ("x1", "zero"), "positive", {}),
        ("SELECT_V2", ("positive", "x0", "zero"), "y", {}),
    ),
    "add_relu": lambda _: (("ADD", ("x0", "x1"), "y", {"fusedActivationFunction": 1}),),
    "scale_bias_leaky_relu": lambda alpha: (
        ("MUL", ("x0", "x1"), "scaled", {}),
        ("ADD", ("scaled", "x2"), "biased", {}),
        ("LEAKY_RELU", ("biased",), "y", {"alpha": alpha}),
    ),
    "relu6": lambda _: (("RELU6", ("x0",), "y", {}),),
    "prelu": lambda _: (("PRELU", ("x0", "x1"), "y", {}),),
    "quantized_leaky_relu": lambda alpha: (("LEAKY_RELU", ("x0",), "y", {"alpha": alpha}),),
}

_OPTIONS = {
    "LEAKY_RELU": "LeakyReluOptions",
    "GREATER": "GreaterOptions",
    "SELECT_V2": "SelectV2Options",
    "ADD": "AddOptions",
    "MUL": "MulOptions",
}
_TYPES = {"float32": "FLOAT32", "int8": "INT8", "bool": "BOOL"}


def prepare(problem: Problem) -> Prepared | Skipped:
    """The interpreter with its default delegate; it computes into memory of its own."""
    from ai_edge_litert.interpreter import Interpreter

    case, inputs = problem.case, problem.inputs
    if not supports(case.graph, problem.dtype):
        return Skipped(UNSUPPORTED, f"no model of {case.name} in {problem.dtype}")
    shape = problem.outs[0].shape
    content = model(case.graph, inputs, shape, case.alpha)
    interpreter = Interpreter(model_content=content, num_threads=problem.threads)
    interpreter.allocate_tensors()
    given = [x for x in inputs if x.shape == shape]
    for detail, x in zip(interpreter.get_input_details(), given, strict=True):
        interpreter.set_tensor(detail["index"], x)
    y = _unowned(interpreter.tensor(interpreter.get_output_details()[0]["index"])())
    return Prepared(interpreter.invoke, into([y]), keep=(content, interpreter))


def _unowned(y: np.ndarray) -> np.ndarray:
    """The same memory, without the reference that would forbid the interpreter to run."""
    memory: Any = (ctypes.c_uint8 * y.nbytes).from_address(y.ctypes.data)
    return np.frombuffer(memory, np.uint8).view(y.dtype).reshape(y.shape)


def supports(graph: str, dtype: str) -> bool:
    """True where there is a model: float32, and int8 for the quantized chain."""
    wanted = "int8" if graph == "quantized_leaky_relu" else "float32"
    return graph in _STEPS and dtype == wanted


def model(graph: str, inputs: Sequence[np.ndarray], shape: tuple[int, ...], alpha: float) -> bytes:
    """Write a model.

    Args:
        graph: `Case.graph`.
        inputs: The inputs; those smaller than the output become constants.
        shape: The output's.
        alpha: The slope.

    Returns:
        The flatbuffer. Its inputs are those that are no constants, in order.
    """
    from ai_edge_litert import schema_py_generated as schema

    draft = _Draft(schema)
    dtype = str(inputs[0].dtype)
    for k, x in enumerate(inputs):
        constant = x.shape != shape
        draft.tensor(f"x{k}", x.shape, dtype, x if constant else None)
        if not constant:
            draft.inputs.append(draft.names[f"x{k}"])
    draft.tensor("zero", (), dtype, np.zeros((), inputs[0].dtype))
    for operator, arguments, result, options in _STEPS[graph](alpha):
        draft.tensor(result, shape, "bool" if operator == "GREATER" else dtype)
        draft.operator(operator, arguments, result, options)
    return draft.finish("y")


class _Draft:
    """A model while it is written."""

    def __init__(self, schema: Any) -> None:
        self.schema = schema
        self.names: dict[str, int] = {}
        self.inputs: list[int] = []
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [schema.BufferT()]  # number 0 is the empty one, by convention
        self.operators: list[Any] = []
        self.codes: list[str] = []

    def tensor(
        self, name: str, shape: tuple[int, ...], dtype: str, value: np.ndarray | None = None
    ) -> None:
        tensor = self.schema.TensorT()
        tensor.name, tensor.shape = name.encode(), list(shape)
        tensor.type = getattr(self.schema.TensorType, _TYPES[dtype])
        tensor.buffer = 0
        if dtype == "int8":
            tensor.quantization = self.schema.QuantizationParametersT()
            tensor.quantization.scale = [_QUANTIZATION_SCALE]
            tensor.quantization.zeroPoint = [0]
        if value is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
            tensor.buffer = len(self.buffers)
            self.buffers.append(buffer)
        self.names[name] = len(self.tensors)
        self.tensors.append(tensor)

    def operator(
        self, name: str, inputs: Sequence[str], result: str, options: dict[str, Any]
    ) -> None:
        operator = self.schema.OperatorT()
        if name not in self.codes:
            self.codes.append(name)
        operator.opcodeIndex = self.codes.index(name)
        operator.inputs = [self.names[i] for i in inputs]
        operator.outputs = [self.names[result]]
        if name in _OPTIONS:
            kind = _OPTIONS[name]
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, kind)
            operator.builtinOptions = getattr(self.schema, f"{kind}T")()
            for key, value in options.items():
                setattr(operator.builtinOptions, key, value)
        self.operators.append(operator)

    def finish(self, output: str) -> bytes:
        import flatbuffers

        graph = self.schema.SubGraphT()
        graph.tensors, graph.operators = self.tensors, self.operators
        graph.inputs, graph.outputs = self.inputs, [self.names[output]]
        made = self.schema.ModelT()
        made.version, made.subgraphs, made.buffers = _SCHEMA_VERSION, [graph], self.buffers
        made.operatorCodes = [self._code(name) for name in self.codes]
        builder = flatbuffers.Builder(1024)
        builder.Finish(made.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _code(self, name: str) -> Any:
        code = self.schema.OperatorCodeT()
        number = getattr(self.schema.BuiltinOperator, name)
        # Readers of old files look at the first field, which holds one byte.
        code.deprecatedBuiltinCode, code.builtinCode = min(number, 127), number
        code.version = {"ADD": 1, "LEAKY_RELU": 2 if self._quantized() else 1}.get(name, 1)
        return code

    def _quantized(self) -> bool:
        return any(t.type == self.schema.TensorType.INT8 for t in self.tensors)
