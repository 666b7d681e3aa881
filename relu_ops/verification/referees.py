"""Who else computes what an operator should, and what each of them computes at every node.

Four referees: the NumPy reference (the contract), onnxruntime, onnx.reference, and onnx.reference
on the ONNX function bodies, which breaks ties. A referee that differs is asked for its *trace*: the
nodes that it executes, and the value of each. Only there can be said what it does otherwise.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from relu_ops.contract import ir, reference
from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import require

CONTRACT = "NumPy reference"
"""The name of the referee that all others are held against."""

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Program:
    """Nodes, as somebody executes them.

    Attributes:
        nodes: The nodes, in their order.
        opset: The version of ONNX's operators.
        initializers: Constants by name.
        inputs: The names of the inputs.
        outputs: The names of the outputs.
        widened: float16 nodes are executed in float32, with casts between.
    """

    nodes: Sequence[Any]
    opset: int
    initializers: dict[str, np.ndarray]
    inputs: Sequence[str]
    outputs: Sequence[str]
    widened: bool = False

    @functools.cached_property
    def constants(self) -> frozenset[str]:
        """The names of what depends on no input."""
        names = set(self.initializers)
        for node in self.nodes:
            if all(name in names for name in node.input if name):
                names.update(node.output)
        return frozenset(names)


@dataclass(frozen=True)
class Trace:
    """One evaluation of a program: the value of every name, of inputs and constants too."""

    program: Program
    values: dict[str, np.ndarray]

    @property
    def results(self) -> Arrays:
        """The values of the outputs."""
        return [self.values[name] for name in self.program.outputs]


@dataclass(frozen=True)
class Referee:
    """Something that computes what the operator should.

    Attributes:
        name: What it is called in the report.
        engine: What executes the nodes: a name that the table of deviations knows.
        run: Computes the outputs.
        trace: Computes them once more, and keeps every node's value.
    """

    name: str
    engine: str
    run: Callable[[Sequence[np.ndarray]], Arrays]
    trace: Callable[[Sequence[np.ndarray]], Trace] | None


def referees(proto: Any, graph: ir.Graph) -> tuple[list[Referee], dict[str, str]]:
    """The referees that can run a model, the contract first; and why the others cannot."""
    contract = Referee(CONTRACT, CONTRACT, lambda inputs: reference.evaluate(graph, inputs), None)
    found, absent = [contract], {}
    for name, engine, make in _OTHERS:
        try:
            plain = without_functions(proto)  # without it no difference can be explained
            one = make(proto if engine == ONNXRUNTIME else plain)
        except Exception as error:  # a referee that refuses a model is not a failure of ours
            absent[name] = reason(error)
        else:
            found.append(Referee(name, engine, one.run, one.trace))
    return found, absent


def reason(error: Exception) -> str:
    """The first line of an exception, or its kind where it says nothing."""
    return str(error).strip().partition("\n")[0][:160] or type(error).__name__


def without_functions(proto: Any) -> Any:
    """The model with its local functions written out."""
    from relu_ops.compiler import frontend

    return frontend.without_functions(proto)


def program_of(proto: Any) -> Program:
    """The nodes of a model as it stands."""
    from onnx import numpy_helper

    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    return Program(
        proto.graph.node,
        max(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")),
        constants,
        [info.name for info in proto.graph.input if info.name not in constants],
        [info.name for info in proto.graph.output],
        any(node.name.startswith(_INSERTED) for node in proto.graph.node),
    )


# ---------------------------------------------------------------------------------------------
# onnxruntime


class _OnnxRuntime:
    """onnxruntime with its optimizations off.

    What it executes is still not what the model says: operators without a kernel are replaced by
    their function bodies, and float16 ones without one by float32 ones between casts, of which it
    then removes those that lie back to back. It writes down the graph that it executes; that one,
    run with every value as an output, is the trace.
    """

    def __init__(self, proto: Any) -> None:
        require("onnxruntime", "verify", "the referee onnxruntime")
        self._content = proto.SerializeToString()
        self._session = _session(self._content)
        self._names = [i.name for i in self._session.get_inputs()]
        self._executed: tuple[Program, Any] | None = None

    def run(self, inputs: Sequence[np.ndarray]) -> Arrays:
        return [np.asarray(y) for y in self._session.run(None, self._feeds(inputs))]

    def _feeds(self, inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self._names, inputs, strict=True))

    def trace(self, inputs: Sequence[np.ndarray]) -> Trace:
        if self._executed is None:
            proto = _executed(self._content)
            self._executed = program_of(proto), _session(_exposed(proto))
        program, session = self._executed
        feeds = self._feeds(inputs)
        names = [o.name for o in session.get_outputs()]
        results = dict(zip(names, map(np.asarray, session.run(None, feeds)), strict=True))
        for name in [n for n in names if n.endswith(_WIDE)]:
            bfloat16 = DTYPES["bfloat16"].numpy
            results[name.removesuffix(_WIDE)] = results.pop(name).astype(bfloat16)
        return Trace(program, program.initializers | feeds | results)


_INSERTED = "InsertedPrecisionFreeCast_"
"""How onnxruntime names the casts that it adds around float16 nodes."""


def _session(content: bytes, written_to: Path | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if written_to is not None:
        options.optimized_model_filepath = str(written_to)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _executed(content: bytes) -> Any:
    """The graph that onnxruntime makes of a model before it runs it."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "executed.onnx"
        _session(content, path)
        return onnx.load(path)


_WIDE = ".as_float32"
"""What ends the name of a bfloat16 value that comes out as float32: as it is, none comes out."""


def _exposed(proto: Any) -> bytes:
    """A model with the result of every node as an output, too."""
    import onnx
    from onnx import TensorProto, helper

    exposed = onnx.shape_inference.infer_shapes(proto)
    types = {info.name: info.type.tensor_type.elem_type for info in exposed.graph.value_info}
    known = {info.name for info in exposed.graph.output}
    for node in list(exposed.graph.node):
        for name in node.output:
            if not name or name in known:
                continue
            shown = name
            if types.get(name) == TensorProto.BFLOAT16:
                shown = f"{name}{_WIDE}"
                cast = helper.make_node("Cast", [name], [shown], to=TensorProto.FLOAT)
                exposed.graph.node.append(cast)
            exposed.graph.output.append(onnx.ValueInfoProto(name=shown))
    return exposed.SerializeToString()


# ---------------------------------------------------------------------------------------------
# onnx.reference


class _Evaluator:
    """onnx.reference on a model as it is."""

    def __init__(self, proto: Any) -> None:
        from onnx.reference import ReferenceEvaluator

        self._proto = proto
        self._evaluator = ReferenceEvaluator(proto)
        self._names = program_of(proto).inputs
        self._executed: tuple[Program, Any] | None = None

    def _feeds(self, inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self._names, inputs, strict=True))

    def run(self, inputs: Sequence[np.ndarray]) -> Arrays:
        with np.errstate(all="ignore"):
            return [np.asarray(y) for y in self._evaluator.run(None, self._feeds(inputs))]

    def trace(self, inputs: Sequence[np.ndarray]) -> Trace:
        from onnx.reference import ReferenceEvaluator

        if self._executed is None:
            proto = _as_evaluated(self._proto)
            self._executed = program_of(proto), ReferenceEvaluator(proto)
        program, evaluator = self._executed
        with np.errstate(all="ignore"):
            values = evaluator.run(None, self._feeds(inputs), intermediate=True)
        named = {name: np.asarray(value) for name, value in values.items() if value is not None}
        return Trace(program, program.initializers | named)


def _as_evaluated(proto: Any) -> Any:
    """The model with HardSwish as its body: onnx.reference has no function of its own for it."""
    return _expanded(proto, ["HardSwish"]) or proto


class _FunctionBody(_Evaluator):
    """onnx.reference on a model whose operators are replaced by their ONNX function bodies."""

    def __init__(self, proto: Any) -> None:
        expanded = _expanded(proto)
        if expanded is None:
            raise ValueError("no operator of the model has a function body")
        super().__init__(expanded)


# ---------------------------------------------------------------------------------------------
# Function bodies of ONNX's operators. Not by onnx.inliner, which knows neither the defaults of
# attributes nor the types of constants, and gives up where an operand is absent.

_BODIES = "relu_ops.bodies"
"""The domain of functions that stand for operators while these are replaced."""


def _expanded(proto: Any, operators: Container[str] | None = None) -> Any:
    """A model with bodies for all operators that have one, or for some; None where none has."""
    expanded = None
    while (called := _calling(proto, operators)) is not None:
        expanded = proto = without_functions(called)
    return expanded


def _calling(proto: Any, operators: Container[str] | None) -> Any:
    """A model that calls functions where operators have bodies; None where none has."""
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    opset, types = program_of(proto).opset, _types_of(proto)
    for number, node in enumerate(copy.graph.node):
        if operators is not None and node.op_type not in operators:
            continue
        body = _body_of(node, opset, [types.get(name, onnx.TypeProto()) for name in node.input])
        if body is not None:
            body.domain, body.name = _BODIES, f"{node.op_type}_{number}"
            # What a newer version of an operator in a body takes, an older one means the same by.
            body.opset_import[0].version = opset
            copy.functions.append(body)
            node.attribute.extend(_defaults_of(node, opset))
            node.domain, node.op_type = body.domain, body.name
    return copy if copy.functions else None


def _body_of(node: Any, opset: int, types: Sequence[Any]) -> Any:
    """The newest body of an operator that an opset allows, or None."""
    import onnx
    from onnx import defs

    schema = defs.get_schema(node.op_type, opset, "")
    versions = [v for v in schema.all_function_opset_versions if v <= opset]
    if not versions:
        return None
    if schema.has_context_dependent_function:
        asked = node.SerializeToString(), [t.SerializeToString() for t in types]
        content = schema.get_context_dependent_function_with_opset_version(max(versions), *asked)
    else:
        content = schema.get_function_with_opset_version(max(versions))
    body = onnx.FunctionProto.FromString(content)
    return body if body.node else None


def _defaults_of(node: Any, opset: int) -> list[Any]:
    """The attributes that a node leaves to the schema."""
    from onnx import defs

    given = {attribute.name for attribute in node.attribute}
    declared = defs.get_schema(node.op_type, opset, "").attributes
    return [d.default_value for n, d in declared.items() if n not in given and d.default_value.type]


def _types_of(proto: Any) -> dict[str, Any]:
    """The type of every value of a model, as far as onnx infers it."""
    import onnx
    from onnx import helper

    graph = onnx.shape_inference.infer_shapes(proto).graph
    types = {i.name: i.type for i in (*graph.value_info, *graph.input, *graph.output)}
    for tensor in graph.initializer:
        types[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
    return types


ONNXRUNTIME, ONNX_REFERENCE = "onnxruntime", "onnx.reference"
"""The engines that execute nodes."""

_OTHERS: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    ("onnxruntime", ONNXRUNTIME, _OnnxRuntime),
    ("onnx.reference", ONNX_REFERENCE, _Evaluator),
    ("function body", ONNX_REFERENCE, _FunctionBody),
)
