"""Damaged models through the importer, in child processes that are watched from outside.

Each file is either imported or refused with an error of ours. The child does not die, needs at
most ten seconds and a gigabyte, and opens nothing outside of the model's folder: no file, no
socket, no program, by Python or by native code.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import mutations
import pytest
import watch
from onnx import TensorProto, helper

import relu_ops
from relu_ops.contract.semantics import MINIMUM_OPSET, OPERATORS

ROOT = Path(relu_ops.__file__).parents[1]
SECONDS_PER_MODEL = 10
MEMORY_BYTES = 2**30
"""What importing a batch may take beyond what the imported modules take."""

_IMPORTER = """
import collections, faulthandler, json, os, resource, socket, sys, time
from pathlib import Path
faulthandler.enable()
import mutations, watch
from relu_ops.compiler import frontend
from relu_ops.errors import ReluOpsError
folder, first, count, seconds, memory, descriptor = Path(sys.argv[1]), *map(int, sys.argv[2:])
models = [path.read_bytes() for path in sorted((folder / "whole").iterdir())]
frontend.import_model(models[0])
seeds = range(first, first + count)
for seed in seeds:
    (folder / f"{seed}.onnx").write_bytes(mutations.mutated(seed, models))
os.chdir("/")
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + memory
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
if descriptor >= 0:
    watch.report_to(socket.socket(fileno=descriptor))
outcomes, failures, slowest = collections.Counter(), [], 0.0
for seed in seeds:
    os.write(1, b"%d\\n" % seed)
    faulthandler.dump_traceback_later(seconds, exit=True)
    start = time.monotonic()
    try:
        frontend.import_model(folder / f"{seed}.onnx")
        outcomes["imported"] += 1
    except ReluOpsError as error:
        outcomes[type(error).__name__] += 1
    except BaseException as error:
        trace = error.__traceback__
        while trace.tb_next and "relu_ops" in trace.tb_next.tb_frame.f_code.co_filename:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_name}:{trace.tb_lineno}"
        failures.append(f"seed {seed}: {where}: {type(error).__name__}: {str(error)[:300]}")
    slowest = max(slowest, time.monotonic() - start)
faulthandler.cancel_dump_traceback_later()
os.write(1, json.dumps([outcomes, failures, slowest]).encode())
os._exit(0)
"""


@dataclass(frozen=True)
class Result:
    """What became of a batch."""

    outcomes: Counter[str]
    failures: list[str]
    slowest_seconds: float
    opened: int


def folder_for_models(folder: Path, models: list[bytes]) -> Path:
    """A folder of models, with what `mutations` names as places of external data."""
    inside = folder / "models"
    (inside / "whole").mkdir(parents=True)
    for k, content in enumerate(models):
        (inside / "whole" / f"{k:04}.onnx").write_bytes(content)
    (folder / "outside.bin").write_bytes(bytes(64))
    (inside / "inside.bin").write_bytes(bytes(64))
    (inside / "inner").mkdir()
    (inside / "link.bin").symlink_to(folder / "outside.bin")
    (inside / "linked").symlink_to("/etc")
    os.mkfifo(inside / "fifo")
    return inside


def import_mutated(folder: Path, first: int, count: int, watched: bool = True) -> Result:
    """Import `count` damaged models in a child."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        numbers = first, count, SECONDS_PER_MODEL, MEMORY_BYTES, theirs.fileno() if watched else -1
        child = subprocess.Popen(
            [sys.executable, "-c", _IMPORTER, str(folder), *map(str, numbers)],
            pass_fds=[theirs.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        guard = watch.Watch(ours, folder) if watched else None
        output, error = child.communicate(timeout=600)
        last = output.rpartition("\n")[2] or output.split("\n")[-2:]
        assert child.returncode == 0, f"exit code {child.returncode} at seed {last}: {error}"
        if guard is not None:
            guard.join(10)
            assert guard.violations == [], f"seeds from {first}"
    outcomes, failures, slowest = json.loads(output.rpartition("\n")[2])
    return Result(Counter(outcomes), failures, slowest, guard.opened if guard else 0)


def in_scope(model: object) -> bool:
    opsets = {o.domain or "ai.onnx": o.version for o in model.opset_import}  # type: ignore[attr-defined]
    nodes = model.graph.node  # type: ignore[attr-defined]
    return opsets.get("ai.onnx", 0) >= MINIMUM_OPSET and all(n.op_type in OPERATORS for n in nodes)


def official_models() -> Iterator[bytes]:
    from test_onnx_backend import node_cases

    for case in node_cases().values():
        if in_scope(case.model) and case.model.ByteSize() < 10_000:
            yield case.model.SerializeToString(deterministic=True)


def with_external_data() -> bytes:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "inside.bin"), ("offset", "4"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 2]) for n in "xy"]
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "external", info[:1], info[1:], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    return model.SerializeToString()


def shipped_models() -> list[bytes]:
    return [path.read_bytes() for path in sorted((ROOT / "models").glob("*.onnx"))]


def can_watch() -> bool:
    """Whether the kernel lets a process be watched: a container's own rules may forbid it."""
    code = "import socket, sys, watch; watch.report_to(socket.socket(fileno=int(sys.argv[1])))"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        done = subprocess.run(
            [sys.executable, "-c", code + "\nimport os; os._exit(7)", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            capture_output=True,
        )
    return done.returncode == 7


WATCHED = can_watch()


def check(folder: Path, batches: int, per_batch: int) -> tuple[Counter[str], float, int]:
    with ThreadPoolExecutor(2) as pool:
        firsts = [k * per_batch for k in range(batches)]
        results = list(pool.map(lambda f: import_mutated(folder, f, per_batch, WATCHED), firsts))
    failures = [failure for result in results for failure in result.failures]
    assert not failures, f"{len(failures)} models: " + "\n".join(failures[:20])
    outcomes = sum((result.outcomes for result in results), Counter[str]())
    # The damage must not be so heavy that only the parser is tested, nor so light that all pass.
    assert outcomes.total() == batches * per_batch
    assert set(outcomes) <= {"imported", "ModelError", "UnsupportedError"}
    assert all(count > outcomes.total() / 40 for count in outcomes.values()), outcomes
    return outcomes, max(r.slowest_seconds for r in results), sum(r.opened for r in results)


def test_damaged_models(tmp_path: Path) -> None:
    check(folder_for_models(tmp_path, [*shipped_models(), with_external_data()]), 2, 1000)


@pytest.mark.exhaustive
def test_a_hundred_thousand_damaged_models(tmp_path: Path) -> None:
    models = [*shipped_models(), with_external_data(), *official_models()]
    outcomes, slowest, opened = check(folder_for_models(tmp_path, models), 100, 1000)
    print(
        f"{len(models)} models to start from; {dict(outcomes)}; slowest {slowest:.2f} s; ", end=""
    )
    print(f"{opened} files opened, each in the model's folder; watched: {WATCHED}")


# ---------------------------------------------------------------- the checks can fail


_OPENS = {
    "a file, natively": "libc.open(b'/etc/passwd', 0)",
    "a file, by Python": "open('/etc/hostname')",
    "a link": "open('link.bin')",
    "a file for writing": "libc.open(b'inside.bin', 1)",
    "a socket": "libc.socket(2, 1, 0)",
    "a program": "os.execv('/bin/true', ['true'])",
}


@pytest.mark.skipif(not WATCHED, reason="the kernel does not let a process be watched here")
@pytest.mark.parametrize("what", _OPENS)
def test_the_watch_sees(what: str, tmp_path: Path) -> None:
    folder = folder_for_models(tmp_path, [])
    code = f"""
import ctypes, os, socket, sys, watch
libc = ctypes.CDLL(None)
watch.report_to(socket.socket(fileno=int(sys.argv[1])))
open("inside.bin").close()
try:
    {_OPENS[what]}
except OSError:
    pass
os._exit(0)
"""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(theirs.fileno())],
            cwd=folder,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        guard = watch.Watch(ours, folder)
        assert child.wait(30) == 0
        guard.join(10)
    assert len(guard.violations) == 1, guard.violations
    assert guard.opened == 1


def test_a_seed_is_a_reproduction() -> None:
    models = shipped_models()
    assert [mutations.mutated(k, models) for k in range(50)] == [
        mutations.mutated(k, models) for k in range(50)
    ]
    assert len({mutations.mutated(k, models) for k in range(200)}) > 190
