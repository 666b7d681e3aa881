"""Another processor, emulated: its core and a small program, built here, run by QEMU.

An operator there is called as one here is, with NumPy arrays; every array lies between pages that
nobody may touch. What a test needs of this machine, and it may lack, is said by `why_not`.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import test_native

from relu_ops import compiler
from relu_ops.bundle import store as bundle
from relu_ops.contract import ir
from relu_ops.contract.semantics import DTYPES, dlpack_type, dtype_name

ROOT = Path(__file__).parents[1]
CORE = ROOT / "relu_ops" / "native"

TARGET = "aarch64"
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64"
LIBRARIES = Path("/usr/aarch64-linux-gnu")
INSTALL = "apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"

LOAD, SETTINGS, CALL = range(3)
_SECONDS = 600


def why_not() -> str | None:
    """What is missing to emulate, and how to get it; None where it is there."""
    missing = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]
    missing += [str(LIBRARIES)] if not LIBRARIES.is_dir() else []
    return f"{', '.join(missing)} is not there: {INSTALL}" if missing else None


@functools.cache
def _scratch() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="relu_ops-emulated-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def build(output: str, *arguments: str | Path) -> Path:
    """Compile C for the other processor; every warning is an error."""
    path = _scratch() / output
    defined = ["RELU_OPS_BUILD", 'RELU_OPS_PACKAGE_VERSION="0"', "RELU_OPS_SEMANTICS=1"]
    flags = ["-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pthread"]
    includes = [f"-I{CORE / 'include'}", f"-isystem{test_native.dlpack_include()}"]
    command = [COMPILER, *flags, *(f"-D{name}" for name in defined), *includes]
    done = subprocess.run(
        [*command, *map(str, arguments), "-o", str(path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return path


def core_sources() -> list[Path]:
    """The core's, without what needs Python."""
    return [path for path in sorted(CORE.glob("*.c")) if not path.name.startswith("python")]


def command(program: Path, page_bytes: int = 4096) -> list[str]:
    """How a program of the other processor is run here, on a system with such pages."""
    return [EMULATOR, "-p", str(page_bytes), "-L", str(LIBRARIES), str(program)]


@functools.cache
def core() -> Path:
    """The core as a library."""
    return build("librelu_ops.so", "-shared", "-fPIC", *core_sources())


@functools.cache
def _program() -> Path:
    folder = core().parent
    return build(
        *("emulated", ROOT / "tests/native/emulated.c", f"-L{folder}", "-lrelu_ops"),
        f"-Wl,-rpath,{folder}",
    )


class Process:
    """The program, below the emulator, with one operator at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            command(_program()), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        atexit.register(self.close)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def ask(self, *request: int | bytes) -> None:
        """Make a request: numbers, and bytes as they are.

        Raises:
            RuntimeError: It was refused; with the message of the core.
        """
        assert self._process.stdin is not None
        content = b"".join(struct.pack("<q", p) if isinstance(p, int) else p for p in request)
        self._process.stdin.write(content)
        self._process.stdin.flush()
        status, length = self.numbers(2)
        message = self.take(length).decode()
        if status:
            raise RuntimeError(message)

    def numbers(self, count: int) -> tuple[int, ...]:
        """What it answers: so many numbers."""
        return struct.unpack(f"<{count}q", self.take(8 * count))

    def take(self, size: int) -> bytes:
        """What it answers: so many bytes."""
        assert self._process.stdout is not None
        taken = self._process.stdout.read(size)
        if len(taken) != size:
            raise AssertionError(f"the program ended: {self._process.wait(_SECONDS)}")
        return taken


@functools.cache
def process() -> Process:
    """One for all operators: they are loaded anew in turns."""
    return Process()


_numbers = itertools.count()


class Emulated:
    """An operator below the emulator, called as one here is.

    Attributes:
        target: What it was compiled for.
        inputs: As the graph has them.
        settings: Threads, and from how many bytes on it uses them, streams and wakes; or None.
    """

    def __init__(self, files: Mapping[str, bytes], name: str | None = None) -> None:
        held = bundle.from_contents("emulated", files)
        self.target, self.settings = TARGET, None
        self._path = _scratch() / f"{next(_numbers)}.bundle"
        bundle.write(self._path, files)
        self._name = held.operator_name(name)
        self._graph = graph_of(held.model(self._name))
        self.inputs = self._graph.inputs
        self._at_the_end = itertools.cycle((1, 0))

    def load(self, target: str = "") -> None:
        """Make it the one that the process has: the image for a target, or the best one.

        Raises:
            RuntimeError: It was refused; with the message of the core.
        """
        _loaded.pop("operator", None)
        process().ask(LOAD, *_text(str(self._path)), *_text(self._name), *_text(target))
        _loaded["operator"] = self

    def __call__(
        self, *inputs: np.ndarray, out: Any = None, threads: int = 0
    ) -> np.ndarray | tuple[np.ndarray, ...]:
        """Compute, into `out` where it is given."""
        xs = [_native(x) for x in inputs]
        outs = self._outs(xs) if out is None else list(out) if isinstance(out, tuple) else [out]
        self._load_once()
        arrays, parts = [*xs, *outs], []
        for k, array in enumerate(arrays):
            same = next((j for j in range(k) if arrays[j] is array), -1)
            parts += self._described(array, same)
        process().ask(CALL, threads, len(xs), len(outs), *parts)
        self._take_changes(arrays, len(xs))
        return outs[0] if len(outs) == 1 else tuple(outs)

    def _load_once(self) -> None:
        if _loaded.get("operator") is not self:
            self.load()
        if _loaded.get("settings") != self.settings and self.settings is not None:
            process().ask(SETTINGS, *self.settings)
            _loaded["settings"] = self.settings

    def _outs(self, xs: Sequence[np.ndarray]) -> list[np.ndarray]:
        from relu_ops.verification.shapes import output_shapes

        shapes = output_shapes(self._graph, [x.shape for x in xs])
        dtypes = [self._graph.values[output.value].dtype for output in self._graph.outputs]
        return [np.zeros(s, DTYPES[d].numpy) for s, d in zip(shapes, dtypes, strict=True)]

    def _described(self, array: np.ndarray, same: int) -> Iterator[int | bytes]:
        low, content = _span(array)
        yield same
        if same < 0:
            yield from (len(content), next(self._at_the_end), low % 64, content)
        name = dtype_name(array.dtype)
        assert name is not None
        strides = [s // array.itemsize for s in array.strides]
        yield from (*dlpack_type(name), array.ndim, *array.shape, *strides)
        yield _address(array) - low if content else 0

    def _take_changes(self, arrays: Sequence[np.ndarray], inputs: int) -> None:
        """Put what was changed into the outputs; nothing else may be."""
        for k, array in enumerate(arrays):
            (changed,) = process().numbers(1)
            if not changed:
                continue
            low, before = _span(array)
            after = np.frombuffer(process().take(len(before)), np.uint8)
            wanted = np.frombuffer(bytearray(before), np.uint8)
            if k >= inputs or any(other is array for other in arrays[inputs:]):
                place = (_address(array) - low, array.strides)
                array[...] = np.ndarray(array.shape, array.dtype, after, *place)
                np.ndarray(array.shape, array.dtype, wanted, *place)[...] = array
            beside = np.flatnonzero(wanted != after)
            assert not beside.size, f"byte {beside[0]} of array {k} was written"


_loaded: dict[str, Any] = {}


def graph_of(model: Any) -> ir.Graph:
    """A model as the compiler has it."""
    from relu_ops.compiler import frontend

    return frontend.import_model(model)


def _text(text: str) -> tuple[int, bytes]:
    encoded = text.encode()
    return len(encoded), encoded


def _native(x: Any) -> np.ndarray:
    """An array as the core takes it; others are what Python's face copies."""
    x = np.asarray(x)
    odd = any(s % x.itemsize for s in x.strides) or _address(x) % x.itemsize
    return np.array(x, x.dtype.newbyteorder("=")) if odd or not x.dtype.isnative else x


def _address(x: np.ndarray) -> int:
    return int(x.__array_interface__["data"][0])


def _span(x: np.ndarray) -> tuple[int, bytes]:
    """Where the memory begins that an array is of, and what it holds."""
    import ctypes

    if not x.size:
        return 0, b""
    low, high = np.lib.array_utils.byte_bounds(x)
    return low, ctypes.string_at(low, high - low)


def operator(model: Any) -> Emulated:
    """Compile a model, for the other processor."""
    return Emulated(compiler.make(model, [TARGET]))
