"""The benchmark: everybody who is timed is right, whoever is wrong is found, records hold it all.

Nothing here asserts a time: another machine has another one.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from relu_ops import __version__, compiler, errors, graphs, jit, targets
from relu_ops._version import installed_version
from relu_ops.bench import (
    cases,
    checking,
    command,
    environment,
    limit,
    peers,
    planning,
    plots,
    process,
    record,
    runner,
    tables,
)
from relu_ops.bench.peers import jax, litert, numba, numpy, torch
from relu_ops.bench.peers.problem import Prepared, Problem, Skipped
from relu_ops.bench.record import Built, Deviation, Process, Record, Skip, Timing
from relu_ops.bundle import store as bundles
from relu_ops.compiler import frontend
from relu_ops.runtime import driver

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ROOT / "docs" / "benchmarks" / "networks.json"
FRAMEWORKS = {name: NETWORKS.with_name(f"{name}.json") for name in ("torch", "jax")}
"""Records of other kinds: whole networks in onnxruntime, operators inside torch and JAX."""

NATIVE = targets.native().name
CPU_PEERS = [name for name, peer in peers.PEERS.items() if peer.device == "cpu"]
CELLS = [(name, dtype) for name, case in cases.CASES.items() for dtype in case.dtypes]


def problem_of(name: str, dtype: str, elements: int) -> tuple[Problem, list[np.ndarray]]:
    """A problem of ordinary data, and what the contract says."""
    case = cases.find(name)
    operator = jit.compile(case.make(dtype))
    graph = frontend.import_model(frontend.read_model(case.make(dtype)))
    inputs = cases.ordinary_inputs(graph, elements)
    expected = cases.expected_of(case, graph, inputs)
    outs = [cases.aligned(y.shape, y.dtype) for y in expected]
    return Problem(case, dtype, NATIVE, operator, inputs, outs, 2), expected


def timing(contestant: str, seconds: Sequence[float], **changes: Any) -> Timing:
    row = Timing("relu", "float32", NATIVE, "warm", 1024, 8192, contestant, 10, tuple(seconds))
    return msgspec.structs.replace(row, **changes)


def made_up(*timings: Timing, **changes: Any) -> Record:
    found = Record(
        format=record.FORMAT,
        created="2026-01-02T03:04:05+00:00",
        took_seconds=1.5,
        machine={"cpu": "Made Up", "levels": [NATIVE], "share_of_others": 0.01},
        software={"relu_ops": "0"},
        settings={"threads": 2, "rounds": 3},
        operators=(),
        timings=timings,
    )
    return msgspec.structs.replace(found, **changes)


# ---------------------------------------------------------------- cases


def test_every_case_has_an_idiom_of_everybody() -> None:
    wanted = {case.graph for case in cases.CASES.values()}
    compiled = (torch.EXPRESSIONS, jax.EXPRESSIONS, numba.EXPRESSIONS)
    for table in (numpy.IDIOMS, torch.IDIOMS, *compiled):
        assert set(table) == wanted
    assert {g for g in wanted for d in ("float32", "int8") if litert.supports(g, d)} == wanted


def test_shapes_follow_the_graph() -> None:
    def shapes(name: str, elements: int) -> list[tuple[int, ...]]:
        graph = frontend.import_model(frontend.read_model(cases.find(name).make("float32")))
        return cases.shapes_of(graph.inputs, elements)

    assert shapes("add_relu", 1000) == [(1000,), (1000,)]
    assert shapes("prelu", 16) == [(1, 16), (16,)]
    assert shapes("scale_bias_leaky_relu", 1 << 16) == [(128, 512), (512,), (512,)]
    image = [(4, 64, 32, 32), (64, 1, 1), (64, 1, 1)]
    assert shapes("scale_bias_leaky_relu_nchw", 1 << 18) == image


def test_dimensions_that_a_model_fixes_stay() -> None:
    model = graphs.scale_bias_leaky_relu(channels=24)
    graph = frontend.import_model(frontend.read_model(model))
    assert cases.shapes_of(graph.inputs, 5120) == [(213, 24), (24,), (24,)]


def test_data_are_aligned_and_special_data_are_special() -> None:
    graph = frontend.import_model(frontend.read_model(graphs.relu_grad()))
    dy, x = cases.special_inputs(graph)
    assert all(a.ctypes.data % cases.ALIGNMENT == 0 for a in (dy, x))
    for a in (dy, x):
        tiny = np.finfo(a.dtype).tiny
        assert np.isnan(a).any() and np.isinf(a).any()
        assert ((a == 0) & np.signbit(a)).any() and ((a != 0) & (np.abs(a) < tiny)).any()
    pairs = {(p, q) for p, q in zip(dy.view("u4").tolist(), x.view("u4").tolist(), strict=True)}
    assert len(pairs) == len(set(dy.view("u4").tolist())) * len(set(x.view("u4").tolist()))
    (plain,) = cases.ordinary_inputs(
        frontend.import_model(frontend.read_model(graphs.relu("float64"))), 64
    )
    assert not np.array_equal(plain, plain.astype(np.float32))  # all its bits are used


@pytest.mark.parametrize("name", [name for name, case in cases.CASES.items() if case.arrange])
def test_arranged_inputs_have_their_values_elsewhere(name: str) -> None:
    case = cases.find(name)
    graph = frontend.import_model(frontend.read_model(case.make("float32")))
    compact = cases.ordinary_inputs(graph, 1024)
    first, *others = case.arranged(compact)
    assert first.shape == (2, 512) and np.array_equal(first.reshape(-1), compact[0])
    for x in others:
        assert x.shape == (2, 1) and (x[:, 0] == compact[1][::512]).all()
    assert others or not first.flags.c_contiguous
    (group,) = planning.plan([case], sizes=[1024])
    assert group.peers == case.peers


def test_large_arrays_are_computed_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("relu", "scale_bias_leaky_relu", "scale_bias_leaky_relu_nchw"):
        problem, expected = problem_of(name, "float32", 1 << 18)
        graph = frontend.import_model(problem.proto)
        monkeypatch.setattr(cases, "_CHUNK", 5000)
        (sliced,) = cases.expected_of(problem.case, graph, problem.inputs)
        monkeypatch.undo()
        assert np.array_equal(sliced.view("u4"), expected[0].view("u4"))


def test_a_model_is_known_by_its_operators() -> None:
    case = cases.case_of(graphs.leaky_relu(alpha=0.25), "mine")
    assert (case.name, case.graph, case.alpha) == ("mine", "leaky_relu", 0.25)
    other = cases.case_of(graphs.maxout(), "other")
    assert (other.graph, other.formula, other.dtypes) == ("", "Max", ("float32",))
    with pytest.raises(errors.ArgumentError, match=r"bench: case must be one of relu, .* 'gelu'"):
        cases.find("gelu")


# ---------------------------------------------------------------- peers


NEVER = {
    # What a peer cannot run, as seen; anything else that it leaves out is a failure.
    "onnxruntime": {"bfloat16"},
    "onnxruntime_run": {"bfloat16"},
    "numba": {"float16", "bfloat16"},
    "litert": {"float16", "bfloat16", "float64", "int8"},
    "openvino": {"float64"},
}


@pytest.mark.parametrize("name", CPU_PEERS)
def test_everybody_who_is_here_is_right(name: str) -> None:
    peer = peers.find(name)
    absent = peers.why_not(peer)
    if absent is not None:
        pytest.skip(f"{absent.reason}: {absent.hint}")
    assert installed_version(peer.package) or peer.ours
    left_out = set()
    for case, dtype in CELLS:
        for elements in (16, 8192):
            problem, expected = problem_of(case, dtype, elements)
            made = peers.prepare(peer, problem)
            if isinstance(made, Skipped):
                assert made.kind == peers.UNSUPPORTED and made.reason
                left_out.add((case, dtype))
                continue
            found = checking.check(problem.case, made, problem.inputs, expected)
            if checking.refusal(found) is not None:
                left_out.add((case, dtype))
            elif peer.ours:
                assert not found, (case, dtype, elements)
            # The same call again, as it will be timed: with what it left in its outputs.
            again = made.outputs(made.call())
            differing = sum(
                (
                    checking.differences(problem.case, y, right, problem.inputs)
                    for y, right in zip(again, expected, strict=True)
                ),
                Counter(),
            )
            assert differing == found
    never = NEVER.get(name, set())
    assert {dtype for _, dtype in left_out} <= never, left_out


def test_who_is_not_installed_says_how_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert peers.why_not(peers.find("numba")) == Skipped(
        "not installed", "numba is not installed", "pip install 'numba'"
    )
    assert peers.why_not(peers.find("torch")) == Skipped(
        "not installed", "torch is not installed", "pip install 'relu_ops[torch]'"
    )
    with pytest.raises(errors.ArgumentError, match=r"bench: peer must be one of .* \(not 'tf'\)"):
        peers.find("tf")


def test_a_peer_that_raises_is_left_out_with_its_words() -> None:
    problem, _ = problem_of("relu", "float32", 16)
    other = replace(problem, case=replace(problem.case, name="odd", graph=""))
    assert peers.prepare(peers.find("numpy"), other) == Skipped(
        "unsupported", "no idiom is written for odd"
    )


def test_a_device_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch", reason="pip install 'relu_ops[torch]'")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    problem, _ = problem_of("relu", "float32", 16)
    found = peers.prepare(peers.find("torch_cuda"), problem)
    assert found == Skipped("no device", "torch sees no CUDA device")


# ---------------------------------------------------------------- checking


def right(problem: Problem, expected: Sequence[np.ndarray]) -> None:
    problem.outs[0][...] = expected[0]


def nothing(problem: Problem, expected: Sequence[np.ndarray]) -> None:
    pass


def a_part(problem: Problem, expected: Sequence[np.ndarray]) -> None:
    problem.outs[0][:-1] = expected[0][:-1]


def one_wrong(problem: Problem, expected: Sequence[np.ndarray]) -> None:
    problem.outs[0][...] = expected[0]
    problem.outs[0][7] += 1


def zeros(problem: Problem, expected: Sequence[np.ndarray]) -> None:
    problem.outs[0][...] = 0


Write = Callable[[Problem, Sequence[np.ndarray]], None]


def writing(write: Write) -> Callable[[Problem], Prepared]:
    """A peer that writes what it likes."""

    def prepare(problem: Problem) -> Prepared:
        graph = frontend.import_model(problem.proto)
        expected = cases.expected_of(problem.case, graph, problem.inputs)
        return Prepared(lambda: write(problem, expected), lambda _: problem.outs)

    return prepare


@pytest.mark.parametrize("dtype", ["float32", "int8", "bfloat16"])
@pytest.mark.parametrize(
    ("write", "wrong"), [(right, 0), (nothing, 100), (a_part, 1), (one_wrong, 1)]
)
def test_a_wrong_call_is_found(write: Write, wrong: int, dtype: str) -> None:
    problem, expected = problem_of("relu", dtype, 100)
    right(problem, expected)  # what a call before left there must not help
    found = checking.check(problem.case, writing(write)(problem), problem.inputs, expected)
    assert found.total() == wrong
    assert (checking.refusal(found) is None) == (wrong == 0)


def test_a_result_of_another_shape_or_dtype_is_wrong() -> None:
    problem, expected = problem_of("relu", "float32", 100)
    for result in (expected[0][:50], expected[0].astype(np.float64)):
        prepared = Prepared(lambda: None, lambda _, y=result: [y], allocates=True)  # type: ignore[misc]
        found = checking.check(problem.case, prepared, problem.inputs, expected)
        assert found == {"value": 100}
    none = Prepared(lambda: None, lambda _: [], allocates=True)
    assert checking.check(problem.case, none, problem.inputs, expected) == {"value": 100}


@pytest.mark.parametrize(
    ("got", "expected", "kind"),
    [
        (0.0, -0.0, "zero sign"),
        (0.0, 1e-40, "subnormal"),
        (0.0, np.nan, "nan"),
        (np.nan, 1.0, "nan"),
        (1.0 + 2**-23, 1.0, "rounding"),
        (1.0 + 2**-20, 1.0, "value"),
        (-1.0, 1.0, "value"),
        (np.inf, 1.0, "value"),
    ],
)
def test_kinds_of_differences(got: float, expected: float, kind: str) -> None:
    case = cases.find("leaky_relu")
    x = [np.ones(1, np.float32)]
    found = checking.differences(case, np.float32([got]), np.float32([expected]), x)
    assert found == {kind: 1}
    assert (checking.refusal(found) is None) == (kind in ("zero sign", "rounding"))


def test_contraction_is_measured_by_the_product() -> None:
    case = cases.find("scale_bias_leaky_relu")
    x, scale, bias = (np.float32([v]) for v in (1 + 2**-12, 1 + 2**-12, -1))
    separate = x * scale + bias
    fused = (x.astype("d") * scale + bias).astype("f")
    assert separate != fused  # by 2**-24 of the product, and by far more of the difference
    assert checking.differences(case, fused, separate, [x, scale, bias]) == {"rounding": 1}
    plain = replace(case, magnitude=None)
    assert checking.differences(plain, fused, separate, [x, scale, bias]) == {"value": 1}


@pytest.mark.parametrize("write", [nothing, a_part, one_wrong, zeros])
def test_the_runner_does_not_time_what_is_wrong(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = planning.plan([cases.find("relu")], sizes=[100], names=["relu_ops", "numpy"])
    monkeypatch.setattr("relu_ops.bench.peers.numpy.prepare", writing(write))
    found = runner.measure(groups, FAST)
    assert "numpy" not in {t.contestant for t in found.timings}
    (skip,) = found.skipped
    assert (skip.contestant, skip.kind, skip.case) == ("numpy", "wrong", "relu")
    assert skip.reason.startswith("wrong on ordinary data: ")


def test_what_goes_wrong_at_one_size_is_not_timed_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_at_large(problem: Problem) -> Prepared:
        return writing(one_wrong if problem.outs[0].size > 10_000 else right)(problem)

    monkeypatch.setattr("relu_ops.bench.peers.numpy.prepare", fails_at_large)
    groups = planning.plan([cases.find("relu")], sizes=[100, 20_000], names=["relu_ops", "numpy"])
    found = runner.measure(groups, FAST)
    assert {t.elements for t in found.timings if t.contestant == "numpy"} == {100}
    assert [(s.contestant, s.elements) for s in found.skipped] == [("numpy", 20_000)]


def test_relu_ops_itself_must_not_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = planning.plan([cases.find("relu")], sizes=[100], names=["relu_ops"])
    monkeypatch.setattr("relu_ops.bench.peers.own.bound", writing(one_wrong))
    with pytest.raises(errors.ReluOpsError, match=r"relu_ops: relu in float32 .* is wrong: 1 val"):
        runner.measure(groups, FAST)


# ---------------------------------------------------------------- the limit


def loops_of(target: str) -> limit.Limit:
    loops = limit.of(target)
    assert isinstance(loops, limit.Limit), loops
    return loops


@pytest.mark.parametrize("loop", limit.LOOPS, ids=lambda loop: loop.name)
@pytest.mark.parametrize("target", environment.machine()["levels"])
def test_the_loops_move_what_they_say(loop: limit.Loop, target: str) -> None:
    loops = loops_of(target)
    draw = np.random.default_rng(0)
    for count in (1, 15, 16, 17, 100, 1000, 4096, 100_001):
        memory = cases.aligned((count + 16,), np.dtype(np.float32))
        y, guard = memory[:count], memory[count:]
        inputs = [draw.standard_normal(count, np.float32) for _ in range(loop.inputs)]
        bits = [x.view(np.uint32) for x in inputs]
        kind = loop.name.partition(",")[0]
        wanted = {
            "copy": lambda bits=bits: bits[0],
            "scale": lambda inputs=inputs: (inputs[0] * np.float32(0.5)).view(np.uint32),
            "combine 2": lambda bits=bits: bits[0] ^ bits[1],
            "combine 3": lambda bits=bits: bits[0] ^ bits[1] ^ bits[2],
        }[kind]()
        for threads in (1, 2, 3):
            memory.view(np.uint32)[...] = 0xA5A5A5A5
            seconds = loops.run(loop, y, inputs, repeats=2, threads=threads)
            assert seconds > 0
            assert np.array_equal(y.view(np.uint32), wanted)
            assert (guard.view(np.uint32) == 0xA5A5A5A5).all()


def test_the_sum_and_the_sweep() -> None:
    loops = loops_of(NATIVE)
    x = np.random.default_rng(0).integers(0, 2**63, 1001, np.uint64)
    assert loops.sum(x) == int(x.sum(dtype=np.uint64))
    odd = np.arange(13, dtype=np.uint8)
    padded = np.concatenate([odd, np.zeros(3, np.uint8)]).view(np.uint64)
    assert loops.sum(odd) == int(padded.sum(dtype=np.uint64))
    loops.sweep(2)
    y = cases.aligned((1 << 16,), np.dtype(np.uint8))
    assert loops.run(limit.LOOPS[0], y, [np.ones_like(y)], consume=True) > 0


def test_loops_that_cannot_win_are_left_out() -> None:
    def names(dtype: str, inputs: int, moved: int) -> list[tuple[str, int]]:
        return [(loop.name, n) for loop, n in limit.contestants(dtype, inputs, moved, 2)]

    assert names("float32", 1, 128) == [("copy", 1), ("scale", 1)]
    assert names("int8", 1, 1 << 16) == [("copy", 1), ("copy", 2)]
    assert ("combine 2, streaming", 2) in names("float32", 2, 1 << 22)


def test_every_level_has_loops_of_its_own() -> None:
    """Also those that this machine does not run: they are compiled, and not called."""
    levels = {target: loops_of(target)._level for target in targets.of_architecture()}
    assert sorted(levels.values()) == list(range(len(levels)))
    found = limit.of("cuda")
    assert found == Skipped("unsupported", "relu_ops has no loops for cuda")


@pytest.fixture
def another_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the loops are looked for, and are not."""
    path = tmp_path / "_limit.so"
    monkeypatch.setattr(limit, "path", lambda: path)
    limit.of.cache_clear()
    yield path
    limit.of.cache_clear()


def test_a_build_without_loops_has_no_limit(
    another_place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planning.plan(
        [cases.find("relu")], sizes=[16], names=["relu_ops"], modes=["warm", "cold"]
    )
    command.say_what_is_missing(plan * 2)
    reason = f"this build of relu_ops came without its loops ({another_place})"
    hint = "install a wheel of relu_ops, or build it there"
    said = f"bench: the machine's limit is left out: {reason}\nhint: {hint}\n"
    assert capsys.readouterr() == ("", said)
    found = runner.measure(plan, FAST)
    assert {(t.contestant, t.mode) for t in found.timings} == {("relu_ops", "warm")}
    assert found.skipped == (Skip("limit", "not installed", reason, hint),)
    assert tables.render(found).splitlines()[-1] == f"left out: limit: {reason}; {hint}"


def test_loops_that_cannot_be_loaded_are_no_limit(another_place: Path) -> None:
    another_place.write_bytes(b"\x7fELF, and no more")
    found = limit.of(NATIVE)
    assert isinstance(found, Skipped) and found.hint == "install relu_ops anew"
    assert found.reason.startswith(f"its loops cannot be loaded: {another_place}: ")


# ---------------------------------------------------------------- the runner


FAST = planning.Settings(threads=2, rounds=3, sample_seconds=1e-5)


def test_a_row_stands_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was computed, on what shape, whether it is right, how near to the limit, by what."""
    monkeypatch.setattr(environment, "commit", lambda: "abc")
    case = cases.find("scale_bias_leaky_relu")
    found = runner.measure(planning.plan([case], sizes=[1024], names=["relu_ops", "numpy"]), FAST)
    best = record.limit_of(found.timings)
    assert best is not None and best.verified == ""
    assert {row.shape for row in found.timings} == {(2, 512)}
    assert {row.limit_seconds for row in found.timings} == {record.rounded([best.median])[0]}
    assert {row.commit for row in found.timings} == {"abc"}
    said = {row.contestant: row.verified for row in found.timings if not row.is_limit}
    assert said == dict.fromkeys(("relu_ops", "numpy"), "bit for bit with the NumPy reference")
    assert {row.machine for row in found.timings} == {
        f"{targets.this_machine().cpu}, 2 threads, relu_ops {__version__}"
    }
    lines = tables.render(found).splitlines()
    assert f"{'shape':<22}{'2x512':>13}" in lines
    assert lines[-1] == "verified on these arrays against the NumPy reference: 2 of 2 equal it"


def test_a_row_says_how_a_peer_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_signs(problem: Problem) -> Prepared:
        return Prepared(lambda: [abs(problem.inputs[0])], lambda made: made, allocates=True)

    monkeypatch.setattr("relu_ops.bench.peers.numpy.prepare", without_signs)
    monkeypatch.setattr(cases, "ordinary_inputs", lambda *_: [np.full(64, -0.0, np.float32)])
    groups = planning.plan([cases.find("relu")], sizes=[64], names=["relu_ops", "numpy"])
    found = runner.measure(groups, FAST)
    said = {row.contestant: row.verified for row in found.timings if not row.is_limit}
    assert said == {
        "relu_ops": "bit for bit with the NumPy reference",
        "numpy": "differs from the NumPy reference: 64 zero sign",
    }
    text = "verified on these arrays against the NumPy reference: 1 of 2 equal it"
    assert text in tables.render(found)


def test_a_measurement_in_every_mode() -> None:
    names = ["relu_ops", "relu_ops_new", "numpy", "onnxruntime", "onnxruntime_run"]
    groups = planning.plan(
        [cases.find("relu"), cases.find("scale_bias_leaky_relu")],
        sizes=[16, 40_960],
        modes=record.MODES,
        names=names,
    )
    titles: list[tuple[int, str]] = []

    def progress(items: Any, total: int, title: str) -> Any:
        listed = list(items)
        titles.append((len(listed) - total, title))
        return listed

    found = runner.measure(groups, FAST, progress=progress)
    assert titles == [(0, "bench")]  # as many steps as were announced
    assert len(found.places()) == 2 * 2 * 3
    for place in found.places():
        at = found.at(place)
        assert set(names) <= set(at)
        loop = record.limit_of(at.values())
        assert loop is not None and loop.is_limit
        assert all(len(t.seconds) == 3 and min(t.seconds) > 0 for t in at.values())
        assert at["relu_ops_new"].allocates and not at["relu_ops"].allocates
    assert {t.repeats for t in found.timings if t.mode == "cold"} == {1}
    (chain,) = (d for d in found.deviations if d.case == "relu" and d.contestant == "numpy")
    assert set(chain.special) == {"zero sign"} and not chain.ordinary
    assert {(o.case, o.target) for o in found.operators} == {
        ("relu", NATIVE),
        ("scale_bias_leaky_relu", NATIVE),
    }
    assert tables.lead(found.at(found.places()[0])) is not None


def test_plans() -> None:
    relu = cases.find("relu")
    (one,) = planning.plan([relu], sizes=[16])
    assert one.peers == tuple(CPU_PEERS) and (one.dtype, one.target) == ("float32", NATIVE)
    levels = environment.machine()["levels"][::-1]
    groups = planning.plan([relu], levels, [16])
    assert [g.target for g in groups] == levels
    assert all(
        set(g.peers) == {"relu_ops", "relu_ops_out", "relu_ops_new", "tvm"} for g in groups[1:]
    )
    with pytest.raises(errors.ArgumentError, match=r"no case has such a dtype \(relu: float32, "):
        planning.plan([relu], dtypes=["uint8"])
    with pytest.raises(errors.TargetError, match="x86-64-v9"):
        planning.plan([relu], ["x86-64-v9"])


@pytest.mark.parametrize("target", ["cuda", "cuda-sm_90"])
def test_no_device_is_measured_where_there_is_none(
    target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "probe", lambda: driver.Probe(None, "there is no driver", ()))
    with pytest.raises(errors.TargetError) as refusal:
        planning.plan([cases.find("relu")], ["native", target])
    message = f"bench: target {target} cannot be measured: there is no driver"
    assert refusal.value.message == message
    assert refusal.value.hint == f"measure for {', '.join(targets.runnable())}"


def test_a_device_is_measured_against_its_own_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    found = driver.Probe((13, 0), None, (driver.Gpu("GPU", 90),))
    monkeypatch.setattr(driver, "probe", lambda: found)
    (group,) = planning.plan([cases.find("relu")], ["cuda"], [16])
    assert group.target == "cuda"
    assert set(group.peers) == {p.name for p in peers.PEERS.values() if p.device == "cuda"}


def test_a_level_that_cannot_run_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = targets.Machine("x86_64", flags=frozenset(targets.TARGETS["x86-64-v2"].flags))
    monkeypatch.setattr(targets, "this_machine", lambda: plain)
    with pytest.raises(errors.TargetError, match=r"^x86-64-v3 cannot run .*: .*avx2"):
        planning.plan([cases.find("relu")], ["x86-64-v3"])


def test_every_operator_of_a_bundle_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "two.bundle"
    models = {"first": graphs.leaky_relu(alpha=0.25), "second": graphs.add_relu()}
    compiler.build(models, ["x86-64-v2"], path)
    asked = command.asked(options(path=str(path), quick=True, size=[16]))
    planned, settings = asked.groups, asked.settings
    assert [(g.case.name, g.case.graph, g.target) for g in planned] == [
        ("first", "leaky_relu", "x86-64-v2"),
        ("second", "add_relu", "x86-64-v2"),
    ]
    only_ours = [replace(group, peers=("relu_ops", "numpy")) for group in planned]
    found = runner.measure(only_ours, settings, command.maker(asked.bundle))
    assert {(t.case, t.contestant) for t in found.timings if not t.is_limit} == {
        (name, who) for name in models for who in ("relu_ops", "numpy")
    }
    bundle = bundles.read(path)
    image = bundle.image("x86-64-v2")
    digest = hashlib.sha256(image).hexdigest()
    assert [(o.case, o.image_sha256, o.image_bytes) for o in found.operators] == [
        (name, digest, len(image)) for name in models
    ]
    model = hashlib.sha256(bundle.model("second")).hexdigest()
    assert found.operators[1].model_sha256 == model != found.operators[0].model_sha256
    assert found.software["made_by"] == bundle.manifest.producer
    assert {"relu_ops", "apache-tvm", "llvm"} <= set(found.software["made_by"])


def test_the_quick_plan_and_the_committed_plan_end_in_time() -> None:
    asked = command.asked(options(quick=True))
    groups, settings = asked.groups, asked.settings
    assert len(groups) == 16
    assert sum(planning.estimated_seconds(g, settings) for g in groups) < 100
    everything = command.committed()
    assert {(g.case.name, g.dtype) for g in everything} == set(CELLS)
    assert {g.elements for g in everything if g.case.name == "relu6"} == set(planning.ALL_SIZES)
    assert {m for g in everything for m in g.modes} == set(record.MODES)
    assert {g.target for g in everything} == set(environment.machine()["levels"])
    seconds = sum(planning.estimated_seconds(g, planning.Settings()) for g in everything)
    assert seconds + process.ESTIMATED_SECONDS < 25 * 60


def options(**changes: Any) -> argparse.Namespace:
    names = ("path", "graph", "target", "size", "dtype", "threads", "peer", "mode", "quick")
    return argparse.Namespace(**(dict.fromkeys(names) | changes))


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(errors.ArgumentError, match=r"m\.onnx was named as well"):
        command.asked(options(path="m.onnx", graph=["relu"]))
    with pytest.raises(errors.ArgumentError, match="peer must be one of"):
        command.asked(options(peer=["tensorflow"]))
    with pytest.raises(errors.ArgumentError, match="size must be at least 1"):
        command.asked(options(size=[0]))


# ---------------------------------------------------------------- records


def full_record() -> Record:
    return made_up(
        timing("relu_ops", [1e-6, 2e-6, 3e-6]),
        timing("relu_ops_new", [2e-6], allocates=True),
        timing("numpy", [4e-6, 4e-6, 4e-6]),
        timing("numba", [1.5e-6, 3e-6, 9e-6]),
        timing("limit: copy, 1 thread", [1e-6, 1e-6, 1e-6]),
        timing("limit: copy, 2 threads", [4e-6]),
        timing("relu_ops", [4e-6], elements=65536, bytes=524288),
        timing("numpy", [2e-6], elements=65536, bytes=524288),
        timing("limit: copy, 1 thread", [2e-6], elements=65536, bytes=524288),
        deviations=(Deviation("relu", "float32", NATIVE, "numpy", {}, {"zero sign": 73}, 4096),),
        skipped=(Skip("jax", "not installed", "jax is not installed", "pip install 'jax'"),),
        processes=(
            Process("python", (0.01, 0.02, 0.03), 10_000_000, 0),
            Process("relu_ops", (0.1,), 40_000_000, 70_000_000),
        ),
    )


def test_records_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    record.write(full_record(), path)
    assert record.read(path) == full_record()
    assert record.encode(record.read(path)) == path.read_bytes()
    assert json.loads(path.read_bytes())["timings"][0]["seconds"] == [1e-6, 2e-6, 3e-6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: {**r, "format": 3}, r"the record's format is 3 \(this version reads 1 and 2\)"),
        (lambda r: {**r, "operators": [{}]}, "is not a record of a benchmark: .*`case`"),
        (lambda r: {**r, "extra": 1}, "is not a record of a benchmark: .* `extra`"),
        (lambda r: {**r, "timings": [{}]}, "is not a record of a benchmark: .*`case`"),
        (lambda r: [], "is not a record of a benchmark"),
    ],
)
def test_what_is_no_record_is_refused(change: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(change(json.loads(record.encode(full_record())))))
    with pytest.raises(errors.ArgumentError, match=message):
        record.read(path)


def test_a_record_of_the_time_of_shared_libraries_is_read(tmp_path: Path) -> None:
    built = Built("relu", "float32", NATIVE, "relu(x)", "a" * 64, "b" * 64, 34464, (0.5,))
    now = msgspec.structs.replace(full_record(), operators=(built,))
    text = record.encode(now).decode()
    assert text.count('"image_') == 2
    old = text.replace('"format": 2', '"format": 1').replace('"image_', '"library_')
    (tmp_path / "old.json").write_text(old)
    assert record.read(tmp_path / "old.json") == now


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(errors.ArgumentError, match="cannot be read: No such file"):
        record.read(tmp_path / "missing.json")
    with pytest.raises(errors.ArgumentError, match="cannot be written: Is a directory"):
        record.write(full_record(), tmp_path)
    (tmp_path / "b.json").write_bytes(b"\xff{")
    with pytest.raises(errors.ArgumentError, match="is not a record"):
        record.read(tmp_path / "b.json")


def test_quantiles_and_the_best() -> None:
    found = full_record()
    at = found.at(found.places()[0])
    assert at["relu_ops"].median == 2e-6
    assert at["relu_ops"].spread == pytest.approx((1.4e-6, 2.6e-6))
    assert at["relu_ops"].bytes_per_second == pytest.approx(8192 / 2e-6)
    best, loop = tables.lead(at), record.limit_of(at.values())
    assert best is not None and best[1] == "numba"
    assert loop is not None and loop.contestant == "limit: copy, 1 thread"
    assert record.limit_of([]) is None and tables.lead({}) is None and tables.share({}) is None


def test_ratios_are_taken_round_by_round() -> None:
    slow_at_times, twice = timing("a", [1, 9, 1, 9, 9]), timing("b", [2, 18, 2, 18, 18])
    assert record.ratio(twice, slow_at_times) == pytest.approx(2)
    late = timing("c", [2, 2, 2, 18, 18])  # of medians it would be 2 / 9
    assert record.ratio(late, slow_at_times) == pytest.approx(2)
    assert record.ratio(timing("d", [3]), slow_at_times) == pytest.approx(3 / 9)


def test_comparing_two_records() -> None:
    before = made_up(timing("relu_ops", [1, 2, 3]), timing("numpy", [1, 1, 1]), timing("tvm", [1]))
    after = made_up(timing("relu_ops", [2, 3, 4]), timing("numpy", [2, 2, 2]), timing("jax", [1]))
    rows = record.compare(before, after)
    assert [(r.contestant, r.ratio, r.beyond_spread) for r in rows] == [
        ("relu_ops", 1.5, False),
        ("numpy", 2.0, True),
    ]
    text = tables.render_comparison(rows)
    assert text.splitlines()[-1] == ("1 of 2 differ by more than the spread of their samples (*)")
    assert sum(line.endswith("*") for line in text.splitlines()) == 1
    assert tables.render_comparison([]) == "nothing is in both records"


# ---------------------------------------------------------------- tables and pictures


def test_the_table_of_the_terminal() -> None:
    lines = tables.render(full_record()).splitlines()
    assert lines[0] == (
        "Made Up, 2 threads, medians of 3 samples in microseconds; 2026-01-02T03:04:05+00:00; "
        "others had 1% of the processors"
    )
    table = lines[: lines.index("whole processes: start to the first result")]
    cells = {line[:22].strip(): line[22:].split() for line in table if line[:22].strip()}
    assert cells["elements"] == ["1k", "64k"]
    assert cells["relu_ops"] == ["2.00", "4.00"]
    assert cells["numba"] == ["3.00", "-"] and cells["numpy"][:2] == ["4.00", "2.00"]
    assert cells["limit"] == ["1.00", "2.00"]
    assert cells["share of the limit"] == ["50%", "50%"]
    assert cells["best peer / relu_ops"] == ["1.50", "0.50"]
    assert any(line.endswith("differs: 73 zero sign") for line in lines)
    assert lines[-1] == "left out: jax: jax is not installed; pip install 'jax'"


def test_the_table_of_the_readme(tmp_path: Path) -> None:
    record.write(full_record(), tmp_path / "r.json")
    page = "Before\n<!-- benchmark-table: x.json -->\nold\n<!-- /benchmark-table -->\nAfter\n"
    made = tables.readme(tables.with_marker(page, "r.json"), tmp_path)
    assert "| elements | 1k | 64k |" in made
    assert "| `relu(x)` | 2.00 us, 1.5x, 50% | 4.00 us, 0.5x, 50% |" in made
    assert "Peers: NumPy; numba." in made and "old" not in made
    assert made.startswith("Before\n") and made.endswith("<!-- /benchmark-table -->\nAfter\n")
    assert tables.readme(made, tmp_path) == made
    with pytest.raises(errors.ArgumentError, match=r"one table .* \(not 0\)"):
        tables.readme("nothing", tmp_path)


def test_the_readme_is_up_to_date() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.readme(text, ROOT) == text


def test_committed_records_are_whole() -> None:
    paths = set((ROOT / "docs" / "benchmarks").glob("*.json")) - {NETWORKS, *FRAMEWORKS.values()}
    assert paths
    for path in paths:
        found = record.read(path)
        assert path.stat().st_size < 4 * 2**20
        assert found.software["commit"] and found.machine["flags"] and found.operators
        assert {t.contestant for t in found.timings} >= {"relu_ops", "numpy", "onnxruntime"}
        assert any(t.is_limit for t in found.timings)
        names = {p.name for p in path.with_suffix("").iterdir()}
        assert {f"{Path(n).stem}.{kind}" for n in names for kind in ("png", "svg")} == names


def test_the_table_of_networks_is_that_of_its_record() -> None:
    script = [sys.executable, ROOT / "scripts" / "benchmark_networks.py", "--show"]
    shown = subprocess.run(script, capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout.startswith("| network | threads |") and shown.stdout.count("\n") >= 16
    assert shown.stdout in (ROOT / "docs" / "onnxruntime.md").read_text(encoding="utf-8")
    found = json.loads(NETWORKS.read_text())
    assert found["software"]["commit"] and found["machine"]["cpu"] and found["date"]


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_tables_of_frameworks_are_those_of_their_records(name: str) -> None:
    script = [sys.executable, ROOT / "scripts" / "benchmark_frameworks.py", name, "--show"]
    shown = subprocess.run(script, capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    tables = shown.stdout.rstrip("\n").split("\n\n")
    assert all(f"\n{one}\n" in page for one in tables) and tables[0].count("\n") > 2
    found = json.loads(FRAMEWORKS[name].read_text())
    assert found["software"]["commit"] and found["machine"]["cpu"] and found["date"]
    assert all(row["ratio"] and row["seconds"]["relu_ops"] > 0 for row in found["rows"])


def test_pictures(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'relu_ops[bench]'")
    first, second = (plots.draw(full_record(), tmp_path / name) for name in "ab")
    assert {p.name for p in first} == {
        f"{name}.{kind}"
        for kind in ("png", "svg")
        for name in (
            f"bandwidth_{NATIVE}_warm",
            f"lead_{NATIVE}_warm",
            "processes",
        )
    }
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()
    svg = (tmp_path / "a" / f"lead_{NATIVE}_warm.svg").read_text()
    assert "<dc:date>" not in svg
    with pytest.raises(errors.ArgumentError, match="cannot be made: File exists"):
        plots.draw(full_record(), tmp_path / "a" / "processes.svg")


def test_pictures_of_levels_dtypes_and_shares(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'relu_ops[bench]'")
    rows = [
        timing(who, [1e-6], target=target, dtype=dtype, elements=size)
        for who in ("relu_ops", "numpy", "limit: copy, 1 thread")
        for target in ("x86-64-v3", "x86-64-v2")
        for dtype in ("float32", "float16")
        for size in (4096, 65536)
    ]
    names = {path.stem for path in plots.draw(made_up(*rows), tmp_path)}
    usual = {f"{what}_x86-64-v3_warm" for what in ("bandwidth", "share", "lead")}
    assert names == usual | {f"{name}_dtypes" for name in usual} | {"levels"}


def test_publishing_replaces_all_that_belongs_to_a_record(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'relu_ops[bench]'")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- benchmark-table: old.json -->\n<!-- /benchmark-table -->\n")
    stale = tmp_path / "docs" / "mine" / "stale.png"
    stale.parent.mkdir(parents=True)
    stale.touch()
    machine = full_record().machine | {"host": "secret", "on": "alias"}
    named = msgspec.structs.replace(full_record(), machine=machine)
    written = command.publish(named, tmp_path / "docs", "mine", readme)
    text = written[0].read_text()
    assert "secret" not in text and "alias" not in text and "Made Up" in text
    assert not stale.exists() and written[-1] == readme
    assert "<!-- benchmark-table: docs/mine.json -->" in readme.read_text()
    assert "| `relu(x)` | 2.00 us" in readme.read_text()
    before = readme.read_text()
    elsewhere = tmp_path.parent / f"{tmp_path.name} elsewhere"
    assert readme not in command.publish(full_record(), elsewhere, "mine", readme)
    assert readme.read_text() == before


# ---------------------------------------------------------------- whole processes


def test_a_fresh_process() -> None:
    rows = {snippet.name: snippet for snippet in process.SNIPPETS}
    sample = process._start(rows["numpy"], [""] * 4, Path("unused"))
    assert sample is not None
    seconds, peak = sample
    assert 0 < seconds < 60 and 10e6 < peak < 10e9
    broken = process.Snippet("numpy", "raise SystemExit(1)")
    assert process._start(broken, [""] * 4, Path("unused")) is None
    assert set(rows) <= {"python", *CPU_PEERS}


def test_installed_sizes() -> None:
    alone, with_numpy = process.installed_bytes("numpy"), process.installed_bytes("relu_ops")
    assert 10e6 < alone < with_numpy < alone + 100e6
    assert "numpy" in {process._name(need) for need in process._own_needs(process._PROJECT)}
    with pytest.raises(errors.MissingDependencyError, match="what it needs cannot be read from"):
        process._own_needs(process._PROJECT.with_name("missing.toml"))
    assert process._applies("a>1") and not process._applies('a; extra == "test"')


def test_compiled_files_count_wherever_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = process._own_bytes()
    for name, size in {"_python.so": 10**7, "plan.c": 10**8}.items():
        (tmp_path / name).write_bytes(bytes(size))
    monkeypatch.setattr(process._python, "__file__", str(tmp_path / "_python.so"))
    assert 9e6 < process._own_bytes() - sources <= 1e7


@pytest.mark.exhaustive
def test_every_fresh_process() -> None:
    found = [item for item in process.measure() if item is not None]
    names = [s.name for s in process.SNIPPETS if s.name == "python"]
    names += [
        s.name
        for s in process.SNIPPETS
        if s.name != "python" and peers.why_not(peers.find(s.name)) is None
    ]
    assert [p.contestant for p in found] == names


def test_what_is_known_of_the_machine() -> None:
    machine, software = environment.machine(), environment.software()
    assert machine["levels"] and machine["default_threads"] >= 1
    assert set(targets.native().flags) < set(machine["flags"])
    assert environment.last_level_cache_bytes() >= 2**18
    assert software["packages"]["numpy"] == np.__version__
    share = environment.Usage().share_of_others()
    assert share is None or share >= 0


def test_what_cannot_be_read_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_text", lambda path: None)
    machine = environment.machine()
    assert {machine[name] for name in ("flags", "hypervisor", "cgroup_cpu_max")} == {None}
    assert environment.Usage().share_of_others() is None
    assert environment.last_level_cache_bytes() == 32 * 2**20
