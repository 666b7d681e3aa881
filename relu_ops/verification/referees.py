"""Who else computes what an operator should, and what each of them computes at every node.

Four referees: the NumPy reference (the contract), onnxruntime, onnx.reference, and onnx.reference
on the ONNX function bodies, which breaks ties. A referee that differs is asked for its *trace*: the
nodes that it executes, and the value of each. Only there can be said what it does otherwise.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
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
            one = make(proto if engine == ONNXRUNTIME else without_functions(proto))
        except Exception as error:  # a referee that refuses a model is not a failure of ours
            absent[name] = reason(error)
        else:
            found.append(Referee(name, engine, one.run, one.trace))
    return found, absent


def reason(error: Exception) -> str:
    """The first line of an exception, or its kind where it says nothing."""
    return str(error).strip().partition("\n")[0][:160] or type(error).__name__


def without_functions(proto: Any) -> Any:
    """The model with its local functions inlined."""
    if not proto.functions:
        return proto
    from onnx.inliner import inline_local_functions

    return inline_local_functions(proto)


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
    from onnx.inliner import inline_selected_functions

    if all(node.op_type != "HardSwish" for node in proto.graph.node):
        return proto
    return inline_selected_functions(proto, [("", "HardSwish")], False, True)


class _FunctionBody(_Evaluator):
    """onnx.reference on a model whose operators are replaced by their ONNX function bodies."""

    def __init__(self, proto: Any) -> None:
        from onnx.inliner import inline_selected_functions

        expanded = inline_selected_functions(
            _spelled_out(proto), [], exclude=True, inline_schema_functions=True
        )
        if [n.op_type for n in expanded.graph.node] == [n.op_type for n in proto.graph.node]:
            raise ValueError("no operator of the model has a function body")
        super().__init__(expanded)


def _spelled_out(proto: Any) -> Any:
    """The model with default attributes and the types of constants written out.

    The inliner of onnx 1.23 knows neither, and gives up on a body that needs their type.
    """
    import onnx
    from onnx import defs, helper

    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    opset = program_of(proto).opset
    for node in copy.graph.node:
        given = {attribute.name for attribute in node.attribute}
        for name, declared in defs.get_schema(node.op_type, opset, "").attributes.items():
            if name not in given and declared.default_value.type:
                node.attribute.append(declared.default_value)
    known = {info.name for info in (*copy.graph.input, *copy.graph.value_info)}
    for tensor in copy.graph.initializer:
        if tensor.name not in known:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            copy.graph.value_info.append(info)
    return copy


ONNXRUNTIME, ONNX_REFERENCE = "onnxruntime", "onnx.reference"
"""The engines that execute nodes."""

_OTHERS: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
    ("onnxruntime", ONNXRUNTIME, _OnnxRuntime),
    ("onnx.reference", ONNX_REFERENCE, _Evaluator),
    ("function body", ONNX_REFERENCE, _FunctionBody),
)
