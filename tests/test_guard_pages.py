"""Not one byte is read or written outside of an array, whatever its length and its place.

Arrays lie at every byte offset from a page that cannot be touched, before it and after it; a child
process calls the operator, and dies where the operator reaches too far. What lies between an
output and its guard pages is compared after every call.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import children
import numpy as np
import onnx
import pages
import pytest
from cases import NEVER, TARGETS, random_array

from relu_ops import compiler, graphs
from relu_ops.compiler import frontend
from relu_ops.contract import reference
from relu_ops.runtime.threads import Settings

LONGEST = 4100
OFFSETS = range(64)
EVERY_LENGTH = range(LONGEST + 1)
MANY_LENGTHS = (*range(260), *range(260, LONGEST + 1, 37), LONGEST)
SOME_LENGTHS = (0, 1, 3, 8, 15, 17, 33, 63, 64, 65, 129, 1000, 4100)

MODES = {
    "usual": Settings(1, NEVER, NEVER),
    "two threads": Settings(2, 0, NEVER),
    "streaming stores, two threads": Settings(2, 0, 0),
}

GRAPHS: dict[str, onnx.ModelProto] = {
    "relu": graphs.relu(),
    "leaky_relu": graphs.leaky_relu(alpha=0.1),
    "add_relu": graphs.GRAPHS["add_relu"](),
    "relu_int8": graphs.relu("int8"),
    "leaky_relu_float16": graphs.leaky_relu(alpha=0.1, dtype="float16"),
    "relu_derivative": graphs.relu_derivative(),
}

_CALLER = """
import faulthandler, sys
faulthandler.enable()
import numpy as np, pages, relu_ops
from relu_ops.runtime.threads import Settings, configure

folder, target, lengths, offsets, *jobs = sys.argv[1:]
lengths = np.load(lengths).tolist()
offsets = range(*map(int, offsets.split(",")))
calls = 0

def place(pages, end, count, dtype, offset):
    return (pages.at_the_end if end else pages.at_the_start)(count, dtype, offset)

def check(op, inputs, expected, end):
    global calls
    longest = len(expected)
    guarded = [pages.GuardedPages(x.nbytes + 64) for x in inputs]
    out = pages.GuardedPages(expected.nbytes + 64)
    out.bytes[...] = pages.PATTERN
    bits = np.dtype(f"u{expected.itemsize}")
    for offset in offsets:
        given = []
        for k, (memory, x) in enumerate(zip(guarded, inputs)):
            # Other inputs elsewhere, and aligned where the first is.
            given.append(place(memory, end, longest, x.dtype, (offset + 12 * k) % 64))
            given[-1][...] = x
        for length in lengths:
            part = slice(longest - length, None) if end else slice(length)
            arguments = [x[part] for x in given]
            # Every offset of the output, with every length; aligned where the input is.
            y = place(out, end, length, expected.dtype, (17 * offset + 4 * length) % 64)
            where = f"{op!r}, length {length}, offset {offset}, at the end: {end}"
            if calls % 3 == 0 and y.flags.aligned and all(x.flags.aligned for x in arguments):
                op.bind(*arguments, out=y)()
            else:
                op(*arguments, out=y)
            calls += 1
            if not np.array_equal(y.view(bits), expected[part].view(bits)):
                sys.exit(f"{where}: wrong bits")
            y.view(np.uint8)[...] = pages.PATTERN
            if not (out.bytes == pages.PATTERN).all():
                sys.exit(f"{where}: written outside of the output")

for job in jobs:
    name, *numbers = job.split(",")
    held = np.load(f"{folder}/{name}.npz")
    expected = held["expected"]
    inputs = [held[key] for key in sorted(held) if key != "expected"]
    op = relu_ops.load(f"{folder}/{name}.bundle", target=target)
    configure(Settings(*map(int, numbers)))
    for end in (False, True):
        check(op, inputs, expected, end)
print(calls)
"""


def prepare(folder: Path, name: str, target: str) -> None:
    """Write a bundle, and inputs with what the reference makes of them; no NaN: bits differ."""
    model = GRAPHS[name]
    compiler.build(model, [target], folder / f"{name}.bundle")
    graph = frontend.import_model(model)
    draw = np.random.default_rng(0)
    inputs = [random_array(draw, i.dtype, (LONGEST,)) for i in graph.inputs]
    inputs = [np.where(x == x, x, np.ones((), x.dtype)).astype(x.dtype) for x in inputs]
    (expected,) = reference.evaluate(graph, inputs)
    for x in inputs:
        x[np.isnan(expected.astype(np.float64))] = 1  # the sum of two infinities
    (expected,) = reference.evaluate(graph, inputs)
    arrays = {f"input{k}": x for k, x in enumerate(inputs)}
    np.savez(folder / f"{name}.npz", expected=expected, **arrays)


def call_guarded(
    folder: Path,
    target: str,
    lengths: Sequence[int],
    offsets: range,
    jobs: Sequence[tuple[str, str]],
) -> int:
    """Call in a child; return how many calls there were."""
    for name in {name for name, _ in jobs}:
        prepare(folder, name, target)
    np.save(folder / "lengths.npy", np.array(lengths))
    shown = []
    for name, mode in jobs:
        s = MODES[mode]
        shown.append(f"{name},{s.threads},{s.parallel_bytes},{s.stream_bytes}")
    arguments = [folder, target, folder / "lengths.npy", f"{offsets.start},{offsets.stop}", *shown]
    done = children.run(_CALLER, *arguments, seconds=900)
    assert (done.returncode, done.stderr) == (0, "")
    return int(done.stdout)


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_outside_is_touched(target: str, tmp_path: Path) -> None:
    jobs = list(itertools.product(GRAPHS, ["usual", "streaming stores, two threads"]))
    calls = call_guarded(tmp_path, target, SOME_LENGTHS, OFFSETS, jobs)
    assert calls == len(SOME_LENGTHS) * len(OFFSETS) * 2 * len(jobs)


@pytest.mark.exhaustive
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_length_at_every_offset(target: str, name: str, mode: str, tmp_path: Path) -> None:
    lengths = EVERY_LENGTH if name in ("relu", "leaky_relu") else MANY_LENGTHS
    calls = call_guarded(tmp_path, target, lengths, OFFSETS, [(name, mode)])
    assert calls == len(lengths) * len(OFFSETS) * 2
    print(f"{target}, {name}, {mode}: {calls} calls")


# ---------------------------------------------------------------- the checks can fail


@pytest.mark.parametrize("end", [False, True])
@pytest.mark.parametrize("writes", [False, True])
def test_a_byte_too_far_ends_the_process(end: bool, writes: bool) -> None:
    code = f"""
import ctypes, numpy as np, pages
memory = pages.GuardedPages(100)
address = memory.bytes.ctypes.data + ({"len(memory.bytes)" if end else -1})
inside = address {"- 1" if end else "+ 1"}
ctypes.memset(inside, 7, 1)
print(ctypes.string_at(inside, 1)[0], flush=True)
{"ctypes.memset(address, 7, 1)" if writes else "ctypes.string_at(address, 1)"}
"""
    done = children.run(code)
    assert (done.returncode, done.stdout) == (-11, "7\n"), done.stderr


def test_arrays_touch_the_guard_pages() -> None:
    memory = pages.GuardedPages(1000)
    dtype = np.dtype(np.float32)
    assert memory.at_the_start(3, dtype, 0).ctypes.data == memory.bytes.ctypes.data
    stop = memory.bytes.ctypes.data + len(memory.bytes)
    assert memory.at_the_end(3, dtype, 0).ctypes.data + 12 == stop
    assert memory.at_the_end(3, dtype, 5).ctypes.data + 17 == stop
    assert stop % pages.PAGE == 0 and memory.bytes.ctypes.data % pages.PAGE == 0
