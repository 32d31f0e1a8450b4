# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""FROC: lesion sensitivity against false positives per image, in pure numpy.

Legend: T operating points. Sensitivities lie in [0, 1].

What is counted, so that a number can be cited:

- **Hit.** The rule is named (``centre`` by default, ``iou:t``, ``dbt``); a box is hit once, a
  prediction hits one box at most; ``matching.py`` gives the exact assignment.
- **Unit.** Sensitivity is the share of ``lesion_view`` (boxes, default), ``lesion`` (over views, by
  ``lesion_id``), ``breast`` or ``case`` with a hit on any of their boxes, at the score of the best.
  A hit on another box of a unit already hit is neither a hit nor a false positive. False positives
  are per image with every unit.
- **Duplicates.** A further prediction on a box already hit is left out (``ignore``, default) or
  is a false positive (``count``).
- **Boxes that do not count** (crowds, ``ignore``): a prediction on one, and on no box that counts,
  is left out.
- **Denominator.** False positives per image over ``all`` images (default), or counted on and
  divided by the ``negative`` images only (those without a box of any class, counted or not).
- **Ties.** An operating point exists only at a distinct score: all predictions of one score go
  together.
- **Sensitivity at f** is the largest sensitivity of an operating point with at most f false
  positives per image: a step, never interpolated; beyond the last point the curve stays flat.
- **CPM** is the mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per image.

Worked by hand (boxes are xyxy; one image, one lesion (10, 10, 20, 20), unless said otherwise):

- Perfect: prediction (10, 10, 20, 20) score 0.9. Curve (0, 0), (0, 1): sensitivity 1 at every f.
- Nothing found: no prediction. Curve (0, 0): sensitivity 0 at every f.
- Far away: prediction (80, 80, 90, 90). A miss and a false positive: curve (0, 0), (1, 0).
- Ties: (10, 10, 20, 20) and (80, 80, 90, 90), both score 0.5. One operating point, (1, 1), so the
  sensitivity is 0 at f = 0.5 and 1 at f = 1.
- Duplicates: (10, 10, 20, 20) score 0.9 and (11, 11, 21, 21) score 0.8. ``ignore``: (0, 1) only.
  ``count``: (0, 1), then (1, 1).
- Two lesions, one box: lesions (0, 0, 10, 10) and (4, 0, 14, 10), prediction (3, 0, 13, 10) score
  0.9. Its centre (8, 5) lies in both and is nearer to (9, 5) than to (5, 5): the second one is hit,
  the first one is missed, sensitivity 1/2 at every f. A second prediction of the same box with
  score 0.8 hits the first one: sensitivity 1.
- Negatives only: two images without lesions, one prediction. Sensitivity is NaN with the reason
  "no lesions"; false positives per image still reach 0.5.
- Negative denominator: the lesion's image has (80, 80, 90, 90) score 0.9, the only negative image
  has one prediction of score 0.8: ``all`` ends at 2/2 = 1 false positive per image, ``negative``
  at 1/1 = 1; without the second prediction at 1/2 and at 0.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.froc_events import Part, Sweep, sweep
from detrex_mammo.evaluation.froc_settings import CPM_FPPI, DEFAULT_FPPI, FrocSettings
from detrex_mammo.evaluation.matching import (
    DUPLICATE,
    IGNORED,
    Matching,
    match_predictions,
    parse_rule,
)
from detrex_mammo.evaluation.study import Study, as_study
from detrex_mammo.evaluation.tables import PredictionTable, check_categories, prediction_table

COUNTS = (
    "num_units", "num_lesions", "num_images", "num_negative_images", "num_patients",
    "num_predictions", "num_duplicates", "num_ignored",
)  # fmt: skip


@dataclass(frozen=True)
class FrocCurve:
    """One FROC curve with its counts.

    Attributes:
        thresholds: (T,) float64, falling; the first is +inf (nothing is predicted).
        true_positives: (T,) int64, units hit by predictions of at least that score.
        false_positives: (T,) int64, counted on the images of the denominator.
        num_units: what sensitivity is a share of: boxes, lesions, breasts or cases.
        num_lesions: boxes in the ground truth, without those that do not count.
        num_images: all images.
        num_negative_images: images without a box of any class.
        num_patients: patients of all images.
        num_predictions: predictions, whatever their outcome.
        num_duplicates: further hits on boxes already hit.
        num_ignored: predictions on boxes that do not count.
        settings: what is counted.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    num_units: int
    num_lesions: int
    num_images: int
    num_negative_images: int
    num_patients: int
    num_predictions: int
    num_duplicates: int
    num_ignored: int
    settings: FrocSettings = field(default_factory=FrocSettings)

    def counts_text(self) -> str:
        """The denominators in words, for captions."""
        boxes = "" if self.settings.unit == "lesion_view" else f" ({self.num_lesions} boxes)"
        return (
            f"{self.num_units} {self.settings.units}{boxes} in {self.num_images} images of "
            f"{self.num_patients} patients ({self.num_negative_images} images without lesions)"
        )

    @property
    def num_fp_images(self) -> int:
        """Images that false positives are counted on and divided by."""
        negative = self.settings.denominator == "negative"
        return self.num_negative_images if negative else self.num_images

    @property
    def reason(self) -> str | None:
        """Why the sensitivities are NaN; None where they are not."""
        if self.num_lesions == 0:
            return "no lesions in the ground truth, so sensitivity is undefined"
        if self.num_fp_images == 0:
            which = "negative images" if self.num_images else "images"
            return f"no {which}, so false positives per image are undefined"
        return None

    @property
    def sensitivity(self) -> np.ndarray:
        """(T,) in [0, 1]; NaN without lesions."""
        return _divide(self.true_positives, self.num_units)

    @property
    def fppi(self) -> np.ndarray:
        """(T,) false positives per image; NaN without images to count on."""
        return _divide(self.false_positives, self.num_fp_images)

    def operating_point(self, fppi: float) -> int | None:
        """Row of the point with the largest sensitivity at ``fppi`` false positives per image.

        Of several points with that sensitivity it is the one of the highest threshold. None when
        the sensitivity is undefined (see :attr:`reason`).
        """
        if not fppi >= 0:
            raise UserError(f"fppi was {fppi!r}, but false positives per image are >= 0")
        if self.reason:
            return None
        # A count, not a rate, is compared: 0.3 * 410 must allow 123 false positives.
        allowed = np.floor(fppi * self.num_fp_images * (1 + 1e-12))
        last = int(np.searchsorted(self.false_positives, allowed, side="right")) - 1
        return int(np.searchsorted(self.true_positives, self.true_positives[last], side="left"))

    def sensitivity_at(self, fppi: float) -> float:
        """Largest sensitivity with at most ``fppi`` false positives per image; NaN if undefined."""
        row = self.operating_point(fppi)
        return float("nan") if row is None else float(self.sensitivity[row])

    def threshold_at(self, fppi: float) -> float:
        """Score threshold of the point of :meth:`sensitivity_at`; NaN if undefined."""
        row = self.operating_point(fppi)
        return float("nan") if row is None else float(self.thresholds[row])

    def cpm(self) -> float:
        """Mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4, 8 false positives per image."""
        return float(np.mean([self.sensitivity_at(fppi) for fppi in CPM_FPPI]))

    def corners(self) -> np.ndarray:
        """Rows of the points that draw the step curve: the ends, and those that rise."""
        rises = np.flatnonzero(np.diff(self.true_positives) > 0)
        return np.unique(np.concatenate([[0], rises + 1, [len(self.thresholds) - 1]]))

    def to_dict(self, fppi=DEFAULT_FPPI) -> dict[str, Any]:
        """Everything for a report, JSON-ready (undefined numbers are None, +inf is None).

        The curve is given by its corners; the points left out lie on its flat steps.
        """
        rows = self.corners()
        points = [
            {"fppi": f, "sensitivity": self.sensitivity_at(f), "threshold": self.threshold_at(f)}
            for f in fppi
        ]
        report = {
            **self.settings.to_dict(),
            "text": self.settings.text(),
            "counts": self.counts_text(),
            "reason": self.reason,
            **{name: getattr(self, name) for name in COUNTS},
            "num_fp_images": self.num_fp_images,
            "cpm": self.cpm(),
            "points": points,
            "curve": {
                "threshold": self.thresholds[rows].tolist(),
                "true_positives": self.true_positives[rows].tolist(),
                "false_positives": self.false_positives[rows].tolist(),
                "fppi": self.fppi[rows].tolist(),
                "sensitivity": self.sensitivity[rows].tolist(),
            },
        }
        return _finite(report)

    @classmethod
    def from_dict(cls, report: dict[str, Any]) -> "FrocCurve":
        """The curve that :meth:`to_dict` wrote, from its corners."""
        thresholds = [np.inf if t is None else t for t in report["curve"]["threshold"]]
        # A report without these is older than they are: boxes were the units, images the patients.
        old = {"num_units": report["num_lesions"], "num_patients": report["num_images"]}
        counts = {"num_ignored": 0, **old, **report}
        return cls(
            np.asarray(thresholds, dtype=np.float64),
            np.asarray(report["curve"]["true_positives"], dtype=np.int64),
            np.asarray(report["curve"]["false_positives"], dtype=np.int64),
            **{name: counts[name] for name in COUNTS},
            settings=FrocSettings.from_dict(report),
        )


@dataclass(frozen=True)
class FrocResult:
    """The curve of all classes together and one for each class.

    Attributes:
        overall: all lesions and all predictions.
        per_class: category id -> curve over that category's lesions and predictions; empty when
            class-agnostic, where a false positive belongs to no class.
        matching: what became of every prediction.
    """

    overall: FrocCurve
    per_class: dict[int, FrocCurve]
    matching: Matching


def froc(truth, predictions, settings=None, categories=None) -> FrocResult:
    """FROC of predictions against ground truth, both keyed by image id.

    Args:
        truth: image id -> ``{"boxes": (g, 4) xyxy, "categories": (g,)}``, a LesionTable, or a
            Study,
            which alone tells patients, breasts, lesions over views and boxes that do not count.
            Every image is named, also those without lesions.
        predictions: image id -> ``{"boxes": (n, 4), "scores": (n,), "categories": (n,)}``, or a
            PredictionTable. An image left out has no predictions.
        settings (FrocSettings, optional): rule, unit, duplicates, denominator, class awareness.
        categories: the data set's category ids; by default those of the Study or of the lesions.

    Raises:
        UserError: unknown image id or category, score not finite, broken box.
    """
    return froc_sweeps(truth, predictions, settings, categories)[0]


def froc_sweeps(
    truth, predictions, settings=None, categories=None
) -> tuple[FrocResult, list[Sweep]]:
    """As :func:`froc`, with what the bootstrap needs: sweeps of all, then of every class."""
    settings = settings or FrocSettings()
    study, predictions = as_study(truth), as_predictions(truth, predictions)
    known, matching = match_study(study, predictions, settings, categories)
    parts = [Part(), *(Part.of_category(study, predictions, category) for category in known)]
    sweeps = [sweep(study, predictions, matching, settings, part) for part in parts]
    curves = [
        curve(study, predictions, matching, settings, part, found)
        for part, found in zip(parts, sweeps, strict=True)
    ]
    per_class = dict(zip(known, curves[1:], strict=True))
    return FrocResult(curves[0], per_class, matching), sweeps


def as_predictions(truth, predictions) -> PredictionTable:
    """Predictions in any form that :func:`froc` takes as a table."""
    if isinstance(predictions, PredictionTable):
        return predictions
    return prediction_table(predictions, as_study(truth).lesions.image_ids)


def match_study(
    study: Study, predictions: PredictionTable, settings: FrocSettings, categories=None
) -> tuple[list[int], Matching]:
    """Match predictions; also the categories that have a curve of their own (none if agnostic)."""
    rule = parse_rule(settings.rule)
    known = list(study.category_names if categories is None else categories)
    if settings.class_aware and (categories is not None or known):
        check_categories(predictions, known, study.lesions.image_ids)
    if settings.rule == "dbt":
        predictions = study.with_slices(predictions)
    matching = match_predictions(
        study.lesions, predictions, rule, settings.class_aware, study.ignored
    )
    return (known if settings.class_aware else []), matching


def curve(
    study: Study,
    predictions: PredictionTable,
    matching: Matching,
    settings: FrocSettings,
    part: Part | None = None,
    found: Sweep | None = None,
) -> FrocCurve:
    """The FROC curve of matched predictions over a part of the data set (None: all of it).

    Args:
        found (optional): the part's sweep, where it is there already.
    """
    part = part or Part()
    found = found or sweep(study, predictions, matching, settings, part)
    images = part.image_mask(study)
    outcome = matching.outcome[part.prediction_mask(predictions)]
    return FrocCurve(
        thresholds=found.thresholds,
        true_positives=found.hits,
        false_positives=found.false,
        num_units=int(found.patient_units.sum()),
        num_lesions=int(part.lesion_mask(study).sum()),
        num_images=int(images.sum()),
        num_negative_images=int((study.is_negative & images).sum()),
        num_patients=len(np.unique(study.patients[images])),
        num_predictions=len(outcome),
        num_duplicates=int((outcome == DUPLICATE).sum()),
        num_ignored=int((outcome == IGNORED).sum()),
        settings=settings,
    )


def _divide(counts, number):
    return counts / number if number else np.full(len(counts), np.nan)


def _finite(value):
    """NaN and infinities as None, so that the JSON is read by every reader."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
