"""Targets: their names, and which of them a made-up machine can run."""

from __future__ import annotations

import itertools
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relu_ops import bundle, targets
from relu_ops.bundle import Bundle, File, Manifest, Tensor
from relu_ops.errors import TargetError
from relu_ops.runtime import dispatch
from relu_ops.targets import CPU_TARGETS, TARGETS, Machine, Target

ARCHITECTURES = ("cuda-sm_75", "cuda-sm_80", "cuda-sm_90", "cuda-sm_100", "cuda-sm_120")
KNOWN = "hint: known targets: x86-64-v2, x86-64-v3, x86-64-v4, cuda, native, cuda-sm_NN"


def machine(*levels: str, without: tuple[str, ...] = ()) -> Machine:
    """A made-up x86 machine with the flags of some levels."""
    flags = {flag for level in levels for flag in TARGETS[level].flags} - set(without)
    return Machine("x86_64", "made up", frozenset(flags))


OLD = Machine("x86_64", "made up", frozenset({"pni"}))
ARM = Machine("aarch64", "made up", frozenset({"asimd"}))
UNREADABLE = Machine("x86_64")


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
    assert targets.parse(name).kind == "cuda"


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
    levels = [TARGETS[name] for name in CPU_TARGETS]
    for lower, higher in itertools.pairwise(levels):
        assert set(lower.flags) < set(higher.flags)
        assert lower.vector_bytes < higher.vector_bytes


# ---------------------------------------------------------------- machines


@pytest.mark.parametrize("level", CPU_TARGETS)
def test_native_is_the_highest_level_that_runs(level: str) -> None:
    assert targets.native(machine(level)).name == level
    assert targets.resolve("native", machine(level)).name == level


@pytest.mark.parametrize("level", CPU_TARGETS)
def test_one_missing_flag_rules_a_level_out(level: str) -> None:
    lower = TARGETS[CPU_TARGETS[CPU_TARGETS.index(level) - 1]] if level != CPU_TARGETS[0] else None
    own = set(TARGETS[level].flags) - set(lower.flags if lower else ())
    assert own
    for flag in own:
        partial = machine(level, without=(flag,))
        assert targets.why_not(TARGETS[level], partial) == (
            f"the processor or its operating system lacks {flag}"
        )
        if lower:
            assert targets.native(partial) == lower


def test_a_higher_level_does_not_stand_in_for_a_lower_flag() -> None:
    odd = machine("x86-64-v4", without=("sse4_2",))
    refused(
        "no variant can run on this machine's CPU:\n"
        "  x86-64-v2: the processor or its operating system lacks sse4_2\n"
        "  x86-64-v3: the processor or its operating system lacks sse4_2\n"
        "  x86-64-v4: the processor or its operating system lacks sse4_2\n"
        "hint: build one for it with relu_ops.build(model, targets=['native'], path=...)",
        lambda: targets.native(odd),
    )


def test_refusal_lists_every_variant_and_why() -> None:
    refused(
        "no variant can run on this machine's CPU:\n"
        "  x86-64-v4: the processor or its operating system lacks avx512f, avx512bw, avx512cd, "
        "avx512dq, avx512vl\n"
        "  cuda-sm_90: it runs on a GPU (not on the CPU)\n"
        "hint: build one for it with relu_ops.build(model, targets=['native'], path=...)",
        lambda: targets.choose(["x86-64-v4", "cuda-sm_90"], machine("x86-64-v3")),
    )


def test_another_architecture() -> None:
    for name in CPU_TARGETS:
        reason = targets.why_not(TARGETS[name], ARM)
        assert reason == "the processor is aarch64 (not x86_64)"
    with pytest.raises(TargetError, match=r"x86-64-v2: the processor is aarch64 \(not x86_64\)"):
        targets.native(ARM)


def test_no_variants_at_all() -> None:
    refused(
        "no variant can run on this machine's CPU:\n"
        "  (there is none)\n"
        "hint: build one for it with relu_ops.build(model, targets=['native'], path=...)",
        lambda: targets.choose([], machine("x86-64-v4")),
    )


def test_what_cannot_be_read_is_taken_as_absent() -> None:
    with pytest.raises(TargetError, match="lacks cx16, lahf_lm, popcnt"):
        targets.native(UNREADABLE)


def test_order_of_the_names_does_not_matter() -> None:
    every = machine(*CPU_TARGETS)
    for names in (CPU_TARGETS, CPU_TARGETS[::-1], ("cuda", *CPU_TARGETS)):
        assert targets.choose(names, every).name == CPU_TARGETS[-1]


def test_this_machine_is_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = targets.this_machine()
    assert found.architecture == platform.machine()
    assert found is targets.this_machine()
    if Path("/proc/cpuinfo").exists() and found.architecture == "x86_64":
        assert "sse2" in found.flags
    assert targets.resolve("native") == targets.native(found)

    def unreadable(*_: object, **__: object) -> object:
        raise PermissionError

    monkeypatch.setattr(Path, "open", unreadable)
    assert targets.this_machine.__wrapped__() == Machine(platform.machine())


# ---------------------------------------------------------------- choosing a variant of a bundle


def held(*names: str) -> Bundle:
    """A bundle with libraries of no content: none may be opened."""
    digest = bundle.digest_of(b"")
    files = [File("model.onnx", "model", None, digest, 0, {})]
    files += [File(f"{name}.so", "library", name, digest, 0, {}) for name in names]
    manifest = Manifest(
        format=1,
        semantics=1,
        operator="op",
        inputs=(Tensor("x", "float32", None),),
        outputs=(Tensor("y", "float32", None),),
        output_terms=((),),
        requirements=(),
        tvm_ffi_abi="0.1",
        producer={},
        files=tuple(files),
    )
    contents = {file.path: b"" for file in files}
    return bundle.from_contents("op.bundle", bundle.encode(manifest), contents)


@pytest.mark.parametrize("asked", [None, "native"])
def test_the_best_variant_is_chosen(asked: str | None) -> None:
    every = held(*CPU_TARGETS)
    for level in CPU_TARGETS:
        assert dispatch.choose(every, asked, machine(level)).name == level
    two = held("x86-64-v2", "x86-64-v4")
    assert dispatch.choose(two, asked, machine("x86-64-v3")).name == "x86-64-v2"


def test_a_variant_is_chosen_by_name() -> None:
    every = held(*CPU_TARGETS)
    for name in CPU_TARGETS:
        chosen: Target = dispatch.choose(every, name, machine("x86-64-v4"))
        assert chosen.name == name


def test_a_variant_that_is_not_there() -> None:
    refused(
        "op.bundle: has no variant for x86-64-v4; it has:\n"
        "  x86-64-v2: can run\n"
        "  x86-64-v3: the processor or its operating system lacks avx2, fma",
        lambda: dispatch.choose(
            held("x86-64-v2", "x86-64-v3"),
            "x86-64-v4",
            machine("x86-64-v3", without=("avx2", "fma")),
        ),
    )


def test_a_variant_that_cannot_run() -> None:
    refused(
        "op.bundle: x86-64-v3 cannot run on this machine: the processor is aarch64 (not x86_64); "
        "it has:\n"
        "  x86-64-v3: the processor is aarch64 (not x86_64)",
        lambda: dispatch.choose(held("x86-64-v3"), "x86-64-v3", ARM),
    )
    refused(
        "no variant can run on this machine's CPU:\n"
        "  x86-64-v2: the processor or its operating system lacks cx16, lahf_lm, popcnt, sse4_1, "
        "sse4_2, ssse3\n"
        "hint: build one for it with relu_ops.build(model, targets=['native'], path=...)",
        lambda: dispatch.choose(held("x86-64-v2"), None, OLD),
    )


def test_no_library_is_opened_that_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(_: bytes) -> None:
        raise AssertionError("a library was opened")

    monkeypatch.setattr("relu_ops.runtime.library._load_from_memory", opened)
    monkeypatch.setattr(targets, "this_machine", lambda: ARM)
    for asked in (None, "native", *CPU_TARGETS):
        with pytest.raises(TargetError):
            dispatch.operator_of(held(*CPU_TARGETS), target=asked)
