"""Draws records: bandwidth over size, the lead over the best peer, and figures of processes.

Nothing here changes matplotlib's global state, and equal records give equal bytes.
"""

from __future__ import annotations

import io
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from relu_ops.bench import peers, record, tables
from relu_ops.bench.cases import CASES
from relu_ops.bench.machines import Column
from relu_ops.bench.record import Record, Timing
from relu_ops.errors import ArgumentError, counted, require
from relu_ops.report import style

_STYLE = {
    **style.STYLE,  # lines lie closer here, and there are more of them
    "axes.titlesize": 10.5,
    "font.size": 9.5,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.3,
}
KINDS = ("png", "svg")
"""As what every picture is written."""

_DOTS_PER_INCH = 120

# Tol's colours where the palette's run out. relu_ops is the one thick line; its other ways of
# calling are thin.
_COLORS = {
    "relu_ops": style.BLUE,
    "relu_ops_out": style.BLUE,
    "relu_ops_new": style.BLUE,
    "numpy": style.ORANGE,
    "onnxruntime": style.VERMILION,
    "onnxruntime_run": style.VERMILION,
    "tvm": "#999933",
    "torch": style.PURPLE,
    "torch_compile": style.PURPLE,
    "numba": style.GREEN,
    "openvino": "#882255",
    "jax": "#6699CC",
    "litert": "#AA9988",
    "relu_ops_cuda": style.BLUE,
    "torch_cuda": style.PURPLE,
    "torch_cuda_compile": style.PURPLE,
    "cupy": style.GREEN,
}
_DASHED: dict[str, Any] = {
    "relu_ops_out": (0, (5, 2)),
    "relu_ops_new": (0, (1.5, 1.5)),
    "onnxruntime_run": (0, (1.5, 1.5)),
    "torch_compile": (0, (5, 2)),
    "torch_cuda_compile": (0, (5, 2)),
}
_COLUMNS = 3


def draw(found: Record, folder: str | Path) -> list[Path]:
    """Draw everything that a record has, as PNG and SVG.

    Args:
        found: The record.
        folder: Where to; made if it is not there. Files of the same names are replaced.

    Returns:
        The paths.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ArgumentError: A file cannot be written.
    """
    target = make_folder(folder)
    paths = []
    for name, paint in _pictures(found):
        for kind in KINDS:
            paths.append(style.write(target / f"{name}.{kind}", _rendered(paint, kind)))
    return paths


def make_folder(folder: str | os.PathLike[str]) -> Path:
    """Make the folder that pictures are to be drawn into, unless it is there.

    Raises:
        MissingDependencyError: matplotlib, which will draw them, is not installed.
        ArgumentError: It cannot be made or written to.
    """
    require("matplotlib", "bench", "drawing a benchmark")
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"{path}: cannot be made: {error.strerror}") from error
    if not os.access(path, os.W_OK):
        raise ArgumentError(f"{path}: cannot be written to")
    return path


Paint = Callable[[Any], None]
"""Draws onto an empty figure of matplotlib."""

Key = tuple[str, str, str, str]
"""Case, dtype, target and mode."""


def _pictures(found: Record) -> Iterator[tuple[str, Paint]]:
    """The pictures of a record: those of its first target, then the others beside it."""
    targets = list(dict.fromkeys(place[2] for place in found.places()))
    for mode in dict.fromkeys(place[3] for place in found.places()):
        keys = _keys(found, targets[0], mode)
        usual = [key for key in keys if _is_usual(key)]
        others = [key for key in keys if not _is_usual(key)]
        yield from _of(found, f"{targets[0]}_{mode}", usual)
        yield from _of(found, f"{targets[0]}_{mode}_dtypes", others)
    if len(targets) > 1:
        yield "levels", partial(_levels, found=found, targets=targets)
    if found.processes:
        yield "processes", partial(_processes, found=found)


def _of(found: Record, suffix: str, keys: Sequence[Key]) -> Iterator[tuple[str, Paint]]:
    many = [key for key in keys if len(_sizes(found, key)) > 1]
    if many:
        yield f"bandwidth_{suffix}", partial(_bandwidths, found=found, keys=many)
    shares = [key for key in keys if len(_shared_sizes(found, key)) > 1]
    if shares:
        yield f"share_{suffix}", partial(_bandwidths, found=found, keys=shares, share=True)
    if any(tables.lead(found.at((*key, size))) for key in keys for size in _sizes(found, key)):
        yield f"lead_{suffix}", partial(_leads, found=found, keys=keys)


def _keys(found: Record, target: str, mode: str) -> list[Key]:
    keys = dict.fromkeys(place[:4] for place in found.places())
    return [key for key in keys if key[2:] == (target, mode)]


def _is_usual(key: Key) -> bool:
    """True for a case in its first dtype."""
    return key[0] not in CASES or CASES[key[0]].dtypes[0] == key[1]


def _rendered(paint: Paint, kind: str) -> bytes:
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    content = io.BytesIO()
    with matplotlib.style.context(["default", _STYLE]):
        figure = Figure(layout="constrained")
        canvas = FigureCanvasAgg(figure)
        paint(figure)
        if kind == "svg":
            figure.savefig(content, format=kind, metadata=style.METADATA["svg"])
        else:
            figure.set_dpi(_DOTS_PER_INCH)
            canvas.draw()
            _save_small(canvas.buffer_rgba(), content)
    return content.getvalue()


def _save_small(pixels: Any, file: io.BytesIO) -> None:
    """A PNG of 256 colours, which is all that lines need: a third of the size."""
    from PIL import Image  # comes with matplotlib

    picture = Image.fromarray(np.asarray(pixels)).convert("RGB")
    picture.quantize(256, dither=Image.Dither.NONE).save(file, format="PNG", optimize=True)


def _sizes(found: Record, key: Key) -> list[int]:
    return sorted({p[4] for p in found.places() if p[:4] == key})


def _formula(case: str, dtype: str) -> str:
    formula = CASES[case].formula if case in CASES else case
    return formula if dtype in ("float32", "") or "quantized" in case else f"{formula}, {dtype}"


def _subtitle(found: Record) -> str:
    threads = counted(found.settings["threads"], "thread")
    return f"{found.machine['cpu']}, {threads}, {found.created[:10]}"


# ---------------------------------------------------------------------------------------------
# Bandwidth over size


def _bandwidths(figure: Any, found: Record, keys: Sequence[Key], share: bool = False) -> None:
    """A panel for each case: GB/s over size, or the share of the limit where that means much."""
    paint = _share if share else _bandwidth
    handles: dict[str, Any] = {}
    for axes, key in zip(_panels(figure, len(keys), share), keys, strict=True):
        handles |= paint(axes, found, key)
    ordered = {name: handles[name] for name in [*_names(handles), "limit"] if name in handles}
    columns = {1: 2, 2: 3}.get(len(keys), 5)
    _legend(figure, {_title(name): handle for name, handle in ordered.items()}, columns)
    what = "Share of the machine's limit" if share else "Bandwidth"
    figure.suptitle(f"{what}, {keys[0][2]}, {_MODES[keys[0][3]]}\n{_subtitle(found)}")


def _panels(figure: Any, count: int, share: bool = False) -> list[Any]:
    """So many panels in rows of three, with their common axes named."""
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    figure.set_size_inches(4.3 * columns, 3.1 * rows + 1.5)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("share of the limit" if share else "GB/s")
    for axes in grid.flat[max(count - columns, 0) : count]:
        axes.set_xlabel("elements")
        axes.tick_params(labelbottom=True)
    return list(grid.flat[:count])


def _legend(figure: Any, handles: dict[str, Any], columns: int) -> None:
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=columns,
        handlelength=2.6,
    )


_MODES = {
    "warm": "warm caches",
    "cold": "cold caches: one call after they were cleared",
    "consume": "the call and then a sum over its output",
}


def _names(present: Any) -> list[str]:
    return [name for name in peers.PEERS if name in present]


def _title(name: str) -> str:
    return peers.PEERS[name].title if name in peers.PEERS else "limit of the machine"


def _bandwidth(axes: Any, found: Record, key: Key) -> dict[str, Any]:
    sizes = _sizes(found, key)
    columns = {size: found.at((*key, size)) for size in sizes}
    handles = {}
    everybody = _names(dict.fromkeys(n for column in columns.values() for n in column))
    for name in reversed(everybody):  # relu_ops last, above all
        timings = {s: columns[s][name] for s in sizes if name in columns[s]}
        handles[name] = _line(axes, name, timings)
    limits = {s: record.limit_of(columns[s].values()) for s in sizes}
    known = {s: t for s, t in limits.items() if t is not None}
    if known:
        handles["limit"] = _limit_line(axes, known)
    axes.set_title(_formula(key[0], key[1]), parse_math=False)
    _decorate(axes, sizes)
    return handles


_SHARES_FROM = 4096
"""Below, calling takes longer than computing, for everybody."""


def _shared_sizes(found: Record, key: Key) -> list[int]:
    """The sizes at which a share of the limit means something."""
    sizes = [size for size in _sizes(found, key) if size >= _SHARES_FROM]
    return [size for size in sizes if record.limit_of(found.at((*key, size)).values())]


def _share(axes: Any, found: Record, key: Key) -> dict[str, Any]:
    sizes = _shared_sizes(found, key)
    columns = {size: found.at((*key, size)) for size in sizes}
    handles = {}
    for name in reversed(_names(dict.fromkeys(n for column in columns.values() for n in column))):
        at = [s for s in sizes if name in columns[s]]
        shares = [tables.share(columns[s], of=columns[s][name]) for s in at]
        handles[name] = axes.plot(at, shares, **_look(name))[0]
    handles["limit"] = axes.axhline(1, color="#222222", linestyle=(0, (1, 1.2)), linewidth=1.6)
    axes.set_title(_formula(key[0], key[1]), parse_math=False)
    _decorate(axes, sizes)
    axes.set_yscale("linear")
    axes.set_ylim(0, 1.25)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    return handles


def _look(name: str) -> dict[str, Any]:
    main = name in ("relu_ops", "relu_ops_cuda")
    return {
        "color": _COLORS.get(name, "#888888"),
        "linestyle": _DASHED.get(name, "-"),
        "linewidth": 2.6 if main else 1.2,
        "zorder": 4 if main else 3 if name in tables.OURS else 2,
    }


def _line(axes: Any, name: str, timings: dict[int, Timing]) -> Any:
    x = list(timings)
    y = [t.bytes_per_second / 1e9 for t in timings.values()]
    main = name in ("relu_ops", "relu_ops_cuda")
    (line,) = axes.plot(x, y, **_look(name))
    if main:
        low = [t.bytes / t.spread[1] / 1e9 for t in timings.values()]
        high = [t.bytes / t.spread[0] / 1e9 for t in timings.values()]
        axes.fill_between(x, low, high, color=_COLORS[name], alpha=0.18, linewidth=0, zorder=1)
    return line


def _limit_line(axes: Any, timings: dict[int, Timing]) -> Any:
    y = [t.bytes_per_second / 1e9 for t in timings.values()]
    (line,) = axes.plot(
        *(list(timings), y),
        color="#222222",
        linestyle=(0, (1, 1.2)),
        linewidth=1.6,
        zorder=5,
    )
    return line


def _decorate(axes: Any, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    ticks = sizes if len(sizes) < 7 else sizes[:: math.ceil(len(sizes) / 6)]
    axes.set_xticks(ticks, [tables.count(size) for size in ticks])
    axes.xaxis.set_minor_locator(_nothing())
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.grid(axis="y", color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)


def _nothing() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


# ---------------------------------------------------------------------------------------------
# Levels side by side

_LEVEL_COLORS = ("#003B5C", style.BLUE, style.SKY, "#A6D8F5")


def _levels(figure: Any, found: Record, targets: Sequence[str]) -> None:
    """A panel for each case: the bound call for each level, and each level's own limit."""
    cases = [
        key[:2]
        for key in _keys(found, targets[0], "warm")
        if all((*key[:2], t, "warm") in _keys(found, t, "warm") for t in targets)
    ]
    handles: dict[str, Any] = {}
    for axes, case in zip(_panels(figure, len(cases)), cases, strict=True):
        keys = [(*case, target, "warm") for target in targets]
        sizes = sorted(set.intersection(*(set(_sizes(found, key)) for key in keys)))
        for key, color in zip(keys, _LEVEL_COLORS, strict=False):
            handles |= _level(axes, {size: found.at((*key, size)) for size in sizes}, key[2], color)
        axes.set_title(_formula(*case), parse_math=False)
        _decorate(axes, sizes)
    _legend(figure, handles, columns=len(targets))
    figure.suptitle(f"Bandwidth of a bound call by level, warm caches\n{_subtitle(found)}")


def _level(
    axes: Any,
    columns: dict[int, dict[str, Timing]],
    target: str,
    color: str,
    marker: str | None = None,
) -> dict[str, Any]:
    handles = {}
    for title, dashes, width, timings in (
        (target, "-", 2.0, {s: tables.own(c) for s, c in columns.items()}),
        (
            f"limit of {target}",
            (0, (1, 1.2)),
            1.3,
            {s: record.limit_of(c.values()) for s, c in columns.items()},
        ),
    ):
        known = {s: t.bytes_per_second / 1e9 for s, t in timings.items() if t is not None}
        if known:
            look: dict[str, Any] = {"color": color, "linestyle": dashes, "linewidth": width}
            look |= {"marker": marker, "markersize": 3.5} if marker else {}
            handles[title] = axes.plot(list(known), list(known.values()), **look)[0]
    return handles


# ---------------------------------------------------------------------------------------------
# Machines side by side

_MACHINE_COLORS = (*style.PALETTE, style.GREY)
_TITLE_INCHES = 7.0


def draw_machines(columns: Sequence[Column], folder: str | Path) -> list[Path]:
    """Draw each operator on every machine: a picture for each mode, a panel for each case.

    Args:
        columns: The machines.
        folder: As for `draw`.

    Returns:
        The paths; none where no case and size is on two of them.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        ArgumentError: A file cannot be written.
    """
    target, paths = make_folder(folder), []
    shared = [key for key in dict.fromkeys(_sides(columns)) if len(_holders(columns, key)) > 1]
    for mode in dict.fromkeys(mode for _, _, mode in shared):
        keys = [key for key in shared if key[2] == mode]
        paint = partial(_machines, columns=columns, keys=keys)
        for kind in KINDS:
            paths.append(style.write(target / f"machines_{mode}.{kind}", _rendered(paint, kind)))
    return paths


_Side = tuple[str, str, str]
"""Case, dtype and mode."""


def _sides(columns: Sequence[Column]) -> Iterator[_Side]:
    for column in columns:
        for case, dtype, _, mode, _ in column.record.places():
            yield case, dtype, mode


def _holders(columns: Sequence[Column], key: _Side) -> list[Column]:
    return [c for c in columns if _sizes(c.record, _key_of(c, key))]


def _key_of(column: Column, key: _Side) -> Key:
    return key[0], key[1], column.target, key[2]


def _machines(figure: Any, columns: Sequence[Column], keys: Sequence[_Side]) -> None:
    """A panel for each case: the bound call on each machine, and each machine's own limit."""
    handles: dict[str, Any] = {}
    panels = _panels(figure, len(keys))
    width, height = figure.get_size_inches()
    figure.set_size_inches(max(width, _TITLE_INCHES), height + 0.15 * len(columns))
    for axes, key in zip(panels, keys, strict=True):
        sizes: set[int] = set()
        for column, color in zip(columns, itertools.cycle(_MACHINE_COLORS), strict=False):
            own, found = _key_of(column, key), column.record
            at = {size: found.at((*own, size)) for size in _sizes(found, own)}
            handles |= _level(axes, at, column.title, color, marker="o")
            sizes |= set(at)
        axes.set_title(_formula(*key[:2]), parse_math=False)
        _decorate(axes, sorted(sizes))
    _legend(figure, handles, columns=min(len(handles), 2 if len(keys) < 2 else 4))
    shown = [f"{c.title}: {_subtitle(c.record)}, {c.target}" for c in columns]
    title = f"Bandwidth of a bound call by machine, {_MODES[keys[0][2]]}"
    figure.suptitle("\n".join([title, *shown]), fontsize=9)


# ---------------------------------------------------------------------------------------------
# The lead over the best peer


def _leads(figure: Any, found: Record, keys: Sequence[Key]) -> None:
    """A table in colour: how many times as long the best peer takes, and who it is."""
    sizes = sorted({s for key in keys for s in _sizes(found, key)})
    figure.set_size_inches(max(2.9 + 0.98 * len(sizes), 7), 1.3 + 0.52 * len(keys))
    axes = figure.subplots()
    ratios = np.full((len(keys), len(sizes)), np.nan)
    for row, key in enumerate(keys):
        for column, size in enumerate(sizes):
            ahead = tables.lead(found.at((*key, size)))
            if ahead is not None:
                ratios[row, column] = ahead[0]
                _cell(axes, row, column, *ahead)
    norm, colors = _scale()
    axes.imshow(np.log2(ratios), cmap=colors, norm=norm, aspect="auto")
    axes.set_xticks(range(len(sizes)), [tables.count(size) for size in sizes])
    axes.set_yticks(range(len(keys)), [_formula(key[0], key[1]) for key in keys])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.tick_params(length=0, colors=style.DARK_GREY)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks(np.arange(len(sizes) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(keys) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2.5)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("elements")
    figure.suptitle(
        f"The fastest peer's time over that of relu_ops, {keys[0][2]}, "
        f"{_MODES[keys[0][3]].partition(':')[0]}\n{_subtitle(found)}",
        fontsize=10.5,
    )


def _cell(axes: Any, row: int, column: int, ratio: float, name: str) -> None:
    strong = abs(math.log2(ratio)) > 1.35
    color = "white" if strong else "#222222"
    axes.text(column, row - 0.1, f"{ratio:.2f}", ha="center", va="center", color=color)
    title = peers.PEERS[name].title.replace("onnxruntime", "ORT")
    axes.text(column, row + 0.26, title, ha="center", va="center", color=color, fontsize=6.3)


def _scale() -> tuple[Any, Any]:
    """Blue where relu_ops is ahead, orange where it is behind, white where they are equal."""
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    stops = ["#B34700", "#F0B27A", "#F7F7F7", "#8CBEDD", "#005A8F"]
    return Normalize(-2, 2), LinearSegmentedColormap.from_list("lead", stops)


# ---------------------------------------------------------------------------------------------
# Whole processes


def _processes(figure: Any, found: Record) -> None:
    rows = list(reversed(found.processes))
    panels: tuple[tuple[str, Callable[[record.Process], float], str], ...] = (
        ("start to first result, s", lambda p: float(np.median(p.first_result_seconds)), "{:.2f}"),
        ("peak memory, MB", lambda p: p.peak_bytes / 1e6, "{:.0f}"),
        ("installed with all it needs, MB", lambda p: p.installed_bytes / 1e6, "{:.0f}"),
    )
    figure.set_size_inches(11, 0.9 + 0.34 * len(rows))
    grid = figure.subplots(1, len(panels), sharey=True)
    for axes, (title, value, form) in zip(grid, panels, strict=True):
        values = [value(row) for row in rows]
        colors = [style.BLUE if r.contestant == "relu_ops" else "#C4C4C4" for r in rows]
        bars = axes.barh(range(len(rows)), values, color=colors, height=0.7)
        axes.bar_label(bars, [form.format(v) for v in values], padding=3, color=style.DARK_GREY)
        axes.set_title(title)
        axes.set_yticks(range(len(rows)), [_process_title(r.contestant) for r in rows])
        axes.tick_params(length=0)
        axes.tick_params(axis="y", colors=style.DARK_GREY)
        axes.set_xticks([])
        axes.margins(x=0.18)
        for spine in axes.spines.values():
            spine.set_visible(False)
    figure.suptitle(f"A fresh process that computes relu of 16 elements\n{_subtitle(found)}")


def _process_title(name: str) -> str:
    if name == "python":
        return "Python alone"
    return peers.PEERS[name].title.partition(",")[0]
