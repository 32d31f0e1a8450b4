# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""From boxes to one score and one label an image, a breast or a case.

Legend: I images, N predictions, U units (images, breasts or cases), P patients.

- **Image**: the highest score of its boxes (of the class asked for, or of any); an image without
  boxes has the score ``empty``, 0.
- **Breast**: the highest (``max``) or mean (``mean``) score of its images.
- **Case** (one study of a patient): the highest score of its breasts.
- **Positive**: a unit with a lesion (of the class asked for, or of any). A unit without one but
  with an ``ignore`` box or a crowd region is neither positive nor negative: it is left out, and
  the number of those is given.

Worked by hand: a patient's left breast has CC with boxes 0.9 and 0.4 and MLO with 0.3, her right
breast CC without boxes. Image scores 0.9, 0.3, 0; breasts by ``max`` 0.9 and 0, by ``mean`` 0.6
and 0; the case has 0.9 and 0.6.
"""

from dataclasses import dataclass

import numpy as np

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.study import Study
from detrex_mammo.evaluation.tables import PredictionTable

LEVELS = ("image", "breast", "case")
VIEWS = ("max", "mean")


@dataclass(frozen=True)
class UnitScores:
    """Score and label of every unit.

    Attributes:
        level: ``image``, ``breast`` or ``case``.
        views: how a breast's score is made of its images' scores, ``max`` or ``mean``.
        category: the class asked for; None is any.
        units: (U,) int64 number of the unit: row of ``study.images``, or number of the breast or
            case.
        scores: (U,) float64.
        positive: (U,) bool.
        patients: (U,) int64 number of the patient.
        num_patients: P, of the whole study.
        num_left_out: units that are neither positive nor negative.
    """

    level: str
    views: str
    category: int | None
    units: np.ndarray
    scores: np.ndarray
    positive: np.ndarray
    patients: np.ndarray
    num_patients: int
    num_left_out: int

    def __len__(self) -> int:
        return len(self.scores)


def unit_scores(
    study: Study,
    predictions: PredictionTable,
    level: str = "image",
    views: str = "max",
    category: int | None = None,
    empty: float = 0.0,
) -> UnitScores:
    """Score and label of every image, breast or case of a study (see the head of this file).

    Args:
        empty: score of an image without boxes; no prediction may have less.

    Raises:
        UserError: an unknown level, pooling of views or category, or a score below ``empty``.
    """
    check_choice("level", level, LEVELS)
    check_choice("views", views, VIEWS)
    if category is not None and category not in study.category_names:
        known = dict(sorted(study.category_names.items()))
        raise UserError(f"category was {category!r}, but the data set's are {known}")
    scores = image_scores(predictions, study.num_images, category, empty)
    positive = _has_box(study.lesions, category)
    unclear = _has_box(study.ignored, category)
    owner = np.arange(study.num_images)
    if level != "image":
        owner = study.breasts
        scores = _pooled(scores, owner, views)
    if level == "case":
        first = np.unique(study.breasts, return_index=True)[1]
        scores, owner = _pooled(scores, study.cases[first], "max"), study.cases
    number = len(scores)
    positive = np.bincount(owner[positive], minlength=number) > 0
    unclear = (np.bincount(owner[unclear], minlength=number) > 0) & ~positive
    patients = np.zeros(number, dtype=np.int64)
    patients[owner] = study.patients
    kept = np.flatnonzero(~unclear)
    return UnitScores(
        level=level,
        views=views,
        category=category,
        units=kept,
        scores=scores[kept],
        positive=positive[kept],
        patients=patients[kept],
        num_patients=study.num_patients,
        num_left_out=int(unclear.sum()),
    )


def image_scores(
    predictions: PredictionTable, num_images: int, category: int | None = None, empty: float = 0.0
) -> np.ndarray:
    """Highest score of each image's boxes, (I,) float64; ``empty`` where there is none.

    Raises:
        UserError: a score below ``empty``: a box would then lower an image's rank.
    """
    chosen = slice(None) if category is None else predictions.categories == category
    found = predictions.scores[chosen]
    if len(found) and found.min() < empty:
        raise UserError(
            f"a prediction has the score {found.min():g}, but an image without predictions has "
            f"{empty:g}, which must be the lowest: give scores in [0, 1]"
        )
    scores = np.full(num_images, float(empty))
    np.maximum.at(scores, predictions.image_index[chosen], found)
    return scores


def check_choice(name: str, value, allowed) -> None:
    """Refuse a value that is not among the allowed ones.

    Raises:
        UserError: naming the setting, its value and what is allowed.
    """
    if value not in allowed:
        raise UserError(f"{name} was {value!r}, but it is one of {', '.join(allowed)}")


def _has_box(table, category):
    chosen = slice(None) if category is None else table.categories == category
    return np.bincount(table.image_index[chosen], minlength=table.num_images) > 0


def _pooled(scores, owner, how):
    """Maximum or mean of the scores of each owner, numbered from 0 without gaps."""
    number = int(owner.max()) + 1 if len(owner) else 0
    if how == "mean":
        return np.bincount(owner, scores, number) / np.bincount(owner, minlength=number)
    pooled = np.full(number, -np.inf)
    np.maximum.at(pooled, owner, scores)
    return pooled
