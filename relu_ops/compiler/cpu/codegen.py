"""Turns scheduled kernels into object code: LLVM alone, by way of TVM.

No C compiler, assembler or linker takes part, so that nobody's compiler, flags or distribution
can change a byte. Two runs over the same kernels with the same TVM give the same bytes, on every
system and from several threads at once.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import tvm

from relu_ops.compiler.cpu.schedule import Kernel
from relu_ops.compiler.layout import LINE
from relu_ops.compiler.lock import LOCK
from relu_ops.errors import BuildError

# Where a short loop lies across two lines of the instruction cache, the processor fetches both for
# every turn: leaky_relu of 64k float32 takes 4.2 us so, and 2.4 in one line (AMD EPYC, one thread,
# 2026-11-28). LLVM's options for loops alone do nothing through TVM, and the one that spares blocks
# reached by falling through spares the heads of loops: so every block is aligned. So are functions:
# LLVM would put what fills a line before their first block, behind their name.
_LLVM_OPTIONS = [
    f"-align-all-{what}:uint={LINE.bit_length() - 1}" for what in ("functions", "blocks")
]


@dataclass(frozen=True)
class Sources:
    """What an image's code was made of, for people to read: TVM's loops, and LLVM IR."""

    tir: str
    llvm: str


def object_code(kernels: Sequence[Kernel], options: Mapping[str, object]) -> bytes:
    """Compile kernels for a processor.

    Args:
        kernels: The kernels of one graph.
        options: What LLVM is told of the processor.

    Returns:
        An ELF object, in which each kernel has the name of its function.

    Raises:
        BuildError: There is no place for a temporary file.
    """
    with _scratch_file() as (path, file), LOCK:
        # LLVM makes the machine code in the second of these calls, under the same options.
        _module(kernels, options).write_to_file(path, "o")
        return file.read()


def sources(kernels: Sequence[Kernel], options: Mapping[str, object]) -> Sources:
    """The intermediate forms of a graph's kernels."""
    with LOCK:
        llvm = _module(kernels, options).inspect_source("ll")
    return Sources("\n".join(function.script() for function in functions(kernels)), llvm)


def _module(kernels: Sequence[Kernel], options: Mapping[str, object]) -> Any:
    """Run TVM's LLVM code generation, with no simplifier before it (see emitter)."""
    tvm_target = tvm.target.Target({"kind": "llvm", "cl-opt": _LLVM_OPTIONS, **options})
    made = {name_of(f): f.with_attr("target", tvm_target) for f in functions(kernels)}
    return tvm.get_global_func("target.build.llvm")(tvm.IRModule(made), tvm_target)


def functions(kernels: Sequence[Kernel]) -> list[Any]:
    """The functions of kernels: of each its own, then its streaming twin."""
    return [f for kernel in kernels for f in (kernel.function, kernel.stream) if f is not None]


def name_of(function: Any) -> str:
    """The name of a kernel's function in the object."""
    return str(function.attrs["global_symbol"])


@contextlib.contextmanager
def _scratch_file() -> Iterator[tuple[str, IO[bytes]]]:
    """A path to write to, and what reads it: TVM gives an object's bytes in no other way.

    In memory where the system has that: where LLVM cannot write, on a full disk, it ends the
    process.
    """
    with _memory_file() or _temporary_file() as file:
        yield file.name if isinstance(file.name, str) else _path_of(file), file


def _memory_file() -> IO[bytes] | None:
    """None where there is no such thing: no Linux, no /proc, a sandbox."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        file = os.fdopen(os.memfd_create("relu_ops-object"), "rb")
    except OSError:
        return None
    if os.path.exists(_path_of(file)):
        return file
    file.close()
    return None


def _path_of(file: IO[bytes]) -> str:
    return f"/proc/self/fd/{file.fileno()}"


def _temporary_file() -> Any:
    try:
        return tempfile.NamedTemporaryFile(prefix="relu_ops-")
    except OSError as error:
        raise BuildError(
            f"compiling needs a temporary file, and there is no place for one: {error}",
            "set TMPDIR to a folder that can be written",
        ) from error
