"""TVM as it comes: its importer and its default pipeline."""

from __future__ import annotations

from typing import Any

import numpy as np

from relu_ops.bench.peers.problem import Prepared, Problem, ranked


def prepare(problem: Problem) -> Prepared:
    """TVM's ONNX importer and default pipeline, for the level, with static shapes."""
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    inputs = problem.inputs
    names = [value.name for value in problem.proto.graph.input]
    shapes = {name: list(x.shape) for name, x in zip(names, inputs, strict=True)}
    module = from_onnx(ranked(problem), shape_dict=shapes, keep_params_in_input=False)
    target = tvm.target.Target(
        {"kind": "llvm", "mcpu": problem.target, "num-cores": problem.threads}
    )
    machine = relax.VirtualMachine(tvm.compile(module, target), tvm.cpu())
    arguments = [tvm.runtime.tensor(x) for x in inputs]
    main = machine["main"]

    def outputs(result: Any) -> list[np.ndarray]:
        many = isinstance(result, tuple | list | tvm.ir.Array)
        # NumPy's own DLPack knows no bfloat16; TVM's conversion copies.
        read = np.from_dlpack if problem.dtype != "bfloat16" else lambda y: y.numpy()
        return [read(y) for y in (result if many else [result])]

    return Prepared(lambda: main(*arguments), outputs, True, keep=(machine, arguments))
