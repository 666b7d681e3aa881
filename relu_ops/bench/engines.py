"""Peers that take the ONNX model itself: relu_ops, onnxruntime, TVM, OpenVINO, LiteRT."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from relu_ops.bench import litert as litert_models
from relu_ops.bench.peers import UNSUPPORTED, Prepared, Problem, Skipped

_OPENVINO_COLUMNS = 512


def _into(outs: Sequence[np.ndarray]) -> Callable[[Any], Sequence[np.ndarray]]:
    return lambda _: outs


def _listed(result: Any) -> list[np.ndarray]:
    return list(result) if isinstance(result, tuple | list) else [result]


# ---------------------------------------------------------------------------------------------
# relu_ops


def bound(problem: Problem) -> Prepared:
    """A call that was bound once."""
    outs = problem.outs
    call = problem.operator.bind(*problem.inputs, out=outs[0] if len(outs) == 1 else outs)
    return Prepared(call, _into(outs))


def out(problem: Problem) -> Prepared:
    """`op(x, out=y)`."""
    operator, inputs, outs = problem.operator, tuple(problem.inputs), problem.outs
    if len(outs) != 1:
        return Prepared(lambda: operator(*inputs, out=outs), _into(outs))
    (y,) = outs
    if len(inputs) == 1:
        (x,) = inputs
        return Prepared(lambda: operator(x, out=y), _into(outs))
    return Prepared(lambda: operator(*inputs, out=y), _into(outs))


def new(problem: Problem) -> Prepared:
    """`y = op(x)`."""
    operator, inputs = problem.operator, tuple(problem.inputs)
    if len(inputs) == 1:
        (x,) = inputs
        return Prepared(lambda: operator(x), _listed, allocates=True)
    return Prepared(lambda: operator(*inputs), _listed, allocates=True)


# ---------------------------------------------------------------------------------------------
# onnxruntime


def _session(problem: Problem) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = problem.threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        problem.proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def onnxruntime_bound(problem: Problem) -> Prepared:
    """Inputs and outputs bound once, so that a run neither copies nor allocates them."""
    session = _session(problem)
    binding = session.io_binding()
    for name, x in zip(session.get_inputs(), problem.inputs, strict=True):
        binding.bind_input(name.name, "cpu", 0, x.dtype, x.shape, x.ctypes.data)
    for name, y in zip(session.get_outputs(), problem.outs, strict=True):
        binding.bind_output(name.name, "cpu", 0, y.dtype, y.shape, y.ctypes.data)
    return Prepared(lambda: session.run_with_iobinding(binding), _into(problem.outs))


def onnxruntime_run(problem: Problem) -> Prepared:
    """`session.run`, as the tutorials have it."""
    session = _session(problem)
    feeds = {i.name: x for i, x in zip(session.get_inputs(), problem.inputs, strict=True)}
    return Prepared(lambda: session.run(None, feeds), _listed, allocates=True)


# ---------------------------------------------------------------------------------------------
# TVM


def tvm(problem: Problem) -> Prepared:
    """TVM's ONNX importer and default pipeline, for the level, with static shapes."""
    import tvm as tvm_module
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    inputs = problem.inputs
    names = [value.name for value in problem.proto.graph.input]
    shapes = {name: list(x.shape) for name, x in zip(names, inputs, strict=True)}
    module = from_onnx(_ranked(problem), shape_dict=shapes, keep_params_in_input=False)
    target = tvm_module.target.Target(
        {"kind": "llvm", "mcpu": problem.target, "num-cores": problem.threads}
    )
    machine = relax.VirtualMachine(tvm_module.compile(module, target), tvm_module.cpu())
    arguments = [tvm_module.runtime.tensor(x) for x in inputs]
    main = machine["main"]

    def outputs(result: Any) -> list[np.ndarray]:
        many = isinstance(result, tuple | list | tvm_module.ir.Array)
        # NumPy's own DLPack knows no bfloat16; TVM's conversion copies.
        read = np.from_dlpack if problem.dtype != "bfloat16" else lambda y: y.numpy()
        return [read(y) for y in (result if many else [result])]

    return Prepared(lambda: main(*arguments), outputs, True, keep=(machine, arguments))


def _ranked(problem: Problem) -> Any:
    from relu_ops import graphs

    return graphs.with_rank(problem.proto, problem.outs[0].ndim)


# ---------------------------------------------------------------------------------------------
# OpenVINO


def openvino(problem: Problem) -> Prepared:
    """A compiled model of static shape, on the caller's arrays, with no lower precision."""
    import openvino as ov

    inputs, outs = _rows(problem.inputs), _rows(problem.outs)
    ranked = problem
    if outs[0].ndim != problem.outs[0].ndim:
        ranked = Problem(**{**vars(problem), "inputs": inputs, "outs": outs})
    core = ov.Core()
    model = core.read_model(_ranked(ranked).SerializeToString())
    model.reshape({i: list(x.shape) for i, x in zip(model.inputs, inputs, strict=True)})
    compiled = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": problem.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f16" if problem.dtype == "float16" else "f32",
        },
    )
    request = compiled.create_infer_request()
    tensors = [_openvino_tensor(ov, x) for x in (*inputs, *outs)]
    for k, tensor in enumerate(tensors[: len(inputs)]):
        request.set_tensor(compiled.inputs[k], tensor)
    for k, tensor in enumerate(tensors[len(inputs) :]):
        request.set_tensor(compiled.outputs[k], tensor)
    return Prepared(request.infer, _into(problem.outs), keep=(compiled, tensors, inputs, outs))


def _openvino_tensor(ov: Any, x: np.ndarray) -> Any:
    if x.dtype.name == "bfloat16":
        return ov.Tensor(x.view(np.uint16), ov.Shape(x.shape), ov.Type.bf16)
    return ov.Tensor(x, shared_memory=True)


def _rows(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Views as rows of 512: OpenVINO uses one thread for a vector, and all for a matrix."""
    if any(x.ndim != 1 or x.size % _OPENVINO_COLUMNS or x.size < 4096 for x in values):
        return list(values)
    return [x.reshape(-1, _OPENVINO_COLUMNS) for x in values]


# ---------------------------------------------------------------------------------------------
# LiteRT


def litert(problem: Problem) -> Prepared | Skipped:
    """The interpreter with its default delegate; it computes into memory of its own."""
    from ai_edge_litert.interpreter import Interpreter

    case, inputs = problem.case, problem.inputs
    if not litert_models.supports(case.graph, problem.dtype):
        return Skipped(UNSUPPORTED, f"no model of {case.name} in {problem.dtype}")
    shape = problem.outs[0].shape
    content = litert_models.model(case.graph, inputs, shape, case.alpha)
    interpreter = Interpreter(model_content=content, num_threads=problem.threads)
    interpreter.allocate_tensors()
    given = [x for x in inputs if x.shape == shape]
    for detail, x in zip(interpreter.get_input_details(), given, strict=True):
        interpreter.set_tensor(detail["index"], x)
    y = _unowned(interpreter.tensor(interpreter.get_output_details()[0]["index"])())
    return Prepared(interpreter.invoke, _into([y]), keep=(content, interpreter))


def _unowned(y: np.ndarray) -> np.ndarray:
    """The same memory, without the reference that would forbid the interpreter to run."""
    memory: Any = (ctypes.c_uint8 * y.nbytes).from_address(y.ctypes.data)
    return np.frombuffer(memory, np.uint8).view(y.dtype).reshape(y.shape)
