"""OpenVINO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from relu_ops.bench.peers.problem import Prepared, Problem, into, ranked

_OPENVINO_COLUMNS = 512


def prepare(problem: Problem) -> Prepared:
    """A compiled model of static shape, on the caller's arrays, with no lower precision."""
    import openvino as ov

    inputs, outs = _rows(problem.inputs), _rows(problem.outs)
    shown = problem
    if outs[0].ndim != problem.outs[0].ndim:
        shown = Problem(**{**vars(problem), "inputs": inputs, "outs": outs})
    core = ov.Core()
    model = core.read_model(ranked(shown).SerializeToString())
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
    return Prepared(request.infer, into(problem.outs), keep=(compiled, tensors, inputs, outs))


def _openvino_tensor(ov: Any, x: np.ndarray) -> Any:
    if x.dtype.name == "bfloat16":
        return ov.Tensor(x.view(np.uint16), ov.Shape(x.shape), ov.Type.bf16)
    return ov.Tensor(x, shared_memory=True)


def _rows(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Views as rows of 512: OpenVINO uses one thread for a vector, and all for a matrix."""
    if any(x.ndim != 1 or x.size % _OPENVINO_COLUMNS or x.size < 4096 for x in values):
        return list(values)
    return [x.reshape(-1, _OPENVINO_COLUMNS) for x in values]
