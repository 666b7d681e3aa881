"""Verbs that take models."""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from relu_ops.command.terminal import CHECK_FAILED, FINE, say
from relu_ops.errors import ArgumentError, counted

if TYPE_CHECKING:
    from relu_ops.runtime.operator import Operator


def export(options: argparse.Namespace) -> int:
    """Write the ONNX models, or list which differ."""
    from relu_ops import graphs

    wrong = graphs.export(options.folder, check=options.check)
    if options.check:
        for name in wrong:
            print(name)
        count = len(graphs.MODELS) + 1  # and their README
        say(f"{options.folder}: {len(wrong)} of {count} files differ")
        return CHECK_FAILED if wrong else FINE
    say(f"{options.folder}: {len(graphs.MODELS)} models")
    return FINE


def build(options: argparse.Namespace) -> int:
    """Compile models into a bundle."""
    from relu_ops import compiler

    digest = compiler.build(_models(options), options.target or ["native"], options.output)
    say(f"{options.output}: built for {', '.join(options.target or ['native'])}")
    print(digest)
    return FINE


def _models(options: argparse.Namespace) -> str | dict[str, str]:
    """The models to build: one file, or several with the names of their operators."""
    names = options.name or [Path(path).stem for path in options.models]
    if len(names) != len(options.models):
        given = f"{counted(len(options.models), 'model')}, {counted(len(names), 'name')}"
        raise ArgumentError(
            f"build: --name must be given once for each model ({given})",
            "give them in the order of the models, or none",
        )
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ArgumentError(
            f"build: two operators would have the name {twice!r}",
            "give each a name of its own: --name once for each model, in their order",
        )
    if len(options.models) == 1 and not options.name:
        return str(options.models[0])
    return dict(zip(names, options.models, strict=True))


def partition(options: argparse.Namespace) -> int:
    """Take out of a network what runs faster here."""
    from relu_ops import partitioning

    report = partitioning.partition(
        options.model,
        options.output,
        options.target or ["native"],
        measure=options.measure,
        inputs=dict(pair for path in options.input or () for pair in _read_arrays(path)),
        dims=dict(map(_dimension, options.dim or ())),
        threads=options.threads,
    )
    print(json.dumps(report.as_dict(), indent=1) if options.json else report)
    say(f"{options.output}: written")
    return FINE


def _dimension(text: str) -> tuple[str, int]:
    """Parse NAME=EXTENT."""
    name, _, extent = text.rpartition("=")
    if not name or not re.fullmatch(r"[0-9]{1,18}", extent):
        raise ArgumentError(
            f"partition: --dim must be a name and an extent (not {text!r})",
            "for example --dim batch=8",
        )
    return name, int(extent)


def _read_arrays(path: str) -> list[tuple[str, np.ndarray]]:
    """The arrays of an .npz file, by the names of inputs."""
    try:
        with np.load(path) as arrays:
            return list(arrays.items())
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ArgumentError(
            f"{path}: is not a readable .npz file",
            "write one with numpy.savez, an array for the name of each input",
        ) from error


def inspect(options: argparse.Namespace) -> int:
    """Show a bundle or a model."""
    from relu_ops.report import inspect

    _refuse_pairs("inspect", options, ("source", "json"), ("source", "rebuild_check"))
    for name in ("target", "name"):
        if getattr(options, name) and not options.source:
            raise ArgumentError(
                f"inspect: --{name} chooses what --source shows, and that is not given",
                "give --source too, for example --source assembly, or leave it out",
            )
    if options.rebuild_check:
        report = inspect.rebuild_check(options.path)
        print(json.dumps(report, indent=1) if options.json else inspect.render_rebuild(report))
        return FINE if report["identical"] else CHECK_FAILED
    if options.source:
        print(inspect.source(options.path, options.target, options.source, options.name))
        return FINE
    description = inspect.describe(options.path)
    print(json.dumps(description, indent=1) if options.json else inspect.render(description))
    return FINE


def _refuse_pairs(verb: str, options: argparse.Namespace, *pairs: tuple[str, str]) -> None:
    for pair in pairs:
        if all(getattr(options, name) for name in pair):
            first, second = (f"--{name.replace('_', '-')}" for name in pair)
            raise ArgumentError(
                f"{verb}: {first} and {second} do not go together", "leave out one or the other"
            )


def plot(options: argparse.Namespace) -> int:
    """Draw operators."""
    from relu_ops.report import plot

    operators = [pair for path in options.paths for pair in _operators_at(Path(path))]
    plot.plot(
        operators,
        options.output,
        low=options.range[0],
        high=options.range[1],
        derivative=not options.no_derivative,
    )
    low, high = options.range
    say(f"{options.output}: {', '.join(label for label, _ in operators)} from {low:g} to {high:g}")
    return FINE


def _operators_at(path: Path) -> list[tuple[str, Operator]]:
    """The operators of a model or a bundle, each with a label."""
    label = path.name.partition(".")[0]
    if not path.is_dir():
        from relu_ops import jit

        return [(label, jit.compile(path))]
    from relu_ops.bundle import store as bundle
    from relu_ops.runtime import dispatch

    held = bundle.read(path)
    names = held.handle.operators
    labels = [label] if len(names) == 1 else names
    return [
        (shown, dispatch.operator_of(held, name=name))
        for shown, name in zip(labels, names, strict=True)
    ]
