# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The loss curve as a picture, from the metrics file of a run (one JSON object a line)."""

import json
import logging
import math
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)

# Okabe and Ito's colours for the terms, told apart with every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
TERMS = ("loss_class", "loss_bbox", "loss_giou")


def read_losses(path: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Losses by name from detectron2's ``metrics.json``.

    A resumed run writes some iterations again: of equal iterations the last written counts. Lines
    without losses (evaluations) and a last line cut short by a kill are passed over.

    Args:
        path: the metrics file.

    Returns:
        dict: name -> (iterations (K,) int64 rising, values (K,) float64 finite).

    Raises:
        UserError: the file is missing or has no losses.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UserError(f"metrics file {path} does not exist: train first, or correct it") from None
    series: dict[str, dict[int, float]] = {}
    num_broken = 0
    for line in lines:
        try:
            entry = json.loads(line)
            iteration = int(entry["iteration"])
        except (ValueError, KeyError, TypeError):
            num_broken += 1
            continue
        for name, value in entry.items():
            if "loss" in name and isinstance(value, int | float) and math.isfinite(value):
                series.setdefault(name, {})[iteration] = float(value)
    if num_broken:
        logger.info("%s: %d lines are not training metrics", path, num_broken)
    if not series:
        raise UserError(f"metrics file {path} has no losses: it is not of a training run")
    return {name: _sorted(points) for name, points in series.items()}


def smooth(iterations: np.ndarray, values: np.ndarray, span: float) -> np.ndarray:
    """Exponential mean over the iterations, unbiased at the start.

    Args:
        iterations: (K,) rising.
        values: (K,).
        span: iterations over which a value's weight falls to 1/e; 0 leaves the values as they are.

    Returns:
        np.ndarray: (K,); a constant stays that constant.
    """
    if span <= 0:
        return values.copy()
    smoothed = np.empty_like(values)
    total = weight = 0.0
    previous = iterations[0] if len(iterations) else 0
    for row, (iteration, value) in enumerate(zip(iterations, values, strict=True)):
        decay = math.exp(-(iteration - previous) / span)
        total, weight = total * decay + value, weight * decay + 1.0
        smoothed[row] = total / weight
        previous = iteration
    return smoothed


def plot_losses(
    metrics_file: str | Path, path: str | Path, title: str = "", span: float | None = None
) -> None:
    """Draw total loss and its terms over the iterations.

    Args:
        metrics_file: detectron2's ``metrics.json`` of a run.
        path: the picture to write (PNG, SVG or PDF by its ending).
        title: over the figure.
        span: smoothing in iterations; by default 1/50 of the run.

    Raises:
        UserError: see :func:`read_losses`.
    """
    losses = read_losses(metrics_file)
    total = losses.get("total_loss")
    if span is None:
        longest = max(iterations[-1] - iterations[0] for iterations, _ in losses.values())
        span = longest / 50
    figure = Figure(figsize=(10, 4.4), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    if total is not None:
        _draw(left, "total loss", total, "#222222", span)
    terms = [name for name in TERMS if name in losses]
    terms = terms or [name for name in losses if name != "total_loss"][: len(COLOURS)]
    for colour, name in zip(COLOURS, terms, strict=False):
        _draw(right, name.replace("_", " "), losses[name], colour, span)
    _dress(left, "total, all layers" if total is not None else "no total loss recorded")
    _dress(right, "terms of the last decoder layer")
    if title:
        figure.suptitle(title, fontsize=12)
    figure.savefig(path)


def _sorted(points):
    iterations = np.array(sorted(points), dtype=np.int64)
    return iterations, np.array([points[i] for i in iterations.tolist()], dtype=np.float64)


def _draw(axes, name, points, colour, span):
    """Raw values pale, smoothed values on top; a single value as a dot."""
    iterations, values = points
    if len(values) == 1:
        axes.plot(iterations, values, "o", color=colour, label=name)
        return
    axes.plot(iterations, values, color=colour, alpha=0.22, linewidth=0.8)
    axes.plot(iterations, smooth(iterations, values, span), color=colour, linewidth=1.8, label=name)


def _dress(axes, title):
    axes.set_title(title, fontsize=10.5, loc="left")
    axes.set_xlabel("iteration")
    axes.set_ylabel("loss (smoothed over the pale values)")
    axes.set_ylim(bottom=0)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9, frameon=False)
