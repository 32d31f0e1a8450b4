# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What a FROC curve and its bootstrap are made of: hits and false positives by falling score.

Legend: I images, G lesions (boxes), N predictions, P patients, T operating points, H units that
are hit, F false positives.
"""

from dataclasses import dataclass

import numpy as np

from detrex_mammo.evaluation.froc_settings import FrocSettings
from detrex_mammo.evaluation.matching import DUPLICATE, FALSE_POSITIVE, TRUE_POSITIVE, Matching
from detrex_mammo.evaluation.study import Study
from detrex_mammo.evaluation.tables import PredictionTable


@dataclass(frozen=True)
class Part:
    """The part of a data set that a curve is over; None is all.

    Attributes:
        images: (I,) bool, images whose false positives count, and that they are divided by.
        lesions: (G,) bool, boxes that can be hit.
        predictions: (N,) bool, predictions that can hit or be wrong.
    """

    images: np.ndarray | None = None
    lesions: np.ndarray | None = None
    predictions: np.ndarray | None = None

    @classmethod
    def of_category(cls, study: Study, predictions: PredictionTable, category: int) -> "Part":
        """Lesions and predictions of one category, over all images."""
        is_lesion = study.lesions.categories == category
        return cls(None, is_lesion, predictions.categories == category)

    @classmethod
    def of_images(cls, study: Study, predictions: PredictionTable, images: np.ndarray) -> "Part":
        """These images, (I,) bool, and all that lies in them."""
        return cls(images, images[study.lesions.image_index], images[predictions.image_index])

    def image_mask(self, study: Study) -> np.ndarray:
        """(I,) bool."""
        return np.ones(study.num_images, dtype=bool) if self.images is None else self.images

    def lesion_mask(self, study: Study) -> np.ndarray:
        """(G,) bool."""
        return np.ones(len(study.lesions), dtype=bool) if self.lesions is None else self.lesions

    def prediction_mask(self, predictions: PredictionTable) -> np.ndarray:
        """(N,) bool."""
        every = self.predictions is None
        return np.ones(len(predictions), dtype=bool) if every else self.predictions


@dataclass(frozen=True)
class Sweep:
    """A threshold moved from above every score to below every score.

    Attributes:
        thresholds: (T,) float64, falling, from +inf.
        hits: (T,) int64, units hit by predictions of at least that score.
        false: (T,) int64, false positives of at least that score.
        false_patients: (F,) int32, patient of every false positive, by falling score.
        hit_ranks: (H,) int64, not falling: false positives of at least the score that hits a unit.
        hit_patients: (H,) int64, patient of these units.
        patient_units: (P,) int64, units of each patient, hit or not.
        patient_images: (P,) int64, images of each patient that false positives are divided by.
    """

    thresholds: np.ndarray
    hits: np.ndarray
    false: np.ndarray
    false_patients: np.ndarray
    hit_ranks: np.ndarray
    hit_patients: np.ndarray
    patient_units: np.ndarray
    patient_images: np.ndarray


def sweep(
    study: Study,
    predictions: PredictionTable,
    matching: Matching,
    settings: FrocSettings,
    part: Part,
) -> Sweep:
    """Move the threshold over one part of the matched predictions."""
    counted = part.image_mask(study)
    if settings.denominator == "negative":
        counted = counted & study.is_negative
    rows = np.flatnonzero(part.prediction_mask(predictions))
    order = rows[np.argsort(-predictions.scores[rows], kind="stable")]
    del rows
    falling = predictions.scores[order]
    ends = np.flatnonzero(np.diff(falling, append=-np.inf) != 0)
    thresholds = np.concatenate([[np.inf], falling[ends]])
    del falling
    image_index = predictions.image_index[order]
    is_false = matching.outcome[order] == FALSE_POSITIVE
    if settings.duplicates == "count":
        is_false |= matching.outcome[order] == DUPLICATE
    is_false &= counted[image_index]
    false = _cumulate(is_false, ends)
    false_patients = study.patients.astype(np.int32)[image_index[is_false]]

    units = settings.unit_numbers(study)
    is_hit = _first_hits(predictions, matching, units, part.lesion_mask(study))[order]
    places = np.flatnonzero(is_hit)
    number = study.num_patients
    return Sweep(
        thresholds=thresholds,
        hits=_cumulate(is_hit, ends),
        false=false,
        false_patients=false_patients,
        hit_ranks=false[1 + np.searchsorted(ends, places)],
        hit_patients=study.patients[image_index[places]],
        patient_units=_units_of_patients(study, units, part.lesion_mask(study)),
        patient_images=np.bincount(study.patients[counted], minlength=number),
    )


def first_hit_scores(
    study: Study,
    predictions: PredictionTable,
    matching: Matching,
    settings: FrocSettings,
    part: Part,
) -> tuple[np.ndarray, np.ndarray]:
    """Score of the best hit on each unit of a part, -inf without one, and the unit's patient.

    Returns:
        tuple[np.ndarray, np.ndarray]: (U,) float64 and (U,) int64.
    """
    units, mask = settings.unit_numbers(study), part.lesion_mask(study)
    rows = np.flatnonzero(_first_hits(predictions, matching, units, mask))
    numbers, first = np.unique(units[mask], return_index=True)
    scores = np.full(len(numbers), -np.inf)
    place = np.searchsorted(numbers, units[matching.lesion[rows]])
    scores[place] = predictions.scores[rows]
    return scores, study.patients[study.lesions.image_index[mask][first]]


def _first_hits(predictions, matching, units, lesion_mask):
    """(N,) bool, predictions that are the highest-scored hit on their unit.

    A later hit on another box of the same unit (its other view, say) is neither a hit nor a false
    positive.
    """
    rows = np.flatnonzero(matching.outcome == TRUE_POSITIVE)
    rows = rows[lesion_mask[matching.lesion[rows]]]
    rows = rows[np.argsort(-predictions.scores[rows], kind="stable")]
    _, first = np.unique(units[matching.lesion[rows]], return_index=True)
    is_first = np.zeros(len(predictions), dtype=bool)
    is_first[rows[first]] = True
    return is_first


def _units_of_patients(study, units, lesion_mask):
    _, first = np.unique(units[lesion_mask], return_index=True)
    image = study.lesions.image_index[lesion_mask][first]
    return np.bincount(study.patients[image], minlength=study.num_patients)


def _cumulate(flags, ends):
    """Number of True up to each row of ``ends``, after a leading 0."""
    return np.concatenate([[0], np.cumsum(flags, dtype=np.int64)[ends]])
