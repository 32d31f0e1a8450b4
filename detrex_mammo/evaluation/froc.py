# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""FROC: lesion sensitivity against false positives per image, in pure numpy.

Legend: I images, G lesions, N predictions, T operating points. Sensitivities lie in [0, 1].

What is counted, so that a number can be cited:

- **Hit.** The rule is named (``centre`` by default, ``iou:t``); a lesion is hit once, a prediction
  hits one lesion at most; ``matching.py`` gives the exact assignment.
- **Duplicates.** A further prediction on a lesion already hit is left out (``ignore``, default) or
  is a false positive (``count``).
- **Denominator.** False positives per image over ``all`` images (default), or counted on and
  divided by the ``negative`` images only (those without a lesion of any class).
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
from detrex_mammo.evaluation.matching import (
    DUPLICATE,
    FALSE_POSITIVE,
    TRUE_POSITIVE,
    Matching,
    match_predictions,
    parse_rule,
)
from detrex_mammo.evaluation.tables import (
    LesionTable,
    PredictionTable,
    check_categories,
    lesion_table,
    prediction_table,
)

DEFAULT_FPPI = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 4.0)
CPM_FPPI = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
DUPLICATES = ("ignore", "count")
DENOMINATORS = ("all", "negative")


@dataclass(frozen=True)
class FrocSettings:
    """What is counted; every result carries it.

    Attributes:
        rule: ``centre`` or ``iou:t``.
        duplicates: ``ignore`` or ``count``.
        denominator: ``all`` or ``negative``.
        class_aware: a prediction hits lesions of its own category only.
    """

    rule: str = "centre"
    duplicates: str = "ignore"
    denominator: str = "all"
    class_aware: bool = True

    def __post_init__(self):
        object.__setattr__(self, "rule", parse_rule(self.rule).name)
        for name, allowed in (("duplicates", DUPLICATES), ("denominator", DENOMINATORS)):
            if getattr(self, name) not in allowed:
                raise UserError(f"{name} was {getattr(self, name)!r}, but it is one of {allowed}")

    def text(self) -> str:
        """The settings in words, for captions."""
        extra = {"ignore": "ignored", "count": "counted as false positives"}[self.duplicates]
        images = {"all": "all images", "negative": "images without lesions only"}[self.denominator]
        classes = "class-aware" if self.class_aware else "class-agnostic"
        return (
            f"hit: {parse_rule(self.rule).text} ({classes}); further hits on a hit lesion: "
            f"{extra}; false positives per image over {images}"
        )


@dataclass(frozen=True)
class FrocCurve:
    """One FROC curve with its counts.

    Attributes:
        thresholds: (T,) float64, falling; the first is +inf (nothing is predicted).
        true_positives: (T,) int64, lesions hit by predictions of at least that score.
        false_positives: (T,) int64, counted on the images of the denominator.
        num_lesions: lesions in the ground truth.
        num_images: all images.
        num_negative_images: images without a lesion of any class.
        num_predictions: predictions, whatever their outcome.
        num_duplicates: further hits on lesions already hit.
        settings: what is counted.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    num_lesions: int
    num_images: int
    num_negative_images: int
    num_predictions: int
    num_duplicates: int
    settings: FrocSettings = field(default_factory=FrocSettings)

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
        return _divide(self.true_positives, self.num_lesions)

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
            "rule": self.settings.rule,
            "duplicates": self.settings.duplicates,
            "denominator": self.settings.denominator,
            "class_aware": self.settings.class_aware,
            "text": self.settings.text(),
            "reason": self.reason,
            "num_lesions": self.num_lesions,
            "num_images": self.num_images,
            "num_negative_images": self.num_negative_images,
            "num_fp_images": self.num_fp_images,
            "num_predictions": self.num_predictions,
            "num_duplicates": self.num_duplicates,
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
        counts = ("num_lesions", "num_images", "num_negative_images")
        counts += ("num_predictions", "num_duplicates")
        settings = ("rule", "duplicates", "denominator", "class_aware")
        return cls(
            np.asarray(thresholds, dtype=np.float64),
            np.asarray(report["curve"]["true_positives"], dtype=np.int64),
            np.asarray(report["curve"]["false_positives"], dtype=np.int64),
            **{name: report[name] for name in counts},
            settings=FrocSettings(**{name: report[name] for name in settings}),
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
        truth: image id -> ``{"boxes": (g, 4) xyxy, "categories": (g,)}``, or a LesionTable.
            Every image is named, also those without lesions.
        predictions: image id -> ``{"boxes": (n, 4), "scores": (n,), "categories": (n,)}``, or a
            PredictionTable. An image left out has no predictions.
        settings (FrocSettings, optional): rule, duplicates, denominator, class awareness.
        categories: the data set's category ids; by default those of the lesions.

    Raises:
        UserError: unknown image id or category, score not finite, broken box.
    """
    settings = settings or FrocSettings()
    if not isinstance(truth, LesionTable):
        truth = lesion_table(truth)
    if not isinstance(predictions, PredictionTable):
        predictions = prediction_table(predictions, truth.image_ids)
    known = np.unique(truth.categories) if categories is None else np.asarray(list(categories))
    if settings.class_aware and (categories is not None or len(truth)):
        check_categories(predictions, known, truth.image_ids)
    rule = parse_rule(settings.rule)
    matching = match_predictions(truth, predictions, rule, settings.class_aware)
    per_class = {}
    for category in known.tolist() if settings.class_aware else ():
        per_class[category] = curve(truth, predictions, matching, settings, category)
    return FrocResult(curve(truth, predictions, matching, settings), per_class, matching)


def curve(
    lesions: LesionTable,
    predictions: PredictionTable,
    matching: Matching,
    settings: FrocSettings,
    category: int | None = None,
) -> FrocCurve:
    """The FROC curve of matched predictions, of one category or (None) of all."""
    negative = np.bincount(lesions.image_index, minlength=lesions.num_images) == 0
    chosen = np.ones(len(predictions), dtype=bool)
    num_lesions = len(lesions)
    if category is not None:
        chosen = predictions.categories == category
        num_lesions = int((lesions.categories == category).sum())
    scores = predictions.scores[chosen]
    outcome = matching.outcome[chosen]
    false = outcome == FALSE_POSITIVE
    if settings.duplicates == "count":
        false |= outcome == DUPLICATE
    if settings.denominator == "negative":
        false &= negative[predictions.image_index[chosen]]
    order = np.argsort(-scores, kind="stable")
    falling = scores[order]
    ends = np.flatnonzero(np.diff(falling, append=-np.inf) != 0)
    return FrocCurve(
        thresholds=np.concatenate([[np.inf], falling[ends]]),
        true_positives=_cumulate(outcome[order] == TRUE_POSITIVE, ends),
        false_positives=_cumulate(false[order], ends),
        num_lesions=num_lesions,
        num_images=lesions.num_images,
        num_negative_images=int(negative.sum()),
        num_predictions=len(scores),
        num_duplicates=int((outcome == DUPLICATE).sum()),
        settings=settings,
    )


def _cumulate(flags, ends):
    """Number of True up to each row of ``ends``, after a leading 0."""
    return np.concatenate([[0], np.cumsum(flags, dtype=np.int64)[ends]])


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
