"""The compiler: an ONNX model in, a bundle out.

Five steps, one module each: frontend (ONNX to graph), legalize (graph to exact expressions),
schedule (expressions to loops), codegen (loops to a library), and the bundle that holds it all.
Imports onnx and TVM, when something is compiled; nothing that runs a bundle comes here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from relu_ops import bundle as bundles
from relu_ops import ir
from relu_ops import targets as known_targets
from relu_ops.bundle import File, Manifest
from relu_ops.compiler.toolchain import installed_version, producer
from relu_ops.errors import ArgumentError, ArgumentTypeError, require
from relu_ops.semantics import SEMANTICS_VERSION
from relu_ops.targets import Target

if TYPE_CHECKING:
    from relu_ops.compiler.frontend import Model

__all__ = ["build", "make"]


def build(model: Model, targets: Sequence[str] | str, path: str | os.PathLike[str]) -> str:
    """Compile a model and write a bundle.

    Args:
        model: An `onnx.ModelProto`, its bytes, or the path of a file.
        targets: Names of targets, for example ["x86-64-v2", "x86-64-v3", "x86-64-v4"].
        path: The directory to write. A bundle that is there is replaced.

    Returns:
        The digest of the bundle, to be pinned with `load(path, digest=...)`.

    Raises:
        MissingDependencyError: onnx or TVM is not installed.
        ModelError: The model is not valid ONNX; as `UnsupportedError` if it is, but out of scope.
        TargetError: A target is not known.
        BuildError: A tool is missing or failed.
        BundleError: The bundle cannot be written.
    """
    manifest, contents = make(model, targets)
    return bundles.write(path, manifest, contents)


def make(model: Model, targets: Sequence[str] | str) -> tuple[Manifest, dict[str, bytes]]:
    """Compile a model: the manifest and the files of its bundle, unwritten. See `build`."""
    for package in ("onnx", "tvm"):
        require(package, "compile", "compiling an operator")
    from relu_ops.compiler import frontend

    chosen = _resolved(targets)
    proto = frontend.read_model(model)
    graph = _printable(frontend.import_model(proto))
    contents = {bundles.MODEL: proto.SerializeToString(deterministic=True)}
    files = [_file(bundles.MODEL, "model", None, contents[bundles.MODEL])]
    for target in chosen:
        name = f"{target}.so"
        contents[name], requires = _library(graph, target)
        files.append(_file(name, "library", target, contents[name], requires))
    return _manifest(graph, files), contents


def _printable(graph: ir.Graph) -> ir.Graph:
    """The graph with names that messages and terminals can bear."""

    def shown(shape: ir.Shape | None) -> ir.Shape | None:
        if shape is None:
            return None
        return tuple(bundles.printable(d) if isinstance(d, str) else d for d in shape)

    def named(one: ir.Input | ir.Output) -> Any:
        return replace(one, name=bundles.printable(one.name), shape=shown(one.shape))

    return replace(
        graph,
        name=bundles.printable(graph.name),
        inputs=tuple(map(named, graph.inputs)),
        outputs=tuple(map(named, graph.outputs)),
        requirements=tuple(replace(r, what=bundles.printable(r.what)) for r in graph.requirements),
    )


def _resolved(names: Sequence[str] | str) -> list[Target]:
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, Sequence):
        raise ArgumentTypeError(f"targets must be a list of names (not {type(names).__name__})")
    chosen = list(dict.fromkeys(known_targets.resolve(name) for name in names))
    if not chosen:
        raise ArgumentError("targets must name at least one target", "for example ['native']")
    return chosen


def _library(graph: ir.Graph, target: Target) -> tuple[bytes, dict[str, Any]]:
    """A target's library, and what it requires of a machine."""
    if target.kind == "cuda":
        from relu_ops.compiler import codegen_cuda

        content, requires = codegen_cuda.build_cuda(graph, target)
    else:
        from relu_ops.compiler import codegen

        content, requires = codegen.build_x86(graph, target), {"flags": list(target.flags)}
    return content, {**requires, "glibc": glibc_of(content)}


def _file(
    path: str,
    role: str,
    target: Target | None,
    content: bytes,
    requires: Mapping[str, Any] | None = None,
) -> File:
    name = None if target is None else target.name
    requires = dict(requires or {})
    return File(path, role, name, bundles.digest_of(content), len(content), requires)


def glibc_of(library: bytes) -> str:
    """The newest glibc symbol version that a library names."""
    found = {tuple(map(int, m.split(b"."))) for m in re.findall(rb"GLIBC_([0-9.]+)\0", library)}
    return ".".join(map(str, max(found, default=(2, 2, 5))))


def _manifest(graph: ir.Graph, files: Sequence[File]) -> Manifest:
    terms = [graph.values[output.value].terms for output in graph.outputs]
    return Manifest(
        format=bundles.FORMAT_VERSION,
        semantics=SEMANTICS_VERSION,
        operator=graph.name,
        inputs=tuple(bundles.Tensor(i.name, i.dtype, i.shape) for i in graph.inputs),
        outputs=tuple(
            bundles.Tensor(o.name, graph.values[o.value].dtype, o.shape) for o in graph.outputs
        ),
        output_terms=tuple(_terms(t) for t in terms),
        requirements=tuple(
            bundles.Requirement(r.what, _terms(r.terms), _terms(r.into)) for r in graph.requirements
        ),
        tvm_ffi_abi=".".join(installed_version("apache-tvm-ffi").split(".")[:2]),
        producer=producer(),
        files=tuple(files),
    )


def _terms(terms: frozenset[ir.Term]) -> tuple[bundles.Term, ...]:
    return tuple(
        bundles.Term(t.input, t.shape, t.view.trailing, t.view.axis, t.view.block)
        for t in ir.ordered(terms)
    )
