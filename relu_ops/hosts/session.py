"""A conversation with the driver on another machine, over one connection of ssh."""

from __future__ import annotations

import contextlib
import inspect
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

from relu_ops import errors, targets
from relu_ops._version import __version__
from relu_ops.errors import HostError, ReluOpsError
from relu_ops.hosts import driver, ssh
from relu_ops.runtime.driver import Gpu, Probe

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]

_MOST_NOISE = 1 << 20
"""Bytes that the startup files of a shell may write before the driver speaks."""
_KEPT = 200
"""Lines of what ssh and the other machine say, for where something fails."""
_PATIENCE_SECONDS = 5.0


def connect(host: str, python: str = ssh.PYTHON) -> Session:
    """Connect to another machine by ssh, and see that the same relu_ops is there.

    Args:
        host: As ssh knows it: a name of its configuration, `user@host`, `ssh://user@host:port`.
        python: Which Python there has relu_ops.

    Returns:
        The session: to be closed, or used in a `with`.

    Raises:
        ArgumentError: The host is none.
        HostError: There is no ssh, the host cannot be reached or refuses, or it has no such Python,
            no relu_ops or another version of it.
    """
    session = Session(ssh.check_host(host), python)
    try:
        session.begin()
    except BaseException:
        session.close()
        raise
    return session


class Session:
    """Another machine, for as long as the connection lasts.

    Attributes:
        host: As it was asked for.
        name: As the machine calls itself.
        machine: Its processor.
        cuda: Its driver of CUDA and devices.
        threads: How many threads a call there uses by default.
    """

    host: str
    name: str
    machine: targets.Machine
    cuda: Probe
    threads: int

    def __init__(self, host: str, python: str) -> None:
        self.host, self.python = host, python
        self._said: deque[bytes] = deque(maxlen=_KEPT)
        self._doing = "answer"
        text = inspect.getsource(driver).encode()
        start = "import sys;sys.path[:]=[p for p in sys.path if p];"
        read = f"exec(compile(sys.stdin.buffer.read({len(text)}),'relu_ops driver','exec'))"
        self._process = subprocess.Popen(
            ssh.command(host, python, start + read.replace("'", '"')),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()
        with contextlib.suppress(BrokenPipeError):  # why it went away is found when nothing comes
            self._requests.write(text)
            self._requests.flush()

    def __repr__(self) -> str:
        return f"<relu_ops.hosts.Session {self.host}>"

    def begin(self) -> None:
        """Wait for the driver; check what is there, and ask what the machine is."""
        try:
            self._skip_noise()
            self._check_installed(driver.receive(self._answers)[0])
        except (EOFError, ValueError) as error:
            code = self._ended() or 0
            raise ssh.failure(self.host, self.python, code, self._heard()) from error
        answer, _ = self.ask("describe")
        machine = answer["machine"]
        self.name, self.threads = answer["name"], answer["threads"]
        self.machine = targets.Machine(**{**machine, "flags": frozenset(machine["flags"])})
        version, problem, gpus = answer["cuda"].values()
        self.cuda = Probe(version and tuple(version), problem, tuple(Gpu(*gpu) for gpu in gpus))

    def ask(
        self,
        do: str,
        blobs: Sequence[Any] = (),
        progress: Progress | None = None,
        doing: str = "answer",
        **words: Any,
    ) -> tuple[Any, list[bytearray]]:
        """Have the driver do something.

        Args:
            do: What: a method of `driver.Desk`.
            blobs: The bytes that belong to it.
            progress: Shows how far it is, where it says so.
            doing: The same in words, for where the connection is lost.
            **words: The method's arguments.

        Returns:
            What it answers, and the bytes that belong to that.

        Raises:
            HostError: The connection was lost.
            ReluOpsError: Of the kind that was raised there; the message names the host.
            MemoryError: There is not enough there.
        """
        self._doing = doing
        try:
            driver.send(self._requests, {"do": do, **words}, blobs)
            answer, sent = self._answer(progress)
        except (EOFError, OSError, ValueError) as error:
            raise ssh.loss(self.host, doing, self._ended(), self._heard()) from error
        if "error" in answer:
            raise self._raised(answer["error"])
        return answer["answer"], sent

    def _answer(self, progress: Progress | None) -> tuple[dict[str, Any], list[bytearray]]:
        answer, sent = self._received()
        if "tick" not in answer:
            return answer, sent
        last: list[tuple[dict[str, Any], list[bytearray]]] = []
        ticks = self._ticks(last)
        total, title = answer["tick"]
        for _ in ticks if progress is None else progress(ticks, total, f"{title} {self.host}"):
            pass
        return last[0]

    def _received(self) -> tuple[dict[str, Any], list[bytearray]]:
        """One message.

        Raises:
            ValueError: It is none of the driver's.
        """
        words, sent = driver.receive(self._answers)
        if len(words) != 1 or not words.keys() <= {"answer", "error", "tick"}:
            raise ValueError("no answer")
        return words, sent

    def _ticks(self, last: list[tuple[dict[str, Any], list[bytearray]]]) -> Iterator[None]:
        """Once for each tick; what comes after them is put into `last`."""
        while True:
            yield None
            message = self._received()
            if "tick" not in message[0]:
                last.append(message)
                return

    def _raised(self, error: dict[str, Any]) -> Exception:
        message = f"{self.host}: {printable(error['message'])}"
        if error["kind"] == "MemoryError":
            return MemoryError(message)
        kind = getattr(errors, error["kind"], ReluOpsError) if error["ours"] else ReluOpsError
        return kind(message, error["hint"] and printable(error["hint"]))

    def _check_installed(self, found: dict[str, Any]) -> None:
        """Refuse a Python without this very version of relu_ops.

        Raises:
            HostError: It is such.
        """
        python = f"{found['executable']}, Python {found['python']}"
        install = f"there: {self.python} -m pip install relu_ops=={__version__}"
        other = "another Python there can be named: --python /path/to/python3"
        version, problem = found.get("relu_ops"), found.get("problem")
        if version is None:
            raise HostError(
                f"{self.host}: relu_ops is not installed for {self.python} ({python}): {problem}",
                f"{install}; {other}",
            )
        if version != __version__:
            raise HostError(
                f"{self.host}: has relu_ops {version} for {self.python} ({python}), and here is "
                f"{__version__}: they must be the same",
                f"{install}; or here: pip install relu_ops=={version}",
            )
        if problem is not None:
            raise HostError(
                f"{self.host}: relu_ops cannot be used by {self.python} ({python}): {problem}",
                f"{install}; {other}",
            )

    # --- the process

    @property
    def _requests(self) -> BinaryIO:
        assert self._process.stdin is not None
        return self._process.stdin  # type: ignore[return-value]

    @property
    def _answers(self) -> BinaryIO:
        assert self._process.stdout is not None
        return self._process.stdout  # type: ignore[return-value]

    def _skip_noise(self) -> None:
        """Read on to where the driver speaks.

        Raises:
            EOFError: It never does.
        """
        read = bytearray()
        while not read.endswith(driver.MARK):
            byte = self._answers.read(1)
            if not byte or len(read) > _MOST_NOISE:
                raise EOFError
            read += byte

    def _listen(self) -> None:
        """Keep the last lines of what is said on the standard error."""
        assert self._process.stderr is not None
        with contextlib.suppress(ValueError):  # closed meanwhile
            for line in self._process.stderr:
                self._said.append(line[:2000])

    def _heard(self) -> str:
        self._reader.join(_PATIENCE_SECONDS)
        said = b"".join(self._said).decode(errors="replace")
        return printable(said.replace("\r", "").expandtabs())

    def _ended(self) -> int | None:
        """What ssh exited with, once its answers have ended."""
        with contextlib.suppress(OSError):
            self._requests.close()
        try:
            return self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """End the conversation: the driver ends with it."""
        if self._ended() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_PATIENCE_SECONDS)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._answers.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def printable(text: str) -> str:
    r"""What another machine says, safe for a terminal: lines stay, control characters do not.

    >>> print(printable("no\x1b[2J such\nfile"))
    no\x1b[2J such
    file
    """
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )
