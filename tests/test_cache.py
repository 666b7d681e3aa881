"""The compile cache: found, made once, rebuilt when damaged, and never in the way of a result."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import relu_ops
from relu_ops import bundle, cache, compiler, graphs, jit
from relu_ops.bundle import MANIFEST, MODEL, Bundle, Manifest
from relu_ops.errors import ArgumentError, CacheError
from relu_ops.runtime import dispatch

ROOT = Path(relu_ops.__file__).parents[1]
KEYS = [f"{k:064x}" for k in range(10)]
KEY = KEYS[0]


@functools.cache
def made() -> tuple[Manifest, dict[str, bytes]]:
    return compiler.make(graphs.leaky_relu(alpha=0.5), "x86-64-v2")


class Maker:
    """Makes a bundle, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> tuple[Manifest, Mapping[str, bytes]]:
        self.calls += 1
        return made()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    path = tmp_path / "cache"
    monkeypatch.setenv(cache.DIRECTORY_VARIABLE, str(path))
    monkeypatch.delenv(cache.SIZE_VARIABLE, raising=False)
    return path


def assert_made(found: Bundle) -> None:
    assert found.manifest == made()[0]
    assert found.contents == made()[1]


# ---------------------------------------------------------------- hits and keys


def test_miss_then_hit(folder: Path) -> None:
    make = Maker()
    assert_made(cache.fetch(KEY, make))
    assert_made(cache.fetch(KEY, make))
    assert make.calls == 1
    assert bundle.read(folder / KEY).manifest == made()[0]
    cache.fetch(KEYS[1], make)
    assert make.calls == 2


def test_the_folder_is_private(folder: Path) -> None:
    cache.fetch(KEY, Maker())
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_make_raises_comes_through(folder: Path) -> None:
    def fail() -> tuple[Manifest, Mapping[str, bytes]]:
        raise ArgumentError("on purpose")

    with pytest.raises(ArgumentError, match=r"^on purpose$"):
        cache.fetch(KEY, fail)
    assert not (folder / KEY).exists()
    assert_made(cache.fetch(KEY, Maker()))


def test_key_depends_on_everything() -> None:
    producer = {"relu_ops": "1", "apache-tvm": "2"}
    keys = {
        cache.key_of(b"model", "x86-64-v2", producer),
        cache.key_of(b"Model", "x86-64-v2", producer),
        cache.key_of(b"model", "x86-64-v3", producer),
        cache.key_of(b"model", "x86-64-v2", {**producer, "relu_ops": "2"}),
        cache.key_of(b"model", "x86-64-v2", {**producer, "onnx": "1"}),
        cache.key_of(b"modelx", "86-64-v2", producer),
        cache.key_of(b"", "modelx86-64-v2", producer),
    }
    assert len(keys) == 7
    assert cache.key_of(b"model", "x86-64-v2", dict(reversed(producer.items()))) in keys
    assert all(len(key) == 64 for key in keys)


def test_compile_goes_through_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    make = compiler.make
    monkeypatch.setattr(compiler, "make", lambda *a: calls.append(a) or make(*a))
    model = graphs.leaky_relu(alpha=0.25)
    for _ in range(2):
        assert jit.compile(model)(np.float32([-4])).tolist() == [-1]
    assert len(calls) == 1
    jit.compile(model, target="x86-64-v2")
    jit.compile(graphs.leaky_relu(alpha=0.75))
    assert len(calls) == 3
    monkeypatch.setattr(jit, "producer", lambda: {"relu_ops": "another"})
    jit.compile(model)
    assert len(calls) == 4


def test_zeros_of_either_sign_are_two_operators(folder: Path) -> None:
    x = np.float32([-1])
    for _ in range(2):
        assert np.signbit(relu_ops.leaky_relu(x, alpha=0.0)).tolist() == [True]
        assert np.signbit(relu_ops.leaky_relu(x, alpha=-0.0)).tolist() == [False]


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("name", [MANIFEST, MODEL, "x86-64-v2.so"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "replaced"])
def test_a_damaged_entry_is_made_again(folder: Path, name: str, damage: str) -> None:
    make = Maker()
    cache.fetch(KEY, make)
    path = folder / KEY / name
    content = path.read_bytes()
    path.unlink()
    if damage == "flipped":
        path.write_bytes(content[:100] + bytes([content[100] ^ 255]) + content[101:])
    elif damage == "truncated":
        path.write_bytes(content[:50])
    elif damage == "replaced":
        path.symlink_to("/dev/zero")
    assert_made(cache.fetch(KEY, make))
    assert make.calls == 2
    assert_made(bundle.read(folder / KEY))
    cache.fetch(KEY, make)
    assert make.calls == 2


def test_a_file_in_the_way_is_left_and_costs_only_time(folder: Path) -> None:
    folder.mkdir(0o700)
    (folder / KEY).write_text("not a bundle")
    assert_made(cache.fetch(KEY, Maker()))
    assert (folder / KEY).read_text() == "not a bundle"


def test_a_compilation_that_died_leaves_nothing_for_good(folder: Path) -> None:
    cache.fetch(KEY, Maker())
    torn = folder / f".{KEYS[1]}.abcdefgh"
    young = folder / f".{KEYS[2]}.abcdefgh"
    for path in (torn, young):
        path.mkdir()
        (path / MODEL).write_bytes(b"half")
    two_days_ago = time.time() - 2 * 86400
    os.utime(torn, (two_days_ago, two_days_ago))
    assert len(cache.entries()) == 1
    cache.fetch(KEYS[3], Maker())
    assert not torn.exists()
    assert young.exists()


# ---------------------------------------------------------------- caches that cannot be used


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o720])
def test_a_folder_that_others_can_write_is_not_used(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(CacheError) as caught:
        cache.usable_directory()
    assert str(caught.value) == (
        f"cache {folder}: can be written by others\nhint: chmod 700 {folder}"
    )
    make = Maker()
    for calls in (1, 2):
        assert_made(cache.fetch(KEY, make))
        assert make.calls == calls
    assert os.listdir(folder) == []


def test_a_planted_entry_of_such_a_folder_is_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.fetch(KEY, Maker())
    folder.chmod(0o777)
    monkeypatch.setattr(bundle, "read", lambda path: pytest.fail("it was read"))
    assert_made(cache.fetch(KEY, Maker()))


def test_a_folder_of_somebody_else_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir(0o700)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(CacheError) as caught:
        cache.usable_directory()
    assert str(caught.value) == f"cache {folder}: belongs to the user {owner}, not to this one"
    assert_made(cache.fetch(KEY, Maker()))
    assert os.listdir(folder) == []


def test_a_file_where_the_folder_should_be(folder: Path) -> None:
    folder.write_text("not a folder")
    assert_made(cache.fetch(KEY, Maker()))
    assert cache.entries() == []
    assert cache.clear() == 0
    assert folder.read_text() == "not a folder"


def test_a_folder_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.DIRECTORY_VARIABLE, "/proc/relu_ops")
    with pytest.raises(CacheError, match=r"^cache /proc/relu_ops: cannot be made: "):
        cache.usable_directory()
    assert_made(cache.fetch(KEY, Maker()))


_AS_A_USER = """
import os, sys
from pathlib import Path
from relu_ops import bundle, cache
folder, key = Path(sys.argv[1]), sys.argv[2]
held = bundle.read(folder / key)
os.rename(folder / key, folder / "aside")
os.chmod(folder, int(sys.argv[3], 8))
if os.geteuid() == 0:
    os.chown(folder, 65534, 65534)
    os.setgid(65534)
    os.setuid(65534)
calls = []
def make():
    calls.append(1)
    return held.manifest, held.contents
for _ in range(2):
    found = cache.fetch(key, make)
    assert found.contents == held.contents
print(len(calls))
"""


@pytest.mark.parametrize("mode", ["500", "000"])
def test_a_folder_without_permissions(folder: Path, mode: str) -> None:
    """As an ordinary user: nothing stops root."""
    cache.fetch(KEY, Maker())
    if os.geteuid() == 0:
        for path in folder.parents[:3]:  # the user that the child becomes has to get there
            path.chmod(path.stat().st_mode | 0o011)
    try:
        done = run_child(_AS_A_USER, str(folder), KEY, mode)
    finally:
        os.chmod(folder, 0o700)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


def run_child(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "_write_synced", full)
    make = Maker()
    for calls in (1, 2):
        assert_made(cache.fetch(KEY, make))
        assert make.calls == calls
    assert [p.name for p in folder.iterdir() if p.suffix != ".lock"] == []


def test_a_lock_that_never_comes_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_LOCK_SECONDS", 0.1)
    folder.mkdir(0o700)
    with cache._locked(folder / f"{KEY}.lock"):
        assert_made(cache.fetch(KEY, Maker()))
    assert not (folder / KEY).exists()


def test_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (cache.DIRECTORY_VARIABLE, "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    # As in a container whose user has no entry in the password file.
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(CacheError) as caught:
        cache.directory()
    assert str(caught.value) == (
        "there is no home directory to keep the compile cache in\n"
        "hint: set RELU_OPS_CACHE to a directory"
    )
    assert_made(cache.fetch(KEY, Maker()))
    assert os.listdir(tmp_path) == []


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(cache.DIRECTORY_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.directory() == tmp_path / "relu_ops"
    monkeypatch.setenv(cache.DIRECTORY_VARIABLE, str(tmp_path / "chosen"))
    assert cache.directory() == tmp_path / "chosen"
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- size, list, clear


def entry_size() -> int:
    manifest, contents = made()
    return len(bundle.encode(manifest)) + sum(map(len, contents.values()))


def test_the_oldest_go_when_the_limit_is_reached(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cache.SIZE_VARIABLE, str(3 * entry_size()))
    for age, key in enumerate(KEYS[:3]):
        cache.fetch(key, Maker())
        os.utime(folder / key, (1e9 - age, 1e9 - age))
    cache.fetch(KEYS[2], Maker())  # used again: now the youngest
    cache.fetch(KEYS[3], Maker())
    assert {e.path.name for e in cache.entries()} == {KEYS[0], KEYS[2], KEYS[3]}
    assert sum(e.size for e in cache.entries()) <= cache.size_limit()


def test_the_entry_just_made_stays_whatever_the_limit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cache.SIZE_VARIABLE, "0")
    for key in KEYS[:3]:
        assert_made(cache.fetch(key, Maker()))
        assert [e.path.name for e in cache.entries()] == [key]


def test_the_limit(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    assert cache.size_limit() == cache.DEFAULT_SIZE
    monkeypatch.setenv(cache.SIZE_VARIABLE, "1000")
    assert cache.size_limit() == 1000
    for text in ("1 MB", "-1", "1e6", "\u0663", "1.5"):
        monkeypatch.setenv(cache.SIZE_VARIABLE, text)
        with pytest.raises(ArgumentError) as caught:
            cache.size_limit()
        message = f"RELU_OPS_CACHE_SIZE must be a number of bytes (not {text!r})"
        assert str(caught.value) == message
        assert_made(cache.fetch(KEY, Maker()))


def test_entries(folder: Path) -> None:
    assert cache.entries() == []
    for age, key in enumerate(KEYS[:3]):
        cache.fetch(key, Maker())
        os.utime(folder / key, (1e9 - age, 1e9 - age))
    found = cache.entries()
    assert [e.path for e in found] == [folder / key for key in KEYS[:3]]
    assert {(e.operator, e.targets, e.size) for e in found} == {
        ("leaky_relu", ("x86-64-v2",), entry_size())
    }


def test_clear_removes_what_the_cache_wrote_and_nothing_else(folder: Path) -> None:
    for key in KEYS[:3]:
        cache.fetch(key, Maker())
    (folder / KEYS[0] / MODEL).write_bytes(b"damaged")
    (folder / f".{KEYS[4]}.abcdefgh").mkdir()
    compiler.build(graphs.relu(), "x86-64-v2", folder / "mine.bundle")
    for name in (".ssh", "documents"):
        (folder / name).mkdir()
        (folder / name / "work").write_text("work")
    (folder / "other.lock").write_text("work")
    two_years_ago = time.time() - 2 * 365 * 86400
    os.utime(folder / ".ssh", (two_years_ago, two_years_ago))
    cache.fetch(KEYS[5], Maker())  # tidies up
    assert cache.clear() == 4
    assert sorted(os.listdir(folder)) == [".ssh", "documents", "mine.bundle", "other.lock"]
    assert (folder / ".ssh" / "work").read_text() == "work"
    assert cache.clear() == 0


# ---------------------------------------------------------------- at the same time


_ONE_OF_MANY = """
import sys, time
from pathlib import Path
from relu_ops import bundle, cache
held = bundle.read(sys.argv[1])
log = Path(sys.argv[3])
def make():
    with log.open("a") as file:
        file.write("made\\n")
    time.sleep(0.3)
    return held.manifest, held.contents
(log.parent / ("ready-" + sys.argv[4])).touch()
while not (log.parent / "go").exists():
    time.sleep(0.001)
found = cache.fetch(sys.argv[2], make)
assert found.contents == held.contents
"""


def test_eight_processes_on_one_cold_key_compile_once(folder: Path, tmp_path: Path) -> None:
    manifest, contents = made()
    bundle.write(tmp_path / "held.bundle", manifest, contents)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    arguments = [str(tmp_path / "held.bundle"), KEY, str(tmp_path / "log")]
    children = [
        subprocess.Popen(
            [sys.executable, "-c", _ONE_OF_MANY, *arguments, str(k)],
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(8)
    ]
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("ready-*"))) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    errors = [child.communicate(timeout=60)[1] for child in children]
    assert errors == [""] * 8
    assert [child.returncode for child in children] == [0] * 8
    assert (tmp_path / "log").read_text() == "made\n"
    assert_made(bundle.read(folder / KEY))


def test_eight_threads_on_one_cold_key_compile_once(folder: Path) -> None:
    make, found = Maker(), []
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        found.append(cache.fetch(KEY, make))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert make.calls == 1
    assert len(found) == 8
    for one in found:
        assert_made(one)


def test_clearing_while_others_fetch_never_shows_a_torn_bundle(folder: Path) -> None:
    stop = time.monotonic() + 1.0
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while time.monotonic() < stop:
                assert_made(cache.fetch(KEY, Maker()))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    while time.monotonic() < stop:
        cache.clear()
        time.sleep(0.005)
    for thread in threads:
        thread.join(60)
    assert not failures


def test_an_operator_from_the_cache_outlives_it(folder: Path) -> None:
    op = dispatch.operator_of(cache.fetch(KEY, Maker()))
    cache.clear()
    assert op(np.float32([-2, 3])).tolist() == [-1, 3]
