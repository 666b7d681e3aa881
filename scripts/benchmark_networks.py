"""Times networks in onnxruntime, stock and partitioned; writes docs/benchmarks/networks.json.

With no arguments every network of relu_ops/bench/networks.py at its own size, on 1 and 2 threads,
and PRelu alone. --show prints the record that is there as the table of docs/onnxruntime.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

import relu_ops
from relu_ops.bench import environment
from relu_ops.bench.networks import IR_VERSION, NETWORKS, OPSET
from relu_ops.interop import onnxruntime as door
from relu_ops.partitioning import hosted, measuring

RECORD = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "networks.json"
PRELU = "PRelu alone, [1, 64, 112, 112]"


def prelu() -> onnx.ModelProto:
    """One PRelu with a slope a channel, on what a network's first layer gives."""
    shape = [1, 64, 112, 112]
    slope = np.random.default_rng(0).random((64, 1, 1), np.float32)
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n in "xy"]
    nodes = [helper.make_node("PRelu", ["x", "slope"], ["y"])]
    weights = [numpy_helper.from_array(slope, "slope")]
    graph = helper.make_graph(nodes, "prelu", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


_PROFILED = 10


def share(model: onnx.ModelProto, kinds: set[str], threads: int, feeds: Mapping[str, Any]) -> float:
    """How much of its nodes' time onnxruntime spends in operators of some kinds, by its profile."""
    spent: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        options = hosted.options_of(threads, timed=True)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = hosted.session_of(model.SerializeToString(), options)
        for _ in range(_PROFILED):
            hosted.run(session, feeds)
        for event in json.loads(Path(session.end_profiling()).read_text()):
            if event["name"].endswith("_kernel_time"):
                spent[event["args"]["op_name"]] += event["dur"]
    return sum(spent[kind] for kind in kinds) / sum(spent.values())


def measure(name: str, model: onnx.ModelProto, threads: int, rounds: int) -> dict[str, Any]:
    """Time a model and what partition makes of it by its rules, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        report = relu_ops.partition(model, Path(folder) / "p")
        stock = hosted.session_of(model.SerializeToString(), hosted.options_of(threads, timed=True))
        own = door.session(Path(folder) / "p", hosted.options_of(threads, timed=True))
        feeds = hosted.random_inputs(stock, {}, {}, 0)
        runs = (measuring.bound(stock, feeds), measuring.bound(own, feeds))
        times = measuring.in_turn(*runs, rounds)
    kinds = {kind for group in report.taken for kind in group.nodes}
    return {
        "network": name,
        "threads": threads,
        "groups": len(report.groups),
        "taken": len(report.taken),
        "taken_share": share(model, kinds, threads, feeds),
        "outputs": report.checked,
        "stock_seconds": times.stock,
        "own_seconds": times.own,
    }


def table(record: dict[str, Any]) -> str:
    """The record as a table of Markdown."""
    lines = [
        "| network | threads | groups taken | share | onnxruntime | partitioned | times as fast |"
    ]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in record["rows"]:
        stock, own = row["stock_seconds"], row["own_seconds"]
        lines.append(
            f"| {row['network']} | {row['threads']} | {row['taken']} | {row['taken_share']:.0%} "
            f"| {stock * 1e3:,.2f} ms | {own * 1e3:,.2f} ms | {stock / own:.2f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measure and write, or show."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument("--output", type=Path, default=RECORD)
    parser.add_argument("--rounds", type=int, default=measuring.ROUNDS)
    parser.add_argument("--size", type=int, help="of the networks' inputs; default: their own")
    options = parser.parse_args()
    if not options.show:
        how = {} if options.size is None else {"size": options.size}
        rows = []
        for name, make in {PRELU: prelu, **NETWORKS}.items():
            model = make() if name == PRELU else make(**how)
            for threads in (1, 2):
                rows.append(measure(name, model, threads, options.rounds))
                print(rows[-1], file=sys.stderr)
        record = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": environment.machine(),
            "software": environment.software(),
            "rows": rows,
        }
        options.output.write_text(json.dumps(record, indent=1) + "\n")
    print(table(json.loads(options.output.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
