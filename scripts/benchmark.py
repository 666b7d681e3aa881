"""Times operators of `relu_ops.graphs` against NumPy and onnxruntime, on each target here."""

from __future__ import annotations

import argparse
import sys

import relu_ops
from relu_ops import graphs, targets
from relu_ops.bench import timing


def main() -> int:
    """Time each graph on each target and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("graphs", nargs="*", default=["relu", "leaky_relu", "add_relu"])
    parser.add_argument("--target", action="append", help="default: every one that runs here")
    options = parser.parse_args()
    machine = targets.this_machine()
    names = options.target or [
        t for t in targets.CPU_TARGETS if targets.why_not(targets.parse(t), machine) is None
    ]
    print(f"{machine.cpu}; medians in microseconds; in brackets: to relu_ops")
    for graph in options.graphs:
        for name in names:
            operator = relu_ops.compile(graphs.MODELS[graph](), name)
            print(f"\n{graph}, {name}")
            print(timing.table(list(timing.compare(operator))), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
