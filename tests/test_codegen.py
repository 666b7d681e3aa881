"""What is in a library: read the assembly before believing in a schedule."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from relu_ops import compiler, graphs, targets
from relu_ops.compiler import codegen, frontend, schedule_x86, toolchain
from relu_ops.errors import BuildError
from relu_ops.runtime.library import Library, symbol_of

REGISTERS = {"x86-64-v2": "xmm", "x86-64-v3": "ymm", "x86-64-v4": "zmm"}
ENOUGH = REGISTERS | {"x86-64-v4": "ymm"}
"""Where memory decides: see schedule_x86.py."""


def assembly(graph: str, target: str, **arguments: object) -> str:
    model = graphs.GRAPHS[graph](**arguments)
    return codegen.sources_x86(frontend.import_model(model), targets.parse(target)).assembly


def body_of(function: str, text: str) -> str:
    """The instructions of one function of an assembly text."""
    start = text.index(f"\n{function}:")
    return text[start : text.index(".Lfunc_end", start)]


@pytest.mark.parametrize("target", REGISTERS)
@pytest.mark.parametrize("graph", ["relu", "leaky_relu", "add_relu", "scale_bias_leaky_relu"])
def test_main_loop_uses_the_whole_register(graph: str, target: str) -> None:
    text = assembly(graph, target)
    for function in ("tile_0", "tile_0_stream"):
        stored = re.findall(r"mov(?:[au]p|ntp)s\s+%(.mm)\d+, [^%]*\(%r", body_of(function, text))
        assert max(stored) == ENOUGH[target], "no full-width store"


@pytest.mark.parametrize("target", REGISTERS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_is_widened_fills_the_whole_register(dtype: str, target: str) -> None:
    body = body_of("tile_0", assembly("leaky_relu", target, dtype=dtype))
    assert re.search(rf"\bv?mulps\s.*%{REGISTERS[target]}\d", body)


@pytest.mark.parametrize("target", REGISTERS)
def test_no_wider_register_than_the_level_has(target: str) -> None:
    width = {"xmm": 0, "ymm": 1, "zmm": 2}
    for graph in graphs.GRAPHS:
        found = set(re.findall(r"%([xyz]mm)\d", assembly(graph, target)))
        assert max((width[r] for r in found), default=0) <= width[REGISTERS[target]], graph


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-v4"])
@pytest.mark.parametrize("graph", ["scale_bias_relu", "scale_bias_leaky_relu"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_no_product_is_fused_with_a_sum(graph: str, target: str, dtype: str) -> None:
    text = assembly(graph, target, dtype=dtype)
    assert "vmul" in text
    assert not re.search(r"vf(n)?m(add|sub)", text)


@pytest.mark.parametrize("target", REGISTERS)
@pytest.mark.parametrize("graph", ["relu", "prelu", "scale_bias_leaky_relu"])
def test_loops_begin_at_a_line_of_the_instruction_cache(graph: str, target: str) -> None:
    text = assembly(graph, target)
    block = re.compile(r"(\.LBB\w+):(?:\n\t.*|\n\.Ltmp.*|\n)*?\n\tj\w+\t\1\n")
    for function in re.findall(r"^(tile_\d+)_stream:", text, re.MULTILINE):
        for body in (body_of(function, text), body_of(f"{function}_stream", text)):
            (loop,) = block.findall(body)
            assert f"\t.p2align\t6\n{loop}:" in body


def test_relu_of_narrow_floats_converts_nothing() -> None:
    for dtype in ("float16", "bfloat16"):
        body = body_of("tile_0", assembly("relu", "x86-64-v4", dtype=dtype))
        assert "vcvt" not in body
        assert "ymm" in body


def test_one_graph_is_one_pass() -> None:
    """Every input is loaded once and every output stored once per vector: no intermediate."""
    graph = frontend.import_model(graphs.scale_bias_leaky_relu(alpha=0.1))
    kernel = schedule_x86.schedule(graph, targets.parse("x86-64-v4"))[0]
    assert len(kernel.patterns) == len(graph.inputs) + len(graph.outputs)


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(BuildError, match=r"needs a C or C\+\+ compiler .* none was found"):
        compiler.make(graphs.relu(), ["x86-64-v2"])


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(BuildError, match="failed with exit code 1"):
        compiler.make(graphs.relu(), ["x86-64-v2"])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "/no/such/compiler",
            "/no/such/compiler: cannot be run: No such file or directory\n"
            "hint: where CXX or CC names it: set that to the command of a C or C++ compiler, or "
            "unset it",
        ),
        ("c++ '", 'CXX must be a command (not "c++ \'": No closing quotation)'),
    ],
)
def test_a_wrong_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    monkeypatch.setenv("CXX", command)
    with pytest.raises(BuildError) as caught:
        compiler.make(graphs.relu(), ["x86-64-v2"])
    assert str(caught.value) == message


def test_a_blank_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", " ")
    monkeypatch.setenv("CC", "cc -pipe")
    assert toolchain.c_compiler() == ["cc", "-pipe"]


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
    manifest, contents = compiler.make(model, ["x86-64-v2"])
    assert len(contents["x86-64-v2.so"]) < 400_000
    assert manifest.operator == "chain"


def test_constants_lie_in_the_library_once() -> None:
    from onnx import helper, numpy_helper

    scale = np.arange(512, dtype=np.float32)
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["t"]),
        helper.make_node("Add", ["t", "scale"], ["y"]),
    ]
    info = [helper.make_tensor_value_info(n, 1, ["N", 512]) for n in "xy"]
    graph = helper.make_graph(
        nodes, "g", info[:1], info[1:], [numpy_helper.from_array(scale, "scale")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    _, contents = compiler.make(model, ["x86-64-v3"])
    assert contents["x86-64-v3.so"].count(scale.tobytes()) == 1


def test_the_lowest_level_runs_nothing_beyond_itself(tmp_path: Path) -> None:
    """Nor does what is around the kernels: virtual machines lack what every processor has."""
    _, contents = compiler.make(graphs.relu(), ["x86-64-v2"])
    (tmp_path / "x.so").write_bytes(contents["x86-64-v2.so"])
    listing = subprocess.run(
        ["objdump", "-d", tmp_path / "x.so"], capture_output=True, text=True, check=True
    ).stdout
    found = set(re.findall(r"^ +[0-9a-f]+:\t[0-9a-f ]+\t(\w+)", listing, re.MULTILINE))
    assert {"rdtsc", "sfence", "ldmxcsr"} <= found  # all of it is there to be read
    beyond = r"rdtscp|rdpid|rdseed|rdrand|v\w+|andn|bextr|blsi|blsr|lzcnt|tzcnt|movbe|[sr]..x"
    assert not {name for name in found if re.fullmatch(beyond, name)}


def test_library_exports_its_functions_and_no_more(tmp_path: Path) -> None:
    _, contents = compiler.make(graphs.relu(), ["x86-64-v2"])
    path = tmp_path / "x.so"
    path.write_bytes(contents["x86-64-v2.so"])
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True
    ).stdout
    names = {line.split()[-1].partition("@")[0] for line in listing.splitlines()}
    # Only a CUDA library has a device to prepare.
    wanted = set(Library.__dataclass_fields__) - {"prepare"}
    assert names == {symbol_of(name) for name in wanted}


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
        level: schedule_x86.schedule(frontend.import_model(model), targets.parse(level))[0]
        for level in REGISTERS
    }
    assert {level: kernel.stream is None for level, kernel in kernels.items()} == {
        "x86-64-v2": True,
        "x86-64-v3": False,
        "x86-64-v4": False,
    }
