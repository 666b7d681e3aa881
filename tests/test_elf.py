"""Libraries are of one shape, and what is not of that shape never reaches the dynamic linker."""

from __future__ import annotations

import json
import random
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import children
import mutated_libraries
import pytest

from relu_ops import bundle, compiler, graphs
from relu_ops.compiler import codegen
from relu_ops.compiler.toolchain import c_compiler
from relu_ops.errors import BundleError
from relu_ops.runtime import elf
from relu_ops.runtime import library as library_module
from relu_ops.targets import CPU_TARGETS, TARGETS

CPU = elf.ALLOWANCES["cpu"]

BASE = "\n".join(
    f'__attribute__((visibility("default"))) int {name}(void) {{ return {k}; }}'
    for k, name in enumerate(sorted(CPU.exports))
)


def link(folder: Path, source: str, *flags: str) -> bytes:
    """Compile and link some C as the libraries are."""
    (folder / "exports.map").write_text(codegen.VERSION_SCRIPT)
    (folder / "more.c").write_text(source)
    command = [*c_compiler(), *codegen.COMPILE_FLAGS, "more.c", "-o", "made.so"]
    subprocess.run([*command, *codegen.LINK_FLAGS, *flags], cwd=folder, check=True)
    return (folder / "made.so").read_bytes()


@pytest.fixture(scope="module")
def library() -> bytes:
    _, contents = compiler.make(graphs.leaky_relu(alpha=0.1), ["x86-64-v2"])
    return contents["x86-64-v2.so"]


def refusal(content: bytes) -> str:
    with pytest.raises(BundleError, match=r"^a\.so: ") as caught:
        elf.check(content, "a.so")
    assert caught.value.hint is not None and len(caught.value.message) < 1000
    return caught.value.message


# ---------------------------------------------------------------- what is built, passes


def test_every_model_is_within_the_table_and_the_table_within_what_is_used(tmp_path: Path) -> None:
    """v2 and v4: the ends; conversions of 16-bit types differ between them."""
    used: set[str] = set()
    for name, make in graphs.MODELS.items():
        _, contents = compiler.make(make(), ["x86-64-v2", "x86-64-v4"])
        for file, content in contents.items():
            if file.endswith(".so"):
                elf.check(content, f"{name}: {file}")
                (tmp_path / "made.so").write_bytes(content)
                listed = ["nm", "-D", "--undefined-only", tmp_path / "made.so"]
                done = subprocess.run(listed, capture_output=True, text=True, check=True)
                used |= {line.split()[-1].partition("@")[0] for line in done.stdout.splitlines()}
    assert used <= CPU.imports
    # Any compiler may make these of an assignment or a loop, at another optimization.
    assert CPU.imports - used <= {"bcmp", "memcpy", "memmove", "memset", "memcmp"}


@pytest.mark.parametrize("target", CPU_TARGETS)
def test_a_long_chain_passes(target: str) -> None:
    from onnx import helper

    nodes = [helper.make_node("Mul", [f"x{k}", "w"], [f"x{k + 1}"]) for k in range(40)]
    info = [helper.make_tensor_value_info(n, 10, None) for n in ("x0", "w", "x40")]
    graph = helper.make_graph(nodes, "chain", info[:2], info[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    _, contents = compiler.make(model, [target])
    elf.check(contents[f"{target}.so"], "chain")


def test_the_runtime_uses_what_a_library_offers() -> None:
    fields = library_module.Library.__dataclass_fields__
    assert elf.ALLOWANCES["cuda"].exports == {library_module.symbol_of(name) for name in fields}
    assert elf.ALLOWANCES["cuda"].exports - CPU.exports == {"__tvm_ffi_prepare"}


def test_every_kind_of_cpu_target_has_its_row() -> None:
    assert {TARGETS[name].kind for name in CPU_TARGETS} <= set(elf.ALLOWANCES)


def test_opening_a_library_runs_none_of_its_code(library: bytes) -> None:
    checker = elf._Checker(library, CPU)
    checker.check()
    assert not {"INIT", "INIT_ARRAY"} & {elf._TAG_NAMES[tag] for tag in checker.dynamic}
    assert not [s for s in checker.sections if ".init" in s.name or ".ctors" in s.name]


def test_glibc_versions(library: bytes) -> None:
    found = elf.glibc_versions(library)
    assert max(found) == tuple(map(int, compiler.glibc_of(library).split(".")))
    assert max(found) <= (2, 17)


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("-fcf-protection=full",),  # the default of some distributions: notes and properties
        ("-O0", "-g"),
        ("-Wl,-z,noseparate-code",),
        ("-Wl,-z,lazy",),
        ("-Wl,-z,norelro",),
        ("-Wl,--build-id=sha1",),
        ("-fno-plt",),
    ],
    ids=" ".join,
)
def test_other_usual_flags_pass(tmp_path: Path, flags: tuple[str, ...]) -> None:
    elf.check(link(tmp_path, BASE + "\nextern void* malloc(long);\n" + KEPT, *flags), "a.so")


KEPT = """
static void* made(void) { return malloc(8); }
static void* (*const table[])(void) = {made};
__attribute__((visibility("hidden"), used)) void* (*const* volatile kept)(void) = table;
"""


# ---------------------------------------------------------------- what is not, is refused

CANARY = """
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor, used)) static void canary(void) {
  FILE* file = fopen(getenv("CANARY"), "w");
  if (file) fclose(file);
}
"""

EXPORT = '__attribute__((visibility("default"))) '

BAD: dict[str, tuple[str, tuple[str, ...], str]] = {
    "a constructor": (CANARY, (), r"SHT_INIT_ARRAY \(allowed: .* without constructors"),
    "start files": ("", ("-Wl,-init,__tvm_ffi_call",), "entry of the dynamic table is DT_INIT"),
    "a destructor": (
        "__attribute__((destructor, used)) static void end(void) { *(volatile int*)8 = 1; }",
        (),
        "SHT_FINI_ARRAY",
    ),
    "an rpath": ("", ("-Wl,-rpath,/tmp", "-Wl,--disable-new-dtags"), "DT_RPATH"),
    "a runpath": ("", ("-Wl,-rpath,$ORIGIN", "-Wl,--enable-new-dtags"), "DT_RUNPATH"),
    "a name of its own": ("", ("-Wl,-soname,libc.so.6",), "DT_SONAME"),
    "an executable stack": (
        "", ("-Wl,-z,execstack",), r"permission of PT_GNU_STACK is rwx \(allowed: rw-\)"
    ),
    "a text relocation": (
        'asm(".text\\n.quad __tvm_ffi_call\\n");', ("-Wl,-z,notext",), "DT_TEXTREL|place of a reloc"
    ),
    "another library": (
        "",
        ("-Wl,--no-as-needed", "-lm"),
        r"needed library is 'lib(m|stdc\+\+)\.so\.6' \(allowed: libc\.so\.6, libpthread\.so\.0\)",
    ),
    "an unknown function": (
        f"int system(const char*); {EXPORT} int __tvm_ffi_x(void) {{ return system(\"id\"); }}",
        (),
        "undefined symbol is 'system' .allowed: TVMFFIErrorSetRaisedFromCStrParts, ",
    ),
    "unknown data": (
        f"extern char** environ; {EXPORT} char** __tvm_ffi_x(void) {{ return environ; }}",
        (),
        "undefined symbol is 'environ'",
    ),
    "another exported function": (
        f"{EXPORT} int __tvm_ffi_more(void) {{ return 1; }}",
        (),
        "exported symbol is '__tvm_ffi_more' .allowed: __tvm_ffi_bind, ",
    ),
    "exported data": (f"{EXPORT} int __tvm_ffi_data = 5;", (), "symbol is '__tvm_ffi_data'"),
    "a weak symbol": (
        "extern int malloc(void) __attribute__((weak));"
        f"{EXPORT} int __tvm_ffi_x(void) {{ return malloc(); }}",
        (),
        "binding of 'malloc'",
    ),
    "code chosen at load": (
        f"static int one(void) {{ return 1; }} static void* pick(void) {{ return one; }}"
        f"{EXPORT} int __tvm_ffi_x(void) __attribute__((ifunc(\"pick\")));",
        (),
        "operating system ABI of the ELF header is 3|symbol is '__tvm_ffi_x'",
    ),
    "data of threads": (
        f"static __thread int mine; {EXPORT} int* __tvm_ffi_x(void) {{ return &mine; }}",
        (),
        r"type of a segment is 0x7 \(allowed: PT_LOAD, PT_DYNAMIC, ",
    ),
    "an interpreter": (
        'const char path[] __attribute__((section(".interp"), used)) = "/bin/sh";',
        ("-Wl,-u,path", "-Wl,--no-gc-sections"),
        "type of a segment is 0x3 ",
    ),
    "a writable and executable segment": (
        'asm(".section .both,\\"awx\\",@progbits\\n.globl both\\nboth: .quad 1\\n.previous");',
        ("-Wl,--no-gc-sections",),
        "permission of PT_LOAD is rwx",
    ),
    "an old hash table": ("", ("-Wl,--hash-style=sysv",), "SHT_HASH"),
    "versions of its own": ("", ("-Wl,--default-symver",), "SHT_VERDEF|DT_VERDEF"),
    "no unwind tables": (
        "", ("-Wl,--no-eh-frame-hdr",), "number of segments PT_GNU_EH_FRAME is 0"
    ),
    "compact relocations": (
        "extern void* malloc(long);" + KEPT, ("-Wl,-z,pack-relative-relocs",), "SHT_RELR|RELR"
    ),
}  # fmt: skip


def test_the_smallest_library_passes(tmp_path: Path) -> None:
    elf.check(link(tmp_path, BASE), "a.so")


@pytest.mark.parametrize("kind", BAD)
def test_what_is_built_differently_is_refused(tmp_path: Path, kind: str) -> None:
    source, flags, message = BAD[kind]
    try:
        content = link(tmp_path, f"{BASE}\n{source}", *flags)
    except subprocess.CalledProcessError:
        pytest.skip("this linker cannot make one")
    assert re.search(message, refusal(content)), refusal(content)


def test_a_missing_function(tmp_path: Path) -> None:
    content = link(tmp_path, BASE.replace("__tvm_ffi_configure", "__tvm_ffi_call_v"))
    assert "__tvm_ffi_call_v" in refusal(content)
    content = link(tmp_path, "\n".join(BASE.splitlines()[:-1]))
    assert "an exported function is missing: " in refusal(content)


# Offset in the header, size, value, what the message says.
HEADER = {
    "not ELF": (0, 1, 0, r"magic of the ELF header is b'\x00ELF' (allowed: b'\x7fELF')"),
    "32 bits": (4, 1, 1, "class of the ELF header is 1 (allowed: 2)"),
    "big-endian": (5, 1, 2, "byte order of the ELF header is 2 (allowed: 1)"),
    "FreeBSD": (7, 1, 9, "operating system ABI of the ELF header is 9 (allowed: 0)"),
    "an executable": (16, 2, 2, "file type of the ELF header is 2 (allowed: 3)"),
    "an object": (16, 2, 1, "file type of the ELF header is 1 (allowed: 3)"),
    "AArch64": (18, 2, 183, "machine of the ELF header is 183 (allowed: 62)"),
    "i386": (18, 2, 3, "machine of the ELF header is 3 (allowed: 62)"),
    "no segments": (56, 2, 0, "number of program headers is 0 (allowed: 1 to 16)"),
    "many segments": (56, 2, 65535, "number of program headers is 65535 (allowed: 1 to 16)"),
    "segments elsewhere": (32, 8, 2**63, "program header offset of the ELF header is"),
    "sections beyond": (40, 8, 2**40, "end of the section headers is"),
}


@pytest.mark.parametrize("kind", HEADER)
def test_another_header(library: bytes, kind: str) -> None:
    at, size, value, message = HEADER[kind]
    content = library[:at] + value.to_bytes(size, "little") + library[at + size :]
    assert message.replace(" of the ELF header", "") in refusal(content).replace(
        " of the ELF header", ""
    )


def test_truncated_with_a_digest_that_matches(library: bytes) -> None:
    for size in [*range(0, len(library), 64), len(library) - 1]:
        refusal(library[:size])


def test_another_file_altogether() -> None:
    for content in (b"", b"\x7fELF", bytes(10_000), Path(sys.executable).read_bytes()[:100_000]):
        refusal(content)
    import tvm_ffi.libinfo

    assert "allowed" in refusal(Path(tvm_ffi.libinfo.find_libtvm_ffi()).read_bytes())


def test_random_bytes_behind_a_right_header(library: bytes) -> None:
    draw = random.Random(3)
    for _ in range(200):
        refusal(library[:64] + draw.randbytes(draw.randrange(5000)))


def test_notes_that_lie(tmp_path: Path) -> None:
    content = bytearray(link(tmp_path, BASE, "-fcf-protection=full", "-Wl,--build-id=sha1"))
    elf.check(bytes(content), "a.so")
    (count,) = struct.unpack_from("<H", content, 56)
    notes = [
        row
        for row in (struct.unpack_from("<IIQQQQQQ", content, 64 + 56 * k) for k in range(count))
        if row[0] == 4
    ]
    assert notes
    for row in notes:
        for size in (5, 0x7FFFFFF0, 0xFFFFFFFF):
            lying = bytearray(content)
            struct.pack_into("<I", lying, row[2] + 4, size)
            assert "note" in refusal(bytes(lying))


# ---------------------------------------------------------------- a canary


@pytest.mark.parametrize("matching", [True, False])
def test_a_constructor_never_runs(tmp_path: Path, matching: bool) -> None:
    """Neither where the digest is wrong nor where it is right; opened without checks, it does."""
    canary = link(tmp_path, BASE + CANARY)
    compiler.build(graphs.relu(), ["x86-64-v2"], tmp_path / "a.bundle")
    path = tmp_path / "a.bundle" / "x86-64-v2.so"
    path.write_bytes(canary)
    if matching:
        manifest = json.loads((path.parent / bundle.MANIFEST).read_text())
        entry = next(file for file in manifest["files"] if file["role"] == "library")
        entry.update(size=len(canary), sha256=bundle.digest_of(canary))
        (path.parent / bundle.MANIFEST).write_text(json.dumps(manifest))
    ran = tmp_path / "ran"

    def python(code: str) -> str:
        done = children.run(code, CANARY=str(ran))
        return done.stderr.strip().splitlines()[-1] if done.returncode else ""

    error = python(f"import relu_ops; relu_ops.load({str(path.parent)!r}, target='x86-64-v2')")
    expected = "hint: it is not as relu_ops builds it" if matching else "relu_ops.errors.BundleErr"
    assert error.startswith(expected)
    assert not ran.exists()
    assert python(f"import ctypes; ctypes.CDLL({str(path)!r})") == ""
    assert ran.exists()


# ---------------------------------------------------------------- mutations


def child(path: Path, first: int, count: int, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{before}\nimport mutated_libraries as m\nm.main({str(path)!r}, {first}, {count})"
    return children.run(code, seconds=300)


def check_mutations(path: Path, first: int, count: int) -> dict[str, int]:
    """A few hundred in one child: each that loads stays open."""
    totals = {"loaded": 0, "refused": 0}
    for start in range(first, first + count, 250):
        done = child(path, start, min(250, first + count - start))
        last = re.findall(r"^\d+$", done.stderr, re.MULTILINE)[-1:]
        assert done.returncode == 0, (
            f"died with {done.returncode} at mutation {last}: "
            f"python tests/mutated_libraries.py {path} {''.join(last)} 1\n{done.stderr[-2000:]}"
        )
        for key, value in json.loads(done.stdout).items():
            totals[key] += value
    return totals


MUTATED: dict[str, Callable[[], object]] = {
    "x86-64-v2": lambda: graphs.leaky_relu(alpha=0.1),
    "x86-64-v3": graphs.add_relu,
    "x86-64-v4": graphs.scale_bias_leaky_relu,
}


@pytest.fixture(scope="module")
def mutated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One bundle a target, each with one library."""
    folder = tmp_path_factory.mktemp("mutated")
    for target, make in MUTATED.items():
        compiler.build(make(), [target], folder / f"{target}.bundle")
    return {target: folder / f"{target}.bundle" for target in MUTATED}


def runs_here(target: str) -> None:
    from relu_ops import targets

    reason = targets.why_not(targets.parse(target), targets.this_machine())
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("target", MUTATED)
def test_mutated_headers_and_tables(mutated: dict[str, Path], target: str) -> None:
    runs_here(target)
    totals = check_mutations(mutated[target], 0, 250)
    assert totals["refused"] > 150 and totals["loaded"] > 10


@pytest.mark.exhaustive
@pytest.mark.parametrize("target", MUTATED)
def test_20_000_mutated_headers_and_tables(mutated: dict[str, Path], target: str) -> None:
    runs_here(target)
    totals = check_mutations(mutated[target], 1000, 20_000)
    print(target, totals)


def test_the_mutations_bite(mutated: dict[str, Path]) -> None:
    """Without the checks, a child dies: of a signal, or of an assertion of the dynamic linker."""
    unchecked = "from relu_ops.runtime import elf\nelf.check = lambda *arguments: None"
    assert child(mutated["x86-64-v2"], 0, 250, unchecked).returncode not in (0, 1)


def test_mutations_spare_the_code(library: bytes) -> None:
    text = next(s for s in checked(library).sections if s.name == ".text")
    for start, size in mutated_libraries.regions(library):
        assert start + size <= text.offset or start >= text.offset + text.size


def checked(library: bytes) -> elf._Checker:
    checker = elf._Checker(library, CPU)
    checker.check()
    return checker
