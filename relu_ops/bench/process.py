"""Figures of whole processes: cold start to the first result, peak memory, installed size, builds.

Each snippet is what a user of that package would write to compute relu of 16 floats once, with
nothing of the benchmark around it. Processes take turns, as calls do.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from relu_ops.bench import peers, record
from relu_ops.bench.peers import litert
from relu_ops.bench.record import Process
from relu_ops.errors import MissingDependencyError
from relu_ops.native import _python

ROUNDS = 5
BUILDS = 5
ESTIMATED_SECONDS = 75
_TIMEOUT_SECONDS = 180
_PROJECT = Path(__file__).parents[2] / "pyproject.toml"

_BEFORE = """
import sys
model, bundle, library, lite = sys.argv[1:]
"""
_INPUT = "import numpy as np\nx = np.linspace(-1, 1, 16, dtype=np.float32)\n"
_AFTER = """
import json, time
seconds = time.clock_gettime(time.CLOCK_MONOTONIC)
# Not getrusage: its peak is that of the process that started this one, where that was larger.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([seconds, int(peak.split()[1]) * 1024]))
"""


@dataclass(frozen=True)
class Snippet:
    """One row of the table.

    Attributes:
        name: A name of `peers.PEERS`, or "python".
        code: Computes y from x, given the paths `model`, `bundle`, `library` (of TVM's)
            and `lite` (for LiteRT).
        rounds: How many processes.
    """

    name: str
    code: str
    rounds: int = ROUNDS


SNIPPETS: tuple[Snippet, ...] = (
    Snippet("python", "y = None"),
    Snippet("relu_ops", "import relu_ops\ny = relu_ops.load(bundle)(x)"),
    Snippet("numpy", "y = np.maximum(x, 0)"),
    Snippet(
        "onnxruntime",
        "import onnxruntime\n"
        "session = onnxruntime.InferenceSession(model, providers=['CPUExecutionProvider'])\n"
        "y = session.run(None, {'x': x})[0]",
    ),
    Snippet(
        "tvm",
        "import tvm\nfrom tvm import relax\n"
        "machine = relax.VirtualMachine(tvm.runtime.load_module(library), tvm.cpu())\n"
        "y = machine['main'](tvm.runtime.tensor(x)).numpy()",
    ),
    Snippet("torch", "import torch\ny = torch.relu(torch.from_numpy(x)).numpy()"),
    Snippet(
        "torch_compile",
        "import torch\ny = torch.compile(torch.relu)(torch.from_numpy(x)).numpy()",
        rounds=2,
    ),
    Snippet(
        "numba",
        "import numba\n"
        "@numba.njit\n"
        "def relu(x, y):\n"
        "    for i in range(x.size):\n"
        "        y[i] = np.float32(0) if x[i] < 0 else x[i]\n"
        "y = np.empty_like(x)\nrelu(x, y)",
    ),
    Snippet(
        "openvino",
        "import openvino\ny = openvino.Core().compile_model(model, 'CPU')([x])[0]",
    ),
    Snippet(
        "litert",
        "from ai_edge_litert.interpreter import Interpreter\n"
        "interpreter = Interpreter(lite)\ninterpreter.allocate_tensors()\n"
        "interpreter.set_tensor(interpreter.get_input_details()[0]['index'], x)\n"
        "interpreter.invoke()\n"
        "y = interpreter.get_tensor(interpreter.get_output_details()[0]['index'])",
    ),
    Snippet("jax", "import jax\ny = np.asarray(jax.jit(jax.nn.relu)(x))"),
)


def measure() -> Iterator[Process | None]:
    """Start the processes, round by round.

    Yields:
        None once for each second of `ESTIMATED_SECONDS` that has passed; at the end a `Process`
        for each snippet whose package is here and whose process succeeded.
    """
    rows = [s for s in SNIPPETS if s.name == "python" or peers.why_not(peers.find(s.name)) is None]
    samples: dict[str, list[tuple[float, int]]] = {s.name: [] for s in rows}
    work = sum(s.rounds for s in rows)
    done = ticks = 0
    with tempfile.TemporaryDirectory(prefix="relu_ops_bench_") as folder:
        arguments = _files(Path(folder))
        for number in range(ROUNDS):
            for snippet in rows[number % len(rows) :] + rows[: number % len(rows)]:
                if number >= snippet.rounds:
                    continue
                sample = _start(snippet, arguments, Path(folder) / f"cache{number}")
                if sample is not None:
                    samples[snippet.name].append(sample)
                done += 1
                for _ in range(ticks, ESTIMATED_SECONDS * done // work):
                    ticks += 1
                    yield None
    for snippet in rows:
        found = samples[snippet.name]
        if found:
            yield Process(
                snippet.name,
                record.rounded(seconds for seconds, _ in found),
                max(peak for _, peak in found),
                0 if snippet.name == "python" else installed_bytes(snippet.name),
            )


def _files(folder: Path) -> list[str]:
    """What snippets are given: the same graph in four forms."""
    import numpy as np
    import onnx

    from relu_ops import compiler, graphs

    names = ("relu.onnx", "relu.bundle", "tvm.so", "relu.tflite")
    model, bundle, library, lite = (folder / name for name in names)
    onnx.save(graphs.with_rank(graphs.relu(), 1), model)
    compiler.build(graphs.relu(), ["native"], bundle)
    _export_tvm(library)
    if peers.why_not(peers.find("litert")) is None:
        x = np.zeros(16, np.float32)
        lite.write_bytes(litert.model("relu", [x], x.shape, 0.0))
    return [str(path) for path in (model, bundle, library, lite)]


def _export_tvm(path: Path) -> None:
    import tvm
    from tvm.relax.frontend.onnx import from_onnx

    from relu_ops import graphs, targets

    module = from_onnx(graphs.with_rank(graphs.relu(), 1), shape_dict={"x": [16]})
    target = tvm.target.Target({"kind": "llvm", "mcpu": targets.native().name})
    tvm.compile(module, target).export_library(str(path))


def _start(snippet: Snippet, arguments: list[str], cache: Path) -> tuple[float, int] | None:
    """Seconds to the first result and peak memory of one process; None where it failed."""
    code = _BEFORE + (_INPUT if snippet.name != "python" else "") + snippet.code + _AFTER
    # A compiler's cache would make the second start a warm one.
    environment = os.environ | {
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "TRITON_CACHE_DIR": str(cache),
        "NUMBA_CACHE_DIR": str(cache),
        "JAX_PLATFORMS": "cpu",
    }
    start = time.clock_gettime(time.CLOCK_MONOTONIC)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    end, peak = json.loads(done.stdout.splitlines()[-1])
    return end - start, int(peak)


# ---------------------------------------------------------------------------------------------
# Installed sizes


def installed_bytes(name: str) -> int:
    """The size of a peer's package and of everything that it needs, as pip installed them."""
    package = peers.find(name).package
    total = _own_bytes() if package == "relu_ops" else 0
    return total + sum(_files_bytes(one) for one in _closure(package))


def _closure(package: str) -> set[str]:
    """A package and what it needs, by normalized name; extras left out."""
    found: set[str] = set()
    pending = [package]
    while pending:
        name = re.sub(r"[-_.]+", "-", pending.pop()).lower()
        if name not in found:
            found.add(name)
            pending += [_name(need) for need in _needs(name) if _applies(need)]
    return found - {"relu-ops"}


def _needs(name: str) -> list[str]:
    """The requirements of a package, by normalized name; none of one that is not installed.

    Raises:
        MissingDependencyError: It is relu_ops itself, neither installed nor run from its source
            tree: a size without what it needs would be wrong.
    """
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return _own_needs(_PROJECT) if name == "relu-ops" else []


def _own_needs(project: Path) -> list[str]:
    try:
        text = project.read_text(encoding="utf-8")
    except OSError as error:
        raise MissingDependencyError(
            f"bench: relu_ops is not installed, and what it needs cannot be read from {project}: "
            f"{error.strerror}",
            "install relu_ops with pip, or run it from its source tree",
        ) from error
    needs: list[str] = tomllib.loads(text)["project"]["dependencies"]
    return needs


def _name(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    return match[0] if match else requirement


def _applies(requirement: str) -> bool:
    """True where a requirement's marker holds here; one of an extra does not."""
    if ";" not in requirement:
        return True
    from packaging.requirements import Requirement  # comes with matplotlib, in the extra bench

    marker = Requirement(requirement).marker
    return marker is None or marker.evaluate({"extra": ""})


def _files_bytes(package: str) -> int:
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        return 0
    return sum(_size(Path(str(f.locate()))) for f in files if f.suffix != ".pyc")


def _own_bytes() -> int:
    """What relu_ops itself takes: its sources and, wherever those were put, its compiled files."""
    sources, compiled = Path(__file__).parents[1], Path(_python.__file__).parent
    files = {path.resolve() for folder in (sources, compiled) for path in folder.rglob("*")}
    return sum(_size(path) for path in files if path.suffix not in (".pyc", ".c"))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


# ---------------------------------------------------------------------------------------------
# Builds


def build_seconds(model: bytes, target: str) -> list[float]:
    """How long it takes to compile a model for a target, several times, with no cache."""
    from relu_ops import compiler

    seconds = []
    for _ in range(BUILDS):
        start = time.perf_counter()
        compiler.make(model, [target])
        seconds.append(time.perf_counter() - start)
    return seconds
