"""Several threads and streaming stores change no bit, write nothing outside, and survive forks."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import children
import numpy as np
import pytest
from cases import TARGETS, compiled

import relu_ops
from relu_ops import compiler, graphs
from relu_ops.bundle import manifest as manifests
from relu_ops.bundle import store as bundle
from relu_ops.compiler import frontend
from relu_ops.compiler.cpu.disassembly import functions
from relu_ops.contract import reference
from relu_ops.errors import ArgumentError, ArgumentTypeError
from relu_ops.runtime import dispatch, threads
from relu_ops.runtime.threads import Settings
from relu_ops.verification import random_values, same

NEVER = 1 << 62
MODES = {
    "two threads": Settings(2, 0, NEVER),
    "seven threads": Settings(7, 0, NEVER),
    "streaming": Settings(1, NEVER, 0),
    "both": Settings(3, 0, 0),
}
SIZES = (1, 2, 15, 16, 17, 63, 64, 65, 1000, 1023, 1024, 1025, 8192, 100_003)


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    before = threads.settings()
    yield
    threads.configure(before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_no_bit_changes_and_no_guard_word(target: str, dtype: str, mode: str) -> None:
    model = graphs.relu(dtype=dtype)
    graph = frontend.import_model(model)
    operator = compiled(model, target)
    threads.configure(MODES[mode])
    draw = np.random.default_rng(0)
    for size in SIZES:
        for offset in (0, 1, 7):
            x = random_values(dtype, size + offset, draw)[offset:]
            room = np.full(size + 64, 42, x.dtype)
            out = room[13 + offset : 13 + offset + size]
            operator(x, out=out)
            assert same(out, reference.evaluate(graph, [x])[0]).all(), (size, offset)
            assert (room[: 13 + offset] == 42).all() and (room[13 + offset + size :] == 42).all()


RETURN = 0xC3


@pytest.mark.parametrize("target", TARGETS)
def test_stores_go_past_the_cache_where_they_should(target: str) -> None:
    """An operator whose plain kernels do nothing writes what its streaming twins write."""
    files = compiler.make(graphs.relu(), target)
    image = bytearray(files.pop(f"{target}.image"))
    for function in functions(bytes(image), "relu"):
        if not function.name.endswith("_stream"):
            image[function.at] = RETURN
    files[f"{target}.image"] = bytes(image)
    held = bundle.pack(manifests.decode(files[manifests.FILE]), without_lists(files))
    operator = dispatch.operator_of(bundle.from_contents("silent", held), target=target)
    x, out = np.ones(1 << 16, np.float32), aligned(1 << 16)
    for stream_bytes, written in ((0, 1), (2 * x.nbytes, 1), (2 * x.nbytes + 1, 42)):
        for count in (1, 3):
            threads.configure(Settings(count, 0, stream_bytes))
            out[:] = 42
            operator(x, out=out)
            assert (out == written).all(), (stream_bytes, count)


def without_lists(files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {k: v for k, v in files.items() if k not in (bundle.SUMS, manifests.FILE)}


def aligned(count: int) -> np.ndarray:
    room = np.empty(count + 16, np.float32)
    start = -room.ctypes.data % 64 // 4
    return room[start : start + count]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", ["last", "nchw"])
def test_broadcast_chains(layout: str, mode: str) -> None:
    model = graphs.scale_bias_leaky_relu(alpha=0.1, layout=layout)
    graph = frontend.import_model(model)
    draw = np.random.default_rng(1)
    shapes = {
        "last": [(37, 512), (512,), (512,)],
        "nchw": [(3, 5, 33, 41), (5, 1, 1), (5, 1, 1)],
    }[layout]
    inputs = [draw.standard_normal(s, np.float32) for s in shapes]
    (expected,) = reference.evaluate(graph, inputs)
    for target in TARGETS:
        operator = compiled(model, target)
        threads.configure(MODES[mode])
        assert same(operator(*inputs), expected).all()
        view = np.asfortranarray(inputs[0])
        assert same(operator(view, *inputs[1:]), expected).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_blocked_quantization(axis: int) -> None:
    from onnx import TensorProto, helper

    shape, block = [6, 8, 12], 2
    blocks = [d // block if k == axis else d for k, d in enumerate(shape)]
    types = [("x", TensorProto.INT8, shape), ("s", TensorProto.FLOAT, blocks)]
    info = [helper.make_tensor_value_info(*t) for t in (*types, ("y", TensorProto.FLOAT, shape))]
    node = helper.make_node("DequantizeLinear", ["x", "s"], ["y"], axis=axis, block_size=block)
    graph = helper.make_graph([node], "g", info[:2], info[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    draw = np.random.default_rng(2)
    x = draw.integers(-128, 128, shape, np.int8)
    scale = draw.standard_normal(blocks, np.float32)
    expected = x * np.repeat(scale, block, axis)
    for target in TARGETS:
        operator = compiled(model, target)
        assert same(operator(x, scale), expected).all()
        flipped = np.asfortranarray(x)[::-1], scale[::-1]
        assert same(operator(*flipped), expected[::-1]).all()


@pytest.mark.parametrize("mode", MODES)
def test_in_place(mode: str) -> None:
    operator = compiled(graphs.leaky_relu(alpha=0.5), TARGETS[-1])
    threads.configure(MODES[mode])
    x = np.linspace(-5, 5, 70_001, dtype=np.float32)
    expected = np.where(x < 0, np.float32(0.5) * x, x)
    operator(x, out=x)
    assert same(x, expected).all()


def test_many_callers_at_once() -> None:
    operator = compiled(graphs.relu(), TARGETS[-1])
    threads.configure(MODES["two threads"])
    x = np.linspace(-5, 5, 50_000, dtype=np.float32)
    expected = np.where(x < 0, np.float32(0), x)
    wrong: list[int] = []

    def call(number: int) -> None:
        out = np.empty_like(x)
        for _ in range(200):
            out[:] = 7
            operator(x, out=out)
            if not np.array_equal(out, expected):
                wrong.append(number)

    callers = [threading.Thread(target=call, args=(k,)) for k in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_children_forked_after_use_answer() -> None:
    code = """
import os, children, numpy as np, relu_ops
relu_ops.set_num_threads(2)
x = np.linspace(-1, 1, 1 << 20, dtype=np.float32)
y = relu_ops.relu(x)
for _ in range(20):
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(relu_ops.relu(x), y) else 1)
    assert children.wait(child, 10) == 0
"""
    done = children.run(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_workers_sleep_after_a_call() -> None:
    """A process that does nothing after a call uses no processor time."""
    code = """
import time, numpy as np, relu_ops
relu_ops.set_num_threads(2)
x = np.zeros(1 << 20, np.float32)
for _ in range(20):
    relu_ops.relu(x, out=x)
time.sleep(0.01)
before = time.process_time()
time.sleep(0.5)
print(time.process_time() - before < 0.05)
"""
    done = children.run(code)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_slow_jobs_one_after_another_get_their_threads() -> None:
    """Small ones by bytes, each longer than workers wait for the next: still one burst."""
    code = """
import os, numpy as np, onnx.parser, relu_ops
relu_ops.set_num_threads(2)
op = relu_ops.compile(onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 18]> g (int64[N] a, int64[N] b) => (int64[N] y)'
    '{ c = Div(a, b) d = Div(c, b) e = Div(d, b) y = Div(e, b) }'
))
a, b = np.full(1 << 15, -(1 << 62)), np.full(1 << 15, 3)
call = op.bind(a, b, out=np.empty_like(a))
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
for _ in range(1000):
    call()
    if count() > before:
        break
print(count() - before)
"""
    done = children.run(code)
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_who_reads_the_output_between_calls_keeps_it_in_his_cache() -> None:
    """Calls of some KiB share their work if one follows the other at once, and else do not."""
    code = """
import os, time, numpy as np, relu_ops
relu_ops.set_num_threads(2)
op = relu_ops.compile(relu_ops.graphs.relu())
x = np.ones(1 << 16, np.float32)
call = op.bind(x, out=np.empty_like(x))
count = lambda: len(os.listdir("/proc/self/task"))
before, started = count(), []
for pause in (1e-4, 0.0):
    for _ in range(200):
        call()
        end = time.perf_counter() + pause
        while time.perf_counter() < end:
            pass
    started.append(count() - before)
print(started)
"""
    done = children.run(code)
    assert (done.stdout, done.stderr) == ("[0, 1]\n", "")


@pytest.mark.parametrize("first", ["tvm", "relu_ops"])
def test_tvm_in_the_same_process(first: str) -> None:
    use = "import numpy as np, relu_ops; x = np.ones(1 << 20, np.float32); relu_ops.relu(x)"
    code = f"import tvm; {use}" if first == "tvm" else f"{use}; import tvm; relu_ops.relu(x)"
    done = children.run(code)
    assert done.returncode == 0, done.stderr


def test_one_processor_in_the_affinity_mask_gives_one_thread() -> None:
    code = """
import os
os.sched_setaffinity(0, {0})
import relu_ops
print(relu_ops.get_num_threads())
"""
    done = children.run(code)
    assert done.stdout == "1\n"


_ASKS = """
import relu_ops
from relu_ops.errors import ArgumentError
for ask in (
    relu_ops.get_num_threads,
    lambda: relu_ops.load(BUNDLE).name,
    lambda: relu_ops.set_num_threads(None),
    lambda: relu_ops.set_num_threads(4),
):
    try:
        print(ask())
    except ArgumentError as error:
        print(error)
"""


def test_the_variable_is_heard(tmp_path: Path) -> None:
    """A wrong one by whoever loads an operator, too: at a call it would be too late to say so."""
    compiler.build(graphs.relu(), "native", tmp_path / "a.bundle")
    asks = _ASKS.replace("BUNDLE", repr(str(tmp_path / "a.bundle")))
    done = children.run(asks, RELU_OPS_NUM_THREADS="3")
    assert (done.stdout, done.stderr) == ("3\nrelu\nNone\nNone\n", "")
    for wrong in ("many", "0", "257", "-1", "2 ", "1e1"):
        done = children.run(asks, RELU_OPS_NUM_THREADS=wrong)
        refusal = (
            f"RELU_OPS_NUM_THREADS must be 1 to 256 (not {wrong!r})\n"
            "hint: unset it for as many threads as the process may use\n"
        )
        assert (done.stdout, done.stderr) == (refusal * 4, "")


def test_settings_come_back_after_a_while() -> None:
    mine = Settings(2, 3, 4, 5)
    threads.configure(mine)
    with threads.num_threads(7):
        assert threads.settings() == (7, *threads.default_settings(7)[1:])
        with threads.num_threads(None):
            assert threads.settings() == threads.default_settings()
        assert relu_ops.get_num_threads() == 7
    assert threads.settings() == mine


def test_a_wrong_number_of_threads_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^count must be 1 to 256 \(not 0\)\nhint: None"):
        relu_ops.set_num_threads(0)
    with pytest.raises(
        ArgumentTypeError, match=r"^count must be an int or None \(not str\)\nhint: None"
    ):
        relu_ops.set_num_threads("2")  # type: ignore[arg-type]
    for count in (True, 2.0, np.ones(2, np.int64)):
        with pytest.raises(ArgumentTypeError, match=r"^count must be an int or None"):
            relu_ops.set_num_threads(count)  # type: ignore[arg-type]
    with threads.num_threads(np.int64(2)):  # type: ignore[arg-type]
        assert relu_ops.get_num_threads() == 2


def test_interruption_leaves_the_pool_usable() -> None:
    # A test runner in the background of a shell inherits SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _interrupt_calls()
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt_calls() -> None:
    operator = compiled(graphs.relu(), TARGETS[-1])
    threads.configure(MODES["two threads"])
    x = np.zeros(1 << 22, np.float32)
    timer = threading.Timer(0.02, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        for _ in range(100_000):
            operator(x, out=x)
    assert operator(np.float32([-1, 1])).tolist() == [0, 1]
