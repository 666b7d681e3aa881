"""Turns scheduled kernels into device code: TVM writes CUDA C++, NVRTC compiles it.

No GPU, toolkit or C compiler takes part. Two runs over the same kernels with the same TVM and NVRTC
give the same bytes, on every system.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tvm
import tvm_ffi

from relu_ops.compiler.cuda import nvrtc
from relu_ops.compiler.cuda import schedule as schedule_cuda
from relu_ops.compiler.cuda.schedule import Kernel
from relu_ops.compiler.lock import LOCK
from relu_ops.compiler.patterns import leaves_of
from relu_ops.contract import ir
from relu_ops.errors import BuildError
from relu_ops.targets import Target

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
"""What the fat target `cuda` has machine code for: each generation's first and, where they differ
in number, its most common. Code for one runs on later ones of the same major version; PTX of the
newest serves those that come after."""

EXACT_FLAGS = ("-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true")
"""What it has to be compiled with: one rounding per operation, subnormals kept. They are the
defaults of NVIDIA's compilers but for -fmad."""

_LANGUAGE_FLAGS = ("-std=c++17", "-default-device")

HEADERS = ("device.h", "bfloat16.h")
"""The files beside this one that it includes."""

_UNUSED_HEADER = "sm_61_intrinsics.h"
"""TVM's source for 8-bit integers asks for it, for dot products that no kernel here has. Empty, it
saves a wheel of headers."""

_LARGEST_PARAMETERS = 32_764
"""Bytes of parameters that a kernel may have, from compute capability 7.0 on."""


@dataclass(frozen=True)
class Sources:
    """What there is for CUDA, for people to read: TVM's loops, and CUDA C++."""

    tir: str
    cuda: str


def sources(graph: ir.Graph) -> Sources:
    """The intermediate forms of a graph's kernels, which are the same for every CUDA target."""
    kernels = scheduled(graph)
    tir = "\n".join(kernel.function.script() for kernel in kernels)
    return Sources(tir, device_source(graph, kernels))


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


def codes(target: Target) -> list[str]:
    """What to compile for a target: machine code by architecture, and PTX for later ones.

    PTX of the newest serves what comes after it, and that of the oldest what lies between: sm_110,
    say, which runs neither sm_100's code nor the PTX of sm_120.

    Raises:
        MissingDependencyError: NVRTC is not installed.
        BuildError: NVRTC does not know the architecture.
    """
    wanted = target.architectures or ARCHITECTURES
    known = nvrtc.architectures()
    unknown = [sm for sm in wanted if sm not in known]
    if unknown:
        raise BuildError(
            f"NVRTC {nvrtc.version()} cannot compile for sm_{unknown[0]}",
            f"it knows {', '.join(f'sm_{sm}' for sm in known)}",
        )
    ptx = [] if target.architectures else [wanted[0], wanted[-1]]
    return [*(f"sm_{sm}" for sm in wanted), *(f"compute_{sm}" for sm in ptx)]


def requirements(target: Target) -> tuple[str, ...]:
    """What an image of a target says of the machines that it runs on.

    Returns:
        The version of CUDA that a driver must have, then each code that there is: a device needs
        one of them.

    Raises:
        MissingDependencyError: NVRTC is not installed.
        BuildError: NVRTC does not know the architecture.
    """
    return (f"cuda_{nvrtc.version()}", *codes(target))


def fat_binary(
    graph: ir.Graph,
    kernels: Sequence[Kernel],
    target: Target,
    exact_flags: Sequence[str] = EXACT_FLAGS,
) -> bytes:
    """The device code of a graph's kernels: every code of a target, in one file.

    Raises:
        MissingDependencyError: NVRTC, nvFatbin or the headers are not installed.
        BuildError: NVRTC does not know the architecture.
    """
    source = device_source(graph, kernels)
    headers = {name: Path(__file__).with_name(name).read_text() for name in HEADERS}
    headers[_UNUSED_HEADER] = ""
    flags = [*exact_flags, *_LANGUAGE_FLAGS]
    return nvrtc.fat_binary(
        {code: nvrtc.compile_source(source, headers, flags, code) for code in codes(target)}
    )


def device_source(graph: ir.Graph, kernels: Sequence[Kernel]) -> str:
    """The CUDA C++ of all kernels: what TVM generates, and the device's own memory."""
    target = tvm.target.Target({"kind": "cuda", "arch": "sm_75"})  # any: the text is the same
    functions = {kernel.name: kernel.function.with_attr("target", target) for kernel in kernels}
    with LOCK, _without_compiling():
        module = tvm.get_global_func("target.build.cuda")(tvm.IRModule(functions), target)
    size, operands = _size_of_constants(graph), len(kernels[0].patterns)
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


def _size_of_constants(graph: ir.Graph) -> int:
    """Bytes of all array constants, each at a multiple of 64; never 0."""
    arrays = {leaf.value: graph.values[leaf.value].array for leaf in leaves_of(graph)}
    sizes = [np.asarray(array).nbytes for array in arrays.values() if array is not None]
    return sum(size + -size % 64 for size in sizes) or 1
