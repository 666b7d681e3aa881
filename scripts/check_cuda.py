"""Checks and times CUDA operators on the device at hand, by relu_ops' own `verify` and `bench`.

python scripts/check_cuda.py FOLDER --build   where NVRTC is: relu_ops[cuda], and no device
python check_cuda.py FOLDER                   where a device is: relu_ops[verify] and torch

The first writes bundles into FOLDER, to be copied over with this file. Each step is a process of
its own, ends within what is left of --seconds, and is kept in FOLDER/record.json once it is over.
Exit code 0: every step ran and is right, every bar is met; 1: not so, or nothing could be run.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
import timeit
from pathlib import Path

FLOATS = ("float32", "float16", "bfloat16")
UNARY = {f"{graph}_{d}": {"dtype": d} for graph in ("relu", "leaky_relu") for d in FLOATS}
GRAPHS = {**UNARY, "relu_int8": {"dtype": "int8"}, "add_relu": {}, "scale_bias_leaky_relu": {}}
TIMED = ("relu_float32", "leaky_relu_float32", "relu_float16", "add_relu", "scale_bias_leaky_relu")
SIZES = ("1k", "16k", "256k", "1M", "4M", "16M", "64M", "256M")
LEAST_SHARE_OF_COPY, LARGE_BYTES, LEAST_FUSED_SPEEDUP, NOISE = 0.95, 64 << 20, 2.0, 1.03


def build(folder):
    """Build a bundle of every graph."""
    import relu_ops

    for name, arguments in GRAPHS.items():
        graph = getattr(relu_ops.graphs, name.removesuffix(f"_{arguments.get('dtype')}"))
        print(relu_ops.build(graph(**arguments), ["cuda"], folder / f"{name}.bundle"), name)


def verify(bundle, exhaustive=False):
    """The whole check, or every bit pattern."""
    import relu_ops

    found = relu_ops.verify(bundle, device="cuda", exhaustive=exhaustive)
    return {"ok": found.ok, "report": found.to_dict()}


def exhaustive(bundle):
    """Every bit pattern of the input."""
    return verify(bundle, True)


def calls(bundle):
    """torch's tensors, streams and graphs, 2^31 elements, and what a launch costs the host."""
    import torch

    import relu_ops

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
    """Times against torch, CuPy and a copy, and the bars that they are held to."""
    path = bundle.with_suffix(".bench.json")
    sizes = [option for size in SIZES for option in ("--size", size)]
    command = [sys.executable, "-m", "relu_ops", "bench", bundle, "--target", "cuda", *sizes]
    subprocess.run([*command, "--record", path], check=True)
    rows, bars = {}, {}
    for timing in json.loads(path.read_text())["timings"]:
        row = rows.setdefault(timing["elements"], {"bytes": timing["bytes"]})
        row[timing["contestant"]] = statistics.median(timing["seconds"])
    for size, row in rows.items():
        own, large = row["relu_ops_cuda"], row["bytes"] >= LARGE_BYTES
        least = LEAST_FUSED_SPEEDUP if large and bundle.stem.startswith("scale") else 1 / NOISE
        bars[f"{size}, torch"] = row["torch_cuda"] / own >= least
        if large:
            copies = [seconds for name, seconds in row.items() if name.startswith("limit: ")]
            bars[f"{size}, copy"] = min(copies) / own >= LEAST_SHARE_OF_COPY
    return {"ok": bool(bars), "rows": rows, "bars": bars}


def plan(folder):
    """The steps and their bundles: those that tell most first."""
    names = [name for name in GRAPHS if (folder / f"{name}.bundle").is_dir()]
    steps = [("calls", name) for name in names[:1]] + [("verify", name) for name in names]
    steps += [("bench", name) for name in names if name in TIMED]
    return steps + [("exhaustive", name) for name in names if GRAPHS[name]]


def done(folder, step, name, seconds):
    """What a step returned, or how it ended."""
    command = [sys.executable, __file__, folder, "--step", step, name]
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
    parser.add_argument("folder", type=Path)
    parser.add_argument("--build", action="store_true", help="build the bundles here")
    parser.add_argument("--seconds", type=float, default=500, help="end within so many")
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        found = globals()[options.step[0]](options.folder / f"{options.step[1]}.bundle")
        (options.folder / "step.json").write_text(json.dumps(found))
    else:
        sys.exit(build(options.folder) if options.build else run(options.folder, options.seconds))
