"""Targets: their names, what each needs, and which of them a machine can run.

Resolution is a pure function of a probed `Machine`, so that made-up machines can be asked.
Which image of a bundle runs is the native core's choice; here it is what can be built, and for
what. What differs between kinds of targets is a field of their `Backend`: nothing elsewhere asks
what kind a target is.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from relu_ops.errors import TargetError
from relu_ops.native import _python as native_core

# The psABI's microarchitecture levels (x86-64 psABI, section 3.1.1), each on top of the one
# before it, in the names of /proc/cpuinfo. The core, which asks the processor, has a feature that
# needs wider registers (avx, avx512f) only where the operating system saves them, as Linux does in
# that file.
_V2 = ("cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3")
_V3 = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave")
_V4 = ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


@dataclass(frozen=True)
class Backend:
    """What targets of one kind have in common: what makes their images, and what runs them.

    Attributes:
        folder: What makes their images, of `relu_ops.compiler`.
        processors: What systems call the processors that run the code; none for a device's.
        device: What the code runs on, "cpu" or "cuda".
        ordinal: The device that an operator is for where none is named; -1: the CPU.
        forms: What `inspect.source` shows: TVM's loops, LLVM IR, the machine code that ships; and
            CUDA C++.
        packages: Whose versions decide the bytes of images, beside those of every target.
        wheel_tags: The platform tags of a wheel with such an image; without them, any.
    """

    folder: str
    processors: tuple[str, ...] = ()
    device: str = "cpu"
    ordinal: int = -1
    forms: tuple[str, ...] = ("tir", "llvm", "assembly")
    packages: tuple[str, ...] = ()
    wheel_tags: tuple[str, ...] = ()

    def why_not(self, architecture: str) -> str | None:
        """The reason why processors of an architecture run none of it; None where they may."""
        if not self.processors:
            return "it runs on a GPU (not on the CPU)"
        if architecture not in self.processors:
            return f"the processor is {architecture} (not {self.processors[0]})"
        return None

    def devices(self, requires: Sequence[str]) -> str | None:
        """Which devices an image's requirements mean, for people; None: features of processors."""
        if self.processors or not requires:
            return None
        version, *codes = requires
        return f"for CUDA {version.removeprefix('cuda_')}: {', '.join(codes)}"


X86 = Backend("x86", ("x86_64", "AMD64"), wheel_tags=("manylinux1_x86_64", "musllinux_1_0_x86_64"))
AARCH64 = Backend(
    "aarch64", ("aarch64", "arm64"), wheel_tags=("manylinux2014_aarch64", "musllinux_1_0_aarch64")
)
CUDA = Backend(
    "cuda",
    device="cuda",
    ordinal=0,
    forms=("tir", "cuda"),
    packages=("nvidia-cuda-cccl", "nvidia-cuda-nvrtc", "nvidia-nvfatbin"),
)


@dataclass(frozen=True)
class Target:
    """One row of the target table.

    Attributes:
        name: The name, as it is parsed and printed.
        backend: What it has in common with others.
        vector_bytes: What is computed at once: a vector register, on aarch64 two; 0 for CUDA.
        flags: Processor flags it needs, beyond those of the rows before it.
        native_float16: True where float16 is converted in hardware: by F16C, and by all of ARMv8-A.
        cheap_select: True where a select is one instruction that overwrites no operand (AVX).
        smallest_stream: Bytes of the narrowest store past the cache: movntps; stnp of a pair.
        llvm_name: What LLVM calls its processor, where that is another name.
        architectures: For CUDA: the SM versions with machine code; empty means the fat default.
    """

    name: str
    backend: Backend
    vector_bytes: int = 0
    flags: tuple[str, ...] = ()
    native_float16: bool = False
    cheap_select: bool = True
    smallest_stream: int = 16
    llvm_name: str = ""
    architectures: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.name


TARGETS: dict[str, Target] = {
    row.name: row
    for row in (
        Target("x86-64-v2", X86, 16, _V2, cheap_select=False),
        Target("x86-64-v3", X86, 32, _V2 + _V3, native_float16=True),
        Target("x86-64-v4", X86, 64, _V2 + _V3 + _V4, native_float16=True),
        Target(
            *("aarch64", AARCH64, 32, ("fp", "asimd")),
            native_float16=True,
            smallest_stream=32,
            llvm_name="generic",
        ),
        Target("cuda", CUDA, native_float16=True),
    )
}
"""Every named target, in the order of preference on a machine: the last that runs is best."""

CPU_TARGETS = tuple(name for name, row in TARGETS.items() if row.backend.processors)

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
        return Target(name, CUDA, native_float16=True, architectures=(int(match[1]),))
    raise TargetError(
        f"target {name!r} is not known", f"known targets: {', '.join(TARGETS)}, native, cuda-sm_NN"
    )


def is_known(name: str) -> bool:
    """True for the name of a target."""
    return name in TARGETS or _ONE_ARCHITECTURE.fullmatch(name) is not None


@dataclass(frozen=True)
class Machine:
    """What is known of a machine.

    Attributes:
        architecture: As `platform.machine` says, for example "x86_64".
        cpu: The processor's model name.
        flags: The features that its processor has and its operating system supports, of those that
            a target may require.
    """

    architecture: str
    cpu: str = "unknown"
    flags: frozenset[str] = frozenset()


@cache
def this_machine() -> Machine:
    """Probe this machine. Never raises.

    The features are asked of the processor itself: in a sandbox there may be no /proc/cpuinfo.
    """
    return Machine(platform.machine(), _model_name(), native_core.processor_features())


def _model_name() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            lines = [line.partition(":") for line in file]
    except OSError:
        return "unknown"
    found = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    if "model name" in found or "CPU part" not in found:
        return found.get("model name", "unknown")
    return f"implementer {found.get('CPU implementer')}, part {found['CPU part']}"  # Arm's numbers


def why_not(target: Target, machine: Machine) -> str | None:
    """The reason why a machine cannot run a CPU target; None where it can.

    >>> why_not(parse("x86-64-v3"), Machine("aarch64"))
    'the processor is aarch64 (not x86_64)'
    >>> why_not(parse("aarch64"), Machine("x86_64"))
    'the processor is x86_64 (not aarch64)'
    """
    if (reason := target.backend.why_not(machine.architecture)) is not None:
        return reason
    missing = [flag for flag in target.flags if flag not in machine.flags]
    if missing:
        return f"the processor or its operating system lacks {', '.join(missing)}"
    return None


def check_runs(target: Target, machine: Machine | None = None) -> None:
    """Refuse a CPU target that a machine cannot run.

    Raises:
        TargetError: It cannot.
    """
    reason = why_not(target, this_machine() if machine is None else machine)
    if reason is not None:
        raise TargetError(f"{target} cannot run on this machine: {reason}")


def of_architecture(machine: Machine | None = None) -> tuple[str, ...]:
    """The CPU targets for a machine's kind of processor; all of them, where it is of none.

    >>> of_architecture(Machine("x86_64"))
    ('x86-64-v2', 'x86-64-v3', 'x86-64-v4')
    """
    architecture = (this_machine() if machine is None else machine).architecture
    own = (n for n in CPU_TARGETS if TARGETS[n].backend.why_not(architecture) is None)
    return tuple(own) or CPU_TARGETS


def runnable(machine: Machine | None = None) -> tuple[str, ...]:
    """The CPU targets that a machine runs, the plainest first.

    >>> runnable(Machine("x86_64", flags=frozenset(_V2))), runnable(Machine("aarch64"))
    (('x86-64-v2',), ())
    """
    machine = this_machine() if machine is None else machine
    return tuple(name for name in CPU_TARGETS if why_not(TARGETS[name], machine) is None)


def native(machine: Machine | None = None) -> Target:
    """The best CPU target that a machine runs.

    Raises:
        TargetError: It runs none; the message lists each and why not.
    """
    machine = this_machine() if machine is None else machine
    if names := runnable(machine):
        return TARGETS[names[-1]]
    reasons = [f"  {name}: {why_not(TARGETS[name], machine)}" for name in CPU_TARGETS]
    raise TargetError(
        "\n".join(["no target runs on this machine's CPU:", *reasons]),
        "name the target of another machine, and run what is built for it there",
    )


def resolve(name: str | Target, machine: Machine | None = None) -> Target:
    """Return the target of a name, "native" included."""
    if isinstance(name, Target):
        return name
    return native(machine) if name == "native" else parse(name)


def why(chosen: Target, asked: str, machine: Machine | None = None) -> str:
    """Why a target was chosen, for people.

    >>> v2 = Machine("x86_64", "Atom", frozenset(_V2 + _V3) - {"movbe"})
    >>> why(parse("x86-64-v2"), "x86-64-v2", v2)
    'asked for by name'
    >>> why(parse("x86-64-v2"), "native", v2).partition("; x86-64-v4")[0]
    'the best for Atom; x86-64-v3: the processor or its operating system lacks movbe'
    """
    if asked != "native":
        return "asked for by name"
    machine = this_machine() if machine is None else machine
    own = of_architecture(machine)
    better = own[own.index(chosen.name) + 1 :]
    absent = "the bundle has none"
    reasons = (f"{name}: {why_not(TARGETS[name], machine) or absent}" for name in better)
    return "; ".join([f"the best for {machine.cpu}", *reasons])
