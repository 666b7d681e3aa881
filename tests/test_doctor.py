"""The doctor never fails, imports nothing big, and says what to install."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import tomllib
from pathlib import Path
from typing import Any

import children
import pytest

from relu_ops import doctor, targets
from relu_ops.runtime import headers, tuning
from relu_ops.targets import Machine

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"tvm", "tvm_ffi", "onnx", "onnxruntime", "torch", "jax", "matplotlib"}


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make packages look as if they were not installed."""
    find, version = importlib.util.find_spec, importlib.metadata.version

    def hide(*names: str) -> None:
        hidden = {row.module for row in doctor.PACKAGES if row.name in names}

        def no_version(name: str) -> str:
            if name in names:
                raise importlib.metadata.PackageNotFoundError(name)
            return version(name)

        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name in hidden else find(name)
        )
        monkeypatch.setattr(importlib.metadata, "version", no_version)

    return hide


def state(report: dict[str, Any], name: str) -> dict[str, Any]:
    return next(package for package in report["packages"] if package["name"] == name)


# ---------------------------------------------------------------- what is there


def test_the_report_is_plain_data_and_says_what_is_here() -> None:
    report = doctor.report()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert state(report, "numpy")["version"] == importlib.metadata.version("numpy")
    assert report["can"] == {"run": None, "compile": None, "verify": None, "plot": None}
    assert report["advice"] == []
    assert report["cache"]["problem"] is None
    assert report["targets"]["native"] == targets.native().name


def test_it_imports_nothing_big() -> None:
    script = (
        "import sys\nfrom relu_ops import doctor\ndoctor.render(doctor.report())\n"
        "print(*sys.modules)"
    )
    done = children.run(script)
    assert (done.returncode, done.stderr) == (0, "")
    assert not set(done.stdout.split()) & HEAVY


def test_its_extras_are_those_of_the_package() -> None:
    """torch and jax stand apart: relu_ops takes their arrays and never installs them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {"": project["dependencies"], **project["optional-dependencies"]}
    for row in doctor.PACKAGES:
        if row.name not in ("torch", "jax"):
            assert any(entry.startswith(row.name) for entry in wanted[row.extra]), row.name
    base = {row.name for row in doctor.PACKAGES if not row.extra}
    assert len(base) == len(project["dependencies"])


# ---------------------------------------------------------------- what is missing


def test_a_base_install_runs_and_is_told_how_to_do_more(without: Any) -> None:
    without("onnx", "apache-tvm", "onnxruntime", "matplotlib")
    report = doctor.report()
    assert report["can"] == {
        "run": None,
        "compile": "not installed: onnx, apache-tvm",
        "verify": "not installed: onnxruntime",
        "plot": "not installed: matplotlib",
    }
    assert report["advice"] == [
        "to compile: pip install 'relu_ops[compile]'",
        "to verify: pip install 'relu_ops[verify]'",
        "to plot: pip install 'relu_ops[plot]'",
    ]
    text = doctor.render(report)
    assert "apache-tvm      not installed (relu_ops[compile]: compiling operators)" in text
    assert "compile: no (not installed: onnx, apache-tvm)" in text


def test_a_module_of_another_distribution_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def gpu_build(name: str) -> str:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", gpu_build)
    report = doctor.report()
    assert report["can"]["verify"] is None
    assert "onnxruntime     installed, version unknown" in doctor.render(report)


def test_without_a_c_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CXX", "CC"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", "")
    report = doctor.report()
    reason = report["can"]["compile"]
    assert reason.startswith("building an operator needs a C or C++ compiler")
    assert report["can"]["verify"] == f"cannot compile: {reason}"
    assert report["can"]["run"] is None
    assert report["advice"] == [
        "to compile: install one (Debian: apt-get install g++), or load a bundle that was built "
        "elsewhere"
    ]


def test_a_compiler_that_cannot_be_run_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/such/compiler --fast")
    report = doctor.report()
    assert report["can"]["compile"] == "/no/such/compiler cannot be run"
    assert report["advice"] == ["to compile: set CXX to the command of a C++ compiler"]


def test_a_machine_that_runs_nothing_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "this_machine", lambda: Machine("aarch64"))
    report = doctor.report()
    assert report["can"]["run"] == "no target runs on this machine"
    assert report["targets"]["native"] is None
    text = doctor.render(report)
    assert "x86-64-v2: not here: the processor is aarch64 (not x86_64)" in text
    assert "native is none of them" in text


def test_an_unusable_cache_is_told_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "cache"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv("RELU_OPS_CACHE", str(shared))
    report = doctor.report()
    assert "can be written by others" in report["cache"]["problem"]
    assert "RELU_OPS_CACHE" in report["advice"][0]
    monkeypatch.setenv("RELU_OPS_CACHE", "/dev/null/cache")
    assert "cannot be made" in doctor.report()["cache"]["problem"]
    monkeypatch.setenv("RELU_OPS_CACHE_SIZE", "lots")
    report = doctor.report()
    assert (
        report["cache"]["problem"] == "RELU_OPS_CACHE_SIZE must be a number of bytes (not 'lots')"
    )
    assert report["advice"] == [
        "to compile once and not in every process: unset RELU_OPS_CACHE_SIZE, or correct it"
    ]


def test_a_wrong_number_of_threads_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """No operator can be loaded then: a report that says that all is well would be wrong."""
    monkeypatch.setenv("RELU_OPS_NUM_THREADS", "7")
    assert "threads   7 for a large call, default" in doctor.render(doctor.report())
    monkeypatch.setenv("RELU_OPS_NUM_THREADS", "many")
    report = doctor.report()
    problem = "RELU_OPS_NUM_THREADS must be 1 to 256 (not 'many')"
    assert report["can"] == {
        "run": problem,
        "compile": f"cannot run: {problem}",
        "verify": f"cannot compile: cannot run: {problem}",
        "plot": f"cannot run: {problem}",
    }
    assert report["advice"] == ["to run: unset RELU_OPS_NUM_THREADS, or correct it"]


def test_the_driver_and_nvcc_are_found_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 99.9, V99.9.1'\n")
    nvcc.chmod(0o755)
    monkeypatch.setattr("relu_ops.compiler.toolchain.places_of_nvcc", lambda: iter([nvcc]))
    found = doctor.report()["cuda"]
    assert found["nvcc"] == str(nvcc)
    assert found["nvcc_version"] == "Cuda compilation tools, release 99.9, V99.9.1"

    class Driver:
        def __init__(self, name: str) -> None:
            assert name == "libcuda.so.1"

        def cuDriverGetVersion(self, pointer: Any) -> int:
            pointer._obj.value = 13020
            return 0

    monkeypatch.setattr("ctypes.CDLL", Driver)
    assert doctor.report()["cuda"]["driver"] == "CUDA 13.2"


def test_it_says_how_calls_read_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "NumPy arrays are read where they lie" in doctor.render(doctor.report())
    monkeypatch.setattr(headers, "array_type", lambda: 0)
    report = doctor.report()
    assert report["calls"]["reads_headers"] is False
    assert "not read where they lie: 20 us more a call" in doctor.render(report)


def test_it_says_whether_a_tuning_is_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tuning.json"
    monkeypatch.setenv("RELU_OPS_TUNING", str(path))
    monkeypatch.setenv("RELU_OPS_NUM_THREADS", "2")

    def line() -> str:
        return next(x for x in doctor.render(doctor.report()).splitlines() if x[:7] == "threads")

    assert line() == "threads   2 for a large call, default thresholds (not tuned)"
    here, limits = targets.this_machine().cpu, tuning.Thresholds(1, 2, 3)
    tuning.store(tuning.Tuning(here, 2, "2026-11-22", limits))
    assert line() == f"threads   2 for a large call, thresholds of {path}"
    why = f"default thresholds ({path} is of another machine or number of threads, or no tuning)"
    for other in (tuning.Tuning("another", 2, "", limits), tuning.Tuning(here, 3, "", limits)):
        tuning.store(other)
        assert line() == f"threads   2 for a large call, {why}"


# ---------------------------------------------------------------- it never fails


PROBES = [
    "_relu_ops",
    "_python",
    "_calls",
    "_package",
    "_machine",
    "_threads",
    "_targets",
    "_c_compiler",
    "_cuda",
]


@pytest.mark.parametrize("probe", [*PROBES, "_cache"])
def test_a_probe_that_dies_is_a_line_of_the_report(
    monkeypatch: pytest.MonkeyPatch, probe: str
) -> None:
    def die(*_: Any) -> dict[str, Any]:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(doctor, probe, die)
    report = doctor.report()
    json.dumps(report)
    assert "cannot tell: RuntimeError: out of luck" in doctor.render(report) or (
        probe == "_c_compiler" and "RuntimeError: out of luck" in doctor.render(report)
    )


def test_every_probe_may_die(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> dict[str, Any]:
        raise OSError("gone")

    for probe in [*PROBES, "_cache"]:
        monkeypatch.setattr(doctor, probe, die)
    report = doctor.report()
    assert report["can"]["run"].startswith("not installed: numpy")
    assert doctor.render(report).count("OSError: gone") >= len(PROBES)
