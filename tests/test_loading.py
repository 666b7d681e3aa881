"""Loading operators: nothing of an image runs before it is called, and nothing is left behind."""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import children
import numpy as np
import pytest
from cases import fresh

from relu_ops import compiler, graphs
from relu_ops.bundle import store as bundle
from relu_ops.compiler.cpu import disassembly
from relu_ops.errors import ArgumentError, ArgumentTypeError, BundleError, ReluOpsError
from relu_ops.native import _python as native
from relu_ops.runtime import dispatch

LEVEL = "x86-64-v2"


@pytest.fixture(scope="module")
def held() -> bundle.Bundle:
    return bundle.from_contents("<memory>", compiler.make(graphs.leaky_relu(alpha=0.5), [LEVEL]))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bundles")
    made = {"a": graphs.relu(), "b": graphs.relu6(), "c": graphs.add_relu()}
    for name, model in made.items():
        compiler.build(model, [LEVEL], folder / f"{name}.bundle")
    return [folder / f"{name}.bundle" for name in made]


def mapped() -> list[str]:
    """The lines of /proc/self/maps that are of images."""
    with open("/proc/self/maps") as file:
        return [line for line in file if "memfd:relu_ops" in line]


def resources() -> tuple[int, list[str]]:
    """How many mappings the process has, and which descriptors."""
    with open("/proc/self/maps") as file:
        return len(file.readlines()), sorted(os.listdir("/proc/self/fd"))


# ---------------------------------------------------------------- what is held, and for how long


def test_operators_of_one_bundle_share_a_mapping(held: bundle.Bundle) -> None:
    before = len(mapped())
    operators = [dispatch.operator_of(held) for _ in range(50)]
    assert len(mapped()) == before + 1
    assert len({id(op) for op in operators}) == 50


def test_a_mapping_lives_as_long_as_somebody_uses_it(paths: list[Path]) -> None:
    gc.collect()
    before = len(mapped())
    op = dispatch.load(paths[0])
    call = op.bind(np.array([-1, 2], np.float32))
    assert len(mapped()) == before + 1
    del op  # and the bundle with it
    gc.collect()
    assert len(mapped()) == before + 1
    call()
    assert call.out.tolist() == [0, 2]
    del call
    gc.collect()
    assert len(mapped()) == before


def test_a_thousand_loads_leave_nothing(paths: list[Path]) -> None:
    x = np.array([-1, 2], np.float32)
    refused = np.ones(3, np.int8)

    def load(count: int) -> None:
        for number in range(count):
            op = dispatch.load(paths[number % 2])
            assert op(x).tolist() == [0, 2]
            with pytest.raises(ArgumentTypeError):
                op(refused)
            op.bind(x)()

    load(20)
    gc.collect()
    before = resources()
    memory = resident_bytes()
    load(1000)
    gc.collect()
    after = resources()
    assert after[1] == before[1]
    assert after[0] - before[0] < 20  # the allocator's own
    assert resident_bytes() - memory < 16 << 20


def test_refusals_leave_nothing(paths: list[Path], held: bundle.Bundle, tmp_path: Path) -> None:
    content = dict(held.contents)
    damaged = {**content, f"{LEVEL}.image": content[f"{LEVEL}.image"][:-1]}
    shutil.copytree(paths[0], tmp_path / "short.bundle")
    (tmp_path / "short.bundle" / bundle.SUMS).write_bytes(b"")

    def refuse(count: int) -> None:
        for _ in range(count):
            for call in (
                lambda: bundle.from_contents("damaged", damaged),
                lambda: dispatch.load(tmp_path / "short.bundle"),
                lambda: dispatch.load(tmp_path / "none.bundle"),
                lambda: dispatch.load(paths[0], digest="0" * 64),
                lambda: dispatch.load(paths[0], name="other"),
                lambda: dispatch.load(paths[0], target="aarch64"),
                lambda: native.open_image("image", content[f"{LEVEL}.image"][:-1]),
            ):
                with pytest.raises(ReluOpsError):
                    call()

    refuse(5)
    gc.collect()
    before, memory = resources(), resident_bytes()
    refuse(300)
    gc.collect()
    after = resources()
    assert after[1] == before[1] and after[0] - before[0] < 20
    assert resident_bytes() - memory < 16 << 20


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_several_thousand_operators_at_once(held: bundle.Bundle) -> None:
    """Each of its own image, and none holds a descriptor: there may be 1,024 of those."""
    files = dict(held.contents)
    before = len(os.listdir("/proc/self/fd"))
    operators = [dispatch.operator_of(bundle.from_contents("x", files)) for _ in range(3000)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert operators[-1](np.array([-1, 2], np.float32)).tolist() == [-0.5, 2]


# ---------------------------------------------------------------- what is mapped, and how


def test_nothing_is_writable_and_executable(paths: list[Path]) -> None:
    code = """
import sys, threading
import numpy as np, relu_ops
from relu_ops.runtime import threads
threads.configure(threads.Settings(3, 0, 1 << 62))
operators = [relu_ops.load(path) for path in sys.argv[1:]]
operators[0](np.ones(100_000, np.float32))
with open("/proc/self/maps") as file:
    lines = [line.split() for line in file]
print(sum("memfd:relu_ops" in " ".join(line[5:]) for line in lines))
print([line for line in lines if "w" in line[1] and "x" in line[1]])
print({line[1] for line in lines if "memfd:relu_ops" in " ".join(line[5:])})
"""
    done = children.run(code, *paths)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "3\n[]\n{'r-xp'}\n"


def test_what_is_mapped_is_sealed(held: bundle.Bundle) -> None:
    before = {line.split()[0] for line in mapped()}
    fresh = bundle.from_contents("another", held.contents)  # what is mapped already is shared
    op = dispatch.operator_of(fresh)
    (place,) = {line.split()[0] for line in mapped()} - before
    try:
        file = os.open(f"/proc/self/map_files/{place}", os.O_RDONLY)
    except OSError as error:
        pytest.skip(f"the file of a mapping cannot be opened here: {error.strerror}")
    try:
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        assert fcntl.fcntl(file, fcntl.F_GET_SEALS) == seals
        assert os.pread(file, 1 << 20, 0) == held.image(LEVEL)
    finally:
        os.close(file)
    assert op.target == LEVEL


TRAP = b"\xcc"  # int3


def test_loading_runs_no_code(held: bundle.Bundle, tmp_path: Path) -> None:
    """Of code that is nothing but traps, nothing runs until it is called."""
    image = bytearray(held.image(LEVEL))
    for function in disassembly.functions(held.image(LEVEL), "leaky_relu"):
        image[function.at : function.at + len(function.code)] = TRAP * len(function.code)
    (tmp_path / "traps.image").write_bytes(image)
    code = """
import sys
import numpy as np
from relu_ops.native import _python as native
with open(sys.argv[1], "rb") as file:
    op = native.Operator(native.open_image("traps", file.read()))
print(op.name, op.inputs[0].name, op.output_shapes([(2, 3)]))
x = np.ones(3, np.float32)
call = op.bind(x)
try:
    op(x, out=np.ones(4, np.float32))
except ValueError:
    pass
op(x[:0])
print("loaded", flush=True)
call()
"""
    done = children.run(code, tmp_path / "traps.image")
    assert done.stdout == "leaky_relu x [(2, 3)]\nloaded\n"
    assert done.returncode == -signal.SIGTRAP


def test_an_image_that_was_changed_never_loads(held: bundle.Bundle) -> None:
    name = f"{LEVEL}.image"
    for at in range(0, len(held.contents[name]), 97):
        image = bytearray(held.contents[name])
        image[at] ^= 1
        with pytest.raises(BundleError, match=rf"{name} has the sha256 [0-9a-f]{{64}}"):
            bundle.from_contents("changed", {**held.contents, name: bytes(image)})


def test_what_is_no_image(held: bundle.Bundle) -> None:
    draw = np.random.default_rng(3)
    header = held.image(LEVEL)[:96]
    files = [Path(sys.executable), Path(native.__file__)]
    for content in (
        *(b"", b"\0", bytes(10_000), b"\x7fELF" + bytes(1000)),
        *(path.read_bytes()[:100_000] for path in files),
        *(header + draw.bytes(int(draw.integers(5000))) for _ in range(200)),
    ):
        with pytest.raises(BundleError, match=r"^image: ") as caught:
            native.open_image("image", content)
        assert len(caught.value.message) < 1000 and caught.value.message.isprintable()


# ---------------------------------------------------------------- threads and forks


def test_threads_that_load_at_once(held: bundle.Bundle) -> None:
    x, wrong = np.array([-1, 2], np.float32), []

    def work() -> None:
        for _ in range(100):
            twin = bundle.from_contents("<memory>", held.contents)
            if dispatch.operator_of(twin)(x).tolist() != [-0.5, 2]:
                wrong.append(1)

    gc.collect()
    before = len(mapped())
    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    gc.collect()
    assert not wrong and len(mapped()) == before


_FORKS = """
import os, sys, threading
import children
import numpy as np, relu_ops

x = np.array([-1, 2], np.float32)
paths, stop = sys.argv[1:3], threading.Event()
relu_ops.load(paths[0])(x)  # imports what it needs: Python's own locks of those outlive no fork

def load():
    while not stop.is_set():
        for path in paths:
            relu_ops.load(path).bind(x)()

threads = [threading.Thread(target=load, daemon=True) for _ in range(3)]
[thread.start() for thread in threads]
for number in range(40):
    child = os.fork()
    if child == 0:
        right = []
        def answer():
            right.append(relu_ops.load(paths[number % 2])(x).tolist() == [0, 2])
        answer()
        thread = threading.Thread(target=answer)
        thread.start()
        thread.join()
        os._exit(right != [True, True])
    code = children.wait(child, 20)
    if code:
        break
stop.set()
sys.exit(code and f"child {number}: exit code {code}")
"""


def test_forks_while_other_threads_load(paths: list[Path]) -> None:
    done = children.run(_FORKS, *paths[:2])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---------------------------------------------------------------- names and variables


def test_names_are_printable_wherever_they_are_shown() -> None:
    model = graphs.scale_bias_leaky_relu()
    model.graph.name = "evil\x1b[2J"
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "rows\x07"
    op = fresh(model, LEVEL)
    assert repr(op).startswith("<relu_ops.Operator evil\\x1b[2J(x: float32[rows\\x07, channels], ")
    assert op.name == op.__name__ == "evil\\x1b[2J"
    x = np.ones((2, 3), np.float32)
    for call in (
        lambda: op(1),
        lambda: op(x, x, x),
        lambda: op.output_shapes([(2, 3), (2,), (3,)]),
        lambda: op.compute((x, x[0], x[0], x[:1])),
    ):
        with pytest.raises((ArgumentError, ArgumentTypeError)) as caught:
            call()
        shown = str(caught.value).replace("\n", " ")
        assert shown.isprintable() and shown.startswith("evil\\x1b[2J")


def test_a_wrong_variable_is_no_fault_of_the_bundle(paths: list[Path]) -> None:
    code = """
import sys
import relu_ops
from relu_ops.errors import ArgumentError
for _ in range(2):
    try:
        relu_ops.load(sys.argv[1])
    except ArgumentError as error:
        print(error)
"""
    done = children.run(code, paths[0], RELU_OPS_NUM_THREADS="many")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == 2 * (
        "RELU_OPS_NUM_THREADS must be 1 to 256 (not 'many')\n"
        "hint: unset it for as many threads as the process may use\n"
    )
