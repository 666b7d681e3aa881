"""The base install, in a virtual environment of its own: what it brings, and that it runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import checkout
import programs
import pytest

from relu_ops import compiler, graphs

ROOT = Path(__file__).parents[1]
LIMIT = 3 * 10**6
ELSEWHERE = ("pip", "setuptools", "pkg_resources", "_distutils_hack", "wheel", "numpy", "ml_dtypes")
INSPECT = "relu_ops.report.inspect"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The released wheel, made of the checkout's own files as `scripts/release.py` does it."""
    source = checkout.copy_to(tmp_path_factory.mktemp("source") / "relu_ops")
    programs.load("release").write_addresses(source, "https://code.example.org/relu_ops")
    folder = tmp_path_factory.mktemp("wheels")
    done = subprocess.run(
        [sys.executable, source / "scripts" / "build_wheel.py", folder],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (made,) = folder.iterdir()
    assert done.stdout == f"{made}\n"
    return made


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    done = subprocess.run(
        [folder / "bin" / "pip", "install", "-q", "--no-compile", wheel],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_wheel_is_for_this_python_on_any_linux(wheel: Path) -> None:
    python = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    assert re.fullmatch(
        rf"relu_ops-[0-9.]+-{python}-{python}-manylinux_2_[0-9]+_x86_64\.whl", wheel.name
    )


def test_the_wheel_holds_the_package_and_nothing_else(
    wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exact list: scripts/build_wheel.py, which made this wheel, refuses any other."""
    build_wheel = programs.load("build_wheel")
    suffix = build_wheel.suffix_of(sys.executable)
    version = sys.version_info
    assert suffix.startswith(f".cpython-{version[0]}{version[1]}") and suffix.endswith(".so")
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if name[-1] != "/"}
        archive.extractall(tmp_path / "installed")
    bundle = tmp_path / "installed" / "relu_ops" / "standard.bundle"
    assert build_wheel.holds_what_it_must(wheel, suffix, bundle)
    less = {name: file for name, file in files.items() if name != "relu_ops/py.typed"}
    for other, said in (
        ({**files, "tests/x.py": b""}, "holds tests/x.py, which does not belong in it"),
        (less, "lacks relu_ops/py.typed"),
    ):
        with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
            for name, content in other.items():
                archive.writestr(name, content)
        assert not build_wheel.holds_what_it_must(tmp_path / "x.whl", suffix, bundle)
        assert capsys.readouterr().err == f"x.whl: {said}\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("twine check --strict", "PASSED"),
        ("check_wheel_contents", "OK"),
        ("auditwheel show", "TAG"),
    ],
)
def test_those_who_know_wheels_find_nothing_wrong(wheel: Path, command: str, said: str) -> None:
    """`said`: what stands in the answer where all is well; TAG is the platform in the name."""
    module, *options = command.split()
    pytest.importorskip(module, reason="needs pip install 'relu_ops[release]'")
    done = subprocess.run(
        [sys.executable, "-m", module, *options, wheel], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert said.replace("TAG", f'"{wheel.stem.rpartition("-")[2]}"') in done.stdout


def test_the_standard_operators_are_in_it(environment: Path, tmp_path: Path) -> None:
    """Nothing is compiled, and no cache looked for: there is no home to keep one in."""
    code = """
import sys, numpy as np, relu_ops
x = np.float32([-2, -0.0, 3])
print(relu_ops.relu(x), relu_ops.leaky_relu(x), relu_ops.leaky_relu(x, 0.001))
print(sorted({m.partition('.')[0] for m in sys.modules} & {'tvm', 'onnx', 'torch'}))
"""
    done = subprocess.run(
        [environment / "bin" / "python", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": ""},
    )
    expected = "[ 0. -0.  3.] [-0.02 -0.    3.  ] [-2.e-03 -0.e+00  3.e+00]\n[]\n"
    assert (done.stdout, done.stderr) == (expected, "")


def site_packages(environment: Path) -> Path:
    (found,) = environment.glob("lib/python3*/site-packages")
    return found


def test_it_brings_no_compiler(environment: Path) -> None:
    names = {path.name for path in site_packages(environment).iterdir()}
    assert {"relu_ops", "numpy", "ml_dtypes"} <= names
    assert not names & {"tvm", "tvm_ffi", "onnx", "onnxruntime", "torch", "matplotlib"}


def test_it_is_small(environment: Path) -> None:
    size = sum(
        file.stat().st_size
        for entry in site_packages(environment).iterdir()
        if not entry.name.startswith(ELSEWHERE)
        for file in ([entry] if entry.is_file() else entry.rglob("*"))
        if file.is_file() and file.suffix != ".pyc"
    )
    assert 10**6 < size <= LIMIT


def test_it_is_all_that_another_machine_needs(environment: Path, tmp_path: Path) -> None:
    """`verify` and `bench` of this checkout, on a host that has the base install alone."""
    path = tmp_path / "leaky"
    compiler.build(graphs.leaky_relu(alpha=0.1), ["x86-64-v2"], path)
    ssh = f"'{sys.executable}' '{Path(__file__).with_name('stand_in_ssh.py')}'"
    there = ("--on", "plain", "--python", environment / "bin" / "python", "--json")
    few = ("--size", "16", "--peer", "relu_ops", "--peer", "numpy", "--quick")
    answers = []
    for verb in (("verify", path, "--case", "0"), ("bench", path, *few)):
        done = subprocess.run(
            [sys.executable, "-m", "relu_ops", *verb, *there],
            capture_output=True,
            text=True,
            env={**os.environ, "RELU_OPS_SSH": ssh},
        )
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout))
    report, record = answers
    assert report["ok"] and {row["referee"] for row in report["rows"]} > {"NumPy reference"}
    timed = {t["contestant"] for t in record["timings"]}
    assert timed >= {"relu_ops", "numpy", "limit: copy, 1 thread"}
    assert record["machine"]["on"] == "plain" and set(record["software"]["packages"]) == {"numpy"}


def test_it_runs_a_bundle(environment: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "leaky.bundle"
    compiler.build(graphs.leaky_relu(alpha=0.5), ["native"], bundle)
    code = f"""
import sys, numpy as np, relu_ops
op = relu_ops.load({str(bundle)!r})
print(op(np.float32([-2, 3])))
print(sorted({{m.partition('.')[0] for m in sys.modules}} & {{'tvm', 'onnx', 'torch'}}))
"""
    python = environment / "bin" / "python"
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, cwd=tmp_path, env={"PATH": ""}
    )
    assert (done.stdout, done.stderr) == ("[-1.  3.]\n[]\n", "")


def test_the_doctor_finds_nothing_wrong(environment: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [environment / "bin" / "relu-ops", "doctor"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "", "HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "cache     none: nothing can be compiled here" in done.stdout
    assert "run: yes" in done.stdout


def test_compiling_says_what_to_install(environment: Path, tmp_path: Path) -> None:
    python = environment / "bin" / "python"
    done = subprocess.run(
        [python, "-c", "import relu_ops; relu_ops.compile(b'')"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "", "HOME": str(tmp_path)},
    )
    assert done.stderr.splitlines()[-2:] == [
        "relu_ops.errors.MissingDependencyError: relu_ops.compile needs the package onnx, "
        "which is not installed",
        "hint: pip install 'relu_ops[compile]'",
    ]


@pytest.mark.parametrize(
    ("arguments", "purpose", "package", "extra"),
    [
        ("export", "relu_ops.graphs", "onnx", "compile"),
        ("build BUNDLE/model.onnx --output o", "compiling an operator", "onnx", "compile"),
        ("inspect BUNDLE --source tir", f"{INSPECT}.source", "onnx", "compile"),
        (
            "inspect BUNDLE --rebuild-check",
            f"{INSPECT}.rebuild_check",
            "onnx",
            "compile",
        ),
        ("verify BUNDLE", "relu_ops.verify", "onnx", "verify"),
        ("bench --quick", "relu_ops.bench", "onnx", "bench"),
        ("bench BUNDLE", "relu_ops.bench", "onnx", "bench"),
        ("tune", "relu_ops.graphs", "onnx", "compile"),
        ("plot BUNDLE --output o.png", "relu_ops.report.plot", "matplotlib", "plot"),
    ],
)
def test_every_verb_that_needs_more_says_what_to_install(
    environment: Path, tmp_path: Path, arguments: str, purpose: str, package: str, extra: str
) -> None:
    bundle = tmp_path / "relu.bundle"
    compiler.build(graphs.relu(), ["native"], bundle)
    done = subprocess.run(
        [environment / "bin" / "relu-ops", *arguments.replace("BUNDLE", str(bundle)).split()],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "", "HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"relu-ops: {purpose} needs the package {package}, which is not installed\n"
        f"hint: pip install 'relu_ops[{extra}]'\n"
    )
