# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""FROC, AFROC and LROC of all lesions, of each class and of each group of the data."""

from functools import partial

import numpy as np

from detrex_mammo.evaluation.afroc import area_figures
from detrex_mammo.evaluation.assess.settings import Part, Scored, figure_row
from detrex_mammo.evaluation.estimate import Estimate
from detrex_mammo.evaluation.froc import FrocCurve, FrocResult
from detrex_mammo.evaluation.froc_bootstrap import CurveIntervals
from detrex_mammo.evaluation.matching import parse_rule
from detrex_mammo.evaluation.report.content import Plot, Table
from detrex_mammo.evaluation.report.plots import MAX_LINES, Line, curves_svg, left_out
from detrex_mammo.evaluation.strata import froc_strata

HEADLINE_FPPI = (0.3, 1.0)
STRATA_FPPI = 1.0


def free_response(
    scored: Scored, result: FrocResult, intervals: list[CurveIntervals] | None
) -> Part:
    """Headline, curve and tables.

    Args:
        scored: what was matched.
        result: curves of all and of each class.
        intervals: of the same curves in the same order; None without a bootstrap.
    """
    part, settings = Part(), scored.settings
    names = scored.study.category_names
    curves = [("all", result.overall)]
    if len(result.per_class) > 1:
        curves += [(str(names[c]), curve) for c, curve in result.per_class.items()]
    ends = (intervals or [None] * len(curves))[: len(curves)]
    rule = settings.froc.text()
    shown = [f for f in settings.fppi if f in HEADLINE_FPPI] or settings.fppi[:2]
    for f in settings.fppi:
        figure = _sensitivity(result.overall, ends[0], f)
        part.figures[f"sens@{f:g}"] = figure
        if f in shown:
            plural = "" if f == 1 else "s"
            part.add(
                f"sens@{f:g}",
                figure,
                f"Sensitivity at {f:g} false positive{plural} per image",
                rule,
            )
    part.add("cpm", _cpm(result.overall, ends[0]), "CPM: mean sensitivity at 1/8 to 8", rule)
    areas = area_figures(
        scored.study, scored.predictions, scored.matching, settings.froc, settings.bootstrap
    )[0]
    hit = parse_rule(settings.froc.rule).text
    part.add("afroc", areas["afroc"], "AFROC area", f"JAFROC figure of merit; hit: {hit}")
    best = "an image's highest box lies on a lesion, and above the highest of an image without"
    part.add("lroc", areas["lroc"], "LROC area", f"{best}; hit: {hit}")
    part.tables.append(_sensitivity_table(curves, ends, settings))
    part.plots.append(_plot(curves, ends, rule, settings))
    part.tables += _strata_tables(scored)
    if result.overall.reason:
        part.missing.append(f"FROC: {result.overall.reason}")
    return part


def _sensitivity(curve: FrocCurve, ends: CurveIntervals | None, fppi: float) -> Estimate:
    if ends is not None:
        return ends.sensitivity_at(fppi)
    return Estimate(curve.sensitivity_at(fppi), of=curve.counts_text())


def _cpm(curve: FrocCurve, ends: CurveIntervals | None) -> Estimate:
    return ends.cpm() if ends is not None else Estimate(curve.cpm(), of=curve.counts_text())


def _sensitivity_table(curves, ends, settings) -> Table:
    columns = ["class", "false positives per image", "sensitivity", "low", "high", "score", "of"]
    rows = []
    for (name, curve), interval in zip(curves, ends, strict=True):
        for f in settings.fppi:
            figure = _sensitivity(curve, interval, f)
            threshold = curve.threshold_at(f)
            rows.append([name, f, *figure_row(figure), _finite(threshold), figure.of])
        figure = _cpm(curve, interval)
        rows.append([name, "CPM", *figure_row(figure), None, figure.of])
    return Table("sensitivity", "Sensitivity", settings.froc.text() + ".", columns, rows)


def _finite(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


def _strata_tables(scored: Scored) -> list[Table]:
    """Sensitivity and CPM of every group, and its areas."""
    settings = scored.settings
    strata = froc_strata(
        scored.study,
        scored.predictions,
        settings.froc,
        bootstrap=settings.bootstrap,
        fppi=[STRATA_FPPI],
    )
    groups, areas = [], []
    for found in strata:
        group = [found.factor, found.group]
        counts = [found.curve.num_images, found.curve.num_units]
        figures = [
            _sensitivity(found.curve, found.intervals, STRATA_FPPI),
            _cpm(found.curve, found.intervals),
        ]
        numbers = [number for figure in figures for number in figure_row(figure)]
        groups.append([*group, *counts, *numbers, found.text])
        areas += [
            [*group, name, *figure_row(found.areas[key]), found.areas[key].of]
            for key, name in (("afroc", "AFROC"), ("lroc", "LROC"))
        ]
    ends = ["low", "high"]
    columns = ["by", "group", "images", settings.froc.units]
    columns += [f"sens@{STRATA_FPPI:g}", *ends, "CPM", "CPM low", "CPM high", "what"]
    note = f"{settings.froc.text()}. Groups of few lesions have wide intervals."
    what = f"Hit: {parse_rule(settings.froc.rule).text}; of the same lesions, boxes and images."
    return [
        Table("strata", "By group", note, columns, groups),
        Table(
            "areas", "Areas by group", what, ["by", "group", "area", "value", *ends, "of"], areas
        ),
    ]


def _plot(curves, ends, rule, settings) -> Plot:
    lines = []
    for number, ((name, curve), interval) in enumerate(zip(curves, ends, strict=True)):
        if curve.reason or len(lines) == MAX_LINES:
            continue
        last = max(curve.fppi[-1], 2 * max(settings.fppi))
        x, y = np.append(curve.fppi, last), np.append(curve.sensitivity, curve.sensitivity[-1])
        marks = [] if number else [(f, curve.sensitivity_at(f), "") for f in settings.fppi]
        band = None if number or interval is None else interval.band()
        lines.append(Line(name, np.maximum(x, 1e-4), y, band, "post", marks))
    span = (min(settings.fppi) / 2, 2 * max(max(settings.fppi), 4))
    labels = ("false positives per image (logarithmic)", "sensitivity")
    draw = partial(curves_svg, lines, "froc", *labels, span, log_x=True)
    counts = curves[0][1].counts_text() + left_out(len(curves))
    band = "" if settings.bootstrap is None else f" Band: pointwise {settings.bootstrap.text()}."
    return Plot("froc", "FROC", draw, f"{counts}; {rule}. Steps, no interpolation.{band}")
