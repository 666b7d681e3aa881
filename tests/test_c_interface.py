"""The interface for C and C++: a program, compiled as anybody would with what the package says."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from relu_ops import compiler, config, graphs
from relu_ops._version import __version__
from relu_ops.native import _python as native

SOURCES = Path(__file__).parents[1] / "relu_ops" / "native"
PROGRAM = Path(__file__).parent / "native" / "program.c"
LIBRARY = Path(config.values()["library"])
HEADER = SOURCES / "include" / "relu_ops.h"

WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
DIALECTS = {"c11": ["cc", "-x", "c", "-std=c11"], "c++17": ["c++", "-x", "c++", "-std=c++17"]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("c") / "both.bundle"
    models = {
        "leaky": graphs.leaky_relu(alpha=0.5),
        "scaled": graphs.scale_bias_leaky_relu(alpha=0.5, channels=4),
    }
    return path, compiler.build(models, ["x86-64-v2", "native"], path)


@pytest.fixture(scope="module", params=DIALECTS)
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    command = DIALECTS[request.param]
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} on PATH: the package was built elsewhere")
    made = tmp_path_factory.mktemp("program") / "program"
    told = config.values()
    source = [*shlex.split(told["cflags"]), str(PROGRAM), "-x", "none", "-pthread"]
    target = [*shlex.split(told["libs"]), "-o", str(made)]
    subprocess.run([*command, *WARNINGS, *source, *target], check=True)
    return made


def test_a_program_uses_a_bundle(program: Path, bundle: tuple[Path, str]) -> None:
    path, digest = bundle
    done = subprocess.run(
        [program, path, digest], capture_output=True, text=True, timeout=120, env={}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert f"version {__version__}" in lines
    assert [line for line in lines if line.startswith("operator")] == [
        "operator leaky",
        "operator scaled",
    ]
    assert f"leaky on {native.read_bundle(str(path)).choose()}" in lines
    assert "scaled on x86-64-v2" in lines
    assert "  scale: code 2, 32 bits, rank 1 4" in lines
    refusals = [line for line in lines if line.startswith("refused: ")]
    assert refusals[0].startswith("refused: the program was compiled for interface 2 of relu_ops")
    assert refusals[1].startswith("refused: /nowhere: no bundle can be read there")
    assert "leaky, scaled" in refusals[2]
    assert refusals[3:] == [
        "refused: leaky: out for y.shape must be (2, 3) (not (3, 3))",
        "refused: leaky: x.dtype must be float32 (not float64)",
        "refused: leaky: x is in the memory of device cuda:0; this operator runs on the CPU",
        "refused: threads must be 1 to 256 (not 0)",
    ]


def test_a_wrong_digest_is_refused(program: Path, bundle: tuple[Path, str]) -> None:
    path, digest = bundle
    done = subprocess.run([program, path, digest[::-1]], capture_output=True, text=True)
    assert done.returncode != 0
    assert digest in done.stderr


def exports(library: Path) -> set[str]:
    from elftools.elf.elffile import ELFFile

    with library.open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".dynsym")
        defined = [s for s in symbols.iter_symbols() if s["st_shndx"] != "SHN_UNDEF" and s.name]
        return {s.name for s in defined if s["st_shndx"] != "SHN_ABS"}  # but the version's name


def versions(library: Path) -> set[str]:
    """The versions that the exported symbols have: of all but the library's own name."""
    from elftools.elf.elffile import ELFFile

    with library.open("rb") as file:
        elf = ELFFile(file)
        names = {
            definition["vd_ndx"]: next(auxiliaries).name
            for definition, auxiliaries in elf.get_section_by_name(".gnu.version_d").iter_versions()
        }
        symbols = elf.get_section_by_name(".dynsym")
        numbers = elf.get_section_by_name(".gnu.version")
        return {
            names[numbers.get_symbol(k)["ndx"]]
            for k, symbol in enumerate(symbols.iter_symbols())
            if symbol["st_shndx"] not in ("SHN_UNDEF", "SHN_ABS") and symbol.name
        }


def test_the_library_exports_what_the_header_declares() -> None:
    """And what onnxruntime looks for in a library of operators."""
    declared = set(re.findall(r"RELU_OPS_EXPORT[^;]*?\b(relu_ops_\w+)\(", HEADER.read_text()))
    assert len(declared) > 30
    assert exports(LIBRARY) == declared | {"RegisterCustomOps"}


def test_every_symbol_has_the_version_of_the_interface() -> None:
    """A program that was linked with another interface does not start."""
    (number,) = re.findall(r"^#define RELU_OPS_API (\d+)$", HEADER.read_text(), re.MULTILINE)
    assert versions(LIBRARY) == {f"RELU_OPS_{number}"}


def test_the_library_stays_when_it_is_unloaded() -> None:
    from elftools.elf.elffile import ELFFile

    with LIBRARY.open("rb") as file:
        flags = [
            tag["d_val"]
            for tag in ELFFile(file).get_section_by_name(".dynamic").iter_tags()
            if tag["d_tag"] == "DT_FLAGS_1"
        ]
    assert flags and flags[0] & 0x8  # DF_1_NODELETE


def test_the_library_needs_the_c_library_alone() -> None:
    from elftools.elf.elffile import ELFFile

    with LIBRARY.open("rb") as file:
        section = ELFFile(file).get_section_by_name(".dynamic")
        needed = {tag.needed for tag in section.iter_tags() if tag["d_tag"] == "DT_NEEDED"}
    assert needed <= {"libc.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2"}


@pytest.mark.parametrize("source", sorted(SOURCES.glob("*.c")), ids=lambda path: path.name)
def test_no_warning(source: Path) -> None:
    import numpy as np

    compiler_path = shutil.which("cc") or shutil.which("gcc")
    if compiler_path is None:
        pytest.skip("no C compiler on PATH: the package was built elsewhere")
    includes = [np.get_include(), sysconfig.get_paths()["include"], config.values()["include_dir"]]
    if "<tvm/ffi/" in source.read_text():
        includes += pytest.importorskip("tvm_ffi").libinfo.include_paths()
    flags = [flag for path in includes for flag in ("-isystem", str(path))]
    definitions = ["-DRELU_OPS_BUILD", "-DRELU_OPS_SEMANTICS=1", '-DRELU_OPS_PACKAGE_VERSION="0"']
    command = [compiler_path, "-std=c11", "-O1", "-fPIC", *WARNINGS, *definitions, *flags]
    done = subprocess.run(
        [*command, "-c", str(source), "-o", "/dev/null"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_python_and_c_have_one_version() -> None:
    assert __version__ == native.VERSION
