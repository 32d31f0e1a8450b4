# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The FROC figure: every kind of curve can be drawn, nothing overlaps, the caption tells all."""

import cv2
import numpy as np
import pytest

from detrex_mammo.evaluation import froc_plot
from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.froc import FrocSettings, froc
from detrex_mammo.evaluation.froc_bootstrap import froc_bootstrap
from detrex_mammo.evaluation.froc_plot import plot_froc

LESION, FAR = (10, 10, 20, 20), (80, 80, 90, 90)


def curve(found, truth=((LESION,), ()), **options):
    lesions = {i: {"boxes": np.reshape(rows, (-1, 4))} for i, rows in enumerate(truth)}
    table = {0: {"boxes": [b for b, _ in found], "scores": [s for _, s in found]}}
    return froc(lesions, table, FrocSettings(**options)).overall


GOOD = curve([(LESION, 0.9), (FAR, 0.5)])
BAD = curve([(FAR, 0.9), (LESION, 0.1)])
EMPTY = curve([])
UNDEFINED = curve([(FAR, 0.9)], truth=((), ()))


@pytest.fixture
def figures(monkeypatch):
    """The matplotlib figures that were drawn."""
    drawn = []

    class Kept(froc_plot.Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            drawn.append(self)

    monkeypatch.setattr(froc_plot, "Figure", Kept)
    return drawn


@pytest.mark.parametrize(
    "curves",
    [
        {"after training": GOOD, "without training": BAD},
        {"a": GOOD, "b": BAD, "c": EMPTY, "d": UNDEFINED},
        {"nothing": EMPTY},
        {"undefined": UNDEFINED},
        {"negative": curve([(FAR, 0.9)], denominator="negative")},
    ],
)
def test_drawn_without_overlap(tmp_path, figures, curves):
    path = tmp_path / "f.png"
    plot_froc(curves, path, title="unseen patient", note="simulated lesions")
    picture = cv2.imread(str(path))
    assert picture.std() > 5
    (figure,) = figures
    (axes,) = figure.axes
    renderer = figure.canvas.get_renderer()
    blocks = [axes.get_tightbbox(renderer), figure.legends[0].get_window_extent(renderer)]
    blocks.append(figure.texts[0].get_window_extent(renderer))
    for upper, lower in zip(blocks, blocks[1:], strict=False):
        assert upper.y0 > lower.y1
    assert blocks[-1].y0 > 0
    assert all(0 <= block.x0 and block.x1 <= picture.shape[1] for block in blocks)


def test_steps_and_operating_points(tmp_path, figures):
    """GOOD: 1 from the start. BAD: 0, and 1 from the first false positive in two images, 0.5."""
    plot_froc({"good": GOOD, "bad": BAD}, tmp_path / "f.png", fppi=(0.1, 0.5, 1))
    (axes,) = figures[0].axes
    marks = [line for line in axes.lines if line.get_marker() in "os" and len(line.get_xdata())]
    assert [line.get_ydata().tolist() for line in marks] == [[1, 1, 1], [0, 1, 1]]
    assert [line.get_xdata().tolist() for line in marks] == [[0.1, 0.5, 1]] * 2
    steps = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert len(steps) == 2 and axes.get_xscale() == "log"


def test_caption_has_counts_and_rule(tmp_path, figures):
    plot_froc({"good": GOOD, "bad": BAD}, tmp_path / "f.png", note="simulated lesions")
    caption = figures[0].texts[0].get_text().replace("\n", " ")
    assert caption.startswith("simulated lesions 1 lesions in 2 images of 2 patients (1 images ")
    assert "centre lies in the lesion's box" in caption and caption.count("1 lesions") == 1
    negative = curve([(LESION, 0.9)], denominator="negative")
    plot_froc({"good": GOOD, "negative": negative}, tmp_path / "f.png")
    caption = figures[1].texts[0].get_text()
    assert "good: 1 lesions" in caption and "negative: 1 lesions" in caption


def test_band_of_a_curve_with_intervals(tmp_path, figures):
    """20 images, one lesion and one false positive each, scores at random: the band has room."""
    rng = np.random.default_rng(0)
    truth = {i: {"boxes": [LESION]} for i in range(20)}
    found = {i: {"boxes": [LESION, FAR], "scores": rng.random(2)} for i in range(20)}
    intervals = froc_bootstrap(truth, found, bootstrap=Bootstrap(50)).overall
    plot_froc({"with": intervals, "without": GOOD}, tmp_path / "f.png")
    (axes,) = figures[0].axes
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    figure = intervals.sensitivity_at(0.5)
    assert {figure.low, figure.high} <= set(heights.tolist()) and figure.low < figure.high
    caption = figures[0].texts[0].get_text().replace("\n", " ")
    assert "Band: pointwise 95 % percentile interval of 50 bootstrap replicates" in caption
    undefined = froc_bootstrap({"a": {"boxes": []}}, {}, bootstrap=Bootstrap(5)).overall
    plot_froc({"nothing": undefined}, tmp_path / "f.png")
    assert not figures[1].axes[0].collections


def test_too_many_curves(tmp_path):
    with pytest.raises(ValueError, match="1 to 4"):
        plot_froc({str(k): GOOD for k in range(5)}, tmp_path / "f.png")
