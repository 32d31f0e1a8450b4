# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""COCO's average precision from numpy tables: at any IoU, with its curve and its interval.

Legend: T IoU thresholds, K classes, H hits of a class at one threshold, R replicates, P patients.

Precision at the 101 recalls 0, 0.01 .. 1 is the largest precision at that recall or beyond; AP is
its mean, then the mean over IoU thresholds and over the classes with lesions, in percent. The
figures are pycocotools' own (:mod:`~detrex_mammo.evaluation.coco_match` says what is counted).

In a replicate a prediction and a lesion count as often as their patient was drawn. That equals
scoring the drawn data again, where equal scores of one image stay together.

Worked by hand: three lesions of one class in three images; hit 0.9, false positive 0.8, hit 0.7.
Precision is 1 up to recall 1/3 and 2/3 up to recall 2/3: the recalls 0 to 0.33 (34 of them) have
1, 0.34 to 0.66 (33) have 2/3, the rest 0: AP = (34 + 22) / 101 = 55.4 %. F1 is largest at 0.7:
2 * 2 / (3 + 3) = 2/3. If the second image (with the false positive) is drawn twice and the third
(with the last hit) not at all: three lesions, one hit, precision 1 up to 1/3: AP = 34 / 101.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.coco_figures import average_recall, largest_f1
from detrex_mammo.evaluation.coco_match import (
    AREAS,
    HIT,
    LEFT_OUT,
    CocoMatching,
    coco_pairs,
    dets_scored,
    match,
)
from detrex_mammo.evaluation.estimate import Draws, Estimate, divide, estimate
from detrex_mammo.evaluation.study import Study
from detrex_mammo.evaluation.tables import PredictionTable, check_categories

COCO_IOU = np.linspace(0.5, 0.95, 10)
LOW_IOU = np.array([0.1, 0.2, 0.3])
RECALLS = np.linspace(0.0, 1.0, 101)
_TINY = np.spacing(1)  # pycocotools' own


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall of one class (or all) at one IoU, at every score that adds a hit.

    Attributes:
        scores: (H,) falling thresholds; predictions of one score go together.
        hits: (H,) lesions hit.
        kept: (H,) predictions of at least that score that count.
        num_lesions: lesions of the class.
        iou: the threshold.
    """

    scores: np.ndarray
    hits: np.ndarray
    kept: np.ndarray
    num_lesions: int
    iou: float

    @property
    def precision(self) -> np.ndarray:
        """(H,) in [0, 1]."""
        return divide(self.hits, self.kept)

    @property
    def recall(self) -> np.ndarray:
        """(H,) in [0, 1]; NaN without lesions."""
        return divide(self.hits, self.num_lesions)

    @property
    def f1(self) -> np.ndarray:
        """(H,) in [0, 1]."""
        return 2 * self.hits / (self.kept + self.num_lesions)

    def best(self) -> tuple[float, float]:
        """Threshold of the largest F1, the highest of several, and that F1; NaN without a hit."""
        if not len(self.hits):
            return float("nan"), float("nan")
        row = int(np.argmax(self.f1))
        return float(self.scores[row]), float(self.f1[row])


class CocoScorer:
    """A data set's predictions, matched once; every figure is then read off.

    Args:
        study: the ground truth.
        predictions: the model's.
        max_dets: predictions kept of an image and class; COCO's own is 100.

    Raises:
        UserError: a prediction of a category that the data set does not have.
    """

    def __init__(self, study: Study, predictions: PredictionTable, max_dets: int = 100):
        check_categories(predictions, list(study.category_names), study.lesions.image_ids)
        self.study, self.max_dets = study, max_dets
        self.thresholds = np.concatenate([LOW_IOU, COCO_IOU])
        self.pairs = coco_pairs(study, predictions, LOW_IOU[0], max_dets)
        self.num_classes = len(self.pairs.categories)
        self._matchings: dict[str, CocoMatching] = {}

    def matching(self, area: str = "all") -> CocoMatching:
        """The outcomes in an area range, computed once."""
        if area not in self._matchings:
            self._matchings[area] = match(self.pairs, self.thresholds, area)
        return self._matchings[area]

    def numbers(self) -> dict[str, float]:
        """COCO's twelve numbers, AP10, AP20, AP30 (at IoU 0.1, 0.2, 0.3), ``AP-<class>``; percent.

        NaN where no lesion falls in the range.
        """
        precision = {area: self._precision(area)[len(LOW_IOU) :] for area in AREAS}
        found = {"AP": _mean(precision["all"])}
        for name, iou in (("AP50", 0.5), ("AP75", 0.75)):
            found[name] = _mean(precision["all"][np.isclose(COCO_IOU, iou)])
        for area in ("small", "medium", "large"):
            found[f"AP{area[0]}"] = _mean(precision[area])
        for number in dets_scored(self.max_dets):
            found[f"AR{number}"] = _mean(self._recall("all", number)[len(LOW_IOU) :])
        for area in ("small", "medium", "large"):
            found[f"AR{area[0]}"] = _mean(self._recall(area, self.max_dets)[len(LOW_IOU) :])
        low = self._precision("all")[: len(LOW_IOU)]
        for iou, part in zip(LOW_IOU, low, strict=True):
            found[f"AP{round(100 * iou)}"] = _mean(part)
        for column, category in enumerate(self.pairs.categories.tolist()):
            name = self.study.category_names[category]
            found[f"AP-{name}"] = _mean(precision["all"][:, :, column])
        return found

    def average_precision(self, draws: Draws | None = None) -> dict[str, Estimate]:
        """AP, AP50, AP75, AP10, AP20, AP30 and ``AP-<class>``, ``AP50-<class>``, with intervals.

        In percent.
        """
        ones = np.ones((1, self.study.num_patients), dtype=np.int32)
        value = self._weighted(ones, 1)
        replicates = None
        if draws is not None:
            replicates = self._weighted(draws.weights, _replicates_a_block(self.pairs))
        found = {}
        for name, (pick, of) in self._picks().items():
            drawn = None if replicates is None else pick(replicates)
            found[name] = estimate(pick(value)[0], drawn, draws, of)
        return found

    def figures(self, draws: Draws | None = None) -> dict[str, Estimate]:
        """All of :meth:`numbers` and ``AP50-<class>``, with intervals; percent."""
        found = self.average_precision(draws)
        ones = np.ones((1, self.study.num_patients), dtype=np.int32)
        pick, coco = _picker(slice(len(LOW_IOU), None), None), slice(len(LOW_IOU), None)
        for area in list(AREAS)[1:]:
            matching, drawn = self.matching(area), None
            if draws is not None:
                rows = _replicates_a_block(self.pairs)
                drawn = pick(self._weighted(draws.weights, rows, area))
            value, of = pick(self._weighted(ones, 1, area))[0], f"{matching.counts.sum()} lesions"
            found[f"AP{area[0]}"] = estimate(value, drawn, draws, of)
        recalls = [(f"AR{number}", "all", number) for number in dets_scored(self.max_dets)]
        recalls += [(f"AR{area[0]}", area, self.max_dets) for area in list(AREAS)[1:]]
        for name, area, number in recalls:
            found[name] = average_recall(self.study, self.matching(area), number, coco, draws)
        return found

    def largest_f1(
        self, iou: float = 0.5, category: int | None = None, draws: Draws | None = None
    ) -> Estimate:
        """The F1 of :meth:`PrecisionRecall.best`, with its interval.

        Raises:
            UserError: as for :meth:`curve`.
        """
        level, column = self._place(iou, category)
        return largest_f1(self.study, self.matching(), level, column, draws)

    def curve(self, iou: float = 0.5, category: int | None = None) -> PrecisionRecall:
        """Precision and recall of a class, or of all classes' predictions together.

        Raises:
            UserError: an IoU that is not matched, or an unknown category.
        """
        level, column = self._place(iou, category)
        return _Ranked(self.matching(), column).curve(level, float(iou))

    def _place(self, iou, category):
        """Rows of the IoU threshold and of the class; None for all classes."""
        level = np.flatnonzero(np.isclose(self.thresholds, iou))
        if not len(level):
            known = ", ".join(f"{t:g}" for t in self.thresholds)
            raise UserError(f"the IoU was {iou!r}, but curves are kept for {known}")
        if category is not None and category not in self.pairs.categories:
            known = dict(sorted(self.study.category_names.items()))
            raise UserError(f"category was {category!r}, but the data set's are {known}")
        column = None
        if category is not None:
            column = int(np.searchsorted(self.pairs.categories, category))
        return int(level[0]), column

    def _precision(self, area):
        """(T, 101, K); -1 for a class without lesions in the range."""
        found = np.full((len(self.thresholds), len(RECALLS), self.num_classes), -1.0)
        for column in range(self.num_classes):
            ranked = _Ranked(self.matching(area), column)
            for level in range(len(self.thresholds)) if ranked.num_lesions else ():
                hit, kept = ranked.kept(level)
                done = np.arange(1, hit.sum() + 1, dtype=np.float64)
                precision = done / (kept[hit] + _TINY)
                found[level, :, column] = _interpolated(done / ranked.num_lesions, precision)
        return found

    def _recall(self, area, max_dets):
        """(T, K); -1 for a class without lesions in the range."""
        matching = self.matching(area)
        pairs, where = self.pairs, self.pairs.candidates
        found = np.full((len(self.thresholds), self.num_classes), -1.0)
        for column in range(self.num_classes):
            number = _num_lesions(matching, column)
            chosen = (pairs.class_index[where] == column) & (pairs.place[where] < max_dets)
            if number:
                found[:, column] = (matching.outcome[:, chosen] == HIT).sum(axis=1) / number
        return found

    def _picks(self):
        """name -> (function of (R, T, K) AP, denominator)."""
        coco = slice(len(LOW_IOU), None)
        levels = {"AP": coco, "AP50": 3, "AP75": 8, "AP10": 0, "AP20": 1, "AP30": 2}
        counts = self.matching().counts
        picks = {
            name: (_picker(level, None), f"{counts.sum()} lesions")
            for name, level in levels.items()
        }
        for column, category in enumerate(self.pairs.categories.tolist()):
            number = _num_lesions(self.matching(), column)
            name = self.study.category_names[category]
            for figure in ("AP", "AP50"):
                pick = _picker(levels[figure], column)
                picks[f"{figure}-{name}"] = (pick, f"{number} lesions")
        return picks

    def _weighted(self, weights, rows_a_block, area="all"):
        """AP of every replicate, (R, T, K); NaN where a class has no lesion in it."""
        found = np.full((len(weights), len(self.thresholds), self.num_classes), np.nan)
        for column in range(self.num_classes):
            part = _Weighted(self.study, _Ranked(self.matching(area), column))
            for start in range(0, len(weights), rows_a_block):
                block = slice(start, start + rows_a_block)
                found[block, :, column] = part.average_precision(weights[block])
        return found


class _Ranked:
    """The predictions of one class (or all) by falling score, counted.

    Attributes:
        rows: (D,) rows of the pairs' table.
        at: (C,) places of the candidates among them, rising.
        outcome: (T, C) of the candidates.
        inside: (C,) bool, the candidate's own area is in the range.
        base: (D,) predictions up to each whose own area is in the range.
    """

    def __init__(self, matching, column=None):
        pairs = matching.pairs
        self.matching, self.column = matching, column
        in_class = np.ones(len(pairs.rows), dtype=bool)
        if column is not None:
            in_class = pairs.class_index == column
        self.rows = np.flatnonzero(in_class)
        self.chosen = np.flatnonzero(in_class[pairs.candidates])
        self.at = np.searchsorted(self.rows, pairs.candidates[self.chosen])
        self.outcome = matching.outcome[:, self.chosen]
        self.inside = matching.in_range[self.rows[self.at]]
        self.base = np.cumsum(matching.in_range[self.rows], dtype=np.int64)
        self.num_lesions = _num_lesions(matching, column)

    def change(self, level):
        """(C,) what the matching adds to or takes from what counts by its own area."""
        hit, left_out = self.outcome[level] == HIT, self.outcome[level] == LEFT_OUT
        return (hit & ~self.inside).astype(np.int64) - (left_out & self.inside)

    def kept(self, level):
        """Which candidates are hits, (C,), and how many predictions count up to each, (C,)."""
        return self.outcome[level] == HIT, self.base[self.at] + np.cumsum(self.change(level))

    def curve(self, level, iou):
        """Precision and recall at every score that adds a hit."""
        hit, _ = self.kept(level)
        falling = -self.matching.pairs.scores[self.rows]
        ends, which = np.unique(falling[self.at[hit]], return_inverse=True)
        last = np.searchsorted(falling, ends, side="right") - 1
        changes = np.concatenate([[0], np.cumsum(self.change(level))])
        kept = self.base[last] + changes[np.searchsorted(self.at, last, side="right")]
        hits = np.cumsum(np.bincount(which, minlength=len(ends)))
        return PrecisionRecall(-ends, hits, kept, self.num_lesions, iou)


class _Weighted:
    """One class, summed as far as possible, for many weightings of the patients."""

    def __init__(self, study, ranked):
        self.ranked, pairs = ranked, ranked.matching.pairs
        patients = study.patients[pairs.image_index[ranked.rows]]
        self.patients = patients[ranked.at]
        is_lesion = ranked.matching.counts & (pairs.box_class == ranked.column)
        owner = study.patients[pairs.box_image[is_lesion]]
        self.lesions = np.bincount(owner, minlength=study.num_patients)
        # What counts is only needed at the candidates: sums from one to the next, by patient.
        end = int(ranked.at[-1]) + 1 if len(ranked.at) else 0
        place = np.flatnonzero(ranked.matching.in_range[ranked.rows[:end]])
        segment = np.searchsorted(ranked.at, place).astype(np.int32)
        ones = np.ones(len(place), dtype=np.int32)
        shape = (len(ranked.at), study.num_patients)
        where = (segment, patients[place].astype(np.int32))
        self.segments = coo_matrix((ones, where), shape).tocsr()

    def average_precision(self, weights):
        """(R, T) AP in [0, 1] of weights (R, P)."""
        lesions = weights @ self.lesions
        columns = np.ascontiguousarray(weights.T, dtype=np.int32)
        base = np.cumsum(self.segments @ columns, axis=0, dtype=np.int64).T
        own = weights[:, self.patients]
        found = np.full((len(weights), len(self.ranked.outcome)), np.nan)
        for level, outcome in enumerate(self.ranked.outcome):
            hit, change = outcome == HIT, self.ranked.change(level)
            kept = base
            if change.any():
                kept = base + np.cumsum(own * change, axis=1)
            kept = kept[:, hit]
            done = np.cumsum(own[:, hit], axis=1, dtype=np.float64)
            for row in np.flatnonzero(lesions):
                precision = done[row] / (kept[row] + _TINY)
                found[row, level] = _interpolated(done[row] / lesions[row], precision).mean()
        return found


def _num_lesions(matching, column):
    counted = matching.counts
    if column is not None:
        counted = counted & (matching.pairs.box_class == column)
    return int(counted.sum())


def _interpolated(recall, precision):
    """Precision at the 101 recalls, from the points that add a hit."""
    best = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALLS, side="left")
    found = np.zeros(len(RECALLS))
    reached = at < len(recall)
    found[reached] = best[at[reached]]
    return found


def _picker(level, column):
    """Mean in percent over the chosen thresholds and the classes that have lesions, (R,)."""

    def pick(values):
        part = values[:, level] if isinstance(level, slice) else values[:, [level]]
        part = part if column is None else part[:, :, [column]]
        known = ~np.isnan(part)
        return 100 * divide(np.where(known, part, 0).sum(axis=(1, 2)), known.sum(axis=(1, 2)))

    return pick


def _mean(values):
    """Mean in percent of the entries that have lesions; NaN when none has."""
    values = values[values > -1]
    return float(np.mean(values) * 100) if values.size else float("nan")


def _replicates_a_block(pairs):
    """So many that the candidates' weights stay below some hundred megabytes."""
    return int(np.clip(10_000_000 // max(len(pairs.candidates), 1), 1, 256))
