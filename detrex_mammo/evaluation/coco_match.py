# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""COCO's matching of a whole data set in numpy: every image and class at once.

Legend: I images, K classes, N predictions, D of them kept, C of these candidates (they overlap a
box of their image and class by the lowest threshold at least), T IoU thresholds, G boxes (lesions,
then ignored ones).

The rules are those of COCO's own evaluation (https://cocodataset.org/#detection-eval), and
pycocotools gives the same outcomes, ties included:

- Of an image and class the best ``max_dets`` predictions are kept; equal scores in the order of
  image ids and then of the input.
- They are taken in that order. Each takes the box of its image and class with the largest IoU,
  at least the threshold, that is not taken; boxes that count come before those that do not; of
  equal IoU the later one.
- Boxes that do not count: crowd regions and ``ignore`` boxes (any number of predictions may take
  one, and the overlap is measured against the prediction's area alone), and lesions whose area is
  outside the area range. A prediction that took one is left out.
- A prediction that took none is a false positive, or left out if its own area is outside the range.
"""

from dataclasses import dataclass

import numpy as np

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.study import Study
from detrex_mammo.evaluation.tables import PredictionTable

AREAS = {"all": (0.0, 1e10), "small": (0.0, 1024.0), "medium": (1024.0, 9216.0)}
AREAS["large"] = (9216.0, 1e10)
MISS, HIT, LEFT_OUT = 0, 1, 2
_PAIRS_A_BLOCK = 2_000_000


@dataclass(frozen=True)
class CocoPairs:
    """Kept predictions in COCO's order, and their overlaps; the same for every area range.

    Attributes:
        categories: K category ids, rising.
        rows: (D,) row of the prediction table, by falling score.
        scores: (D,) float64.
        image_index: (D,) image.
        class_index: (D,) class, row of ``categories``.
        place: (D,) place among the predictions of its image and class, from 0.
        areas: (D,) float64 pixels.
        candidates: (C,) rising rows of this table.
        pair_candidate, pair_box, pair_iou: one entry a pair: row of ``candidates``, box, IoU.
        box_image, box_class, box_area: (G,) of the boxes.
        is_crowd: (G,) bool, crowd region or ``ignore`` box.
    """

    categories: np.ndarray
    rows: np.ndarray
    scores: np.ndarray
    image_index: np.ndarray
    class_index: np.ndarray
    place: np.ndarray
    areas: np.ndarray
    candidates: np.ndarray
    pair_candidate: np.ndarray
    pair_box: np.ndarray
    pair_iou: np.ndarray
    box_image: np.ndarray
    box_class: np.ndarray
    box_area: np.ndarray
    is_crowd: np.ndarray


@dataclass(frozen=True)
class CocoMatching:
    """What became of every kept prediction, for one area range.

    Attributes:
        pairs: the predictions.
        thresholds: (T,) IoU.
        outcome: (T, C) int8 of the candidates: MISS, HIT or LEFT_OUT; the other predictions took
            nothing.
        in_range: (D,) bool, the prediction's own area is in the range.
        counts: (G,) bool, the box counts.
    """

    pairs: CocoPairs
    thresholds: np.ndarray
    outcome: np.ndarray
    in_range: np.ndarray
    counts: np.ndarray


def dets_scored(max_dets: int) -> list[int]:
    """Predictions an image and class that the average recalls are at: COCO's 1, 10, 100.

    Raises:
        UserError: ``max_dets`` is below 1.
    """
    if max_dets < 1:
        raise UserError(f"max_dets was {max_dets}, but at least 1 prediction an image is scored")
    return [*(number for number in (1, 10) if number < max_dets), max_dets]


def coco_pairs(
    study: Study, predictions: PredictionTable, lowest_iou: float, max_dets: int = 100
) -> CocoPairs:
    """Order the predictions, keep the best of each image and class, and find overlaps.

    Args:
        lowest_iou: pairs below it are left out.
        max_dets: predictions kept of an image and class.

    Raises:
        UserError: ``max_dets`` is below 1.
    """
    max_dets = dets_scored(max_dets)[-1]
    categories = np.array(sorted(study.category_names), dtype=np.int64)
    known = np.flatnonzero(np.isin(predictions.categories, categories))
    order = known[_image_ranks(study)[predictions.image_index[known]].argsort(kind="stable")]
    order = order[np.argsort(-predictions.scores[order], kind="stable")]
    class_index = np.searchsorted(categories, predictions.categories[order])
    group = predictions.image_index[order] * len(categories) + class_index
    place = _places(group)
    kept = place < max_dets
    order, group = order[kept], group[kept]
    boxes = predictions.boxes[order]
    truth = _boxes(study, categories)
    candidate, box, iou = _overlaps(boxes, group, truth, len(categories), lowest_iou)
    candidates, pair_candidate = np.unique(candidate, return_inverse=True)
    return CocoPairs(
        categories=categories,
        rows=order,
        scores=predictions.scores[order],
        image_index=predictions.image_index[order].astype(np.int32),
        class_index=class_index[kept].astype(np.int32),
        place=place[kept].astype(np.int32),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        candidates=candidates,
        pair_candidate=pair_candidate,
        pair_box=box,
        pair_iou=iou,
        **{key: truth[key] for key in ("box_image", "box_class", "box_area", "is_crowd")},
    )


def match(pairs: CocoPairs, thresholds: np.ndarray, area: str = "all") -> CocoMatching:
    """The outcome of every candidate at every IoU threshold, in one area range.

    The predictions of one image and class come one after the other; those of all images and
    classes that come at the same place go together.
    """
    low, high = AREAS[area]
    counts = ~pairs.is_crowd & (pairs.box_area >= low) & (pairs.box_area <= high)
    number = len(pairs.candidates)
    where = pairs.candidates
    group = pairs.image_index[where].astype(np.int64) * len(pairs.categories)
    group += pairs.class_index[where]
    turn = _places(group)[pairs.pair_candidate]
    # within a prediction: boxes that count, then the largest IoU, then the later box
    keys = (-pairs.pair_box, -pairs.pair_iou, ~counts[pairs.pair_box], pairs.pair_candidate, turn)
    order = np.lexsort(keys)
    candidate, box = pairs.pair_candidate[order], pairs.pair_box[order]
    enough = pairs.pair_iou[order] >= np.minimum(thresholds, 1 - 1e-10)[:, None]
    outcome = np.full((len(thresholds), number), MISS, dtype=np.int8)
    taken = np.zeros((len(thresholds), len(counts)), dtype=bool)
    starts = np.flatnonzero(np.diff(turn[order], prepend=-1))
    for start, stop in zip(starts, [*starts[1:], len(turn)], strict=False):
        _take(slice(start, stop), candidate, box, enough, taken, outcome, pairs.is_crowd, counts)
    in_range = (pairs.areas >= low) & (pairs.areas <= high)
    return CocoMatching(pairs, thresholds, outcome, in_range, counts)


def _take(part, candidate, box, enough, taken, outcome, is_crowd, counts):
    """Let every prediction of one turn take its first free box, at every threshold."""
    candidate, box = candidate[part], box[part]
    starts = np.flatnonzero(np.diff(candidate, prepend=-1))
    free = enough[:, part] & (is_crowd[box] | ~taken[:, box])
    number = len(box)
    first = np.minimum.reduceat(np.where(free, np.arange(number), number), starts, axis=1)
    level, which = np.nonzero(first < number)
    chosen = box[first[level, which]]
    taken[level, chosen] = True
    outcome[level, candidate[starts][which]] = np.where(counts[chosen], HIT, LEFT_OUT)


def _image_ranks(study):
    """Place of each image in the order of ids, (I,); as they come where ids do not compare."""
    ids = study.lesions.image_ids
    ranks = np.arange(len(ids))
    try:
        order = sorted(range(len(ids)), key=ids.__getitem__)
    except TypeError:
        return ranks
    ranks[order] = np.arange(len(ids))
    return ranks


def _places(group):
    """How many earlier rows are of the same group, (len(group),)."""
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    lengths = np.diff(np.append(starts, len(group)))
    places = np.empty(len(group), dtype=np.int64)
    places[order] = np.arange(len(group)) - np.repeat(starts, lengths)
    return places


def _boxes(study, categories):
    """Lesions, then ignored boxes, as one table of columns; those of no known class left out."""
    tables = (study.lesions, study.ignored)
    boxes = np.concatenate([table.boxes for table in tables])
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    area = sides.copy()
    for row, entry in enumerate(study.lesion_entries):
        area[row] = entry.get("area", sides[row])
    category = np.concatenate([table.categories for table in tables])
    known = np.isin(category, categories)
    columns = {
        "boxes": boxes,
        "sides": sides,
        "box_area": area,
        "box_image": np.concatenate([table.image_index for table in tables]),
        "box_class": np.searchsorted(categories, category),
        "is_crowd": np.arange(len(boxes)) >= len(study.lesions),
    }
    return {name: column[known] for name, column in columns.items()}


def _overlaps(boxes, group, truth, num_classes, lowest):
    """Pairs of one image and class with an IoU of ``lowest`` at least: prediction, box, IoU."""
    box_group = truth["box_image"] * num_classes + truth["box_class"]
    by_group = np.argsort(box_group, kind="stable")
    number = max(group.max(initial=-1), box_group.max(initial=-1)) + 1
    each = np.bincount(box_group, minlength=number)
    first = np.concatenate([[0], np.cumsum(each)])[:-1]
    near = np.flatnonzero(each[group])
    ends = np.cumsum(each[group[near]])
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    start = 0
    while start < len(near):
        done = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, done + _PAIRS_A_BLOCK, side="right")), start + 1)
        rows = near[start:stop]
        times = each[group[rows]]
        prediction = np.repeat(rows, times)
        nth = np.arange(len(prediction)) - np.repeat(ends[start:stop] - times - done, times)
        box = by_group[first[group[prediction]] + nth]
        iou = _coco_iou(boxes[prediction], truth, box)
        close = iou >= min(lowest, 1 - 1e-10)
        found.append((prediction[close], box[close], iou[close]))
        start = stop
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))


def _coco_iou(boxes, truth, rows):
    """COCO's overlap: IoU, or the part of the prediction that lies in a crowd region."""
    other = truth["boxes"][rows]
    sides = np.minimum(boxes[:, 2:], other[:, 2:]) - np.maximum(boxes[:, :2], other[:, :2])
    overlap = np.where((sides > 0).all(axis=1), sides.prod(axis=1), 0.0)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    whole = np.where(truth["is_crowd"][rows], area, area + truth["sides"][rows] - overlap)
    return np.divide(overlap, whole, out=np.zeros_like(overlap), where=overlap > 0)
