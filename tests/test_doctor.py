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

from relu_ops import targets
from relu_ops.native import _python as native
from relu_ops.report import doctor
from relu_ops.runtime import driver, tuning
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
    assert report["native"]["version"] == report["relu_ops"]["version"]
    assert Path(report["native"]["path"]).is_file()
    assert report["cuda"]["problem"] is None


def test_no_driver_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELU_OPS_CUDA_DRIVER", "libno_driver.so.1")
    driver._library.cache_clear()
    report = doctor.report()
    driver._library.cache_clear()
    assert report["cuda"] == {
        "state": "no driver, no device",
        "driver": None,
        "devices": [],
        "absent": "CUDA's driver cannot be used: libno_driver.so.1: cannot open shared object "
        "file: No such file or directory",
        "problem": None,
    }
    assert "cuda      no driver, no device\n" in doctor.render(report)
    assert report["advice"] == []


def test_it_imports_nothing_big() -> None:
    script = (
        "import sys\nfrom relu_ops.report import doctor\ndoctor.render(doctor.report())\n"
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
    without("onnx", "apache-tvm", "pyelftools", "capstone", "onnxruntime", "matplotlib")
    report = doctor.report()
    assert report["can"] == {
        "run": None,
        "compile": "not installed: onnx, apache-tvm, pyelftools",
        "verify": "not installed: onnxruntime",
        "plot": "not installed: matplotlib",
    }
    assert report["advice"] == [
        "to compile: pip install 'relu_ops[compile]'",
        "to verify: pip install 'relu_ops[verify]'",
        "to plot: pip install 'relu_ops[plot]'",
    ]
    text = doctor.render(report)
    assert "apache-tvm    not installed (relu_ops[compile]: compiling operators)" in text
    assert "compile: no (not installed: onnx, apache-tvm, pyelftools)" in text
    assert "capstone      not installed (relu_ops[inspect]: showing the machine code that" in text


def test_a_module_of_another_distribution_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version

    def gpu_build(name: str) -> str:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", gpu_build)
    report = doctor.report()
    assert report["can"]["verify"] is None
    assert "onnxruntime   installed, version unknown" in doctor.render(report)


def test_no_tool_of_the_machine_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but packages is needed: what PATH, CC and CXX say changes nothing."""
    report = doctor.report()
    monkeypatch.setenv("CXX", "/no/such/compiler --fast")
    monkeypatch.setenv("CC", "'")
    monkeypatch.setenv("PATH", "")
    assert doctor.report() == report


def test_a_native_library_of_another_version_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "VERSION", "0.0.9")
    report = doctor.report()
    problem = f"it is not of relu_ops {report['relu_ops']['version']}: the package was installed in"
    assert report["native"]["problem"] == f"{problem} part"
    assert report["can"]["run"] == f"{problem} part"
    assert report["advice"] == ["to run: pip install --force-reinstall relu_ops"]
    assert f"native    0.0.9 at {report['native']['path']} ({problem} part)" in doctor.render(
        report
    )


def test_a_machine_that_runs_nothing_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "this_machine", lambda: Machine("riscv64"))
    report = doctor.report()
    assert report["can"]["run"] == "no target runs on this machine"
    assert report["targets"]["native"] is None
    text = doctor.render(report)
    assert "x86-64-v2: not here: the processor is riscv64 (not x86_64)" in text
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
    "_native",
    "_package",
    "_machine",
    "_threads",
    "_targets",
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
    assert "cannot tell: RuntimeError: out of luck" in doctor.render(report)


def test_every_probe_may_die(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> dict[str, Any]:
        raise OSError("gone")

    for probe in [*PROBES, "_cache"]:
        monkeypatch.setattr(doctor, probe, die)
    report = doctor.report()
    assert report["can"]["run"].startswith("not installed: numpy")
    assert doctor.render(report).count("OSError: gone") >= len(PROBES)
