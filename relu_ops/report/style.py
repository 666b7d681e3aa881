"""The look of every picture: colours that the colour-blind tell apart, and equal bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from relu_ops.errors import ArgumentError

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK = "#E69F00", "#56B4E9", "#000000"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
"""Okabe and Ito's colours (jfly.uni-koeln.de/color)."""

GREY, LIGHT_GREY, DARK_GREY = "#666666", "#B0B0B0", "#333333"

STYLE: dict[str, Any] = {
    "axes.edgecolor": LIGHT_GREY,
    "axes.labelcolor": DARK_GREY,
    "axes.linewidth": 0.6,
    "axes.titlesize": 11,
    "font.size": 10,
    "legend.edgecolor": "none",
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "svg.hashsalt": "relu_ops",  # else the ids in an SVG are random
    "xtick.color": GREY,
    "ytick.color": GREY,
}
"""For matplotlib, in a context: nothing here changes its global state."""

METADATA: dict[str, dict[str, str | None]] = {
    "png": {"Software": "relu_ops"},
    "svg": {"Creator": "relu_ops", "Date": None},  # else it has the time
}
"""What a file says of itself, by its kind. Equal pictures are equal bytes."""


def write(path: Path, content: bytes) -> Path:
    """Write a picture; its path.

    Raises:
        ArgumentError: It cannot be written.
    """
    try:
        path.write_bytes(content)
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be written: {error.strerror}") from error
    return path
