"""Threads, forks, signals and exits around an operator in use.

Whatever a server does to a process, a call gives the right bits, or the process does what it was
told to: it never hangs and never crashes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import children
import pytest

from relu_ops import compiler, config, graphs


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "leaky.bundle"
    compiler.build(graphs.leaky_relu(alpha=0.5), ["native"], path)
    return path


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An operator whose calls take long without much memory: divisions in a row."""
    steps = "\n".join(f"a{k + 1} = Div(a{k}, d)" for k in range(400))
    text = f"""<ir_version: 8, opset_import: ["" : 18]>
    slow (double[N] a0, double[N] d) => (double[N] a400) {{ {steps} }}"""
    path = tmp_path_factory.mktemp("bundles") / "slow.bundle"
    import onnx.parser

    compiler.build(onnx.parser.parse_model(text), ["native"], path)
    return path


def run_script(
    code: str, *arguments: object, seconds: float = 120, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program, from a file where a folder is given: multiprocessing imports it again."""
    start = ["-c", code]
    if folder is not None:
        (folder / "program.py").write_text(code)
        start = [str(folder / "program.py")]
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        env=children.of_forks(),
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def assert_fine(done: subprocess.CompletedProcess[str], output: str = "") -> None:
    assert (done.returncode, done.stdout, done.stderr) == (0, output, "")


# ---------------------------------------------------------------- threads


_THREADS = """
import sys, threading
import numpy as np, relu_ops
from relu_ops.runtime.threads import Settings, configure
op = relu_ops.load(sys.argv[1])
count, calls, parallel_bytes = map(int, sys.argv[2:])
configure(Settings(3, parallel_bytes, 1 << 62))
start = threading.Barrier(count)
right = []
def work(number):
    x = np.linspace(-5, 5, 100 + 37 * number, dtype=np.float32)
    want = np.where(x < 0, x * np.float32(0.5), x)
    outs = [np.empty_like(x), np.empty(2 * len(x), np.float32)[::2]]
    bound = op.bind(x, out=outs[0])
    start.wait()
    for k in range(calls):
        out = outs[k % 2]
        out[...] = 42
        if k % 3 == 0:
            out = op(x)
        elif k % 6 == 4:
            bound()
        else:
            op(x, out=out)
        if not (out == want).all():
            return
    right.append(number)
threads = [threading.Thread(target=work, args=(k,)) for k in range(count)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(right))
"""


@pytest.mark.parametrize("parallel_bytes", [0, 1 << 62], ids=["pool", "alone"])
def test_threads_on_one_operator(bundle: Path, parallel_bytes: int) -> None:
    assert_fine(run_script(_THREADS, bundle, 64, 100, parallel_bytes), "64\n")


@pytest.mark.exhaustive
@pytest.mark.parametrize("parallel_bytes", [0, 1 << 62], ids=["pool", "alone"])
def test_64_threads_of_10_000_calls(bundle: Path, parallel_bytes: int) -> None:
    assert_fine(run_script(_THREADS, bundle, 64, 10_000, parallel_bytes, seconds=600), "64\n")


_UNDER_WAY = """
import functools, sys, threading, time, weakref
import numpy as np, relu_ops
how = sys.argv[2]
op = relu_ops.load(sys.argv[1])
x, d = np.full(200_000, 3.0), np.full(200_000, 1.0)
alive, out = weakref.ref(x), np.zeros_like(x)
if how == "bound":
    call = functools.partial(op.bind(x, d, out=out))
else:
    call = functools.partial(op, x, d, out=out)
del x, d, op
caller = threading.Thread(target=call)
caller.start()
while not out[0]:
    time.sleep(0.001)
call.__setstate__((int, (), {}, {}))  # frees what it held: the operator and the arrays
print(alive() is not None or not caller.is_alive())
caller.join()
print((out == 3).all(), alive() is None)
"""


@pytest.mark.parametrize("how", ["bound", "operator"])
def test_a_call_under_way_outlives_what_it_was_made_of(slow: Path, how: str) -> None:
    """Another thread may change a partial while it is called: that call still ends well."""
    assert_fine(run_script(_UNDER_WAY, slow, how), "True\nTrue True\n")


# ---------------------------------------------------------------- forks


_FORKS = """
import multiprocessing, sys, threading, time
import numpy as np, relu_ops

path, method, count, busy = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "busy"
SECONDS = 2.0

def answer(connection, begun):
    relu_ops.set_num_threads(2)
    x = np.linspace(-1, 1, 200_000, dtype=np.float32)
    y = relu_ops.load(path)(x)
    connection.send((bool((y == np.where(x < 0, x * np.float32(0.5), x)).all()), time.time()))

if __name__ == "__main__":
    relu_ops.set_num_threads(2)
    op = relu_ops.load(path)
    x = np.linspace(-1, 1, 200_000, dtype=np.float32)
    op(x)
    stop = threading.Event()
    def call():
        while not stop.is_set():
            op(x)
    callers = [threading.Thread(target=call) for _ in range(2 if busy else 0)]
    for caller in callers:
        caller.start()
    context = multiprocessing.get_context(method)
    slowest = 0.0
    for number in range(count):
        ours, theirs = context.Pipe()
        begun = time.time()
        child = context.Process(target=answer, args=(theirs, begun))
        child.start()
        theirs.close()
        if not ours.poll(SECONDS):
            child.kill()
            sys.exit(f"child {number} did not answer in {SECONDS} s")
        try:
            right, answered = ours.recv()
        except EOFError:
            child.join()
            sys.exit(f"child {number} died: exit code {child.exitcode}")
        slowest = max(slowest, answered - begun)
        child.join(SECONDS)
        if not right or child.exitcode != 0:
            sys.exit(f"child {number}: right {right}, exit code {child.exitcode}")
    stop.set()
    for caller in callers:
        caller.join()
    print(f"{count} children by {method}, slowest {slowest:.3f} s")
"""


@pytest.mark.parametrize(
    ("method", "count", "busy"),
    [("fork", 20, "idle"), ("fork", 20, "busy"), ("forkserver", 3, "idle"), ("spawn", 2, "idle")],
)
def test_children_answer(bundle: Path, tmp_path: Path, method: str, count: int, busy: str) -> None:
    done = run_script(_FORKS, bundle, method, count, busy, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.exhaustive
@pytest.mark.parametrize("busy", ["idle", "busy"])
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_200_children_answer(bundle: Path, tmp_path: Path, method: str, busy: str) -> None:
    done = run_script(_FORKS, bundle, method, 200, busy, folder=tmp_path, seconds=600)
    assert (done.returncode, done.stderr) == (0, "")
    print(busy, done.stdout, end="")


_WORKERS = """
import os, sys, time
import numpy as np, relu_ops
from relu_ops.runtime.threads import Settings, configure

def workers():
    return len(os.listdir("/proc/self/task")) - 1

def call(op, times):
    x = np.linspace(-1, 1, 100_000, dtype=np.float32)
    want = np.where(x < 0, x * np.float32(0.5), x)
    return all((op(x) == want).all() for _ in range(times))

configure(Settings(4, 0, 1 << 62))
op = relu_ops.load(sys.argv[1])
before = workers()
right = call(op, 20)
print(right, workers() - before, flush=True)
for depth in range(3):
    child = os.fork()
    if child:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    alone = workers()
    right = call(op, 20)
    print(alone, right, workers(), flush=True)
os._exit(0)
"""


def test_a_child_starts_workers_of_its_own(bundle: Path) -> None:
    """It begins with the thread that forked, and has as many as its parent once it needs them."""
    done = run_script(_WORKERS, bundle, seconds=60)
    assert_fine(done, "True 3\n" + "0 True 3\n" * 3)


# ---------------------------------------------------------------- one pool a process


def built(folder: Path, name: str, source: str, *arguments: str) -> Path:
    """Compile some C with what the package says; skips where there is no compiler."""
    command = shutil.which("cc") or shutil.which("gcc")
    if command is None:
        pytest.skip("no C compiler on PATH")
    (folder / f"{name}.c").write_text(source)
    flags = config.values()["cflags"].split()
    made = folder / name
    subprocess.run(
        [command, *flags, str(folder / f"{name}.c"), *arguments, "-o", str(made)], check=True
    )
    return made


_SECOND = """
#include <relu_ops.h>
#include <stdlib.h>
/* Another user of the core in one process: calls an operator, with 4 threads. 0: all went well. */
int call(const char* path) {
  relu_ops_bundle* bundle;
  relu_ops_operator* op;
  enum { N = 100000 };
  int64_t shape[1] = {N};
  float *x = malloc(sizeof(float) * N), *y = malloc(sizeof(float) * N);
  for (int k = 0; k < N; ++k) x[k] = (float)(k - N / 2);
  DLTensor in = {.data = x, .device = {kDLCPU, 0}, .ndim = 1, .dtype = {kDLFloat, 32, 1},
                 .shape = shape}, out = in;
  out.data = y;
  if (relu_ops_require(RELU_OPS_API) || relu_ops_open(path, NULL, &bundle)) return 1;
  if (relu_ops_load(bundle, NULL, NULL, &op)) return 2;
  relu_ops_close(bundle);
  relu_ops_options options = {.threads = 4};
  for (int turn = 0; turn < 20; ++turn)
    if (relu_ops_call(op, &in, &out, &options)) return 3;
  for (int k = 0; k < N; ++k)
    if (y[k] != (x[k] < 0 ? x[k] / 2 : x[k])) return 4;
  relu_ops_release(op);
  free(x);
  free(y);
  return 0;
}
"""

_SHARED = """
import ctypes, os, sys
bundle, second, core, order = sys.argv[1:]

def workers():
    return len(os.listdir("/proc/self/task")) - 1

def by_python():
    import numpy as np, relu_ops
    from relu_ops.runtime.threads import Settings, configure
    configure(Settings(4, 0, 1 << 62))
    op = relu_ops.load(bundle)
    x = np.linspace(-1, 1, 100_000, dtype=np.float32)
    return all((op(x, threads=4) == np.where(x < 0, x / 2, x)).all() for _ in range(20))

def by_c():
    return ctypes.CDLL(second).call(os.fsencode(bundle)) == 0

def by_ctypes():
    opened = ctypes.CDLL(core)
    function = opened.relu_ops_version
    function.restype = ctypes.c_char_p
    return function().decode() != ""

import numpy
before = workers()  # of NumPy's own
started = []
for who in order.split(","):
    right = {"python": by_python, "c": by_c, "ctypes": by_ctypes}[who]()
    started.append((right, workers() - before))
with open("/proc/self/maps") as file:
    cores = {line.split()[-1] for line in file if "librelu_ops" in line}
print(started, len(cores))
"""


@pytest.mark.parametrize("order", ["python,c,ctypes,python", "c,python,ctypes,c"])
@pytest.mark.parametrize("where", ["beside the package", "elsewhere"])
def test_all_share_one_pool(bundle: Path, tmp_path: Path, order: str, where: str) -> None:
    """Python, a C library that is linked to the core, and who opens the core itself.

    Also one that would find another copy of the core: of one name there is one in a process.
    """
    core = Path(config.values()["library"])
    folder = core.parent
    if where == "elsewhere" and order.startswith("python"):
        folder = tmp_path / "copy"
        folder.mkdir()
        shutil.copy(core, folder)
    link = ["-shared", "-fPIC", f"-L{folder}", "-lrelu_ops", f"-Wl,-rpath,{folder}"]
    second = built(tmp_path, "second.so", _SECOND, *link)
    done = run_script(_SHARED, bundle, second, core, order, seconds=60)
    assert_fine(done, f"{[(True, 3)] * 4} 1\n")


_UNLOADED = """
import ctypes, _ctypes, gc, os, sys, time
bundle, second, core = sys.argv[1:]

def workers():
    return len(os.listdir("/proc/self/task")) - 1

for turn in range(3):
    opened = [ctypes.CDLL(core), ctypes.CDLL(second)]
    assert opened[1].call(os.fsencode(bundle)) == 0
    assert workers() == 3, workers()
    for one in reversed(opened):
        _ctypes.dlclose(one._handle)
    with open("/proc/self/maps") as file:
        mapped = file.read()
    assert second not in mapped
    assert "librelu_ops" in mapped and workers() == 3
    time.sleep(0.05)  # until workers sleep, and beyond
print("fine")
"""


def test_unloading_with_living_workers_is_harmless(bundle: Path, tmp_path: Path) -> None:
    core = Path(config.values()["library"])
    link = ["-shared", "-fPIC", f"-L{core.parent}", "-lrelu_ops", f"-Wl,-rpath,{core.parent}"]
    second = built(tmp_path, "second.so", _SECOND, *link)
    assert_fine(run_script(_UNLOADED, bundle, second, core, seconds=60), "fine\n")


# ---------------------------------------------------------------- signals


_INTERRUPTED = """
import os, signal, sys, threading, time
import numpy as np, relu_ops
from relu_ops.runtime.threads import Settings, configure
signal.signal(signal.SIGINT, signal.default_int_handler)
op = relu_ops.load(sys.argv[1])
rounds, threads, between = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "between"
configure(Settings(threads, 0, 1 << 62))
count = 1000 if between else 400_000
x, d = np.full(count, 3.0), np.full(count, 1.0)
y = np.zeros(count)
op(x, d, out=y)
once = time.perf_counter()
op(x, d, out=y)
once = time.perf_counter() - once
for number in range(rounds):
    delay = 0.002 + 0.5 * once * number / rounds
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
    y[...] = 0
    interrupted = False
    try:
        timer.start()
        if between:
            while True:
                op(x, d, out=y)
        op(x, d, out=y)
        timer.join()
        time.sleep(0.05)
    except KeyboardInterrupt:
        interrupted = True
    if not interrupted:
        sys.exit(f"round {number}: the signal was lost")
    # On a busy machine the signal may come before the call has begun.
    if not between and y.any() and not (y == 3).all():
        sys.exit(f"round {number}: the call was torn")
    op(x, d, out=y)
    if not (y == 3).all():
        sys.exit(f"round {number}: the operator is broken afterwards")
    timer.join()
print("fine")
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("when", ["between", "during"])
def test_ctrl_c(slow: Path, when: str, threads: int) -> None:
    """Between calls it comes at once; during a long one when that is done, whole."""
    assert_fine(run_script(_INTERRUPTED, slow, 3, threads, when), "fine\n")


@pytest.mark.exhaustive
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("when", ["between", "during"])
def test_ctrl_c_100_times(slow: Path, when: str, threads: int) -> None:
    assert_fine(run_script(_INTERRUPTED, slow, 100, threads, when, seconds=600), "fine\n")


def test_signal_handlers_of_others_run_between_calls(bundle: Path) -> None:
    code = """
import signal, sys, time
import numpy as np, relu_ops
relu_ops.set_num_threads(2)
op = relu_ops.load(sys.argv[1])
x = np.linspace(-1, 1, 100_000, dtype=np.float32)
want, count = op(x), 0
def handle(*_):
    global count
    count += 1
    assert (op(x[::-1])[::-1] == want).all()  # a call inside of a call's thread
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
stop = time.monotonic() + 0.5
while time.monotonic() < stop:
    assert (op(x) == want).all()
signal.setitimer(signal.ITIMER_REAL, 0)
print(count > 10)
"""
    assert_fine(run_script(code, bundle), "True\n")


# ---------------------------------------------------------------- exits


_EXIT = """
import atexit, os, sys, threading, time
import numpy as np, relu_ops
relu_ops.set_num_threads(2)
op = relu_ops.load(sys.argv[1])
way = sys.argv[4]
sizes = (300_000, 3, 20_000)
def work(n):
    x, out = np.ones(n, np.float32), np.empty(n, np.float32)
    foreign, bound = x.astype(">f4"), op.bind(x, out=out)
    while True:
        if way in ("native", "both"):
            op(x, out=out)
            op(x[::-1])
            bound()
        if way in ("careful", "both"):
            op(foreign)
            op(foreign[::-1], out=out)
            op([1.0, -1.0])
for k in range(6):
    threading.Thread(target=work, args=(sizes[k % 3],), daemon=True).start()
time.sleep(float(sys.argv[2]))
if sys.argv[3] == "exit":
    sys.exit(0)
if sys.argv[3] == "raise":
    raise SystemExit("on purpose")
"""


def exit_with_threads(bundle: Path, rounds: int, way: str) -> None:
    for number in range(rounds):
        how = ("end", "exit", "raise")[number % 3]
        done = run_script(_EXIT, bundle, 0.001 * (7 * number % 40), how, way, seconds=60)
        expected = (1, "on purpose\n") if how == "raise" else (0, "")
        assert (done.returncode, done.stderr) == expected, (number, how)


@pytest.mark.parametrize("way", ["native", "careful", "both"])
def test_the_interpreter_exits_while_threads_call(bundle: Path, way: str) -> None:
    exit_with_threads(bundle, 9, way)


@pytest.mark.exhaustive
@pytest.mark.parametrize("way", ["native", "careful", "both"])
def test_the_interpreter_exits_while_threads_call_100_times(bundle: Path, way: str) -> None:
    exit_with_threads(bundle, 100, way)


@pytest.mark.parametrize("end", ["os._exit(3)", "os.kill(os.getpid(), 15)", "os.abort()"])
def test_abrupt_ends_while_threads_call(bundle: Path, end: str) -> None:
    code = _EXIT.partition("if sys.argv[3]")[0] + end
    done = run_script(code, bundle, 0.02, "", "both", seconds=60)
    assert done.returncode == {"os._exit(3)": 3, "os.abort()": -6}.get(end, -15)


def test_an_object_that_computes_when_all_modules_are_gone(bundle: Path) -> None:
    """The first module that is loaded is the last to go; freed memory is overwritten here."""
    code = """
import os, sys
import numpy as np, relu_ops
from relu_ops.runtime import dispatch
class Late:
    def __init__(self, op):
        self.bound, self.op = op.bind(np.full(3, -1, np.float32)), op
        sizes = (3, 100_000)
        self.arrays = [(np.full(n, -1, np.float32), np.zeros(n, np.float32)) for n in sizes]
        self.want = [np.full(n, -0.5, np.float32).tobytes() for n in sizes]
    def __del__(self, write=os.write, dispatch=dispatch):
        self.bound()
        for (x, out), want in zip(self.arrays, self.want):
            self.op(x, out=out)
            made = self.op(x)
            write(1, b"right " if out.tobytes() == made.tobytes() == want else b"wrong ")
        write(1, b"at the end" if dispatch.Operator is None else b"too early")
sys.late = Late(relu_ops.load(sys.argv[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, bundle],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONMALLOC": "debug"},
    )
    assert_fine(done, "right right at the end")


# ---------------------------------------------------------------- processors


def test_one_processor_gives_one_thread_and_starts_no_other(bundle: Path) -> None:
    code = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import numpy as np, relu_ops
op = relu_ops.load(sys.argv[1])
before = len(os.listdir("/proc/self/task"))
for _ in range(3):
    op(np.ones(10_000_000, np.float32))
print(relu_ops.get_num_threads(), len(os.listdir("/proc/self/task")) - before)
"""
    assert_fine(run_script(code, bundle), "1 0\n")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_workers_may_use_every_processor_again(bundle: Path) -> None:
    """Whoever wakes workers keeps them off his own processor, until they are awake."""
    code = """
import os, sys, time
import numpy as np, relu_ops
op = relu_ops.load(sys.argv[1])
x = np.ones(1_000_000, np.float32)
every = os.sched_getaffinity(0)
before = set(os.listdir("/proc/self/task"))
call = op.bind(x, out=np.empty_like(x), threads=3)
call()  # starts workers, which inherit what this thread may use
for k in range(600):
    if k % 20 == 0:  # be on one processor, then on another
        os.sched_setaffinity(0, {sorted(every)[k // 20 % 2]})
    call()
    time.sleep(k % 5 * 1e-4)
os.sched_setaffinity(0, every)
time.sleep(0.1)
workers = set(os.listdir("/proc/self/task")) - before
print(len(workers) >= 2, all(os.sched_getaffinity(int(w)) == every for w in workers))
"""
    assert_fine(run_script(code, bundle), "True True\n")
