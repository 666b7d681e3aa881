"""Compiles graphs for CUDA devices. See `backends.Backend`."""

from __future__ import annotations

from relu_ops.compiler import layout
from relu_ops.compiler.cuda import codegen
from relu_ops.compiler.cuda.schedule import Kernel
from relu_ops.compiler.lock import LOCK
from relu_ops.contract import ir
from relu_ops.targets import Target


class CudaBackend:
    """NVIDIA's devices."""

    machine = layout.CUDA

    def compiled(self, name: str, graph: ir.Graph, target: Target) -> tuple[list[Kernel], bytes]:
        """The kernels of a graph, and their fat binary."""
        with LOCK:
            kernels = codegen.scheduled(graph)
        return kernels, codegen.fat_binary(graph, kernels, target)

    def requirements(self, target: Target) -> tuple[str, ...]:
        """See `codegen.requirements`."""
        return codegen.requirements(target)

    def sources(self, graph: ir.Graph, target: Target) -> codegen.Sources:
        """The intermediate forms of a graph's kernels."""
        return codegen.sources(graph)


BACKEND = CudaBackend()
