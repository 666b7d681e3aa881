"""Describes a bundle, as plain data: what it holds, and what of that runs here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from relu_ops import targets
from relu_ops.bundle import store as bundles
from relu_ops.bundle.store import Bundle
from relu_ops.errors import ArgumentError, MissingDependencyError, TargetError, require
from relu_ops.report.inspect.models import describe_operator, describe_target, describe_tensor

if TYPE_CHECKING:
    from relu_ops.compiler.frontend import Model


def bundle_at(path_or_model: Model | Bundle) -> Bundle | None:
    """The bundle, or None where a model is meant."""
    if isinstance(path_or_model, Bundle):
        return path_or_model
    if not isinstance(path_or_model, str | os.PathLike):
        return None
    if os.path.isdir(path_or_model):
        return bundles.read(path_or_model)
    if not os.path.isfile(path_or_model):
        raise ArgumentError(
            f"{os.fspath(path_or_model)}: there is no such file or directory",
            "pass the directory of a bundle or an .onnx file",
        )
    return None


def describe_bundle(held: Bundle) -> dict[str, Any]:
    """See `relu_ops.report.inspect.describe`."""
    manifest = held.manifest
    return {
        "kind": "bundle",
        "path": str(held.path),
        "operators": [_held_operator(held, entry.name) for entry in manifest.operators],
        "sha256": held.digest,
        "size": sum(map(len, held.contents.values())),
        "format": manifest.format,
        "semantics": manifest.semantics,
        "targets": [
            {
                **describe_target(targets.parse(image.target)),
                "size": len(held.contents[image.file]),
                "requires": list(image.requires.features),
            }
            for image in manifest.images
        ],
        "files": [
            {"path": path, "size": len(content), "sha256": bundles.digest_of(content)}
            for path, content in held.contents.items()
        ],
        "producer": dict(manifest.producer),
    }


def _held_operator(held: Bundle, name: str) -> dict[str, Any]:
    """An operator of a bundle: its signature as the image has it, or else as the model has it."""
    try:
        require("onnx", "compile", "showing the graph")
    except MissingDependencyError as error:
        described = {"inputs": None, "outputs": None, "graph": None, "graph_missing": str(error)}
    else:
        from relu_ops.compiler import frontend

        proto = frontend.read_model(held.model(name))
        described = {**describe_operator(proto), "graph_missing": None}
    return {**described, **_signature(held, name), "name": name}


def _signature(held: Bundle, name: str) -> dict[str, Any]:
    """Inputs and outputs, by an image that can be mapped here; none of its code runs."""
    from relu_ops.runtime.operator import Operator

    try:
        operator = Operator(held.handle, name, None, held)
    except TargetError:
        return {}
    return {
        "inputs": [describe_tensor(*tensor) for tensor in operator.inputs],
        "outputs": [describe_tensor(*tensor) for tensor in operator.outputs],
    }
