"""The main job, from model to result: export, build, load without a compiler, run, verify, time.

Run it with no arguments; everything is written into a folder (default: demo/) and what was done
is printed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np

import relu_ops
from relu_ops import graphs, targets
from relu_ops.bench import cases, planning, runner, tables

# Runs in a process of its own, which proves that no compiler is needed.
WITHOUT_COMPILER = """
import sys, time
started = time.perf_counter()
import numpy as np
numpy_ready = time.perf_counter()
import relu_ops
op = relu_ops.load(sys.argv[1])
x = np.load(sys.argv[2])
y = op(x)
done = time.perf_counter()
np.save(sys.argv[3], y)
loaded = {name.partition(".")[0] for name in sys.modules}
print(repr(op))
print(f"first result {(done - numpy_ready) * 1e3:.0f} ms after NumPy was imported "
      f"(which took {(numpy_ready - started) * 1e3:.0f} ms)")
unwanted = sorted(loaded & {"tvm", "tvm_ffi", "onnx", "onnxruntime", "torch"})
print("compiler modules in the process:", ", ".join(unwanted) or "none")
sys.exit(bool(unwanted))
"""


def main() -> int:
    """Do the main job; return 0 where every step succeeded."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("demo"), help="default: demo")
    parser.add_argument("--alpha", type=float, default=0.1, help="slope below zero, default 0.1")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)

    title("1. Export the models")
    graphs.export(options.folder / "models")
    print(f"{len(graphs.MODELS)} ONNX models in {options.folder / 'models'}")
    model = graphs.leaky_relu(alpha=options.alpha)
    print(f"the one of today: {model.graph.doc_string}")

    title("2. Build a bundle")
    bundle = options.folder / "leaky_relu.bundle"
    started = time.perf_counter()
    digest = relu_ops.build(model, targets=list(targets.CPU_TARGETS), path=bundle)
    print(f"{bundle}: {', '.join(targets.CPU_TARGETS)}, in {time.perf_counter() - started:.1f} s")
    for file in sorted(bundle.iterdir()):
        print(f"  {file.name:<16} {file.stat().st_size:>9,} bytes")
    print(f"  digest {digest}")

    title("3. Load it with no compiler in the process, and run it")
    x = np.linspace(-3, 3, 7, dtype=np.float32)
    np.save(options.folder / "x.npy", x)
    files = [str(bundle), str(options.folder / "x.npy"), str(options.folder / "y.npy")]
    # -P: the installed package, not the checkout in this folder, whose native half is not compiled.
    if subprocess.run([sys.executable, "-P", "-c", WITHOUT_COMPILER, *files]).returncode:
        return 1
    print("x =", x)
    print("y =", np.load(files[2]))

    title("4. Verify it, bit for bit")
    report = relu_ops.verify(bundle)
    print(report)
    if not report.ok:
        return 1

    title("5. Time it")
    operator = relu_ops.load(bundle)
    case = cases.case_of(model, "leaky_relu")
    plan = planning.plan([case], dtypes=case.dtypes, names=["relu_ops", "numpy", "onnxruntime"])
    settings = planning.Settings(**planning.QUICK)
    print(tables.render(runner.measure(plan, settings, make=lambda *_: operator)))
    return 0


def title(text: str) -> None:
    """Print a heading."""
    print(textwrap.dedent(f"\n{text}\n{'-' * len(text)}"), flush=True)


if __name__ == "__main__":
    sys.exit(main())
