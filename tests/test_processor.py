"""The processor is asked what it can do, and says what Linux says of it."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tvm_ffi

from relu_ops.native import _python as native
from relu_ops.targets import TARGETS, of_architecture

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the features are x86-64's")

ROOT = Path(__file__).parents[1]
REQUIRED = {flag for name in of_architecture() for flag in TARGETS[name].flags}
WITH_AVX = {"avx", "avx2", "f16c", "fma"}
WITH_AVX512 = {flag for flag in REQUIRED if flag.startswith("avx512")}


def flags_of_linux() -> set[str]:
    try:
        content = Path("/proc/cpuinfo").read_text()
    except OSError as error:
        pytest.skip(f"/proc/cpuinfo cannot be read: {error.strerror}")
    found = re.search(r"^flags\s*:(.*)$", content, re.MULTILINE)
    assert found
    return set(found[1].split())


def test_the_features_are_those_of_linux() -> None:
    assert native.processor_features() == flags_of_linux() & REQUIRED


def test_every_feature_that_a_target_requires_is_known() -> None:
    header = (ROOT / "relu_ops/native/arch_x86_64.h").read_text()
    rows = re.findall(r'^    \{"(\w+)", (?:1|7|0x80000001), E[BC]X, ', header, re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == REQUIRED


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """processor.c, for any x86-64 processor."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("gcc is not there")
    path = tmp_path_factory.mktemp("processor") / "processor"
    includes = [ROOT / "relu_ops/native/include", Path(tvm_ffi.__file__).parent / "include"]
    command = [compiler, "-std=c11", "-static", "-Wall", "-Werror"]
    command += [f"-I{include}" for include in includes]
    subprocess.run([*command, str(ROOT / "tests/native/processor.c"), "-o", str(path)], check=True)
    return [str(path)]


def features(*command: str) -> list[set[str]]:
    """The features that are found where the system saves no vectors, AVX's, AVX-512's; and here."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_vectors_that_the_system_does_not_save_are_absent(program: list[str]) -> None:
    none, avx, both, here = features(*program)
    assert both == avx | (both & WITH_AVX512)
    assert avx == none | (avx & WITH_AVX)
    assert none == both - WITH_AVX - WITH_AVX512
    assert native.processor_features() == here <= both


EMULATED = {
    "cx16": "cx16",
    "lahf_lm": "lahf-lm",
    "pni": "sse3",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
    **{name: name for name in ("popcnt", "ssse3", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma")},
    **{name: name for name in ("abm", "movbe", "xsave")},
}
"""By feature: what QEMU calls it. Its processors without code for AVX-512 cannot show that."""


@pytest.mark.parametrize("feature", EMULATED)
def test_a_processor_without_a_feature(program: list[str], feature: str) -> None:
    qemu = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
    if qemu is None:
        pytest.skip("qemu-x86_64 is not there")
    whole = features(qemu, "-cpu", "max", *program)
    lacking = features(qemu, "-cpu", f"max,-{EMULATED[feature]}", *program)
    assert set(EMULATED) <= whole[1] == whole[3]
    assert whole[1] - lacking[1] == {feature}
    # Who has no xsave, or no AVX, saves none of its registers.
    without_vectors = {feature} | (WITH_AVX if feature in ("avx", "xsave") else set())
    assert whole[3] - lacking[3] == without_vectors
