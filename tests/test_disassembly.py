"""Machine code as people see it: that of an image, function by function."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from relu_ops import graphs, targets
from relu_ops.compiler import frontend, image
from relu_ops.compiler.cpu import disassembly
from relu_ops.errors import ArgumentError, MissingDependencyError


@pytest.fixture(scope="module")
def two() -> bytes:
    made = [
        ("first", frontend.import_model(graphs.leaky_relu(alpha=0.3))),
        ("second", frontend.import_model(graphs.add_relu())),
    ]
    return image.build(made, targets.parse("x86-64-v3"))


def test_every_function_has_its_name_and_patterns(two: bytes) -> None:
    names = re.findall(r"^(\S.*)$", disassembly.disassembly(two, "second"), re.MULTILINE)
    both, left, right, any_ = (
        "contiguous, contiguous, contiguous",
        "contiguous, repeated, contiguous",
        "repeated, contiguous, contiguous",
        "strided, strided, strided",
    )
    assert names == [
        f"second::tile_0:  # {both}",
        f"second::tile_0_stream:  # {both}",
        f"second::tile_1:  # {left}",
        f"second::tile_1_stream:  # {left}",
        f"second::tile_2:  # {right}",
        f"second::tile_2_stream:  # {right}",
        f"second::tile_3:  # {any_}",
    ]


def test_an_instruction_a_line(two: bytes) -> None:
    function, *_ = disassembly.disassembly(two, "first").split("\n\n")
    title, *rows = function.splitlines()
    assert title == "first::tile_0:  # contiguous, contiguous"
    instruction = r"\w+(?:\t[^\t]+(?:\t# 0x[0-9a-f]+)?)?"
    line = re.compile(rf" +[0-9a-f]+:\t(?:# \d+ bytes that fill a line|{instruction})")
    assert not [row for row in rows if not line.fullmatch(row)]
    assert any(row.endswith("\tretq") for row in rows)


def test_what_an_instruction_reads_stands_beside_it(two: bytes) -> None:
    text = disassembly.disassembly(two, "first")
    read = re.search(r"vbroadcastss\t[^\t]+\t# 0x([0-9a-f]+)", text)
    assert read
    at = int(read[1], 16)
    assert two[at : at + 4] == bytes.fromhex("9a99993e")  # 0.3


def test_code_of_aarch64_is_shown() -> None:
    made = [("op", frontend.import_model(graphs.leaky_relu(alpha=0.3)))]
    content = image.build(made, targets.parse("aarch64"))
    function, *_ = disassembly.disassembly(content, "op").split("\n\n")
    title, *rows = function.splitlines()
    assert title == "op::tile_0:  # contiguous, contiguous"
    assert not [row for row in rows if not re.fullmatch(r" +[0-9a-f]+:\t\S.*", row)]
    names = {row.split("\t")[1] for row in rows}
    assert {"fmul", "ret"} <= names and not {"nop", ".byte", ".inst"} & names


def test_every_byte_of_the_code_is_shown(two: bytes) -> None:
    """Of all operators together: each function reaches to the next one."""
    functions = [f for name in ("first", "second") for f in disassembly.functions(two, name)]
    functions.sort(key=lambda function: function.at)
    code = b"".join(function.code for function in functions)
    assert two[functions[0].at :][: len(code)] == code
    for function, following in itertools.pairwise(functions):
        assert function.at + len(function.code) == following.at


def test_operators_that_share_code_show_it_each() -> None:
    graph = frontend.import_model(graphs.relu())
    content = image.build([("a", graph), ("b", graph)], targets.parse("x86-64-v2"))
    one, other = (disassembly.disassembly(content, name) for name in "ab")
    assert one != other and one.replace("a::tile", "b::tile") == other


OBJDUMPS = {"aarch64": ("aarch64-linux-gnu-objdump", "aarch64")}


@pytest.mark.parametrize("target", targets.CPU_TARGETS)
def test_binutils_reads_the_same(target: str, tmp_path: Path) -> None:
    tool, machine = OBJDUMPS.get(target, ("objdump", "i386:x86-64"))
    if not shutil.which(tool):
        pytest.skip(f"there is no {tool} to compare with")
    graph = frontend.import_model(graphs.leaky_relu(dtype="bfloat16"))
    content = image.build([("op", graph)], targets.parse(target))
    (tmp_path / "code").write_bytes(content)
    begin = f"--start-address={disassembly.functions(content, 'op')[0].at}"
    command = [tool, "-D", "-b", "binary", "-m", machine, begin, str(tmp_path / "code")]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    theirs = set(re.findall(r"^ +([0-9a-f]+):\t", listing, re.MULTILINE))
    ours = re.findall(r"^ +([0-9a-f]+):\t\w", disassembly.disassembly(content, "op"), re.MULTILINE)
    assert len(ours) > 200 and set(ours) <= theirs


def test_an_unknown_operator_is_refused(two: bytes) -> None:
    with pytest.raises(ArgumentError) as caught:
        disassembly.disassembly(two, "third")
    assert str(caught.value) == ("the image has no operator 'third'\nhint: it has first, second")


def test_without_capstone_the_error_says_how_to_install_it(
    two: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "capstone" else find(name)
    )
    with pytest.raises(MissingDependencyError) as caught:
        disassembly.disassembly(two, "first")
    assert str(caught.value) == (
        "disassembling machine code needs the package capstone, which is not installed\n"
        "hint: pip install 'relu_ops[inspect]'"
    )


def test_tvm_is_not_needed(two: bytes, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(two)
    script = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('tvm', 'tvm_ffi', 'onnx', 'elftools')))\n"
        "from relu_ops.compiler.cpu import disassembly\n"
        "print(len(disassembly.disassembly(open(sys.argv[1], 'rb').read(), 'first')))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "image")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr == "" and int(done.stdout) > 3000
