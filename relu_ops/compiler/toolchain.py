"""What decides the bytes of an image beside the model: versions, and this package's own sources.

No program of the machine does: neither a C compiler nor a linker runs. Imports neither onnx nor
TVM, so that a warm cache answers without them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from relu_ops._version import __version__, installed_version
from relu_ops.targets import Target

_PACKAGES = ("apache-tvm", "ml_dtypes", "numpy", "onnx")

# What runs, measures and shows operators compiles none. A folder that is new counts.
_APART = {"bench", "interop", "report", "runtime"}


def producer(chosen: Iterable[Target] = ()) -> dict[str, str]:
    """Every package whose version decides the bytes of images, by name.

    Args:
        chosen: The images' targets.
    """
    others = {name for target in chosen for name in target.backend.packages}
    packages = (*_PACKAGES, *sorted(others))
    versions = {name: installed_version(name) or "absent" for name in packages}
    return {"relu_ops": __version__, **versions}


@functools.cache
def source_digest() -> str:
    """A digest of relu_ops' own sources that decide what is compiled: for developers' caches."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(_sources(package)):
        content = path.read_bytes()
        name = path.relative_to(package).as_posix()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _sources(package: Path) -> Iterator[Path]:
    for pattern in ("**/*.py", "**/*.h"):
        for path in package.glob(pattern):
            if path.relative_to(package).parts[0] not in _APART:
                yield path
