"""What a bundle can be relied on for: its instructions, its bytes, and where it runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import children
import pytest

from relu_ops import bundle, compiler, graphs, targets
from relu_ops.compiler.toolchain import c_compiler
from relu_ops.runtime import elf
from relu_ops.targets import CPU_TARGETS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "leaky.bundle"
    compiler.build(graphs.leaky_relu(alpha=0.1), CPU_TARGETS, path)
    return path


# ---------------------------------------------------------------- instructions

# What a level must not hold, beside registers: instructions of the levels above it that have no
# wider register to give them away. Every AVX instruction begins with v; no older one does but
# verr and verw, and those of virtual machines.
BMI = {
    *("andn", "bextr", "blsi", "blsmsk", "blsr", "bzhi", "mulx", "pdep", "pext"),
    *("rorx", "sarx", "shlx", "shrx", "tzcnt", "lzcnt", "movbe"),
}
BEYOND = ("aes", "pclmul", "sha1", "sha256", "adcx", "adox", "rdrand", "rdseed", "xbegin", "gf2p8")
NOT_AVX = ("verr", "verw", "vmcall", "vmclear", "vmfunc", "vmlaunch", "vmload", "vmmcall", "vmptr")
NOT_AVX += ("vmread", "vmresume", "vmrun", "vmsave", "vmwrite", "vmxo")
BEYOND_V2 = re.compile(
    rf"(?!{'|'.join(NOT_AVX)})v\w+|{'|'.join(sorted(BMI))}|(?:{'|'.join(BEYOND)})\w*"
)
BEYOND_V3 = re.compile(rf"v?(?:{'|'.join(BEYOND)})\w*")
# AVX-512 alone has the registers 16 to 31, masks and roundings in braces.
WIDE = {
    "x86-64-v2": re.compile(r"%[yz]mm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])|\{"),
    "x86-64-v3": re.compile(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])|\{"),
}


def instructions(library: Path) -> list[tuple[str, str]]:
    """Every instruction of a whole library, the host entry included: mnemonic and operands."""
    if shutil.which("objdump") is None:
        pytest.skip("objdump is not installed (Debian: apt-get install binutils)")
    command = ["objdump", "-d", "--no-show-raw-insn", str(library)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = re.findall(r"(?m)^ +[0-9a-f]+:\t(.+)$", text)
    prefixes = r"(?:(?:lock|rep|repz|repnz|cs|ds|notrack|bnd|data16) +)*"
    found = [re.match(rf"{prefixes}(\S+) *(.*)", line) for line in lines]
    return [(match[1], match[2].partition("#")[0]) for match in found if match]


def beyond(level: str, found: list[tuple[str, str]]) -> set[str]:
    mnemonics = {"x86-64-v2": BEYOND_V2, "x86-64-v3": BEYOND_V3}[level]
    return {
        f"{name} {operands}"
        for name, operands in found
        if mnemonics.fullmatch(name) or WIDE[level].search(operands)
    }


@pytest.mark.parametrize("level", WIDE)
@pytest.mark.parametrize("name", graphs.MODELS)
def test_no_instruction_beyond_the_level(tmp_path: Path, name: str, level: str) -> None:
    _, contents = compiler.make(graphs.MODELS[name](), [level])
    path = tmp_path / f"{level}.so"
    path.write_bytes(contents[path.name])
    found = instructions(path)
    assert len(found) > 1000
    assert not beyond(level, found)
    assert "(bad)" not in {mnemonic for mnemonic, _ in found}


def test_the_check_of_instructions_can_fail(built: Path) -> None:
    """The libraries of the levels above hold what a lower one must not."""
    v3, v4 = (instructions(built / f"x86-64-{level}.so") for level in ("v3", "v4"))
    assert any("%ymm" in one for one in beyond("x86-64-v2", v3))
    assert any("{%k" in one for one in beyond("x86-64-v3", v4))
    for mnemonic in ("vmovss", "andn", "shlx", "lzcnt", "vfmadd213ss", "aesenc", "vaesenc"):
        assert beyond("x86-64-v2", [(mnemonic, "%eax")])
    for mnemonic in ("verr", "verw", "vmcall", "movaps", "popcnt", "crc32l", "ptest"):
        assert not beyond("x86-64-v2", [(mnemonic, "%eax")])
    for operands in ("%xmm16,%xmm1", "%ymm1,%ymm2{%k1}", "%ymm31", "{rn-sae},%xmm0"):
        assert beyond("x86-64-v3", [("vaddps", operands)])


XGETBV = r"""
#include <cpuid.h>
#include <stdio.h>
int main(void) {
  unsigned a, b, c, d, low = 0, high = 0;
  __get_cpuid(1, &a, &b, &c, &d);
  if (c & (1u << 27)) __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  printf("%u\n", low);
}
"""


def test_the_flags_answer_for_the_operating_system_too(tmp_path: Path) -> None:
    """Linux lists a flag only where it saves the registers: as XCR0, which it sets, says.

    Bits 1 and 2 of XCR0 are for the registers of SSE and AVX, bits 5 to 7 for those of AVX-512
    (Intel's manual, volume 1, section 13.1). An instruction whose bit is clear dies of SIGILL.
    """
    (tmp_path / "xcr0.c").write_text(XGETBV)
    command = [*c_compiler(), "-x", "c", "xcr0.c", "-o", "xcr0"]
    subprocess.run(command, cwd=tmp_path, check=True)
    done = subprocess.run([tmp_path / "xcr0"], capture_output=True, text=True, check=True)
    saved, flags = int(done.stdout), targets.this_machine().flags
    for level, bits in (("x86-64-v3", 0b110), ("x86-64-v4", 0b1110_0110)):
        if level in targets.runnable():
            assert saved & bits == bits, level
    assert "avx" not in flags or saved & 0b110 == 0b110
    assert "avx512f" not in flags or saved & 0b1110_0110 == 0b1110_0110


# ---------------------------------------------------------------- the same bytes

_BUILD = """
import sys, time
from relu_ops import compiler, graphs
from relu_ops.targets import CPU_TARGETS
print(time.strftime("%Y"))
compiler.build(graphs.leaky_relu(alpha=0.1), CPU_TARGETS, sys.argv[1])
"""

# Every clock that a program may ask for the date, ten years on.
_LATER = r"""
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#define YEARS (10 * 365 * 86400L)
int clock_gettime(clockid_t clock, struct timespec* now) {
  int code = syscall(SYS_clock_gettime, clock, now);
  if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += YEARS;
  return code;
}
int gettimeofday(struct timeval* now, void* zone) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}
time_t time(time_t* where) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (where) *where = exact.tv_sec;
  return exact.tv_sec;
}
"""


def test_two_builds_give_the_same_bytes(built: Path, tmp_path: Path) -> None:
    """In another folder, ten years later, with another locale, hash seed, umask and home."""
    (tmp_path / "later.c").write_text(_LATER)
    command = [*c_compiler(), "-x", "c", "-shared", "-fPIC", "later.c", "-o", "later.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    folder = tmp_path / "a folder of another name" / "deep"
    (folder / "tmp").mkdir(parents=True)
    changed = os.environ | dict(
        PYTHONHASHSEED="77",
        LC_ALL="C.UTF-8",
        LANGUAGE="de:tr",
        TZ="Asia/Tokyo",
        TMPDIR=str(folder / "tmp"),
        HOME=str(folder),
        USER="somebody",
        COLUMNS="17",
        LD_PRELOAD=str(tmp_path / "later.so"),
    )
    command = [sys.executable, "-c", _BUILD, "other.bundle"]
    done = subprocess.run(
        command, cwd=folder, env=changed, capture_output=True, text=True, timeout=120, umask=0o77
    )
    assert done.returncode == 0, done.stderr
    now = subprocess.run(["date", "+%Y"], capture_output=True, text=True, check=True).stdout
    assert int(done.stdout) - int(now) in (9, 10)  # it was another time for the build
    assert sorted(os.listdir(folder / "other.bundle")) == sorted(os.listdir(built))
    for name in os.listdir(built):
        assert (folder / "other.bundle" / name).read_bytes() == (built / name).read_bytes(), name


# ---------------------------------------------------------------- where it runs


@pytest.mark.parametrize("name", graphs.MODELS)
def test_the_oldest_glibc(name: str) -> None:
    """No library asks for a symbol newer than glibc 2.14's (memcpy, 2011); its entry says so."""
    manifest, contents = compiler.make(graphs.MODELS[name](), ["x86-64-v2", "x86-64-v4"])
    for target in manifest.targets:
        entry = manifest.library(target)
        newest = max(elf.glibc_versions(contents[entry.path]))
        assert newest == tuple(map(int, entry.requires["glibc"].split(".")))
        assert newest <= (2, 14)


def test_a_bundle_runs_on_the_tvm_ffi_that_is_here(built: Path) -> None:
    run_base(built)


def run_base(path: Path, **more: str) -> None:
    command = [sys.executable, str(ROOT / "tests" / "base_run.py"), str(path)]
    done = subprocess.run(
        command, env={**os.environ, **more}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def releases() -> list[str]:
    """Every release of tvm-ffi that the package index has for this Python."""
    command = [sys.executable, "-m", "pip", "index", "versions", "apache-tvm-ffi"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r"Available versions: (.+)", done.stdout)
    if found is None:
        pytest.skip("the package index cannot be reached")
    return found[1].split(", ")


@pytest.mark.exhaustive
def test_every_release_of_tvm_ffi(built: Path, tmp_path: Path) -> None:
    """From the lower bound in pyproject.toml on. Exhaustive: it installs each from the index."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (bound,) = [d for d in project["dependencies"] if d.startswith("apache-tvm-ffi")]
    known = releases()
    lowest = bound.partition(">=")[2]
    assert lowest in known
    for release in known[: known.index(lowest) + 1]:
        folder = tmp_path / release
        install = ["install", "-q", "--no-deps", "--only-binary", ":all:", "--target", str(folder)]
        command = [sys.executable, "-m", "pip", *install, f"apache-tvm-ffi=={release}"]
        subprocess.run(command, check=True, timeout=300)
        code = f"import tvm_ffi; assert tvm_ffi.__file__.startswith({str(folder)!r})"
        path = os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])
        assert children.run(code, PYTHONPATH=path).returncode == 0
        run_base(built, PYTHONPATH=path)
        print(f"tvm-ffi {release}: runs")


# ---------------------------------------------------------------- versions

DATA = Path(__file__).with_name("data")
GOLDEN = sorted(DATA.glob("format-*.bundle"))


def test_there_is_a_bundle_of_every_format() -> None:
    formats = [bundle.read(path).manifest.format for path in GOLDEN]
    written = [int(path.stem.removeprefix("format-")) for path in GOLDEN]
    assert written == list(range(1, bundle.FORMAT_VERSION + 1))
    # An upgraded manifest has the newest format; what lies on disk keeps its own.
    assert set(formats) == {bundle.FORMAT_VERSION}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_bundle_of_every_format_runs(path: Path) -> None:
    """Made by `python tests/make_golden.py`, once, by the first release that wrote the format."""
    run_base(path)
