"""Stores past the cache: that they are in the code, and that large calls use them.

Which kernel runs is seen by muting the others: one that returns at once writes nothing.
"""

from __future__ import annotations

import functools
import re

import numpy as np
import onnx
import pytest
from cases import NEVER, TARGETS, same_bits, settings

from relu_ops import compiler, graphs, targets
from relu_ops.bundle import store as bundle
from relu_ops.compiler.cpu import disassembly
from relu_ops.contract.semantics import DTYPES
from relu_ops.native import _python as native
from relu_ops.runtime.operator import Operator

MODELS: dict[str, onnx.ModelProto] = {
    "relu": graphs.relu(),
    "leaky_relu_float16": graphs.leaky_relu(alpha=0.1, dtype="float16"),
    "relu_bfloat16": graphs.relu("bfloat16"),
    "relu_int8": graphs.relu("int8"),
    "add_relu": graphs.add_relu(),
    "scale_bias_leaky_relu": graphs.scale_bias_leaky_relu(channels=512),
}

RETURN = 0xC3
COUNT = 1 << 16


@functools.cache
def image_of(name: str, target: str) -> tuple[str, bytes]:
    """The name of the operator, and its image."""
    held = bundle.from_contents("<memory>", compiler.make(MODELS[name], [target]))
    return held.handle.operators[0], held.image(target)


def muted(name: str, target: str, streaming: bool) -> Operator:
    """An operator whose streaming kernels, or whose others, do nothing."""
    operator, image = image_of(name, target)
    changed = bytearray(image)
    for function in disassembly.functions(image, operator):
        if function.name.endswith("_stream") == streaming:
            changed[function.at] = RETURN
    return native.Operator(native.open_image("muted", bytes(changed)))


def aligned(count: int, offset: int = 0) -> np.ndarray:
    """An array of float32 that begins so many elements beyond a multiple of 64 bytes."""
    memory = np.empty(count + 32, np.float32)
    start = -memory.ctypes.data % 64 // 4 + offset
    return memory[start : start + count]


# ---------------------------------------------------------------- the code


@pytest.mark.parametrize("target", targets.CPU_TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_streaming_kernels_alone_hold_streaming_stores(name: str, target: str) -> None:
    operator, image = image_of(name, target)
    text = disassembly.disassembly(image, operator)
    kernels = dict(re.findall(r"^(\S+):  # .*\n((?:(?!\S+:  #).*\n?)*)", text, re.MULTILINE))
    assert len(kernels) == len(disassembly.functions(image, operator))
    found = {kernel for kernel, lines in kernels.items() if re.search(r"\b(?:v?movnt|stnp)", lines)}
    assert found == {kernel for kernel in kernels if kernel.endswith("_stream")}
    # x86-64-v2 does not know the type and computes element by element; eight are half of what
    # AArch64 stores past the cache.
    narrow = [("leaky_relu_float16", each) for each in ("x86-64-v2", "aarch64")]
    assert bool(found) != ((name, target) in narrow)


# ---------------------------------------------------------------- what runs


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [1, 3])
def test_large_calls_stream(target: str, threads: int) -> None:
    op = muted("relu", target, streaming=True)
    x, out = aligned(COUNT), aligned(COUNT)
    x[...] = np.linspace(-1, 1, COUNT)
    for call in (lambda: op(x, out=out), op.bind(x, out=out)):
        out.fill(42)
        with settings(threads, 0, 8 * COUNT + 1):
            call()
        assert same_bits(out, np.maximum(x, 0))  # one byte too few: no streaming kernel runs
        out.fill(42)
        with settings(threads, 0, 8 * COUNT):
            call()
        assert (out == 42).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("offset", [0, 1, 5])
def test_the_others_write_the_head_alone(target: str, threads: int, offset: int) -> None:
    """Up to where the output is aligned: that is what is missing where those are muted."""
    op = muted("relu", target, streaming=False)
    x, out = aligned(COUNT), aligned(COUNT, offset)
    x[...] = np.linspace(-1, 1, COUNT)
    with settings(threads, 0, 0):
        out.fill(42)
        op(x, out=out)
        written = out != 42
        assert same_bits(out[written], np.maximum(x, 0)[written])
        head = int(np.argmax(written))
        assert written[head:].sum() >= COUNT - head - 16 * 3 * threads
        assert head == 0 if offset == 0 else 0 < head <= 16
    with settings(threads, 0, NEVER):
        out.fill(42)
        op(x, out=out)
        assert (out == 42).all()


@pytest.mark.parametrize("name", [one for one in MODELS if one != "scale_bias_leaky_relu"])
def test_every_kind_of_element_streams(name: str) -> None:
    op = muted(name, TARGETS[-1], streaming=True)
    dtype = DTYPES[op.outputs[0].dtype].numpy
    memory = np.zeros(COUNT * dtype.itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    out = memory[start : start + COUNT * dtype.itemsize].view(dtype)
    inputs = [np.ones(COUNT, dtype) for _ in op.inputs]
    for stream, streams in ((NEVER, False), (0, True)):
        out.view(np.uint8).fill(0)
        with settings(1, NEVER, stream):
            op(*inputs, out=out)
        assert out.view(np.uint8).any() != streams


def test_rows_that_share_a_vector_stream() -> None:
    op = muted("scale_bias_leaky_relu", TARGETS[-1], streaming=True)
    x, out = (aligned(COUNT).reshape(-1, 512) for _ in range(2))
    x[...] = 1
    scale, bias = np.full(512, 2, np.float32), np.full(512, 3, np.float32)
    for stream, expected in ((NEVER, 5), (0, 42)):
        out.fill(42)
        with settings(2, 0, stream):
            op(x, scale, bias, out=out)
        assert (out == expected).all()


def test_strided_outputs_do_not_stream() -> None:
    """A streaming store writes a whole vector."""
    op = muted("relu", TARGETS[-1], streaming=True)
    out = np.full((300, 512), 42, np.float32)[:, ::2]
    with settings(2, 0, 0):
        op(np.full((300, 256), 7, np.float32), out=out)
    assert (out == 7).all()
