"""What a bundle can be relied on for: its instructions, its bytes, and where it runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import children
import pytest

from relu_ops import compiler, graphs, targets
from relu_ops.bundle import store as bundle
from relu_ops.compiler.cpu.disassembly import disassembly
from relu_ops.targets import CPU_TARGETS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "leaky.bundle"
    compiler.build(graphs.leaky_relu(alpha=0.1), CPU_TARGETS, path)
    return path


def c_compiler() -> str:
    """For what tests need beside the package, which needs none."""
    found = shutil.which("gcc") or shutil.which("cc")
    if found is None:
        pytest.skip("there is no C compiler for the test itself (Debian: apt-get install gcc)")
    return found


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


def instructions(image: bytes) -> list[tuple[str, str]]:
    """Every instruction of an image's operator: mnemonic and operands."""
    text = disassembly(image, "op")
    lines = re.findall(r"(?m)^ *[0-9a-f]+:\t([^#\n].*)$", text)
    prefixes = r"(?:(?:lock|rep|repe|repne|cs|ds|notrack|bnd|data16) +)*"
    found = [re.match(rf"{prefixes}(\S+)\s*(.*)", line) for line in lines]
    return [(match[1], match[2].partition("#")[0]) for match in found if match]


def image_of(model: object, level: str) -> bytes:
    return compiler.make({"op": model}, level)[f"{level}.image"]


def beyond(level: str, found: list[tuple[str, str]]) -> set[str]:
    mnemonics = {"x86-64-v2": BEYOND_V2, "x86-64-v3": BEYOND_V3}[level]
    return {
        f"{name} {operands}"
        for name, operands in found
        if mnemonics.fullmatch(name) or WIDE[level].search(operands)
    }


@pytest.mark.parametrize("level", WIDE)
@pytest.mark.parametrize("name", graphs.MODELS)
def test_no_instruction_beyond_the_level(name: str, level: str) -> None:
    found = instructions(image_of(graphs.MODELS[name](), level))
    assert len(found) > 100
    assert not beyond(level, found)
    assert not {mnemonic for mnemonic, _ in found if mnemonic.startswith(".")}  # bytes of no sense


def test_the_check_of_instructions_can_fail() -> None:
    """The images of the levels above hold what a lower one must not."""
    v3, v4 = (instructions(image_of(graphs.leaky_relu(alpha=0.1), x)) for x in CPU_TARGETS[1:3])
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
    """The core has a feature only where the system saves its registers: as XCR0, which it sets.

    Bits 1 and 2 of XCR0 are for the registers of SSE and AVX, bits 5 to 7 for those of AVX-512
    (Intel's manual, volume 1, section 13.1). An instruction whose bit is clear dies of SIGILL.
    """
    (tmp_path / "xcr0.c").write_text(XGETBV)
    command = [c_compiler(), "-x", "c", "xcr0.c", "-o", "xcr0"]
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
import sys, threading, time
from relu_ops import compiler, graphs
from relu_ops.targets import CPU_TARGETS
print(time.strftime("%Y"))
build = lambda path: compiler.build(graphs.leaky_relu(alpha=0.1), CPU_TARGETS, path)
threads = [threading.Thread(target=build, args=[path]) for path in sys.argv[1:]]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
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


def same_files(one: Path, other: Path) -> bool:
    files = [{f.name: f.read_bytes() for f in path.iterdir()} for path in (one, other)]
    return files[0] == files[1]


HARDENED = "-O0 -g -fstack-protector-strong -D_FORTIFY_SOURCE=3 -fcf-protection=full -pg"


def test_two_builds_give_the_same_bytes(built: Path, tmp_path: Path) -> None:
    """In another folder, ten years later, with another locale, hash seed, umask and home.

    With no program on PATH at all, whatever compiler and flags the variables name, and from three
    threads at once.
    """
    (tmp_path / "later.c").write_text(_LATER)
    command = [c_compiler(), "-x", "c", "-shared", "-fPIC", "later.c", "-o", "later.so"]
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
        PATH="",
        CC="/no/such/compiler",
        CXX="'",
        CFLAGS=HARDENED,
        CXXFLAGS=HARDENED,
        LDFLAGS="-Wl,-z,pack-relative-relocs -fuse-ld=gold",
    )
    names = ("one.bundle", "two.bundle", "three.bundle")
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, *names],
        cwd=folder,
        env=changed,
        capture_output=True,
        text=True,
        timeout=120,
        umask=0o77,
    )
    assert (done.returncode, done.stderr) == (0, "")
    now = subprocess.run(["date", "+%Y"], capture_output=True, text=True, check=True).stdout
    assert int(done.stdout) - int(now) in (9, 10)  # it was another time for the build
    for name in names:
        assert same_files(folder / name, built), name


def test_no_other_program_is_run() -> None:
    """Neither a compiler nor a linker, nor anything else that a machine may lack."""
    code = """
import os, subprocess, sys
from relu_ops import compiler, graphs
def audit(event, arguments):
    if event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "os.fork"):
        print(event, arguments)
sys.addaudithook(audit)
compiler.make(graphs.leaky_relu(alpha=0.3), ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
print("built")
"""
    done = children.run(code)
    assert (done.stdout, done.stderr) == ("built\n", "")


# ---------------------------------------------------------------- where it runs


def test_nothing_of_an_operating_system_is_in_it(built: Path) -> None:
    """No object format, no library, no symbol: a header of its own, tables and code."""
    for name in CPU_TARGETS:
        image = bundle.read(built).image(name)
        assert image.startswith(b"relu_ops")
        for word in (b"ELF", b"GLIBC", b"libc", b".so", b"/", b"gnu", b"linux"):
            assert word not in image, word


def test_a_bundle_runs_on_the_base_install(built: Path) -> None:
    command = [sys.executable, str(ROOT / "tests" / "base_run.py"), str(built)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
