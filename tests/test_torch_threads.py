"""Calls on tensors of torch run on torch's own threads: seen by a library that counts its regions.

It stands before torch's OpenMP runtime, where the loader looks first, and hands every region on.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import children
import pytest

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed: pip install 'relu_ops[torch]'", allow_module_level=True)

COUNTER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);
static int count;
int regions(void) { return count; }

/* A team of which only some come, one after the other; or the runtime's own. */
int team, come;
static int number;
static void* of_runtime(const char* name) {
  return dlsym(dlopen("libgomp.so.1", RTLD_LAZY | RTLD_NOLOAD), name);
}
int omp_get_num_threads(void) {
  return team ? team : ((int (*)(void))(uintptr_t)of_runtime("omp_get_num_threads"))();
}
int omp_get_thread_num(void) {
  return team ? number : ((int (*)(void))(uintptr_t)of_runtime("omp_get_thread_num"))();
}
void GOMP_parallel(void (*f)(void*), void* data, unsigned threads, unsigned flags) {
  __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED);
  if (!team) ((Parallel)(uintptr_t)of_runtime("GOMP_parallel"))(f, data, threads, flags);
  for (number = 0; team && number < come; ++number) f(data);
}
"""

START = """
import ctypes, os, sys, threading
counter = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
import numpy as np
import torch
import children, relu_ops
from relu_ops import graphs
from relu_ops.interop import torch as door

torch.set_num_threads(2)
relu_ops.set_num_threads(2)
op = relu_ops.compile(graphs.relu())
x = torch.randn(1 << 20)
wanted = torch.relu(x)

def regions(call, right=wanted):
    before = counter.regions()
    y = call()
    count = counter.regions() - before  # torch.equal is divided too
    assert torch.equal(torch.as_tensor(y), right)
    return count
"""


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    if "ATen parallel backend: OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("this torch does not use OpenMP")
    if not (Path(torch.__file__).parent / "lib" / "libgomp.so.1").exists():
        pytest.skip("this torch has no libgomp.so.1 of its own")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no cc on PATH")
    folder = tmp_path_factory.mktemp("counter")
    (folder / "counter.c").write_text(COUNTER)
    command = [compiler, "-shared", "-fPIC", "-o", "counter.so", "counter.c", "-ldl"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "counter.so"


def passes(counter: Path, code: str, **environment: str) -> None:
    done = children.run(START + code, counter, **environment)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_one_region_a_call(counter: Path) -> None:
    passes(
        counter,
        """
y = torch.empty_like(x)
assert regions(lambda: torch.relu(x)) == 1  # what is counted
assert regions(lambda: op(x)) == regions(lambda: op(x, out=y)) == 1
assert regions(lambda: door.relu(x)) == 1
leaf = x.clone().requires_grad_()
assert regions(lambda: door.relu(leaf)) == 1
assert regions(lambda: op(x, threads=2)) == 1
""",
    )


def test_several_outputs(counter: Path) -> None:
    passes(
        counter,
        """
import onnx.parser
both = relu_ops.compile(onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 18]>
both (float[N] x) => (float[N] y, float[N] z) { y = Relu(x)  z = Neg(x) }'''))
assert regions(lambda: both(x)[0]) == 1
outs = (torch.empty_like(x), torch.empty_like(x))
assert regions(lambda: both(x, out=outs)[0]) == 1
y, z = both(x, out=outs)
assert y is outs[0] and z is outs[1] and torch.equal(z, -x)
y, z = both(x)
assert type(y) is type(z) is torch.Tensor and torch.equal(z, -x) and torch.equal(y, wanted)
""",
    )


def test_who_computes_what(counter: Path) -> None:
    """Each the part that torch gives to a thread of its number; who is late, only its beginning."""
    passes(
        counter,
        """
team, come = (ctypes.c_int.in_dll(counter, name) for name in ("team", "come"))
nan = float("nan")

def left_over(threads, coming, size, given=None):
    some, y = x[:size], torch.full((size,), nan)
    team.value, come.value = threads, coming
    op(some, out=y, threads=given)
    team.value = 0
    left = torch.isnan(y)
    assert torch.equal(y[~left], torch.relu(some)[~left])
    starts = torch.nonzero(left & ~torch.cat((torch.tensor([False]), left[:-1])))
    return [k.item() / size for k in starts], left.sum().item() / size

n = 1 << 20
assert left_over(2, 1, n) == ([2 / 4], 1 / 4)  # two chunks each
assert left_over(2, 1, n // 4) == ([1 / 2], 1 / 2)  # one
assert left_over(2, 2, n) == left_over(3, 2, n) == left_over(1, 1, n) == ([], 0)
assert left_over(4, 1, n, given=2) == ([2 / 4], 1 / 4)
torch.set_num_threads(8)
relu_ops.set_num_threads(8)
assert left_over(8, 6, n) == ([6 / 8], 2 / 8)
assert left_over(8, 8, n) == left_over(5, 5, n) == ([], 0)

import onnx.parser
prelu = relu_ops.compile(onnx.parser.parse_model('''<ir_version: 8, opset_import: ["" : 18]>
prelu (float[A,B,C,D,E,F] x, float[A,1,C,1,E,1] slope) => (float[A,B,C,D,E,F] y)
{ y = PRelu(x, slope) }'''))
few, slope = torch.randn((6,) * 6), torch.full((6, 1) * 3, 0.5)  # no two dimensions are one
right = torch.where(few < 0, few * 0.5, few)
team.value = come.value = 8
prelu(few, slope, out=few)  # in place: nothing may be computed twice
assert torch.equal(few, right)
""",
    )


def test_nobody_else_uses_them(counter: Path) -> None:
    passes(
        counter,
        """
op(x)
array = x.numpy()
assert regions(lambda: op(array)) == 0
assert regions(lambda: relu_ops.relu(array)) == 0
few = torch.randn(30_000)
assert regions(lambda: op(few), torch.relu(few)) == 0
""",
    )


def test_the_number_of_threads_is_heeded(counter: Path) -> None:
    passes(
        counter,
        """
assert regions(lambda: op(x, threads=1)) == 0
torch.set_num_threads(1)
assert regions(lambda: op(x)) == 0

def in_a_thread():  # to which torch says the number when it first asks
    seen.append(regions(lambda: op(x)))

seen = []
thread = threading.Thread(target=in_a_thread)
thread.start()
thread.join()
assert seen == [0]
torch.set_num_threads(4)
for threads in (2, 3, 4, None):  # more chunks than threads, and fewer threads than the team has
    assert regions(lambda: op(x, threads=threads)) == 1
relu_ops.set_num_threads(1)
assert regions(lambda: op(x)) == 0
""",
    )


@pytest.mark.parametrize(("threads", "regions"), [("1", 0), ("2", 1)])
def test_the_number_in_the_environment_is_heeded(counter: Path, threads: str, regions: int) -> None:
    code = """
import ctypes, sys
counter = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
import torch, relu_ops
from relu_ops import graphs
relu_ops.set_num_threads(2)
op, x = relu_ops.compile(graphs.relu()), torch.ones(1 << 20)
before = counter.regions()
op(x)
print(counter.regions() - before)
"""
    done = children.run(code, counter, OMP_NUM_THREADS=threads)
    assert (done.stdout, done.stderr) == (f"{regions}\n", "")


def test_inside_of_a_region_a_call_is_alone(counter: Path) -> None:
    passes(
        counter,
        """
found = []
def inside(_):
    before = counter.regions()
    found.append((torch.equal(op(few), right), counter.regions() - before))

few = x[: 1 << 16].clone()
right = torch.relu(few)
op(few)
kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
with torch.no_grad():
    counter.GOMP_parallel(kind(inside), None, 2, 0)
assert found == [(True, 0)] * 2, found
""",
    )


def test_many_threads_of_python(counter: Path) -> None:
    passes(
        counter,
        """
failures = []
def work(seed):
    mine = torch.randn(300_000, generator=torch.Generator().manual_seed(seed))
    for _ in range(20):
        leaf = mine.clone().requires_grad_()
        y = door.relu(leaf)
        y.backward(y.detach())
        if not (torch.equal(y, torch.relu(mine)) and torch.equal(leaf.grad, y)):
            failures.append(seed)

threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failures
""",
    )


# The team of the parent is in no child: torch's own operators wait there for it, and so would ours.
FORKED = """
child = os.fork()
if child == 0:
    before = counter.regions()
    good = all(np.array_equal(op(x).numpy(), wanted.numpy()) for _ in range(3))
    os._exit(0 if good and counter.regions() == before else 1)
assert children.wait(child, 30) == 0
assert regions(lambda: op(x)) == 1  # the parent goes on as before
"""


def test_a_forked_child(counter: Path) -> None:
    passes(counter, f"op(x)\n{FORKED}")


def test_a_child_that_was_forked_before_torch_was_met(counter: Path) -> None:
    passes(counter, FORKED)


def test_a_child_that_was_forked_before_all(counter: Path) -> None:
    code = """
import ctypes, os, sys
import torch
torch.set_num_threads(2)
x = torch.randn(1 << 20)
wanted = torch.relu(x)
child = os.fork()
if child == 0:
    import numpy as np
    import relu_ops
    from relu_ops import graphs
    relu_ops.set_num_threads(2)
    op = relu_ops.compile(graphs.relu())
    os._exit(0 if np.array_equal(op(x).numpy(), wanted.numpy()) else 1)
import children
assert children.wait(child, 60) == 0
"""
    done = children.run(code)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


def test_a_forked_child_heeds_the_number_of_threads(counter: Path) -> None:
    """As workers of a DataLoader, which have one."""
    passes(
        counter,
        """
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    tasks = len(os.listdir("/proc/self/task"))
    for _ in range(50):
        op(x)
    alone = len(os.listdir("/proc/self/task")) == tasks
    torch.set_num_threads(2)
    for _ in range(50):
        op(x)
    shared = len(os.listdir("/proc/self/task")) == tasks + 1  # our pool has a worker of its own
    os._exit(0 if alone and shared else 1)
assert children.wait(child, 30) == 0
""",
    )
