"""Builds a bundle's own models again, and compares every byte."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from relu_ops.bundle import manifest as manifests
from relu_ops.bundle.manifest import Manifest, printable
from relu_ops.bundle.store import Bundle
from relu_ops.errors import ArgumentError, require
from relu_ops.report.inspect.bundles import bundle_at
from relu_ops.report.inspect.text import in_bytes, joined, table

if TYPE_CHECKING:
    from relu_ops.compiler.frontend import Model


def rebuild_check(path_or_bundle: str | os.PathLike[str] | Bundle) -> dict[str, Any]:
    """Build a bundle's own models again, for the same targets, and compare every byte.

    Args:
        path_or_bundle: A bundle's directory, or a `Bundle`.

    Returns:
        Plain data: "path", "identical", "files" (models and images, each with "path", "identical",
        "size", "rebuilt_size", and how many bytes are "different" from which "first_difference"
        on), "manifest" (the entries, beside the producer, that differ) and "tools" (those whose
        version "in_bundle" is not the one "here"). Images can only be expected to be identical
        where "tools" is empty.

    Raises:
        ArgumentError: There is no such directory, or it is a model.
        BundleError: The bundle is damaged.
        ModelError: A model of it is not valid ONNX; as `UnsupportedError` if it is, but out of
            scope.
        BuildError: A target cannot be built for, or TVM made something unexpected.
        MissingDependencyError: onnx or TVM is not installed.
    """
    held = bundle_at(path_or_bundle)
    if held is None:
        raise ArgumentError(
            f"{path_or_bundle}: is no bundle, so there is nothing to compare with",
            "pass the directory of a bundle",
        )
    for package in ("onnx", "tvm"):
        require(package, "compile", "relu_ops.report.inspect.rebuild_check")
    from relu_ops import compiler

    contents = compiler.make(_models(held), held.manifest.targets)
    rebuilt = manifests.decode(contents[manifests.FILE])
    files = [
        _comparison(name, held.contents[name], contents.get(name, b""))
        for name in held.manifest.files
    ]
    fields = _differing_fields(held.manifest, rebuilt)
    return {
        "path": str(held.path),
        "identical": all(file["identical"] for file in files) and not fields,
        "files": files,
        "manifest": fields,
        "tools": _differing_tools(held.manifest.producer, rebuilt.producer),
    }


def _models(held: Bundle) -> Model | dict[str, Model]:
    """A bundle's models, as `compiler.make` takes them to give the operators the same names."""
    from relu_ops.compiler import frontend

    models = {entry.name: held.contents[entry.model] for entry in held.manifest.operators}
    (name, model), *others = models.items()
    if others or printable(frontend.read_model(model).graph.name) != name:
        return models
    return model


def _comparison(name: str, held: bytes, rebuilt: bytes) -> dict[str, Any]:
    pairs = enumerate(zip(held, rebuilt, strict=False))
    places = [at for at, (a, b) in pairs if a != b] if held != rebuilt else []
    shorter, longer = sorted((len(held), len(rebuilt)))
    first = places[0] if places else shorter
    return {
        "path": name,
        "identical": held == rebuilt,
        "size": len(held),
        "rebuilt_size": len(rebuilt),
        "different": len(places) + longer - shorter,
        "first_difference": None if held == rebuilt else first,
    }


def _differing_fields(held: Manifest, rebuilt: Manifest) -> list[str]:
    """Entries of a manifest that differ. Files are compared, and the producer is shown."""
    names = [name for name in held.__struct_fields__ if name != "producer"]
    return [name for name in names if getattr(held, name) != getattr(rebuilt, name)]


def _differing_tools(held: Mapping[str, str], here: Mapping[str, str]) -> list[dict[str, str]]:
    return [
        {"name": name, "in_bundle": held.get(name, "absent"), "here": here.get(name, "absent")}
        for name in sorted({*held, *here})
        if held.get(name, "absent") != here.get(name, "absent")
    ]


def render_rebuild(report: Mapping[str, Any]) -> str:
    """Write what `rebuild_check` returned for people."""
    lines = [f"{report['path']}: {'identical' if report['identical'] else 'different'}"]
    lines += table([(file["path"], _show_comparison(file)) for file in report["files"]])
    if report["manifest"]:
        lines += table([("manifest.json", f"differs in {', '.join(report['manifest'])}")])
    if report["tools"]:
        reason = "" if report["identical"] else ", which may be the reason"
        lines += ["", f"made with other versions than this machine has{reason}"]
        lines += table(
            [
                (t["name"], f"bundle: {t['in_bundle']}", f"here: {t['here']}")
                for t in report["tools"]
            ]
        )
    return joined(lines)


def _show_comparison(file: Mapping[str, Any]) -> str:
    if file["identical"]:
        return f"identical, {in_bytes(file['size'])}"
    sizes = f"{file['size']} bytes, {file['rebuilt_size']} rebuilt"
    return f"{file['different']} bytes differ from offset {file['first_difference']} on ({sizes})"
