# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Areas under the AFROC and the LROC curve: one number for a free-response reader.

Legend: I negative images, U units (lesions, by default in each view), J positive images, C
replicates, P patients. Areas lie in [0, 1].

- **AFROC** (Chakraborty & Winter, Radiology 1990): share of units hit against the share of
  negative images with a false positive, that is, whose highest score reaches the threshold. The
  area up to (1, 1) is the probability that a unit's hit has a higher score than the highest false
  positive of a negative image, ties counting half: the JAFROC figure of merit (Chakraborty &
  Berbaum, Medical Physics 2004). A unit without hit and an image without prediction have the score
  -inf, and two of them tie. A reader who marks nothing has 1/2; one who marks only false
  positives, one in each image, has 0.
- **LROC** (Swensson, Medical Physics 1996; Popescu, Medical Physics 2007): only the highest-scored
  prediction of an image counts. Share of positive images where it lies on a lesion against the
  share of negative images with a prediction of at least the score. The area is the probability
  that it does and has a higher score than the highest of a negative image, ties counting half. Of
  several highest predictions of one score the share that lies on lesions counts.

A prediction that is ignored (on a box that does not count) is left out; images with such boxes only
are in neither group. Negative images have no box of any class, also for the area of one class. The
denominator setting of the FROC has no part in these areas.

Worked by hand: negative images with the highest scores 0.5 and none; lesions hit at 0.9, at 0.5
and not at all. AFROC: 0.9 beats both (2), 0.5 ties one and beats one (1.5), no hit loses to one
and ties one (0.5): 4 / 6 = 2/3. On one positive image each, whose highest predictions are 0.9
(hit), 0.5 (hit) and 0.7 (wrong): LROC (2 + 1.5 + 0) / 6 = 7/12.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.estimate import Estimate
from detrex_mammo.evaluation.froc_events import Part, first_hit_scores
from detrex_mammo.evaluation.froc_settings import FrocSettings
from detrex_mammo.evaluation.matching import FALSE_POSITIVE, IGNORED, Matching
from detrex_mammo.evaluation.study import Study
from detrex_mammo.evaluation.tables import PredictionTable

_NUMBERS_A_BLOCK = 500_000


@dataclass(frozen=True)
class PairArea:
    """Share of (negative, positive) pairs in order, from weights of patients.

    Attributes:
        negative: (I,) float64 scores, -inf where there is none.
        negative_patients: (I,) int64.
        positive: (J,) float64.
        positive_patients: (J,) int64.
        gain: (J,) in [0, 1], what a pair in order is worth.
    """

    negative: np.ndarray
    negative_patients: np.ndarray
    positive: np.ndarray
    positive_patients: np.ndarray
    gain: np.ndarray

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """(C, P) int64 -> (C, 1); NaN without positives or negatives."""
        order = np.argsort(self.negative, kind="stable")
        rising, patients = self.negative[order], self.negative_patients[order]
        ends = [np.searchsorted(rising, self.positive, side=side) for side in ("left", "right")]
        area = np.full((len(weights), 1), np.nan)
        step = max(1, _NUMBERS_A_BLOCK // max(len(rising) + len(self.positive), 1))
        for start in range(0, len(weights), step):
            rows = slice(start, start + step)
            below = np.zeros((len(weights[rows]), len(rising) + 1), dtype=np.int64)
            np.cumsum(weights[rows][:, patients], axis=1, out=below[:, 1:])
            positive = weights[rows][:, self.positive_patients]
            pairs = 2 * below[:, -1] * positive.sum(axis=1)
            won = ((below[:, ends[0]] + below[:, ends[1]]) * positive) @ self.gain
            np.divide(won, pairs, out=area[rows, 0], where=pairs > 0)
        return area

    def value(self) -> float:
        """The area on the data themselves."""
        patients = np.concatenate([self.negative_patients, self.positive_patients, [0]])
        return float(self(np.ones((1, int(patients.max()) + 1), dtype=np.int64))[0, 0])


def afroc_pairs(
    study: Study,
    predictions: PredictionTable,
    matching: Matching,
    settings: FrocSettings,
    part: Part | None = None,
) -> PairArea:
    """What the area under the AFROC curve is made of."""
    part = part or Part()
    negative = study.is_negative & part.image_mask(study)
    false = part.prediction_mask(predictions) & (matching.outcome == FALSE_POSITIVE)
    highest = _highest(study, predictions, false)
    hits, patients = first_hit_scores(study, predictions, matching, settings, part)
    return PairArea(highest[negative], study.patients[negative], hits, patients, np.ones(len(hits)))


def lroc_pairs(
    study: Study, predictions: PredictionTable, matching: Matching, part: Part | None = None
) -> PairArea:
    """What the area under the LROC curve is made of."""
    part = part or Part()
    negative = study.is_negative & part.image_mask(study)
    positive = np.zeros(study.num_images, dtype=bool)
    positive[study.lesions.image_index[part.lesion_mask(study)]] = True
    counted = part.prediction_mask(predictions) & (matching.outcome != IGNORED)
    highest = _highest(study, predictions, counted)
    top = np.flatnonzero(counted)
    top = top[predictions.scores[top] == highest[predictions.image_index[top]]]
    images, located = predictions.image_index[top], matching.outcome[top] != FALSE_POSITIVE
    number = np.bincount(images, minlength=study.num_images)
    right = np.bincount(images[located], minlength=study.num_images)
    return PairArea(
        highest[negative],
        study.patients[negative],
        highest[positive],
        study.patients[positive],
        (right / np.maximum(number, 1))[positive],
    )


def area_figures(
    study: Study,
    predictions: PredictionTable,
    matching: Matching,
    settings: FrocSettings,
    bootstrap: Bootstrap | None = None,
    parts: Sequence[Part] = (Part(),),
) -> list[dict[str, Estimate]]:
    """``afroc`` and ``lroc`` area of matched predictions, with intervals if there is a bootstrap.

    Args:
        parts: of one class or of some images, see :class:`Part`; all in the same replicates.
    """
    pairs = []
    for part in parts:
        pairs.append(afroc_pairs(study, predictions, matching, settings, part))
        pairs.append(lroc_pairs(study, predictions, matching, part))
    replicates: Sequence[np.ndarray | None] = [None] * len(pairs)
    if bootstrap is not None:
        found = bootstrap.replicate(pairs, study.patients, study.is_positive)
        replicates = [values[:, 0] for values in found]
    of = (settings.units, "images with lesions") * len(parts)
    areas = [
        _estimate(area, f"{len(area.positive)} {what}, {len(area.negative)} images without", *rest)
        for area, what, *rest in zip(pairs, of, replicates, [bootstrap] * len(pairs), strict=True)
    ]
    return [
        {"afroc": one, "lroc": other} for one, other in zip(areas[::2], areas[1::2], strict=True)
    ]


def _estimate(area: PairArea, of: str, replicates, bootstrap: Bootstrap | None) -> Estimate:
    if bootstrap is None:
        return Estimate(area.value(), of=of)
    return Estimate(area.value(), *bootstrap.interval(replicates), of, replicates)


def _highest(study, predictions, chosen):
    """(I,) highest score of the chosen predictions in every image, -inf without any."""
    highest = np.full(study.num_images, -np.inf)
    np.maximum.at(highest, predictions.image_index[chosen], predictions.scores[chosen])
    return highest
