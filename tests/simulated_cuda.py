"""CUDA operators on the CPU: the same scheduled kernels, with their threads made loops.

The generated CUDA C++ is compiled with g++ behind the header in cuda_simulator, together with the
real host side (entry.c, run_cuda.c) and a driver whose device is the host. What comes out takes
arrays in the CPU's memory, so that every suite can run it.
"""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from pathlib import Path

import pytest
import tvm_ffi.libinfo

from relu_ops import ir
from relu_ops.compiler import codegen, codegen_cuda
from relu_ops.compiler.schedule_cuda import Kernel
from relu_ops.targets import Target

SHIM = Path(__file__).with_name("cuda_simulator")

# As nvcc is told: no contraction, every rounding where it is written. x86-64 alone, so that no
# fused instruction exists at all.
_FLAGS = (
    *("-O1", "-fPIC", "-fvisibility=hidden", "-march=x86-64", "-ffp-contract=off"),
    *("-fno-strict-aliasing", "-Wno-unknown-pragmas", "-Wno-format-truncation", "-I."),
)
_C = ("g++", "-x", "c", "-std=gnu11", *_FLAGS, "-DRELU_OPS_DEVICE_TYPE=kDLCPU")
_CPP = ("g++", "-x", "c++", "-std=c++17", *_FLAGS)


def build(graph: ir.Graph) -> bytes:
    """The library of a graph's CUDA kernels, simulated."""
    kernels = codegen_cuda.scheduled(graph)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        codegen_cuda.write_sources(graph, kernels, folder, "sm_90")
        (folder / "kernels.fatbin").write_bytes(b"simulated")
        for path in SHIM.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        with (folder / "kernels.cu").open("a") as file:
            file.write(_registration(kernels))
        for unit, content in _host_objects().items():
            (folder / unit).write_bytes(content)
        codegen.run([*_CPP, *_includes(), "-c", "kernels.cu", "-o", "kernels.o"], folder)
        codegen.run([*_C, "-c", "operator.c", "-o", "operator.o"], folder)
        objects = [*_host_objects(), "kernels.o", "operator.o"]
        codegen.run(["g++", "-shared", "-static-libgcc", *objects, "-o", "out.so"], folder)
        return (folder / "out.so").read_bytes()


def build_instead_of_x86(graph: ir.Graph, target: Target) -> bytes:
    """In the place of `codegen.build_x86`: simulated, under the name of an x86 target."""
    return build(graph)


def admit(patch: pytest.MonkeyPatch) -> None:
    """Let simulated libraries be loaded: they hold C++ and a constructor, which ours never do."""
    if importlib.util.find_spec("relu_ops.runtime.elf"):
        patch.setattr("relu_ops.runtime.elf.check", lambda *_, **__: None)


def _registration(kernels: list[Kernel]) -> str:
    """Make the kernels known to the simulated driver, and prepare its device."""
    known = "".join(
        f'  simulate("{kernel.name}", Launch<{kernel.name}>::run);\n' for kernel in kernels
    )
    memories = "".join(
        f'  simulate_memory("{name}", {name}, sizeof({name}));\n'
        for name in ("relu_ops_constants", "relu_ops_spare")
    )
    return (
        '#include <tvm/ffi/c_api.h>\nextern "C" int __tvm_ffi_prepare(void*, const TVMFFIAny*, '
        "int32_t, TVMFFIAny*);\n"
        'extern "C" void* simulated_lookup(void*, const char*);\n'
        "__attribute__((constructor)) static void simulated_start() {\n"
        f"{known}{memories}"
        "  TVMFFIAny arguments[3] = {}, result;\n"
        "  for (auto& argument : arguments) argument.type_index = kTVMFFIInt;\n"
        "  arguments[1].v_int64 = (int64_t)simulated_lookup;\n"
        "  if (__tvm_ffi_prepare(nullptr, arguments, 3, &result)) std::abort();\n}\n"
    )


def _includes() -> list[str]:
    return [f"-I{path}" for path in tvm_ffi.libinfo.include_paths()]


@functools.cache
def _host_objects() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for header in (*codegen_cuda.HEADERS, "bfloat16.h"):
            (folder / header).write_bytes(codegen.source(header))
        for path in SHIM.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        made = {}
        for unit in codegen_cuda.HOST_UNITS:
            (folder / f"{unit}.c").write_bytes(codegen.source(f"{unit}.c"))
            codegen.run([*_C, *_includes(), "-c", f"{unit}.c", "-o", f"{unit}.o"], folder)
            made[f"{unit}.o"] = (folder / f"{unit}.o").read_bytes()
        codegen.run([*_CPP, "-c", "driver.cpp", "-o", "driver.o"], folder)
        return made | {"driver.o": (folder / "driver.o").read_bytes()}
