"""Draws one-input operators: function and derivative, several in one picture, to PNG or SVG.

Every point is computed by the compiled operator, in its own dtype. A derivative is computed by a
compiled operator too where there is one; for any other operator it is the slope between
neighbouring samples, and the legend says so. Nothing here changes matplotlib's global state, and
equal arguments give equal bytes.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from relu_ops.contract.semantics import DTYPES
from relu_ops.errors import ArgumentError, ArgumentTypeError, ReluOpsError, require
from relu_ops.report import style
from relu_ops.runtime.operator import Operator

if TYPE_CHECKING:
    import onnx
    from matplotlib.axes import Axes

FORMATS = ("png", "svg")
"""What a picture can be written as; the suffix of its path decides."""

MAXIMUM_POINTS = 1_000_000

_DASHES = ("-", (0, (5, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)))
"""Rectifiers lie upon each other above zero: dashes let the lower line be seen."""

_JUMP = 0.05
"""A step of more than this part of a curve's whole height may be a jump."""

_SLOPE_STEPS = 16
"""Slope samples are at least so many steps of the dtype apart, at the end of the range. Both
ends of a slope are rounded: its error is then about 1/16 of it, even in float16."""

_NOISE = 3
"""Two slopes of one line differ by up to 2 roundings of it, and a little more in a chain."""


@dataclass(frozen=True)
class Curve:
    """One operator to draw.

    Attributes:
        label: Its name in the legend.
        operator: A compiled operator with one floating-point input and output.
        derivative: A compiled operator that computes the derivative, or None: then that of
            `companion`, or else the slope between samples.
    """

    label: str
    operator: Operator
    derivative: Operator | None = None


@dataclass(frozen=True)
class Line:
    """One line of a panel, as float64. NaN in y is a gap.

    Attributes:
        label: Its name in the legend.
        x: Where.
        y: What.
        closed: The points at jumps that belong to the line, as (x, y).
        open: Those at the other side of a jump.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    closed: tuple[tuple[float, float], ...] = ()
    open: tuple[tuple[float, float], ...] = ()


def plot(
    operators: Sequence[Curve | tuple[str, Operator]],
    path: str | os.PathLike[str],
    low: float = -10.0,
    high: float = 10.0,
    points: int = 2001,
    derivative: bool = True,
    title: str | None = None,
) -> Path:
    """Draw functions and their derivatives over a range.

    Args:
        operators: Curves, or (label, operator) pairs.
        path: Where to; the suffix .png or .svg decides the format. A file there is replaced.
        low: The left end of the range.
        high: Its right end.
        points: How many samples a curve has, at least 3; equal ones after rounding to the dtype
            count once. Zero is always a sample.
        derivative: Draw the derivatives, in a second panel.
        title: What to write above, or None.

    Returns:
        The path.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ArgumentTypeError: An argument has the wrong type, or an operator the wrong dtype.
        ArgumentError: The range, the number of points or the suffix is wrong, an operator has
            not one input and one output, or the file cannot be written.
    """
    require("matplotlib", "plot", "relu_ops.report.plot")
    _format_of(path)
    _check_range(low, high, points)
    curves = [_curve(entry) for entry in operators]
    if not curves:
        raise ArgumentError("plot: operators must hold at least one operator")
    panels = {"f(x)": [function_line(c.label, c.operator, low, high, points) for c in curves]}
    if derivative:
        panels["f\N{PRIME}(x)"] = [derivative_line(c, low, high, points) for c in curves]
    return draw(panels, path, title)


def companion(operator: Operator) -> Operator | None:
    """Compile the derivative of a rectifier.

    Args:
        operator: Any operator.

    Returns:
        For a single Relu or LeakyRelu the operator of `graphs.relu_derivative` or
        `graphs.leaky_relu_derivative`, for the same dtype and target. None for any other, and
        where it cannot be compiled here.
    """
    try:
        require("onnx", "compile", "relu_ops.report.plot.companion")
        from relu_ops import jit
        from relu_ops.compiler import frontend

        model = frontend.read_model(operator.bundle.model(operator.name))
        made = _derivative_model(model, operator.inputs[0].dtype)
        return None if made is None else jit.compile(made, target=operator.target)
    except ReluOpsError:
        return None


def _derivative_model(model: onnx.ModelProto, dtype: str) -> onnx.ModelProto | None:
    from relu_ops import graphs

    if len(model.graph.node) != 1:
        return None
    node = model.graph.node[0]
    if node.domain not in ("", "ai.onnx") or node.input[0] != model.graph.input[0].name:
        return None
    if node.op_type == "Relu":
        return graphs.relu_derivative(dtype=dtype)
    if node.op_type == "LeakyRelu":
        alpha = next((a.f for a in node.attribute if a.name == "alpha"), 0.01)  # as ONNX has it
        return graphs.leaky_relu_derivative(alpha, dtype)
    return None


# ---------------------------------------------------------------------------------------------
# Lines


def function_line(
    label: str, operator: Operator, low: float, high: float, points: int = 2001
) -> Line:
    """Sample an operator; where it jumps, find between which two numbers of its dtype.

    Args:
        label: The name of the line.
        operator: A compiled operator with one floating-point input and output.
        low: The left end of the range.
        high: Its right end.
        points: How many samples.

    Raises:
        ArgumentTypeError: A dtype is not a float.
        ArgumentError: There is not one input and output, or the range does not fit the dtype.
    """
    _check_operator(label, operator)
    x = _samples(label, operator, low, high, points)
    left, right = _jumps(label, operator, x)
    x = _sorted(np.concatenate([x, left, right]))
    y = _evaluate(label, operator, x)
    at = np.searchsorted(x.astype(np.float64), right.astype(np.float64))
    ends = _ends(x, y, at)
    closed, other = tuple(end[0] for end in ends), tuple(end[1] for end in ends)
    wide = x.astype(np.float64)
    return Line(label, np.insert(wide, at, wide[at]), np.insert(y, at, np.nan), closed, other)


def derivative_line(curve: Curve, low: float, high: float, points: int = 2001) -> Line:
    """Sample the derivative of a curve: by its own operator, its companion, or as a slope.

    Args:
        curve: What to draw.
        low: The left end of the range.
        high: Its right end.
        points: How many samples.

    Raises:
        ArgumentTypeError: A dtype is not a float.
        ArgumentError: There is not one input and output, or the range does not fit the dtype.
    """
    operator = curve.derivative or companion(curve.operator)
    if operator is not None:
        return function_line(curve.label, operator, low, high, points)
    return _slope_line(curve, low, high, points)


def _slope_line(curve: Curve, low: float, high: float, points: int) -> Line:
    """The slope between neighbouring samples, drawn at their middles, with gaps at its jumps."""
    _check_operator(curve.label, curve.operator)
    steps = [ml_dtypes.finfo(DTYPES[t.dtype].numpy).eps for t in _ends_of(curve.operator)]
    step = float(max(steps))
    width = _SLOPE_STEPS * step * max(abs(low), abs(high))
    x = _samples(curve.label, curve.operator, low, high, min(points, _count(high - low, width)))
    y = _evaluate(curve.label, curve.operator, x)
    wide = x.astype(np.float64)
    slope = np.diff(y) / np.diff(wide)
    noise = _NOISE * step * np.nanmax(np.abs(y), initial=0.0) / np.diff(wide).min()
    slope, gaps = _without_chords(slope, noise)
    middles = (wide[1:] + wide[:-1]) / 2
    return Line(
        f"{curve.label} (slope between samples)",
        np.insert(middles, gaps, middles[gaps]),
        np.insert(slope, gaps, np.nan),
    )


def _count(length: float, width: float) -> int:
    return max(3, min(MAXIMUM_POINTS, int(length / width) + 1))


def _without_chords(slope: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Blank the chords across kinks and jumps; return also where the line has gaps.

    A chord across a kink has a slope that the function has nowhere. It differs from those on
    both sides of it, from one of them perhaps by less than a jump. The spread leaves out the
    steepest, which may be chords across jumps.
    """
    finite = slope[np.isfinite(slope)]
    spread = np.subtract(*np.percentile(finite, [99, 1])) if finite.size else 0.0
    threshold = max(_JUMP * spread, noise)
    steps = np.abs(np.diff(slope))
    jumps, kinks = steps > threshold, steps > threshold / 4
    kept = slope.copy()
    kept[1:-1][(jumps[:-1] & kinks[1:]) | (kinks[:-1] & jumps[1:])] = np.nan
    return kept, np.flatnonzero(jumps) + 1


def _samples(label: str, operator: Operator, low: float, high: float, points: int) -> np.ndarray:
    """Evenly spaced numbers of the operator's dtype, zero among them."""
    dtype = DTYPES[operator.inputs[0].dtype].numpy
    grid = np.linspace(low, high, points)
    grid[np.abs(grid) < 1e-9 * (high - low)] = 0.0
    if low < 0 < high:
        grid = np.append(grid, 0.0)
    with np.errstate(over="ignore", under="ignore"):
        x = _sorted(grid.astype(dtype))
    if len(x) < 3 or not np.isfinite(x.astype(np.float64)).all():
        raise ArgumentError(
            f"plot: {label}: the range {low} to {high} must hold at least 3 numbers of "
            f"{operator.inputs[0].dtype}, all finite"
        )
    return x


def _sorted(x: np.ndarray) -> np.ndarray:
    """Distinct numbers in order; 0 is never -0."""
    return (np.unique(x.astype(np.float64)) + 0.0).astype(x.dtype)


def _evaluate(label: str, operator: Operator, x: np.ndarray) -> np.ndarray:
    """What the operator gives, as float64, with what cannot be drawn as NaN."""
    y = operator(x.reshape(_shape(label, operator, len(x))))
    if y.size != x.size:
        raise ArgumentError(
            f"plot: {label}: the operator must give one number for each (not {y.size} for {x.size})"
        )
    y = y.reshape(-1).astype(np.float64)
    return np.where(np.isfinite(y), y, np.nan)


def _shape(label: str, operator: Operator, count: int) -> tuple[int, ...]:
    """A shape for so many samples: all along the last free dimension."""
    declared = operator.inputs[0].shape
    if declared is None:
        return (count,)
    free = [axis for axis, dim in enumerate(declared) if not isinstance(dim, int)]
    if not free or any(isinstance(dim, int) and dim != 1 for dim in declared):
        raise ArgumentError(
            f"plot: {label}: {operator.inputs[0].name} must have a free dimension and no fixed one "
            f"but 1, to be drawn as one curve (its shape is {list(declared)})"
        )
    return tuple(count if axis == free[-1] else 1 for axis in range(len(declared)))


def _jumps(label: str, operator: Operator, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Neighbouring numbers of the dtype between which the operator jumps: left, right ones.

    Where two samples differ much, the half with the larger step is taken until nothing lies
    between its ends. A jump is still there then; a steep stretch is not.
    """
    y = _evaluate(label, operator, x)
    height = np.nanmax(y, initial=-np.inf) - np.nanmin(y, initial=np.inf)
    at = np.flatnonzero(np.abs(np.diff(y)) > _JUMP * height)
    left, right, y_left, y_right = x[at], x[at + 1], y[at], y[at + 1]
    step = np.abs(y_right - y_left)
    while at.size:
        with np.errstate(over="ignore"):
            middle = ((left.astype(np.float64) + right.astype(np.float64)) / 2).astype(x.dtype)
        inside = (left < middle) & (middle < right)
        if not inside.any():
            break
        y_middle = _evaluate(label, operator, middle)
        lower = np.abs(y_middle - y_left) >= np.abs(y_right - y_middle)
        right, y_right = _chosen(inside & lower, (middle, y_middle), (right, y_right))
        left, y_left = _chosen(inside & ~lower, (middle, y_middle), (left, y_left))
    real = np.abs(y_right - y_left) > 0.5 * step
    return left[real], right[real]


def _chosen(condition: np.ndarray, a: Sequence[Any], b: Sequence[Any]) -> list[np.ndarray]:
    return [np.where(condition, one, other) for one, other in zip(a, b, strict=True)]


def _ends(
    x: np.ndarray, y: np.ndarray, at: np.ndarray
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The two ends of a line at each jump, first the one that stands at the jump itself.

    A jump lies between two neighbouring numbers of the dtype, of which one is its place (0, say)
    and the other one the next number there is: the place is the shorter one, written out.
    """
    pairs = []
    for k in at:
        place, beside = sorted((k - 1, k), key=lambda i: len(str(abs(x[i]))))
        position = float(x[place])
        pairs.append(((position, float(y[place])), (position, float(y[beside]))))
    return pairs


# ---------------------------------------------------------------------------------------------
# Drawing


def draw(
    panels: Mapping[str, Sequence[Line]],
    path: str | os.PathLike[str],
    title: str | None = None,
) -> Path:
    """Draw lines into panels side by side.

    Args:
        panels: The lines of each panel, by what stands above it.
        path: Where to; the suffix .png or .svg decides the format.
        title: What to write above all, or None.

    Returns:
        The path.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ArgumentError: The suffix is another, or the file cannot be written.
    """
    require("matplotlib", "plot", "relu_ops.report.plot")
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kind, content = _format_of(path), io.BytesIO()
    with matplotlib.style.context(["default", style.STYLE]):
        figure = Figure(figsize=(5.2 * len(panels), 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        all_axes = figure.subplots(1, len(panels), sharex=True, squeeze=False)[0]
        for axes, (heading, lines) in zip(all_axes, panels.items(), strict=True):
            _draw_panel(axes, heading, lines)
        if title is not None:
            figure.suptitle(title, parse_math=False)
        figure.savefig(content, format=kind, dpi=150, metadata=style.METADATA[kind])
    return style.write(Path(path), content.getvalue())


def _draw_panel(axes: Axes, heading: str, lines: Sequence[Line]) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.axhline(0, color=style.GREY, linewidth=0.6, zorder=1)
    axes.set_title(heading)
    axes.margins(x=0.0, y=0.08)
    for index, line in enumerate(lines):
        _draw_line(axes, line, index)
    if axes.get_xlim()[0] < 0 < axes.get_xlim()[1]:
        axes.axvline(0, color=style.GREY, linewidth=0.6, zorder=1)
    axes.locator_params(steps=[1, 2, 5, 10])
    legend = axes.legend(handlelength=3, loc="best")
    for text in legend.get_texts():
        text.set_parse_math(False)


def _draw_line(axes: Axes, line: Line, index: int) -> None:
    color = style.PALETTE[index % len(style.PALETTE)]
    dashes = _DASHES[index % len(_DASHES)]
    # matplotlib leaves a label with a leading underscore out of the legend.
    label = f" {line.label}" if line.label.startswith("_") else line.label
    drawn = axes.plot(line.x, line.y, color=color, linestyle=dashes, label=label, zorder=2)
    drawn[0].set_gid(f"{axes.get_title()} {line.label}")
    for ends, fill in ((line.open, "white"), (line.closed, color)):
        for x, y in ends:
            axes.plot([x], [y], "o", color=color, markerfacecolor=fill, markersize=4.5, zorder=3)


# ---------------------------------------------------------------------------------------------
# Checking


def _format_of(path: str | os.PathLike[str]) -> str:
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"plot: path must be a path (not {type(path).__name__})")
    suffix = Path(path).suffix
    if suffix[1:].lower() not in FORMATS:
        raise ArgumentError(
            f"plot: the suffix of {path} must be .png or .svg (not {suffix!r})",
            f"for example {Path(path).with_suffix('.png')}",
        )
    return suffix[1:].lower()


_USUAL_RANGE = "for example -10 and 10, which are the default"


def _check_range(low: float, high: float, points: int) -> None:
    for name, value in (("low", low), ("high", high)):
        if not isinstance(value, Real) or isinstance(value, bool):
            raise ArgumentTypeError(f"plot: {name} must be a number (not {value!r})")
        if not math.isfinite(value):
            raise ArgumentError(f"plot: {name} must be finite (not {value!r})", _USUAL_RANGE)
    if not low < high or not math.isfinite(high - low):
        raise ArgumentError(f"plot: low must be below high (not {low} and {high})", _USUAL_RANGE)
    if not isinstance(points, Integral) or isinstance(points, bool):
        raise ArgumentTypeError(f"plot: points must be an integer (not {points!r})")
    if not 3 <= points <= MAXIMUM_POINTS:
        raise ArgumentError(
            f"plot: points must be from 3 to {MAXIMUM_POINTS} (not {points})",
            "2001 are the default: a picture has no more pixels",
        )


def _curve(entry: Curve | tuple[str, Operator]) -> Curve:
    if not isinstance(entry, Curve):
        if not isinstance(entry, tuple | list) or len(entry) != 2:
            raise ArgumentTypeError(
                f"plot: operators must be Curves or (label, operator) pairs (not {entry!r})"
            )
        entry = Curve(*entry)
    if not isinstance(entry.label, str):
        raise ArgumentTypeError(f"plot: a label must be a string (not {entry.label!r})")
    for operator in (entry.operator, entry.derivative or entry.operator):
        if not isinstance(operator, Operator):
            raise ArgumentTypeError(
                f"plot: {entry.label}: must be a relu_ops.Operator (not {type(operator).__name__})",
                "compile a model with relu_ops.compile, or load a bundle with relu_ops.load",
            )
    return entry


def _ends_of(operator: Operator) -> tuple[Any, ...]:
    return operator.inputs + operator.outputs


def _check_operator(label: str, operator: Operator) -> None:
    for what, tensors in (("input", operator.inputs), ("output", operator.outputs)):
        if len(tensors) != 1:
            names = ", ".join(tensor.name for tensor in tensors) or "none"
            raise ArgumentError(
                f"plot: {label}: {operator.name} must have one {what} "
                f"(not {len(tensors)}: {names})",
                "draw an operator of one number, such as relu_ops.graphs.leaky_relu()",
            )
    for tensor in _ends_of(operator):
        if not DTYPES[tensor.dtype].is_float:
            floats = ", ".join(name for name, row in DTYPES.items() if row.is_float)
            raise ArgumentTypeError(
                f"plot: {label}: {tensor.name} must be one of {floats} (not {tensor.dtype})",
                "draw an operator of floats",
            )
