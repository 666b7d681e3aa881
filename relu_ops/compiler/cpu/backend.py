"""Compiles graphs for a processor: schedule, codegen, objects, one after another."""

from __future__ import annotations

from dataclasses import dataclass

from relu_ops.compiler.cpu import codegen, objects, schedule
from relu_ops.compiler.cpu.codegen import Sources
from relu_ops.compiler.cpu.lookup import Tables
from relu_ops.compiler.cpu.objects import Code, Form
from relu_ops.compiler.cpu.schedule import Kernel
from relu_ops.compiler.lock import LOCK
from relu_ops.contract import ir
from relu_ops.targets import Target


@dataclass(frozen=True)
class CpuBackend:
    """A kind of processor. See `backends.Backend`.

    Attributes:
        machine: What its code is for, as an image says it.
        triple: How LLVM calls it. ELF objects for the C calling convention of Linux, whatever
            system this is built on; there is nothing else of the system in them.
        features: What LLVM is told of it beside the target's own processor.
        form: What its objects look like.
        tables: How it looks numbers up.
    """

    machine: int
    triple: str
    form: Form
    tables: Tables
    features: tuple[str, ...] = ()

    def schedule(self, graph: ir.Graph, target: Target) -> list[Kernel]:
        """Every kernel of a graph."""
        return schedule.schedule(graph, target, self.tables)

    def options(self, target: Target) -> dict[str, object]:
        """What LLVM is told."""
        features = {"mattr": list(self.features)} if self.features else {}
        return {"mtriple": self.triple, "mcpu": target.llvm_name or target.name, **features}

    def compiled(self, name: str, graph: ir.Graph, target: Target) -> tuple[list[Kernel], Code]:
        """The kernels of a graph, and their code."""
        # All of it, so that a fork meets none of the locks of Python's cached properties either.
        with LOCK:
            kernels = self.schedule(graph, target)
            content = codegen.object_code(kernels, self.options(target))
            names = [codegen.name_of(function) for function in codegen.functions(kernels)]
            return kernels, objects.read(content, names, f"{name} for {target}", self.form)

    def requirements(self, target: Target) -> tuple[str, ...]:
        """The features that a processor must have, all of them."""
        return target.flags

    def sources(self, graph: ir.Graph, target: Target) -> Sources:
        """The intermediate forms of a graph's kernels."""
        with LOCK:
            return codegen.sources(self.schedule(graph, target), self.options(target))
