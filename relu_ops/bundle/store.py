"""The bundle: the narrow waist between building and running.

A bundle is a directory: `SHA256SUMS`, `manifest.json`, one `NAME.onnx` an operator, one image a
target, and nothing else. It is written here, to a temporary sibling that is then renamed. It is
read by the native core, into memory, with every digest checked before a byte of it is treated as
code. Knows the file system; never imports a compiler.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from relu_ops.errors import ArgumentError, ArgumentTypeError, BundleError
from relu_ops.native import _python as native

if TYPE_CHECKING:
    from pathlib import Path

    from relu_ops.bundle.manifest import Manifest

SUMS = "SHA256SUMS"

_LARGEST_LIST = 2**22  # of 4,096 operators with long names; a manifest has 1 kB
_LINE = re.compile(rb"[0-9a-f]{64}  ([A-Za-z0-9_][A-Za-z0-9._-]*)\n")
_HERE, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD and a flag of Linux' renameat2


class Bundle:
    """A bundle that was read and checked; its files are in memory.

    Attributes:
        handle: The core's own object, which operators are made of.
    """

    def __init__(self, path: str | os.PathLike[str], handle: native.Bundle) -> None:
        self._path = os.fsdecode(path)
        self.handle = handle

    @property
    def path(self) -> Path:
        """Where it was read from."""
        from pathlib import Path  # takes milliseconds, which whoever only runs it does not need

        return Path(self._path)

    @property
    def digest(self) -> str:
        """The sha256 of SHA256SUMS, which covers every file."""
        return self.handle.digest

    @cached_property
    def contents(self) -> Mapping[str, bytes]:
        """The bytes of every file, by name; SHA256SUMS is one of them."""
        return self.handle.files

    @cached_property
    def manifest(self) -> Manifest:
        """What it says of itself.

        Raises:
            BundleError: The manifest is none, or names other files than there are.
        """
        from relu_ops.bundle import manifest

        try:
            found = manifest.decode(self.contents.get(manifest.FILE, b""))
            _check_agrees("files", {SUMS, manifest.FILE, *found.files}, self.contents)
            names = (entry.name for entry in found.operators)
            _check_agrees("operators", names, self.handle.operators)
            _check_agrees("targets", found.targets, self.handle.targets)
        except BundleError as error:
            raise BundleError(f"{self.path}: {error.message}", error.hint) from error
        return found

    def operator_name(self, name: str | None) -> str:
        """The name of an operator, checked; that of the only one where None is given.

        Raises:
            ArgumentError: There is no such operator, or there are several; the message lists them.
        """
        names = self.handle.operators
        if name is None and len(names) == 1:
            return names[0]
        if name is not None and name in names:
            return name
        listed = ", ".join(names)
        raise ArgumentError(
            f"{self.path}: holds {len(names)} operators; name must be one of {listed}"
            if name is None
            else f"{self.path}: has no operator called {name}; it has {listed}"
        )

    def model(self, name: str) -> bytes:
        """The model of an operator, by the operator's name: an ONNX file."""
        entry = next(entry for entry in self.manifest.operators if entry.name == name)
        return self.contents[entry.model]

    def image(self, target: str) -> bytes:
        """The image of a target, by the target's name."""
        entry = next(entry for entry in self.manifest.images if entry.target == target)
        return self.contents[entry.file]

    def __repr__(self) -> str:
        return f"<relu_ops.Bundle {self.path} {self.digest[:16]}>"

    def __reduce__(self) -> tuple[Callable[..., Bundle], tuple[Any, ...]]:
        return from_contents, (str(self.path), dict(self.contents), self.digest)


def _check_agrees(what: str, listed: Iterable[str], held: Iterable[str]) -> None:
    """Refuse a manifest that lists other files, operators or targets than the bundle holds."""
    if wrong := sorted(set(listed) ^ set(held)):
        shown = ", ".join(map(repr, wrong[:3]))
        raise BundleError(f"the manifest and the bundle have other {what}: {shown}")


def digest_of(content: bytes) -> str:
    """The sha256 of some bytes, in hexadecimal."""
    import hashlib

    return hashlib.sha256(content).hexdigest()


# ---------------------------------------------------------------------------------------------
# Reading


def read(path: str | os.PathLike[str], digest: str | None = None) -> Bundle:
    """Read a bundle and check every file against its digest.

    Args:
        path: The directory.
        digest: The expected sha256 of its SHA256SUMS, or None to trust the one found.

    Raises:
        ArgumentTypeError: The path is no path, or the digest no text.
        BundleError: There is no bundle, or it is not what its SHA256SUMS (or `digest`) says.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(
            f"the bundle's path must be a path (not {type(path).__name__})",
            "pass the path of its directory",
        )
    if "\0" in os.fsdecode(path):
        raise ArgumentError(f"the bundle's path must hold no zero byte (not {os.fsdecode(path)!r})")
    if not isinstance(digest, str | None):
        raise ArgumentTypeError(
            f"digest must be a text (not {type(digest).__name__})",
            "pass what relu_ops.build returned, or None to take any",
        )
    return Bundle(path, native.read_bundle(os.fspath(path), digest))


def from_contents(path: str, contents: Mapping[str, bytes], digest: str | None = None) -> Bundle:
    """Make a bundle of files that did not come from a directory, checked as if they had.

    Args:
        path: What messages call it.
        contents: The bytes of every file, by name; SHA256SUMS is one of them.
        digest: As for `read`.

    Raises:
        BundleError: They are not what their SHA256SUMS (or `digest`) says.
    """
    return Bundle(path, native.open_files(path, contents, digest))


# ---------------------------------------------------------------------------------------------
# Writing


def pack(manifest: Manifest, contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """All files of a bundle.

    Args:
        manifest: The manifest.
        contents: The bytes of the files that it names.

    Returns:
        Those, the manifest and SHA256SUMS, by name.
    """
    from relu_ops.bundle.manifest import FILE, encode

    files = dict(sorted({**contents, FILE: encode(manifest)}.items()))
    lines = [f"{digest_of(content)}  {name}\n" for name, content in files.items()]
    return {SUMS: "".join(lines).encode(), **files}


def write(path: str | os.PathLike[str], files: Mapping[str, bytes]) -> str:
    """Write a bundle, replacing one that is there; whatever else is there is left alone.

    Args:
        path: The directory to make; its parents too, where they are missing.
        files: What `pack` made.

    Returns:
        The digest of the bundle.

    Raises:
        ArgumentTypeError: The path is no path.
        ArgumentError: It exists and is not a bundle.
        BundleError: The bundle cannot be written there.
    """
    from pathlib import Path

    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(
            f"the bundle's path must be a path (not {type(path).__name__})",
            "pass the path of the directory to make",
        )
    final = Path(os.path.abspath(path))
    if os.path.lexists(final) and not is_bundle(final):
        raise ArgumentError(
            f"{final}: exists and is not a bundle, so it is not replaced", "choose another path"
        )
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with _temporary_sibling(final) as temporary:
            for name, content in files.items():
                _write_synced(temporary / name, content)
            _sync_directory(temporary)
            _put_in_place(temporary, final)
        _sync_directory(final.parent)
    except OSError as error:
        raise BundleError(f"{final}: cannot be written: {error.strerror or error}") from error
    return digest_of(files[SUMS])


def is_bundle(path: Path) -> bool:
    """True for a directory with a bundle's lists of files and nothing that these do not list.

    The files themselves may be missing or damaged: only what could be somebody's other work counts.
    """
    from relu_ops.bundle.manifest import FILE, decode

    if path.is_symlink():
        return False
    try:
        sums = _read_list(path / SUMS)
        decode(_read_list(path / FILE))
        listed = {SUMS, *map(os.fsdecode, _LINE.findall(sums))}
        return set(os.listdir(path)) <= listed
    except (BundleError, OSError):
        return False


def _read_list(path: Path) -> bytes:
    """Read a small regular file: nothing blocks, and no device is read."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise BundleError(f"{path}: is no regular file")
        return file.read(_LARGEST_LIST)


@contextlib.contextmanager
def _temporary_sibling(final: Path) -> Iterator[Path]:
    import shutil
    import tempfile
    from pathlib import Path

    temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename. A bundle that is already there takes the temporary name, and is removed with it.

    Where the system cannot exchange two names in one step (a file system over the network, a
    kernel before 3.15), there is an instant between two renames in which a reader finds none.
    """
    import shutil

    if os.path.lexists(final) and _exchange(temporary, final):
        return
    aside = temporary.with_name(temporary.name + ".old")
    if final.exists():
        final.rename(aside)
    try:
        temporary.rename(final)
    except OSError:
        if aside.exists():
            aside.rename(final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where this cannot be done here."""
    import ctypes

    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # glibc 2.28
    if renameat2 is None:
        return False
    names = (os.fsencode(one), os.fsencode(other))
    if renameat2(_HERE, names[0], _HERE, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    # No such call or flag here, the call filtered away, or the other removed just now.
    if code in (errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ENOENT):
        return False
    raise OSError(code, os.strerror(code))


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # CIFS, sshfs and vboxsf sync no directories
            raise
    finally:
        os.close(descriptor)
