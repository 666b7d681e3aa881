"""The parts of scripts/check_cuda.py that need no device: its reference, judgement and bars."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import simulated_cuda

from relu_ops import graphs, reference
from relu_ops.compiler import codegen_cuda, frontend
from relu_ops.semantics import DTYPES

SCRIPT = Path(__file__).parents[1] / "scripts" / "check_cuda.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_cuda", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
@pytest.mark.parametrize("graph", ["relu", "leaky_relu"])
def test_its_reference_is_the_contract(script: ModuleType, graph: str, dtype: str) -> None:
    if f"{graph}_{dtype}" not in script.GRAPHS:
        pytest.skip(f"it does not check {graph} of {dtype}")
    row = DTYPES[dtype]
    bits = np.arange(0, 1 << row.bits, 1 if row.bits < 32 else 40_961, dtype=np.uint64)
    bits = bits.astype(f"u{row.itemsize}")
    make, arguments = script.GRAPHS[f"{graph}_{dtype}"]
    model = getattr(graphs, make)(**arguments)
    (wanted,) = reference.evaluate(frontend.import_model(model), [bits.view(row.numpy)])
    name = f"{graph}_{dtype}"
    ours = script.reference(name, bits)
    assert script.differing(ours, wanted.view(bits.dtype), name) == 0


@pytest.mark.parametrize(
    ("name", "got", "wanted", "count"),
    [
        ("x_float32", [0x7FC00000, 0x80000000, 1], [0xFFC00001, 0x00000000, 1], 1),
        ("x_float32", [0x7F800000, 0x7F800001], [0x7F800001, 0x7F800000], 2),
        ("x_bfloat16", [0x7FC0, 0x7F80, 0xFF81], [0xFFFF, 0x7F80, 0x7FFF], 0),
        ("x_float16", [0x7C00, 0x7E00], [0x7C01, 0x3C00], 2),
        ("x_int8", [0x7F, 0x80], [0x7F, 0x00], 1),
    ],
)
def test_what_it_takes_as_different(
    script: ModuleType, name: str, got: list[int], wanted: list[int], count: int
) -> None:
    width = {"32": "u4", "16": "u2", "t8": "u1"}[name[-2:]]
    assert script.differing(np.array(got, width), np.array(wanted, width), name) == count


def row(graph: str, what: str, seconds: float, size: int, launch: float = 0.0) -> dict[str, Any]:
    return {
        "graph": graph,
        "elements": size,
        "what": what,
        "median_seconds": seconds,
        "launch_seconds": launch,
        "bytes": 8 * size,
    }


@pytest.mark.parametrize(
    ("graph", "ours", "torch", "met"),
    [
        ("relu_float32", 1.0, 1.0, [True, True]),
        ("relu_float32", 1.06, 1.1, [False, True]),
        ("relu_float32", 1.0, 0.9, [True, False]),
        ("scale_bias_leaky_relu", 1.0, 1.9, [True, False]),
        ("scale_bias_leaky_relu", 1.0, 2.0, [True, True]),
        ("add_relu", 1.0, 1.5, [True, False]),
    ],
)
def test_its_bars(
    script: ModuleType, graph: str, ours: float, torch: float, met: list[bool]
) -> None:
    rows = [
        row(graph, "relu_ops", ours, 2**26),
        row(graph, "torch eager", torch, 2**26),
        row(graph, "copy", 1.0, 2**26),
    ]
    assert [fine for _, fine in script.bars(rows)] == met


def test_its_bar_for_launches(script: ModuleType) -> None:
    rows = [
        row("relu_float32", "relu_ops", 1.0, 64, launch=2.0),
        row("relu_float32", "torch eager", 1.0, 64, launch=1.0),
        row("relu_float32", "copy", 1.0, 64),
    ]
    assert [fine for _, fine in script.bars(rows)] == [True, False]


def _built(script: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    requires = {"sm": [90], "ptx": None, "cuda": "13.0", "driver": "13.0"}
    monkeypatch.setattr(
        codegen_cuda, "build_cuda", lambda graph, target: (simulated_cuda.build(graph), requires)
    )
    assert script.build(folder) == 0


def test_all_of_it_on_simulated_libraries(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It passes what is right, and finds what is not: a leaky_relu in the place of relu."""
    pytest.importorskip("torch", reason="the script needs torch")
    _built(script, monkeypatch, tmp_path)

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, SCRIPT, "run", tmp_path, "--simulated", "--quick", *options]
        return subprocess.run(command, capture_output=True, text=True)

    def record() -> dict[str, Any]:
        return json.loads((tmp_path / "record.json").read_text())

    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict: bits right" in done.stdout
    wrong, right = tmp_path / "leaky_relu_float32.bundle", tmp_path / "relu_float32.bundle"
    for path in wrong.iterdir():
        (right / path.name).write_bytes(path.read_bytes())
    done = run()
    assert done.returncode == 1
    assert "WRONG relu_float32, bit patterns" in done.stdout
    assert "verdict: bits WRONG" in done.stdout
    assert not record()["exact"]
    # What fails takes nothing away of what was found, and nothing is right that was not seen.
    shutil.rmtree(tmp_path / "add_relu.bundle")
    (right / "cuda.so").write_bytes(b"damaged")
    manifest = json.loads((right / "manifest.json").read_text())
    (entry,) = [f for f in manifest["files"] if f["target"]]
    entry["sha256"] = hashlib.sha256(b"damaged").hexdigest()
    (right / "manifest.json").write_text(json.dumps(manifest))
    done = run()
    assert done.returncode == 1
    assert [text.partition(":")[0] for text in record()["failures"]] == [
        "loading relu_float32",
        "Rows, columns, planes, transposes, more of them than a grid has; against NumPy",
    ]
    assert any(r["check"] == "leaky_relu_float32, bit patterns" for r in record()["checks"])
    assert not record()["exact"]
    done = run("--seconds", "0")
    assert done.returncode == 1
    assert len(record()["left_out"]) == 4
    assert "not seen" in done.stdout


def test_without_bundles_or_a_device_it_says_so(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "run", tmp_path, "--simulated"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout.startswith("cannot run: ")
