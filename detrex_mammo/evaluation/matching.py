# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Which prediction hits which lesion: rules by name, and the greedy assignment.

Legend: G lesions, N predictions, K candidate pairs (a prediction that touches a lesion).

The assignment, in one paragraph: within one image (and, when class-aware, one category) all
candidate pairs are taken in the order of falling score; a pair is accepted when its prediction
has hit nothing yet and its lesion is not hit yet. So a lesion is hit once, and a prediction hits
one lesion at most. Pairs of equal score go by fit, best first: the shortest distance between the
two centres for rule ``centre``, the largest IoU for rule ``iou:t``. So one prediction whose
centre lies in two lesions hits the one with the nearer centre, or the other one if that has
already been hit by a prediction of higher score. What is still equal is ordered by the
coordinates and categories of the two boxes: the order of the input never matters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.tables import LesionTable, PredictionTable

FALSE_POSITIVE, TRUE_POSITIVE, DUPLICATE = 0, 1, 2

# Candidate pairs are made in blocks of this many, so that memory stays flat.
_PAIRS_A_BLOCK = 2_000_000


@dataclass(frozen=True)
class Rule:
    """A rule that says when a prediction touches a lesion.

    Attributes:
        name: the rule's name as a user writes it, ``centre`` or ``iou:0.2``.
        text: the rule in words, for reports.
        touch: function of paired boxes, (K, 4) and (K, 4) xyxy -> (K,) bool, (K,) fit
            (larger fits better).
    """

    name: str
    text: str
    touch: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Matching:
    """The outcome of every prediction.

    Attributes:
        outcome: (N,) int8, FALSE_POSITIVE, TRUE_POSITIVE or DUPLICATE (touches lesions, but each
            of them is already hit by a prediction that comes before).
        lesion: (N,) int64, row of the lesion hit, -1 where none is.
    """

    outcome: np.ndarray
    lesion: np.ndarray


def parse_rule(name: str) -> Rule:
    """The rule of a name: ``centre`` or ``iou:t`` with 0 < t <= 1.

    Raises:
        UserError: the name is not a rule.
    """
    if name == "centre":
        return Rule(name, "the prediction's centre lies in the lesion's box", _touch_by_centre)
    kind, _, value = str(name).partition(":")
    if kind == "iou" and value:
        try:
            threshold = float(value)
        except ValueError:
            threshold = float("nan")
        if 0 < threshold <= 1:
            text = f"IoU of prediction and lesion >= {threshold:g}"
            return Rule(f"iou:{threshold:g}", text, _touch_by_iou(threshold))
    raise UserError(
        f"rule was {name!r}, but a rule is 'centre' (prediction's centre in the lesion's box) or "
        "'iou:t' with a number 0 < t <= 1, such as 'iou:0.2'"
    )


def match_predictions(
    lesions: LesionTable, predictions: PredictionTable, rule: Rule, class_aware: bool = True
) -> Matching:
    """Assign predictions to lesions, greedily by falling score (see the head of this file).

    Args:
        class_aware: a prediction hits lesions of its own category only.
    """
    outcome = np.full(len(predictions), FALSE_POSITIVE, dtype=np.int8)
    hit = np.full(len(predictions), -1, dtype=np.int64)
    prediction, lesion, fit = _candidate_pairs(lesions, predictions, rule, class_aware)
    outcome[prediction] = DUPLICATE
    order = _pair_order(lesions, predictions, prediction, lesion, fit)
    prediction, lesion = prediction[order], lesion[order]
    while prediction.size:
        # A pair that comes first both for its prediction and for its lesion is always accepted by
        # the one-by-one assignment, so all such pairs can be accepted at once.
        accept = _is_first(prediction) & _is_first(lesion)
        outcome[prediction[accept]] = TRUE_POSITIVE
        hit[prediction[accept]] = lesion[accept]
        keep = ~np.isin(prediction, prediction[accept]) & ~np.isin(lesion, lesion[accept])
        prediction, lesion = prediction[keep], lesion[keep]
    return Matching(outcome, hit)


def _touch_by_centre(pred_boxes, lesion_boxes):
    """Centre of the prediction inside the lesion's box, its edges included."""
    pred_centres = (pred_boxes[:, :2] + pred_boxes[:, 2:]) / 2
    lesion_centres = (lesion_boxes[:, :2] + lesion_boxes[:, 2:]) / 2
    inside = (pred_centres >= lesion_boxes[:, :2]) & (pred_centres <= lesion_boxes[:, 2:])
    distance = ((pred_centres - lesion_centres) ** 2).sum(axis=1)
    return inside.all(axis=1), -distance


def _touch_by_iou(threshold):
    def touch(pred_boxes, lesion_boxes):
        iou = paired_iou(pred_boxes, lesion_boxes)
        return iou >= threshold, iou

    return touch


def paired_iou(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """IoU of row k with row k, (K,); two empty boxes have IoU 0. Boxes (K, 4) xyxy."""
    top_left = np.maximum(boxes1[:, :2], boxes2[:, :2])
    bottom_right = np.minimum(boxes1[:, 2:], boxes2[:, 2:])
    overlap = np.clip(bottom_right - top_left, 0, None).prod(axis=1)
    area1 = (boxes1[:, 2:] - boxes1[:, :2]).prod(axis=1)
    area2 = (boxes2[:, 2:] - boxes2[:, :2]).prod(axis=1)
    union = area1 + area2 - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def _candidate_pairs(lesions, predictions, rule, class_aware):
    """All pairs of one image that touch: rows of predictions, rows of lesions, fit; (K,) each."""
    by_image = np.argsort(lesions.image_index, kind="stable")
    counts = np.bincount(lesions.image_index, minlength=lesions.num_images)
    first = np.concatenate([[0], np.cumsum(counts)])[:-1]
    pairs_each = counts[predictions.image_index] if len(predictions) else np.zeros(0, np.int64)
    ends = np.cumsum(pairs_each)
    found = []
    start = 0
    while start < len(predictions):
        done = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, done + _PAIRS_A_BLOCK, side="right")), start + 1)
        number = pairs_each[start:stop]
        prediction = np.repeat(np.arange(start, stop), number)
        nth = np.arange(prediction.size) - np.repeat(ends[start:stop] - number - done, number)
        lesion = by_image[first[predictions.image_index[prediction]] + nth]
        if class_aware:
            same = predictions.categories[prediction] == lesions.categories[lesion]
            prediction, lesion = prediction[same], lesion[same]
        touches, fit = rule.touch(predictions.boxes[prediction], lesions.boxes[lesion])
        found.append((prediction[touches], lesion[touches], fit[touches]))
        start = stop
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))


def _pair_order(lesions, predictions, prediction, lesion, fit):
    """Falling score, then best fit, then coordinates; (K,) indices."""
    keys = [lesions.categories[lesion], *lesions.boxes[lesion].T[::-1]]
    keys += [predictions.categories[prediction], *predictions.boxes[prediction].T[::-1]]
    return np.lexsort([*keys, -fit, -predictions.scores[prediction]])


def _is_first(rows):
    """True where a value of ``rows`` (K,) appears for the first time."""
    first = np.zeros(rows.size, dtype=bool)
    first[np.unique(rows, return_index=True)[1]] = True
    return first
