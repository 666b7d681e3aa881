"""AArch64, emulated: the contract's bits, every byte in its place, threads, and what is refused.

The tests that other files make for this machine's targets are made here for that one; sampled where
there are many, whole behind the marker.
"""

from __future__ import annotations

import functools
import io
import itertools
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import emulation
import images
import numpy as np
import onnx
import pytest
import test_cells
import test_lookup
import test_native
import test_random_graphs
import test_semantics
from cases import NEVER, assert_same_bits, expected, random_array
from elftools.elf.elffile import ELFFile
from emulation import ROOT, TARGET, Emulated

from relu_ops import compiler, graphs
from relu_ops.bundle.store import Bundle
from relu_ops.compiler.cuda import codegen as codegen_cuda
from relu_ops.verification import calls, checking, verify

pytestmark = pytest.mark.skipif(bool(emulation.why_not()), reason=str(emulation.why_not()))


@pytest.fixture(autouse=True)
def only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other files' tests do on every target, they do below the emulator alone."""
    monkeypatch.setattr(cases, "TARGETS", (TARGET,))


# ---------------------------------------------------------------- the core


@pytest.fixture(scope="module")
def runtime() -> Path:
    sources = [path for path in test_native.PROGRAM]
    core = [path for path in emulation.core_sources() if path.name != "settings.c"]
    return emulation.build("test_runtime", *sources, *core)


_FORKS = "QEMU (7.2) ends in an assertion of its own where a program with threads forks"
NOT_EMULATED = {
    "memory_is_short": "QEMU does not limit the memory of the program that it runs",
    "children_start_their_own_workers": _FORKS,
    "forks_during_a_job": _FORKS,
}
"""What the emulator cannot do; these run on this machine's own processor."""


@pytest.mark.parametrize("name", test_native.NAMES)
def test_runtime(runtime: Path, name: str) -> None:
    if name in NOT_EMULATED:
        pytest.skip(NOT_EMULATED[name])
    done = test_native.run([*emulation.command(runtime), name])
    if done.returncode == test_native.SKIPPED:
        pytest.skip(done.stderr.strip())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_code_that_was_written_is_told_of() -> None:
    """To the instruction caches, by the one instruction that does; QEMU does not need it."""
    tool = emulation.COMPILER.replace("gcc", "objdump")
    done = test_native.run([tool, "-d", "--no-show-raw-insn", str(emulation.core())])
    assert re.search(r"\tic\tivau,", done.stdout), done.stderr


def test_pages_of_64_kib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are mapped, and code finds its constants, on a system with larger pages."""
    large = functools.partial(emulation.command, page_bytes=1 << 16)
    monkeypatch.setattr(emulation, "command", large)
    there = emulation.Process()
    monkeypatch.setattr(emulation, "process", lambda: there)
    monkeypatch.setattr(emulation, "_loaded", {})
    for name in ("quantized_leaky_relu", "leaky_relu_bfloat16", "scale_bias_leaky_relu"):
        model = graphs.MODELS[name]()
        op, inputs = emulation.operator(model), random_inputs(model, np.random.default_rng(0))
        assert_same_bits(op(*inputs), expected(model, inputs)[0], name, inputs)
    there.close()


# ---------------------------------------------------------------- bits


def rows(*tests: Callable[..., None]) -> list[Any]:
    """The tests of another file, as often as their own parameters say, but for the target."""
    return [
        pytest.param(test, arguments, id=f"{test.__name__}-{'-'.join(map(str, shown))}".rstrip("-"))
        for test in tests
        for arguments in _arguments(test)
        for shown in [[value for name, value in arguments.items() if name != "target"]]
    ]


def _arguments(test: Callable[..., None]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{}]
    for mark in getattr(test, "pytestmark", ()):
        names, values = mark.args
        if names == "target":
            values = [TARGET]
        several = names if isinstance(names, tuple) else (names,)
        parts = [value if isinstance(names, tuple) else (value,) for value in values]
        found = [{**a, **dict(zip(several, part, strict=True))} for a in found for part in parts]
    return found


ROWS = (
    test_semantics.test_kernels_give_the_numbers_of_the_row,
    test_semantics.test_kernels_of_leaky_relu_with_alpha_zero_give_nan_at_minus_infinity,
    test_semantics.test_kernels_of_max_and_min_keep_nan_and_the_first_of_equal_zeros,
    test_semantics.test_kernels_of_clip_keep_nan_and_equal_zeros,
    test_semantics.test_kernels_of_cast_to_integer_truncate_saturate_and_send_nan_to_zero,
    test_semantics.test_kernels_of_quantize_linear_round_halves_to_even,
    test_semantics.test_kernels_round_float64_to_narrow_floats_once,
    test_semantics.test_every_pattern_of_the_narrow_floats,
    test_semantics.test_every_pattern_of_the_narrow_floats_at_every_slope,
    test_semantics.test_wide_floats_at_every_slope,
    test_semantics.test_every_pattern_of_the_other_one_input_operators,
    test_semantics.test_pairs_of_narrow_floats,
    test_semantics.test_float32_sample,
    test_lookup.test_every_byte_at_every_length,
    test_lookup.test_leaky_relu_of_every_bfloat16,
)


@pytest.mark.parametrize(("test", "arguments"), rows(*ROWS))
def test_of_every_target(test: Callable[..., None], arguments: dict[str, Any]) -> None:
    test(**arguments)


@pytest.mark.parametrize("number", range(len(test_lookup.TABLES)))
def test_any_table_at_every_length(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    test_lookup.test_any_table_at_every_length(number, TARGET, monkeypatch)


SOME_GROUPS = test_cells.GROUPS[::7]


@pytest.mark.parametrize(("opset", "reads"), SOME_GROUPS)
def test_some_cells(opset: int, reads: str) -> None:
    test_cells.check(opset, reads, TARGET)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("opset", "reads"), test_cells.GROUPS)
def test_every_cell(opset: int, reads: str) -> None:
    test_cells.check(opset, reads, TARGET)


@test_random_graphs.settings(max_examples=40, **test_random_graphs._COMMON)
@test_random_graphs.given(case=test_random_graphs.cases())
def test_random_graph_gives_the_bits_of_the_reference(case: test_random_graphs.Case) -> None:
    test_random_graphs.check_against_reference(case, TARGET)


PART = 1 << 26


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range((1 << 32) // PART))
@pytest.mark.parametrize("name", ["relu", "leaky_relu"])
def test_float32_every_pattern(name: str, part: int) -> None:
    model = graphs.GRAPHS[name]()
    x = np.arange(part * PART, (part + 1) * PART, dtype=np.uint32).view(np.float32)
    assert_same_bits(cases.compiled(model, TARGET)(x), expected(model, [x])[0], name, [x])


def emulated_operator(held: Bundle, *, name: str | None, target: str | None, cuda: int) -> Emulated:
    assert target in (None, TARGET) and cuda < 0
    return Emulated(held.contents, name)


@pytest.mark.parametrize("name", graphs.MODELS)
def test_verify(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model against every referee, as relu-ops verify does it, up to arrays of 32 MiB."""
    monkeypatch.setattr(checking.dispatch, "operator_of", emulated_operator)
    monkeypatch.setattr(calls, "LARGEST_BYTES", 64 << 20)  # inputs and outputs have a half each
    report = verify(graphs.MODELS[name](), target=TARGET)
    assert report.ok, str(report)
    assert {row.target for row in report.rows} == {TARGET}


@pytest.mark.parametrize("target", cases.TARGETS[-1:])
@pytest.mark.parametrize("name", graphs.MODELS)
def test_both_processors_give_the_same(name: str, target: str) -> None:
    """Not by way of the reference: as bits, but for NaN."""
    model, draw = graphs.MODELS[name](), np.random.default_rng(0)
    inputs = random_inputs(model, draw)
    here = cases.run(cases.compiled(model, target), inputs)
    there = cases.run(cases.compiled(model, TARGET), inputs)
    for one, other in zip(here, there, strict=True):
        assert_same_bits(other, one, name, inputs)


def random_inputs(model: onnx.ModelProto, draw: np.random.Generator) -> list[np.ndarray]:
    """Arrays of the model's shapes: open extents are 2, the last one 257: vectors, and a tail."""
    found = []
    for each in emulation.graph_of(model).inputs:
        shape = each.shape or (None,)
        known = [2 if not isinstance(extent, int) else extent for extent in shape]
        if not isinstance(shape[-1], int):
            known[-1] = 257
        found.append(random_array(draw, each.dtype, tuple(known)))
    return found


# ---------------------------------------------------------------- memory and threads

GRAPHS: dict[str, onnx.ModelProto] = {
    "relu": graphs.relu(),
    "add_relu": graphs.add_relu(),
    "relu_int8": graphs.relu("int8"),
    "leaky_relu_float16": graphs.leaky_relu(alpha=0.1, dtype="float16"),
    "leaky_relu_bfloat16": graphs.leaky_relu(alpha=0.1, dtype="bfloat16"),
    "relu_derivative": graphs.relu_derivative(),
}
MODES = {
    "usual": (1, NEVER, NEVER, NEVER),
    "three threads": (3, 0, NEVER, 0),
    "streaming stores, two threads": (2, 0, 0, 0),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", GRAPHS)
def test_nothing_outside_is_touched(name: str, mode: str) -> None:
    """Every array lies between two pages that nobody may touch, at the end or the begin of them."""
    model = GRAPHS[name]
    op = emulation.operator(model)
    op.settings = MODES[mode]
    count, dtype = (
        len(model.graph.input),
        emulation.graph_of(model).inputs[0].dtype,
    )
    draw = np.random.default_rng(0)
    whole = [random_array(draw, dtype, (4200,)) for _ in range(count)]
    for length, offset in itertools.product(
        (0, 1, 3, 8, 17, 33, 64, 129, 1000, 4100), range(0, 64, 5)
    ):
        inputs = [x[offset : offset + length] for x in whole]
        (want,) = expected(model, inputs)
        for _ in range(2):
            memory = np.full(length + 64, 7).astype(want.dtype)
            op(*inputs, out=memory[offset:][:length])
            assert_same_bits(memory[offset:][:length], want, f"{length} at {offset}", inputs)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("name", ["relu", "add_relu", "leaky_relu_float16"])
def test_many_calls_of_threads(name: str, threads: int) -> None:
    model = GRAPHS[name]
    op = emulation.operator(model)
    op.settings = (threads, 0, 1 << 20, 0)
    dtype = emulation.graph_of(model).inputs[0].dtype
    draw = np.random.default_rng(threads)
    for length in (5000, 70_001, 400_003) * 3:
        inputs = [random_array(draw, dtype, (length,)) for _ in model.graph.input]
        (want,) = expected(model, inputs)
        assert_same_bits(op(*inputs), want, name, inputs)
        assert_same_bits(op(*inputs, threads=threads), want, name, inputs)


@pytest.mark.parametrize("mode", MODES)
def test_any_strides_and_in_place(mode: str) -> None:
    model = graphs.scale_bias_leaky_relu(alpha=0.1)
    op = emulation.operator(model)
    op.settings = MODES[mode]
    draw = np.random.default_rng(0)
    x, z = (random_array(draw, "float32", shape) for shape in ((70, 2 * 130), (130, 70)))
    scale, bias = (random_array(draw, "float32", (130,)) for _ in range(2))
    for view in (x[:, ::2], x[::-1, ::-2], x[:, 130:], z.T, z.T[::-3]):
        inputs = [view, scale, bias]
        (want,) = expected(model, inputs)
        assert_same_bits(op(*inputs), want, mode, inputs)
        own = view.copy()
        op(own, scale, bias, out=own)
        assert_same_bits(own, want, mode, inputs)


# ---------------------------------------------------------------- choosing


def test_the_image_of_the_processor_is_chosen_and_others_are_refused() -> None:
    files = compiler.make(graphs.relu(), ["x86-64-v2", TARGET])
    emulated = Emulated(files)
    for target in ("", TARGET):
        emulated.load(target)
        assert np.asarray(emulated(np.float32([-1, 2]))).tolist() == [0, 2]
    with pytest.raises(RuntimeError) as caught:
        emulated.load("x86-64-v2")
    assert str(caught.value).endswith(
        ": x86-64-v2 cannot run on this machine: the processor is aarch64 (not x86_64); it has:\n"
        "  aarch64: can run\n  x86-64-v2: the processor is aarch64 (not x86_64)"
    )


def test_an_image_for_devices_lies_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the same below any host: read there, and left alone by the processor."""
    monkeypatch.setattr(codegen_cuda, "fat_binary", lambda *_: images.FAT_BINARY)
    monkeypatch.setattr(codegen_cuda, "requirements", lambda _: ("cuda_13.0", "sm_90"))
    files = compiler.make(graphs.relu(), ["cuda", TARGET])
    assert files["cuda.image"] == compiler.make(graphs.relu(), ["x86-64-v2", "cuda"])["cuda.image"]
    emulated = Emulated(files)
    assert np.asarray(emulated(np.float32([-1, 2]))).tolist() == [0, 2]
    with pytest.raises(RuntimeError, match=r"cuda: it runs on a GPU \(not on the CPU\)"):
        emulated.load("cuda")


# ---------------------------------------------------------------- the benchmark


def test_the_loops_of_the_limit() -> None:
    sources = (ROOT / "tests/native/limits.c", ROOT / "relu_ops/bench/limit.c")
    program = emulation.build("limits", *sources, "-falign-loops=64")
    done = test_native.run([*emulation.command(program), TARGET])
    assert (done.returncode, done.stderr) == (0, "")


# ---------------------------------------------------------------- the wheel


@pytest.mark.exhaustive
def test_a_wheel_is_built_here(tmp_path: Path) -> None:
    """With libraries and operators for that processor alone."""
    command = [sys.executable, str(ROOT / "scripts/build_wheel.py"), str(tmp_path)]
    done = test_native.run([*command, "--processor", TARGET], seconds=1800)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.iterdir()
    assert wheel.name.endswith("_aarch64.whl") and "-manylinux_2_" in wheel.name
    with zipfile.ZipFile(wheel) as held:
        names = held.namelist()
        libraries = [name for name in names if name.endswith(".so")]
        machines = {ELFFile(io.BytesIO(held.read(name)))["e_machine"] for name in libraries}
    assert len(libraries) == 3 and machines == {"EM_AARCH64"}
    assert [Path(name).name for name in names if name.endswith(".image")] == ["aarch64.image"]
