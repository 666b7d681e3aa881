"""Writes a bundle as a folder that the `kernels` package loads (huggingface.co/docs/kernels).

Its layout is `build/VARIANT/{__init__.py, metadata.json}`, where a variant names a framework that
has to be there: torch in any release, or tvm-ffi. The bundle lies beside them with its digest
pinned. What runs it is relu_ops, which the loader cannot ask for: where it is missing, the import
says so.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from relu_ops.bundle import store as bundles
from relu_ops.bundle.store import Bundle
from relu_ops.errors import ArgumentError
from relu_ops.targets import parse

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

_MODULE = '''"""Compiled operators, run by relu_ops."""

from pathlib import Path

try:
    import relu_ops
except ImportError as error:
    raise ImportError("this kernel is run by relu_ops: pip install relu_ops") from error

DIGEST = "{digest}"
OPERATORS = {names!r}


def load(**options):
    """Load an operator: see relu_ops.load, which says what the options are."""
    options.setdefault("digest", DIGEST)
    return relu_ops.load(Path(__file__).with_name("operators.bundle"), **options)


def __getattr__(name):
    if name in OPERATORS:
        return globals().setdefault(name, load(name=name))
    raise AttributeError(f"this kernel has no operator {{name!r}}; it has {{', '.join(OPERATORS)}}")
'''


def export(
    bundle: str | os.PathLike[str] | Bundle,
    folder: str | os.PathLike[str],
    *,
    name: str,
    version: int = 1,
    license: str = "unknown",
) -> Path:
    """Write a folder for `kernels.get_local_kernel`.

    Args:
        bundle: The bundle, or its directory. It must hold an image for the CPU.
        folder: Where to write. It must not exist, or be empty.
        name: The kernel's: small letters, digits and '-', such as "leaky-demo".
        version: The kernel's version, from 1 on.
        license: Of the models, as SPDX names it; the loader wants a word.

    Returns:
        The folder. The module that the loader gives has an attribute for each operator whose name
        is an identifier, and `load`, which is `relu_ops.load` with the digest pinned.

    Raises:
        ArgumentError: The name or version is none, the folder is not empty or cannot be written.
        BundleError: The bundle is missing or damaged.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ArgumentError(
            f"export-kernel: name must be small letters, digits and single '-' (not {name!r})",
            "for example leaky-demo",
        )
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ArgumentError(
            f"export-kernel: version must be a number from 1 on (not {version!r})",
            "count up with each one that is published",
        )
    held = bundle if isinstance(bundle, Bundle) else bundles.read(bundle)
    path = Path(folder)
    try:
        if path.exists() and any(path.iterdir()):
            raise ArgumentError(f"{path}: is not empty", "name a folder that is new")
        for variant in variants(held):
            metadata = _metadata(held, name, version, license, variant)
            _write(held, path / "build" / variant, metadata)
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be written: {error.strerror}") from error
    return path


def variants(bundle: Bundle) -> tuple[str, ...]:
    """Those that can load a bundle; all but the first also where there is no torch."""
    found = {parse(target).backend for target in bundle.handle.targets}
    names = (f"tvm-ffi01-cpu-{one.processors[0]}-linux" for one in found if one.processors)
    return "torch-cpu", *sorted(names)


def _metadata(
    bundle: Bundle, name: str, version: int, license: str, variant: str
) -> dict[str, object]:
    identifier = f"_{name}_{variant}_{bundle.digest[:16]}"
    return {
        "id": re.sub(r"[^a-z0-9_]", "_", identifier),
        "name": name,
        "version": version,
        "license": license,
        "python-depends": [],
        "backend": {"type": "cpu"},
    }


def _write(bundle: Bundle, folder: Path, metadata: dict[str, object]) -> None:
    module = _MODULE.format(names=tuple(bundle.handle.operators), digest=bundle.digest)
    (folder / "operators.bundle").mkdir(parents=True)
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n")
    (folder / "__init__.py").write_text(module, encoding="utf-8")
    for name, content in bundle.contents.items():
        (folder / "operators.bundle" / name).write_bytes(content)
