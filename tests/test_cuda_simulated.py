"""The CUDA kernels below the real core, on a simulated driver: each check in a process of its own.

See simulated/checks.py and simulated_cuda.py. A kernel that goes astray ends its own process, and
fails the test of its name. Needs a C++ compiler.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import simulated_cuda

CHECKS = Path(__file__).parent / "simulated" / "checks.py"
NAMES = re.findall(r"^def (test_\w+)", CHECKS.read_text(), re.MULTILINE)
MODELS = "test_every_model_passes_the_whole_check"

pytestmark = pytest.mark.skipif(
    simulated_cuda.COMPILER is None, reason="there is no C++ compiler (g++ or clang++)"
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated_cuda.compile_driver(tmp_path_factory.mktemp("driver"))


def run_check(driver: Path, name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """One function of checks.py, for all its parameters."""
    options = ["-q", "-x", "-rs", "--override-ini=addopts=", "-p", "no:cacheprovider", "-k", name]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(CHECKS)],
        env={**os.environ, "RELU_OPS_CUDA_DRIVER": str(driver), **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def check(driver: Path, name: str, **environment: str) -> None:
    done = run_check(driver, name, **environment)
    assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr[-3000:]}"
    if without := re.search(r"^SKIPPED \[1\] \S+: (.*)$", done.stdout, re.MULTILINE):
        pytest.skip(without[1])
    assert re.search(r"\d+ passed", done.stdout), done.stdout


@pytest.mark.parametrize("name", [name for name in NAMES if name != MODELS])
def test_on_the_simulated_driver(driver: Path, name: str) -> None:
    check(driver, name)


@pytest.mark.parametrize("part", "0123")
def test_every_model_on_the_simulated_driver(driver: Path, part: str) -> None:
    check(driver, MODELS, SIMULATED_PART=part)


@pytest.mark.parametrize("wrong", [name for name in simulated_cuda.BROKEN if name])
def test_a_row_that_is_off_by_one_fails(driver: Path, wrong: str) -> None:
    """By name, and without an end to this process."""
    done = run_check(driver, "test_all_offsets_and_sizes_around_a_chunk", SIMULATED_BREAK=wrong)
    assert done.returncode != 0
    assert "AssertionError" in done.stdout or "Segmentation fault" in done.stderr
