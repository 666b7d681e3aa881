"""The CUDA kernels and the core above them, with a driver whose devices are the CPU.

Each function here is a test of test_cuda_simulated.py, in a process of its own. What only a device
can show is in scripts/check_cuda.py.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import mmap
import os
import pickle
import runpy
import subprocess
import sys
import threading
import zlib
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import simulated_cuda
from cases import FLOATS, SPECIALS, assert_same_bits, expected, random_array, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from test_random_graphs import Case
from test_random_graphs import cases as random_cases

import relu_ops
from relu_ops import cli, graphs, hosts
from relu_ops.bench import cases as bench_cases
from relu_ops.bench import checking
from relu_ops.bench.peers import device as by_driver
from relu_ops.bench.peers.problem import Problem
from relu_ops.bundle import store as bundle
from relu_ops.compiler import frontend
from relu_ops.contract import reference
from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import ArgumentError, ArgumentTypeError, DeviceError, TargetError
from relu_ops.native import _python as native
from relu_ops.runtime import dispatch, driver
from relu_ops.runtime import operator as careful_way
from relu_ops.runtime.operator import Operator
from relu_ops.verification import verify
from relu_ops.verification.device import DeviceArray, OnDevice, capsule

MODELS = sorted((Path(__file__).parents[2] / "models").glob("*.onnx"))

_SETTINGS: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


def check(operator: OnDevice, *inputs: np.ndarray, out: np.ndarray | None = None) -> None:
    model = frontend.read_model(operator.bundle.model(operator.name))
    plain = [np.array(x) for x in inputs]
    (wanted,) = reference.evaluate(frontend.import_model(model), plain)
    got = operator(*inputs, out=out)
    assert_same_bits(np.asarray(got), wanted, f"shapes {[x.shape for x in inputs]}", plain)


# ---------------------------------------------------------------- bits


def some_models() -> list[Path]:
    """A third of them each, in processes of their own."""
    part = int(os.environ.get("SIMULATED_PART", "0"))
    return MODELS[part::4]


@pytest.mark.parametrize("path", some_models(), ids=lambda path: path.stem)
def test_every_model_passes_the_whole_check(path: Path) -> None:
    report = verify(path, device="cuda")
    assert report.ok, str(report)
    assert all(row.target == "cuda" for row in report.rows)


@pytest.mark.parametrize("name", ["relu_float16", "relu_bfloat16", "leaky_relu_bfloat16"])
def test_every_pattern_of_16_bits(name: str) -> None:
    (path,) = [path for path in MODELS if path.stem == name]
    report = verify(path, device="cuda:1", exhaustive=True)
    assert report.ok, str(report)


@settings(max_examples=40, **_SETTINGS)
@given(case=random_cases())
def test_random_graphs(case: Case) -> None:
    model, inputs = case.model(), list(case.arrays.values())
    results = run(simulated_cuda.called_from_here(model), inputs)
    for got, want in zip(results, expected(model, inputs), strict=True):
        assert_same_bits(got, want, f"opset {case.opset}", inputs)


def test_products_of_bfloat16_are_rounded_once() -> None:
    """Every bfloat16 times some: subnormal results are where float32 would round twice."""
    values = [helper.make_tensor_value_info(name, 16, None) for name in ("a", "b", "y")]
    nodes = [helper.make_node("Mul", ["a", "b"], ["y"])]
    graph = helper.make_graph(nodes, "product", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    operator = simulated_cuda.called_from_here(model)
    every = np.arange(1 << 16, dtype=np.uint16).view(DTYPES["bfloat16"].numpy)
    for other in every[::1009]:
        check(operator, every, other.reshape(1))


@pytest.mark.parametrize("dtype", FLOATS)
def test_special_values_at_every_lane(dtype: str) -> None:
    """A value gives the same bits wherever it lies: in a chunk, at its ends, in a tail."""
    operator = simulated_cuda.called_from_here(graphs.leaky_relu(alpha=0.1, dtype=dtype))
    values = SPECIALS[dtype]
    for shift in range(9):
        check(operator, np.concatenate([values[:1].repeat(shift), values]))


def test_constants_and_outputs_of_different_shapes() -> None:
    """Array constants lie on the device; an operand that a pass does not reach has an element."""
    operator = simulated_cuda.called_from_here(two_outputs())
    model = frontend.import_model(operator.bundle.model("two"))
    for shape in ((5,), (1,), (2, 1), (2, 5), (4, 1, 1), (3, 2, 5)):
        x = random_array(np.random.default_rng(3), "float32", shape)
        wanted = reference.evaluate(model, [x])
        for got, want in zip(run(operator, [x]), wanted, strict=True):
            assert_same_bits(got, want, str(shape), [x])


def two_outputs() -> Any:
    scale, wide = np.float32([[2], [-3]]), np.arange(5, dtype=np.float32)
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["scaled"]),
        helper.make_node("Relu", ["scaled"], ["y"]),
        helper.make_node("Add", ["x", "wide"], ["z"]),
    ]
    values = [helper.make_tensor_value_info(n, 1, None) for n in ("x", "y", "z")]
    held = [numpy_helper.from_array(a, n) for a, n in ((scale, "scale"), (wide, "wide"))]
    graph = helper.make_graph(nodes, "two", values[:1], values[1:], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


# ---------------------------------------------------------------- launches

LAYOUTS = [
    # Rows that a block takes whole, in part, and many at once; one and several planes.
    *[((rows, n), (n,)) for rows in (1, 2, 3, 37) for n in (1, 3, 4, 5, 127, 128, 129, 513)],
    *[((rows, 1), (1, n)) for rows in (1, 300) for n in (3, 64, 1100)],
    *[((4096,), (1,)), ((40_001,), (40_001,)), ((33, 4100), (4100,)), ((5000, 8), (8,))],
    *[((2, 3, 5), (3, 1)), ((7, 16, 64), (16, 1)), ((3, 4, 5, 6), (4, 1, 6))],
    # More dimensions than one launch has.
    ((2, 3, 2, 3, 2, 3), (2, 1, 2, 1, 2, 1)),
    ((3, 2, 2, 2, 3, 2, 2, 3), (3, 1, 2, 1, 3, 1, 2, 1)),
    # More planes and more rows than a grid has.
    ((66_000, 2, 3), (1, 2, 1)),
    ((131_100, 1), (1, 300)),
]


@pytest.fixture(scope="module")
def operators() -> dict[str, OnDevice]:
    return {
        dtype: simulated_cuda.called_from_here(graphs.add_relu(dtype=dtype))
        for dtype in ("float32", "int8")
    }


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("shapes", LAYOUTS, ids=str)
def test_broadcasts(
    operators: dict[str, OnDevice], shapes: tuple[tuple[int, ...], ...], dtype: str
) -> None:
    rng = np.random.default_rng(1)
    check(operators[dtype], *(random_array(rng, dtype, shape) for shape in shapes))


@settings(max_examples=300, **_SETTINGS)
@given(data=st.data())
def test_any_strides(operators: dict[str, OnDevice], data: st.DataObject) -> None:
    """Permuted, reversed, sliced, broadcast and shifted views, in place or not."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    dtype = data.draw(st.sampled_from(["float32", "int8"]))
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=0, max_size=5)))
    a, b = (_view(data, rng, dtype, shape) for _ in range(2))
    out = None
    if data.draw(st.booleans()):
        out = data.draw(st.sampled_from([_view(data, rng, dtype, shape, writable=True), a]))
        if not out.flags.writeable or 0 in out.strides:
            out = None
    if out is a:
        wanted = operators[dtype](a.copy(), b)
        assert_same_bits(operators[dtype](a, b, out=a), wanted, "in place")
    else:
        check(operators[dtype], a, b, out=out)


def _view(
    data: st.DataObject,
    rng: np.random.Generator,
    dtype: str,
    shape: tuple[int, ...],
    *,
    writable: bool = False,
) -> np.ndarray:
    order = data.draw(st.permutations(range(len(shape))))
    steps = [data.draw(st.sampled_from([1, 1, 1, 2, -1])) for _ in shape]
    offset = data.draw(st.integers(0, 5))
    stored = [shape[d] * abs(steps[d]) for d in order]
    flat = random_array(rng, dtype, [offset + int(np.prod(stored, dtype=int))])
    view = flat[offset:].reshape(stored).transpose(np.argsort(order) if shape else ())
    view = view[tuple(slice(None, None, step) for step in steps)]
    view = view[tuple(slice(0, extent) for extent in shape)]
    if shape and not writable and data.draw(st.booleans()):
        return np.broadcast_to(view[..., :1], shape)
    return view


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_all_offsets_and_sizes_around_a_chunk(dtype: str) -> None:
    """Between pages that must not be touched, and with nothing written beside the output."""
    operator = simulated_cuda.loaded(graphs.add_relu(dtype=dtype))
    itemsize = DTYPES[dtype].itemsize
    rng = np.random.default_rng(2)
    with Guarded() as inputs, Guarded() as outputs:
        for size in (*range(70), 255, 256, 257, 1023, 1024, 1025, 4095):
            for offset in range(17 if size < 70 else 3):
                at_end = bool((size + offset) % 2)
                x = inputs.array(dtype, size, offset, at_end=at_end)
                x[...] = random_array(rng, dtype, [size])
                shared = offset % 3 == 0  # else the operands are misaligned each in its way
                y = outputs.array(dtype, size, offset if shared else 0, at_end=at_end)
                outputs.fill(0x5A)
                operator(Lent(x), Lent(x), out=Lent(y))
                with np.errstate(all="ignore"):
                    (wanted,) = reference.evaluate(
                        frontend.import_model(graphs.add_relu(dtype=dtype)), [x, x]
                    )
                assert_same_bits(np.array(y), wanted, f"size {size}, offset {offset}", [x])
                used = y.ctypes.data - outputs.start
                kept = outputs.bytes().copy()
                kept[used : used + size * itemsize] = 0x5A
                assert (kept == 0x5A).all(), f"size {size}, offset {offset}"


class Lent:
    """An array in this process, as if it lay on a simulated device: which it does."""

    def __init__(self, array: np.ndarray, device: int = 0, stream: list[Any] | None = None) -> None:
        self.array, self.device, self.asked = array, device, stream
        self.held: list[Any] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.device

    def __dlpack__(self, *, stream: Any = None, max_version: Any = None) -> Any:
        if self.asked is not None:
            self.asked.append(stream)
        made, held = capsule(self.array.ctypes.data, self.array, self.device)
        self.held.append(held)
        return made


class Guarded:
    """Memory between two pages that cannot be read or written."""

    PAGES = 5

    def __enter__(self) -> Guarded:
        self.memory = mmap.mmap(-1, (self.PAGES + 2) * mmap.PAGESIZE)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.start = self.base + mmap.PAGESIZE
        self.size = self.PAGES * mmap.PAGESIZE
        self._protect(0)
        return self

    def __exit__(self, *_: object) -> None:
        self._protect(3)

    def _protect(self, rights: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        for page in (self.base, self.start + self.size):
            assert libc.mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, rights) == 0

    def bytes(self) -> np.ndarray:
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(self.start))

    def fill(self, value: int) -> None:
        self.bytes()[...] = value

    def array(self, dtype: str, size: int, offset: int, *, at_end: bool) -> np.ndarray:
        """An array `offset` elements from the front, or from the back, of the memory."""
        itemsize = DTYPES[dtype].itemsize
        begin = self.size - (size + offset) * itemsize if at_end else offset * itemsize
        return self.bytes()[begin : begin + size * itemsize].view(DTYPES[dtype].numpy)


def test_one_launch_is_enough_for_up_to_five_dimensions() -> None:
    operator = simulated_cuda.called_from_here(graphs.maxout(pieces=3))
    shapes = {
        ((100_000,),) * 3: 1,
        ((300, 512), (512,), (300, 1)): 1,
        ((3, 4, 5, 6, 7), (4, 1, 6, 1), (3, 1, 5, 1, 7)): 1,
        ((2, 3, 2, 3, 2, 3), (2, 1, 2, 1, 2, 1), (3, 2, 3, 2, 3)): 2,
        ((0, 5), (5,), (1,)): 0,
    }
    for arrays, launches in shapes.items():
        before = launched()
        check(operator, *(random_array(np.random.default_rng(4), "float32", a) for a in arrays))
        assert launched() - before == launches, arrays


def launched() -> int:
    return int(simulated_cuda.driver().simulated_calls(b"cuLaunchKernel"))


# ---------------------------------------------------------------- devices, streams, graphs


@pytest.fixture(scope="module")
def leaky() -> bundle.Bundle:
    return simulated_cuda.held(graphs.leaky_relu(alpha=0.5))


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray]:
    return np.float32([-2, 3, -0.0, np.inf]), np.zeros(4, np.float32)


def on(held: bundle.Bundle, device: int = 0) -> Operator:
    return dispatch.operator_of(held, cuda=device)


RESULT = np.float32([-1, 3, -0.0, np.inf])


def test_several_devices(leaky: bundle.Bundle, arrays: Any) -> None:
    """The code is loaded once on each, and a call goes where its arrays lie."""
    x, y = arrays
    operator = on(leaky, 1)
    assert operator.device == "cuda:1"
    assert repr(operator).endswith("target=cuda, device=cuda:1>")
    loads = simulated_cuda.driver().simulated_calls
    before = loads(b"cuModuleLoadData")
    for device in (1, 0, 2, 0, 1):
        y[...] = 0
        operator(Lent(x, device), out=Lent(y, device))
        assert_same_bits(y, RESULT, f"cuda:{device}")
        assert simulated_cuda.driver().simulated_last_device() == device
    assert loads(b"cuModuleLoadData") == before + 2
    on(leaky, 2)  # the same code is there already
    assert loads(b"cuModuleLoadData") == before + 2
    with pytest.raises(ArgumentError) as caught:
        operator(Lent(x, 0), out=Lent(y, 1))
    assert caught.value.message == (
        "leaky_relu: y is on cuda:1; x is on cuda:0: all arrays must be on one device"
    )


def test_arrays_elsewhere_are_refused(leaky: bundle.Bundle, arrays: Any) -> None:
    x, y = arrays
    operator = on(leaky)
    with pytest.raises(ArgumentError) as caught:
        operator(x)
    assert str(caught.value) == (
        "leaky_relu: x is in the CPU's memory; this operator runs on cuda:0\n"
        "hint: copy it to the device first, for example with torch.from_numpy(x).cuda()"
    )
    with pytest.raises(ArgumentTypeError, match=r"x must be an array on cuda:0 \(not list\)"):
        operator([1.0])
    with pytest.raises(ArgumentError, match="out must be given where the inputs are neither of"):
        operator(Lent(x))
    with pytest.raises(ArgumentTypeError, match=r"x\.dtype must be float32 \(not float64\)"):
        operator(Lent(x.astype(np.float64)), out=Lent(y))
    with pytest.raises(ArgumentError, match=r"out for y\.shape must be \(4,\) \(not \(3,\)\)"):
        operator(Lent(x), out=Lent(y[:3]))
    with pytest.raises(ArgumentError, match="must not overlap x in memory"):
        operator(Lent(x[:3]), out=Lent(x[1:]))
    with pytest.raises(ArgumentTypeError, match="takes the keywords out and stream on a device"):
        operator(Lent(x), out=Lent(y), threads=2)
    with pytest.raises(ArgumentTypeError, match=r"takes 1 input \(x\), not 2"):
        operator(Lent(x), Lent(x), out=Lent(y))
    assert not y.any()


def test_streams(leaky: bundle.Bundle, arrays: Any) -> None:
    """A call goes to its stream, and whoever made an array is told which to wait for."""
    x, y = arrays
    operator, asked = on(leaky), []
    for stream, handle, told in ((None, None, 1), (0, None, 1), (77, 77, 77), (Stream(), 78, 78)):
        asked.clear()
        operator(Lent(x, 0, asked), out=Lent(y), stream=stream)
        assert simulated_cuda.driver().simulated_last_stream() == handle
        assert asked == [told]
    assert_same_bits(y, RESULT, "on a stream")
    for wrong in ("main", True, -1, 1 << 64):
        with pytest.raises(ArgumentTypeError, match="stream must be a handle, or a stream of"):
            operator(Lent(x), out=Lent(y), stream=wrong)


class Stream:
    """A stream of cuda.core."""

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, 78


def test_bound_calls(leaky: bundle.Bundle, arrays: Any) -> None:
    x, y = arrays
    operator = on(leaky)
    call = operator.bind(Lent(x), out=Lent(y), stream=5)
    for _ in range(2):
        y[...] = 0
        before = launched()
        call()
        assert launched() == before + 1
        assert_same_bits(y, RESULT, "bound")
        assert simulated_cuda.driver().simulated_last_stream() == 5
    call = operator.bind(Lent(x), out=Lent(y))
    del operator
    gc.collect()
    call()
    assert simulated_cuda.driver().simulated_last_stream() is None


def test_a_captured_graph_launches_when_it_is_replayed(leaky: bundle.Bundle, arrays: Any) -> None:
    """Nothing but launches happens in a capture, and its code outlives the operator."""
    x, y = arrays
    operator = on(leaky)
    call = operator.bind(Lent(x), out=Lent(y))
    simulated = simulated_cuda.driver()
    simulated.simulated_capture()
    call()
    operator(Lent(x), out=Lent(y))
    simulated.simulated_end_capture()
    assert not y.any()
    del operator, call
    gc.collect()
    simulated.simulated_replay()
    assert_same_bits(y, RESULT, "replayed")


def test_a_device_that_is_not_ready_cannot_be_captured(arrays: Any) -> None:
    x, y = arrays
    operator = on(simulated_cuda.held(graphs.leaky_relu(alpha=0.75)))
    simulated = simulated_cuda.driver()
    simulated.simulated_capture()
    with pytest.raises(DeviceError) as caught:
        operator(Lent(x, 2), out=Lent(y, 2))
    simulated.simulated_end_capture()
    assert caught.value.message == (
        "leaky_relu: opening the device on cuda:2 (Simulated GPU, sm_90) failed with "
        "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED (900, operation not permitted when stream is "
        "capturing)"
    )
    operator(Lent(x, 2), out=Lent(y, 2))
    assert y.tolist() == [-1.5, 3, 0, np.inf]


def test_threads_share_a_device(leaky: bundle.Bundle) -> None:
    operators = [on(leaky) for _ in range(4)]
    wrong: list[int] = []

    def work(number: int) -> None:
        for k in range(50):
            x = np.float32([-number, k])
            y = np.zeros(2, np.float32)
            operators[number](Lent(x, k % 3), out=Lent(y, k % 3))
            if not (y == [-number / 2, k]).all():
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---------------------------------------------------------------- failures

FAILED = (
    "leaky_relu: {} on cuda:{} (Simulated GPU, sm_90) failed with CUDA_ERROR_LAUNCH_FAILED (719, "
    "unspecified launch failure)"
)


def test_a_launch_that_fails_is_said_and_not_tried_again(leaky: bundle.Bundle, arrays: Any) -> None:
    x, y = arrays
    operator = on(leaky)
    call = operator.bind(Lent(x), out=Lent(y))
    for launch in (lambda: operator(Lent(x), out=Lent(y)), call):
        before = launched()
        simulated_cuda.driver().simulated_failure(b"cuLaunchKernel", 0, 719)
        with pytest.raises(DeviceError) as caught:
            launch()
        assert caught.value.message == FAILED.format("launching a kernel", 0)
        assert launched() == before + 1
        assert not y.any()
    call()
    assert_same_bits(y, RESULT, "the next call")


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("cuDevicePrimaryCtxRetain", "opening the device"),
        ("cuCtxGetCurrent", "asking for the current context"),
        ("cuCtxPushCurrent_v2", "entering the context"),
        ("cuModuleLoadData", "loading the code"),
        ("cuModuleGetGlobal_v2", "looking up memory of the code"),
        ("cuStreamSynchronize", "copying the constants"),
        ("cuModuleGetFunction", "looking up a kernel"),
        ("cuFuncLoad", "loading a kernel"),
    ],
)
def test_what_fails_while_code_is_loaded_is_said(name: str, asked: str, arrays: Any) -> None:
    """And the next try loads it."""
    x, y = arrays
    alpha = zlib.crc32(name.encode()) % 1024 / 1024  # code of its own
    held = simulated_cuda.held(graphs.leaky_relu(alpha=alpha))
    on(held, 0)
    simulated_cuda.driver().simulated_failure(name.encode(), 0, 719)
    with pytest.raises(DeviceError) as caught:
        on(held, 1)
    assert caught.value.message == FAILED.format(asked, 1)
    on(held, 1)(Lent(x, 1), out=Lent(y, 1))
    assert y[1] == 3


def test_a_driver_that_is_too_old(leaky: bundle.Bundle) -> None:
    simulated_cuda.driver().simulated_machine(12080, 90, 3)
    with pytest.raises(TargetError) as caught:
        on(leaky)
    assert str(caught.value) == (
        "<memory>: no variant can run on cuda:0 (Simulated GPU, sm_90, driver of CUDA 12.8); it "
        "has:\n"
        "  cuda: the driver runs CUDA 12.8; it must run 13.0\n"
        "hint: build it with the target cuda, or cuda-sm_90 for this device alone"
    )


@pytest.mark.parametrize(
    ("capability", "target", "reason"),
    [
        (90, "cuda-sm_100", "its code is for sm_100 (not sm_90)"),
        (100, "cuda-sm_90", "its code is for sm_90 (not sm_100)"),
        (86, "cuda-sm_89", "its code is for sm_89 (not sm_86)"),
        (61, "cuda", None),
    ],
)
def test_an_architecture_without_code(capability: int, target: str, reason: str | None) -> None:
    simulated_cuda.driver().simulated_machine(13000, capability, 3)
    held = simulated_cuda.held(graphs.relu(), target)
    every = "sm_75, sm_80, sm_86, sm_89, sm_90, sm_100, sm_120, compute_75, compute_120"
    with pytest.raises(TargetError) as caught:
        on(held)
    assert caught.value.message == (
        f"<memory>: no variant can run on cuda:0 (Simulated GPU, sm_{capability}, driver of CUDA "
        f"13.0); it has:\n  {target}: {reason or f'its code is for {every} (not sm_{capability})'}"
    )


@pytest.mark.parametrize(
    ("capability", "target"),
    [
        *((number, "cuda") for number in (75, 87, 90, 103, 110, 200)),
        *[(89, "cuda-sm_86"), (90, "cuda-sm_90")],
    ],
)
def test_an_architecture_with_code(capability: int, target: str) -> None:
    """Machine code of the same major version, or PTX of an older one."""
    simulated_cuda.driver().simulated_machine(13000, capability, 3)
    assert on(simulated_cuda.held(graphs.relu(), target)).target == target


def test_the_closest_image_is_taken() -> None:
    from relu_ops import compiler

    targets = ["x86-64-v2", "cuda-sm_80", "cuda-sm_86", "cuda-sm_90"]
    held = bundle.from_contents("<memory>", compiler.make(graphs.relu(), targets))
    for capability, target in ((86, "cuda-sm_86"), (89, "cuda-sm_86"), (80, "cuda-sm_80")):
        simulated_cuda.driver().simulated_machine(13000, capability, 3)
        assert on(held).target == target
    assert dispatch.operator_of(held, target="cuda-sm_80", cuda=0).target == "cuda-sm_80"
    with pytest.raises(TargetError, match="no variant for x86-64-v2 can run on cuda:0"):
        dispatch.operator_of(held, target="x86-64-v2", cuda=0)
    assert dispatch.operator_of(held, target="x86-64-v2").device == "cpu"


def test_a_device_that_is_not_there(leaky: bundle.Bundle) -> None:
    with pytest.raises(DeviceError) as caught:
        on(leaky, 3)
    assert caught.value.message == "there is no device cuda:3; the driver lists 3"


def test_no_device(leaky: bundle.Bundle) -> None:
    simulated_cuda.driver().simulated_machine(13000, 90, 0)
    with pytest.raises(DeviceError) as caught:
        on(leaky)
    assert str(caught.value) == (
        "CUDA's driver: starting it (cuInit) failed with CUDA_ERROR_NO_DEVICE (100, no "
        "CUDA-capable device is detected)\nhint: see whether nvidia-smi lists a device to this user"
    )
    simulated_cuda.driver().simulated_machine(13000, 90, 3)
    assert on(leaky).device == "cuda:0"  # it is looked for again


# ---------------------------------------------------------------- Python


def test_loading_from_a_folder(tmp_path: Path, arrays: Any) -> None:
    x, y = arrays
    relu_ops.build(graphs.leaky_relu(alpha=0.5), ["x86-64-v2", "cuda"], tmp_path / "b")
    assert relu_ops.load(tmp_path / "b").device == "cpu"
    operator = relu_ops.load(tmp_path / "b", device="cuda:2")
    assert (operator.device, operator.target) == ("cuda:2", "cuda")
    again = pickle.loads(pickle.dumps(operator))
    assert (again.device, again.target) == ("cuda:2", "cuda")
    assert again(Lent(x, 2), out=Lent(y, 2)).array is y
    assert_same_bits(y, RESULT, "unpickled")
    with pytest.raises(TargetError, match=r"x86-64-v2: it runs on the CPU \(not on a GPU\)"):
        relu_ops.load(tmp_path / "b", device="cuda", target="x86-64-v2")


def test_compiling_for_the_device() -> None:
    operator = relu_ops.compile(graphs.relu(), target="cuda-sm_90")
    assert (operator.device, operator.target) == ("cuda:0", "cuda-sm_90")
    assert str(operator.__signature__) == "(x, /, *, out=None, stream=None)"


def test_code_for_a_device_is_never_executable(leaky: bundle.Bundle) -> None:
    operator = on(leaky)
    maps = Path("/proc/self/maps").read_text().splitlines()
    ours = [line.split() for line in maps if "memfd:relu_ops" in line]
    assert {row[1] for row in ours} == {"r--p"}, operator


def test_what_is_wrong_on_the_device_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check fails, and says how to repeat it, where one bit is wrong."""

    def spoiled(self: DeviceArray, target: np.ndarray) -> None:
        original(self, target)
        if target.size > 3:
            target.reshape(-1).view(np.uint8)[5] ^= 1

    original = DeviceArray.copy_to
    monkeypatch.setattr(DeviceArray, "copy_to", spoiled)
    report = verify(graphs.relu(), device="cuda:1")
    assert not report.ok
    assert "target='cuda', case=" in str(report)
    assert ", device='cuda:1')" in str(report)


def test_what_is_written_beside_an_output_is_found() -> None:
    y = DeviceArray(np.zeros(4, np.float32), 0)
    y.copy_to(np.zeros(4, np.float32))
    byte = np.zeros(1, np.uint8)
    driver.copy_in(0, y._address + y._mirror.first + 16, byte.ctypes.data, 1)
    with pytest.raises(AssertionError, match=r"^byte 16 from an output's begin was written"):
        y.copy_to(np.zeros(4, np.float32))
    y.free()


def test_a_device_of_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = Path(__file__).parents[1] / "stand_in_ssh.py"
    monkeypatch.setenv("RELU_OPS_SSH", f"'{sys.executable}' '{stand_in}'")
    with hosts.connect("alpha", sys.executable) as alpha:
        assert [gpu.name for gpu in alpha.cuda.gpus] == [g.name for g in driver.probe().gpus]
        report = verify(graphs.leaky_relu(), device="cuda:1", on=alpha)
        assert report.ok and {row.target for row in report.rows} == {"cuda"}
        with pytest.raises(DeviceError, match=r"^alpha: "):
            verify(graphs.relu(), device="cuda:7", on=alpha)


def test_a_device_of_another_machine_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the driver alone: nothing but the base install is needed there."""
    stand_in = Path(__file__).parents[1] / "stand_in_ssh.py"
    monkeypatch.setenv("RELU_OPS_SSH", f"'{sys.executable}' '{stand_in}'")
    monkeypatch.setenv("STAND_IN_FOLDER", str(tmp_path / "startup"))
    few = ("--target", "cuda", "--size", "16", "--size", "4k", "--quick", "--json")
    there = ("--on", "base", "--python", sys.executable)
    before = simulated_cuda.driver().simulated_memory()
    for where in ((), there):
        assert cli.main(["bench", "--graph", "scale_bias_leaky_relu", *few, *where]) == 0
        found = json.loads(capsys.readouterr().out)
        timed = {(t["contestant"], t.get("verified", "")) for t in found["timings"]}
        assert timed == {
            ("relu_ops_cuda", "bit for bit with the NumPy reference"),
            ("limit: device-to-device copy", ""),
        }
        assert {t["elements"] for t in found["timings"]} == {16, 4096}
    gc.collect()
    assert simulated_cuda.driver().simulated_memory() == before


def test_a_device_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The outputs hold what they must not keep before the call is checked."""
    monkeypatch.setattr(by_driver, "_clock", lambda *_: lambda repeats: 1e-6 * repeats)
    operator = simulated_cuda.called_from_here(graphs.relu()).operator
    x, y = np.linspace(-1, 1, 16, dtype=np.float32), np.empty(16, np.float32)
    case = bench_cases.find("relu")
    made = by_driver.bound(Problem(case, "float32", "cuda", operator, [x], [y], 1))
    wanted = [np.maximum(x, 0)]
    assert not checking.check(case, made, [x], wanted)
    idle = dataclasses.replace(made, call=lambda: None)
    assert sum(checking.check(case, idle, [x], wanted).values()) == 16


def test_nothing_is_left_in_device_memory() -> None:
    operator = simulated_cuda.called_from_here(graphs.relu())
    before = simulated_cuda.driver().simulated_memory()
    for _ in range(3):
        operator(np.zeros(9, np.float32))
    assert simulated_cuda.driver().simulated_memory() == before


def test_the_probe_says_what_there_is() -> None:
    found = driver.probe()
    assert found.version == (13, 0)
    assert found.problem is None
    assert found.gpus == (("Simulated GPU", 90),) * 3
    assert native.processor_features()


# ---------------------------------------------------------------- packages of arrays


@pytest.fixture
def tensors(monkeypatch: pytest.MonkeyPatch, arrays: Any) -> tuple[Any, Any]:
    """torch's own tensors that say they lie on cuda:0, of a torch without CUDA: here they do."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0))
    made = tuple(torch._C._from_dlpack(lent(array)) for array in arrays)
    assert [str(x.device) for x in made] == ["cuda:0"] * 2
    return made


def lent(array: np.ndarray) -> Any:
    """The array as a capsule, which nothing outlives in these tests."""
    made, held = capsule(array.ctypes.data, array, 0)
    HELD.append(held)
    return made


HELD: list[Any] = []


def test_tensors_go_the_fast_way(
    leaky: bundle.Bundle, arrays: Any, tensors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (x, y), operator = tensors, on(leaky)
    monkeypatch.setattr(careful_way, "careful_call", None)
    before = launched()
    assert operator(x, out=y) is y
    assert operator(x, out=y, stream=None) is y
    assert_same_bits(arrays[1], RESULT, "into out")
    assert launched() == before + 2
    operator(x, out=x)
    assert_same_bits(arrays[0], RESULT, "in place")


def test_a_tensor_is_not_computed_twice(leaky: bundle.Bundle, tensors: Any) -> None:
    """What the fast way launched, and failed, is not tried the careful way."""
    (x, y), operator, before = tensors, on(leaky), launched()
    simulated_cuda.driver().simulated_failure(b"cuLaunchKernel", 0, 719)
    with pytest.raises(DeviceError) as caught:
        operator(x, out=y)
    assert caught.value.message == FAILED.format("launching a kernel", 0)
    assert launched() == before + 1


def test_tensors_go_the_careful_way_too(
    leaky: bundle.Bundle, arrays: Any, tensors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    (x, y), operator = tensors, on(leaky)
    call = operator.bind(x, out=y)
    call()
    assert_same_bits(arrays[1], RESULT, "bound")
    assert call.out is y
    arrays[1][...] = 0
    monkeypatch.setattr(torch, "empty", lambda shape, **_: y)  # torch has no memory there
    assert operator(x) is y
    assert_same_bits(arrays[1], RESULT, "a new tensor")
    with pytest.raises(ArgumentError, match="x requires a gradient, which this operator does not"):
        operator(x.requires_grad_(), out=y)
    with pytest.raises(ArgumentError, match="out for y requires grad, and cannot be written in"):
        operator(y, out=x)
    with pytest.raises(ArgumentTypeError, match=r"x\.dtype must be float32 \(not int32\)"):
        operator(y.view(torch.int32), out=y)
    with pytest.raises(ArgumentError, match="arrays of DLPack and torch have each a current"):
        operator(y, out=Lent(arrays[1]))
    with pytest.raises(ArgumentError, match=r"x is in the CPU's memory; this operator runs on cu"):
        operator(torch.zeros(4))


def test_arrays_of_cupy_and_of_jax(
    leaky: bundle.Bundle, arrays: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The protocol alone, with stand-ins for these packages: none of them runs without a device."""
    asked: list[Any] = []

    class Array(Lent):
        def __init__(self, array: np.ndarray) -> None:
            super().__init__(array, 0, asked)

    current = SimpleNamespace(ptr=66)
    cuda = SimpleNamespace(Device=lambda _: nullcontext(), get_current_stream=lambda: current)
    cupy = SimpleNamespace(ndarray=Array, cuda=cuda, empty=lambda s, d: Array(np.zeros(s, d)))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    operator, x = on(leaky), Array(arrays[0])
    assert_same_bits(operator(x).array, RESULT, "CuPy")
    assert asked == [-1, -1]  # its current stream is the one that is launched on
    assert simulated_cuda.driver().simulated_last_stream() == 66
    call = operator.bind(x)
    current.ptr = 67
    call()
    assert simulated_cuda.driver().simulated_last_stream() == 67
    assert_same_bits(call.out.array, RESULT, "CuPy, bound")

    monkeypatch.delitem(sys.modules, "cupy")
    monkeypatch.setattr(Array, "devices", lambda self: {0}, raising=False)
    monkeypatch.setattr(Array, "block_until_ready", lambda self: self, raising=False)
    monkeypatch.setattr(Array, "dtype", SimpleNamespace(name="float32"), raising=False)
    jax = SimpleNamespace(
        Array=Array,
        core=SimpleNamespace(Tracer=()),
        local_devices=lambda backend: [SimpleNamespace(local_hardware_id=0)],
        numpy=SimpleNamespace(empty=lambda s, d, device: Array(np.zeros(s, d))),
    )
    monkeypatch.setitem(sys.modules, "jax", jax)
    asked.clear()
    waits = simulated_cuda.driver().simulated_calls(b"cuStreamSynchronize")
    assert_same_bits(operator(x).array, RESULT, "JAX")
    assert asked == [1, 1]
    assert simulated_cuda.driver().simulated_calls(b"cuStreamSynchronize") == waits + 1
    with pytest.raises(ArgumentError, match="out for y is an array of JAX, which cannot be"):
        operator(x, out=Array(arrays[1]))
    with pytest.raises(ArgumentError, match="arrays of JAX cannot be bound: they never change"):
        operator.bind(x)


# ---------------------------------------------------------------- the script


BARE = """
import sys
for name in ("onnx", "onnxruntime", "tvm", "tqdm", "elftools", "filelock", "platformdirs"):
    sys.modules[name] = None  # is not installed
"""


def test_the_script_keeps_what_it_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its other half has the base install alone. What needs torch's CUDA fails, and is said to."""
    script = Path(__file__).parents[2] / "scripts" / "check_cuda.py"
    assert len(script.read_text().splitlines()) < 240
    written = runpy.run_path(str(script))
    chosen = {name: written["GRAPHS"][name] for name in ("relu_int8", "scale_bias_leaky_relu")}
    monkeypatch.setitem(written["prepare"].__globals__, "GRAPHS", chosen)
    written["prepare"](tmp_path)
    (tmp_path / "sitecustomize.py").write_text(BARE)  # which every process begins with
    command = [sys.executable, str(script), "--run", str(tmp_path), "--seconds", "100"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    for step in ("verify relu_int8", "exhaustive relu_int8", "verify scale_bias_leaky_relu"):
        assert record[step]["ok"] and not record[step]["wrong"], done.stdout + done.stderr
    assert record["verify relu_int8"]["cases"] > 20
    assert record["exhaustive relu_int8"]["cases"] == 1
    for step in ("calls relu_int8", "bench scale_bias_leaky_relu"):
        assert not record[step]["ok"]
    assert "NOT all is right" in done.stdout
