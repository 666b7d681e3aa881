"""The compiler: ONNX models in, a bundle out.

Five steps, one module each: frontend (ONNX to graph), rules (graph to exact expressions),
schedule (expressions to loops), codegen (loops to objects), image (objects to an image of one
target); and the bundle that holds it all. Imports onnx and TVM, when something is compiled; nothing
that runs a bundle comes here.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from relu_ops import log
from relu_ops import targets as known_targets
from relu_ops.bundle import store as bundles
from relu_ops.compiler.toolchain import producer
from relu_ops.contract import ir
from relu_ops.contract.semantics import SEMANTICS_VERSION
from relu_ops.errors import ArgumentError, ArgumentTypeError, ReluOpsError, require
from relu_ops.targets import Target

if TYPE_CHECKING:
    from relu_ops.bundle.manifest import Manifest
    from relu_ops.compiler.frontend import Model

__all__ = ["build", "make"]

_LONGEST_NAME = 200

Operator = tuple[str, bytes, ir.Graph]
"""An operator to be built: its name, its model as a file, and what it computes."""


def build(
    model: Model | Mapping[str, Model],
    targets: Sequence[str] | str,
    path: str | os.PathLike[str],
) -> str:
    """Compile one or several models and write a bundle.

    Args:
        model: An `onnx.ModelProto`, its bytes, the path of a file, an `onnx_ir.Model`, an
            onnxscript function or a `torch.onnx.ONNXProgram`: the operator has the name of its
            graph. Or a mapping of those, whose keys are the operators' names.
        targets: Names of targets, for example ["x86-64-v2", "x86-64-v3", "x86-64-v4"].
        path: The directory to write. A bundle that is there is replaced.

    Returns:
        The digest of the bundle, to be pinned with `load(path, digest=...)`.

    Raises:
        MissingDependencyError: onnx or TVM is not installed.
        ArgumentError: A name of an operator, or the path, is none that can be used.
        ModelError: A model is not valid ONNX; as `UnsupportedError` if it is, but out of scope.
        TargetError: A target is not known.
        BuildError: A target cannot be built for, or TVM made something unexpected.
        BundleError: The bundle cannot be written.
    """
    return bundles.write(path, make(model, targets))


def make(model: Model | Mapping[str, Model], targets: Sequence[str] | str) -> dict[str, bytes]:
    """Compile one or several models: all files of the bundle, unwritten. See `build`."""
    start = time.perf_counter()
    for package in ("onnx", "tvm", "elftools"):
        require(package, "compile", "compiling an operator")
    chosen = _resolved(targets)
    operators = _operators(model)
    # TVM takes a second to import: what is refused is refused before.
    from relu_ops.bundle import manifest as manifests
    from relu_ops.compiler import image

    files = manifests.model_files([name for name, _, _ in operators])
    contents = {file: proto for file, (_, proto, _) in zip(files, operators, strict=True)}
    graphs = [(name, graph) for name, _, graph in operators]
    for target in chosen:
        contents[manifests.image_file(target.name)] = image.build(graphs, target)
    names = [name for name, _ in graphs]
    made = bundles.pack(_manifest(names, files, chosen), contents)
    log.say(
        "INFO",
        "compiled %s for %s in %.0f ms",
        ", ".join(names),
        ", ".join(map(str, chosen)),
        1e3 * (time.perf_counter() - start),
    )
    return made


def _operators(models: Model | Mapping[str, Model]) -> list[Operator]:
    if not isinstance(models, Mapping):
        proto, graph = _imported(models)
        return [(graph.name, proto, graph)]
    if not models:
        raise ArgumentError(
            "a bundle must hold at least one operator (the mapping is empty)",
            "map a name to a model",
        )
    return [_named(name, model) for name, model in models.items()]


def _named(name: str, model: Model) -> Operator:
    """An operator that was given a name; what is wrong with its model is said of that name."""
    if not isinstance(name, str):
        raise ArgumentTypeError(
            f"an operator's name must be a text (not {type(name).__name__})", "map names to models"
        )
    if not (name.isprintable() and 0 < len(name) <= _LONGEST_NAME):
        raise ArgumentError(
            "an operator's name must be a printable text of 1 to "
            f"{_LONGEST_NAME} characters (not {name[: _LONGEST_NAME + 1]!r})"
        )
    try:
        return name, *_imported(model)
    except ReluOpsError as error:
        raise type(error)(f"{name}: {error.message}", error.hint) from error


def _imported(model: Model) -> tuple[bytes, ir.Graph]:
    from relu_ops.compiler import frontend

    proto = frontend.read_model(model)
    return proto.SerializeToString(deterministic=True), _printable(frontend.import_model(proto))


def _printable(graph: ir.Graph) -> ir.Graph:
    """The graph with names that messages and terminals can bear."""
    from relu_ops.bundle.manifest import printable

    def shown(shape: ir.Shape | None) -> ir.Shape | None:
        if shape is None:
            return None
        return tuple(printable(d) if isinstance(d, str) else d for d in shape)

    def named(one: ir.Input | ir.Output) -> Any:
        return replace(one, name=printable(one.name), shape=shown(one.shape))

    return replace(
        graph,
        name=printable(graph.name),
        inputs=tuple(map(named, graph.inputs)),
        outputs=tuple(map(named, graph.outputs)),
        requirements=tuple(replace(r, what=printable(r.what)) for r in graph.requirements),
    )


def _resolved(names: Sequence[str] | str) -> list[Target]:
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, Sequence):
        raise ArgumentTypeError(
            f"targets must be a list of names (not {type(names).__name__})",
            "for example ['native']",
        )
    chosen = list(dict.fromkeys(known_targets.resolve(name) for name in names))
    if not chosen:
        raise ArgumentError("targets must name at least one target", "for example ['native']")
    return chosen


def _manifest(names: Sequence[str], files: Sequence[str], chosen: Sequence[Target]) -> Manifest:
    from relu_ops.bundle import manifest as manifests
    from relu_ops.compiler import image

    images = (
        manifests.ImageEntry(
            manifests.image_file(target.name),
            target.name,
            manifests.Requirements(image.requirements(target)),
        )
        for target in chosen
    )
    return manifests.Manifest(
        format=manifests.FORMAT_VERSION,
        semantics=SEMANTICS_VERSION,
        producer={**producer(chosen), "llvm": _llvm_version()},
        operators=tuple(map(manifests.OperatorEntry, names, files)),
        images=tuple(images),
    )


def _llvm_version() -> str:
    """The release of LLVM that TVM was built with: its wheels have one each."""
    import tvm

    return str(tvm.get_global_func("target.llvm_version_major")())
