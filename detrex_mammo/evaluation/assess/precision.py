# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""COCO's average precision and the precision-recall curve."""

from functools import partial

import numpy as np

from detrex_mammo.evaluation.assess.settings import Part, Scored, figure_row
from detrex_mammo.evaluation.coco_ap import CocoScorer
from detrex_mammo.evaluation.report.content import Plot, Table
from detrex_mammo.evaluation.report.plots import MAX_LINES, Line, curves_svg, left_out

PLOTTED_IOU = 0.5


def precision(scored: Scored) -> Part:
    """AP with intervals, COCO's twelve, curves, and the threshold of the largest F1."""
    part, settings = Part(), scored.settings
    scorer = CocoScorer(scored.study, scored.predictions, settings.max_dets)
    figures = scorer.figures(scored.draws)
    top = f"best {settings.max_dets} predictions of an image and class"
    titles = {"AP50": ("AP50", f"COCO's AP at IoU 0.5, {top}"), "AP": ("AP", f"COCO's AP, {top}")}
    part.figures.update(figures)
    for name, (title, rule) in titles.items():
        part.add(name, figures[name], title, rule, percent=True)
    rows = [[name, *figure_row(figure, 2), figure.of] for name, figure in figures.items()]
    columns = ["figure", "percent", "low", "high", "of"]
    note = f"As pycocotools computes them, {top}; AP10, AP20, AP30: at IoU 0.1, 0.2, 0.3."
    part.tables.append(Table("coco", "Average precision", note, columns, rows))
    _curves(scored, scorer, part, top)
    return part


def _curves(scored: Scored, scorer: CocoScorer, part: Part, top: str) -> None:
    classes = scored.study.category_names
    wanted = [("all classes", None)]
    if len(classes) > 1:
        wanted += [(str(name), category) for category, name in classes.items()]
    lines, rows = [], []
    for name, category in wanted:
        curve = scorer.curve(PLOTTED_IOU, category)
        threshold, _ = curve.best()
        f1 = scorer.largest_f1(PLOTTED_IOU, category, scored.draws)
        part.figures["F1" if category is None else f"F1-{name}"] = f1
        rows.append([name, _or_none(threshold), *figure_row(f1), f1.of])
        if len(curve.hits) and len(lines) < MAX_LINES:
            lines.append(Line(name, np.append(0, curve.recall), np.append(1, curve.precision)))
    columns = ["class", "score", "F1", "low", "high", "of"]
    note = (
        f"Score of the largest F1 at IoU {PLOTTED_IOU:g}, chosen on these data, in each replicate "
        f"anew; {top}."
    )
    part.tables.append(Table("f1", "Largest F1", note, columns, rows))
    draw = partial(curves_svg, lines, "pr", "recall", "precision")
    number = scorer.curve(PLOTTED_IOU).num_lesions
    counts = f"{number} lesions in {scored.study.num_images} images{left_out(len(wanted))}"
    caption = f"{counts}; hit: IoU of at least {PLOTTED_IOU:g}; {top}."
    part.plots.append(Plot("pr", "Precision and recall", draw, caption))


def _or_none(value: float) -> float | None:
    return round(value, 6) if np.isfinite(value) else None
