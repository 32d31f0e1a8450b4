# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""COCO's average recalls and the largest F1, with intervals over patients.

Legend: T IoU thresholds, K classes, H distinct scores of hits, D predictions, R replicates, P
patients. What a replicate is stands in :mod:`~detrex_mammo.evaluation.coco_ap`.

- **AR**: share of lesions hit by the best ``max_dets`` predictions of an image and class; mean over
  IoU thresholds and over the classes that have lesions, in percent.
- **Largest F1**: 2 TP / (kept predictions + lesions) at the score where it is largest; in a
  replicate that score is sought anew, so the interval is of the largest F1, not of one threshold's.

Worked by hand: lesions of one class in three images, hit 0.9, false positive 0.8, hit 0.7. Recall
2/3; F1 2/4 at 0.9 and 4/6 at 0.7. With the first patient twice and the third not at all: recall
2/3, F1 4/5 at 0.9.
"""

import numpy as np
from scipy.sparse import coo_matrix

from detrex_mammo.evaluation.coco_match import HIT, LEFT_OUT, CocoMatching
from detrex_mammo.evaluation.estimate import Draws, Estimate, divide, estimate
from detrex_mammo.evaluation.study import Study


def average_recall(
    study: Study, matching: CocoMatching, max_dets: int, levels: slice, draws: Draws | None = None
) -> Estimate:
    """Average recall over the chosen IoU levels.

    Args:
        matching: of one area range.
        max_dets: best predictions of an image and class.
        levels: of the matching's thresholds.
    """
    pairs, where = matching.pairs, matching.pairs.candidates
    number = study.num_patients
    top, bottom = [], []
    for column in range(len(pairs.categories)):
        is_lesion = matching.counts & (pairs.box_class == column)
        bottom.append(_by_patient(study, pairs.box_image[is_lesion]))
        chosen = (pairs.class_index[where] == column) & (pairs.place[where] < max_dets)
        hit = (matching.outcome[levels][:, chosen] == HIT).sum(axis=0)
        images = pairs.image_index[where][chosen]
        top.append(np.bincount(study.patients[images], hit, number) / len(matching.outcome[levels]))
    of = f"{int(sum(b.sum() for b in bottom))} lesions"
    values = np.stack([*top, *bottom], axis=1) if top else np.zeros((number, 0))
    replicates = None if draws is None else _mean_ratio(draws.totals(values))
    return estimate(_mean_ratio(values.sum(axis=0)[None])[0], replicates, draws, of)


def largest_f1(
    study: Study,
    matching: CocoMatching,
    level: int,
    column: int | None = None,
    draws: Draws | None = None,
) -> Estimate:
    """Largest F1 of a class, or of all classes' predictions together.

    Args:
        matching: of the area range "all".
        level: row of the matching's thresholds.
        column: class, row of ``pairs.categories``.
    """
    pairs = matching.pairs
    of_class = lambda labels: np.ones(len(labels), bool) if column is None else labels == column  # noqa: E731
    is_lesion = matching.counts & of_class(pairs.box_class)
    lesions = _by_patient(study, pairs.box_image[is_lesion])
    of = f"{int(lesions.sum())} lesions"
    outcome = np.zeros(len(pairs.rows), dtype=np.int8)
    outcome[pairs.candidates] = matching.outcome[level]
    rows = np.flatnonzero(of_class(pairs.class_index))
    hit = outcome[rows] == HIT
    kept = hit | (matching.in_range[rows] & (outcome[rows] != LEFT_OUT))
    falling = -pairs.scores[rows]
    # predictions of one score go together: each belongs to the next score of a hit, or to none
    ends = np.unique(falling[hit])
    segment = np.searchsorted(ends, falling)
    kept &= segment < len(ends)
    patients = study.patients[pairs.image_index[rows]]
    shape = (len(ends), study.num_patients)
    sums = [
        coo_matrix((np.ones(c.sum(), np.int64), (segment[c], patients[c])), shape).tocsr()
        for c in (hit, kept)
    ]

    def f1(weights: np.ndarray) -> np.ndarray:
        """(R, P) -> (R,); NaN where no lesion was drawn."""
        columns = np.ascontiguousarray(weights.T, dtype=np.int64)
        hits, predicted = (np.cumsum(part @ columns, axis=0) for part in sums)
        drawn = (weights @ lesions).astype(np.float64)
        best = divide(2 * hits, predicted + drawn).max(axis=0, initial=0.0)
        return np.where(drawn > 0, best, np.nan)

    value = f1(np.ones((1, study.num_patients), dtype=np.int64))[0]
    replicates = None
    if draws is not None:
        blocks = draws.blocks(3 * len(ends) + study.num_patients)
        replicates = np.concatenate([f1(draws.weights[block]) for block in blocks])
    return estimate(value, replicates, draws, of)


def _by_patient(study: Study, images: np.ndarray) -> np.ndarray:
    return np.bincount(study.patients[images], minlength=study.num_patients)


def _mean_ratio(sums: np.ndarray) -> np.ndarray:
    """(R, 2K) tops and bottoms -> (R,) mean in percent of the ratios that are defined."""
    tops, bottoms = np.split(sums, 2, axis=1)
    ratio = divide(tops, bottoms)
    known = ~np.isnan(ratio)
    return 100 * divide(np.where(known, ratio, 0).sum(axis=1), known.sum(axis=1))
