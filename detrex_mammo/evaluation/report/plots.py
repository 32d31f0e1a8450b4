# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Vector figures of a report: curves with their bands, readable in print and without colours."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SIZE = (5.2, 4.0)  # inches
MAX_LINES = 4  # that can be told apart
MAX_NAME = 30  # characters of a name in a legend


@dataclass(frozen=True)
class Line:
    """A curve.

    Attributes:
        name: in the legend.
        x: (T,).
        y: (T,).
        band: (x, low, high), (S,) each; None without one.
        steps: "post" for steps, "" for straight lines between points.
        marks: points (x, y, text) that are written beside the curve.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    band: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    steps: str = ""
    marks: Sequence[tuple[float, float, str]] = ()


def left_out(number: int) -> str:
    """Says that of so many curves only some are drawn."""
    return "" if number <= MAX_LINES else f" ({MAX_LINES} of {number} curves drawn)"


def curves_svg(
    lines: Sequence[Line],
    key: str,
    x_label: str,
    y_label: str,
    x_range: tuple[float, float] = (0, 1),
    log_x: bool = False,
    diagonal: bool = False,
) -> str:
    """Draw curves as an SVG element.

    Args:
        lines: ``MAX_LINES`` at most.
        key: makes the element's ids unique in the page.
        x_label: of the horizontal axis.
        y_label: of the vertical one, which goes from 0 to 1.
        x_range: of the horizontal axis.
        log_x: logarithmic.
        diagonal: draw the line of chance, or of perfect calibration.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # takes a second
    from matplotlib.figure import Figure

    from detrex_mammo.evaluation.froc_plot import STYLES

    figure = Figure(SIZE, layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    if diagonal:
        axes.plot([0, 1], [0, 1], color="#8C959F", linewidth=0.9, linestyle=(0, (3, 3)))
    drawn = [_draw(axes, line, style) for line, style in zip(lines, STYLES, strict=False)]
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if log_x:
        axes.set_xscale("log")
        ticks = [t for t in (0.01, 0.1, 0.3, 1, 3, 10, 30, 100) if x_range[0] <= t <= x_range[1]]
        axes.set_xticks(ticks, [f"{t:g}" for t in ticks], minor=False)
        axes.minorticks_off()
    axes.set_xlim(*x_range)
    axes.set_ylim(-0.01, 1.02)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if len(lines) > 1:
        _legend(axes, drawn, [line.name for line in lines])
    return _svg(figure, key)


def _legend(axes, drawn: list, names: Sequence[str]) -> None:
    """Names as they are: a stranger's is neither a formula ("$") nor hidden (a leading "_")."""
    places = [str(number) for number in range(len(drawn))]
    legend = axes.legend(drawn, places, frameon=False, fontsize=8.5, handlelength=3)
    for text, name in zip(legend.get_texts(), names, strict=False):
        text.set_parse_math(False)
        text.set_text(name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}\u2026")


def _draw(axes, line: Line, style):
    """The curve, for the legend."""
    kind = {"color": style["color"], "linestyle": style["linestyle"]}
    if line.band is not None:
        step = line.steps or None
        axes.fill_between(*line.band, step=step, color=style["color"], alpha=0.16, linewidth=0)
    drawn = {"drawstyle": f"steps-{line.steps}"} if line.steps else {}
    marker = {} if line.steps or len(line.x) > 30 else {"marker": style["marker"], "markersize": 4}
    (curve,) = axes.plot(line.x, line.y, linewidth=1.7, **kind, **drawn, **marker)
    for x, y, text in line.marks:
        axes.plot([x], [y], style["marker"], color=style["color"], markersize=6)
        axes.annotate(
            text, (x, y), (6, -11), textcoords="offset points", fontsize=8, parse_math=False
        )
    return curve


def _svg(figure, key: str) -> str:
    """The figure's element alone: no XML header, no addresses, ids of its own, text as text."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=empty)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"\bid=\"([^\"]+)\"", rf'id="{key}-\1"', text)
    text = re.sub(r"\bhref=\"#([^\"]+)\"", rf'href="#{key}-\1"', text)
    return re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", text)
