"""A CUDA driver on the CPU: the same scheduled kernels, with their threads made loops.

The generated CUDA C++ is compiled by a C++ compiler behind the header in cuda_simulator, and takes
the place of the fat binary in the image; a driver library whose devices are the host runs it, below
the real core. Only in processes of its own: see test_cuda_simulated.py.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnx

from relu_ops import compiler
from relu_ops.bundle import store as bundle
from relu_ops.compiler.cuda import codegen as codegen_cuda
from relu_ops.compiler.cuda.schedule import Kernel
from relu_ops.contract import ir
from relu_ops.runtime import dispatch
from relu_ops.runtime.operator import Operator
from relu_ops.targets import Target
from relu_ops.verification.device import OnDevice

SHIM = Path(__file__).with_name("cuda_simulator")
COMPILER = shutil.which("g++") or shutil.which("clang++")

# As NVRTC is told: no contraction, every rounding where it is written. x86-64 alone, so that no
# fused instruction exists at all.
_FLAGS = (
    *("-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-march=x86-64"),
    *("-ffp-contract=off", "-fno-strict-aliasing", "-w"),
)
_MAGIC = 0xBA55ED50

BROKEN = {
    "": ("", ""),
    # A row is taken for one element longer at its end, which the element after it shows.
    "row": ("past)", "past + 1)"),
    # A row begins one element late.
    "first": ("blockIdx.y) * ((int64_t)tile_rows)", "blockIdx.y) * ((int64_t)tile_rows) + 1"),
}
"""Ways in which the device code can be wrong, for SIMULATED_BREAK: what is replaced by what."""


def compile_driver(folder: Path) -> Path:
    """Compile the driver; its path."""
    library = folder / "libsimulated_cuda.so"
    _compile([str(SHIM / "driver.cpp"), "-ldl", "-o", str(library)])
    return library


def fat_binary(graph: ir.Graph, kernels: Sequence[Kernel], target: Target, *_: object) -> bytes:
    """In the place of `codegen_cuda.fat_binary`: a library for this CPU, behind the same header."""
    source = codegen_cuda.device_source(graph, kernels)
    before, after = BROKEN[os.environ.get("SIMULATED_BREAK", "")]
    if before:
        assert before in source, source
        source = source.replace(before, after)
    content = _library(source + _exports(kernels))
    return struct.pack("<IHHQ", _MAGIC, 1, 16, len(content)) + content


def _exports(kernels: Sequence[Kernel]) -> str:
    """What the driver looks up by name."""
    kernel_names = "".join(f"SIMULATE({kernel.name})\n" for kernel in kernels)
    sizes = "".join(
        f"EXPORT const size_t simulated_size_{name};\n"
        f"const size_t simulated_size_{name} = sizeof({name});\n"
        for name in ("relu_ops_constants", "relu_ops_spare")
    )
    return f"\n{kernel_names}{sizes}"


@functools.cache
def _library(source: str) -> bytes:
    # The device's own memory has to be found by its name, too.
    source = source.replace(
        'extern "C" __device__', 'extern "C" __attribute__((visibility("default"))) __device__'
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "kernels.cpp").write_text(source)
        for header in (*SHIM.glob("*.h"), Path(codegen_cuda.__file__).with_name("bfloat16.h")):
            shutil.copy(header, folder)
        _compile(["-I.", "kernels.cpp", "-o", "out.so"], folder)
        return (folder / "out.so").read_bytes()


def _compile(arguments: Sequence[str], folder: Path | None = None) -> None:
    assert COMPILER is not None
    done = subprocess.run(
        [COMPILER, *_FLAGS, *arguments], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- in a process with the driver


def driver() -> ctypes.CDLL:
    """The simulated driver, as this process has it."""
    library = ctypes.CDLL(os.environ["RELU_OPS_CUDA_DRIVER"])
    library.simulated_calls.restype = ctypes.c_int64
    library.simulated_last_stream.restype = ctypes.c_void_p
    library.simulated_memory.restype = ctypes.c_size_t
    return library


def held(model: onnx.ModelProto | bytes, target: str = "cuda") -> bundle.Bundle:
    """The bundle of a model."""
    return bundle.from_contents("<memory>", compiler.make(model, [target]))


def loaded(model: onnx.ModelProto | bytes, device: int = 0, target: str = "cuda") -> Operator:
    """A model compiled and loaded on a device."""
    return dispatch.operator_of(held(model, target), cuda=device)


def called_from_here(model: onnx.ModelProto | bytes) -> OnDevice:
    """The same, called with NumPy arrays."""
    return OnDevice(loaded(model))
