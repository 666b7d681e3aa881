"""Wheels of bundles: what they hold, that they install, and that equal ones are equal bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import relu_ops
from relu_ops import compiler, graphs
from relu_ops._version import __version__
from relu_ops.bundle import store as bundles
from relu_ops.errors import ArgumentError
from relu_ops.ship import wheel

TAGS = "manylinux1_x86_64.musllinux_1_0_x86_64"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wheel") / "leaky.bundle"
    models = {"leaky": graphs.leaky_relu(alpha=0.5), 'r\u00e9lu"""': graphs.relu()}
    compiler.build(models, ["x86-64-v2", "x86-64-v3"], path)
    return path


@pytest.fixture(scope="module")
def made(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel.write(bundle, tmp_path_factory.mktemp("made"), name="Leaky-demo", version="1.0")


def test_what_a_wheel_holds(made: Path, bundle: Path) -> None:
    assert made.name == f"leaky_demo-1.0-py3-none-{TAGS}.whl"
    archive = zipfile.ZipFile(made)
    assert archive.testzip() is None
    held = [f"leaky_demo/operators.bundle/{name}" for name in bundles.read(bundle).contents]
    information = [f"leaky_demo-1.0.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD")]
    assert sorted(archive.namelist()) == sorted(["leaky_demo/__init__.py", *held, *information])
    metadata = archive.read(information[0]).decode().splitlines()
    assert metadata == [
        "Metadata-Version: 2.1",
        "Name: Leaky-demo",
        "Version: 1.0",
        "Summary: Compiled leaky, r?lu??? for x86-64-v2, x86-64-v3",
        "Requires-Python: >=3.11",
        f"Requires-Dist: relu_ops>={__version__}",
    ]
    assert archive.read(information[1]).decode().splitlines() == [
        "Wheel-Version: 1.0",
        f"Generator: relu_ops {__version__}",
        "Root-Is-Purelib: true",
        *(f"Tag: py3-none-{tag}" for tag in TAGS.split(".")),
    ]


def test_equal_bundles_give_equal_bytes(made: Path, bundle: Path, tmp_path: Path) -> None:
    """On another day, in another place, for another user, whatever his machine is set to."""
    code = """
import sys
from pathlib import Path
from relu_ops.ship import wheel
print(wheel.write(Path(sys.argv[1]), Path(sys.argv[2]), name="Leaky-demo", version="1.0"))
"""
    copy = shutil.copytree(bundle, tmp_path / "a copy.bundle", copy_function=shutil.copyfile)
    for number, file in enumerate(sorted(copy.iterdir(), reverse=True)):
        file.chmod(0o640)
        os.utime(file, (10**9 + number, 10**9))
    for umask, variables in (
        (0o077, {"SOURCE_DATE_EPOCH": "1000000000", "TZ": "Asia/Tokyo", "LC_ALL": "C"}),
        (0o000, {"SOURCE_DATE_EPOCH": "0", "PYTHONHASHSEED": "7", "HOME": "/nowhere", "USER": "x"}),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, copy, tmp_path / f"{umask:o}"],
            capture_output=True,
            text=True,
            cwd="/",
            env={**os.environ, **variables},
            umask=umask,
        )
        assert done.stderr == ""
        assert Path(done.stdout.strip()).read_bytes() == made.read_bytes()


INSTALLERS = {
    "pip": ("pip", "install", "-q", "--no-deps", "--target"),
    "uv": ("uv", "pip", "install", "-q", "--offline", "--no-config", "--no-deps", "--target"),
}


@pytest.mark.parametrize("installer", INSTALLERS)
def test_an_installer_takes_it(installer: str, made: Path, tmp_path: Path) -> None:
    """Into a folder; the installer checks the name, the tags, and every line of RECORD."""
    pytest.importorskip(installer, reason="uv is not installed: pip install 'relu_ops[test]'")
    folder = tmp_path / "site"
    command = [sys.executable, "-m", *INSTALLERS[installer], folder, made]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = """
import numpy as np, leaky_demo
op = leaky_demo.load(name="leaky")
print(op(np.float32([-2, 3])), op.bundle.digest == leaky_demo.DIGEST)
"""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("[-1.  3.] True\n", "")
    sums = folder / "leaky_demo" / "operators.bundle" / "SHA256SUMS"
    other = tmp_path / "other.bundle"
    compiler.build(graphs.relu(), ["x86-64-v2"], other)
    for file in sums.parent.iterdir():
        file.unlink()
    for file in other.iterdir():
        (sums.parent / file.name).write_bytes(file.read_bytes())
    done = subprocess.run(run, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2].startswith("relu_ops.errors.BundleError: ")
    assert "digest" in done.stderr.splitlines()[-2]


def test_the_package_runs_here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zipfile.ZipFile(made).extractall(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import leaky_demo  # type: ignore[import-not-found]

    operator = leaky_demo.load(name="leaky", target="x86-64-v2")
    assert isinstance(operator, relu_ops.Operator) and operator.target == "x86-64-v2"
    assert operator(np.float32([-4])).tolist() == [-2]


def test_those_who_know_wheels_find_nothing_wrong(made: Path, tmp_path: Path) -> None:
    """auditwheel finds no library in it to hold to a tag: an image needs none."""
    for module, options, code, said in (
        ("check_wheel_contents", (), 0, f"{made}: OK"),
        ("auditwheel", ("show",), 1, "no ELF executable or shared library file"),
    ):
        pytest.importorskip(module, reason="needs pip install 'relu_ops[release]'")
        command = [sys.executable, "-m", module, *options, made]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done


@pytest.mark.parametrize(
    "name",
    ["", "-demo", "demo-", "a b", "3d", "class", "json", "relu_ops", "relu-ops", "d\u00e9mo"],
)
def test_a_name_that_is_none(bundle: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        wheel.write(bundle, tmp_path, name=name, version="1.0")
    assert str(caught.value) == (
        "wheel: name must be letters, digits and single '-' between them, begin with a letter, and "
        f"be no word or package of Python or relu_ops itself (not {name!r})\n"
        "hint: for example leaky-demo, which is imported as leaky_demo"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("version", ["", "v1.0", "1.0-1", "01", "1..0", "1.0 ", "1.0/../..", "a"])
def test_a_version_that_is_none(bundle: Path, tmp_path: Path, version: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        wheel.write(bundle, tmp_path, name="demo", version=version)
    assert str(caught.value) == (
        f"wheel: version must be normalized as PEP 440 has it (not {version!r})\n"
        "hint: for example 1.0, 1.0.2 or 2.0rc1"
    )


@pytest.mark.parametrize(
    "version", ["0", "1.0", "1!2.0", "1.0rc1", "1.0.post2", "1.0.dev3", "1+a.1"]
)
def test_a_version_that_is_one(bundle: Path, tmp_path: Path, version: str) -> None:
    path = wheel.write(bundle, tmp_path, name="demo", version=version)
    assert path.name == f"demo-{version}-py3-none-{TAGS}.whl"


def test_where_nothing_can_be_written(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentError, match=r"cannot be written: .*(File exists|Not a directory)"):
        wheel.write(bundle, tmp_path / "file", name="demo", version="1.0")
