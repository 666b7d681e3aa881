"""The compile cache: bundles on disk, one per model, target and everything that made it.

Lies in the user's cache directory, or where RELU_OPS_CACHE says. Safe under concurrent processes:
one compiles while the others wait, and a bundle appears whole or not at all. A cache that cannot
be used is never in the way of a result, and warns of it once a process.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from relu_ops import log
from relu_ops.bundle import store as bundles
from relu_ops.bundle.store import Bundle
from relu_ops.errors import (
    ArgumentError,
    BundleError,
    CacheError,
    MissingDependencyError,
    ReluOpsError,
    require,
)

DIRECTORY_VARIABLE = "RELU_OPS_CACHE"
SIZE_VARIABLE = "RELU_OPS_CACHE_SIZE"
DEFAULT_SIZE = 256 * 2**20
"""Bytes; the oldest entries go first when the sum is above."""

_ANOTHER = f"name another directory with {DIRECTORY_VARIABLE}"
_LOCK_SECONDS = 300.0

# What the cache itself writes: nothing else in its directory is listed or removed, in case
# RELU_OPS_CACHE names a folder that holds other things too.
_KEY = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = re.compile(r"\.[0-9a-f]{64}\..+")
_LOCK_FILE = re.compile(r"[0-9a-f]{64}\.lock")

Make = Callable[[], Mapping[str, bytes]]
"""Compiles a bundle: all its files."""


@dataclass(frozen=True)
class Entry:
    """One bundle in the cache."""

    path: Path
    operators: tuple[str, ...]
    targets: tuple[str, ...]
    size: int
    used: float


def directory() -> Path:
    """Where the cache lies; it need not exist.

    Raises:
        CacheError: The user has no home directory, and no other place was named.
        MissingDependencyError: No place was named, and platformdirs is not installed.
    """
    chosen = os.environ.get(DIRECTORY_VARIABLE)
    if chosen and not chosen.startswith("~"):
        return Path(chosen)
    try:
        folder = Path(chosen).expanduser() if chosen else _usual_directory()
    except RuntimeError as error:
        if chosen and not chosen.startswith("~/"):
            user = chosen.partition("/")[0]
            raise CacheError(
                f"{DIRECTORY_VARIABLE} is {chosen}, and there is no home directory of {user}",
                f"set {DIRECTORY_VARIABLE} to a directory",
            ) from error
        folder = Path("~")
    if not folder.is_absolute():
        raise CacheError(
            "there is no home directory to keep the compile cache in",
            f"set {DIRECTORY_VARIABLE} to a directory",
        )
    return folder


def _usual_directory() -> Path:
    require("platformdirs", "compile", "the compile cache")
    import platformdirs

    return Path(platformdirs.user_cache_dir("relu_ops", appauthor=False))


def key_of(model: bytes, target: str, producer: Mapping[str, str]) -> str:
    """The key of a bundle: a digest of everything that decides its bytes."""
    made_by = (f"{name}={version}" for name, version in sorted(producer.items()))
    parts = (model, target.encode(), *(one.encode() for one in made_by))
    content = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    return bundles.digest_of(content)


def fetch(key: str, make: Make) -> Bundle:
    """The bundle of a key: read, or made and stored.

    Args:
        key: See `key_of`.
        make: Compiles the bundle; called at most once.

    Raises:
        Whatever `make` raises; a cache that cannot be used only costs time.
    """
    try:
        folder = usable_directory()
        path = folder / key
        if (found := _read(path)) is not None:
            log.say("DEBUG", "compile cache: %s is there", path)
            return found
        with _locked(folder / f"{key}.lock"):
            if (found := _read(path)) is not None:
                log.say("DEBUG", "compile cache: %s was made meanwhile", path)
                return found
            log.say("INFO", "compile cache: %s is missing, and is made", path)
            return _store(path, make())
    except CacheError as error:
        _say_once(error)
    except MissingDependencyError:
        pass  # what compiles is missing too: `make` says what for
    return bundles.from_contents(key, make())


_said: set[str] = set()


def _say_once(error: ReluOpsError | OSError) -> None:
    """Warn that every process compiles anew: nobody would know why it takes so long."""
    if str(error) in _said:
        return
    _said.add(str(error))
    message = f"nothing is kept in the compile cache: {error}"
    log.say("WARNING", "%s", message)
    warnings.warn(message, RuntimeWarning, stacklevel=_frames_inside())


def _frames_inside() -> int:
    """How far above its caller the first frame outside of relu_ops lies, for `warnings.warn`."""
    frame, count = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == log.NAME:
        frame, count = frame.f_back, count + 1
    return count


def usable_directory() -> Path:
    """Make the cache directory, and refuse one that somebody else could write into.

    Its images are code that this process will run.
    """
    folder = directory()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError) as error:
        raise CacheError(f"cache {folder}: cannot be made: {error}") from error
    if status.st_uid != os.geteuid():
        raise CacheError(f"cache {folder}: belongs to the user {status.st_uid}, not to this one")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CacheError(
            f"cache {folder}: can be written by others",
            f"what they put there would be run: remove {folder}, or {_ANOTHER}",
        )
    for parent in folder.resolve().parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise CacheError(
                f"cache {folder}: anybody can put another in its place in {parent}", _ANOTHER
            )
    return folder


def _read(path: Path) -> Bundle | None:
    """The bundle at a path, or None where there is none that is whole."""
    try:
        found = bundles.read(path)
    except BundleError:
        return None
    with contextlib.suppress(OSError):
        os.utime(path)
    return found


def _store(path: Path, files: Mapping[str, bytes]) -> Bundle:
    """Write a bundle; where the disk is full or read-only, the result is used all the same."""
    import shutil

    made = bundles.from_contents(str(path), files)
    try:
        if path.exists():
            shutil.rmtree(path, ignore_errors=True)  # it was there and not whole
        bundles.write(path, files)
        _shrink(path)
    except (BundleError, ArgumentError, OSError) as error:
        _say_once(error)
    return made


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    require("filelock", "compile", "the compile cache")
    import filelock

    lock = filelock.FileLock(path, timeout=_LOCK_SECONDS, mode=0o600)
    try:
        lock.acquire()
    except (filelock.Timeout, OSError, NotImplementedError) as error:
        raise CacheError(f"cache {path.parent}: cannot be locked: {error}") from error
    try:
        yield
    finally:
        lock.release()


def entries() -> list[Entry]:
    """The bundles in the cache, the most recently used first."""
    from relu_ops.bundle import manifest as manifests

    found = []
    folder = directory()
    for path in folder.iterdir() if folder.is_dir() else ():
        if not _KEY.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError, BundleError):
            manifest = manifests.decode((path / manifests.FILE).read_bytes())
            names = tuple(entry.name for entry in manifest.operators)
            size = sum(file.stat().st_size for file in path.iterdir())
            found.append(Entry(path, names, manifest.targets, size, path.stat().st_mtime))
    return sorted(found, key=lambda entry: -entry.used)


def clear() -> int:
    """Remove what the cache wrote, and nothing else; return how many bundles there were."""
    import shutil

    found = entries()
    folder = directory()
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if _KEY.fullmatch(path.name) or _UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
        elif _LOCK_FILE.fullmatch(path.name):
            path.unlink(missing_ok=True)
    return len(found)


def size_limit() -> int:
    """The limit in bytes: RELU_OPS_CACHE_SIZE, or the default."""
    text = os.environ.get(SIZE_VARIABLE, "")
    if not text:
        return DEFAULT_SIZE
    if not text.isascii() or not text.isdigit():
        raise ArgumentError(
            f"{SIZE_VARIABLE} must be a number of bytes (not {text!r})", "for example 1073741824"
        )
    return int(text)


def _shrink(kept: Path) -> None:
    """Remove the oldest bundles until the limit holds, and what died while writing."""
    import shutil

    total, limit = 0, size_limit()
    for entry in entries():
        total += entry.size
        if total > limit and entry.path != kept:
            shutil.rmtree(entry.path, ignore_errors=True)
    a_day_ago = time.time() - 86400
    for path in kept.parent.glob(".*"):
        if _UNFINISHED.fullmatch(path.name) and path.stat().st_mtime < a_day_ago:
            shutil.rmtree(path, ignore_errors=True)
