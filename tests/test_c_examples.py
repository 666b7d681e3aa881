"""The examples for C and C++: built as their pages say, with every compiler that is here, and run.

With AddressSanitizer too; what the library itself leaks would be told at exit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from relu_ops import compiler, config, graphs

EXAMPLES = Path(__file__).parents[1] / "examples"
COMPILERS = {"gcc": "g++", "clang": "clang++"}
WARNINGS = "-Wall -Wextra -Wconversion -Werror"
SANITIZERS = {"plain": "", "addresses": "-g -fsanitize=address,undefined"}


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("examples") / "leaky.bundle"
    compiler.build(graphs.leaky_relu(alpha=0.5), ["x86-64-v2", "native"], path)
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("examples") / "rows.bundle"
    model = graphs.scale_bias_leaky_relu(alpha=0.5, channels=4)
    return path, compiler.build(model, ["x86-64-v2", "native"], path)


def need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"there is no {tool} on PATH")


def environment(**more: str) -> dict[str, str]:
    """That of a shell in which the package's commands are found."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    return {"PATH": path, "HOME": os.environ.get("HOME", "/"), **more}


def run(command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment(**more)
    )


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("cc", COMPILERS)
def test_c(cc: str, sanitizer: str, leaky: Path, tmp_path: Path) -> None:
    need(cc, "pkg-config", "sha256sum")
    flags = f"{WARNINGS} {SANITIZERS[sanitizer]}"
    command = [str(EXAMPLES / "c" / "run.sh"), str(leaky), "-2", "3", "-0.0"]
    done = run(command, CC=cc, CFLAGS=flags, BUILD=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    first, *others = done.stdout.splitlines()
    assert first.startswith("leaky_relu on x86-64-v")
    assert others == ["-2 -> -1", "3 -> 3", "-0 -> -0"]
    wrong = run([str(tmp_path / "relu"), str(leaky), "0" * 64, "1"])
    assert wrong.returncode == 1
    assert "SHA256SUMS has the digest" in wrong.stderr and "hint: " in wrong.stderr


def test_a_damaged_file_is_found_by_the_system_too(leaky: Path, tmp_path: Path) -> None:
    need("gcc", "pkg-config", "sha256sum")
    damaged = tmp_path / "damaged.bundle"
    shutil.copytree(leaky, damaged)
    image = damaged / "x86-64-v2.image"
    image.write_bytes(image.read_bytes()[:-1] + b"\1")
    done = run([str(EXAMPLES / "c" / "run.sh"), str(damaged), "1"], BUILD=str(tmp_path))
    assert done.returncode != 0 and "x86-64-v2.image: FAILED" in done.stdout
    assert not (tmp_path / "relu").exists()


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("cc", COMPILERS)
def test_cmake(cc: str, sanitizer: str, rows: tuple[Path, str], tmp_path: Path) -> None:
    need(COMPILERS[cc], "cmake")
    flags = f"{WARNINGS} {SANITIZERS[sanitizer]}"
    folder = run(["relu-ops", "config", "--cmake-dir"]).stdout.strip()
    build = ["cmake", "-S", str(EXAMPLES / "cmake"), "-B", str(tmp_path)]
    options = [f"-Drelu_ops_DIR={folder}", f"-DCMAKE_CXX_FLAGS={flags}"]
    made = run([*build, *options], CXX=COMPILERS[cc])
    assert made.returncode == 0, made.stderr
    made = run(["cmake", "--build", str(tmp_path)])
    assert made.returncode == 0, made.stdout + made.stderr
    path, digest = rows
    done = run([str(tmp_path / "rows"), str(path), digest])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "-3.5 -2.5 -1.5 -0.5\n1 3 5 7\n"
    wrong = run([str(tmp_path / "rows"), str(path), "0" * 64])
    assert wrong.returncode == 1 and "SHA256SUMS has the digest" in wrong.stderr


def test_another_version_is_not_found(tmp_path: Path) -> None:
    """A program says which releases it was written for: find_package(relu_ops 99)."""
    need("cmake")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\nproject(x LANGUAGES C)\n"
        "find_package(relu_ops 99 REQUIRED)\n"
    )
    folder = config.values()["cmake_dir"]
    build = ["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "build")]
    done = run([*build, f"-Drelu_ops_DIR={folder}"])
    assert done.returncode != 0 and "relu_opsConfig.cmake, version:" in done.stderr
