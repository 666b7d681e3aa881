"""Programs that tests run in processes of their own, and children that those fork.

Every one has a time limit. Programs import the package that is tested and the modules beside this
one: conftest.py sees to it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

# From 3.12 on, Python warns of every fork of a process with threads. That such forks are safe here
# is what programs fork for.
_EVERY_FORK = "ignore:This process:DeprecationWarning"


def run(
    code: str,
    *arguments: object,
    seconds: float = 120,
    before: Sequence[str] = (),
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run a Python program to its end.

    Args:
        code: The program.
        *arguments: Its arguments.
        seconds: How long it may take.
        before: A command that takes another one to run, and runs it in its way.
        **environment: Variables set for it.
    """
    return subprocess.run(
        [*before, sys.executable, "-c", code, *map(str, arguments)],
        env={**of_forks(), **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def of_forks() -> dict[str, str]:
    """The environment of a program that forks."""
    warnings = ",".join(filter(None, [os.getenv("PYTHONWARNINGS"), _EVERY_FORK]))
    return {**os.environ, "PYTHONWARNINGS": warnings}


def wait(child: int, seconds: float) -> int:
    """Wait so long for a child that was forked; return its exit code.

    Raises:
        TimeoutError: It hangs; it was killed.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"a child hangs after {seconds} seconds")
