# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""FROC by plain loops over exact fractions: the oracle of test_froc.py.

It shares nothing with detrex_mammo: at every threshold it starts again from nothing, takes the
predictions of at least that score, and assigns them one pair at a time.
"""

from fractions import Fraction


def slow_froc(truth, predictions, rule, duplicates, denominator, class_aware, category=None):
    """The operating points of a small data set with integer boxes.

    Args:
        truth: image id -> list of (box, category).
        predictions: image id -> list of (box, score, category).
        rule: ``centre`` or a Fraction, the IoU threshold.
        category: only this category's lesions and predictions, None for all.

    Returns:
        list of (threshold, hit lesions, false positives), falling thresholds from None, which
        stands for "above every score".
    """
    scores = {
        score
        for items in predictions.values()
        for _, score, c in items
        if category is None or c == category
    }
    points = [(None, 0, 0)]
    for threshold in sorted(scores, reverse=True):
        hits = false = 0
        for image, items in predictions.items():
            chosen = [item for item in items if item[1] >= threshold]
            hit_of, touched = _assign(truth[image], chosen, rule, class_aware)
            for number, (_, _, c) in enumerate(chosen):
                if category is not None and c != category:
                    continue
                if number in hit_of:
                    hits += 1
                elif denominator == "all" or not truth[image]:
                    false += number not in touched or duplicates == "count"
        points.append((threshold, hits, false))
    return points


def slow_sensitivity(points, num_lesions, num_images, fppi):
    """Largest sensitivity with at most that many false positives per image, as a Fraction."""
    best = Fraction(0)
    for _, hits, false in points:
        if Fraction(false, num_images) <= fppi:
            best = max(best, Fraction(hits, num_lesions))
    return best


def _assign(lesions, chosen, rule, class_aware):
    """Prediction -> lesion, and the set of predictions that touch any lesion."""
    pairs = []
    for p, (pred_box, score, pred_class) in enumerate(chosen):
        for g, (lesion_box, lesion_class) in enumerate(lesions):
            if class_aware and pred_class != lesion_class:
                continue
            touches, fit = _touch(pred_box, lesion_box, rule)
            if touches:
                pairs.append((-score, -fit, pred_box, pred_class, lesion_box, lesion_class, p, g))
    pairs.sort()
    hit_of = {}
    for *_, p, g in pairs:
        if p not in hit_of and g not in hit_of.values():
            hit_of[p] = g
    return hit_of, {pair[-2] for pair in pairs}


def _touch(pred_box, lesion_box, rule):
    if rule == "centre":
        x, y = Fraction(pred_box[0] + pred_box[2], 2), Fraction(pred_box[1] + pred_box[3], 2)
        cx = Fraction(lesion_box[0] + lesion_box[2], 2)
        cy = Fraction(lesion_box[1] + lesion_box[3], 2)
        inside = lesion_box[0] <= x <= lesion_box[2] and lesion_box[1] <= y <= lesion_box[3]
        return inside, -((x - cx) ** 2 + (y - cy) ** 2)
    width = min(pred_box[2], lesion_box[2]) - max(pred_box[0], lesion_box[0])
    height = min(pred_box[3], lesion_box[3]) - max(pred_box[1], lesion_box[1])
    overlap = max(width, 0) * max(height, 0)
    union = _area(pred_box) + _area(lesion_box) - overlap
    iou = Fraction(overlap, union) if union else Fraction(0)
    return iou >= rule, iou


def _area(box):
    return (box[2] - box[0]) * (box[3] - box[1])
