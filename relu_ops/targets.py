"""Targets: their names, what each needs, and which of them a machine can run.

Resolution is a pure function of a probed `Machine`, so that made-up machines can be asked.
Probing reads what the processor and the operating system say and never raises.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from relu_ops.errors import TargetError

# The psABI's microarchitecture levels (x86-64 psABI, section 3.1.1), each on top of the one
# before it, in the names of /proc/cpuinfo. Linux lists a flag that needs wider registers (avx,
# avx512f) only where the operating system saves them, so that the list answers for both.
_V2 = ("cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3")
_V3 = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave")
_V4 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


@dataclass(frozen=True)
class Target:
    """One row of the target table.

    Attributes:
        name: The name, as it is parsed and printed.
        kind: "cpu" or "cuda".
        vector_bytes: The width of a vector register; 0 for CUDA.
        flags: Processor flags it needs, beyond those of the rows before it.
        native_float16: True where float16 is converted in hardware (F16C).
        architectures: For CUDA: the SM versions with machine code; empty means the fat default.
    """

    name: str
    kind: str
    vector_bytes: int = 0
    flags: tuple[str, ...] = ()
    native_float16: bool = False
    architectures: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.name


TARGETS: dict[str, Target] = {
    row.name: row
    for row in (
        Target("x86-64-v2", "cpu", 16, _V2),
        Target("x86-64-v3", "cpu", 32, _V2 + _V3, native_float16=True),
        Target("x86-64-v4", "cpu", 64, _V2 + _V3 + _V4, native_float16=True),
        Target("cuda", "cuda", native_float16=True),
    )
}
"""Every named target, in the order of preference on a machine: the last that runs is best."""

CPU_TARGETS = tuple(name for name, row in TARGETS.items() if row.kind == "cpu")

_ONE_ARCHITECTURE = re.compile(r"cuda-sm_([1-9][0-9]{1,2})")


def parse(name: str) -> Target:
    """Return the target of a name.

    >>> str(parse("x86-64-v3")), parse("cuda-sm_90").architectures
    ('x86-64-v3', (90,))

    Raises:
        TargetError: There is no such target.
    """
    if isinstance(name, str) and name in TARGETS:
        return TARGETS[name]
    match = _ONE_ARCHITECTURE.fullmatch(name) if isinstance(name, str) else None
    if match:
        return Target(name, "cuda", native_float16=True, architectures=(int(match[1]),))
    raise TargetError(
        f"target {name!r} is not known", f"known targets: {', '.join(TARGETS)}, native, cuda-sm_NN"
    )


def is_known(name: str) -> bool:
    """True for the name of a target."""
    return name in TARGETS or _ONE_ARCHITECTURE.fullmatch(name) is not None


@dataclass(frozen=True)
class Gpu:
    """A CUDA device: its name, and its compute capability as in "sm_90"."""

    name: str
    sm: int


@dataclass(frozen=True)
class Machine:
    """What is known of a machine.

    Attributes:
        architecture: As `platform.machine` says, for example "x86_64".
        cpu: The processor's model name.
        flags: Its feature flags, as the operating system lists them.
        driver: The version of CUDA that its driver runs, or None.
        driver_problem: Why there is no driver, or none that was looked for.
        gpus: Its CUDA devices, by number.
    """

    architecture: str
    cpu: str = "unknown"
    flags: frozenset[str] = frozenset()
    driver: tuple[int, int] | None = None
    driver_problem: str = "it was not looked for"
    gpus: tuple[Gpu, ...] = ()


@cache
def this_machine() -> Machine:
    """Probe this machine. Never raises: what cannot be read is taken as absent."""
    fields: dict[str, str] = {}
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                fields.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    flags = frozenset(fields.get("flags", "").split())
    return Machine(platform.machine(), fields.get("model name", "unknown"), flags)


def why_not(target: Target, machine: Machine) -> str | None:
    """The reason why a machine cannot run a CPU target; None where it can.

    >>> why_not(parse("x86-64-v3"), Machine("aarch64"))
    'the processor is aarch64 (not x86_64)'
    """
    if target.kind != "cpu":
        return "it runs on a GPU (not on the CPU)"
    if machine.architecture not in ("x86_64", "AMD64"):
        return f"the processor is {machine.architecture} (not x86_64)"
    missing = [flag for flag in target.flags if flag not in machine.flags]
    if missing:
        return f"the processor or its operating system lacks {', '.join(missing)}"
    return None


def why_not_on_gpu(
    target: Target, requires: Mapping[str, Any], machine: Machine, number: int
) -> str | None:
    """The reason why a CUDA device cannot run a library; None where it can.

    Machine code runs on its own architecture and on later ones of the same major version; PTX on
    every later one, where the driver is as new as the compiler that wrote it.

    Args:
        target: The library's target.
        requires: What the manifest says of it: "sm", "ptx", "cuda" and "driver".
        machine: The machine.
        number: The device's.

    >>> h200 = Machine("x86_64", driver=(13, 0), gpus=(Gpu("NVIDIA H200", 90),))
    >>> needs = {"sm": [75, 80], "ptx": None, "cuda": "13.5", "driver": "13.0"}
    >>> why_not_on_gpu(parse("cuda"), needs, h200, 0)
    'built for sm_75, sm_80; cuda:0 (NVIDIA H200) is sm_90'
    """
    if target.kind != "cuda":
        return "it runs on the CPU (not on a GPU)"
    if machine.driver is None:
        return f"there is no CUDA driver ({machine.driver_problem})"
    if machine.driver < _version(requires["driver"]):
        shown = ".".join(map(str, machine.driver))
        return f"the driver runs CUDA {shown} (it must run {requires['driver']} or newer)"
    if number >= len(machine.gpus):
        return f"there is no device cuda:{number} (there are {len(machine.gpus)})"
    gpu = machine.gpus[number]
    if _closeness(requires, machine, gpu) >= 0:
        return None
    built = [f"sm_{sm}" for sm in requires["sm"]]
    built += [f"compute_{requires['ptx']}"] if requires["ptx"] else []
    return f"built for {', '.join(built)}; cuda:{number} ({gpu.name}) is sm_{gpu.sm}"


def _closeness(requires: Mapping[str, Any], machine: Machine, gpu: Gpu) -> int:
    """How well a library suits a device: the architecture of its code, 0 for PTX, else -1."""
    native_code = [sm for sm in requires["sm"] if sm // 10 == gpu.sm // 10 and sm <= gpu.sm]
    if native_code:
        return max(native_code)
    ptx = requires["ptx"]
    compiles = machine.driver is not None and machine.driver >= _version(requires["cuda"])
    return 0 if ptx and ptx <= gpu.sm and compiles else -1


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)


def choose_on_gpu(
    libraries: Mapping[str, Mapping[str, Any]], machine: Machine, number: int
) -> Target:
    """Choose the library that suits a CUDA device best.

    Args:
        libraries: What each target's library requires, by the target's name.
        machine: The machine.
        number: The device's.

    Raises:
        TargetError: None can run; the message lists each and why not.
    """
    reasons = {
        name: why_not_on_gpu(parse(name), requires, machine, number)
        for name, requires in libraries.items()
    }
    runnable = [name for name, reason in reasons.items() if reason is None]
    if runnable:
        gpu = machine.gpus[number]
        return parse(max(runnable, key=lambda n: _closeness(libraries[n], machine, gpu)))
    lines = [f"  {name}: {reason}" for name, reason in reasons.items()]
    raise TargetError(
        "\n".join([f"no variant can run on cuda:{number}:", *lines]),
        "build one with relu_ops.build(model, targets=['cuda'], path=...)"
        if not any(parse(name).kind == "cuda" for name in libraries)
        else "run it on the CPU: device='cpu', or a target of x86-64",
    )


def native(machine: Machine | None = None) -> Target:
    """The best CPU target that a machine runs.

    Raises:
        TargetError: It runs none; the message lists each and why not.
    """
    machine = this_machine() if machine is None else machine
    return choose(CPU_TARGETS, machine)


def runnable(machine: Machine | None = None) -> tuple[str, ...]:
    """The CPU targets that a machine runs, the plainest first.

    >>> runnable(Machine("x86_64", flags=frozenset(_V2))), runnable(Machine("aarch64"))
    (('x86-64-v2',), ())
    """
    machine = this_machine() if machine is None else machine
    return tuple(name for name in CPU_TARGETS if why_not(parse(name), machine) is None)


def choose(names: Iterable[str], machine: Machine) -> Target:
    """Choose the best of several targets for the CPU of a machine.

    Args:
        names: Names of targets, in any order.
        machine: The machine.

    Raises:
        TargetError: None can run; the message lists each and why not.
    """
    candidates = [parse(name) for name in names]
    runnable = [t for t in candidates if why_not(t, machine) is None]
    if runnable:
        return max(runnable, key=lambda t: t.vector_bytes)
    raise TargetError(
        refusal("no variant can run on this machine's CPU", candidates, machine),
        "build one for it with relu_ops.build(model, targets=['native'], path=...)",
    )


def refusal(headline: str, candidates: Sequence[Target], machine: Machine) -> str:
    """List every candidate and why it was refused."""
    lines = [f"  {t.name}: {why_not(t, machine) or 'can run'}" for t in candidates]
    return "\n".join([f"{headline}:", *(lines or ["  (there is none)"])])


def resolve(name: str | Target, machine: Machine | None = None) -> Target:
    """Return the target of a name, "native" included."""
    if isinstance(name, Target):
        return name
    return native(machine) if name == "native" else parse(name)
