"""Times operators inside torch and JAX beside their own; writes docs/benchmarks/torch.json.

    python scripts/benchmark_frameworks.py torch
    python scripts/benchmark_frameworks.py jax --show

Contestants of a row take their turns in one process, in a shuffled order, after a pause in which
threads go to sleep. A time is the median of the samples; a ratio is the median over the rounds of
the ratio within a round. --show prints the record that is there as the tables of docs/torch.md or
docs/jax.md, and measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib.util
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from relu_ops import graphs, jit, standard
from relu_ops.bench import environment

RECORDS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
OURS = "relu_ops"
SIZES = {"64k": 2**16, "256k": 2**18, "1M": 2**20, "4M": 2**22, "16M": 2**24}
PAUSE_SECONDS = 5e-3
"""Longer than idle threads of torch spin."""

SAMPLE_SECONDS = 1e-3
"""Of calls that are timed together: none is shorter."""

Call = Callable[[], Any]
Company = Callable[[Call], float]


class Row(NamedTuple):
    """Contestants for the same job, ours first.

    Attributes:
        table: Which table it belongs to.
        what: The job.
        elements: Of the largest array.
        company: How a call is timed.
        calls: By contestant.
    """

    table: str
    what: str
    elements: int
    company: Company
    calls: Mapping[str, Call]


# ---------------------------------------------------------------------------------------------
# Measuring


def once(call: Call) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def alone(call: Call) -> float:
    """Seconds of a call among others of its kind: as many as fill a sample."""
    call()
    count = max(1, int(SAMPLE_SECONDS / max(once(call), 1e-7)))
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def measure(row: Row, rounds: int) -> dict[str, Any]:
    """Time all contestants of a row."""
    rng, order = random.Random(0), list(row.calls)
    for call in row.calls.values():  # what is compiled at the first call, and threads that start
        call()
    times: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(rounds):
        rng.shuffle(order)
        for name in order:
            time.sleep(PAUSE_SECONDS)
            times[name].append(row.company(row.calls[name]))
    ours = times[OURS]
    return {
        "table": row.table,
        "what": row.what,
        "elements": row.elements,
        "seconds": {name: float(f"{statistics.median(t):.4g}") for name, t in times.items()},
        "ratio": {
            name: round(statistics.median(a / b for a, b in zip(ours, t, strict=True)), 3)
            for name, t in times.items()
            if name != OURS
        },
    }


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Let nobody collect garbage meanwhile."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# ---------------------------------------------------------------------------------------------
# torch


def of_torch(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """An operator of torch: of a tensor, and of a tensor and where to write."""
    import torch

    if name == "relu":  # which has no out; it is this
        return torch.relu, lambda x, y: torch.clamp_min(x, 0, out=y)
    leaky = torch._C._nn.leaky_relu
    return leaky, lambda x, y: leaky(x, 0.01, out=y)


def same(ours: Any, theirs: Any) -> None:
    """Refuse to time what computes something else."""
    import torch

    for a, b in zip(ours, theirs, strict=True):
        if not torch.equal(a, b):
            raise SystemExit(f"results differ: {a} and {b}")


def small_calls() -> Iterator[Row]:
    """A few elements: what a call costs."""
    import torch

    from relu_ops.interop import torch as door

    for name in ("relu", "leaky_relu"):
        own, (theirs, _) = getattr(door, name), of_torch(name)
        for what, wanted in (("", False), (", recorded for a gradient", True)):
            x = torch.randn(16, requires_grad=wanted)
            same([own(x)], [theirs(x)])
            calls = {OURS: functools.partial(own, x), "torch": functools.partial(theirs, x)}
            yield Row("calls", f"{name} of 16 elements{what}", 16, alone, calls)


def companies() -> dict[str, Company]:
    """What torch does around a call."""
    import torch

    a, product = torch.randn(256, 256), torch.empty(256, 256)

    def after_product(call: Call) -> float:
        torch.mm(a, a, out=product)
        return once(call)

    def before_sum(call: Call) -> float:
        return once(lambda: call().sum())

    return {
        "alone": alone,
        "after a matrix product": after_product,
        "with a sum after it": before_sum,
    }


def in_company() -> Iterator[Row]:
    """Operators between others of torch."""
    import torch

    from relu_ops.interop import torch as door

    for name in ("leaky_relu", "relu"):
        op, own, (theirs, into) = (
            standard.operator(name, "float32"),
            getattr(door, name),
            of_torch(name),
        )
        for company, timed in companies().items():
            for size in SIZES.values():
                x = torch.randn(size)
                y = torch.empty_like(x)
                same([own(x)], [theirs(x)])
                given = {
                    OURS: functools.partial(op, x, out=y),
                    "torch": functools.partial(into, x, y),
                }
                fresh = {OURS: functools.partial(own, x), "torch": functools.partial(theirs, x)}
                yield Row("company", f"{name}, {company}, output given", size, timed, given)
                yield Row("company", f"{name}, {company}, new output", size, timed, fresh)


def compiled_calls() -> Iterator[Row]:
    """Under torch.compile, as one graph."""
    import torch

    from relu_ops.interop import torch as door

    functional = torch.nn.functional
    pairs = {
        "leaky_relu": (lambda x: door.leaky_relu(x), lambda x: functional.leaky_relu(x)),
        "relu": (lambda x: door.relu(x), lambda x: functional.relu(x)),
    }
    for name, pair in pairs.items():
        own, theirs = (torch.compile(f, fullgraph=True, dynamic=False) for f in pair)
        for size in SIZES.values():
            x = torch.randn(size)
            same([own(x)], [theirs(x)])
            calls = {
                OURS: functools.partial(own, x),
                "torch": functools.partial(getattr(functional, name), x),
                "torch.compile": functools.partial(theirs, x),
            }
            yield Row("compiled", f"{name}, compiled", size, alone, calls)


def training() -> Iterator[Row]:
    """Forward and backward of a chain."""
    import torch

    from relu_ops.interop import torch as door

    rows, channels = 2**15, 2**9
    own = door.wrap(graphs.scale_bias_leaky_relu(alpha=0.125, channels=channels))

    def eager(x: Any, scale: Any, bias: Any) -> Any:
        return torch.nn.functional.leaky_relu(x * scale + bias, 0.125)

    compiled = torch.compile(eager, fullgraph=True)
    for what, learned in (("x", 1), ("x, scale and bias", 3)):
        x, dy = torch.randn(rows, channels), torch.randn(rows, channels)
        inputs = (x, torch.randn(channels), torch.randn(channels))
        for one in inputs[:learned]:
            one.requires_grad_()

        def step(
            function: Callable[..., Any],
            inputs: Sequence[Any] = inputs,
            dy: Any = dy,
            learned: int = learned,
        ) -> Any:
            return torch.autograd.grad(function(*inputs), inputs[:learned], dy)

        same(step(own)[:1], step(eager)[:1])
        calls = {
            OURS: functools.partial(step, own),
            "torch": functools.partial(step, eager),
            "torch.compile": functools.partial(step, compiled),
        }
        name = f"leaky_relu(x * scale + bias) and the gradient of {what}"
        yield Row("training", name, rows * channels, once, calls)


# ---------------------------------------------------------------------------------------------
# JAX


def jax_rows() -> Iterator[Row]:
    """Every row of JAX."""
    import jax
    import jax.numpy as jnp

    from relu_ops.interop import jax as door

    own = {"relu": door.relu, "leaky_relu": door.leaky_relu}
    other = by_tvm_ffi()
    for name, function in own.items():
        contestants = {OURS: function, "jax.nn": getattr(jax.nn, name)}
        if name == "leaky_relu" and other:
            contestants["jax-tvm-ffi"] = other
        jitted = {key: jax.jit(one) for key, one in contestants.items()}
        for size in (16, *SIZES.values()):
            x = jnp.asarray(np.random.default_rng(0).standard_normal(size, np.float32))
            wanted = np.asarray(jitted["jax.nn"](x))
            for call in jitted.values():
                if not np.array_equal(np.asarray(call(x)), wanted):
                    raise SystemExit("results differ")
            calls = {key: functools.partial(ready, call, x) for key, call in jitted.items()}
            yield Row("jax", name, size, alone, calls)


def ready(call: Callable[..., Any], x: Any) -> None:
    """Call, and wait for the result."""
    call(x).block_until_ready()


def by_tvm_ffi() -> Callable[..., Any] | None:
    """The same kernel by jax-tvm-ffi; None where that is not installed."""
    if importlib.util.find_spec("jax_tvm_ffi") is None:
        return None
    import jax
    import jax_tvm_ffi

    from relu_ops.interop import tvm_ffi as packed

    operator = jit.compile(graphs.leaky_relu())
    jax_tvm_ffi.register_ffi_target(
        "relu_ops_by_tvm_ffi", packed.function(operator), platform="cpu"
    )
    return lambda x: jax.ffi.ffi_call(
        "relu_ops_by_tvm_ffi", jax.ShapeDtypeStruct(x.shape, x.dtype)
    )(x)


# ---------------------------------------------------------------------------------------------
# Showing

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))


def shown(seconds: float) -> str:
    """A time with three digits and its unit.

    >>> shown(3.14159e-6), shown(0.0271828), shown(4.56e-4)
    ('3.14 us', '27.2 ms', '456 us')
    """
    scale, unit = next((s, u) for s, u in _UNITS if seconds >= s or u == "us")
    number = seconds / scale
    digits = 2 if number < 10 else 1 if number < 100 else 0
    return f"{number:.{digits}f} {unit}"


def table(rows: Sequence[Mapping[str, Any]], labels: Mapping[int, str]) -> str:
    """Rows of one kind as a table of Markdown, a line for each job, size and contestants."""
    peers = list(dict.fromkeys(name for row in rows for name in row["ratio"]))
    sized = len({row["elements"] for row in rows}) > 1
    head = ["", *(["elements"] if sized else []), OURS]
    head += [text for peer in peers for text in (peer, "ratio")]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for row in rows:
        cells = [row["what"], *([labels[row["elements"]]] if sized else [])]
        cells.append(shown(row["seconds"][OURS]))
        for peer in peers:
            known = peer in row["ratio"]
            cells += (
                [shown(row["seconds"][peer]), f"{row['ratio'][peer]:.2f}"] if known else [""] * 2
            )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def wide_table(rows: Sequence[Mapping[str, Any]], labels: Mapping[int, str]) -> str:
    """Rows of one pair of contestants, a column for each size: time of ours, and the ratio."""
    sizes = list(dict.fromkeys(row["elements"] for row in rows))
    jobs = list(dict.fromkeys(row["what"] for row in rows))
    found = {(row["what"], row["elements"]): row for row in rows}
    lines = [f"| | {' | '.join(labels[n] for n in sizes)} |", f"| --- |{' ---: |' * len(sizes)}"]
    for job in jobs:
        cells = []
        for n in sizes:
            (ratio,) = found[job, n]["ratio"].values()
            cells.append(f"{shown(found[job, n]['seconds'][OURS])} ({ratio:.2f})")
        lines.append(f"| {job} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tables(record: Mapping[str, Any]) -> str:
    """A record as tables of Markdown, apart by empty lines."""
    labels = {16: "16", **{count: name for name, count in SIZES.items()}}
    kinds = list(dict.fromkeys(row["table"] for row in record["rows"]))
    made = []
    for kind in kinds:
        draw = wide_table if kind == "company" else table
        made.append(draw([row for row in record["rows"] if row["table"] == kind], labels))
    return "\n\n".join(made)


TABLES: dict[str, dict[str, Callable[[], Iterator[Row]]]] = {
    "torch": {
        "calls": small_calls,
        "company": in_company,
        "compiled": compiled_calls,
        "training": training,
    },
    "jax": {"jax": jax_rows},
}
"""What makes the rows of each table, when their turn comes: arrays of one row at a time."""


def recorded(options: argparse.Namespace, output: Path) -> dict[str, Any]:
    """Measure; give the record, with what an earlier one has of the tables that are left out.

    Raises:
        SystemExit: That one is of another machine.
    """
    usage, machine = environment.Usage(), environment.machine()
    kept = json.loads(output.read_text()) if options.table and output.exists() else {"rows": []}
    if kept["rows"] and kept["machine"]["cpu"] != machine["cpu"]:
        raise SystemExit(f"{output} is of another machine: measure all of its tables")
    rows = {row: [] for row in TABLES[options.framework]}
    for row in kept["rows"]:
        rows[row["table"]].append(row)
    for name, make in TABLES[options.framework].items():
        if options.table in (None, name):
            rows[name] = list(measured(make(), options.rounds))
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine,
        "software": environment.software(),
        "share_of_others": usage.share_of_others(),
        "rounds": options.rounds,
        "rows": [row for part in rows.values() for row in part],
    }


def measured(rows: Iterator[Row], rounds: int) -> Iterator[dict[str, Any]]:
    """Measure rows, and say what was found."""
    for row in rows:
        with without_collection():
            found = measure(row, rounds)
        print(found, file=sys.stderr)
        yield found


def main() -> int:
    """Measure and write, or show."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("framework", choices=TABLES)
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument("--output", type=Path, help="default: the record in docs/benchmarks")
    parser.add_argument("--rounds", type=int, default=151)
    parser.add_argument("--table", help="only the rows of this one; the record's others stay")
    options = parser.parse_args()
    output = options.output or RECORDS / f"{options.framework}.json"
    if not options.show:
        # torch.compile would take what another version of relu_ops had it write.
        with tempfile.TemporaryDirectory() as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            output.write_text(json.dumps(recorded(options, output), indent=1) + "\n")
    print(tables(json.loads(output.read_text())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
