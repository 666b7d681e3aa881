"""Threads, forks, signals and exits around an operator in use.

Whatever a server does to a process, a call gives the right bits, or the process does what it was
told to: it never hangs and never crashes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from relu_ops import compiler, graphs


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
from relu_ops.runtime import library
from relu_ops.runtime.threads import Settings
op = relu_ops.load(sys.argv[1])
count, calls, parallel_bytes = map(int, sys.argv[2:])
library.configure_all(Settings(3, parallel_bytes, 1 << 62))
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


def test_a_bound_call_under_way_outlives_what_was_bound(slow: Path) -> None:
    """Another thread may change a partial while it is called: that call still ends well."""
    code = """
import sys, threading, time, weakref
import numpy as np, relu_ops
op = relu_ops.load(sys.argv[1])
x, d = np.full(200_000, 3.0), np.full(200_000, 1.0)
alive, out = weakref.ref(x), np.zeros_like(x)
call = op.bind(x, d, out=out)
del x, d
caller = threading.Thread(target=call)
caller.start()
while not out[0]:
    time.sleep(0.001)
call.inputs = call.views = None
call.__setstate__((int, (), {}, {}))
print(alive() is not None or not caller.is_alive())
caller.join()
print((out == 3).all(), alive() is None)
"""
    assert_fine(run_script(code, slow), "True\nTrue True\n")


# ---------------------------------------------------------------- forks


_FORKS = """
import multiprocessing, sys, threading, time
import numpy as np, relu_ops

path, method, count, busy = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "busy"
SECONDS = 2.0

def answer(connection, begun):
    import relu_ops.runtime.library as library
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


# ---------------------------------------------------------------- signals


_INTERRUPTED = """
import os, signal, sys, threading, time
import numpy as np, relu_ops
from relu_ops.runtime import library
from relu_ops.runtime.threads import Settings
signal.signal(signal.SIGINT, signal.default_int_handler)
op = relu_ops.load(sys.argv[1])
rounds, threads, between = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "between"
library.configure_all(Settings(threads, 0, 1 << 62))
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
large = np.ones(300_000, np.float32)
small = np.ones(3, np.float32)
def work(x):
    out = np.empty_like(x)
    while True:
        op(x, out=out)
        op(x[::-1])
for k in range(6):
    threading.Thread(target=work, args=((large, small)[k % 2],), daemon=True).start()
time.sleep(float(sys.argv[2]))
if sys.argv[3] == "exit":
    sys.exit(0)
if sys.argv[3] == "raise":
    raise SystemExit("on purpose")
"""


def exit_with_threads(bundle: Path, rounds: int) -> None:
    for number in range(rounds):
        how = ("end", "exit", "raise")[number % 3]
        done = run_script(_EXIT, bundle, 0.001 * (number % 40), how, seconds=60)
        expected = (1, "on purpose\n") if how == "raise" else (0, "")
        assert (done.returncode, done.stderr) == expected, (number, how)


def test_the_interpreter_exits_while_threads_call(bundle: Path) -> None:
    exit_with_threads(bundle, 6)


@pytest.mark.exhaustive
def test_the_interpreter_exits_while_threads_call_50_times(bundle: Path) -> None:
    exit_with_threads(bundle, 50)


@pytest.mark.parametrize("end", ["os._exit(3)", "os.kill(os.getpid(), 15)", "os.abort()"])
def test_abrupt_ends_while_threads_call(bundle: Path, end: str) -> None:
    code = _EXIT.partition("if sys.argv[3]")[0] + end
    done = run_script(code, bundle, 0.02, seconds=60)
    assert done.returncode == {"os._exit(3)": 3, "os.abort()": -6}.get(end, -15)


def test_an_object_that_computes_when_all_modules_are_gone(bundle: Path) -> None:
    """The first module that is loaded is the last to go; freed memory is overwritten here."""
    code = """
import os, sys
import numpy as np, relu_ops
from relu_ops.runtime import library
class Late:
    def __init__(self, op):
        self.bound, self.compute = op.bind(np.full(3, -1, np.float32)), op._compute
        sizes = (3, 2 * library.FEW_ELEMENTS)
        self.arrays = [(np.full(n, -1, np.float32), np.zeros(n, np.float32)) for n in sizes]
        self.want = [np.full(n, -0.5, np.float32).tobytes() for n in sizes]
    def __del__(self, write=os.write, library=library):
        self.bound()
        for (x, out), want in zip(self.arrays, self.want):
            self.compute((x,), out)
            write(1, b"right " if out.tobytes() == want else b"wrong ")
        write(1, b"at the end" if library._opened is None else b"too early")
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
