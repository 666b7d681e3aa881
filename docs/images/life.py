"""Draws the life of a graph, for docs/how.md: what there is, and what makes the next of it.

A table and some SVG, so that a phone can show it: the letters stay large where the width is small.
"""

from __future__ import annotations

from html import escape
from typing import NamedTuple

WIDTH, MARGIN, LINE, BOX, ARROW = 400, 14, 17, 46, 14
PLACES = {
    "build": ("where you build: relu_ops[compile]", "#fdf3e7"),
    "run": ("where it runs: the base install, or C", "#e8f1fb"),
}


class Thing(NamedTuple):
    """What there is at one moment: where, its name, what it is, and how it becomes the next."""

    place: str
    name: str
    text: str
    becomes: tuple[tuple[str, str], ...]


LIFE = (
    Thing(
        "build",
        "model.onnx",
        "an author's graph",
        (("frontend", "reads, checks; decides shapes and dtypes"),),
    ),
    Thing(
        "build",
        "primitive operators",
        "each a row of the semantics' table",
        (
            ("rules", "rows as exact expressions"),
            ("schedule", "one pass; a kernel for each layout"),
            ("TVM, LLVM", "an object file"),
        ),
    ),
    Thing(
        "build",
        "object code",
        "no undefined symbol, no writable data",
        (("image", "tables and code, position-independent"),),
    ),
    Thing(
        "build",
        "leaky.bundle",
        "manifest, models, an image a target, SHA256SUMS",
        (("load", "checks digests and offsets; chooses an image"),),
    ),
    Thing(
        "run",
        "librelu_ops.so",
        "maps the image read-only and executable",
        (("plan", "merges dimensions, splits rows"), ("pool", "runs chunks on its threads")),
    ),
    Thing("run", "op(x, out=y)", "the same bits on every target", ()),
)


def svg() -> str:
    """The picture."""
    parts, y, place, start = [], MARGIN, "", 0
    bands = []
    for thing in LIFE:
        if thing.place != place:
            if place:
                bands.append(_band(place, start, y))
                y += MARGIN
            place, start, y = thing.place, y, y + 30
        parts.append(_box(thing, y))
        y += BOX
        parts.append(_becomes(thing.becomes, y))
        y += (len(thing.becomes) * LINE + ARROW) if thing.becomes else ARROW
    bands.append(_band(place, start, y))
    height = y + MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13">'
    )
    title = "<title>The life of a graph</title>"
    return "\n".join([head, title, *bands, *parts, "</svg>"]) + "\n"


def _band(place: str, start: int, end: int) -> str:
    text, color = PLACES[place]
    return (
        f'<rect x="2" y="{start}" width="{WIDTH - 4}" height="{end - start}" rx="8" '
        f'fill="{color}"/>\n' + _text(MARGIN, start + 20, text, "#666", style="italic")
    )


def _box(thing: Thing, y: int) -> str:
    return "\n".join(
        [
            f'<rect x="{MARGIN}" y="{y}" width="{WIDTH - 2 * MARGIN}" height="{BOX}" rx="6" '
            'fill="#fff" stroke="#557"/>',
            _text(MARGIN + 10, y + 19, thing.name, "#124", weight="bold"),
            _text(MARGIN + 10, y + 37, thing.text, "#333"),
        ]
    )


def _becomes(steps: tuple[tuple[str, str], ...], y: int) -> str:
    """An arrow down, and beside it who does what."""
    if not steps:
        return ""
    end = y + len(steps) * LINE + ARROW
    x = MARGIN + 18
    lines = [
        f'<path d="M{x} {y}V{end - 2}M{x - 5} {end - 8}l5 7 5 -7" fill="none" stroke="#557" '
        'stroke-width="1.5"/>'
    ]
    for number, (who, what) in enumerate(steps):
        row = y + ARROW / 2 + number * LINE + 12
        lines.append(_text(x + 14, row, who, "#a04000", weight="bold"))
        lines.append(_text(x + 90, row, what, "#333"))
    return "\n".join(lines)


def _text(x: float, y: float, text: str, color: str, weight: str = "", style: str = "") -> str:
    look = (f' font-weight="{weight}"' if weight else "") + (
        f' font-style="{style}"' if style else ""
    )
    return f'<text x="{x:g}" y="{y:g}" fill="{color}"{look}>{escape(text)}</text>'


if __name__ == "__main__":
    print(svg(), end="")
