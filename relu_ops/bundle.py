"""The bundle: the narrow waist between building and running.

A bundle is a directory with `manifest.json`, `model.onnx`, one shared library per target, and
nothing else. It is written to a temporary sibling and renamed; it is read with every digest
checked, into memory, before a byte of it is treated as code. Knows the file system; never
imports a compiler.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from relu_ops import targets
from relu_ops.errors import ArgumentError, ArgumentTypeError, BundleError
from relu_ops.semantics import DTYPES, SEMANTICS_VERSION

FORMAT_VERSION = 1
"""Raised when a manifest, or what the runtime asks of a library, changes; see docs/bundle.md."""

Plain = dict[str, Any]

# What makes a manifest of an older format one of the next, by the older's number. A release reads
# every format since 1: who raises FORMAT_VERSION adds a row here, and a bundle to tests/data.
_UPGRADES: dict[int, Callable[[Plain], Plain]] = {}

MANIFEST = "manifest.json"
MODEL = "model.onnx"

# A manifest has about 3 kB. What a hostile one of this size parses to stays below 64 MiB.
_LARGEST_MANIFEST = 2**20
_LARGEST_FILE = 2**31  # protobuf's limit for a model, far above any library
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_HERE, _RENAME_EXCHANGE = -100, 2  # AT_FDCWD and a flag of Linux' renameat2
_MOST_REPLACEMENTS = 100  # of a bundle, while it is being read

Dim = int | str | None


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=False):
    """The base of every record in a manifest: no field unknown, none of a wrong type."""


class Tensor(Record, frozen=True):
    """An input or output: its shape is None where the rank is open."""

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None


class Term(Record, frozen=True):
    """What a shape is a broadcast of: an input, or a constant shape; see `ir.Term` and `View`."""

    input: int | None
    shape: tuple[int, ...]
    trailing: int
    axis: int
    block: int


class Requirement(Record, frozen=True):
    """The shape of `terms` must broadcast into that of `into`."""

    what: str
    terms: tuple[Term, ...]
    into: tuple[Term, ...]


class File(Record, frozen=True):
    """One file of the bundle, the manifest aside.

    `requires` says what a library needs beyond the target itself: the newest glibc symbol version,
    for CUDA the SM versions it has code for.
    """

    path: str
    role: str
    target: str | None
    sha256: str
    size: int
    requires: dict[str, Any]


class Manifest(Record, frozen=True):
    """What a bundle holds and what made it."""

    format: int
    semantics: int
    operator: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    output_terms: tuple[tuple[Term, ...], ...]
    requirements: tuple[Requirement, ...]
    tvm_ffi_abi: str
    producer: dict[str, str]
    files: tuple[File, ...]

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the targets that the bundle has a library for."""
        return tuple(f.target for f in self.files if f.target is not None)

    def file(self, path: str) -> File:
        """The entry of a file."""
        return next(f for f in self.files if f.path == path)

    def library(self, target: str) -> File:
        """The entry of a target's library."""
        return next(f for f in self.files if f.target == target)


class Bundle(msgspec.Struct, frozen=True):
    """A bundle that was read and checked; its files are in memory.

    Attributes:
        path: Where it was read from.
        manifest: What it says of itself.
        encoded: The bytes of manifest.json.
        digest: Their sha256, which covers every file by its digest.
        contents: The bytes of every file, by name.
    """

    path: Path
    manifest: Manifest
    encoded: bytes
    digest: str
    contents: Mapping[str, bytes]


def digest_of(content: bytes) -> str:
    """The sha256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


# ---------------------------------------------------------------------------------------------
# Writing


def write(path: str | os.PathLike[str], manifest: Manifest, contents: Mapping[str, bytes]) -> str:
    """Write a bundle, replacing one that is there; whatever else is there is left alone.

    Args:
        path: The directory to make; its parents too, where they are missing.
        manifest: The manifest; its `files` describe `contents`.
        contents: The bytes of every file, by name.

    Returns:
        The digest of the manifest.

    Raises:
        ArgumentError: The path exists and is not a bundle.
        BundleError: The bundle cannot be written there.
    """
    final = Path(os.path.abspath(path))
    if os.path.lexists(final) and not is_bundle(final):
        raise ArgumentError(
            f"{final}: exists and is not a bundle, so it is not replaced", "choose another path"
        )
    encoded = encode(manifest)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with _temporary_sibling(final) as temporary:
            for name, content in {**contents, MANIFEST: encoded}.items():
                _write_synced(temporary / name, content)
            _sync_directory(temporary)
            _put_in_place(temporary, final)
        _sync_directory(final.parent)
    except OSError as error:
        raise BundleError(f"{final}: cannot be written: {error.strerror or error}") from error
    return digest_of(encoded)


def is_bundle(path: Path) -> bool:
    """True for a directory with a bundle's manifest and nothing that this does not list.

    The files themselves may be missing or damaged: only what could be somebody's other work counts.
    """
    try:
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        manifest = decode(_read_file(directory, MANIFEST, _LARGEST_MANIFEST))
        _check_nothing_else(directory, manifest)
    except (BundleError, OSError):
        return False
    finally:
        os.close(directory)
    return True


def encode(manifest: Manifest) -> bytes:
    """A manifest as it is written: the same bytes for the same content."""
    plain = msgspec.to_builtins(manifest)
    return (json.dumps(plain, indent=1, ensure_ascii=True, sort_keys=True) + "\n").encode()


@contextlib.contextmanager
def _temporary_sibling(final: Path) -> Iterator[Path]:
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
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------------------------------------
# Reading


def read(path: str | os.PathLike[str], digest: str | None = None) -> Bundle:
    """Read a bundle and check every file against its digest.

    Args:
        path: The directory.
        digest: The expected sha256 of its manifest, or None to trust the manifest found.

    Raises:
        ArgumentTypeError: The path is no path, or the digest no text.
        BundleError: There is no bundle, or it is not what its manifest (or `digest`) says.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"the bundle's path must be a path (not {type(path).__name__})")
    if not isinstance(digest, str | None):
        raise ArgumentTypeError(f"digest must be a text (not {type(digest).__name__})")
    for _ in range(_MOST_REPLACEMENTS):
        directory = _open_directory(path)
        try:
            return _read_from(directory, os.fsdecode(path), digest)
        except BundleError:
            # The files of a bundle that was replaced meanwhile may be gone: read the new one.
            if not _is_replaced(directory, path):
                raise
        finally:
            os.close(directory)
    raise BundleError(f"{os.fsdecode(path)}: is being replaced all the time")


def _open_directory(path: str | os.PathLike[str]) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        shown = os.fsdecode(path)
        hint = "build a bundle of a model first: relu_ops.build, or relu-ops build"
        raise BundleError(
            f"{shown}: no bundle can be read there: {reason}",
            hint if shown.endswith(".onnx") else None,
        ) from error


def _is_replaced(directory: int, path: str | os.PathLike[str]) -> bool:
    try:
        now = os.stat(path)
    except OSError:
        return False
    return not os.path.samestat(os.fstat(directory), now)


def _read_from(directory: int, shown: str, digest: str | None) -> Bundle:
    try:
        encoded = _read_file(directory, MANIFEST, _LARGEST_MANIFEST)
        found = digest_of(encoded)
        if digest is not None and digest.lower() != found:
            raise BundleError(f"{MANIFEST} has the digest {found}; it must have {digest}")
        manifest = decode(encoded)
        contents = {entry.path: _read_entry(directory, entry) for entry in manifest.files}
        _check_nothing_else(directory, manifest)
    except BundleError as error:
        raise BundleError(f"{shown}: {error.message}", error.hint) from error
    except OSError as error:
        raise BundleError(f"{shown}: cannot be read: {error.strerror}") from error
    return Bundle(Path(shown), manifest, encoded, found, contents)


def _read_file(directory: int, name: str, limit: int) -> bytes:
    """Read a regular file of a directory: no link is followed, nothing blocks."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        raise BundleError(f"{name} cannot be opened: {error.strerror}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise BundleError(f"{name} must be a regular file with one name, no link or device")
        if status.st_size > limit:
            raise BundleError(f"{name} has {status.st_size} bytes; it must have at most {limit}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit + 1)
    finally:
        os.close(descriptor)


def from_contents(path: str, encoded: bytes, contents: Mapping[str, bytes]) -> Bundle:
    """Make a bundle of bytes that did not come from a directory, checked as if they had.

    Raises:
        BundleError: They are not what the manifest says.
    """
    manifest = decode(encoded)
    if set(contents) != {entry.path for entry in manifest.files}:
        raise BundleError(f"{path}: the files are not those that the manifest lists")
    for entry in manifest.files:
        _check_content(entry, contents[entry.path])
    return Bundle(Path(path), manifest, encoded, digest_of(encoded), dict(contents))


def _read_entry(directory: int, entry: File) -> bytes:
    content = _read_file(directory, entry.path, entry.size)
    _check_content(entry, content)
    return content


def _check_content(entry: File, content: bytes) -> None:
    if len(content) != entry.size:
        raise BundleError(f"{entry.path} has {len(content)} bytes; it must have {entry.size}")
    found = digest_of(content)
    if found != entry.sha256:
        raise BundleError(
            f"{entry.path} has the sha256 {found}; the manifest says {entry.sha256}",
            "the file was damaged or replaced: copy or build the bundle again",
        )


def _check_nothing_else(directory: int, manifest: Manifest) -> None:
    expected = {MANIFEST, *(entry.path for entry in manifest.files)}
    extra = sorted(set(os.listdir(directory)) - expected)
    if extra:
        raise BundleError(f"holds {extra[0]!r}, which its manifest does not list")


def decode(encoded: bytes) -> Manifest:
    """Parse and check a manifest.

    Raises:
        BundleError: It is not a manifest of a known format.
    """
    try:
        plain = json.loads(
            encoded.decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_refuse
        )
        # What cannot be written again: numbers beyond float64, halves of surrogate pairs.
        json.dumps(plain, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} is not valid JSON: {_shortened(error)}") from error
    version = plain.get("format") if isinstance(plain, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BundleError(
            f"{MANIFEST} has format {_shortened(version)}; this relu_ops reads up to "
            f"{FORMAT_VERSION}",
            "the bundle was made by a newer relu_ops: upgrade with pip install --upgrade relu_ops",
        )
    try:
        manifest = msgspec.convert(_upgraded(plain), Manifest, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} is not a manifest: {_shortened(error)}") from error
    _check_manifest(manifest)
    return manifest


def _upgraded(plain: Any) -> Any:
    """A manifest of an older format as one of this; whatever is none is left as it is."""
    while isinstance(plain, dict) and type(version := plain.get("format")) is int:
        if version not in _UPGRADES:
            break
        try:
            plain = {**_UPGRADES[version](plain), "format": version + 1}
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise BundleError(
                f"{MANIFEST} is not a manifest of format {version}: {_shortened(error)}"
            ) from error
    return plain


def _shortened(value: object) -> str:
    text = str(value)
    return text if len(text) <= 200 else text[:200] + "..."


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


def _check_manifest(manifest: Manifest) -> None:
    """Check what the types do not say."""

    def check(holds: bool, what: str) -> None:
        if not holds:
            raise BundleError(f"{MANIFEST}: {what}")

    check(manifest.format == FORMAT_VERSION, f"format must be {FORMAT_VERSION}")
    check(
        1 <= manifest.semantics <= SEMANTICS_VERSION,
        f"semantics version {_shortened(manifest.semantics)} is not known",
    )
    for tensor in manifest.inputs + manifest.outputs:
        check(tensor.dtype in DTYPES, f"dtype {_shortened(tensor.dtype)} is not known")
    for name in _names(manifest):
        check(name.isprintable(), f"the name {_shortened(ascii(name))} is not printable")
    check(bool(manifest.outputs), "there must be an output")
    check(len(manifest.output_terms) == len(manifest.outputs), "output_terms do not match outputs")
    every_term = [t for terms in manifest.output_terms for t in terms]
    every_term += [t for r in manifest.requirements for t in r.terms + r.into]
    for term in every_term:
        known = term.input is None or 0 <= term.input < len(manifest.inputs)
        check(known and 0 <= term.trailing <= 16, "a term names no input")
        source = term.shape if term.input is None else manifest.inputs[term.input].shape
        rank = 0 if source is None else len(source) + term.trailing
        repeats = 1 <= term.block < 2**31 and 0 <= term.axis < max(rank, 1)
        check(repeats and (source is not None or term.block == 1), "a term repeats no dimension")
        check(len(term.shape) <= 16 and all(0 <= d < 2**62 for d in term.shape), "a shape is wrong")
    paths = [entry.path for entry in manifest.files]
    check(len(set(paths)) == len(paths), "a file is listed twice")
    check(MODEL in paths, f"{MODEL} is not listed")
    for entry in manifest.files:
        named = _FILE_NAME.fullmatch(entry.path) and entry.path != MANIFEST
        check(bool(named), f"{_shortened(repr(entry.path))} is not a file name of a bundle")
        check(bool(_DIGEST.fullmatch(entry.sha256)), f"the sha256 of {entry.path} is malformed")
        check(0 <= entry.size < _LARGEST_FILE, f"the size of {entry.path} is out of range")
        check(
            (entry.role, entry.target is None) in (("model", True), ("library", False)),
            f"{entry.path} must be the model or a target's library",
        )
        if entry.target is not None:
            known = targets.is_known(entry.target)
            check(known, f"target {_shortened(entry.target)} is not known")
    check(len(set(manifest.targets)) == len(manifest.targets), "a target is listed twice")


def _names(manifest: Manifest) -> Iterator[str]:
    """Every text of a manifest that messages show as it is."""
    yield manifest.operator
    for tensor in manifest.inputs + manifest.outputs:
        yield tensor.name
        yield from (dim for dim in tensor.shape or () if isinstance(dim, str))
    yield from (requirement.what for requirement in manifest.requirements)


def printable(name: str) -> str:
    r"""A name that a manifest may have: one with control characters is escaped.

    >>> print(printable("y:0"), printable("\x1b[2J"))
    y:0 \x1b[2J
    """
    return name if name.isprintable() else name.encode("unicode_escape").decode()
