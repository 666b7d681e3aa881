"""Writes a wheel of a bundle: a Python package whose `load()` gives the operator.

Equal bundles, names and versions give equal bytes: times are fixed and nothing is compressed, since
compressors differ. The digest stands in the package, so that a file that was changed is refused.

The tags say which processors the images are for, and nothing of a C library: an image calls none.
`manylinux1` and `musllinux_1_0` are the oldest that installers know.
"""

from __future__ import annotations

import base64
import hashlib
import io
import keyword
import os
import re
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from relu_ops._version import __version__
from relu_ops.bundle import store as bundles
from relu_ops.bundle.store import Bundle
from relu_ops.errors import ArgumentError
from relu_ops.targets import parse

_FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # the first that a zip can write
_NAME = re.compile(r"[a-z0-9]+([-_.]+[a-z0-9]+)*", re.IGNORECASE)  # packaging.python.org: names
# The forms of a version that need no normalizing: PEP 440, appendix B, without its variants.
_VERSION = re.compile(
    r"([1-9][0-9]*!)?(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*((a|b|rc)(0|[1-9][0-9]*))?"
    r"(\.post(0|[1-9][0-9]*))?(\.dev(0|[1-9][0-9]*))?(\+[a-z0-9]+(\.[a-z0-9]+)*)?"
)
_PACKAGE = '''"""{summary}"""

from pathlib import Path

import relu_ops

DIGEST = "{digest}"


def load(**options):
    """Load an operator: see relu_ops.load, which says what the options are.

    Raises:
        relu_ops.errors.BundleError: A file is not the one that was packed.
    """
    options.setdefault("digest", DIGEST)
    return relu_ops.load(Path(__file__).with_name("operators.bundle"), **options)
'''
_METADATA = """Metadata-Version: 2.1
Name: {name}
Version: {version}
Summary: {summary}
Requires-Python: >=3.11
Requires-Dist: relu_ops>={relu_ops}
"""
_WHEEL = """Wheel-Version: 1.0
Generator: relu_ops {relu_ops}
Root-Is-Purelib: true
"""


def write(
    bundle: str | os.PathLike[str] | Bundle,
    folder: str | os.PathLike[str],
    *,
    name: str,
    version: str,
) -> Path:
    """Write a wheel of a bundle.

    Args:
        bundle: The bundle, or its directory.
        folder: Where to write; it is made where it is missing.
        name: Of the distribution, such as "leaky-demo". The package to import has underscores:
            `leaky_demo`.
        version: As PEP 440 normalizes it, such as "1.0" or "1.0rc1".

    Returns:
        The path of the wheel. Its package has `load()`, which is `relu_ops.load` with the digest
        pinned, and `DIGEST`.

    Raises:
        ArgumentError: The name or the version is none, or the file cannot be written.
        BundleError: The bundle is missing or damaged.
    """
    package = _package_of(name)
    if not _VERSION.fullmatch(version):
        raise ArgumentError(
            f"wheel: version must be normalized as PEP 440 has it (not {version!r})",
            "for example 1.0, 1.0.2 or 2.0rc1",
        )
    held = bundle if isinstance(bundle, Bundle) else bundles.read(bundle)
    tags = _tags(held)
    files = _files(held, package, name, version, tags)
    path = Path(folder) / f"{package}-{version}-py3-none-{tags}.whl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_zipped(files, f"{package}-{version}.dist-info/RECORD"))
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be written: {error.strerror}") from error
    return path


def _package_of(name: str) -> str:
    """The package to import, of the name of a distribution."""
    package = re.sub(r"[-_.]+", "_", name).lower()
    taken = keyword.iskeyword(package) or package in sys.stdlib_module_names
    if not _NAME.fullmatch(name) or not package.isidentifier() or taken or package == "relu_ops":
        raise ArgumentError(
            "wheel: name must be letters, digits and single '-' between them, begin with a letter, "
            f"and be no word or package of Python or relu_ops itself (not {name!r})",
            "for example leaky-demo, which is imported as leaky_demo",
        )
    return package


def _tags(bundle: Bundle) -> str:
    """The platform tags: those of each processor that has an image; any, where it is CUDA alone."""
    tags = {tag for target in bundle.handle.targets for tag in parse(target).backend.wheel_tags}
    return ".".join(sorted(tags)) or "any"


def _files(bundle: Bundle, package: str, name: str, version: str, tags: str) -> dict[str, bytes]:
    operators = ", ".join(bundle.handle.operators)
    facts = {
        "name": name,
        "version": version,
        "digest": bundle.digest,
        "relu_ops": __version__,
        "summary": _plain(f"Compiled {operators} for {', '.join(bundle.handle.targets)}"),
    }
    information = f"{package}-{version}.dist-info"
    wheel = _WHEEL + "".join(f"Tag: py3-none-{tag}\n" for tag in tags.split("."))
    return {
        f"{package}/__init__.py": _PACKAGE.format(**facts).encode(),
        **{f"{package}/operators.bundle/{file}": c for file, c in bundle.contents.items()},
        f"{information}/METADATA": _METADATA.format(**facts).encode(),
        f"{information}/WHEEL": wheel.format(**facts).encode(),
    }


def _plain(text: str) -> str:
    """One line of ASCII that can stand in a docstring and in a header."""
    return re.sub(r"[^ -!#-\[\]-~]", "?", text)


def _zipped(files: Mapping[str, bytes], record: str) -> bytes:
    rows = (f"{name},sha256={_digest(data)},{len(data)}\n" for name, data in files.items())
    listed = "".join([*rows, f"{record},,\n"]).encode()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name, data in {**files, record: listed}.items():
            entry = zipfile.ZipInfo(name, _FIRST_DAY)
            entry.external_attr = 0o100644 << 16
            entry.create_system = 3  # Unix: the attributes are a mode
            archive.writestr(entry, data)
    return content.getvalue()


def _digest(content: bytes) -> str:
    """As RECORD has it: PEP 376, URL-safe and without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
