"""Graphs of one 8-bit number as a table: the same bits as arithmetic, at every length."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from cases import TARGETS, compiled, fresh, same_bits
from onnx import TensorProto, helper

from relu_ops import graphs
from relu_ops.compiler import frontend
from relu_ops.compiler.cpu import lookup
from relu_ops.compiler.x86.lookup import slope_of
from relu_ops.contract import ir, reference
from relu_ops.report import inspect

QUANTIZED = [name for name in graphs.MODELS if name.startswith("quantized")]


def graph_of(name: str) -> ir.Graph:
    return frontend.import_model(graphs.MODELS[name]())


@pytest.mark.parametrize("name", graphs.MODELS)
def test_what_becomes_a_table(name: str) -> None:
    graph = graph_of(name)
    table = lookup.table_of(graph)
    assert (table is not None) == (name in QUANTIZED)
    if table is None:
        return
    every = np.arange(256, dtype=np.uint8)
    dtype = np.int8 if graph.inputs[0].dtype == "int8" else np.uint8
    (expected,) = reference.evaluate(graph, [every.view(dtype)])
    assert table.tobytes() == expected.tobytes()


def byte_chain(*shape: int | str | None) -> ir.Graph:
    kinds = (TensorProto.INT8, TensorProto.FLOAT, TensorProto.UINT8)
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=kinds[1]),
        helper.make_node("LeakyRelu", ["f"], ["g"], alpha=-0.5),
        helper.make_node("Cast", ["g"], ["y"], to=kinds[2]),
    ]
    infos = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind in (("x", kinds[0]), ("y", kinds[2]))
    ]
    graph = helper.make_graph(nodes, "byte_chain", infos[:1], infos[1:])
    opsets = [helper.make_opsetid("", 18)]
    return frontend.import_model(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def test_shapes_that_a_table_takes() -> None:
    plain = lookup.table_of(byte_chain("N"))
    assert plain is not None and plain[0xFE] == 1  # -2 gives 1
    for shape in (("N", "C"), (2, 3), (1,)):
        table = lookup.table_of(byte_chain(*shape))
        assert table is not None and (table == plain).all()
    assert lookup.table_of(byte_chain()) is None  # a scalar is no loop


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", QUANTIZED)
def test_every_byte_at_every_length(name: str, target: str) -> None:
    operator = compiled(graphs.MODELS[name](), target)
    dtype = np.dtype(operator.inputs[0].dtype)
    draw = np.random.default_rng(0)
    for length in [*range(1, 260), 1000, 4096]:
        x = draw.permutation(np.arange(length).astype(np.uint8)).view(dtype)
        (expected,) = reference.evaluate(graph_of(name), [x])
        assert same_bits(operator(x), expected)
        assert same_bits(operator(np.repeat(x, 2)[::2]), expected)


def step_table(row: int) -> np.ndarray:
    """One row of sixteen results, others all alike."""
    table = np.full(256, 200, np.uint8)
    table[16 * row : 16 * row + 16] = np.arange(16)
    return table


TABLES = [
    *(np.random.default_rng(seed).integers(0, 256, 256, np.uint8) for seed in range(4)),
    np.random.default_rng(4).permutation(256).astype(np.uint8),
    *(step_table(row) for row in range(16)),
    np.repeat(np.arange(16, dtype=np.uint8), 16),
    np.maximum(np.arange(256), 128).astype(np.uint8),
    np.zeros(256, np.uint8),
    np.full(256, 255, np.uint8),
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("number", range(len(TABLES)))
def test_any_table_at_every_length(
    number: int, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = TABLES[number]
    monkeypatch.setattr(lookup, "table_of", lambda graph: table)
    operator = fresh(graphs.quantized_leaky_relu(dtype="uint8"), target)
    draw = np.random.default_rng(0)
    every = np.arange(256, dtype=np.uint8)
    for length in [*range(1, 130), 255, 256, 1000]:
        memory = np.resize(draw.permutation(every), length + 2)
        x = memory[length % 3 :][:length]
        want = table[x]
        assert same_bits(operator(x), want)
        assert same_bits(operator(np.repeat(x, 2)[::2]), want)
        ends = memory.copy()
        operator(x, out=x)  # in place, at any address
        ends[length % 3 :][:length] = want
        assert same_bits(memory, ends)
    for lane in range(64):  # every byte in every lane of the widest vector
        x = np.roll(every, lane)
        assert same_bits(operator(x), table[x])


INSTRUCTIONS = {"x86-64-v2": "pshufb", "x86-64-v3": "vpshufb", "x86-64-v4": "vpermt2w"}


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_looks_up_and_divides_nothing(target: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(graphs.MODELS[QUANTIZED[0]]().SerializeToString())
    assembly = inspect.source(path, target, "assembly")
    assert f"\t{INSTRUCTIONS[target]}\t" in assembly.replace("vpermi2w", "vpermt2w")
    assert "divps" not in assembly


def test_rows_that_are_alike_are_looked_up_once(tmp_path: Path) -> None:
    shuffles = []
    for alpha in (0.0, 0.3):
        path = tmp_path / f"{alpha}.onnx"
        model = graphs.quantized_leaky_relu(alpha, y_scale=0.04)
        path.write_bytes(model.SerializeToString())
        tile_0, *_ = inspect.source(path, "x86-64-v3", "assembly").split("\n\n")
        shuffles.append(tile_0.count("vpshufb"))
    assert shuffles[0] == 2 * 8 < shuffles[1]  # vectors of 32 and 16 bytes; half the rows


SLOPES = (0.01, 0.001, 0.5, 1.0, 1.996, -2.0, 1e38, -1e-38, 2.0**-133, 0.0)
HELD = SLOPES[:7]


@pytest.mark.parametrize("slope", (*SLOPES, np.inf, np.nan))
def test_which_slopes_have_a_table(slope: float) -> None:
    pattern = np.float32(slope).astype(ml_dtypes.bfloat16).view(np.uint16)
    assert (slope_of(int(pattern)) is not None) == (slope in HELD)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("slope", SLOPES)
def test_leaky_relu_of_every_bfloat16(slope: float, target: str) -> None:
    model = graphs.leaky_relu(slope, dtype="bfloat16")
    operator = compiled(model, target)
    patterns = np.arange(1 << 16, dtype=np.uint16)
    draw = np.random.default_rng(0)
    # In order most vectors are all within the table or all without; shuffled, few are. Common
    # numbers with one among them that is not make every vector one that the table misses.
    common = draw.standard_normal(1 << 16).astype(ml_dtypes.bfloat16).view(np.uint16)
    mixed = np.where(patterns % 32 == 5, draw.permutation(patterns), common)
    for x in (patterns, draw.permutation(patterns), common, mixed, common[3:50], mixed[3:90]):
        (expected,) = reference.evaluate(frontend.import_model(model), [x.view(ml_dtypes.bfloat16)])
        assert same_bits(operator(x.view(ml_dtypes.bfloat16)), expected)


def test_leaky_relu_of_bfloat16_looks_up(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(graphs.leaky_relu(dtype="bfloat16").SerializeToString())
    assert "vpermt2w" in inspect.source(path, "x86-64-v4", "assembly")
    assert "vpermt2w" not in inspect.source(path, "x86-64-v3", "assembly")
