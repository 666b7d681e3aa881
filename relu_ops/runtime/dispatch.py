"""Loads operators: a bundle is read and checked, and the core chooses what of it runs here."""

from __future__ import annotations

import os

from relu_ops import log
from relu_ops.bundle import store as bundles
from relu_ops.bundle.store import Bundle
from relu_ops.errors import ArgumentError, ArgumentTypeError, DeviceError
from relu_ops.runtime import threads
from relu_ops.runtime.operator import Operator


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
        device: "cpu".
        target: An image by its target's name, or None for the best that this machine can run.
        digest: The expected digest of the bundle, or None to accept the one found.

    Returns:
        The operator.

    Raises:
        ArgumentError: There is no operator of that name, or several and none was named; the
            message lists the names. Or the device is no device.
        BundleError: The bundle is missing, damaged, or not the expected one.
        DeviceError: The device is a CUDA device, which this version does not use.
        TargetError: No image (or not the one asked for) can run here; the message lists every
            target and why not.
    """
    if device != "cpu":
        _refuse_device(device)
    operator = operator_of(bundles.read(path, digest), name=name, target=target)
    if log.hears("DEBUG"):
        _say_target(operator, target)
    return operator


def _say_target(operator: Operator, asked: str | None) -> None:
    """Log which image of a bundle was taken, and why."""
    from relu_ops import targets

    why = targets.why(targets.parse(operator.target), asked or "native")
    said = (operator.name, operator.bundle.path, operator.target, why)
    log.say("DEBUG", "load: %s of %s: target %s: %s", *said)


def _refuse_device(device: str) -> None:
    import re

    from relu_ops.targets import CUDA_IS_OFF

    if isinstance(device, str) and re.fullmatch(r"cuda(:[0-9]{1,2})?", device):
        raise DeviceError(f"device {device!r} cannot be used: {CUDA_IS_OFF}", "load it for the CPU")
    raise ArgumentError(
        f"device must be 'cpu' (not {device!r})", "leave it out: operators run on the CPU"
    )


def operator_of(bundle: Bundle, *, name: str | None = None, target: str | None = None) -> Operator:
    """The operator of a bundle that was read: see `load`.

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
    return Operator(bundle.handle, name, target, bundle)


def _image_name(target: str) -> str | None:
    """The name of a target, checked; None, the best, where it is "native"."""
    from relu_ops import targets

    return None if target == "native" else targets.parse(target).name
