"""The programs of examples/ train, and our activations give the losses of others'."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def program(name: str, *needed: str) -> Any:
    """An example as a module; skipped where it has not what it needs."""
    for package in (*needed, "sklearn"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'relu_ops[{needed[0]},examples]'")
    sys.path.insert(0, str(EXAMPLES))
    try:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.mark.parametrize("activation", ["ReLU", "Leaky ReLU"])
def test_torch_trains_to_the_same_bits(activation: str) -> None:
    made = program("train_torch", "torch")
    ours, theirs = (made.train(made.ACTIVATIONS[who][activation]) for who in ("relu_ops", "torch"))
    assert ours == theirs
    check(ours, activation)


@pytest.mark.parametrize("activation", ["ReLU", "Leaky ReLU"])
def test_jax_trains(activation: str) -> None:
    made = program("train_jax", "jax")
    ours, theirs = (made.train(made.ACTIVATIONS[who][activation]) for who in ("relu_ops", "jax"))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-3)
    check(ours, activation)


def check(trained: tuple[list[float], int, int, float], activation: str) -> None:
    """It learned; large steps killed units of ReLU, and none of Leaky ReLU."""
    losses, before, after, right = trained
    assert losses[0] > 2 and losses[-1] < 0.02 and right > 0.99
    assert before == 0 and (after > 0) == (activation == "ReLU")


def test_losses_are_drawn(tmp_path: Path) -> None:
    digits = program("digits", "matplotlib")
    digits.draw({"ReLU": [2.0, 1.0, 0.5], "Leaky ReLU": [2.0, 0.9, 0.4]}, tmp_path / "losses.svg")
    assert b"<svg" in (tmp_path / "losses.svg").read_bytes()
