"""relu_ops inside onnxruntime: a library of custom operators; and in its clothes: a session.

A whole network runs in onnxruntime, and its activations here: `relu_ops.partition` writes such a
network, `session` opens it, and `register` gives the operators of bundles to session options of
one's own. The library is the core itself; its settings are one entry of the session's
configuration, the same from every language (docs/onnxruntime.md).

`InferenceSession` is the other way round: a bundle, or a model in scope, called as onnxruntime's
class of that name is, without onnxruntime.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from relu_ops import config
from relu_ops.bundle import store as bundles
from relu_ops.errors import ArgumentError, ArgumentTypeError, BundleError, require
from relu_ops.interop.inference_session import InferenceSession, IOBinding, NodeArg

__all__ = [
    "BUNDLE",
    "DIGEST",
    "DOMAIN",
    "ENTRY",
    "MODEL",
    "IOBinding",
    "InferenceSession",
    "NodeArg",
    "library_path",
    "node_type",
    "register",
    "session",
]

DOMAIN = "relu_ops"
"""The domain of the operators' nodes."""

ENTRY = "relu_ops.bundles"
"""The entry of a session's configuration that says which bundles the library opens, one a line."""

MODEL, BUNDLE = "model.onnx", "operators.bundle"
"""What a partitioned model's folder holds."""

DIGEST = "relu_ops.digest"
"""Where a partitioned model says which bundle it was made with: a key of its metadata."""

_PREFIX_DIGITS = 12
_LONGEST_ENTRY = 2048
"""Of onnxruntime's entries, in characters."""

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def library_path() -> str:
    """The library of custom operators, for `register_custom_ops_library` in any language.

    Raises:
        BuildError: It is not there.
    """
    return config.values()["library"]


def node_type(name: str, digest: str) -> str:
    """What a node is called that runs an operator of a bundle.

    Args:
        name: The operator's name.
        digest: The digest of the bundle: no two bundles' nodes have one name.

    >>> node_type("relu", "0123456789abcdef" * 4)
    'relu_0123456789ab'
    """
    return f"{name}_{digest[:_PREFIX_DIGITS]}"


def register(options: Any, path: Paths, digest: str | Sequence[str | None] | None = None) -> None:
    """Give the operators of one or several bundles to a session.

    Args:
        options: An `onnxruntime.SessionOptions`. Bundles are registered once: all in one call.
        path: A bundle's directory, or a list of them.
        digest: The expected digest, or None to take the one found; a list, for a list of paths.

    Raises:
        ArgumentTypeError: A path is no path, or a digest no text.
        ArgumentError: The options have bundles already, or the list is none that can be passed on.
        BundleError: A bundle is missing, damaged, or not the expected one.
    """
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    digests = [digest] * len(paths) if digest is None or isinstance(digest, str) else list(digest)
    if not paths or len(paths) != len(digests) or (isinstance(digest, str) and len(paths) > 1):
        raise ArgumentError(
            f"register: there must be one digest a bundle ({len(paths)} paths, "
            f"{0 if digest is None else len(digests)} digests)",
            "pass digest=None to take the bundles that are found",
        )
    # Read here first: an error has a class and a hint so, and the options stay as they were.
    entry = "\n".join(_line(one, wanted) for one, wanted in zip(paths, digests, strict=True))
    if len(entry) > _LONGEST_ENTRY:
        raise ArgumentError(
            f"register: the paths of the bundles have {len(entry)} characters together; "
            f"onnxruntime takes {_LONGEST_ENTRY}",
            "put the operators into one bundle: relu_ops.build takes several models",
        )
    _check_first(options)
    options.add_session_config_entry(ENTRY, entry)
    options.register_custom_ops_library(library_path())


def _line(path: str | os.PathLike[str], digest: str | None) -> str:
    found = bundles.read(path, digest)
    shown = os.path.abspath(os.fsdecode(path))
    if "\n" in shown:
        raise ArgumentError(
            f"register: the path {shown!r} holds a line break, which separates paths",
            "move the bundle",
        )
    return f"{shown}#{found.digest}"


def _check_first(options: Any) -> None:
    """onnxruntime takes one set of operators of a domain, and says so when it is too late."""
    if not hasattr(options, "add_session_config_entry"):
        raise ArgumentTypeError(
            "register: options must be an onnxruntime.SessionOptions "
            f"(not {type(options).__name__})",
            "make one: onnxruntime.SessionOptions()",
        )
    try:
        present = options.get_session_config_entry(ENTRY)
    except RuntimeError:  # there is no such entry
        return
    shown = ", ".join(line.partition("#")[0] for line in present.split("\n"))
    raise ArgumentError(
        f"register: the session options have bundles already: {shown}",
        "register all bundles in one call, with a list of paths",
    )


def session(
    folder: str | os.PathLike[str],
    options: Any = None,
    *,
    digest: str | None = None,
    **arguments: Any,
) -> Any:
    """Open what `relu_ops.partition` wrote.

    Args:
        folder: The folder.
        options: An `onnxruntime.SessionOptions`, or None for one of the defaults. It is given
            the folder's operators.
        digest: The expected digest of the folder's bundle, or None to take the one found.
        **arguments: What else `onnxruntime.InferenceSession` takes, such as `providers`.

    Returns:
        An `onnxruntime.InferenceSession`.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ArgumentError: The folder holds no partitioned model.
        BundleError: The bundle is missing, damaged, or not the one of the model.
    """
    require("onnxruntime", "verify", "relu_ops.interop.onnxruntime.session")
    import onnxruntime

    model, bundle = Path(folder, MODEL), Path(folder, BUNDLE)
    if not model.is_file():
        raise ArgumentError(f"{model}: is not there", "write it with relu_ops.partition")
    if options is None:
        options = onnxruntime.SessionOptions()
    held = None
    if bundle.exists() or digest is not None:
        held = bundles.read(bundle, digest).digest
        register(options, bundle, held)
    opened = onnxruntime.InferenceSession(str(model), options, **arguments)
    wanted = opened.get_modelmeta().custom_metadata_map.get(DIGEST)
    if wanted != held:
        raise BundleError(
            f"{bundle}: has the digest {held}; the model beside it was made with {wanted}",
            "partition the model again, or copy the whole folder",
        )
    return opened
