"""Thresholds that were measured: kept, heeded, and ignored where they do not belong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from relu_ops import cli, targets
from relu_ops.bench import tune
from relu_ops.errors import ArgumentError
from relu_ops.runtime import threads, tuning

THRESHOLDS = tuning.Thresholds(parallel_bytes=1 << 17, stream_bytes=1 << 27, wake_bytes=1 << 24)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "deep" / "tuning.json"
    monkeypatch.setenv(tuning.VARIABLE, str(path))
    tuning._read.cache_clear()
    yield path
    tuning._read.cache_clear()


def tuned(**changes: Any) -> tuning.Tuning:
    cpu = targets.this_machine().cpu
    made = tuning.Tuning(cpu, threads.get_num_threads(), "2026-11-21", THRESHOLDS)
    return msgspec.structs.replace(made, **changes)


def test_what_was_stored_is_heeded(file: Path) -> None:
    before = threads.settings()
    assert tuning.store(tuned()) == file
    now = threads.settings()
    assert (now.parallel_bytes, now.stream_bytes, now.wake_bytes) == (1 << 17, 1 << 27, 1 << 24)
    assert now.threads == before.threads and now != before
    assert [p.name for p in file.parent.iterdir()] == ["tuning.json"]


@pytest.mark.parametrize("changes", [{"cpu": "another"}, {"threads": 200}], ids=str)
def test_another_machine_is_not_heeded(file: Path, changes: dict[str, Any]) -> None:
    before = threads.settings()
    tuning.store(tuned(**changes))
    assert threads.settings() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda known: known | {"thresholds": {**known["thresholds"], "wake_bytes": -1}},
        lambda known: known | {"thresholds": {**known["thresholds"], "wake_bytes": 2**62}},
        lambda known: known | {"thresholds": {**known["thresholds"], "wake_bytes": 1.5}},
        lambda known: known | {"unknown": 1},
        lambda known: {"cpu": known["cpu"]},
        lambda known: [known],
    ],
)
def test_a_damaged_file_counts_as_none(file: Path, damage: Any) -> None:
    before = threads.settings()
    tuning.store(tuned())
    file.write_text(json.dumps(damage(json.loads(file.read_text()))))
    tuning._read.cache_clear()
    assert threads.settings() == before
    file.write_bytes(b"\xff{")
    tuning._read.cache_clear()
    assert threads.settings() == before


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(tuning.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert tuning.path() == tmp_path / "relu_ops" / "tuning.json"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert tuning.path() == Path("/home/somebody/.config/relu_ops/tuning.json")


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
    before = threads.settings()
    assert cli.main(["tune", *(["--dry-run"] if dry else [])]) == 0
    captured = capsys.readouterr()
    busy = "others had 50% of the processors: tune again when these are idle\n"
    assert (busy in captured.err) is (others == 0.5)
    assert ("Remove it to take it back" in captured.err) is not dry
    printed = msgspec.json.decode(captured.out.encode(), type=tuning.Tuning)
    assert printed.cpu == targets.this_machine().cpu
    for name, asked in sizes.items():
        assert getattr(printed.thresholds, name) in (*asked, tune.NEVER)
    assert file.exists() is not dry
    assert (threads.settings() == before) is dry


def test_the_settings_come_back_when_it_fails(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(tune, "_wins", lambda *_: 1 / 0)
    monkeypatch.setattr(tune.library, "configure_all", seen.append)
    with pytest.raises(ZeroDivisionError):
        tune.tune()
    assert seen == [threads.settings()]


def test_one_thread_has_nothing_to_wake(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("parallel_bytes", "wake_bytes"):
        assert not tune._wins(None, name, 1 << 20, 1)  # type: ignore[arg-type]
