"""Chooses which variant of a bundle runs here, before any code is opened."""

from __future__ import annotations

import os

from relu_ops import bundle as bundles
from relu_ops import targets
from relu_ops.bundle import Bundle
from relu_ops.errors import ArgumentError, TargetError
from relu_ops.runtime.operator import Operator
from relu_ops.targets import Machine


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
        device: "cpu".
        target: A variant by name, or None for the best that this machine can run.
        digest: The expected sha256 of the manifest, or None to accept the one found.

    Returns:
        The operator.

    Raises:
        BundleError: The bundle is missing, damaged, or not the expected one.
        TargetError: No variant (or not the one asked for) can run here; the message lists every
            variant and why not.
    """
    if device != "cpu":
        raise ArgumentError(f"device must be 'cpu' (not {device!r})")
    return operator_of(bundles.read(path, digest), target=target)


def operator_of(bundle: Bundle, *, target: str | None = None) -> Operator:
    """The operator of a bundle that was read: see `load`."""
    return Operator(bundle, choose(bundle, target, targets.this_machine()))


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
