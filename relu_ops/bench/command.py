"""What `relu-ops bench` does, and what `scripts/benchmark.py` measures for the committed record."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from relu_ops import targets
from relu_ops.bench import cases, limit, peers, planning, plots, record, runner, tables
from relu_ops.bench.cases import CASES, Case
from relu_ops.bench.peers.problem import Skipped
from relu_ops.bench.planning import ALL_SIZES, Group, Place, Settings
from relu_ops.bench.record import MODES, WARM, Record
from relu_ops.bundle import store as bundles
from relu_ops.bundle.store import Bundle
from relu_ops.errors import ArgumentError, require
from relu_ops.runtime import dispatch
from relu_ops.runtime import threads as thread_settings
from relu_ops.verification import Progress

_QUICK_CASES = ("relu", "leaky_relu", "add_relu", "scale_bias_leaky_relu")
_QUICK_SIZES = (16, 1 << 16, 1 << 20, 1 << 24)

# The committed record: every size for float32 at the best level; enough sizes for the rest to see
# where it differs.
_COMPANY = ("relu", "add_relu", "scale_bias_leaky_relu")
_COMPANY_SIZES = (1 << 12, 1 << 16, 1 << 20, 1 << 22, 1 << 24)
_DTYPE_SIZES = (16, 1 << 16, 1 << 20, 1 << 24)
_LEVEL_SIZES = (16, 1 << 10, 1 << 16, 1 << 20, 1 << 24)


@dataclass(frozen=True)
class Asked:
    """What a command line asks for.

    Attributes:
        groups: What to measure.
        settings: How.
        bundle: Where the operators are; None where each case's model is to be compiled.
    """

    groups: list[Group]
    settings: Settings
    bundle: Bundle | None


def asked(options: argparse.Namespace, place: Place | None = None) -> Asked:
    """The plan that a command line asks for.

    Args:
        options: As the verb's parser made them.
        place: Where it is to be measured; here by default.

    Raises:
        ArgumentError: Two options do not go together, or name something that is not there.
        MissingDependencyError: onnx is not installed: even a bundle's own model has to be read.
        ReluOpsError: The model or bundle cannot be read.
        TargetError: A target cannot run there.
    """
    require("onnx", "bench", "relu_ops.bench")
    place = place or planning.here()
    chosen, bundle = _subjects(options)
    for name in options.peer or ():
        peers.find(name)
    planned = planning.plan(
        chosen,
        _levels(options, bundle, place),
        _sizes(options),
        options.dtype or (),
        options.mode or (WARM,),
        options.peer or (),
        place,
    )
    if options.threads is None:
        count = place.threads()
    else:
        count = thread_settings.parse_count("bench: threads", options.threads)
    settings = Settings(threads=count, **(planning.QUICK if options.quick else {}))
    return Asked(planned, settings, bundle)


def _sizes(options: argparse.Namespace) -> Sequence[int]:
    sizes = options.size or (_QUICK_SIZES if options.quick else planning.DEFAULT_SIZES)
    if 0 in sizes:
        raise ArgumentError(
            "bench: size must be at least 1 (not 0)", "for example 65536, 64k or 1M"
        )
    return sizes


def _levels(options: argparse.Namespace, bundle: Bundle | None, place: Place) -> list[str]:
    """The targets, "native" being of a bundle the best that it has."""
    levels = options.target or ["native"]
    if bundle is None or "native" not in levels:  # one for devices alone has nothing to choose
        return list(levels)
    best = place.choose(bundle)
    return [best if level == "native" else level for level in levels]


def _subjects(options: argparse.Namespace) -> tuple[list[Case], Bundle | None]:
    """Cases, and the bundle that has their operators."""
    if options.path is None:
        names = options.graph or (_QUICK_CASES if options.quick else tuple(CASES))
        return [cases.find(name) for name in names], None
    if options.graph or options.dtype:
        raise ArgumentError(
            "bench: --graph and --dtype choose among the benchmark's own cases, and "
            f"{options.path} was named as well",
            "leave out one or the other",
        )
    return _of_path(Path(options.path))


def _of_path(path: Path) -> tuple[list[Case], Bundle | None]:
    """The case of a model file, or those of a bundle, which has operators."""
    from relu_ops.compiler import frontend

    if not path.is_dir():
        proto = frontend.read_model(path)
        return [cases.case_of(proto, proto.graph.name or path.stem)], None
    bundle = bundles.read(path)
    return [cases.case_of(bundle.model(name), name) for name in bundle.handle.operators], bundle


def maker(bundle: Bundle | None) -> runner.MakeOperator:
    """What gives the operators that are measured here."""
    if bundle is None:
        return runner.compiled

    def make(case: Case, _dtype: str, target: str) -> Any:
        cuda = targets.parse(target).backend.ordinal
        return dispatch.operator_of(bundle, name=case.name, target=target, cuda=cuda)

    return make


def check_outputs(record_path: str | None, picture_folder: str | None) -> None:
    """Find out before measuring, which takes minutes, that what was measured can be kept.

    Args:
        record_path: Where a record is to be written, or None.
        picture_folder: Where pictures are to be drawn, or None; the folder is made.

    Raises:
        ArgumentError: That place cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    if record_path is not None:
        path = Path(record_path)
        if path.is_dir():
            raise ArgumentError(
                f"{path}: cannot be written: it is a directory", "name a file, for example r.json"
            )
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            why = "read-only" if path.exists() else f"{path.parent} is missing or read-only"
            raise ArgumentError(f"{path}: cannot be written: {why}", "name another file")
    if picture_folder is not None:
        plots.make_folder(picture_folder)


def run(options: argparse.Namespace, progress: Progress) -> Record:
    """Measure what a command line asks for."""
    found = asked(options)
    say_what_is_missing(found.groups)
    return runner.measure(found.groups, found.settings, maker(found.bundle), progress)


def say_what_is_missing(planned: Iterable[Group]) -> None:
    """Say on stderr, before minutes of measuring, that there will be no limit, and why."""
    names = [g.target for g in planned if targets.parse(g.target).backend.processors]
    for loops in dict.fromkeys(map(limit.of, names)):  # a device's limit is its own copy
        if isinstance(loops, Skipped) and sys.stderr is not None:
            hint = f"\nhint: {loops.hint}" if loops.hint else ""
            print(f"bench: the machine's limit is left out: {loops.reason}{hint}", file=sys.stderr)


def committed(levels: Sequence[str] | None = None) -> list[Group]:
    """The plan of the record in docs/benchmarks.

    Args:
        levels: Targets by name, the best first; all that run here by default.
    """
    best, *others = levels or targets.runnable()[::-1]
    every = list(CASES.values())
    planned = [
        replace(group, modes=MODES)
        if group.case.name in _COMPANY and group.elements in _COMPANY_SIZES
        else group
        for case in every
        for group in planning.plan([case], [best], _LEVEL_SIZES if case.arrange else ALL_SIZES)
    ]
    for case in every:
        if case.dtypes[1:]:
            planned += planning.plan([case], [best], _DTYPE_SIZES, case.dtypes[1:])
    by_target = [p.name for p in peers.PEERS.values() if p.by_target and p.device == "cpu"]
    usual = [case for case in every if not case.arrange]
    for level in others:
        planned += planning.plan(usual, [level], _LEVEL_SIZES, names=by_target)
    return planned


def publish(found: Record, folder: Path, name: str, readme: Path) -> list[Path]:
    """Write a record, its pictures and the README's table.

    Args:
        found: The record; what its machine is called is left out.
        folder: Where to.
        name: What to call it. Pictures of an older record of this name are removed.
        readme: The README, whose marker is made to name this record; left alone where the folder
            does not lie beside or below it.

    Returns:
        The paths that were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    nameless = {key: value for key, value in found.machine.items() if key not in ("host", "on")}
    record.write(msgspec.structs.replace(found, machine=nameless), path)
    for kind in plots.KINDS:
        for stale in (folder / name).glob(f"*.{kind}"):
            stale.unlink()
    written = [path, *plots.draw(found, folder / name)]
    if not path.resolve().is_relative_to(readme.resolve().parent):
        return written
    marker = path.resolve().relative_to(readme.resolve().parent).as_posix()
    text = tables.with_marker(readme.read_text(encoding="utf-8"), marker)
    readme.write_text(tables.readme(text, readme.parent), encoding="utf-8")
    return [*written, readme]
