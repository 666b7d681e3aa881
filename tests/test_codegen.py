"""What is in the machine code: read it before believing in a schedule."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import capstone
import pytest

from relu_ops import graphs, targets
from relu_ops.compiler import backends, frontend, image, layout
from relu_ops.compiler.cpu import codegen, disassembly
from relu_ops.compiler.cpu.backend import CpuBackend
from relu_ops.compiler.cpu.schedule import Kernel
from relu_ops.contract import ir
from relu_ops.errors import BuildError

LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4")
ARM = "aarch64"
REGISTERS = {"x86-64-v2": "xmm", "x86-64-v3": "ymm", "x86-64-v4": "zmm"}
ENOUGH = REGISTERS | {"x86-64-v4": "ymm"}
"""Where memory decides: see compiler/cpu/schedule.py."""

SAMPLE = [
    *((name, "x86-64-v3") for name in graphs.MODELS),
    *itertools.product(
        ("leaky_relu", "leaky_relu_bfloat16", "scale_bias_leaky_relu", "quantized_leaky_relu"),
        ("x86-64-v2", "x86-64-v4"),
    ),
    *((name, ARM) for name in graphs.MODELS),
]
ALL = list(itertools.product(graphs.MODELS, (*LEVELS, ARM)))


@dataclass(frozen=True)
class Instruction:
    at: int
    size: int
    name: str
    operands: str
    content: bytes

    def __str__(self) -> str:
        return f"{self.name} {self.operands}"


def code_of(graph: ir.Graph, target: str) -> dict[str, list[Instruction]]:
    """The instructions of each function of what ships."""
    content = image.build([("op", graph)], targets.parse(target))
    decoder = disassembly._dialect(content).decoder()
    return {
        function.name.removeprefix("op::"): decoded(function, decoder)
        for function in disassembly.functions(content, "op")
    }


def schedule(graph: ir.Graph, name: str) -> list[Kernel]:
    target = targets.parse(name)
    backend = backends.of(target)
    assert isinstance(backend, CpuBackend)
    return backend.schedule(graph, target)


def decoded(function: disassembly.Function, decoder: capstone.Cs) -> list[Instruction]:
    found = [
        Instruction(one.address, one.size, one.mnemonic, one.op_str, bytes(one.bytes))
        for one in decoder.disasm(function.code, function.at)
    ]
    assert sum(one.size for one in found) == len(function.code), "not all of it was understood"
    return found


@functools.cache
def of_model(name: str, target: str) -> dict[str, list[Instruction]]:
    return code_of(frontend.import_model(graphs.MODELS[name]()), target)


@functools.cache
def of_graph(name: str, target: str, **arguments: object) -> dict[str, list[Instruction]]:
    return code_of(frontend.import_model(graphs.GRAPHS[name](**arguments)), target)


_JUMPS = re.compile(r"j\w+|b(?:\.\w+)?|cbn?z|tbn?z")


def jump_of(instruction: Instruction) -> int | None:
    """Where an instruction jumps to."""
    if not _JUMPS.fullmatch(instruction.name):
        return None
    return int(instruction.operands.rpartition("0x")[2], 16)


def texts(functions: dict[str, list[Instruction]]) -> list[str]:
    return [str(one) for function in functions.values() for one in function]


def lines(function: list[Instruction]) -> str:
    return "\n".join(map(str, function))


# ---------------------------------------------------------------- vectors


@pytest.mark.parametrize("target", LEVELS)
@pytest.mark.parametrize("graph", ["relu", "leaky_relu", "add_relu", "scale_bias_leaky_relu"])
def test_main_loop_uses_the_whole_register(graph: str, target: str) -> None:
    code = of_graph(graph, target)
    for name in ("tile_0", "tile_0_stream"):
        stored = [
            re.fullmatch(r"v?mov(?:[au]p|ntp)s %(.mm)\d+, .*\(%r.*\)", str(i)) for i in code[name]
        ]
        assert max(m[1] for m in stored if m) == ENOUGH[target], "no full-width store"


@pytest.mark.parametrize("target", LEVELS)
def test_what_streams_goes_past_the_cache(target: str) -> None:
    code = of_graph("relu", target)
    for name, stores in (("tile_0", False), ("tile_0_stream", True)):
        assert any("movntp" in i.name for i in code[name]) == stores


@pytest.mark.parametrize("target", LEVELS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_is_widened_fills_the_whole_register(dtype: str, target: str) -> None:
    body = of_graph("leaky_relu", target, dtype=dtype)["tile_0"]
    assert any(re.fullmatch(rf"v?mulps .*%{REGISTERS[target]}\d+", str(one)) for one in body)


def test_relu_of_narrow_floats_converts_nothing() -> None:
    for dtype in ("float16", "bfloat16"):
        body = texts({"tile_0": of_graph("relu", "x86-64-v4", dtype=dtype)["tile_0"]})
        assert not any("vcvt" in one for one in body)
        assert any("ymm" in one for one in body)


def test_one_graph_is_one_pass() -> None:
    """Every input is loaded once and every output stored once per vector: no intermediate."""
    graph = frontend.import_model(graphs.scale_bias_leaky_relu(alpha=0.1))
    kernel = schedule(graph, "x86-64-v4")[0]
    assert len(kernel.patterns) == len(graph.inputs) + len(graph.outputs)


# ---------------------------------------------------------------- what a level has

_FLOAT16 = r"v(?:add|sub|mul|div|max|min|sqrt|cmp|rcp|f\w*)(?:ph|sh)"
BEYOND = {
    "x86-64-v2": re.compile(
        r"(?:rdtscp|rdpid|rdseed|rdrand|v\w+|andn|bextr|bls\w+|bzhi|pdep|pext|mulx|rorx|lzcnt|tzcnt|"
        r"movbe|s[ah][lr]x)\w?"
    ),
    "x86-64-v3": re.compile(r"(?:rdtscp|rdpid|rdseed|rdrand|vp?gather\w+|k\w+)"),
    "x86-64-v4": re.compile(
        rf"(?:{_FLOAT16}|vpdp\w+|vpopcnt\w+|vp(?:compress|expand)[bw]|vpsh[lr]d\w+|vperm(?:i2|t2)?b|"
        r"vpshufbitqmb|vpmadd52\w+|vgf2\w+|vaes\w+|vpclmul\w+|t(?:ile|dp)\w+)"
    ),
    ARM: re.compile(
        # Of 16-bit floats ARMv8-A has conversions alone; no SVE, no single-instruction atomics.
        r"(?!fcvt(?:l2?|n2?)? )f\w+ .*(?:\.[48]h|\bh\d+).*|.*\b[zp]\d+[./].*|"
        r"bf(?:cvt|dot|mmla|mlal)\w* .*|"
        r"(?:us|su|[us])(?:dot|mmla) .*|sqrdml[as]h .*|fjcvtzs .*|fmls?l[bt2]? .*|fc(?:mla|add) .*|"
        r"(?:ld(?:add|set|clr|eor|smax|smin|umax|umin)|cas|swp|ldapr|crc32|aes|sha)\w* .*"
    ),
}
"""Instructions that are beyond a level: for v4, those of processors that are newer than it. For
aarch64 with their operands."""

EVEX = 0x62
"""How every instruction with a 512-bit, a mask or an upper register begins."""


def beyond(functions: dict[str, list[Instruction]], target: str) -> list[str]:
    """What a level has not."""
    every = [one for function in functions.values() for one in function]
    shown = str if target == ARM else lambda one: one.name
    found = [str(i) for i in every if BEYOND[target].fullmatch(shown(i))]
    if target not in ("x86-64-v4", ARM):
        found += [str(i) for i in every if i.content[0] == EVEX]
        found += [str(i) for i in every if "zmm" in i.operands]
    return found


@pytest.mark.parametrize(("name", "target"), SAMPLE)
def test_no_instruction_is_beyond_its_level(name: str, target: str) -> None:
    assert not beyond(of_model(name, target), target)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "target"), ALL)
def test_no_instruction_of_any_model_is_beyond_its_level(name: str, target: str) -> None:
    assert not beyond(of_model(name, target), target)


def test_what_is_beyond_would_be_found() -> None:
    for low, high in itertools.pairwise(LEVELS):
        found = beyond(of_graph("leaky_relu", high), low)
        assert len(found) > 10, (low, high)


FUSED = re.compile(r"vfn?m(?:add|sub)\w+|fn?m(?:add|sub)|fml[as]\w*")


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4", ARM])
@pytest.mark.parametrize("graph", ["scale_bias_relu", "scale_bias_leaky_relu"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_no_product_is_fused_with_a_sum(graph: str, target: str, dtype: str) -> None:
    names = {one.partition(" ")[0] for one in texts(of_graph(graph, target, dtype=dtype))}
    assert any(name.startswith(("vmul", "fmul")) for name in names)
    assert not [name for name in names if FUSED.fullmatch(name)]


@pytest.mark.parametrize(("name", "target"), SAMPLE)
def test_nothing_is_fused_in_any_model(name: str, target: str) -> None:
    assert not [i for i in texts(of_model(name, target)) if FUSED.match(i)]


@pytest.mark.parametrize("target", ["x86-64-v3", ARM])
def test_a_fused_product_would_be_found(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the fence behind a product, LLVM does it."""
    from tvm import tirx

    from relu_ops.compiler.emitter import Emitter

    monkeypatch.setattr(Emitter, "product", lambda self, dtype, a, b: tirx.Mul(a, b))
    graph = frontend.import_model(graphs.scale_bias_relu(channels=8))
    assert any(FUSED.match(one) for one in texts(code_of(graph, target)))


@pytest.mark.parametrize(("name", "target"), SAMPLE)
def test_no_kernel_calls_anything(name: str, target: str) -> None:
    """Neither another function nor the system; and it returns."""
    for function in of_model(name, target).values():
        names = [one.name for one in function]
        assert not {"callq", "call", "syscall", "int", "bl", "blr", "br", "svc"} & set(names)
        assert {"retq", "ret"} & set(names)
        jumps = {jump_of(one) for one in function} - {None}
        assert jumps <= {one.at for one in function}


# ---------------------------------------------------------------- loops and lines


def short_loops(function: list[Instruction]) -> Iterator[tuple[int, int]]:
    """Where loops begin and end that fit into a line of the instruction cache."""
    for one in function:
        begin, end = jump_of(one), one.at + one.size
        if begin is not None and begin < one.at and end - begin <= layout.LINE:
            yield begin, end


def crossing(functions: dict[str, list[Instruction]]) -> list[str]:
    """The short loops that lie across two lines."""
    return [
        f"{name}: 0x{begin:x} to 0x{end:x}"
        for name, function in functions.items()
        for begin, end in short_loops(function)
        if begin // layout.LINE != (end - 1) // layout.LINE
    ]


@pytest.mark.parametrize(("name", "target"), SAMPLE)
def test_no_short_loop_lies_across_two_lines(name: str, target: str) -> None:
    assert crossing(of_model(name, target)) == []


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "target"), ALL)
def test_no_short_loop_of_any_model_lies_across_two_lines(name: str, target: str) -> None:
    assert crossing(of_model(name, target)) == []


@pytest.mark.parametrize("target", [*LEVELS, ARM])
@pytest.mark.parametrize("graph", ["relu", "leaky_relu", "relu6"])
def test_there_are_short_loops_to_look_at(graph: str, target: str) -> None:
    code = of_graph(graph, target)
    for name in ("tile_0", "tile_0_stream"):
        assert list(short_loops(code[name])), name


def test_loops_across_two_lines_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With functions alone aligned, LLVM has loops begin at multiples of 16."""
    monkeypatch.setattr(codegen, "_LLVM_OPTIONS", ["-align-all-functions:uint=6"])
    found = [
        crossing(code_of(frontend.import_model(graphs.MODELS[name]()), target))
        for name in ("relu", "leaky_relu", "scale_bias_leaky_relu")
        for target in LEVELS
    ]
    assert sum(map(len, found)) > 5


def test_functions_within_a_line_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codegen, "_LLVM_OPTIONS", ["-align-all-blocks:uint=6"])
    graph = frontend.import_model(graphs.leaky_relu())
    with pytest.raises(
        BuildError, match=r"has the function tile_\w+ at \d+ of \.text \(it must be"
    ):
        image.build([("op", graph)], targets.parse("x86-64-v3"))


# ---------------------------------------------------------------- time and size


def test_a_long_chain_compiles_in_time_linear_in_its_length() -> None:
    """A chain in which every value is used twice: nothing may walk it as a tree."""
    from onnx import helper

    nodes = [helper.make_node("Mul", ["x0", "x0"], ["x1"])]
    nodes += [helper.make_node("Add", [f"x{k}", f"x{k}"], [f"x{k + 1}"]) for k in range(1, 60)]
    info = [helper.make_tensor_value_info(n, 10, None) for n in ("x0", "x60")]
    model = helper.make_model(
        helper.make_graph(nodes, "chain", info[:1], info[1:]),
        opset_imports=[helper.make_opsetid("", 18)],
    )
    graph = frontend.import_model(model)
    assert len(image.build([("chain", graph)], targets.parse("x86-64-v2"))) < 400_000


def test_no_streaming_store_is_narrower_than_the_narrowest_one() -> None:
    """From float64 to float32, a register of the one on v2 is half a register of the other."""
    from onnx import TensorProto, helper

    info = [
        helper.make_tensor_value_info(name, element, ["N"])
        for name, element in (("x", TensorProto.DOUBLE), ("y", TensorProto.FLOAT))
    ]
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)
    model = helper.make_model(
        helper.make_graph([node], "narrower", info[:1], info[1:]),
        opset_imports=[helper.make_opsetid("", 18)],
    )
    kernels = {
        level: schedule(frontend.import_model(model), level)[0] for level in (*REGISTERS, ARM)
    }
    assert {level: kernel.stream is None for level, kernel in kernels.items()} == {
        "x86-64-v2": True,
        "x86-64-v3": False,
        "x86-64-v4": False,
        "aarch64": True,
    }
