# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Images, breasts and cases as a whole: AUC, ROC and calibration; and the operating points."""

from functools import partial

import numpy as np

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.assess.settings import Part, Scored, figure_row
from detrex_mammo.evaluation.auc import auc, roc, sensitivity_at, specificity_at
from detrex_mammo.evaluation.calibration import Labelled, brier, ece, reliability
from detrex_mammo.evaluation.marks import Marks, marks
from detrex_mammo.evaluation.matching import parse_rule
from detrex_mammo.evaluation.operating_point import OperatingPoint, apply_to_boxes, apply_to_units
from detrex_mammo.evaluation.report.content import Plot, Table
from detrex_mammo.evaluation.report.plots import Line, curves_svg
from detrex_mammo.evaluation.scores import LEVELS, UnitScores, unit_scores

AT = 0.9  # specificity at this sensitivity, and the other way round


def units_of(scored: Scored, level: str, category: int | None = None) -> UnitScores:
    """Scores of images, breasts or cases; a breast's as the settings pool its views."""
    views = "max" if level == "image" else scored.settings.views
    return unit_scores(scored.study, scored.predictions, level, views, category)


def marks_of(scored: Scored, category: int | None = None) -> Marks:
    """Boxes as right or wrong, by the FROC's rule."""
    froc = scored.settings.froc
    rule = parse_rule(froc.rule)
    return marks(scored.study, scored.predictions, scored.matching, rule, froc.duplicates, category)


def units(scored: Scored) -> Part:
    """AUC at every level, the ROC curves, calibration and reliability."""
    part, lines, rows, told = Part(), [], [], []
    text = {
        "image": "score of an image: its highest box",
        "breast": f"score of a breast: {scored.settings.views} of its images",
        "case": f"score of a case: its highest breast, {scored.settings.views} of views",
    }
    for level in LEVELS:
        found = units_of(scored, level)
        figure = auc(found, scored.draws)
        part.add(f"auc-{level}", figure, f"AUC of {level}s", text[level])
        rows.append([level, "AUC", *figure_row(figure), figure.of])
        for name, value in (
            (f"specificity at sensitivity {AT:g}", specificity_at(found, AT, scored.draws)),
            (f"sensitivity at specificity {AT:g}", sensitivity_at(found, AT, scored.draws)),
        ):
            part.figures[f"{name}-{level}"] = value
            rows.append([level, name, *figure_row(value), value.of])
        if np.isnan(figure.value):
            part.missing.append(f"AUC of {level}s: it needs some with and some without a lesion")
            continue
        curve = roc(found)
        at = curve.corners()
        lines.append(Line(f"{level}s", 1 - curve.specificity[at], curve.sensitivity[at]))
        told.append(f"{text[level]} ({figure.of})")
    columns = ["level", "figure", "value", "low", "high", "of"]
    note = "Positive: a lesion of any class; score: of any class. Chosen on these data."
    part.tables.append(Table("units", "Images, breasts and cases", note, columns, rows))
    if lines:
        draw = partial(curves_svg, lines, "roc", "1 - specificity", "sensitivity", diagonal=True)
        part.plots.append(Plot("roc", "ROC", draw, "; ".join(told) + "."))
    _calibration(scored, part)
    return part


def _calibration(scored: Scored, part: Part) -> None:
    lines, rows, told = [], [], []
    sources = {"boxes": marks_of(scored), "images": units_of(scored, "image")}
    for name, source in sources.items():
        try:
            labelled = Labelled.of(source)
        except UserError as error:
            part.missing.append(f"calibration of {name}: {error}")
            continue
        if not len(labelled.scores):
            continue
        figures = {
            "ECE, bins of equal width": ece(labelled, draws=scored.draws),
            "ECE, bins of equal numbers": ece(labelled, binning="mass", draws=scored.draws),
            "Brier score": brier(labelled, scored.draws),
        }
        for title, figure in figures.items():
            part.figures[f"{title}-{name}"] = figure
            rows.append([name, title, *figure_row(figure), figure.of])
        bins = reliability(labelled, binning="mass")
        band = (bins.mean_score, bins.share_low, bins.share_high)
        lines.append(Line(name, bins.mean_score, bins.share, band=band))
        told.append(f"{len(labelled.scores)} {name}")
    if not lines:
        return
    columns = ["scores of", "figure", "value", "low", "high", "of"]
    note = "A box is right if it hits by the FROC's rule; an image if it has a lesion."
    part.tables.append(Table("calibration", "Calibration", note, columns, rows))
    labels = ("mean score", "share that is right")
    draw = partial(curves_svg, lines, "reliability", *labels, diagonal=True)
    bins_text = "Bins of equal numbers with Wilson's 95 % interval; dotted: perfect."
    caption = f"{' and '.join(told)}. {note} {bins_text}"
    part.plots.append(Plot("reliability", "Reliability", draw, caption))


def operating_points(scored: Scored) -> Part:
    """What the thresholds that were chosen on validation give on these data."""
    part, rows = Part(), []
    for point in scored.settings.points:
        for name, figure in apply_point(scored, point).items():
            part.figures[f"{name} at {point.name}"] = figure
            rows.append([point.name, name, *figure_row(figure), figure.of])
            if name in ("sensitivity", "specificity"):
                title = f"{name.capitalize()} at the {point.level} threshold {point.threshold:.4g}"
                part.add(f"{name} at {point.name}", figure, title, point.text())
    if rows:
        note = " ".join(f"{point.text()}." for point in scored.settings.points)
        columns = ["point", "figure", "value", "low", "high", "of"]
        part.tables.append(Table("operating_points", "Operating points", note, columns, rows))
    return part


def apply_point(scored: Scored, point: OperatingPoint):
    """Figures of one operating point.

    Raises:
        UserError: it was chosen by other rules, or of scores that were calibrated otherwise.
    """
    for name, value in scored.settings.of_points.items():
        chosen = point.settings.get(name, value if name == "class_aware" else "none")
        if chosen != value:
            raise UserError(
                f"the operating point {point.name!r} was chosen with {name} {chosen!r}, but is "
                f"applied with {value!r}: use the same on both"
            )
    if point.level == "box":
        found = marks_of(scored, point.category)
        return apply_to_boxes(point, found, scored.study, scored.predictions, scored.draws)
    return apply_to_units(point, units_of(scored, point.level, point.category), scored.draws)
