# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Boxes as right or wrong, by the FROC matching's outcome: what a box-level threshold acts on.

Legend: N predictions of a data set, n marks of them, P patients.
"""

from dataclasses import dataclass

import numpy as np

from detrex_mammo.evaluation.matching import (
    DUPLICATE,
    FALSE_POSITIVE,
    TRUE_POSITIVE,
    Matching,
    Rule,
)
from detrex_mammo.evaluation.scores import check_choice
from detrex_mammo.evaluation.study import Study
from detrex_mammo.evaluation.tables import PredictionTable

DUPLICATES = ("ignore", "count")


@dataclass(frozen=True)
class Marks:
    """The boxes that are a hit or a false positive.

    Further hits on a lesion already hit are left out (``duplicates="ignore"``) or false positives
    (``"count"``); what the matching calls neither right nor wrong is left out.

    Attributes:
        rows: (n,) row of the prediction table.
        scores: (n,) float64.
        hit: (n,) bool, hits a lesion; otherwise it is a false positive.
        patients: (n,) int64 number of the patient.
        lesions: (P,) number of lesions of each patient.
        images: (P,) number of images of each patient.
        rule: name of the rule that says what a hit is.
        duplicates: ``ignore`` or ``count``.
        category: the class asked for; None is any.
    """

    rows: np.ndarray
    scores: np.ndarray
    hit: np.ndarray
    patients: np.ndarray
    lesions: np.ndarray
    images: np.ndarray
    rule: str
    duplicates: str
    category: int | None


def marks(
    study: Study,
    predictions: PredictionTable,
    matching: Matching,
    rule: Rule,
    duplicates: str = "ignore",
    category: int | None = None,
) -> Marks:
    """The marks of matched predictions, of one class or of all.

    Raises:
        UserError: an unknown way with duplicates.
    """
    check_choice("duplicates", duplicates, DUPLICATES)
    kept = np.isin(matching.outcome, (TRUE_POSITIVE, FALSE_POSITIVE))
    if duplicates == "count":
        kept |= matching.outcome == DUPLICATE
    of_class = np.ones(len(study.lesions), dtype=bool)
    if category is not None:
        kept &= predictions.categories == category
        of_class = study.lesions.categories == category
    rows = np.flatnonzero(kept)
    number = study.num_patients
    owner = study.patients[study.lesions.image_index[of_class]]
    return Marks(
        rows=rows,
        scores=predictions.scores[rows],
        hit=matching.outcome[rows] == TRUE_POSITIVE,
        patients=study.patients[predictions.image_index[rows]],
        lesions=np.bincount(owner, minlength=number),
        images=np.bincount(study.patients, minlength=number),
        rule=rule.name,
        duplicates=duplicates,
        category=category,
    )
