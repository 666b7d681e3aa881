"""Thresholds that were measured: kept, heeded, and ignored where they do not belong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import children
import pytest

from relu_ops import cli, targets
from relu_ops.bench import tune
from relu_ops.errors import ArgumentError
from relu_ops.native import _python as native
from relu_ops.runtime import threads, tuning

THRESHOLDS = tuning.Thresholds(parallel_bytes=1 << 17, stream_bytes=1 << 27, wake_bytes=1 << 24)


DEFAULT = threads.Settings(*native.default_settings())


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place for the file, in a process that has not looked yet and has set nothing."""
    path = tmp_path / "deep" / "tuning.json"
    monkeypatch.setenv(tuning.VARIABLE, str(path))
    monkeypatch.setattr(threads, "_heeded", False)
    tuning._read.cache_clear()
    before = native.get_settings()
    threads.configure(DEFAULT)
    yield path
    native.set_settings(*before)
    tuning._read.cache_clear()


def tuned(**changes: Any) -> tuning.Tuning:
    cpu = targets.this_machine().cpu
    return tuning.Tuning(cpu, DEFAULT.threads, "2026-11-21", THRESHOLDS)._replace(**changes)


def test_what_was_stored_is_heeded(file: Path) -> None:
    assert tuning.store(tuned()) == file
    assert threads.settings() == (DEFAULT.threads, *THRESHOLDS) != DEFAULT
    assert [p.name for p in file.parent.iterdir()] == ["tuning.json"]
    assert tuning.decode(file.read_bytes()) == tuned()


def test_it_is_looked_for_once(file: Path) -> None:
    assert threads.settings() == DEFAULT
    tuning.store(tuned())
    assert threads.settings() == DEFAULT  # until the process sets its threads anew
    threads.set_num_threads(None)
    assert threads.settings() == (DEFAULT.threads, *THRESHOLDS)


def test_what_somebody_set_before_is_left(file: Path) -> None:
    """A host of this process may have settings of its own, by the interface for C."""
    tuning.store(tuned())
    theirs = threads.Settings(DEFAULT.threads, 1, 2, 3)
    threads.configure(theirs)
    assert threads.settings() == theirs


_LOADS = """
import sys
from relu_ops.native import _python as native
import relu_ops
before = native.get_settings()
relu_ops.compile(relu_ops.graphs.relu())
print(before == native.default_settings(), native.get_settings()[1:])
"""


def test_whoever_loads_an_operator_heeds_it(file: Path) -> None:
    done = children.run(_LOADS)
    assert (done.stdout, done.stderr) == (f"True {DEFAULT[1:]}\n", "")
    tuning.store(tuned())
    done = children.run(_LOADS)
    assert (done.stdout, done.stderr) == (f"True {tuple(THRESHOLDS)}\n", "")


@pytest.mark.parametrize("changes", [{"cpu": "another"}, {"threads": 200}], ids=str)
def test_another_machine_is_not_heeded(file: Path, changes: dict[str, Any]) -> None:
    tuning.store(tuned(**changes))
    assert threads.settings() == DEFAULT


def test_other_numbers_of_threads_have_the_default_thresholds(file: Path) -> None:
    tuning.store(tuned(threads=3))
    for count, thresholds in ((2, DEFAULT[1:]), (3, THRESHOLDS), (4, DEFAULT[1:])):
        threads.set_num_threads(count)
        assert threads.settings() == (count, *thresholds)


@pytest.mark.parametrize(
    "damage",
    [
        lambda known: known | {"thresholds": {**known["thresholds"], "wake_bytes": -1}},
        lambda known: known | {"thresholds": {**known["thresholds"], "wake_bytes": 2**62}},
        lambda known: known | {"thresholds": {**known["thresholds"], "wake_bytes": 1.5}},
        lambda known: known | {"unknown": 1},
        lambda known: known | {"thresholds": {**known["thresholds"], "wake_bytes": True}},
        lambda known: known | {"thresholds": list(known["thresholds"].values())},
        lambda known: known | {"cpu": 5},
        lambda known: {"cpu": known["cpu"]},
        lambda known: [known],
    ],
)
def test_a_damaged_file_counts_as_none(file: Path, damage: Any) -> None:
    tuning.store(tuned())
    plain = json.loads(file.read_text())
    for content in (json.dumps(damage(plain)).encode(), b"\xff{", b"[" * 100_000, b""):
        file.write_bytes(content)
        tuning._read.cache_clear()
        assert threads.default_settings() == DEFAULT


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(tuning.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert tuning.path() == tmp_path / "relu_ops" / "tuning.json"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert tuning.path() == Path("/home/somebody/.config/relu_ops/tuning.json")
    monkeypatch.setenv(tuning.VARIABLE, "~/mine.json")
    assert tuning.path() == Path("/home/somebody/mine.json")


def test_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (tuning.VARIABLE, "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert tuning.thresholds(2) is None
    with pytest.raises(ArgumentError, match="there is no home directory\\nhint: set RELU_OPS_TUN"):
        tuning.store(tuned())
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv(tuning.VARIABLE, str(tmp_path / "taken" / "tuning.json"))
    with pytest.raises(ArgumentError, match=r"tuning\.json: cannot be written: "):
        tuning.store(tuned())


@pytest.mark.parametrize(("dry", "others"), [(True, 0.0), (False, 0.0), (True, 0.5), (False, None)])
def test_the_command(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    dry: bool,
    others: float | None,
) -> None:
    monkeypatch.setattr("relu_ops.bench.environment.Usage.share_of_others", lambda _: others)
    sizes = {"parallel_bytes": [1024], "wake_bytes": [1024], "stream_bytes": [65536]}
    monkeypatch.setattr(tune, "steps", lambda: list(sizes.items()))
    monkeypatch.setattr(tune, "_ROUNDS", 1)
    assert cli.main(["tune", *(["--dry-run"] if dry else [])]) == 0
    captured = capsys.readouterr()
    busy = "others had 50% of the processors: tune again when these are idle\n"
    assert (busy in captured.err) is (others == 0.5)
    assert ("Remove it to take it back" in captured.err) is not dry
    printed = tuning.decode(captured.out)
    assert printed.cpu == targets.this_machine().cpu
    for name, asked in sizes.items():
        assert getattr(printed.thresholds, name) in (*asked, tune.NEVER)
    assert file.exists() is not dry
    assert threads.settings() == DEFAULT
    assert (threads.default_settings() == DEFAULT) is dry


def test_the_settings_come_back_when_it_fails(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> bool:
        threads.configure(threads.Settings(3, 4, 5, 6))
        raise ZeroDivisionError

    before = threads.settings()
    monkeypatch.setattr(tune, "_wins", fails)
    with pytest.raises(ZeroDivisionError):
        tune.tune()
    assert threads.settings() == before != threads.Settings(3, 4, 5, 6)


def test_one_thread_has_nothing_to_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("parallel_bytes", "wake_bytes"):
        assert not tune._wins(None, name, 1 << 20, 1)  # type: ignore[arg-type]
