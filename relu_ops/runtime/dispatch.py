"""Chooses which variant of a bundle runs here, before any code is opened."""

from __future__ import annotations

import os
import re

from relu_ops import bundle as bundles
from relu_ops import targets
from relu_ops.bundle import Bundle
from relu_ops.errors import ArgumentError, TargetError
from relu_ops.runtime.operator import Operator
from relu_ops.targets import Machine

_DEVICE = re.compile(r"cpu|cuda(?::([0-9]{1,2}))?")


def load(
    path: str | os.PathLike[str],
    *,
    device: str = "cpu",
    target: str | None = None,
    digest: str | None = None,
) -> Operator:
    """Load an operator from a bundle. Needs no compiler.

    Args:
        path: The bundle's directory.
        device: "cpu"; or "cuda" or "cuda:1", for a CUDA device by its number. The device is made
            ready here; arrays on another one of the same machine are taken too.
        target: A variant by name, or None for the best that this machine can run.
        digest: The expected sha256 of the manifest, or None to accept the one found.

    Returns:
        The operator.

    Raises:
        BundleError: The bundle is missing, damaged, or not the expected one.
        TargetError: No variant (or not the one asked for) can run here; the message lists every
            variant and why not.
    """
    number = _device_number(device)
    return operator_of(bundles.read(path, digest), target=target, number=number)


def _device_number(device: str) -> int | None:
    """The number of a CUDA device; None for the CPU."""
    match = _DEVICE.fullmatch(device) if isinstance(device, str) else None
    if not match:
        raise ArgumentError(f"device must be 'cpu', 'cuda' or 'cuda:N' (not {device!r})")
    return None if device == "cpu" else int(match[1] or 0)


def operator_of(
    bundle: Bundle, *, target: str | None = None, number: int | None = None
) -> Operator:
    """The operator of a bundle that was read: see `load`. `number` is a CUDA device's."""
    if number is not None:
        from relu_ops.runtime import driver
        from relu_ops.runtime.cuda import CudaOperator

        return CudaOperator(bundle, choose_on_gpu(bundle, target, driver.machine(), number), number)
    return Operator(bundle, choose(bundle, target, targets.this_machine()))


def choose_on_gpu(
    bundle: Bundle, target: str | None, machine: Machine, number: int
) -> targets.Target:
    """The variant to run on a CUDA device of a machine.

    Raises:
        TargetError: There is none.
    """
    libraries = {
        entry.target: entry.requires for entry in bundle.manifest.files if entry.target is not None
    }
    if target is not None:
        wanted = targets.parse(target).name
        if wanted not in libraries:
            headline = f"{bundle.path}: has no variant for {wanted}; it has"
            raise TargetError("\n".join([f"{headline}:", *(f"  {name}" for name in libraries)]))
        libraries = {wanted: libraries[wanted]}
    return targets.choose_on_gpu(libraries, machine, number)


def choose(bundle: Bundle, target: str | None, machine: Machine) -> targets.Target:
    """The variant to run, for a machine.

    Raises:
        TargetError: There is none.
    """
    names = bundle.manifest.targets
    if target is None or target == "native":
        return targets.choose(names, machine)
    wanted = targets.parse(target)
    candidates = [targets.parse(name) for name in names]
    if wanted.name not in names:
        headline = f"{bundle.path}: has no variant for {wanted}; it has"
        raise TargetError(targets.refusal(headline, candidates, machine))
    reason = targets.why_not(wanted, machine)
    if reason is not None:
        headline = f"{bundle.path}: {wanted} cannot run on this machine: {reason}; it has"
        raise TargetError(targets.refusal(headline, candidates, machine))
    return wanted
