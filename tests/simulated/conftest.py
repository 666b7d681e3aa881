"""What every check on the simulated driver shares: kernels compiled for the CPU.

These run in processes of their own, which test_cuda_simulated.py starts: a kernel that writes where
it must not may end its process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import simulated_cuda

from relu_ops.compiler.cuda import codegen as codegen_cuda
from relu_ops.compiler.cuda import nvrtc


@pytest.fixture(autouse=True, scope="session")
def _simulated() -> Iterator[None]:
    assert "RELU_OPS_CUDA_DRIVER" in os.environ, "run tests/test_cuda_simulated.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codegen_cuda, "fat_binary", simulated_cuda.fat_binary)
        # No compiler of NVIDIA's takes part.
        patch.setattr(nvrtc, "version", lambda: "13.0")
        patch.setattr(nvrtc, "architectures", lambda: list(codegen_cuda.ARCHITECTURES))
        yield


@pytest.fixture(autouse=True)
def _as_at_first() -> None:
    simulated_cuda.driver().simulated_reset()
