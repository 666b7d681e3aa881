"""Targets: their names, and which of them a made-up machine can run."""

from __future__ import annotations

import functools
import itertools
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import children
import pytest

from relu_ops import compiler, graphs, targets
from relu_ops.bundle import store as bundle
from relu_ops.bundle.store import Bundle
from relu_ops.errors import TargetError
from relu_ops.native import _python as native
from relu_ops.runtime import dispatch
from relu_ops.targets import CPU_TARGETS, TARGETS, Machine

ARCHITECTURES = ("cuda-sm_75", "cuda-sm_80", "cuda-sm_90", "cuda-sm_100", "cuda-sm_120")
KNOWN = "hint: known targets: x86-64-v2, x86-64-v3, x86-64-v4, aarch64, cuda, native, cuda-sm_NN"
LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4")


def machine(*levels: str, without: tuple[str, ...] = ()) -> Machine:
    """A made-up x86 machine with the flags of some levels."""
    flags = {flag for level in levels for flag in TARGETS[level].flags} - set(without)
    return Machine("x86_64", "made up", frozenset(flags))


OLD = Machine("x86_64", "made up", frozenset({"pni"}))
ARM = Machine("aarch64", "made up", frozenset({"fp", "asimd"}))
NO_X86 = "the processor is aarch64 (not x86_64)"
NO_ARM = "the processor is x86_64 (not aarch64)"


def refused(message: str, call: Callable[[], Any]) -> None:
    with pytest.raises(TargetError, match=f"^{re.escape(message)}$"):
        call()


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", [*TARGETS, *ARCHITECTURES])
def test_names_go_round(name: str) -> None:
    target = targets.parse(name)
    assert str(target) == target.name == name
    assert targets.parse(str(target)) == target
    assert targets.is_known(name)
    assert targets.resolve(name) == target
    assert targets.resolve(target) is target


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_one_architecture(name: str) -> None:
    assert targets.parse(name).architectures == (int(name.rpartition("_")[2]),)
    assert targets.parse(name).backend is targets.CUDA


@pytest.mark.parametrize(
    "name",
    [
        "",
        "x86-64",
        "x86-64-v5",
        "X86-64-V3",
        " x86-64-v3",
        "x86-64-v3\n",
        "x86\u201064-v3",
        "cuda-sm_",
        "cuda-sm_9",
        "cuda-sm_00",
        "cuda-sm_9000",
        "cuda-sm_90a",
        "cuda-sm_\u0669\u0660",
        "cuda-sm_90\n",
        "CUDA",
        "../x86-64-v3",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    refused(f"target {name!r} is not known\n{KNOWN}", lambda: targets.parse(name))
    assert not targets.is_known(name)


@pytest.mark.parametrize("name", [None, 3, ["x86-64-v3"], b"x86-64-v3", {}], ids=repr)
def test_what_is_no_name_is_refused(name: Any) -> None:
    refused(f"target {name!r} is not known\n{KNOWN}", lambda: targets.parse(name))


def test_each_level_is_on_top_of_the_one_before() -> None:
    levels = [TARGETS[name] for name in LEVELS]
    for lower, higher in itertools.pairwise(levels):
        assert set(lower.flags) < set(higher.flags)
        assert lower.vector_bytes < higher.vector_bytes


# ---------------------------------------------------------------- machines


@pytest.mark.parametrize("level", LEVELS)
def test_native_is_the_highest_level_that_runs(level: str) -> None:
    assert targets.native(machine(level)).name == level
    assert targets.resolve("native", machine(level)).name == level


@pytest.mark.parametrize("level", LEVELS)
def test_one_missing_flag_rules_a_level_out(level: str) -> None:
    lower = TARGETS[LEVELS[LEVELS.index(level) - 1]] if level != LEVELS[0] else None
    own = set(TARGETS[level].flags) - set(lower.flags if lower else ())
    assert own
    for flag in own:
        partial = machine(level, without=(flag,))
        assert targets.why_not(TARGETS[level], partial) == (
            f"the processor or its operating system lacks {flag}"
        )
        if lower:
            assert targets.native(partial) == lower


NO_TARGET = "no target runs on this machine's CPU:\n"
ELSEWHERE = "\nhint: name the target of another machine, and run what is built for it there"


def test_a_higher_level_does_not_stand_in_for_a_lower_flag() -> None:
    odd = machine("x86-64-v4", without=("sse4_2",))
    refused(
        f"{NO_TARGET}"
        "  x86-64-v2: the processor or its operating system lacks sse4_2\n"
        "  x86-64-v3: the processor or its operating system lacks sse4_2\n"
        "  x86-64-v4: the processor or its operating system lacks sse4_2\n"
        f"  aarch64: {NO_ARM}{ELSEWHERE}",
        lambda: targets.native(odd),
    )


def test_what_runs_can_be_checked() -> None:
    targets.check_runs(TARGETS["x86-64-v3"], machine("x86-64-v3"))
    refused(
        "x86-64-v4 cannot run on this machine: the processor or its operating system lacks "
        "avx512f, avx512bw, avx512cd, avx512dq, avx512vl",
        lambda: targets.check_runs(TARGETS["x86-64-v4"], machine("x86-64-v3")),
    )
    refused(
        "cuda cannot run on this machine: it runs on a GPU (not on the CPU)",
        lambda: targets.check_runs(TARGETS["cuda"], machine("x86-64-v3")),
    )


def test_another_architecture() -> None:
    assert [targets.why_not(TARGETS[name], ARM) for name in LEVELS] == [NO_X86] * 3
    assert targets.why_not(TARGETS["aarch64"], machine("x86-64-v4")) == NO_ARM
    assert targets.native(ARM) == targets.resolve("native", ARM) == TARGETS["aarch64"]
    assert targets.runnable(ARM) == targets.of_architecture(ARM) == ("aarch64",)
    assert targets.of_architecture(machine("x86-64-v2")) == LEVELS
    assert targets.of_architecture(Machine("riscv64")) == CPU_TARGETS
    assert targets.why(TARGETS["aarch64"], "native", ARM) == "the best for made up"


def test_an_arm_without_vectors() -> None:
    bare = Machine("aarch64", "made up", frozenset({"fp"}))
    refused(
        f"{NO_TARGET}  x86-64-v2: {NO_X86}\n  x86-64-v3: {NO_X86}\n  x86-64-v4: {NO_X86}\n"
        f"  aarch64: the processor or its operating system lacks asimd{ELSEWHERE}",
        lambda: targets.native(bare),
    )


def test_a_processor_of_arm_is_named_by_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no name in /proc/cpuinfo; the first processor's numbers are taken."""
    core = "CPU implementer\t: 0x41\nCPU part\t: {}\n\n"
    (tmp_path / "cpuinfo").write_text("".join(core.format(part) for part in ("0xd40", "0xd05")))
    monkeypatch.setattr(targets, "Path", lambda _: tmp_path / "cpuinfo")
    assert targets._model_name() == "implementer 0x41, part 0xd40"


def test_what_is_not_there_is_absent() -> None:
    with pytest.raises(TargetError, match="lacks cx16, lahf_lm, popcnt"):
        targets.native(Machine("x86_64"))


def test_this_machine_is_probed() -> None:
    found = targets.this_machine()
    assert found.architecture == platform.machine()
    assert found.flags == native.processor_features()
    assert found is targets.this_machine()
    assert targets.resolve("native") == targets.native(found)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="another processor has other features")
def test_the_processor_and_linux_say_the_same() -> None:
    """Of what a target may require: Linux lists a feature where it saves the registers for it."""
    every = {flag for name in LEVELS for flag in TARGETS[name].flags}
    fields = dict(
        line.split("\t: ", 1)
        for line in Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        if "\t: " in line
    )
    listed = {name.strip(): value for name, value in fields.items()}["flags"].split()
    assert targets.this_machine().flags == every & set(listed)
    assert targets.this_machine().cpu == fields["model name"]


def test_a_machine_without_cpuinfo_runs_what_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under systemd's ProcSubset=pid: the processor is asked, not the file."""
    opened: list[object] = []

    def unreadable(path: Path, **_: object) -> object:
        opened.append(path)
        raise PermissionError

    monkeypatch.setattr(Path, "open", unreadable)
    found = targets.this_machine.__wrapped__()
    assert opened == [Path("/proc/cpuinfo")]
    assert found == Machine(platform.machine(), "unknown", targets.this_machine().flags)
    assert targets.native(found) == targets.native()


# ---------------------------------------------------------------- choosing an image of a bundle


@functools.cache
def held(*names: str) -> Bundle:
    """A bundle with images for some targets."""
    return bundle.from_contents("op.bundle", compiler.make(graphs.relu(), names))


def chosen(names: tuple[str, ...], machine: Machine) -> str:
    return held(*names).handle.choose(machine.architecture, machine.flags)


def test_the_best_image_is_chosen() -> None:
    for level in LEVELS:
        assert chosen(CPU_TARGETS, machine(level)) == level
        assert chosen(CPU_TARGETS[::-1], machine(level)) == level
    assert chosen(CPU_TARGETS, ARM) == chosen(CPU_TARGETS[::-1], ARM) == "aarch64"
    assert chosen(("x86-64-v2", "x86-64-v4"), machine("x86-64-v3")) == "x86-64-v2"
    assert held(*CPU_TARGETS).handle.choose() == targets.native().name


@pytest.mark.parametrize("level", LEVELS)
def test_the_core_and_the_table_agree(level: str) -> None:
    """On every machine that lacks one feature of the highest level."""
    for flag in TARGETS[LEVELS[-1]].flags:
        partial = machine(*LEVELS, without=(flag,))
        try:
            found = chosen((level,), partial)
        except TargetError as error:
            reason = targets.why_not(TARGETS[level], partial)
            assert str(error).splitlines()[1] == f"  {level}: {reason}"
        else:
            assert found == level
            assert targets.why_not(TARGETS[level], partial) is None


def test_a_refusal_lists_every_image_and_why() -> None:
    hint = "hint: build one for it with relu_ops.build(model, targets=['native'], path=...)"
    lacking = "the processor or its operating system lacks"
    refused(
        "no variant can run on this machine's CPU:\n"
        f"  x86-64-v2: {lacking} cx16, lahf_lm, popcnt, sse4_1, sse4_2, ssse3\n"
        f"  x86-64-v4: {lacking} cx16, lahf_lm, popcnt, sse4_1, sse4_2, ssse3, avx, avx2, bmi1, "
        "bmi2, f16c, fma, abm, movbe, xsave, avx512f, avx512bw, avx512cd, avx512dq, avx512vl\n"
        f"{hint}",
        lambda: chosen(("x86-64-v2", "x86-64-v4"), OLD),
    )
    refused(
        f"no variant can run on this machine's CPU:\n  x86-64-v3: {NO_X86}\n{hint}",
        lambda: chosen(("x86-64-v3",), ARM),
    )
    refused(
        f"no variant can run on this machine's CPU:\n  aarch64: {NO_ARM}\n{hint}",
        lambda: chosen(("aarch64",), machine("x86-64-v4")),
    )


def test_an_image_is_taken_by_name() -> None:
    for name in targets.runnable():
        for asked in (name, TARGETS[name].name):
            assert dispatch.operator_of(held(*CPU_TARGETS), target=asked).target == name
    for best in (None, "native"):
        found = dispatch.operator_of(held(*CPU_TARGETS), target=best)
        assert found.target == targets.native().name


def test_an_image_that_is_not_there() -> None:
    hint = "hint: name one that can run, or none for the best; or build it for that target too"
    refused(
        f"op.bundle: has no variant for x86-64-v4; it has:\n  x86-64-v2: can run\n{hint}",
        lambda: dispatch.operator_of(held("x86-64-v2"), target="x86-64-v4"),
    )
    refused(
        f"op.bundle: has no variant for cuda; it has:\n  x86-64-v2: can run\n{hint}",
        lambda: dispatch.operator_of(held("x86-64-v2"), target="cuda"),
    )
    refused(
        f"target 'x86-64-v9' is not known\n{KNOWN}",
        lambda: dispatch.operator_of(held("x86-64-v2"), target="x86-64-v9"),
    )


def test_no_image_is_mapped_that_cannot_run() -> None:
    """Reading a bundle maps nothing; nor does a refusal."""
    code = """
from pathlib import Path
from relu_ops.bundle import store as bundle
from relu_ops import compiler, graphs
from relu_ops.errors import TargetError
from relu_ops.runtime import dispatch
files = compiler.make(graphs.relu(), ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
mapped = lambda: Path("/proc/self/maps").read_text().count("/memfd:relu_ops")
held = bundle.from_contents("op.bundle", files)
for ask in (lambda: held.handle.choose("aarch64", ()), lambda: held.handle.choose("x86_64", ())):
    try:
        ask()
        raise AssertionError
    except TargetError:
        pass
before = mapped()
op = dispatch.operator_of(held)
print(before, mapped() > 0)
"""
    done = children.run(code)
    assert (done.stdout, done.stderr) == ("0 True\n", "")
