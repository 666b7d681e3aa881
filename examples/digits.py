"""What the two programs that train share: the data, the command line, the picture of losses."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from relu_ops.errors import require

STEPS, BATCH, WIDTH, RATE, SEED = 400, 128, 48, 0.9, 0
"""The rate is large on purpose: large steps are what kills units."""

Activations = Mapping[str, Mapping[str, Callable[[Any], Any]]]
"""Functions by the name of who computes them, then by their own."""

Train = Callable[[Callable[[Any], Any]], tuple[list[float], int, int, float]]
"""Of an activation: losses, dead units before and after, and how many images are told right."""


def load() -> tuple[np.ndarray, np.ndarray]:
    """The 1,797 handwritten digits that scikit-learn ships: images as rows of 64, and labels."""
    require("sklearn", "examples", "the handwritten digits")
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.data / 16 - 0.3).astype(np.float32), found.target.astype(np.int64)


def batches(count: int) -> np.ndarray:
    """Which images each step sees: the same for every program."""
    return np.random.default_rng(SEED).integers(0, count, (STEPS, BATCH))


def layers() -> list[np.ndarray]:
    """The weights that every program begins with: three hidden layers, and ten digits."""
    rng = np.random.default_rng(SEED)
    sizes = [64, WIDTH, WIDTH, WIDTH, 10]
    pairs = itertools.pairwise(sizes)
    return [(rng.standard_normal((a, b)) * np.sqrt(2 / a)).astype(np.float32) for a, b in pairs]


def dead(derivatives: list[np.ndarray]) -> int:
    """How many units are dead: their activation's derivative is 0 for every image."""
    return sum(int((d == 0).all(axis=0).sum()) for d in derivatives)


def draw(curves: dict[str, list[float]], path: str | Path) -> None:
    """Draw losses over steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, losses in curves.items():
        axes.plot(losses, label=name, linewidth=1.2)
    axes.set(xlabel="step", ylabel="loss (cross-entropy)", yscale="log")
    axes.legend(frameon=False)
    figure.savefig(path)
    pyplot.close(figure)


def main(description: str, activations: Activations, train: Train) -> None:
    """The command line of either program: train with each activation, and say what came of it."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--activations", choices=activations, default="relu_ops")
    parser.add_argument("--plot", help="where to draw the losses")
    arguments = parser.parse_args()
    curves = {}
    for name, act in activations[arguments.activations].items():
        curves[name], before, after, right = train(act)
        print(
            f"{name:10}  loss {curves[name][-1]:.6f}  right {right:.1%}  "
            f"dead units {before} before, {after} after"
        )
    if arguments.plot:
        draw(curves, arguments.plot)
