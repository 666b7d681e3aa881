"""Loads operators: a bundle is read and checked, and the core chooses what of it runs there."""

from __future__ import annotations

import os

from relu_ops import log
from relu_ops.bundle import store as bundles
from relu_ops.bundle.store import Bundle
from relu_ops.errors import ArgumentTypeError
from relu_ops.runtime import threads
from relu_ops.runtime.operator import Operator, number_of


def load(
    path: str | os.PathLike[str],
    *,
    name: str | None = None,
    device: str = "cpu",
    target: str | None = None,
    digest: str | None = None,
) -> Operator:
    """Load an operator from a bundle. Needs no compiler.

    Args:
        path: The bundle's directory.
        name: Which of its operators; None where it has one.
        device: "cpu", or a CUDA device: "cuda" (the first), "cuda:1".
        target: An image by its target's name, or None for the best that this machine can run.
        digest: The expected digest of the bundle, or None to accept the one found.

    Returns:
        The operator.

    Raises:
        ArgumentError: There is no operator of that name, or several and none was named; the
            message lists the names. Or the device is none.
        BundleError: The bundle is missing, damaged, or not the expected one.
        DeviceError: There is no driver of CUDA or no such device, or it failed.
        TargetError: No image (or not the one asked for) can run here; the message lists every
            target and why not.
    """
    cuda = number_of(device)
    operator = operator_of(bundles.read(path, digest), name=name, target=target, cuda=cuda)
    if log.hears("DEBUG"):
        _say_target(operator, target)
    return operator


def _say_target(operator: Operator, asked: str | None) -> None:
    """Log which image of a bundle was taken, and why."""
    from relu_ops import targets

    on_cpu = operator.device == "cpu"
    why = f"the closest code for {operator.device}"
    if on_cpu or asked:
        why = targets.why(targets.parse(operator.target), asked or "native")
    said = (operator.name, operator.bundle.path, operator.target, why)
    log.say("DEBUG", "load: %s of %s: target %s: %s", *said)


def operator_of(
    bundle: Bundle, *, name: str | None = None, target: str | None = None, cuda: int = -1
) -> Operator:
    """The operator of a bundle that was read: see `load`.

    Args:
        bundle: The bundle.
        name: As for `load`.
        target: As for `load`.
        cuda: The number of a CUDA device; -1 for the CPU.

    Raises:
        ArgumentError: As for `load`; or RELU_OPS_NUM_THREADS is no number from 1 to 256.
    """
    threads.heed_tuning()
    if not isinstance(name, str | None):
        raise ArgumentTypeError(
            f"name must be a text or None (not {type(name).__name__})",
            f"the bundle has {', '.join(bundle.handle.operators)}",
        )
    if target is not None:
        target = _image_name(target)
    return Operator(bundle.handle, name, target, bundle, cuda)


def _image_name(target: str) -> str | None:
    """The name of a target, checked; None, the best, where it is "native"."""
    from relu_ops import targets

    return None if target == "native" else targets.parse(target).name
