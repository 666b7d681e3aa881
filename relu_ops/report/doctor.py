"""Says what is installed, what this machine can compile and run, and what to install for the rest.

Never raises: a probe that fails is a line of the report. Imports none of the big packages; it
asks for their versions and leaves them alone.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MINIMUM_PYTHON = (3, 11)


@dataclass(frozen=True)
class Package:
    """One row of the table of packages.

    Attributes:
        name: As pip installs it.
        module: As it is imported.
        extra: The extra of relu_ops that installs it; "" for the base.
        purpose: What it is for.
    """

    name: str
    module: str
    extra: str
    purpose: str


PACKAGES: tuple[Package, ...] = (
    Package("numpy", "numpy", "", "arrays"),
    Package("ml_dtypes", "ml_dtypes", "", "bfloat16"),
    Package("msgspec", "msgspec", "", "reading bundles"),
    Package("onnx", "onnx", "compile", "reading and authoring models"),
    Package("apache-tvm", "tvm", "compile", "compiling operators"),
    Package("filelock", "filelock", "compile", "the compile cache"),
    Package("platformdirs", "platformdirs", "compile", "the compile cache"),
    Package("pyelftools", "elftools", "compile", "reading what TVM makes"),
    Package("capstone", "capstone", "inspect", "showing the machine code that ships"),
    Package("onnxruntime", "onnxruntime", "verify", "verifying against onnxruntime"),
    Package("matplotlib", "matplotlib", "plot", "plots"),
    Package("torch", "torch", "torch", "torch tensors"),
    Package("jax", "jax", "jax", "jax arrays"),
)
"""Every package that relu_ops can use, in the order of the report."""

_ABILITIES: dict[str, str | None] = {
    "run": None,
    "compile": "run",
    "verify": "compile",
    "plot": "run",
}
"""What an installation may be able to do, and what else that takes; in the order of the report."""

Probe = Callable[[], dict[str, Any]]


def report() -> dict[str, Any]:
    """Look at this installation and this machine.

    Returns:
        Plain data, for `json.dumps`: "relu_ops", "python", "native", "packages", "machine",
        "threads", "targets", "cuda" and "cache" say what is there; a probe that failed has
        "problem" and no more. "can" says for each of run, compile, verify and plot None, or
        why not; "advice" what to do about that, one line each.
    """
    found: dict[str, Any] = {
        "relu_ops": _guarded(_relu_ops),
        "python": _guarded(_python),
        "native": _guarded(_native),
        "packages": [_guarded(functools.partial(_package, row)) for row in PACKAGES],
        "machine": _guarded(_machine),
        "threads": _guarded(_threads),
        "targets": _guarded(_targets),
        "cuda": _guarded(_cuda),
        "cache": _guarded(_cache),
    }
    found["can"] = {ability: _why_not(ability, found) for ability in _ABILITIES}
    found["advice"] = list(dict.fromkeys(_advice(found)))
    return found


def _guarded(probe: Probe) -> dict[str, Any]:
    """What a probe found, or the error that it died of, as its "problem"."""
    try:
        return probe()
    except Exception as error:
        return {"problem": f"{type(error).__name__}: {error}"}


# ---------------------------------------------------------------------------------------------
# Probes


def _relu_ops() -> dict[str, Any]:
    from relu_ops._version import __version__

    return {"version": __version__, "path": str(Path(__file__).parents[1])}


def _python() -> dict[str, Any]:
    enough = sys.version_info[:2] >= MINIMUM_PYTHON
    wanted = ".".join(map(str, MINIMUM_PYTHON))
    return {
        "version": platform.python_version(),
        "implementation": platform.python_implementation(),
        "executable": sys.executable,
        "problem": None if enough else f"Python must be {wanted} or newer",
    }


def _native() -> dict[str, Any]:
    """The native runtime: without it nothing runs."""
    from relu_ops._version import __version__
    from relu_ops.native import _python as native

    library = Path(native.__file__).with_name("librelu_ops.so")
    wrong = f"it is not of relu_ops {__version__}: the package was installed in part"
    return {
        "version": native.VERSION,
        "path": str(library),
        "problem": None if __version__ == native.VERSION else wrong,
    }


def _package(row: Package) -> dict[str, Any]:
    from relu_ops._version import installed_version

    return {
        "name": row.name,
        "extra": row.extra,
        "purpose": row.purpose,
        # Of another distribution, onnxruntime-gpu say, the module is there and the version is not.
        "version": installed_version(row.name),
        "installed": importlib.util.find_spec(row.module) is not None,
    }


def _machine() -> dict[str, Any]:
    from relu_ops import targets

    machine = targets.this_machine()
    return {
        "system": platform.platform(),
        "architecture": machine.architecture,
        "cpu": machine.cpu,
        "cores": len(os.sched_getaffinity(0)),
    }


def _threads() -> dict[str, Any]:
    from relu_ops.errors import ArgumentError
    from relu_ops.runtime import threads

    try:
        count = threads.default_settings().threads
        return {"count": count, "thresholds": _thresholds(count), "problem": None}
    except ArgumentError as error:  # no operator can be loaded then
        return {
            "problem": error.message,
            "hint": f"unset {threads.THREADS_VARIABLE}, or correct it",
        }


def _thresholds(count: int) -> str:
    """Whether what `relu-ops tune` measured is in force, and why not."""
    from relu_ops.runtime import tuning

    path = tuning.path()
    try:
        there = path.exists()
    except OSError:  # a folder on the way that may not be looked into
        return "default thresholds"
    if tuning.thresholds(count) is not None:
        return f"thresholds of {path}"
    if not there:
        return "default thresholds (not tuned)"
    return f"default thresholds ({path} is of another machine or number of threads, or no tuning)"


def _targets() -> dict[str, Any]:
    from relu_ops import targets

    machine = targets.this_machine()
    rows = {
        name: targets.why_not(targets.parse(name), machine) for name in targets.of_architecture()
    }
    runnable = [name for name, reason in rows.items() if reason is None]
    return {"why_not": rows, "native": runnable[-1] if runnable else None}


def _cuda() -> dict[str, Any]:
    from relu_ops.runtime import driver

    found = driver.probe()
    version = None if found.version is None else "{}.{}".format(*found.version)
    gpus = [f"cuda:{k} {gpu.name} (sm_{gpu.architecture})" for k, gpu in enumerate(found.gpus)]
    state = "no driver" if version is None else f"driver of CUDA {version}"
    return {
        "state": f"{state}, {', '.join(gpus) or 'no device'}",
        "driver": version,
        "devices": gpus,
        "absent": found.problem,  # which is no problem of this installation
        "problem": None,
    }


def _cache() -> dict[str, Any]:
    from relu_ops import cache
    from relu_ops.errors import ArgumentError, CacheError, MissingDependencyError

    try:
        described: dict[str, Any] = {"path": str(cache.directory())}
    except MissingDependencyError:
        return {"state": "none: nothing can be compiled here", "problem": None}
    try:
        described["limit"] = cache.size_limit()
    except ArgumentError as error:
        hint = f"unset {cache.SIZE_VARIABLE}, or correct it"
        return {**described, "problem": error.message, "hint": hint}
    try:
        folder = cache.usable_directory()  # the rule that compiling goes by
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (CacheError, OSError) as error:
        return {**described, "problem": str(error)}
    entries = cache.entries()
    size = sum(entry.size for entry in entries)
    return {**described, "problem": None, "bundles": len(entries), "size": size}


# ---------------------------------------------------------------------------------------------
# Conclusions


def _missing(found: Mapping[str, Any], extra: str) -> list[str]:
    rows = zip(PACKAGES, found["packages"], strict=True)
    return [row.name for row, state in rows if row.extra == extra and not state.get("installed")]


def _why_not(ability: str, found: Mapping[str, Any]) -> str | None:
    """The first reason why this installation cannot do something; None where it can."""
    extra = "" if ability == "run" else ability
    if missing := _missing(found, extra):
        return f"not installed: {', '.join(missing)}"
    if ability == "run":
        for probe in ("python", "native", "threads"):
            if problem := found[probe].get("problem"):
                return str(problem)
        return None if found["targets"].get("native") else "no target runs on this machine"
    needed = _ABILITIES[ability]
    reason = None if needed is None else _why_not(needed, found)
    return None if reason is None else f"cannot {needed}: {reason}"


def _advice(found: Mapping[str, Any]) -> Iterator[str]:
    for ability in _ABILITIES:
        extra = "" if ability == "run" else ability
        if _missing(found, extra):
            package = f"'relu_ops[{extra}]'" if extra else "--upgrade relu_ops"
            yield f"to {ability}: pip install {package}"
    if found["python"].get("problem"):
        yield f"to run: install Python {'.'.join(map(str, MINIMUM_PYTHON))} or newer"
    if found["native"].get("problem"):
        yield "to run: pip install --force-reinstall relu_ops"
    if found["threads"].get("hint"):
        yield f"to run: {found['threads']['hint']}"
    if found["cache"].get("problem"):
        hint = found["cache"].get("hint") or (
            "set RELU_OPS_CACHE to a directory that only you can write to"
        )
        yield f"to compile once and not in every process: {hint}"


# ---------------------------------------------------------------------------------------------
# For people


_CACHE = "{path}: {bundles} bundles, {size:,} of {limit:,} bytes"


def render(report: Mapping[str, Any]) -> str:
    """Write a report for people.

    Args:
        report: What `report` returned.

    Returns:
        Lines without one at the end.
    """
    rows = {
        "relu_ops": [_line(report["relu_ops"], "{version} in {path}")],
        "python": [_line(report["python"], "{implementation} {version} at {executable}")],
        "native": [_line(report["native"], "{version} at {path}")],
        "machine": [_line(report["machine"], "{cpu}, {cores} cores, {system}")],
        "threads": [_line(report["threads"], "{count} for a large call, {thresholds}")],
        "targets": _target_lines(report["targets"]),
        "cuda": [_line(report["cuda"], "{state}")],
        "cache": [_line(report["cache"], _CACHE if "path" in report["cache"] else "{state}")],
        "packages": _package_lines(report["packages"]),
        "it can": [f"{ability}: {why or 'yes'}" for ability, why in _answers(report["can"])],
        "advice": report["advice"] or ["nothing to install"],
    }
    width = max(map(len, rows)) + 2
    return "\n".join(
        (heading if index == 0 else "").ljust(width) + line
        for heading, lines in rows.items()
        for index, line in enumerate(lines)
    )


def _answers(can: Mapping[str, str | None]) -> list[tuple[str, str | None]]:
    return [(name, None if why is None else f"no ({why})") for name, why in can.items()]


def _line(found: Mapping[str, Any], template: str) -> str:
    """A probe's line: what it found, what is wrong with it, or both."""
    problem = found.get("problem")
    try:
        shown = template.format(**found)
    except KeyError:
        return f"cannot tell: {problem}"
    return f"{shown} ({problem})" if problem else shown


def _target_lines(found: Mapping[str, Any]) -> list[str]:
    if "why_not" not in found:
        return [_line(found, "{why_not}")]
    rows = [
        f"{name}: {'runs here' if reason is None else f'not here: {reason}'}"
        for name, reason in found["why_not"].items()
    ]
    return [*rows, f"native is {found['native'] or 'none of them'}"]


def _package_lines(found: Sequence[Mapping[str, Any]]) -> list[str]:
    width = max(len(row.name) for row in PACKAGES)
    return [
        f"{row.name.ljust(width)}  {_package_state(row, state)}"
        for row, state in zip(PACKAGES, found, strict=True)
    ]


def _package_state(row: Package, state: Mapping[str, Any]) -> str:
    if state.get("problem"):
        return f"cannot tell: {state['problem']}"
    if state["installed"]:
        return state["version"] or "installed, version unknown"
    where = f"relu_ops[{row.extra}]" if row.extra else "relu_ops"
    return f"not installed ({where}: {row.purpose})"
