"""Stands in for ssh: runs the command on this machine, as the shell of a host would there.

    RELU_OPS_SSH="python stand_in_ssh.py"

What a host is like is in its name: a row of the table at the end. So the whole of `--on` runs where
no server can be started.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

BLOCKED = (
    "onnx",
    "onnxruntime",
    "tvm",
    "tvm_ffi",
    "torch",
    "jax",
    "elftools",
    "matplotlib",
    "tqdm",
)
"""What a base install does not have."""

WITHOUT = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
def without(name, *rest):
    return None if name.partition(".")[0] in {blocked!r} else find(name, *rest)
PathFinder.find_spec = without
"""

DIES = """
import os, signal, sys
sys.addaudithook(
    lambda event, given: event == "import" and given[0] == "relu_ops.bench.hosts"
    and os.kill(os.getpid(), signal.SIGKILL)
)
"""

LIES = """
import relu_ops.runtime.dispatch as dispatch
right = dispatch.operator_of
class Wrong:
    def __init__(self, operator): self.operator, self.target = operator, operator.target
    def __call__(self, *inputs, out=None):
        y = self.operator(*inputs, out=out)
        if y.size: y.reshape(-1)[-1:] = 7
        return y
dispatch.operator_of = lambda *a, **k: Wrong(right(*a, **k))
"""

OLD = "import relu_ops._version; relu_ops._version.__version__ = '0.0.1'"

FAILS = """
import numpy, relu_ops.bench.runner as runner
def measure(*_): raise KeyError("\\x1b[2J what")
runner.measure = measure
"""

NOISE = "echo Welcome; echo; echo 'Ask the system administrator' >&2; "


def here(command: str, *, startup: str = "", shell: str = "sh", noise: str = "") -> int:
    """Run a command; Python there runs some code first."""
    environment = dict(os.environ)
    if startup:
        folder = Path(os.environ["STAND_IN_FOLDER"])
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(startup)
        environment["PYTHONPATH"] = f"{folder}{os.pathsep}{environment.get('PYTHONPATH', '')}"
    return subprocess.run([shell, "-c", noise + command], env=environment).returncode


def small(command: str) -> int:
    """One processor, and two GiB of addresses."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    return here(command)


def alone(command: str) -> int:
    """No package but Python's own: its option -S is to be in the name of the program."""
    os.environ.pop("PYTHONPATH", None)
    return here(command)


def plain(command: str) -> int:
    """As a server would run it: without the variables of whoever asks."""
    for name in ("PYTHONPATH", "RELU_OPS_CACHE", "RELU_OPS_TUNING"):
        os.environ.pop(name, None)
    return here(command)


def says(text: str) -> int:
    """Refuse in ssh's words."""
    print(text, file=sys.stderr)
    return 255


def lost(command: str) -> int:
    """The connection breaks once the driver has said what it is, and some of the rest."""
    child = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE)
    assert child.stdout is not None
    most = int(os.environ.get("STAND_IN_BYTES", "4000"))
    while most > 0 and (part := os.read(child.stdout.fileno(), most)):
        os.write(1, part)
        most -= len(part)
    child.stdout.close()
    os.close(0)
    return says("Connection to lost closed by remote host.")


def main() -> int:
    """Be ssh."""
    at = sys.argv.index("--")
    assert "-oBatchMode=yes" in sys.argv[1:at] and len(sys.argv) == at + 3, sys.argv
    host, command = sys.argv[at + 1 :]
    if log := os.environ.get("STAND_IN_LOG"):
        Path(log).write_text(json.dumps(sys.argv[1:]))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    return {
        "alpha": lambda: here(command),
        "beta": lambda: small(command),
        "plain": lambda: plain(command),
        "base": lambda: here(command, startup=WITHOUT.format(blocked=BLOCKED)),
        "alone": lambda: alone(command),
        "old": lambda: here(command, startup=OLD),
        "liar": lambda: here(command, startup=LIES),
        "dying": lambda: here(command, startup=DIES),
        "failing": lambda: here(command, startup=FAILS),
        "noisy": lambda: here(command, noise=NOISE),
        "csh": lambda: here(command, shell="tcsh"),
        "fish": lambda: here(command, shell="fish"),
        "lost": lambda: lost(command),
        "silent": lambda: 255,
        "nowhere": lambda: says(
            "ssh: Could not resolve hostname nowhere: Name or service not known"
        ),
        "down": lambda: says("ssh: connect to host down port 22: Connection refused"),
        "closed": lambda: says("me@closed: Permission denied (publickey,password)."),
        "stranger": lambda: says(
            "No ED25519 host key is known for stranger and you have requested strict checking.\r\n"
            "Host key verification failed.\r"
        ),
        "windows": lambda: (
            print("'sh' is not recognized as an internal or external command", file=sys.stderr) or 1
        ),
    }[host]()


if __name__ == "__main__":
    sys.exit(main())
