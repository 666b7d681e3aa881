"""The compile cache: found, made once, rebuilt when damaged, and never in the way of a result."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import children
import numpy as np
import pytest

import relu_ops
from relu_ops import cache, compiler, graphs, jit
from relu_ops.bundle import store as bundle
from relu_ops.bundle.manifest import FILE as MANIFEST
from relu_ops.bundle.store import SUMS, Bundle
from relu_ops.compiler import toolchain
from relu_ops.errors import ArgumentError, CacheError
from relu_ops.runtime import dispatch

MODEL, IMAGE = "leaky_relu.onnx", "x86-64-v2.image"

KEYS = [f"{k:064x}" for k in range(10)]
KEY = KEYS[0]

KEPT_NOWHERE = "RuntimeWarning: nothing is kept in the compile cache: "
"""What follows the line that called, where the cache cannot be used."""


@functools.cache
def made() -> dict[str, bytes]:
    return compiler.make(graphs.leaky_relu(alpha=0.5), "x86-64-v2")


class Maker:
    """Makes a bundle, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Mapping[str, bytes]:
        self.calls += 1
        return made()


@pytest.fixture
def said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> pytest.LogCaptureFixture:
    """What is said of the cache, as if nothing had been said before."""
    monkeypatch.setattr(cache, "_said", set())
    caplog.set_level(logging.WARNING, "relu_ops")
    return caplog


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    path = tmp_path / "cache"
    monkeypatch.setenv(cache.DIRECTORY_VARIABLE, str(path))
    monkeypatch.delenv(cache.SIZE_VARIABLE, raising=False)
    return path


def assert_made(found: Bundle) -> None:
    assert found.contents == made()


# ---------------------------------------------------------------- hits and keys


def test_miss_then_hit(folder: Path) -> None:
    make = Maker()
    assert_made(cache.fetch(KEY, make))
    assert_made(cache.fetch(KEY, make))
    assert make.calls == 1
    assert_made(bundle.read(folder / KEY))
    cache.fetch(KEYS[1], make)
    assert make.calls == 2


def test_the_folder_is_private(folder: Path) -> None:
    cache.fetch(KEY, Maker())
    assert folder.stat().st_mode & 0o777 == 0o700


def test_what_make_raises_comes_through(folder: Path) -> None:
    def fail() -> Mapping[str, bytes]:
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
    monkeypatch.setattr(jit, "producer", lambda _: {"relu_ops": "another"})
    jit.compile(model)
    assert len(calls) == 4


@pytest.mark.parametrize(
    "changed", ["compiler/rules.py", "native/image.h", "contract/semantics.py"]
)
def test_the_key_depends_on_the_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """Of relu_ops itself: what a developer changed is compiled anew."""
    digest = toolchain.source_digest.__wrapped__
    original, copy = digest(), tmp_path / "relu_ops"
    shutil.copytree(Path(relu_ops.__file__).parent, copy)
    monkeypatch.setattr(toolchain, "__file__", str(copy / "compiler" / "toolchain.py"))
    before = digest()
    assert before == original
    for apart in ("bench/tune.py", "runtime/memory.py", "native/pool.c", "compiler/new.txt"):
        with (copy / apart).open("a") as file:
            file.write("\n")
    (copy / "compiler" / "__pycache__").mkdir(exist_ok=True)
    assert digest() == before
    content = (copy / changed).read_bytes()
    (copy / changed).write_bytes(content + b"\n")
    assert digest() != before
    (copy / changed).write_bytes(content)
    assert digest() == before
    (copy / "new_folder").mkdir()
    (copy / "new_folder" / "module.py").touch()
    assert digest() != before


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("name", [SUMS, MANIFEST, MODEL, IMAGE])
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


@pytest.mark.parametrize("mode", [0o775, 0o707, 0o777, 0o720])
def test_a_folder_that_others_can_write_is_not_used(
    folder: Path, said: pytest.LogCaptureFixture, mode: int
) -> None:
    """It costs a compilation a process, which is said once."""
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(CacheError) as caught:
        cache.usable_directory()
    assert str(caught.value) == (
        f"cache {folder}: can be written by others\n"
        f"hint: what they put there would be run: remove {folder}, or name another directory with "
        "RELU_OPS_CACHE"
    )
    make = Maker()
    with pytest.warns(RuntimeWarning) as warned:
        for calls in (1, 2):
            assert_made(cache.fetch(KEY, make))
            assert make.calls == calls
    assert os.listdir(folder) == []
    assert [str(one.message) for one in warned] == said.messages
    assert warned[0].filename == __file__
    assert said.messages == [f"nothing is kept in the compile cache: {caught.value}"]


def test_what_is_said_reaches_a_terminal(folder: Path) -> None:
    """As a warning, of the line that called; and a cache that works says nothing."""
    code = "import numpy as np, relu_ops\n[relu_ops.relu(np.zeros(2, t)) for t in 'fd']"
    assert children.run(code).stderr == ""
    folder.chmod(0o775)
    assert children.run(code).stderr == (
        f"<string>:2: RuntimeWarning: nothing is kept in the compile cache: cache {folder}: can be "
        "written by others\n"
        f"hint: what they put there would be run: remove {folder}, or name another directory with "
        "RELU_OPS_CACHE\n"
    )


def test_a_planted_entry_of_such_a_folder_is_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.fetch(KEY, Maker())
    folder.chmod(0o777)
    monkeypatch.setattr(cache, "_said", set())
    monkeypatch.setattr(bundle, "read", lambda path: pytest.fail("it was read"))
    assert_made(cache.fetch(KEY, Maker()))


def test_a_folder_in_one_that_anybody_can_write_is_not_used(folder: Path) -> None:
    """Whoever can rename the folder can put another in its place, between check and use."""
    cache.fetch(KEY, Maker())
    folder.parent.chmod(0o777)
    try:
        with pytest.raises(CacheError) as caught:
            cache.usable_directory()
        assert str(caught.value) == (
            f"cache {folder}: anybody can put another in its place in {folder.parent}\n"
            "hint: name another directory with RELU_OPS_CACHE"
        )
        make = Maker()
        assert_made(cache.fetch(KEY, make))
        assert make.calls == 1
        folder.parent.chmod(0o1777)  # as /tmp is: only the owner may rename
        assert cache.usable_directory() == folder
    finally:
        folder.parent.chmod(0o755)


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


# What is imported when it is needed: who a test becomes may not read this environment.
_BEFORE = """
import filelock, importlib.util, linecache, platformdirs, shutil, tempfile, tracemalloc
import relu_ops.bundle.manifest
"""

_AS_A_USER = (
    _BEFORE
    + """
import os, sys
from pathlib import Path
from relu_ops.bundle import store as bundle
from relu_ops import cache
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
    return held.contents
for _ in range(2):
    found = cache.fetch(key, make)
    assert found.contents == held.contents
print(len(calls))
"""
)


@pytest.mark.parametrize("mode", ["500", "000"])
def test_a_folder_without_permissions(folder: Path, mode: str) -> None:
    """As an ordinary user: nothing stops root."""
    cache.fetch(KEY, Maker())
    if os.geteuid() == 0:
        for path in folder.parents[:3]:  # the user that the child becomes has to get there
            path.chmod(path.stat().st_mode | 0o011)
    try:
        done = children.run(_AS_A_USER, str(folder), KEY, mode)
    finally:
        os.chmod(folder, 0o700)
    assert (done.returncode, done.stdout) == (0, "2\n")
    assert done.stderr.partition(": ")[2].startswith(KEPT_NOWHERE)
    assert done.stderr.count("nothing is kept") == 1


def test_a_full_disk(
    folder: Path, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "_write_synced", full)
    make = Maker()
    for calls in (1, 2):
        with pytest.warns(RuntimeWarning) if calls == 1 else contextlib.nullcontext():
            assert_made(cache.fetch(KEY, make))
        assert make.calls == calls
    assert [p.name for p in folder.iterdir() if p.suffix != ".lock"] == []
    refusal = f"{folder / KEY}: cannot be written: No space left on device"
    assert said.messages == [f"nothing is kept in the compile cache: {refusal}"]


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


_WITHOUT_A_HOME = (
    _BEFORE
    + """
import os, sys
from relu_ops.bundle import store as bundle
from relu_ops import cache
held = bundle.read(sys.argv[1])
os.setgid(54321)
os.setuid(54321)
for name in ("RELU_OPS_CACHE", "HOME", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
os.chdir("/")
assert cache.fetch(sys.argv[2], lambda: held.contents).contents == held.contents
try:
    print(cache.directory())
except cache.CacheError as error:
    print(error)
"""
)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without an entry")
def test_a_user_without_an_entry_and_a_home(tmp_path: Path) -> None:
    bundle.write(tmp_path / "held.bundle", made())
    done = children.run(_WITHOUT_A_HOME, str(tmp_path / "held.bundle"), KEY)
    refusal = (
        "there is no home directory to keep the compile cache in\n"
        "hint: set RELU_OPS_CACHE to a directory\n"
    )
    assert (done.returncode, done.stdout) == (0, refusal)
    assert done.stderr.partition(": ")[2] == f"{KEPT_NOWHERE}{refusal}"


def test_a_tilde_is_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(cache.DIRECTORY_VARIABLE, "~/kept")
    assert_made(cache.fetch(KEY, Maker()))
    assert [e.path for e in cache.entries()] == [tmp_path / "home" / "kept" / KEY]
    assert os.listdir(tmp_path) == ["home"]
    monkeypatch.setenv(cache.DIRECTORY_VARIABLE, "~nobody-of-this-name/kept")
    with pytest.raises(CacheError, match=r"there is no home directory of ~nobody-of-this"):
        cache.directory()
    assert_made(cache.fetch(KEY, Maker()))
    assert os.listdir(tmp_path) == ["home"]


def test_where_it_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(cache.DIRECTORY_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.directory() == tmp_path / "relu_ops"
    monkeypatch.setenv(cache.DIRECTORY_VARIABLE, str(tmp_path / "chosen"))
    assert cache.directory() == tmp_path / "chosen"
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- size, list, clear


def entry_size() -> int:
    return sum(map(len, made().values()))


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
        message = (
            f"RELU_OPS_CACHE_SIZE must be a number of bytes (not {text!r})\n"
            "hint: for example 1073741824"
        )
        assert str(caught.value) == message
        assert_made(cache.fetch(KEY, Maker()))


def test_entries(folder: Path) -> None:
    assert cache.entries() == []
    for age, key in enumerate(KEYS[:3]):
        cache.fetch(key, Maker())
        os.utime(folder / key, (1e9 - age, 1e9 - age))
    found = cache.entries()
    assert [e.path for e in found] == [folder / key for key in KEYS[:3]]
    assert {(e.operators, e.targets, e.size) for e in found} == {
        (("leaky_relu",), ("x86-64-v2",), entry_size())
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
from relu_ops.bundle import store as bundle
from relu_ops import cache
held = bundle.read(sys.argv[1])
log = Path(sys.argv[3])
def make():
    with log.open("a") as file:
        file.write("made\\n")
    time.sleep(0.3)
    return held.contents
(log.parent / ("ready-" + sys.argv[4])).touch()
while not (log.parent / "go").exists():
    time.sleep(0.001)
found = cache.fetch(sys.argv[2], make)
assert found.contents == held.contents
"""


def test_eight_processes_on_one_cold_key_compile_once(folder: Path, tmp_path: Path) -> None:
    bundle.write(tmp_path / "held.bundle", made())
    command = [sys.executable, "-c", _ONE_OF_MANY, tmp_path / "held.bundle", KEY, tmp_path / "log"]
    started = [
        subprocess.Popen([*command, str(k)], stderr=subprocess.PIPE, text=True) for k in range(8)
    ]
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("ready-*"))) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    errors = [child.communicate(timeout=60)[1] for child in started]
    assert errors == [""] * 8
    assert [child.returncode for child in started] == [0] * 8
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


# ---------------------------------------------------------------- many processes, round by round


_ROUNDS = """
import os, sys, time
from pathlib import Path
from relu_ops.bundle import store as bundle
from relu_ops import cache
held = bundle.read(sys.argv[1])
folder, processes, rounds = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])

def one(number):
    failures = 0
    for k in range(rounds):
        key = f"{k:064x}"
        (folder / f"ready-{k}-{number}").touch()
        while not (folder / f"go-{k}").exists():
            time.sleep(0.001)
        def make():
            with (folder / f"made-{k}").open("a") as file:
                file.write("made\\n")
            time.sleep(0.01)
            return held.contents
        found = cache.fetch(key, make)
        if found.contents != held.contents:
            failures += 1
    os._exit(min(failures, 1))

children = []
for number in range(processes):
    child = os.fork()
    if child == 0:
        one(number)
    children.append(child)
for k in range(rounds):
    while len(list(folder.glob(f"ready-{k}-*"))) < processes:
        time.sleep(0.001)
    (folder / f"go-{k}").touch()
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
made = [len((folder / f"made-{k}").read_text().split()) for k in range(rounds)]
stored = [bundle.read(cache.directory() / f"{k:064x}") for k in range(rounds)]
whole = sum(one.contents == held.contents for one in stored)
print(sum(codes), sum(made), max(made), whole)
"""


def processes_on_cold_keys(tmp_path: Path, processes: int, rounds: int, seconds: float) -> None:
    """Every process asks for the same key, round by round: one compiles, all get the same."""
    bundle.write(tmp_path / "held.bundle", made())
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    arguments = [str(tmp_path / "held.bundle"), str(meeting), str(processes), str(rounds)]
    done = children.run(_ROUNDS, *arguments, seconds=seconds)
    assert (done.stdout, done.stderr) == (f"0 {rounds} 1 {rounds}\n", "")


def test_32_processes_on_a_cold_key(folder: Path, tmp_path: Path) -> None:
    processes_on_cold_keys(tmp_path, 32, 3, seconds=60)


@pytest.mark.exhaustive
def test_32_processes_on_100_cold_keys(folder: Path, tmp_path: Path) -> None:
    processes_on_cold_keys(tmp_path, 32, 100, seconds=600)


# ---------------------------------------------------------------- killed at any instant


_KILLED = """
import os, random, signal, sys, time
import numpy as np
from relu_ops.bundle import store as bundle
from relu_ops import cache, compiler, graphs, jit
from relu_ops.errors import BundleError
rounds, rng = int(sys.argv[1]), random.Random(0)
folder = cache.directory()
model = graphs.leaky_relu(alpha=0.5)
x = np.float32([-4, 2])
held = compiler.make(model, ["native"])  # TVM is loaded before the forks

def compiles():
    assert jit.compile(model)(x).tolist() == [-2, 2]

def stores():
    cache.fetch("ab" * 32, lambda: held)

def timed(work):
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    return time.monotonic() - start

def whole():
    '''Every bundle under its key is whole.'''
    found = 0
    for path in folder.iterdir():
        if len(path.name) == 64:
            bundle.read(path)
            found += 1
    return found

seconds = {}
for work in (compiles, stores):
    cache.clear()
    seconds[work] = min(timed(work) for _ in range(2) if cache.clear() >= 0)
killed = kept = unfinished = number = 0
while killed < rounds:
    number += 1
    assert number < 20 * rounds
    work = (compiles, stores)[number % 2]
    cache.clear()
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    time.sleep(rng.uniform(0, seconds[work]))
    os.kill(child, signal.SIGKILL)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
        continue  # it was done before
    killed += 1
    kept += whole()
    unfinished += any(p.name[0] == "." for p in folder.iterdir())
    before = time.monotonic()
    assert timed(work) < 20, "the dead process still holds the lock"
    assert whole() == 1
print(f"{killed} killed, {kept} times a whole bundle was there, ", end="")
print(f"{unfinished} times an unfinished one beside")
"""


def kill_at_random(rounds: int, seconds: float) -> str:
    done = children.run(_KILLED, str(rounds), seconds=seconds)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_killed_at_random_instants(folder: Path) -> None:
    kill_at_random(8, seconds=120)


@pytest.mark.exhaustive
def test_killed_at_200_instants(folder: Path) -> None:
    print(kill_at_random(200, seconds=600), end="")


# ---------------------------------------------------------------- real limits of a disk


_LIMITED = """
import os, resource, sys
from relu_ops.bundle import store as bundle
from relu_ops import cache
held = bundle.read(sys.argv[1])
make = lambda: held.contents
largest = max(map(len, held.contents.values()))
for limit in range(0, largest + 2000, max(largest // 20, 1)):
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        found = cache.fetch(sys.argv[2], make)
        os._exit(found.contents != held.contents)
    assert os.waitpid(child, 0)[1] == 0, limit
    names = [p for p in os.listdir(cache.directory()) if not p.endswith(".lock")]
    if names:
        assert names == [sys.argv[2]] and limit >= largest, (names, limit)
        bundle.read(cache.directory() / names[0])
        print("stored at last")
        break
"""


def test_files_that_may_not_grow(folder: Path, tmp_path: Path) -> None:
    """The kernel's own limit: a write fails in the middle of a file."""
    bundle.write(tmp_path / "held.bundle", made())
    done = children.run(_LIMITED, str(tmp_path / "held.bundle"), KEY)
    assert (done.returncode, done.stdout) == (0, "stored at last\n")
    refusal = f"{folder / KEY}: cannot be written: File too large"
    told = {line.partition(": ")[2] for line in done.stderr.splitlines()}
    assert told == {f"{KEPT_NOWHERE}{refusal}"}


_SMALL_DISK = """
import os, subprocess, sys
from pathlib import Path
from relu_ops.bundle import store as bundle
from relu_ops import cache
held = bundle.read(sys.argv[1])
disk, key = Path(sys.argv[2]), sys.argv[3]
need = sum(map(len, held.contents.values())) // 1024 + 64
stored = refused = 0
for size in range(4, need + 32, 4):
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", disk], check=True)
    os.chmod(disk, 0o700)
    calls = []
    for _ in range(2):
        found = cache.fetch(key, lambda: calls.append(1) or held.contents)
        assert found.contents == held.contents
    names = [p for p in os.listdir(disk) if not p.endswith(".lock")]
    assert names in ([], [key]), names
    if names:
        assert bundle.read(disk / key).contents == held.contents
        assert len(calls) == 1
        stored += 1
    else:
        refused += 1
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    found = cache.fetch(key, lambda: calls.append(1) or held.contents)
    assert found.contents == held.contents
    assert len(calls) == (1 if names else 3)
    assert [p for p in os.listdir(disk) if not p.endswith(".lock")] == names
    subprocess.run(["umount", disk], check=True)
print(stored > 0, refused > 2)
"""


def test_a_disk_of_every_size_full_or_read_only(tmp_path: Path) -> None:
    """On a small file system of its own: no space left, then mounted read-only."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    probe = subprocess.run([*alone, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    if probe.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {probe.stderr.decode().strip()}")
    bundle.write(tmp_path / "held.bundle", made())
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = [str(tmp_path / "held.bundle"), str(disk), KEY]
    environment = {cache.DIRECTORY_VARIABLE: str(disk)}
    done = children.run(_SMALL_DISK, *arguments, before=alone, **environment)
    assert (done.returncode, done.stdout) == (0, "True True\n")
    told = {line.partition(": ")[2].partition(f"{disk}")[0] for line in done.stderr.splitlines()}
    assert told == {
        KEPT_NOWHERE,
        f"{KEPT_NOWHERE}cache ",
    }
