"""Verbs that take bundles, and those that say what is here."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from relu_ops.command.terminal import FINE, say
from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import ArgumentError, counted


def run(options: argparse.Namespace) -> int:
    """Run a bundle on .npy files."""
    from relu_ops.runtime import dispatch

    operator = dispatch.load(
        options.bundle, name=options.name, target=options.target, digest=options.digest
    )
    known = zip(options.inputs, operator.inputs, strict=False)  # the operator counts them
    inputs = [_read_array(path, tensor.dtype) for path, tensor in known]
    result = operator(*inputs, *options.inputs[len(inputs) :])
    results = result if isinstance(result, tuple) else (result,)
    if not options.output:
        for array in results:
            print(array)
        return FINE
    if len(options.output) != len(results):
        raise ArgumentError(
            f"{operator.name} has {counted(len(results), 'output')}; "
            f"--output names {len(options.output)}",
            "give --output once for each output, in their order, or not at all",
        )
    for path, array in zip(options.output, results, strict=True):
        _write_array(path, array)
        say(f"{path}: {array.dtype.name}{list(array.shape)}, by {operator.target}")
    return FINE


def _read_array(path: str, dtype: str) -> np.ndarray:
    try:
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise ArgumentError(
            f"{path}: cannot be read: {error.strerror}", "write one with numpy.save"
        ) from error
    except (ValueError, EOFError) as error:
        raise ArgumentError(
            f"{path}: is not a readable .npy file: {error}",
            "write one with numpy.save, of an array of numbers",
        ) from error
    if dtype == "bfloat16" and array.dtype == np.dtype("V2"):
        # The .npy format has no bfloat16: NumPy writes it as two raw bytes.
        return array.view(DTYPES[dtype].numpy)
    return array


def _write_array(path: str, array: np.ndarray) -> None:
    try:
        with Path(path).open("wb") as file:
            np.save(file, array, allow_pickle=False)
    except OSError as error:
        raise ArgumentError(
            f"{path}: cannot be written: {error.strerror}", "name another file with --output"
        ) from error


def wheel(options: argparse.Namespace) -> int:
    """Pack a bundle as a wheel."""
    from relu_ops.ship import wheel

    print(wheel.write(options.bundle, options.output, name=options.name, version=options.version))
    return FINE


def export_kernel(options: argparse.Namespace) -> int:
    """Write a bundle as a folder for the kernels package."""
    from relu_ops.bundle import store as bundles
    from relu_ops.ship import kernels

    name = options.name or Path(options.bundle).name.partition(".")[0]
    version, license = options.version, options.license
    held = bundles.read(options.bundle)
    kernels.export(held, options.folder, name=name, version=version, license=license)
    say(f"{options.folder}: {', '.join(kernels.variants(held))}")
    return FINE


def config(options: argparse.Namespace) -> int:
    """Print how to compile and link a C program."""
    from relu_ops import config

    shown = [value for name, value in config.values().items() if getattr(options, name)]
    if not shown:
        raise ArgumentError("config: nothing was asked for", "for example --cflags --libs")
    print(" ".join(shown))
    return FINE


def cache(options: argparse.Namespace) -> int:
    """List or clear the compile cache."""
    from relu_ops import cache

    if options.action == "clear":
        say(f"{cache.directory()}: {cache.clear()} bundles removed")
        return FINE
    for entry in cache.entries():
        names, operators = ", ".join(entry.targets), ", ".join(entry.operators)
        print(f"{entry.path.name[:16]}  {entry.size:>9,}  {names:<10}  {operators}")
    return FINE


def doctor(options: argparse.Namespace) -> int:
    """Say what is installed and what this machine can do."""
    from relu_ops.report import doctor

    report = doctor.report()
    print(json.dumps(report, indent=1) if options.json else doctor.render(report))
    return FINE
