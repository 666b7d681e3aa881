"""Turns a scheduled graph into a shared library for CUDA.

TVM makes the device code, nvcc a fat binary of it, a C compiler the entry. The library holds
machine code for every architecture, and PTX for later ones. It links against nothing of CUDA's:
run_cuda.c talks to the driver, which the runtime hands over when an operator is loaded. Two
builds of the same graph with the same tools give the same bytes.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
import tvm_ffi.libinfo

from relu_ops import ir
from relu_ops.compiler import codegen, schedule_cuda, toolchain
from relu_ops.compiler.schedule import STRIDED
from relu_ops.compiler.schedule_cuda import Kernel
from relu_ops.compiler.tables import Tables, constants, operator_source
from relu_ops.compiler.toolchain import Nvcc, c_compiler
from relu_ops.errors import BuildError
from relu_ops.targets import Target

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
"""What the fat target `cuda` has machine code for, where nvcc knows it: each generation's first
and, where they differ in number, its most common. Code for one runs on later ones of the same
major version; PTX of the newest serves those that come after."""

# Exactness: one rounding per operation, subnormals kept. These are nvcc's defaults but for -fmad;
# they are spelled out because nvcc takes options from the environment, too.
_EXACT_FLAGS = ("-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true")
NVCC_FLAGS = (
    *("-fatbin", "-std=c++17", "-O3", *_EXACT_FLAGS),
    # Only for its preprocessor: no host code of nvcc's is kept.
    "-allow-unsupported-compiler",
    "-Xfatbin=-compress-all",
    "--threads=0",
)

HOST_UNITS = ("entry", "python", "plan", "run_cuda")
_DEVICE_HEADERS = ("device.h", "bfloat16.h")
HEADERS = ("entry.h", "plan.h", "operator.h", "kernel_cuda.h", "driver.h")

_LARGEST_PARAMETERS = 32_764
"""Bytes of parameters that a kernel may have, from compute capability 7.0 on."""


@dataclass(frozen=True)
class Sources:
    """What a CUDA library was made of, for people to read: by kind, one text."""

    tir: str
    cuda: str
    entry: str


@dataclass(frozen=True)
class Code:
    """Which machine code and PTX a library holds.

    Attributes:
        sm: Architectures with machine code.
        ptx: The architecture of the PTX, or None.
    """

    sm: tuple[int, ...]
    ptx: int | None

    def __str__(self) -> str:
        ptx = () if self.ptx is None else (f"compute_{self.ptx}",)
        return ", ".join([*(f"sm_{sm}" for sm in self.sm), *ptx])

    @property
    def flags(self) -> list[str]:
        """The options of nvcc that ask for it."""
        flags = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in self.sm]
        if self.ptx is not None:
            flags.append(f"-gencode=arch=compute_{self.ptx},code=compute_{self.ptx}")
        return flags


def build_cuda(graph: ir.Graph, target: Target) -> tuple[bytes, dict[str, Any]]:
    """Compile a graph for CUDA.

    Args:
        graph: The graph.
        target: A CUDA target.

    Returns:
        The bytes of a shared library with the tvm-ffi functions of entry.c and run_cuda.c, and
        what it requires of a machine, for the manifest.

    Raises:
        BuildError: There is no nvcc or C compiler, or it failed, or it does not know the target.
    """
    nvcc = toolchain.nvcc()
    code = code_for(target, nvcc)
    kernels = scheduled(graph)
    with tempfile.TemporaryDirectory(prefix="relu_ops-") as name:
        folder = Path(name)
        write_sources(graph, kernels, folder, str(code))
        codegen.run([*nvcc.command, *NVCC_FLAGS, *code.flags, "kernels.cu", *_OUTPUT], folder)
        content = _link(folder)
    return content, nvcc.requirements() | {"sm": list(code.sm), "ptx": code.ptx}


_OUTPUT = ("-o", "kernels.fatbin")


def code_for(target: Target, nvcc: Nvcc) -> Code:
    """What to compile for a target.

    Raises:
        BuildError: nvcc does not know the architecture.
    """
    known = nvcc.architectures()
    missing = [sm for sm in target.architectures if sm not in known]
    if missing:
        raise BuildError(
            f"{nvcc} cannot compile for sm_{missing[0]}",
            f"it knows {', '.join(f'sm_{sm}' for sm in known)}",
        )
    if target.architectures:
        return Code(target.architectures, None)
    chosen = tuple(sm for sm in ARCHITECTURES if sm in known)
    return Code(chosen, chosen[-1])


def sources_cuda(graph: ir.Graph) -> Sources:
    """The intermediate forms of a graph's library, without building it."""
    kernels = scheduled(graph)
    return Sources(
        "\n".join(kernel.function.script() for kernel in kernels),
        device_source(graph, kernels),
        _entry_source(graph, kernels, "sm_00"),
    )


def ptx(graph: ir.Graph, target: Target) -> str:
    """The PTX of a graph's kernels, for the newest architecture of a target.

    Raises:
        BuildError: There is no nvcc, or it failed.
    """
    nvcc = toolchain.nvcc()
    newest = max(code_for(target, nvcc).sm)
    with tempfile.TemporaryDirectory(prefix="relu_ops-") as name:
        folder = Path(name)
        write_sources(graph, scheduled(graph), folder, "")
        command = [*nvcc.command, "-std=c++17", "-O3", *_EXACT_FLAGS, f"-arch=compute_{newest}"]
        codegen.run([*command, "-ptx", "kernels.cu", "-o", "kernels.ptx"], folder)
        return (folder / "kernels.ptx").read_text()


def scheduled(graph: ir.Graph) -> list[Kernel]:
    """The kernels of a graph.

    Raises:
        BuildError: It has more operands than a kernel can be passed.
    """
    kernels = schedule_cuda.schedule(graph)
    operands = len(kernels[0].patterns)
    size = 8 * (operands * (3 + schedule_cuda.PLANE_RANK) + len(schedule_cuda.SCALARS))
    if size > _LARGEST_PARAMETERS:
        raise BuildError(
            f"{graph.name}: {operands} inputs, outputs and array constants need {size} bytes of "
            f"kernel parameters; CUDA has {_LARGEST_PARAMETERS}",
            "split the graph",
        )
    return kernels


def write_sources(graph: ir.Graph, kernels: Sequence[Kernel], folder: Path, built_for: str) -> None:
    """Write everything that a library is compiled from."""
    for name in (*HEADERS, *_DEVICE_HEADERS, *(f"{unit}.c" for unit in HOST_UNITS)):
        (folder / name).write_bytes(codegen.source(name))
    (folder / "kernels.cu").write_text(device_source(graph, kernels))
    (folder / "operator.c").write_text(_entry_source(graph, kernels, built_for))
    (folder / "constants.bin").write_bytes(constants(graph)[0])
    (folder / "exports.map").write_text(codegen.VERSION_SCRIPT)


def device_source(graph: ir.Graph, kernels: Sequence[Kernel]) -> str:
    """The CUDA C++ of all kernels: what TVM generates, and the device's own memory."""
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_75"})  # any: the text is the same
    functions = {kernel.name: kernel.function.with_attr("target", target) for kernel in kernels}
    with _without_compiling():
        module = tvm.get_global_func("target.build.cuda")(tvm.IRModule(functions), target)
    size, operands = len(constants(graph)[0]), len(kernels[0].patterns)
    return "\n".join(
        [
            "/* Generated by relu_ops and TVM. */",
            '#include "device.h"',
            f'extern "C" __device__ __align__(64) unsigned char relu_ops_constants[{size}];',
            f'extern "C" __device__ long long relu_ops_spare[{operands}];',
            f"__device__ __align__(64) unsigned char relu_ops_constants[{size}];",
            f"__device__ long long relu_ops_spare[{operands}];",
            module.inspect_source(),
        ]
    )


@contextlib.contextmanager
def _without_compiling() -> Iterator[None]:
    """Keep TVM from compiling what it generates, with fast math, where it finds a device."""
    name = "tvm_callback_cuda_compile"
    before = tvm.get_global_func(name, allow_missing=True)
    tvm_ffi.register_global_func(name, lambda code, *_: code, override=True)
    try:
        yield
    finally:
        if before is None:
            tvm_ffi.registry.remove_global_func(name)
        else:
            tvm_ffi.register_global_func(name, before, override=True)


def _entry_source(graph: ir.Graph, kernels: Sequence[Kernel], built_for: str) -> str:
    """The tables of operator.h, and those of kernel_cuda.h."""

    def declare(tables: Tables) -> list[str]:
        rows = []
        for kernel in kernels:
            patterns = tables.table("int8_t", [str(p) for p in kernel.patterns])
            strided = int(STRIDED in kernel.patterns)
            numbers = f"{strided}, {kernel.lanes}, {kernel.unroll}"
            rows.append(f'{{"{kernel.name}", {patterns}, {numbers}}}')
        tables.lines += [
            '#include "kernel_cuda.h"',
            "extern const unsigned char relu_ops_image[];",
            'asm(".section .nv_fatbin,\\"a\\"\\n.balign 64\\n.hidden relu_ops_image\\n"',
            '    "relu_ops_image: .incbin \\"kernels.fatbin\\"\\n.previous\\n");',
            "extern const unsigned char relu_ops_constants[];",
        ]
        tables.rows("CudaKernel", "cuda_kernels", rows)
        fields = [
            *(str(schedule_cuda.THREADS), str(schedule_cuda.PLANE_RANK), str(len(kernels))),
            *("cuda_kernels", "relu_ops_image", "relu_ops_constants"),
            *(str(len(constants(graph)[0])), f'"{built_for}"'),
        ]
        tables.lines.append(f"const CudaTables relu_ops_cuda = {{{', '.join(fields)}}};")
        return []  # none of operator.h's own kernels

    return operator_source(graph, declare, 0)


def _link(folder: Path) -> bytes:
    """Compile the host side and link it; the fat binary is embedded as it is."""
    compiler = c_compiler()
    includes = [f"-I{path}" for path in tvm_ffi.libinfo.include_paths()]
    objects = []
    for unit in (*HOST_UNITS, "operator"):
        objects.append(f"{unit}.o")
        command = [*compiler, *codegen.COMPILE_FLAGS, *includes, "-c", f"{unit}.c"]
        codegen.run([*command, "-o", objects[-1]], folder)
    codegen.run([*compiler, *objects, "-o", "operator.so", *codegen.LINK_FLAGS], folder)
    return (folder / "operator.so").read_bytes()
