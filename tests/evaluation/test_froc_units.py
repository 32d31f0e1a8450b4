# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""FROC over lesions, breasts and cases; boxes that do not count; the distance rule: by hand."""

import numpy as np
import pytest

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.froc import FrocSettings, froc
from detrex_mammo.evaluation.study import read_study

LESION = (10, 10, 20, 20)
FAR = (80, 80, 90, 90)


def scored(*rows):
    """Predictions of one image, class 1, from (box, score)."""
    scores = [score for _, score in rows]
    return {"boxes": [box for box, _ in rows], "scores": scores, "categories": [1] * len(rows)}


def points(curve):
    """(false positives per image, sensitivity) of every operating point."""
    return list(zip(curve.fppi.tolist(), curve.sensitivity.tolist(), strict=True))


def by_distance(lesions, found):
    """Sensitivity of one image's predictions by the distance rule."""
    lesions = {"categories": [1] * len(lesions["boxes"]), **lesions}
    return froc({"a": lesions}, {"a": found}, FrocSettings("dbt")).overall.sensitivity_at(0)


def two_views(**more):
    """One lesion in CC and MLO of the left breast, another in the right CC, of one woman."""
    views = [(1, "L", "CC"), (2, "L", "MLO"), (3, "R", "CC")]
    images = [
        {"id": i, "laterality": side, "view": view, "patient_id": "P", "study_id": "S"}
        for i, side, view in views
    ]
    boxes = [
        {"image_id": i, "category_id": 1, "bbox": [10, 10, 10, 10], "lesion_id": name, **more}
        for i, name in ((1, "a"), (2, "a"), (3, "b"))
    ]
    return read_study(
        {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "mass"}]}
    )


@pytest.mark.parametrize(
    ("unit", "sensitivity", "number"),
    [("lesion_view", 1 / 3, 3), ("lesion", 1 / 2, 2), ("breast", 1 / 2, 2), ("case", 1, 1)],
)
def test_lesion_seen_in_two_views_and_hit_in_one(unit, sensitivity, number):
    """Lesion a is hit in CC only, b not at all: 1 of 3 boxes, 1 of 2 lesions, 1 of 2 breasts, 1 of
    1 case. The false positive in the MLO is 1 in 3 images with every unit."""
    found = {1: scored((LESION, 0.9)), 2: scored((FAR, 0.8))}
    curve = froc(two_views(), found, FrocSettings(unit=unit)).overall
    assert points(curve) == [(0, 0), (0, sensitivity), (1 / 3, sensitivity)]
    assert curve.num_units == number and curve.num_lesions == 3
    assert f"{number} {curve.settings.units}" in curve.counts_text()


def test_a_unit_is_hit_at_its_highest_score_and_once():
    """a is hit at 0.5 in CC and at 0.9 in MLO: as a lesion at 0.9; the CC's hit is then nothing."""
    found = {1: scored((LESION, 0.5)), 2: scored((LESION, 0.9))}
    for duplicates in ("ignore", "count"):
        settings = FrocSettings(unit="lesion", duplicates=duplicates)
        curve = froc(two_views(), found, settings).overall
        assert curve.thresholds.tolist() == [np.inf, 0.9, 0.5]
        assert points(curve) == [(0, 0), (0, 1 / 2), (0, 1 / 2)]


@pytest.mark.parametrize("key", ["iscrowd", "ignore"])
def test_boxes_that_do_not_count(key):
    """All boxes ignored: a prediction on one is nothing, one beside it is a false positive; and the
    images are neither with lesions nor without."""
    found = {1: scored((LESION, 0.9), (FAR, 0.8))}
    result = froc(two_views(**{key: 1}), found)
    assert result.overall.false_positives.tolist() == [0, 0, 1]
    assert result.overall.num_ignored == 1 and result.overall.num_lesions == 0
    assert result.overall.num_negative_images == 0


def test_ignored_regions_by_share_and_counted_lesions_first():
    """Region (0, 0, 100, 100), lesion LESION inside it. Box (10, 10, 20, 20) is a hit; a second one
    a duplicate, as lesions come first; (80, 80, 90, 90), all of it in the region, is ignored though
    its IoU is 1/100; (95, 0, 105, 10) lies in it by half: ignored at 0.5, false at 0.6."""
    boxes = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100], "iscrowd": 1}]
    boxes.append({"image_id": 1, "category_id": 1, "bbox": [10, 10, 10, 10]})
    content = {"images": [{"id": 1}], "annotations": boxes, "categories": [{"id": 1, "name": "m"}]}
    rows = [(LESION, 0.9), (LESION, 0.8), (FAR, 0.7), ((95, 0, 105, 10), 0.6)]
    found = {1: scored(*rows)}
    for rule, outcome in (("iou:0.5", [1, 2, 3, 3]), ("iou:0.6", [1, 2, 3, 0])):
        result = froc(read_study(content), found, FrocSettings(rule))
        assert result.matching.outcome.tolist() == outcome
    assert result.overall.num_duplicates == 1 and result.overall.num_ignored == 1


def test_distance_rule_by_hand():
    """Lesion (10, 10, 20, 20), centre (15, 15), half diagonal 7: 100 pixels count. (115, 15) is 100
    away, a hit; (116, 15) is not. Lesion (0, 0, 300, 400), half diagonal 250, centre (150, 200):
    (300, 400) is 250 away, a hit, (301, 400) is not."""
    cases = [(LESION, (115, 15), 1), (LESION, (116, 15), 0)]
    cases += [((0, 0, 300, 400), (300, 400), 1), ((0, 0, 300, 400), (301, 400), 0)]
    for lesion, (x, y), hit in cases:
        assert by_distance({"boxes": [lesion]}, scored(((x - 2, y - 2, x + 2, y + 2), 0.5))) == hit


def test_distance_rule_on_slices():
    """A volume of 40 slices, the lesion on slice 10: slices 0 to 20 are hits, 21 is not. Without a
    slice the prediction is on that of its image, and is a hit if that has none."""
    truth = {"boxes": [LESION], "slices": [10], "num_slices": [40]}
    for number, hit in ((0, 1), (20, 1), (21, 0), (None, 1)):
        slices = {} if number is None else {"slices": [number]}
        assert by_distance(truth, {**scored((LESION, 0.5)), **slices}) == hit
    lesion = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 10, 10], "slice": 10}
    for frame, hit in ((20, 1), (21, 0), (None, 1)):
        image = {"id": 1, "frame": frame, "num_slices": 40}
        content = {"images": [image], "annotations": [lesion]}
        study = read_study({**content, "categories": [{"id": 1, "name": "mass"}]})
        curve = froc(study, ({1: scored((LESION, 0.5))}), FrocSettings("dbt")).overall
        assert curve.sensitivity_at(0) == hit
    unknown = {"boxes": [LESION], "slices": [10]}
    with pytest.raises(UserError, match="num_slices"):
        by_distance(unknown, {**scored((LESION, 0.5)), "slices": [11]})
    assert by_distance(unknown, {**scored((LESION, 0.5)), "slices": [10]}) == 1


def test_boxes_told_apart_by_their_slice_only_are_taken_by_slice():
    """Volume of 40 slices, one box on slices 10 and 30. Predictions of one score on slices 20 (near
    both) and 30 (near the second): the one on 20 takes slice 10, so both are hit, in any order."""
    for lesions in ([10, 30], [30, 10]):
        for found in ([20, 30], [30, 20]):
            truth = {"boxes": [LESION] * 2, "slices": lesions, "num_slices": [40, 40]}
            marks = {**scored((LESION, 0.5), (LESION, 0.5)), "slices": found}
            assert by_distance(truth, marks) == 1
