"""onnxruntime, by I/O binding and by `run`."""

from __future__ import annotations

from typing import Any

from relu_ops.bench.peers.problem import Prepared, Problem, into, listed


def _session(problem: Problem) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = problem.threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        problem.proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def bound(problem: Problem) -> Prepared:
    """Inputs and outputs bound once, so that a run neither copies nor allocates them."""
    session = _session(problem)
    binding = session.io_binding()
    for name, x in zip(session.get_inputs(), problem.inputs, strict=True):
        binding.bind_input(name.name, "cpu", 0, x.dtype, x.shape, x.ctypes.data)
    for name, y in zip(session.get_outputs(), problem.outs, strict=True):
        binding.bind_output(name.name, "cpu", 0, y.dtype, y.shape, y.ctypes.data)
    return Prepared(lambda: session.run_with_iobinding(binding), into(problem.outs))


def run(problem: Problem) -> Prepared:
    """`session.run`, as the tutorials have it."""
    session = _session(problem)
    feeds = {i.name: x for i, x in zip(session.get_inputs(), problem.inputs, strict=True)}
    return Prepared(lambda: session.run(None, feeds), listed, allocates=True)
