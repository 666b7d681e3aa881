"""Turns a scheduled graph into a shared library: TVM makes the kernels, a C compiler the entry.

The library needs nothing but tvm-ffi and the C library. Two builds of the same graph with the
same tools give the same bytes.
"""

from __future__ import annotations

import functools
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm
import tvm_ffi.libinfo

from relu_ops import ir
from relu_ops.compiler import schedule_x86
from relu_ops.compiler.schedule_x86 import Kernel, Leaf
from relu_ops.compiler.toolchain import c_compiler
from relu_ops.errors import BuildError
from relu_ops.semantics import DTYPES, dlpack_type
from relu_ops.targets import Target

# The entry is compiled for plain x86-64, whatever the kernels are for: a library for v2 holds no
# wider instruction. No build path, time or compiler comment reaches the file.
_COMPILE_FLAGS = [
    *("-x", "c", "-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-march=x86-64"),
]
# No start files: a library has no constructor, so that opening one runs none of its code.
_LINK_FLAGS = [
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

_HOST_UNITS = ("entry", "run_x86", "pool")
_HEADERS = ("entry.h", "plan.h", "pool.h")

_VERSION_SCRIPT = "{ global: __tvm_ffi_*; local: *; };\n"


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
    module = _codegen(kernels, target)
    compiler = c_compiler()
    with tempfile.TemporaryDirectory(prefix="relu_ops-") as folder:
        return _link(graph, kernels, module, compiler, Path(folder))


def sources_x86(graph: ir.Graph, target: Target) -> Sources:
    """The intermediate forms of a graph's library, without building it."""
    kernels = schedule_x86.schedule(graph, target)
    module = _codegen(kernels, target)
    return Sources(
        "\n".join(kernel.function.script() for kernel in kernels),
        module.inspect_source("ll"),
        module.inspect_source("asm"),
        operator_source(graph, kernels),
    )


def _codegen(kernels: Sequence[Kernel], target: Target) -> tvm.runtime.Module:
    """Run TVM's LLVM code generation, with no simplifier before it (see legalize)."""
    tvm_target = tvm.target.Target({"kind": "llvm", "mcpu": target.name})
    made = [f for k in kernels for f in (k.function, k.stream) if f is not None]
    functions = {f.attrs["global_symbol"]: f.with_attr("target", tvm_target) for f in made}
    return tvm.get_global_func("target.build.llvm")(tvm.IRModule(functions), tvm_target)


def _link(
    graph: ir.Graph,
    kernels: Sequence[Kernel],
    module: tvm.runtime.Module,
    compiler: list[str],
    folder: Path,
) -> bytes:
    for name, content in _host_objects(tuple(compiler)).items():
        (folder / name).write_bytes(content)
    (folder / "entry.h").write_bytes(_source("entry.h"))
    (folder / "operator.c").write_text(operator_source(graph, kernels))
    (folder / "constants.bin").write_bytes(_constants(graph)[0])
    (folder / "exports.map").write_text(_VERSION_SCRIPT)
    module.write_to_file(str(folder / "kernels.o"))
    _run([*compiler, *_COMPILE_FLAGS, "-c", "operator.c", "-o", "operator.o"], folder)
    objects = [*(f"{unit}.o" for unit in _HOST_UNITS), "operator.o", "kernels.o"]
    _run([*compiler, *objects, "-o", "operator.so", *_LINK_FLAGS], folder)
    return (folder / "operator.so").read_bytes()


@functools.cache
def _host_objects(compiler: tuple[str, ...]) -> dict[str, bytes]:
    """The compiled host side: the same for every operator, so made once per process."""
    includes = [f"-I{path}" for path in tvm_ffi.libinfo.include_paths()]
    with tempfile.TemporaryDirectory(prefix="relu_ops-") as name:
        folder = Path(name)
        for file in (*_HEADERS, *(f"{unit}.c" for unit in _HOST_UNITS)):
            (folder / file).write_bytes(_source(file))
        for unit in _HOST_UNITS:
            compile_one = [*compiler, *_COMPILE_FLAGS, *includes, "-c", f"{unit}.c"]
            _run([*compile_one, "-o", f"{unit}.o"], folder)
        return {f"{unit}.o": (folder / f"{unit}.o").read_bytes() for unit in _HOST_UNITS}


@functools.cache
def _source(name: str) -> bytes:
    return Path(__file__).with_name(name).read_bytes()


def _run(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"}
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"{command[0]}: cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        raise BuildError(
            f"{shlex.join(command)}\nfailed with exit code {done.returncode}:\n{done.stderr}"
        )


# ---------------------------------------------------------------------------------------------
# The tables of entry.c


def _constants(graph: ir.Graph) -> tuple[bytes, dict[int, int]]:
    """The array constants of a graph, each at a multiple of 64 bytes, and where each one is."""
    content, offsets = bytearray(), {}
    for leaf in schedule_x86.leaves_of(graph):
        array = graph.values[leaf.value].array
        if array is not None and leaf.value not in offsets:
            content += b"\0" * (-len(content) % 64)
            offsets[leaf.value] = len(content)
            content += np.ascontiguousarray(array).tobytes()
    return bytes(content or b"\0"), offsets


class _Tables:
    """Writes operator.c: names tables of dimensions and terms as it goes."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.lines: list[str] = []
        self.symbols: dict[str, int] = {}
        self.tables = 0

    def table(self, kind: str, items: Sequence[str]) -> str:
        """Declare an array and return its name."""
        name = f"table_{self.tables}"
        self.tables += 1
        self.lines.append(f"static const {kind} {name}[] = {{{', '.join(items or ['0'])}}};")
        return name

    def dims(self, shape: ir.Shape) -> str:
        return self.table("int64_t", [self.dim(d) for d in shape])

    def dim(self, dim: ir.Dim) -> str:
        if dim is None:
            return "FREE"
        if isinstance(dim, str):
            return f"SYMBOL({self.symbols.setdefault(dim, len(self.symbols))})"
        return f"INT64_C({dim})"

    def terms(self, terms: frozenset[ir.Term]) -> str:
        rows = []
        for term in ir.ordered(terms):
            dims = self.dims(term.shape)
            source = -1 if term.input is None else term.input
            rows.append(f"{{{source}, {_view(term.view)}, {len(term.shape)}, {dims}}}")
        table = self.table("Term", rows or ["{0}"])
        return f"{{{len(rows)}, {table}}}"

    def rows(self, kind: str, name: str, rows: Sequence[str]) -> None:
        """Declare one of the operator's own tables; an empty one keeps a dummy row."""
        body = ",\n  ".join(rows or ["{0}"])
        self.lines.append(f"static const {kind} {name}[] = {{\n  {body}}};")


def _quoted(text: str) -> str:
    """A C string literal of any name, cut to a length that an error message can bear."""
    escaped = "".join(
        chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}"
        for b in text.encode()[:200]
    )
    return f'"{escaped}"'


def operator_source(graph: ir.Graph, kernels: Sequence[Kernel]) -> str:
    """The tables of one operator, as C; see entry.h."""
    tables = _Tables(graph)
    leaves = schedule_x86.leaves_of(graph)
    dtypes = [leaf.dtype for leaf in leaves]
    dtypes += [graph.values[output.value].dtype for output in graph.outputs]
    requirements = [
        f"{{{_quoted(r.what)}, {tables.terms(r.terms)}, {tables.terms(r.into)}}}"
        for r in graph.requirements
    ]
    tables.rows("InputSpec", "inputs", [_input_row(tables, i) for i in graph.inputs])
    tables.rows("OutputSpec", "outputs", [_output_row(tables, o) for o in graph.outputs])
    tables.rows("Requirement", "requirements", requirements)
    tables.rows("Leaf", "leaves", _leaf_rows(tables, leaves))
    tables.rows("uint8_t", "itemsizes", [str(DTYPES[d].itemsize) for d in dtypes])
    tables.rows("Kernel", "kernels", [_kernel_row(tables, k) for k in kernels])
    counts = (
        *(len(graph.inputs), len(graph.outputs), len(leaves), len(dtypes)),
        *(len(graph.requirements), len(tables.symbols), len(kernels)),
    )
    names = ("inputs", "outputs", "requirements", "leaves", "itemsizes", "kernels")
    fields = [_quoted(graph.name), *map(str, counts), *names, str(kernels[0].vector_bytes)]
    tables.lines.append(f"const OperatorTables relu_ops_operator = {{{', '.join(fields)}}};")
    return "\n".join(["/* Generated by relu_ops. */", '#include "entry.h"', *tables.lines, ""])


def _view(view: ir.View) -> str:
    return f"{{{view.trailing}, {view.axis}, INT64_C({view.block})}}"


def _input_row(tables: _Tables, source: ir.Input) -> str:
    code, bits = dlpack_type(source.dtype)
    rank = -1 if source.shape is None else len(source.shape)
    return f"{{{_quoted(source.name)}, {code}, {bits}, {rank}, {tables.dims(source.shape or ())}}}"


def _output_row(tables: _Tables, output: ir.Output) -> str:
    value = tables.graph.values[output.value]
    code, bits = dlpack_type(value.dtype)
    return f"{{{_quoted(output.name)}, {code}, {bits}, {tables.terms(value.terms)}}}"


def _leaf_rows(tables: _Tables, leaves: Sequence[Leaf]) -> list[str]:
    """Embed constants.bin as it is, and point into it."""
    _, offsets = _constants(tables.graph)
    tables.lines += [
        "extern const unsigned char relu_ops_constants[];",
        'asm(".section .rodata\\n.balign 64\\n.hidden relu_ops_constants\\n"',
        '    "relu_ops_constants: .incbin \\"constants.bin\\"\\n.previous\\n");',
    ]
    rows = []
    for leaf in leaves:
        value = tables.graph.values[leaf.value]
        itemsize = DTYPES[leaf.dtype].itemsize
        if value.kind == "input":
            rows.append(f"{{{value.input}, {_view(leaf.view)}, {itemsize}, 0, 0, 0}}")
        else:
            shape = next(iter(value.terms)).shape
            at = f"relu_ops_constants + {offsets[leaf.value]}"
            dims = tables.dims(shape)
            rows.append(f"{{-1, {_view(leaf.view)}, {itemsize}, {len(shape)}, {dims}, {at}}}")
    return rows


def _kernel_row(tables: _Tables, kernel: Kernel) -> str:
    """Declare a kernel, and a caller that spreads a plan over its parameters."""
    operands = range(len(kernel.patterns))
    strided = schedule_x86.STRIDED in kernel.patterns
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
