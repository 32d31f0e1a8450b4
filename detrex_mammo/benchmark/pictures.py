# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A picture of a run: bars for every comparison, curves of cost against size."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from detrex_mammo.benchmark.bars import compare
from detrex_mammo.benchmark.peers import DEFORMOPS, OFFICIAL, REFERENCE, TRANSFORMERS
from detrex_mammo.benchmark.results import Results, Row, curves, sections
from detrex_mammo.benchmark.tables import BASELINES
from detrex_mammo.benchmark.units import place_text, quantity_text, three_digits
from detrex_mammo.evaluation.hardware import machine_text

# Others are grey; ours have Okabe and Ito's colours, told apart with every kind of colour vision.
OTHERS = {REFERENCE: "#444444", TRANSFORMERS: "#777777", DEFORMOPS: "#999999", OFFICIAL: "#BBBBBB"}
COLOURS = ("#E69F00", "#56B4E9", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#F0E442")
MARKS = "osv^Dp*X"
COLUMNS = 2
WIDTH, BAR, PANEL, CURVE = 12.0, 0.24, 0.75, 3.4  # inches; a panel's height is without its bars


def draw(results: Results, path: str | Path) -> None:
    """Draw a run into a picture file: all comparisons, then all curves.

    Args:
        results: of one run.
        path: PNG, SVG or PDF by its ending.
    """
    bars = [(k, rows) for k, rows in sections(results.rows).items() if any(r.values for r in rows)]
    lines = list(curves(results.rows).items())
    names = list(dict.fromkeys(row.candidate for row in results.rows))
    ours = [name for name in names if name not in OTHERS]
    colours = {**OTHERS, **{name: COLOURS[i % len(COLOURS)] for i, name in enumerate(ours)}}
    style = {name: (colours[name], MARKS[i % len(MARKS)]) for i, name in enumerate(names)}
    pairs = [(_draw_bars, bars[i : i + COLUMNS]) for i in range(0, len(bars), COLUMNS)]
    pairs += [(_draw_curve, lines[i : i + COLUMNS]) for i in range(0, len(lines), COLUMNS)]
    heights = [
        CURVE if function is _draw_curve else PANEL + BAR * max(len(rows) for _, rows in panels)
        for function, panels in pairs
    ]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.9), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(results), fontsize=9, x=0.01, ha="left", color="#333333")
    if pairs:
        grid = figure.add_gridspec(len(pairs), COLUMNS, height_ratios=heights)
    for place, (function, panels) in enumerate(pairs):
        for column, ((case, quantity), content) in enumerate(panels):
            axes = figure.add_subplot(grid[place, column])
            function(axes, case, content, style)
            axes.set_title(f"{case}: {quantity}", fontsize=10, loc="left")
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
    figure.savefig(path)


def _draw_bars(axes: Axes, case: str, rows: Sequence[Row], style: dict) -> None:
    """Medians with quartiles; beside each its figure, and times better than the first baseline."""
    rows = [row for row in rows if row.values]
    baseline = next((row for row in rows if row.candidate in BASELINES), None)
    medians = [row.spread.median for row in rows]
    spans = [[row.spread.median - row.spread.low for row in rows]]
    spans.append([row.spread.high - row.spread.median for row in rows])
    axes.barh(
        range(len(rows)), medians, 0.7, xerr=spans, color=[style[r.candidate][0] for r in rows],
        error_kw={"elinewidth": 1, "ecolor": "#555555"},
    )  # fmt: skip
    for place, row in enumerate(rows):
        text = f" {quantity_text(row.spread.median, row.unit)}"
        ratio = compare(row, baseline) if baseline is not row else None
        text += f"  ({three_digits(ratio.median)}x)" if ratio else ""
        axes.annotate(text, (row.spread.high, place), va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row.candidate for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(row.spread.high for row in rows))
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _draw_curve(axes: Axes, case: str, lines: dict[str, list[Row]], style: dict) -> None:
    """Medians over x, both logarithmic; the quartiles as a band."""
    for name, rows in lines.items():
        rows = [row for row in rows if row.values]
        x = [row.x for row in rows]
        colour, mark = style[name]
        axes.plot(
            x, [row.spread.median for row in rows], color=colour, marker=mark, markersize=5,
            linewidth=1.6, label=name,
        )  # fmt: skip
        low, high = [row.spread.low for row in rows], [row.spread.high for row in rows]
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    places = sorted({row.x for rows in lines.values() for row in rows})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(places, [place_text(place) for place in places], fontsize=8)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity_text(value, "s")))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("queries" if "queries" in case else "megapixels of the image", fontsize=9)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, frameon=False)


def _title(results: Results) -> str:
    about = results.about
    versions = about["versions"]
    told = ", ".join(f"{n} {versions[n]}" for n in ("torch", "transformers") if n in versions)
    line = (
        f"{about['command']}: {machine_text(about['machine'])}; {told}; {about['started'][:10]}. "
    )
    line += "Bars end at the median, whiskers at the quartiles, of repeats taken in turn."
    if about["quick"]:
        line += " QUICK RUN on small shapes: not a measurement."
    return "\n".join(textwrap.wrap(line, 150))
