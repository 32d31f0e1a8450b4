# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""One model on one data set: all figures, all tables, and the page that shows them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from detrex_mammo.evaluation.assess.free_response import free_response
from detrex_mammo.evaluation.assess.precision import precision
from detrex_mammo.evaluation.assess.settings import AssessSettings, Part, Scored
from detrex_mammo.evaluation.assess.units import operating_points, units
from detrex_mammo.evaluation.calibration import calibrated
from detrex_mammo.evaluation.estimate import Estimate, draw_patients
from detrex_mammo.evaluation.froc import FrocCurve, froc_sweeps
from detrex_mammo.evaluation.froc_bootstrap import curve_intervals
from detrex_mammo.evaluation.operating_point import OperatingPoint
from detrex_mammo.evaluation.report.cards import make_cards
from detrex_mammo.evaluation.report.content import INTERVAL, Counter, Report
from detrex_mammo.evaluation.study import Study
from detrex_mammo.evaluation.tables import PredictionTable

SLIDER_FPPI = 10.0  # the slider goes down to the score with so many false positives per image
SLIDER_SCORES = 100_000  # but in a large data set not beyond so many false positives
START_FPPI = 0.5  # and stands at the one with so many


@dataclass(frozen=True)
class Assessment:
    """Everything that was computed.

    Attributes:
        scored: data, predictions and what became of them.
        curve: FROC of all classes.
        part: headline, plots, tables and figures.
    """

    scored: Scored
    curve: FrocCurve
    part: Part

    @property
    def figures(self) -> dict[str, Estimate]:
        """Name -> figure; AP in percent, the others in [0, 1]."""
        return self.part.figures

    @property
    def interval(self) -> str:
        """What the column of intervals is called."""
        bootstrap = self.scored.settings.bootstrap
        return INTERVAL if bootstrap is None else f"{100 * bootstrap.level:g} % interval"

    def with_points(self, points: Sequence[OperatingPoint]) -> "Assessment":
        """The same, and first what these operating points give on the data.

        Raises:
            UserError: a point was chosen by other rules.
        """
        scored = replace(self.scored, settings=replace(self.scored.settings, points=tuple(points)))
        return replace(self, scored=scored, part=Part.joined([operating_points(scored), self.part]))

    def to_dict(self) -> dict[str, Any]:
        """JSON: settings, counts, figures, tables."""
        settings = self.scored.settings
        return {
            "rule": settings.froc.text(),
            "calibration": settings.calibration.text() if settings.calibration else None,
            "froc_settings": settings.froc.to_dict(),
            "interval": None if settings.bootstrap is None else settings.bootstrap.text(),
            "counts": counts(self.scored.study, self.scored.predictions),
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
            "tables": {
                table.key: {
                    "note": table.note,
                    "columns": list(table.columns),
                    "rows": [[_plain(value) for value in row] for row in table.rows],
                }
                for table in self.part.tables
            },
            "missing": self.part.missing,
        }

    def report(
        self,
        title: str,
        facts: Sequence[tuple[str, str]] = (),
        note: str = "",
        max_images: int = 500,
    ) -> Report:
        """The page's content.

        Args:
            title: of the page.
            facts: (name, text) about model and data, first in the page.
            note: a warning over all.
            max_images: of the gallery.
        """
        scored, settings = self.scored, self.scored.settings
        counter = self._counter()
        threshold = counter.threshold if counter else 0.0
        cards, gallery_note = make_cards(
            scored.study, scored.predictions, scored.matching, threshold, max_images
        )
        found = counts(scored.study, scored.predictions)
        told = [
            ("data", ", ".join(f"{number:,} {name}" for name, number in found.items())),
            ("rule", settings.froc.text()),
        ]
        if settings.calibration is not None:
            told.append(("scores", f"calibrated: {settings.calibration.text()}"))
        if settings.bootstrap is not None:
            told.append(("intervals", settings.bootstrap.text()))
        told += [("not computed", sentence) for sentence in self.part.missing]
        return Report(
            title, [*facts, *told], self.part.numbers, self.part.plots, counter,
            self.part.tables, cards, note, gallery_note, self.interval,
        )  # fmt: skip

    def _counter(self) -> Counter | None:
        curve, settings = self.curve, self.scored.settings
        if curve.reason or len(curve.thresholds) < 2:
            return None
        lowest = curve.thresholds[-1]
        limit = max(START_FPPI, min(SLIDER_FPPI, SLIDER_SCORES / curve.num_fp_images))
        if curve.fppi[-1] > limit:
            lowest = curve.threshold_at(limit)
            lowest = lowest if np.isfinite(lowest) else curve.thresholds[1]
        point = next((p for p in settings.points if p.level == "box" and p.category is None), None)
        if point is not None:
            start, why = point.threshold, f"Starts at an operating point: {point.text()}."
        else:
            start = curve.threshold_at(START_FPPI)
            start = start if np.isfinite(start) else curve.thresholds[1]
            why = f"Starts where {START_FPPI:g} false positives per image are not exceeded."
        kept = curve.thresholds >= lowest
        return Counter(
            unit=settings.froc.units,
            num_units=curve.num_units,
            images="images" if settings.froc.denominator == "all" else "images without lesions",
            num_images=curve.num_fp_images,
            hit_scores=_each(curve.thresholds[kept], curve.true_positives[kept]),
            false_scores=_each(curve.thresholds[kept], curve.false_positives[kept]),
            lowest=float(lowest),
            threshold=float(start),
            threshold_note=f"{why} Counted by the FROC's rule: {settings.froc.text()}.",
        )


def assess(
    study: Study, predictions: PredictionTable, settings: AssessSettings | None = None
) -> Assessment:
    """Score a model's predictions in every way.

    Args:
        study: ground truth.
        predictions: of its images.
        settings: rules, intervals, operating points.

    Raises:
        UserError: unknown category, a score that is not finite, or not in [0, 1] where it is
            calibrated, an operating point that was chosen by other rules.
    """
    settings = settings or AssessSettings()
    if settings.calibration is not None:
        predictions = calibrated(predictions, settings.calibration)
    missing = Part()
    if settings.bootstrap is not None and study.num_patients < 2:
        settings = replace(settings, bootstrap=None)
        missing.missing.append("intervals: they are over patients, and there is one only")
    result, sweeps = froc_sweeps(study, predictions, settings.froc)
    draws = intervals = None
    if settings.bootstrap is not None:
        draws = draw_patients(study, settings.bootstrap)
        curves = [result.overall, *result.per_class.values()]
        intervals = curve_intervals(curves, sweeps, study, settings.bootstrap, settings.fppi)
    scored = Scored(study, predictions, result.matching, draws, settings)
    parts = [missing, free_response(scored, result, intervals), precision(scored), units(scored)]
    return Assessment(scored, result.overall, Part.joined(parts)).with_points(settings.points)


def counts(study: Study, predictions: PredictionTable) -> dict[str, int]:
    """How many of what there is."""
    return {
        "patients": study.num_patients,
        "images": study.num_images,
        "images with a lesion": int(study.is_positive.sum()),
        "lesions": len(study.lesions),
        "boxes that do not count": len(study.ignored),
        "predictions": len(predictions),
    }


def _each(thresholds: np.ndarray, reached: np.ndarray) -> list[float]:
    """One falling score for every count, from cumulated counts at falling thresholds."""
    steps = np.diff(reached, prepend=0)
    return np.repeat(thresholds, steps).tolist()


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
