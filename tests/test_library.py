"""Opening libraries: once each, between threads and across forks."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import children
import pytest
from cases import fresh

from relu_ops import compiler, graphs
from relu_ops.errors import ArgumentError, BundleError
from relu_ops.runtime import library


@pytest.fixture(scope="module")
def content() -> bytes:
    _, contents = compiler.make(graphs.relu(), ["x86-64-v2"])
    return contents["x86-64-v2.so"]


def test_a_library_is_opened_once(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_opened", {})
    opened: list[library.Library] = []
    threads = [
        threading.Thread(target=lambda: opened.append(library.open_library(content)))
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 16 and len({id(one) for one in opened}) == 1


def test_what_does_not_take_its_settings(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise TypeError("configure: takes three integers")

    monkeypatch.setattr(library, "_opened", {})
    monkeypatch.setattr(library, "_configure", refuse)
    with pytest.raises(BundleError, match=r"^a\.so: does not take its settings: configure: takes"):
        library.open_library(content, "a.so")
    assert not library._opened


def test_a_wrong_variable_is_no_fault_of_the_library(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_opened", {})
    monkeypatch.setenv("RELU_OPS_NUM_THREADS", "many")
    with pytest.raises(ArgumentError, match=r"^RELU_OPS_NUM_THREADS must be 1 to 256 "):
        library.open_library(content, "a.so")
    assert not library._opened


_FORKS = """
import os, sys, threading, time
import children
from relu_ops.runtime import library
from relu_ops import bundle

contents = [bundle.read(path).contents["x86-64-v2.so"] for path in sys.argv[1:]]
library.open_library(contents.pop())
load, inside, entered = library._load_from_memory, threading.Event(), []

def slow(content):
    inside.set()
    time.sleep(0.3)
    entered.append(time.monotonic())
    return load(content)

library._load_from_memory = slow
thread = threading.Thread(target=library.open_library, args=(contents[0],))
thread.start()
inside.wait()
child = os.fork()
if child == 0:
    library._load_from_memory = load
    # Neither this nor a thread of the child may wait for the parent's thread.
    library.open_library(contents[1])
    threads = [threading.Thread(target=library.open_library, args=(c,)) for c in contents]
    [t.start() for t in threads]
    [t.join() for t in threads]
    os._exit(0)
forked = time.monotonic()
code = children.wait(child, 20)
thread.join()
assert forked > entered[0], "the fork did not wait for the library that was being opened"
sys.exit(code)
"""


def test_a_fork_while_another_thread_opens_a_library(tmp_path: Path) -> None:
    paths = []
    for name, make in (("a", graphs.relu), ("b", graphs.relu6), ("c", graphs.add_relu)):
        compiler.build(make(), ["x86-64-v2"], tmp_path / f"{name}.bundle")
        paths.append(tmp_path / f"{name}.bundle")
    done = children.run(_FORKS, *paths)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_by_the_thread_that_opens_one(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = library._load_from_memory

    def forking(given: bytes) -> object:
        child = os.fork()
        if child == 0:
            os._exit(0)
        assert os.waitpid(child, 0) == (child, 0)
        return load(given)

    monkeypatch.setattr(library, "_opened", {})
    monkeypatch.setattr(library, "_load_from_memory", forking)
    library.open_library(content)


def test_names_are_printable_wherever_they_are_shown() -> None:
    model = graphs.scale_bias_leaky_relu()
    model.graph.name = "evil\x1b[2J"
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "rows\x07"
    op = fresh(model, "x86-64-v2")
    assert repr(op).startswith("<relu_ops.Operator evil\\x1b[2J(x: float32[rows\\x07, channels], ")
    with pytest.raises(TypeError) as caught:
        op(1)
    with pytest.raises(TypeError) as native:
        op._library.call(1)
    for error in (caught, native):
        assert str(error.value).isprintable() and "evil\\x1b[2J" in str(error.value)
