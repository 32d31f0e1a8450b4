# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""FROC by plain loops over exact fractions: the oracle of the FROC's tests.

It shares nothing with detrex_mammo: at every threshold it starts again from nothing, takes the
predictions of at least that score, and assigns them one pair at a time.
"""

from fractions import Fraction
from typing import Any, NamedTuple


class Lesion(NamedTuple):
    """A box of the ground truth, whole xyxy; ``unit`` None is a unit of its own."""

    box: tuple
    category: int
    unit: Any = None
    is_ignored: bool = False
    slice: int | None = None
    num_slices: int | None = None


class Found(NamedTuple):
    """A prediction, whole xyxy."""

    box: tuple
    score: int
    category: int
    slice: int | None = None


def slow_froc(truth, predictions, rule, duplicates, denominator, class_aware, category=None):
    """The operating points of a small data set with integer boxes.

    Args:
        truth: image id -> list of Lesion.
        predictions: image id -> list of Found.
        rule: ``centre``, ``dbt`` or a Fraction, the IoU threshold.
        category: only this category's lesions and predictions, None for all.

    Returns:
        list of (threshold, hit units, false positives), falling thresholds from None, which
        stands for "above every score".
    """
    scores = {
        found.score
        for items in predictions.values()
        for found in items
        if category is None or found.category == category
    }
    points = [(None, 0, 0)]
    for threshold in sorted(scores, reverse=True):
        units, false = set(), 0
        for image, items in predictions.items():
            chosen = [item for item in items if item.score >= threshold]
            hit_of, left_out = assign(truth[image], chosen, rule, class_aware)
            for number, found in enumerate(chosen):
                if category is not None and found.category != category:
                    continue
                if number in hit_of:
                    place = hit_of[number]
                    units.add(unit_of(image, place, truth[image][place]))
                elif denominator == "all" or not truth[image]:
                    reason = left_out.get(number)
                    false += reason is None or (reason == "again" and duplicates == "count")
        points.append((threshold, len(units), false))
    return points


def unit_of(image, place, lesion):
    """The unit of a lesion, by its place in its image when it is one of its own."""
    return (image, place) if lesion.unit is None else lesion.unit


def slow_units(truth, category=None):
    """Number of units in the ground truth."""
    return len(
        {
            unit_of(image, place, lesion)
            for image, lesions in truth.items()
            for place, lesion in enumerate(lesions)
            if not lesion.is_ignored and category in (None, lesion.category)
        }
    )


def slow_fp_images(truth, denominator):
    """Number of images that false positives are divided by."""
    return sum(denominator == "all" or not lesions for lesions in truth.values())


def slow_sensitivity(points, num_units, num_images, fppi):
    """Largest sensitivity with at most that many false positives per image, as a Fraction."""
    best = Fraction(0)
    for _, hits, false in points:
        if Fraction(false, num_images) <= fppi:
            best = max(best, Fraction(hits, num_units))
    return best


def assign(lesions, chosen, rule, class_aware):
    """Prediction -> lesion hit; and prediction -> "again" or "ignored" for those left out."""
    pairs, left_out = [], {}
    for p, found in enumerate(chosen):
        for g, lesion in enumerate(lesions):
            if class_aware and found.category != lesion.category:
                continue
            touches, fit = touch(found, lesion, rule)
            if touches and lesion.is_ignored:
                left_out.setdefault(p, "ignored")
            elif touches:
                left_out[p] = "again"
                key = (-found.score, -fit, found.box, found.category, lesion.box, lesion.category)
                slices = tuple(s is None or s for s in (found.slice, lesion.slice))
                pairs.append((*key, slices, p, g))
    pairs.sort()
    hit_of = {}
    for *_, p, g in pairs:
        if p not in hit_of and g not in hit_of.values():
            hit_of[p] = g
    return hit_of, left_out


def touch(found, lesion, rule):
    box, truth = found.box, lesion.box
    x, y = Fraction(box[0] + box[2], 2), Fraction(box[1] + box[3], 2)
    cx, cy = Fraction(truth[0] + truth[2], 2), Fraction(truth[1] + truth[3], 2)
    squared = (x - cx) ** 2 + (y - cy) ** 2
    if rule == "centre":
        return truth[0] <= x <= truth[2] and truth[1] <= y <= truth[3], -squared
    if rule == "dbt":
        diagonal = (truth[2] - truth[0]) ** 2 + (truth[3] - truth[1]) ** 2
        near = squared <= 100**2 or 4 * squared <= diagonal
        if found.slice is not None and lesion.slice is not None:
            near &= 4 * abs(found.slice - lesion.slice) <= lesion.num_slices
        return near, -squared
    width = min(box[2], truth[2]) - max(box[0], truth[0])
    height = min(box[3], truth[3]) - max(box[1], truth[1])
    overlap = max(width, 0) * max(height, 0)
    whole = _area(box) if lesion.is_ignored else _area(box) + _area(truth) - overlap
    share = Fraction(overlap, whole) if whole else Fraction(0)
    return share >= rule, share


def _area(box):
    return (box[2] - box[0]) * (box[3] - box[1])
