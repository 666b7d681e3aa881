"""Turns a scheduled graph into a shared library: TVM makes the kernels, a C compiler the entry.

The library needs nothing but tvm-ffi and the C library. Two builds of the same graph with the
same tools give the same bytes.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm
import tvm_ffi.libinfo

from relu_ops import ir
from relu_ops.compiler import schedule_x86
from relu_ops.compiler.schedule import STRIDED
from relu_ops.compiler.schedule_x86 import Kernel
from relu_ops.compiler.tables import Tables, constants, operator_source
from relu_ops.compiler.toolchain import c_compiler
from relu_ops.errors import BuildError
from relu_ops.targets import Target

# The entry is compiled for plain x86-64, whatever the kernels are for: a library for v2 holds no
# wider instruction. No build path, time or compiler comment reaches the file.
COMPILE_FLAGS = [
    *("-x", "c", "-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-march=x86-64"),
]
# No start files: a library has no constructor, so that opening one runs none of its code.
LINK_FLAGS = [
    "-shared",
    "-nostartfiles",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-Wl,-z,relro",
    "-Wl,-z,now",
    "-Wl,--gc-sections",
    "-Wl,--hash-style=gnu",
    "-Wl,-s",
    "-Wl,--version-script=exports.map",
]

_HOST_UNITS = ("entry", "python", "plan", "run_x86", "pool")
_HEADERS = ("entry.h", "plan.h", "operator.h", "pool.h")

VERSION_SCRIPT = "{ global: __tvm_ffi_*; relu_ops_bound; relu_ops_compute; local: *; };\n"


@dataclass(frozen=True)
class Sources:
    """What a library was made of, for people to read: by kind, one text."""

    tir: str
    llvm: str
    assembly: str
    entry: str


def build_x86(graph: ir.Graph, target: Target) -> bytes:
    """Compile a graph for an x86 target.

    Args:
        graph: The graph.
        target: A CPU target.

    Returns:
        The bytes of a shared library with the tvm-ffi functions of entry.c.

    Raises:
        BuildError: There is no C compiler, or it failed.
    """
    kernels = schedule_x86.schedule(graph, target)
    assembly = _aligned(_codegen(kernels, target).inspect_source("asm"))
    with tempfile.TemporaryDirectory(prefix="relu_ops-") as folder:
        return _link(graph, kernels, assembly, c_compiler(), Path(folder))


def sources_x86(graph: ir.Graph, target: Target) -> Sources:
    """The intermediate forms of a graph's library, without building it."""
    kernels = schedule_x86.schedule(graph, target)
    module = _codegen(kernels, target)
    return Sources(
        "\n".join(kernel.function.script() for kernel in kernels),
        module.inspect_source("ll"),
        _aligned(module.inspect_source("asm")),
        _operator_source(graph, kernels),
    )


def _codegen(kernels: Sequence[Kernel], target: Target) -> tvm.runtime.Module:
    """Run TVM's LLVM code generation, with no simplifier before it (see legalize)."""
    tvm_target = tvm.target.Target({"kind": "llvm", "mcpu": target.name})
    made = [f for k in kernels for f in (k.function, k.stream) if f is not None]
    functions = {f.attrs["global_symbol"]: f.with_attr("target", tvm_target) for f in made}
    return tvm.get_global_func("target.build.llvm")(tvm.IRModule(functions), tvm_target)


def _aligned(assembly: str) -> str:
    """Functions and loops at multiples of 64 bytes, and no notes for debuggers.

    LLVM aligns them to 16, and TVM passes it no wish for more. Where a short loop lies across two
    lines of 64 bytes, the processor fetches two for every turn: relu of 64k float32 took 9.2 us on
    v2 so, and 5.0 in one line (AMD EPYC, Zen 4, one thread, 2026-11-21).
    """
    assembly = re.sub(r"^\t\.(loc|file)\t.*\n", "", assembly, flags=re.MULTILINE)
    return re.sub(r"^\t\.p2align\t4\b", "\t.p2align\t6", assembly, flags=re.MULTILINE)


def _link(
    graph: ir.Graph,
    kernels: Sequence[Kernel],
    assembly: str,
    compiler: list[str],
    folder: Path,
) -> bytes:
    for name, content in _host_objects(tuple(compiler)).items():
        (folder / name).write_bytes(content)
    (folder / "operator.h").write_bytes(source("operator.h"))
    (folder / "operator.c").write_text(_operator_source(graph, kernels))
    (folder / "constants.bin").write_bytes(constants(graph)[0])
    (folder / "exports.map").write_text(VERSION_SCRIPT)
    (folder / "kernels.s").write_text(assembly)
    run([*compiler, "-x", "assembler", "-c", "kernels.s", "-o", "kernels.o"], folder)
    run([*compiler, *COMPILE_FLAGS, "-c", "operator.c", "-o", "operator.o"], folder)
    objects = [*(f"{unit}.o" for unit in _HOST_UNITS), "operator.o", "kernels.o"]
    run([*compiler, *objects, "-o", "operator.so", *LINK_FLAGS], folder)
    return (folder / "operator.so").read_bytes()


@functools.cache
def _host_objects(compiler: tuple[str, ...]) -> dict[str, bytes]:
    """The compiled host side: the same for every operator, so made once per process."""
    includes = [f"-I{path}" for path in tvm_ffi.libinfo.include_paths()]
    with tempfile.TemporaryDirectory(prefix="relu_ops-") as name:
        folder = Path(name)
        for file in (*_HEADERS, *(f"{unit}.c" for unit in _HOST_UNITS)):
            (folder / file).write_bytes(source(file))
        for unit in _HOST_UNITS:
            compile_one = [*compiler, *COMPILE_FLAGS, *includes, "-c", f"{unit}.c"]
            run([*compile_one, "-o", f"{unit}.o"], folder)
        return {f"{unit}.o": (folder / f"{unit}.o").read_bytes() for unit in _HOST_UNITS}


@functools.cache
def source(name: str) -> bytes:
    """One of the C files beside this module."""
    return Path(__file__).with_name(name).read_bytes()


def run(command: Sequence[str], folder: Path) -> None:
    """Run a tool in a folder, the same in every environment.

    Raises:
        BuildError: It cannot be run, or failed.
    """
    environment = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(
            f"{command[0]}: cannot be run: {error.strerror}",
            "where CXX or CC names it: set that to the command of a C or C++ compiler, or unset it",
        ) from error
    if done.returncode != 0:
        raise BuildError(
            f"{shlex.join(command)}\nfailed with exit code {done.returncode}:\n{done.stderr}"
        )


def _operator_source(graph: ir.Graph, kernels: Sequence[Kernel]) -> str:
    def rows(tables: Tables) -> list[str]:
        return [_kernel_row(tables, kernel) for kernel in kernels]

    return operator_source(graph, rows, kernels[0].vector_bytes)


def _kernel_row(tables: Tables, kernel: Kernel) -> str:
    """Declare a kernel, and a caller that spreads a plan over its parameters."""
    operands = range(len(kernel.patterns))
    strided = STRIDED in kernel.patterns
    arguments = [f"data[{k}]" for k in operands] + [f"row[{k}]" for k in operands]
    arguments += [f"inner[{k}]" for k in operands] if strided else []
    types = ["char*"] * len(operands) + ["int64_t"] * (len(arguments) - len(operands) + 2)
    names = [kernel.name] if kernel.stream is None else [kernel.name, f"{kernel.name}_stream"]
    for name in names:
        tables.lines += [
            f"void {name}({', '.join(types)});",
            f"static void call_{name}(char* const* data, const int64_t* row,",
            "    const int64_t* inner, int64_t rows, int64_t n) {",
            "  (void)inner;",
            f"  {name}({', '.join(arguments)}, rows, n);",
            "}",
        ]
    patterns = tables.table("int8_t", [str(p) for p in kernel.patterns])
    stream = "0" if kernel.stream is None else f"call_{kernel.name}_stream"
    return f"{{call_{kernel.name}, {stream}, {patterns}}}"
