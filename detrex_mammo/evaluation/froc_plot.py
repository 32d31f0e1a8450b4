# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The FROC figure: steps over a logarithmic axis, operating points marked, counts below."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from detrex_mammo.evaluation.froc import DEFAULT_FPPI, FrocCurve
from detrex_mammo.evaluation.froc_bootstrap import CurveIntervals

# Okabe and Ito's colours, told apart with every kind of colour vision; dashes and marks differ too.
STYLES = (
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": (0, (6, 2)), "marker": "s"},
    {"color": "#009E73", "linestyle": (0, (2, 1.5)), "marker": "^"},
    {"color": "#CC79A7", "linestyle": (0, (6, 2, 1.5, 2)), "marker": "D"},
)
WIDTH, LEFT, AXES_WIDTH = 7.2, 0.72, 6.2  # inches
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def plot_froc(
    curves: Mapping[str, FrocCurve | CurveIntervals],
    path: str | Path,
    fppi: Sequence[float] = DEFAULT_FPPI,
    title: str = "",
    note: str = "",
) -> None:
    """Draw FROC curves into a picture file (PNG, SVG or PDF by its ending).

    The first curve's counts and rule are the caption; curves that differ in them say so.

    Args:
        curves: name -> curve, such as "after training" and "without training"; four at most.
            A curve with intervals has its pointwise band drawn.
        path: the picture to write.
        fppi: false positives per image that are marked on every curve.
        title: over the figure.
        note: first line of the caption, such as "simulated lesions".
    """
    if not 1 <= len(curves) <= len(STYLES):
        raise ValueError(f"curves were {len(curves)}, but 1 to {len(STYLES)} can be told apart")
    bands = {name: c for name, c in curves.items() if isinstance(c, CurveIntervals)}
    curves = {name: bands[name].curve if name in bands else c for name, c in curves.items()}
    caption = _caption(curves, note, {band.bootstrap.text() for band in bands.values()})
    # Inches, from below: caption, legend, the axis' own texts, axes, title.
    num_rows = (len(curves) + 1) // 2
    caption_top = 0.15 + 0.145 * (caption.count("\n") + 1)
    legend_top = caption_top + 0.1 + 0.21 * num_rows
    bottom, height, title_height = legend_top + 0.55, 3.7, 0.4 if title else 0.15
    total = bottom + height + title_height
    figure = Figure(figsize=(WIDTH, total), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((LEFT / WIDTH, bottom / total, AXES_WIDTH / WIDTH, height / total))
    left, right = _axis_range(curves.values(), fppi)
    for row, (name, curve) in enumerate(curves.items()):
        if name in bands and not curve.reason:
            _draw_band(axes, bands[name], STYLES[row]["color"], left)
        marked = _draw(axes, name, curve, STYLES[row], fppi, left, right)
        if row < 2:  # more numbers would cover one another
            _write_numbers(axes, marked, STYLES[row]["color"], above=row == 0)
    _dress(axes, left, right)
    if title:
        axes.set_title(title, fontsize=12, loc="left")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(LEFT / WIDTH, legend_top / total),
        ncols=2, fontsize=9, frameon=False, borderpad=0, borderaxespad=0, handlelength=3.2,
    )  # fmt: skip
    place = (LEFT / WIDTH, caption_top / total)
    figure.text(*place, caption, va="top", fontsize=7.5, color="#333333")
    figure.savefig(path)


def _axis_range(curves, fppi):
    """From below the smallest marked point to past the largest, or to the curves' end."""
    marked = [f for f in fppi if f > 0] or [1.0]
    ends = [curve.fppi[-1] for curve in curves if not curve.reason]
    left = min(marked) / 2
    right = max([2 * max(marked), 8.0])
    right = max(right, min(max(ends, default=right), 4 * right))
    return left, right


def _draw(axes, name, curve, style, fppi, left, right):
    """One curve as steps, flat to the right edge; returns its operating points (fppi, height)."""
    if curve.reason:
        axes.plot([], [], **style, label=f"{name}: {curve.reason.split(',')[0]}")
        return []
    # Points left of the axis are drawn at its edge, so that the curve starts at its true height.
    x = np.append(np.clip(curve.fppi, left / 10, None), max(right, curve.fppi[-1]))
    y = np.append(curve.sensitivity, curve.sensitivity[-1])
    line = {key: value for key, value in style.items() if key != "marker"}
    label = f"{name} (CPM {curve.cpm():.3f})"
    axes.step(x, y, where="post", linewidth=1.8, **line)
    axes.plot([], [], **style, linewidth=1.8, markersize=5, label=label)
    marked = [f for f in fppi if left <= f <= right]
    heights = [curve.sensitivity_at(f) for f in marked]
    axes.plot(
        marked, heights, style["marker"], color=style["color"], markersize=5.5,
        markeredgecolor="white", markeredgewidth=0.8, zorder=3,
    )  # fmt: skip
    return list(zip(marked, heights, strict=True))


def _draw_band(axes, intervals, colour, left):
    """The pointwise interval, as steps like the curve's."""
    fppi, low, high = intervals.band()
    x = np.clip(fppi, left / 10, None)
    axes.fill_between(x, low, high, step="post", color=colour, alpha=0.15, linewidth=0)


def _write_numbers(axes, marked, colour, above):
    """The sensitivity beside every operating point, where there is room for it."""
    for f, height in marked:
        upwards = height < (0.93 if above else 0.07)
        axes.annotate(
            f"{height:.2f}", (f, height), (0, 6 if upwards else -7), textcoords="offset points",
            ha="center", va="bottom" if upwards else "top", fontsize=7.5, color=colour,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip


def _dress(axes, left, right):
    axes.set_xscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(-0.01, 1.02)
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in TICKS if left <= tick <= right]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_yticks(np.linspace(0, 1, 11))
    axes.set_xlabel("false positives per image (logarithmic)")
    axes.set_ylabel("lesion sensitivity")
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _caption(curves, note, intervals):
    """Counts and rule; once if all curves share them, else one line each; then the bands'."""
    lines = [note] if note else []
    texts = {name: _counts(curve) for name, curve in curves.items()}
    if len(set(texts.values())) == 1:
        lines.append(next(iter(texts.values())))
    else:
        lines += [f"{name}: {text}" for name, text in texts.items()]
    lines += [f"Band: pointwise {text}." for text in sorted(intervals)]
    return "\n".join(textwrap.fill(line, 118) for line in lines)


def _counts(curve):
    return f"{curve.counts_text()}; {curve.settings.text()}. Steps, no interpolation."
