"""Draws the life of a graph, for docs/how.md: what there is, and what makes the next of it.

A table and some SVG, as narrow as a phone, where letters would else be too small to read.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import NamedTuple

WIDTH, MARGIN, GAP, HEADING, LINE, BOX, ARROW = 400, 14, 8, 30, 17, 46, 14
BOLD = 'font-weight="bold"'
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
        (("frontend", "checks; decides shapes and dtypes"),),
    ),
    Thing(
        "build",
        "primitive operators",
        "each a row of the semantics' table",
        (
            ("rules", "rows as exact expressions"),
            ("schedule", "one pass; a kernel for each layout"),
            ("LLVM", "an object file, by way of TVM"),
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
        (("load", "checks digests; chooses an image"),),
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
    bands, parts, y, start = [], [], MARGIN + HEADING, MARGIN
    for thing, following in zip(LIFE, [*LIFE[1:], None], strict=True):
        parts.append(_box(thing, y))
        y += BOX
        above = 0
        if following is None or following.place != thing.place:
            bands.append(_band(thing.place, start, y + GAP))
            start, above = y + 2 * GAP, GAP + HEADING
        if following is not None:
            end = y + above + len(thing.becomes) * LINE + ARROW
            parts += [_arrow(y, end), *_steps(thing.becomes, y + above)]
            y = end
    height = y + GAP + MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="13">'
    )
    title = "<title>The life of a graph</title>"
    return "\n".join([head, title, *bands, *parts, "</svg>"]) + "\n"


def _band(place: str, start: int, end: int) -> str:
    """The ground on which a place's things stand, and its name."""
    text, color = PLACES[place]
    size = f'width="{WIDTH - 4}" height="{end - start}"'
    ground = f'<rect x="2" y="{start}" {size} rx="8" fill="{color}"/>'
    look = 'text-anchor="end" font-style="italic"'
    return f"{ground}\n{_text(WIDTH - MARGIN, start + 20, text, '#666', look)}"


def _box(thing: Thing, y: int) -> str:
    return "\n".join(
        [
            f'<rect x="{MARGIN}" y="{y}" width="{WIDTH - 2 * MARGIN}" height="{BOX}" rx="6" '
            'fill="#fff" stroke="#557"/>',
            _text(MARGIN + 10, y + 19, thing.name, "#124", BOLD),
            _text(MARGIN + 10, y + 37, thing.text, "#333"),
        ]
    )


def _arrow(start: int, end: int) -> str:
    x = MARGIN + 18
    return (
        f'<path d="M{x} {start}V{end - 2}M{x - 5} {end - 8}l5 7 5 -7" fill="none" stroke="#557" '
        'stroke-width="1.5"/>'
    )


def _steps(steps: tuple[tuple[str, str], ...], y: int) -> Iterator[str]:
    """Beside an arrow, who does what."""
    for number, (who, what) in enumerate(steps):
        row = y + ARROW // 2 + number * LINE + 12
        yield _text(MARGIN + 32, row, who, "#a04000", BOLD)
        yield _text(MARGIN + 104, row, what, "#333")


def _text(x: int, y: int, text: str, color: str, look: str = "") -> str:
    return f'<text x="{x}" y="{y}" fill="{color}" {look}>{escape(text)}</text>'


if __name__ == "__main__":
    print(svg(), end="")
