# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Which prediction hits which lesion: rules by name, and the greedy assignment.

Legend: G lesions, N predictions, K candidate pairs (a prediction and a lesion of its image).

The assignment, in one paragraph: within one image (and, when class-aware, one category) all
candidate pairs are taken in the order of falling score; a pair is accepted when its prediction
has hit nothing yet and its lesion is not hit yet. So a lesion is hit once, and a prediction hits
one lesion at most. Pairs of equal score go by fit, best first: the shortest distance between the
two centres for the rules ``centre`` and ``dbt``, the largest IoU for rule ``iou:t``. So one
prediction whose centre lies in two lesions hits the one with the nearer centre, or the other one if
that has already been hit by a prediction of higher score. What is still equal is ordered by the
coordinates, categories and slices of the two boxes: the order of the input never matters.

The rule ``dbt`` is that of the DBTex challenges on BCS-DBT (Konz et al., JAMA Network Open 2023,
https://doi.org/10.1001/jamanetworkopen.2023.0524): the two centres are at most half the lesion's
diagonal apart, or 100 pixels if that is more, and the two slices at most a quarter of the volume's
slices. Slices are compared where both sides have one; else only the centres are.

Boxes that do not count (crowds, ``ignore``) are matched last: a prediction that touches no counted
lesion but one of them is neither right nor wrong. With ``iou:t`` it touches such a region when at
least the share t of the prediction's own area lies in it, as COCO does for crowds, because a region
may be much larger than what was predicted in it; the other rules are the same for both.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.tables import LesionTable, PredictionTable

FALSE_POSITIVE, TRUE_POSITIVE, DUPLICATE, IGNORED = 0, 1, 2, 3
DBT_PIXELS = 100.0  # centres this near are a hit, however small the lesion is

# Candidate pairs are made in blocks of this many, so that memory stays flat.
_PAIRS_A_BLOCK = 500_000


Touch = Callable[[PredictionTable, LesionTable], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Rule:
    """A rule that says when a prediction touches a lesion.

    Attributes:
        name: the rule's name as a user writes it, ``centre``, ``iou:0.2`` or ``dbt``.
        text: the rule in words, for reports.
        touch: function of K paired predictions and lesions -> (K,) bool, (K,) fit (larger fits
            better).
        touch_ignored: the same for boxes that do not count.
    """

    name: str
    text: str
    touch: Touch
    touch_ignored: Touch


@dataclass(frozen=True)
class Matching:
    """The outcome of every prediction.

    Attributes:
        outcome: (N,) int8, FALSE_POSITIVE, TRUE_POSITIVE, DUPLICATE (touches lesions, but each of
            them is already hit by a prediction that comes before) or IGNORED (touches no lesion
            that counts, but a box that does not).
        lesion: (N,) int64, row of the lesion hit, -1 where none is.
    """

    outcome: np.ndarray
    lesion: np.ndarray


def parse_rule(name: str) -> Rule:
    """The rule of a name: ``centre``, ``dbt``, or ``iou:t`` with 0 < t <= 1.

    Raises:
        UserError: the name is not a rule.
    """
    if name == "centre":
        text = "the prediction's centre lies in the lesion's box"
        return Rule(name, text, _touch_by_centre, _touch_by_centre)
    if name == "dbt":
        text = (
            "the prediction's centre is at most half the lesion's diagonal, or "
            f"{DBT_PIXELS:g} pixels if that is more, from the lesion's, and its slice at most a "
            "quarter of the volume's slices"
        )
        return Rule(name, text, _touch_by_distance, _touch_by_distance)
    kind, _, value = str(name).partition(":")
    if kind == "iou" and value:
        try:
            threshold = float(value)
        except ValueError:
            threshold = float("nan")
        if 0 < threshold <= 1:
            text = f"IoU of prediction and lesion >= {threshold:g}"
            touch, touch_ignored = _touch_by(paired_iou, threshold), _touch_by(_share, threshold)
            return Rule(f"iou:{threshold:g}", text, touch, touch_ignored)
    raise UserError(
        f"rule was {name!r}, but a rule is 'centre' (prediction's centre in the lesion's box), "
        "'iou:t' with a number 0 < t <= 1, such as 'iou:0.2', or 'dbt' (distance of the centres)"
    )


def match_predictions(
    lesions: LesionTable,
    predictions: PredictionTable,
    rule: Rule,
    class_aware: bool = True,
    ignored: LesionTable | None = None,
) -> Matching:
    """Assign predictions to lesions, greedily by falling score (see the head of this file).

    Args:
        lesions: the boxes that count.
        class_aware: a prediction hits lesions, and is ignored by boxes, of its own category only.
        ignored (optional): the boxes that do not count, over the same images.

    Raises:
        UserError: rule ``dbt`` needs the number of slices of a volume that does not tell it.
    """
    outcome = np.full(len(predictions), FALSE_POSITIVE, dtype=np.int8)
    hit = np.full(len(predictions), -1, dtype=np.int64)
    if ignored is not None and len(ignored):
        touched = _touching_pairs(ignored, predictions, rule.touch_ignored, class_aware)
        outcome[touched[0]] = IGNORED
    prediction, lesion, fit = _touching_pairs(lesions, predictions, rule.touch, class_aware)
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


def _touch_by_centre(predictions, lesions):
    """Centre of the prediction inside the lesion's box, its edges included."""
    boxes, centres = lesions.boxes, _centres(predictions.boxes)
    inside = (centres >= boxes[:, :2]) & (centres <= boxes[:, 2:])
    distance = ((centres - _centres(boxes)) ** 2).sum(axis=1)
    return inside.all(axis=1), -distance


def _touch_by_distance(predictions, lesions):
    """The rule of BCS-DBT, its bounds included; squares are compared, so that bounds are exact."""
    distance = ((_centres(predictions.boxes) - _centres(lesions.boxes)) ** 2).sum(axis=1)
    diagonal = ((lesions.boxes[:, 2:] - lesions.boxes[:, :2]) ** 2).sum(axis=1)
    near = distance <= np.maximum(diagonal / 4, DBT_PIXELS**2)
    if predictions.slices is not None and lesions.slices is not None:
        apart = np.abs(predictions.slices - lesions.slices)  # NaN where either has none
        unknown = np.full(len(lesions), np.nan)
        number = unknown if lesions.num_slices is None else lesions.num_slices
        if np.isnan(number[apart > 0]).any():
            raise UserError(
                "rule 'dbt' compares slices with a quarter of the volume's, but a lesion with a "
                "slice has no num_slices: add num_slices to its image"
            )
        near &= np.isnan(apart) | (apart <= number / 4) | (apart == 0)
    return near, -distance


def _touch_by(measure, threshold):
    """At least so much of a measure of paired boxes."""

    def touch(predictions, lesions):
        value = measure(predictions.boxes, lesions.boxes)
        return value >= threshold, value

    return touch


def _centres(boxes):
    return (boxes[:, :2] + boxes[:, 2:]) / 2


def paired_iou(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """IoU of row k with row k, (K,); two empty boxes have IoU 0. Boxes (K, 4) xyxy."""
    overlap = _overlap(boxes1, boxes2)
    union = _area(boxes1) + _area(boxes2) - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def _share(boxes, regions):
    """Share of the area of row k's box that lies in row k's region, (K,); 0 for an empty box."""
    overlap, area = _overlap(boxes, regions), _area(boxes)
    return np.divide(overlap, area, out=np.zeros_like(overlap), where=area > 0)


def _overlap(boxes1, boxes2):
    top_left = np.maximum(boxes1[:, :2], boxes2[:, :2])
    bottom_right = np.minimum(boxes1[:, 2:], boxes2[:, 2:])
    return np.clip(bottom_right - top_left, 0, None).prod(axis=1)


def _area(boxes):
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _touching_pairs(lesions, predictions, touch, class_aware):
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
        touches, fit = touch(predictions.take(prediction), lesions.take(lesion))
        found.append((prediction[touches], lesion[touches], fit[touches]))
        start = stop
    if not found:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))


def _pair_order(lesions, predictions, prediction, lesion, fit):
    """Falling score, then best fit, then coordinates; (K,) indices."""
    lesions, predictions = lesions.take(lesion), predictions.take(prediction)
    keys = [table.slices for table in (lesions, predictions) if table.slices is not None]
    keys += [lesions.categories, *lesions.boxes.T[::-1]]
    keys += [predictions.categories, *predictions.boxes.T[::-1]]
    return np.lexsort([*keys, -fit, -predictions.scores])


def _is_first(rows):
    """True where a value of ``rows`` (K,) appears for the first time."""
    first = np.zeros(rows.size, dtype=bool)
    first[np.unique(rows, return_index=True)[1]] = True
    return first
