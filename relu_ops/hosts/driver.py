"""What runs on the other machine. Its text is sent there: both ends speak by the same words.

It answers requests that come through its input until that ends, and then ends at once: whoever
asked is gone, or lost. It writes no file, so there is none to remove. Until it knows that the same
relu_ops is there, it needs the standard library of any Python 3 and nothing else.
"""

from __future__ import annotations

import json
import os
import platform
import queue
import sys
import threading
from typing import Any, BinaryIO

MARK = b"\nrelu_ops: from here on the driver speaks\n"
"""Comes first: what stands before it was said by the shell's startup files."""

_SIZE_BYTES = 8
_MOST_BYTES = 1 << 40


# ---------------------------------------------------------------------------------------------
# Words: a text of JSON, and bytes that belong to it


def send(stream: BinaryIO, words: dict[str, Any], blobs: Any = ()) -> None:
    """Write one message."""
    views = [memoryview(blob).cast("B") for blob in blobs]
    text = json.dumps({**words, "sizes": [len(view) for view in views]}).encode()
    stream.write(len(text).to_bytes(_SIZE_BYTES, "big") + text)
    for view in views:
        stream.write(view)
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], list[bytearray]]:
    """Read one message.

    Raises:
        EOFError: The stream ends before it does.
        ValueError: It is none.
    """
    size = int.from_bytes(_exactly(stream, _SIZE_BYTES), "big")
    words = json.loads(_exactly(stream, size))
    sizes = words.pop("sizes", None) if isinstance(words, dict) else None
    if not isinstance(sizes, list) or not all(isinstance(one, int) for one in sizes):
        raise ValueError("no message")
    return words, [_exactly(stream, one) for one in sizes]


def _exactly(stream: BinaryIO, size: int) -> bytearray:
    if not 0 <= size <= _MOST_BYTES:
        raise ValueError("no size")
    content = bytearray(size)
    view, done = memoryview(content), 0
    while done < size:
        count = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError
        done += count
    return content


# ---------------------------------------------------------------------------------------------
# Answering


def main() -> None:
    """Say what is there, and answer until nobody asks any more."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a package prints is no answer
    answers.write(MARK)
    send(answers, installed())
    requests: queue.Queue[tuple[dict[str, Any], list[bytearray]]] = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    desk = Desk(answers)
    try:
        while True:
            words, blobs = requests.get()
            send(answers, *_answered(desk, words, blobs))
    except BrokenPipeError:  # nobody listens any more
        # Not by way of Python's own end: it aborts where a thread still reads.
        os._exit(0)


def _listen(requests: queue.Queue[Any]) -> None:
    """Take requests in. A thread, so that the end of them is seen while one is worked on."""
    try:
        while True:
            requests.put(receive(sys.stdin.buffer))
    except EOFError:
        os._exit(0)


def _answered(desk: Desk, words: dict[str, Any], blobs: Any) -> tuple[dict[str, Any], list[Any]]:
    """An answer, or what was raised instead."""
    try:
        answer, sent = getattr(desk, "do_" + words.pop("do"))(blobs, **words)
        return {"answer": answer}, sent
    except BrokenPipeError:  # in the middle of ticks
        raise
    except Exception as error:
        kind = type(error).__name__
        message, hint = getattr(error, "message", None), getattr(error, "hint", None)
        ours = message is not None and type(error).__module__ == "relu_ops.errors"
        text = message if ours else _told(error)
        return {"error": {"kind": kind, "ours": ours, "message": text, "hint": hint}}, []


def _told(error: BaseException) -> str:
    """An error that nobody meant to raise, and where it came from."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def installed() -> dict[str, Any]:
    """Which Python this is, and which relu_ops it has; what it lacks, where it has none."""
    found: dict[str, Any] = {"python": platform.python_version(), "executable": sys.executable}
    try:
        import relu_ops._version

        found["relu_ops"] = relu_ops._version.__version__
        import ml_dtypes  # noqa: F401
        import msgspec  # noqa: F401
        import numpy  # noqa: F401

        import relu_ops.native._python
    except Exception as error:  # a broken package may raise anything
        found["problem"] = f"{type(error).__name__}: {error}"
    return found


class Desk:
    """Does what is asked, one request a method; each gives words and bytes."""

    def __init__(self, answers: BinaryIO) -> None:
        self._answers = answers
        self._bundle: Any = None
        self._operators: list[Any] = []

    def do_describe(self, blobs: Any) -> tuple[dict[str, Any], list[Any]]:
        """What a plan has to know of this machine."""
        import dataclasses

        from relu_ops import targets
        from relu_ops.runtime import driver, threads

        machine = dataclasses.asdict(targets.this_machine())
        answer = {
            "name": platform.node(),
            "machine": {
                k: sorted(v) if isinstance(v, frozenset) else v for k, v in machine.items()
            },
            "cuda": driver.probe()._asdict(),
            "threads": threads.default_settings().threads,
        }
        return answer, []

    def do_open(self, blobs: Any, path: str, names: list[str]) -> tuple[None, list[Any]]:
        """Take a bundle: every digest is checked, as where it is read from a directory."""
        from relu_ops.bundle import store

        files = {name: bytes(blob) for name, blob in zip(names, blobs)}  # noqa: B905
        self._bundle = store.from_contents(path, files)
        return None, []

    def do_choose(self, blobs: Any) -> tuple[str, list[Any]]:
        """The target of the bundle that is the best here; refuses, and lists all, without one."""
        return self._bundle.handle.choose(), []

    def do_load(
        self, blobs: Any, name: str, target: str | None, cuda: int
    ) -> tuple[dict[str, Any], list[Any]]:
        """Load an operator of the bundle; its number is what `call` is told."""
        from relu_ops.runtime import dispatch
        from relu_ops.verification.device import OnDevice

        operator = dispatch.operator_of(self._bundle, name=name, target=target, cuda=cuda)
        self._operators.append(operator if cuda < 0 else OnDevice(operator))
        return {"number": len(self._operators) - 1, "target": operator.target}, []

    def do_call(
        self, blobs: Any, number: int, arrays: list[dict[str, Any]], outs: int
    ) -> tuple[list[Any], list[Any]]:
        """Call an operator.

        Args:
            blobs: The memory of each array, with what lies beside it.
            number: The operator's.
            arrays: How each lies in its memory.
            outs: How many of them, the last, are where to write; none to make them here.

        Returns:
            The memory of those; or the dtypes, shapes and bytes of the outputs.
        """
        import numpy as np

        placed = [_placed(one, blob) for one, blob in zip(arrays, blobs)]  # noqa: B905
        views = [array for _, array in placed]
        if outs:
            given, results = views[:-outs], tuple(views[-outs:])
            self._operators[number](*given, out=results if outs > 1 else results[0])
            return [], [memory for memory, _ in placed[-outs:]]
        made = self._operators[number](*views)
        made = list(made) if isinstance(made, tuple) else [made]
        shown = [{"dtype": y.dtype.name, "shape": y.shape} for y in made]
        return shown, [np.ascontiguousarray(y).reshape(-1).view(np.uint8) for y in made]

    def do_bench(self, blobs: Any) -> tuple[None, list[Any]]:
        """Measure; ticks say how far it is."""
        from relu_ops.bench import hosts

        return None, [hosts.carry_out(bytes(blobs[0]), self._progress)]

    def _progress(self, items: Any, total: int, title: str) -> Any:
        for item in items:
            send(self._answers, {"tick": [total, title]})
            yield item


def _placed(lies: dict[str, Any], blob: Any) -> tuple[Any, Any]:
    """An array in memory of its own, at the place that it has in its mirror."""
    import numpy as np

    from relu_ops.contract.semantics import DTYPES
    from relu_ops.verification.mirror import GUARD

    whole = np.empty(len(blob) + GUARD, np.uint8)
    start = -whole.ctypes.data % GUARD
    memory = whole[start : start + len(blob)]
    memory[:] = np.frombuffer(blob, np.uint8)
    dtype = DTYPES[lies["dtype"]].numpy
    dtype = dtype.newbyteorder() if lies["swapped"] else dtype
    array = np.ndarray(lies["shape"], dtype, memory.data, lies["first"], lies["strides"])
    return memory, array


if __name__ == "__main__":
    main()
