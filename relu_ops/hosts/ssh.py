"""The system's ssh: how it is called, and what it means where it fails.

The user's configuration says what a host is, its user, its key and its way; nothing is asked for,
and no other protocol is spoken.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil

from relu_ops.errors import ArgumentError, HostError

VARIABLE = "RELU_OPS_SSH"
"""Another program than `ssh`, or its options: `ssh -F other_config -v`."""

PYTHON = "python3"
"""Which Python of a host runs, where nobody says it."""

NO_PYTHON = "relu_ops: there is no such Python"
_UNREACHED = 255  # what ssh itself exits with
_KILLED = 128  # and the signal's number: what a shell exits with for a program

_OPTIONS = (
    *("-T", "-x", "-a"),  # no terminal, no windows, no keys lent
    "-oBatchMode=yes",  # a question would wait for ever: nobody sees it
    "-oClearAllForwardings=yes",
    "-oPermitLocalCommand=no",
    "-oRemoteCommand=none",
    "-oConnectTimeout=20",
    "-oServerAliveInterval=15",  # three answers missed: the connection is lost
)

# One line, without backslash and exclamation mark: whatever shell the user has there reads it.
_THERE = (
    'if command -v "$1" >/dev/null 2>&1; then "$1" -c "$2"; exit $?; '
    f'else echo "{NO_PYTHON}" >&2; exit 127; fi'
)


def check_host(host: str) -> str:
    """A name that ssh takes for a host, and not for an option.

    Raises:
        ArgumentError: It is none.
    """
    if not re.fullmatch(r"[^-\s,][^\s,]*", host) or not host.isprintable():
        raise ArgumentError(
            f"--on must be a host as ssh knows it (not {host!r})",
            "for example --on alpha or --on user@alpha.example; once for each host",
        )
    return host


def command(host: str, python: str, code: str) -> list[str]:
    """The command that runs some code by a Python of a host.

    Raises:
        HostError: There is no ssh.
    """
    words = shlex.split(os.environ.get(VARIABLE) or "ssh")
    program = shutil.which(words[0]) if words else None
    if program is None:
        raise HostError(
            f"{host}: cannot be reached: there is no program {words[0] if words else ''!r} here",
            f"install OpenSSH's client, or say in {VARIABLE} which program it is",
        )
    there = f"sh -c {shlex.quote(_THERE)} relu_ops {shlex.quote(python)} {shlex.quote(code)}"
    return [program, *words[1:], *_OPTIONS, "--", host, there]


_CAUSES: tuple[tuple[str, str, str], ...] = (
    (
        r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED",
        "ssh does not know its key",
        "log in once by hand, and see that the key is the right one: ssh {host}",
    ),
    (
        r"Permission denied|Too many authentication failures|No more authentication methods",
        "ssh was refused",
        "no password is asked for: a key or an agent has to do, so that this works: "
        "ssh -o BatchMode=yes {host} true",
    ),
    (
        r"Could not resolve|Name or service not known|Connection refused|No route to host"
        r"|timed out|unreachable|kex_exchange_identification|banner exchange",
        "cannot be reached",
        "see that this works: ssh {host} true",
    ),
)
"""What ssh says, what that means, and what to do."""


def failure(host: str, python: str, code: int, said: str) -> HostError:
    """Why nobody answered: ssh, or the other machine, ended first.

    Args:
        host: The host.
        python: Which Python was asked for there.
        code: What ssh exited with.
        said: What it said on its standard error, and what was said there.
    """
    if NO_PYTHON in said:
        return HostError(
            f"{host}: there is no Python called {python} there",
            "install Python 3.11 or newer there, or name one: --python /path/to/python3",
        )
    if code == _UNREACHED:
        for pattern, meaning, hint in _CAUSES:
            if found := re.search(f".*(?:{pattern}).*", said):
                text = found[0].strip("@ \r")
                return HostError(f"{host}: {meaning}: {text}", hint.format(host=host))
    reason = last_line(said) or "nothing was said"
    return HostError(
        f"{host}: no answer: ssh ended with {code}: {reason}",
        f"see that this works: ssh {host} {shlex.quote(python)} --version",
    )


def loss(host: str, doing: str, code: int | None, said: str) -> HostError:
    """Why the answers ended before the last one came.

    Args:
        host: The host.
        doing: What was asked for.
        code: What ssh exited with; None where it still runs.
        said: As for `failure`.
    """
    if code is not None and _KILLED < code < _UNREACHED:
        return HostError(
            f"{host}: while it was to {doing}, its process was ended by signal {code - _KILLED}",
            "a system does so where memory runs out: ask for smaller sizes",
        )
    reason = last_line(said) or f"ssh ended with {code}"
    return HostError(
        f"{host}: the connection was lost while it was to {doing}: {reason}",
        "run it again; nothing was left there",
    )


def last_line(said: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else ""
