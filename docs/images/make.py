"""Makes the pictures of docs/: `python docs/images/make.py [FOLDER]`, by default its own folder.

Every rectifier is computed by its compiled operator; sigmoid and tanh, which no compiled operator
computes, by NumPy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import relu_ops
from relu_ops.report.plot import Curve, Line, derivative_line, draw, plot


def rectifiers() -> list[Curve]:
    """ReLU, and Leaky ReLU at 0.01 and 0.001."""
    models = {
        "ReLU": relu_ops.graphs.relu(),
        "Leaky ReLU, alpha 0.01": relu_ops.graphs.leaky_relu(0.01),
        "Leaky ReLU, alpha 0.001": relu_ops.graphs.leaky_relu(0.001),
    }
    return [Curve(label, relu_ops.compile(model)) for label, model in models.items()]


def saturation() -> dict[str, list[Line]]:
    """Sigmoid and tanh over -10 to 10, and their derivatives beside those of the rectifiers."""
    x = np.linspace(-10.0, 10.0, 2001)
    sigmoid, tanh = 1 / (1 + np.exp(-x)), np.tanh(x)
    relu, leaky_relu, _ = (derivative_line(curve, -10.0, 10.0) for curve in rectifiers())
    slopes = {"sigmoid": sigmoid * (1 - sigmoid), "tanh": 1 - tanh**2}
    return {
        "f(x)": [Line("sigmoid", x, sigmoid), Line("tanh", x, tanh)],
        "f\N{PRIME}(x)": [*(Line(name, x, y) for name, y in slopes.items()), relu, leaky_relu],
    }


def make(folder: Path) -> list[Path]:
    """Write every picture; return the paths."""
    return [
        plot(rectifiers(), folder / "rectifiers.svg"),
        plot(rectifiers(), folder / "below_zero.svg", high=0.0),
        draw(saturation(), folder / "saturation.svg"),
    ]


if __name__ == "__main__":
    for path in make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent):
        print(path)
