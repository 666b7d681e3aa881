"""Checks and times CUDA operators on the device at hand, against the contract's own NumPy code.

python scripts/check_cuda.py --prepare FOLDER   where NVRTC is: relu_ops[cuda], and no device
python check_cuda.py --run FOLDER               where a device is: a relu_ops wheel, and torch

The first writes bundles and imported graphs into FOLDER, to be copied over with this file. Each
step is a process of its own, ends within what is left of --seconds, and is kept in
FOLDER/record.json once it is over. Exit code 0: every step ran and is right, every bar is met; 1:
not so, or nothing could be run.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import timeit
from pathlib import Path

import msgspec
import numpy as np

import relu_ops
from relu_ops.contract import ir, reference
from relu_ops.contract.semantics import DTYPES
from relu_ops.verification import all_same
from relu_ops.verification import cases as checked_cases
from relu_ops.verification.calls import Guarded, call, inputs_of
from relu_ops.verification.device import OnDevice
from relu_ops.verification.shapes import output_shapes

FLOATS = ("float32", "float16", "bfloat16")
UNARY = {f"{graph}_{d}": {"dtype": d} for graph in ("relu", "leaky_relu") for d in FLOATS}
GRAPHS = {**UNARY, "relu_int8": {"dtype": "int8"}, "add_relu": {}, "scale_bias_leaky_relu": {}}
TIMED = ("relu_float32", "leaky_relu_float32", "relu_float16", "add_relu", "scale_bias_leaky_relu")
SIZES = tuple(1 << power for power in (10, 14, 18, 20, 22, 24, 26, 28))
ROUNDS, SAMPLE_SECONDS = 15, 0.005
LEAST_SHARE_OF_COPY, LARGE_BYTES, LEAST_FUSED_SPEEDUP, NOISE = 0.95, 64 << 20, 2.0, 1.03


def prepare(folder):
    """Build a bundle of every graph, and write the graph itself beside it."""
    from relu_ops.compiler import frontend

    folder.mkdir(parents=True, exist_ok=True)
    for name, arguments in GRAPHS.items():
        model = getattr(relu_ops.graphs, name.removesuffix(f"_{arguments.get('dtype')}"))(
            **arguments
        )
        print(relu_ops.build(model, ["cuda"], folder / f"{name}.bundle"), name)
        content = msgspec.msgpack.encode(frontend.import_model(model), enc_hook=_plain)
        (folder / f"{name}.graph").write_bytes(content)


def _plain(array):
    return [array.dtype.name, array.shape, array.tobytes()]


def _array(_, plain):
    name, shape, content = plain
    return np.frombuffer(content, DTYPES[name].numpy).reshape(shape)


def prepared(bundle):
    """The graph that was written beside a bundle."""
    content = bundle.with_suffix(".graph").read_bytes()
    return msgspec.msgpack.decode(content, type=ir.Graph, dec_hook=_array)


def verify(bundle):
    """Special values, sizes, layouts and random draws: every case but those of all patterns."""
    return _verified(bundle, checked_cases.plan(prepared(bundle), 0), 0)


def exhaustive(bundle):
    """Every bit pattern of the input."""
    graph = prepared(bundle)
    plan = checked_cases.plan(graph, 0, exhaustive=True)
    return _verified(bundle, plan, len(checked_cases.plan(graph, 0)))


def _verified(bundle, plan, first):
    operator, wrong = OnDevice(relu_ops.load(bundle, device="cuda")), []
    for number in range(first, len(plan)):
        if not is_right(operator, plan.graph, plan[number]):
            wrong.append(plan[number].title)
    return {"ok": not wrong and first < len(plan), "cases": len(plan) - first, "wrong": wrong}


def is_right(operator, graph, case):
    """Whether a call has the contract's bits, in given outputs and new ones, and no others."""
    inputs, shapes = inputs_of(case, graph), output_shapes(graph, case.shapes)
    expected = reference.evaluate(graph, case.small)
    whole = [checked_cases.repeated(y, s) for y, s in zip(expected, shapes, strict=True)]
    guarded = Guarded(expected, shapes)
    given = call(operator, inputs, guarded.prepare())
    right = all_same(given, whole) and not guarded.broken()
    return right and (case.exhaustive or all_same(call(operator, inputs, None), whole))


def calls(bundle):
    """torch's tensors, streams and graphs, 2^31 elements, and what a launch costs the host."""
    import torch

    op = relu_ops.load(bundle, device="cuda")
    x = torch.randn(1 << 20, device="cuda")
    wanted, y, z = x.clamp_min(0), torch.empty_like(x), x.clone()
    right = {"new": torch.equal(op(x), wanted), "in place": torch.equal(op(z, out=z), wanted)}
    right["given"] = torch.equal(op(x, out=y), wanted)
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        right["stream"] = torch.equal(op(x), wanted)
    call, _ = op.bind(x, out=y), y.zero_()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        call()
    right["captured"] = not bool(y.any())
    graph.replay()
    right["captured"] &= torch.equal(y, wanted)
    if torch.cuda.mem_get_info()[0] > 5 * 4 * 2**31:
        large = torch.randn(2**31 + 5, device="cuda")
        right["2^31 elements"] = torch.equal(op(large), large.clamp_min(0))
    few, out, seconds = x[:16], y[:16], {}
    ours, torchs = (lambda: op(few, out=out)), (lambda: torch.clamp_min(few, 0, out=out))
    for name, run in (("relu_ops", ours), ("bound", op.bind(few, out=out)), ("torch", torchs)):
        samples = timeit.repeat(run, torch.cuda.synchronize, number=100, repeat=30)
        seconds[name] = statistics.median(samples) / 100
    bars = {"launch": seconds["relu_ops"] <= seconds["torch"] * NOISE}
    return {"ok": all(right.values()), "right": right, "launch_seconds": seconds, "bars": bars}


def bench(bundle):
    """Times against torch and a copy of as many bytes, and the bars that they are held to."""
    graph, rows, bars = prepared(bundle), {}, {}
    for size in SIZES:
        row = rows[size] = timings(graph, bundle, size)
        own, large = row["relu_ops"], row["bytes"] >= LARGE_BYTES
        least = LEAST_FUSED_SPEEDUP if large and bundle.stem.startswith("scale") else 1 / NOISE
        bars[f"{size}, torch"] = row["torch"] / own >= least
        if large:
            bars[f"{size}, copy"] = row["copy"] / own >= LEAST_SHARE_OF_COPY
    return {"ok": bool(bars), "rows": rows, "bars": bars}


def timings(graph, bundle, size):
    """Median seconds of a call, by whom, and the bytes that it moves: all in turns."""
    import torch

    from relu_ops.bench import cases
    from relu_ops.bench.peers.torch import IDIOMS, as_torch

    case = cases.find(bundle.stem.removesuffix(f"_{GRAPHS[bundle.stem].get('dtype')}"))
    inputs = [as_torch(x).cuda() for x in cases.ordinary_inputs(graph, size)]
    y = torch.empty_like(inputs[0])
    moved = sum(x.nbytes for x in (*inputs, y) if x.numel() == y.numel())
    source, target = torch.empty((2, moved // 2), dtype=torch.uint8, device="cuda").random_()
    calls = {
        "relu_ops": relu_ops.load(bundle, device="cuda").bind(*inputs, out=y),
        "torch": IDIOMS[case.graph](torch, inputs, y, case.alpha),
        "copy": lambda: target.copy_(source),
    }
    repeats = {who: max(1, int(SAMPLE_SECONDS / seconds(run, 10))) for who, run in calls.items()}
    samples = {who: [] for who in calls}
    for _ in range(ROUNDS):
        for who, run in calls.items():
            samples[who].append(seconds(run, repeats[who]))
    return {"bytes": moved} | {who: statistics.median(each) for who, each in samples.items()}


def seconds(run, repeats):
    """What a call takes, by the device's own clock."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / repeats


def plan(folder):
    """The steps and their bundles: those that tell most first."""
    names = [name for name in GRAPHS if (folder / f"{name}.bundle").is_dir()]
    steps = [("calls", name) for name in names[:1]] + [("verify", name) for name in names]
    steps += [("bench", name) for name in names if name in TIMED]
    return steps + [("exhaustive", name) for name in names if GRAPHS[name]]


def done(folder, step, name, seconds):
    """What a step returned, or how it ended."""
    command = [sys.executable, __file__, "--run", folder, "--step", step, name]
    try:
        subprocess.run(command, check=True, timeout=seconds)
    except subprocess.SubprocessError as error:
        return {"ok": False, "ended": str(error)}
    return json.loads((folder / "step.json").read_text())


def run(folder, seconds):
    """Every step that there is time for, and a verdict."""
    end, record, fine = time.monotonic() + seconds, {}, True
    for step, name in plan(folder):
        what, left = f"{step} {name}", end - time.monotonic()
        found = done(folder, step, name, left) if left > 1 else {"ok": False, "ended": "no time"}
        record[what] = found
        missed = [bar for bar, is_met in found.get("bars", {}).items() if not is_met]
        fine &= found["ok"] and not missed
        (folder / "record.json").write_text(json.dumps(record, indent=1))
        said = "right" if found["ok"] else found.get("ended", "WRONG")
        print(f"{what}: {said}{f', missed: {missed}' if missed else ''}", flush=True)
    print(f"{len(record)} steps: {'all is right' if fine and record else 'NOT all is right'}")
    return 0 if fine and record else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prepare", type=Path, metavar="FOLDER", help="build the bundles here")
    what.add_argument("--run", type=Path, metavar="FOLDER", help="check and time them here")
    parser.add_argument("--seconds", type=float, default=500, help="end within so many")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        found = globals()[options.step[0]](options.run / f"{options.step[1]}.bundle")
        (options.run / "step.json").write_text(json.dumps(found))
    elif options.prepare:
        prepare(options.prepare)
    else:
        sys.exit(run(options.run, options.seconds))
