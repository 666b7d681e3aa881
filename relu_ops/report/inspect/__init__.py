"""Describes a bundle or a model, and shows what it is compiled to.

A description is plain data, for `json.dumps`; `render` writes it for people. Reads a bundle with
every digest checked and runs none of its code. Nodes need onnx, sources need TVM and machine code
needs capstone; without them a bundle still says what files, operators and targets it has.

One module each: `bundles` and `models` (descriptions as data), `text` (for people), `rebuild`
(whether a bundle's models still build to its bytes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from relu_ops import targets
from relu_ops.bundle.store import Bundle
from relu_ops.compiler.cpu.disassembly import disassembly
from relu_ops.errors import ArgumentError, TargetError, require
from relu_ops.report.inspect.bundles import bundle_at, describe_bundle
from relu_ops.report.inspect.models import describe_model
from relu_ops.report.inspect.rebuild import rebuild_check, render_rebuild
from relu_ops.report.inspect.text import render
from relu_ops.targets import Target

if TYPE_CHECKING:
    from relu_ops.compiler.frontend import Model

__all__ = ["describe", "rebuild_check", "render", "render_rebuild", "source"]

_PURPOSE = "relu_ops.report.inspect"


def describe(path_or_model: Model | Bundle) -> dict[str, Any]:
    """Describe a bundle or an ONNX model.

    Args:
        path_or_model: A bundle's directory, a `Bundle` (as of `op.bundle`), or a model, as for
            `relu_ops.compile`.

    Returns:
        Plain data. For both: "kind" ("bundle" or "model"), "path", "operators" (each with "name",
        "inputs", "outputs", and "graph", which is None where onnx is not installed), "targets"
        with whether each runs on this machine, "size" in bytes and "sha256", a bundle's digest.
        For a bundle also its versions, files and producer; for a model "in_scope", and "why_not"
        where it is False.

    Raises:
        ArgumentError: There is no such file or directory.
        BundleError: The bundle is damaged.
        ModelError: The model is not valid ONNX. One that is, and out of scope, is described.
        MissingDependencyError: A model is asked for, and onnx is not installed.
    """
    held = bundle_at(path_or_model)
    return describe_model(path_or_model) if held is None else describe_bundle(held)


def source(
    path_or_model: Model | Bundle,
    target: str | None = None,
    kind: str = "tir",
    name: str | None = None,
) -> str:
    """Show what an operator is compiled to: by this installation, or in a bundle.

    Args:
        path_or_model: As for `describe`.
        target: A target by name; by default "native", the best that this machine runs, for a
            bundle of those that it has.
        kind: One of the `forms` of the target's backend. "assembly" of a bundle is what its image
            holds; everything else is made anew of the model.
        name: Which operator of a bundle; None where it has one.

    Returns:
        The text.

    Raises:
        ArgumentError: The kind or name is another, or there is no such file or directory.
        BundleError: The bundle is damaged.
        ModelError: The model is not valid ONNX; as `UnsupportedError` if it is, but out of scope.
        TargetError: The target is not known.
        MissingDependencyError: onnx, TVM or capstone is not installed.
    """
    held = bundle_at(path_or_model)
    chosen = _best_target(held) if target in (None, "native") else targets.resolve(target)
    if kind not in chosen.backend.forms:
        kinds = ", ".join(chosen.backend.forms)
        raise ArgumentError(
            f"source: kind must be one of {kinds} for {chosen} (not {kind!r})",
            "tir is TVM's loops, assembly the machine code that ships",
        )
    if held is None and name is not None:
        raise ArgumentError(
            f"source: name chooses an operator of a bundle, and a model is one (not {name!r})",
            "leave it out",
        )
    operator = None if held is None else held.operator_name(name)
    if kind == "assembly":
        require("capstone", "inspect", f"{_PURPOSE}.source of machine code")
    if held and operator and kind == "assembly" and chosen.name in held.manifest.targets:
        return disassembly(held.image(chosen.name), operator)
    for package in ("onnx", "tvm"):
        require(package, "compile", f"{_PURPOSE}.source")
    from relu_ops.compiler import backends, frontend, image

    graph = frontend.import_model(held.model(operator) if held and operator else path_or_model)
    if kind == "assembly":
        return disassembly(image.build([(graph.name, graph)], chosen), graph.name)
    return getattr(backends.of(chosen).sources(graph, chosen), kind)


def _best_target(held: Bundle | None) -> Target:
    """What a machine would run of a bundle, or its first target where that is nothing."""
    if held is None:
        return targets.native()
    machine = targets.this_machine()
    try:
        return targets.parse(held.handle.choose(machine.architecture, machine.flags))
    except TargetError:
        return targets.parse(held.manifest.targets[0])
