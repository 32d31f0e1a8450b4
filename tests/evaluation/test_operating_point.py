# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Thresholds chosen on validation, kept in a checkpoint and applied on test."""

import io
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.estimate import Draws, draw_patients
from detrex_mammo.evaluation.froc import FrocSettings, froc
from detrex_mammo.evaluation.marks import Marks, marks
from detrex_mammo.evaluation.matching import match_predictions
from detrex_mammo.evaluation.matching import parse_rule as parse_hit_rule
from detrex_mammo.evaluation.operating_point import (
    CHECKPOINT_KEY,
    OperatingPoint,
    apply_to_boxes,
    apply_to_units,
    choose_for_boxes,
    choose_for_units,
    parse_rule,
    read_operating_points,
    with_operating_points,
)
from detrex_mammo.evaluation.predictions import predictions_from_records
from detrex_mammo.evaluation.scores import UnitScores
from detrex_mammo.evaluation.study import read_study
from tests.evaluation.random_annotations import random_annotations, random_records


def units(scores, positive, level="image"):
    rows = np.arange(len(scores))
    scores, positive = np.asarray(scores, float), np.asarray(positive, bool)
    return UnitScores(level, "max", None, rows, scores, positive, rows, len(rows), 0)


def box_marks(scores, hit, lesions, images=4):
    """All of one patient."""
    scores, hit = np.asarray(scores, float), np.asarray(hit, bool)
    rows = np.arange(len(scores))
    counts = np.array([lesions]), np.array([images])
    return Marks(rows, scores, hit, np.zeros(len(rows), int), *counts, "centre", "ignore", None)


HAND = units([0.9, 0.8, 0.7, 0.2], [1, 0, 1, 0])
# 4 lesions and 4 images: hits at 0.9, 0.7 and 0.5, false positives at 0.8 and 0.6
MARKS = box_marks([0.5, 0.9, 0.6, 0.8, 0.7], [1, 1, 0, 0, 1], 4)


@pytest.mark.parametrize(
    ("rule", "threshold", "value"),
    [
        ("sensitivity:0.5", 0.9, 0.5),
        ("sensitivity:0.9", 0.7, 1),
        ("specificity:1", 0.9, 1),
        ("specificity:0.5", 0.7, 0.5),
        ("youden", 0.9, 0.5),
        ("f1", 0.7, 0.8),
    ],
)
def test_images_by_hand(rule, threshold, value):
    """The head of operating_point.py."""
    point = choose_for_units(HAND, rule, "val")
    assert (point.threshold, point.value) == (threshold, value)
    assert (point.level, point.dataset) == ("image", "val")
    assert point.counts == {"positive images": 2, "negative images": 2}


@pytest.mark.parametrize(
    ("rule", "threshold", "value"),
    [
        ("fppi:0.1", 0.9, 0),
        ("fppi:0.25", 0.7, 0.25),
        ("fppi:0.49", 0.7, 0.25),
        ("fppi:4", 0.5, 0.5),
        ("sensitivity:0.5", 0.7, 0.5),
        ("f1", 0.5, 6 / 9),
    ],
)
def test_boxes_by_hand(rule, threshold, value):
    """F1 of 0.9: 2/5; 0.7: 4/7; 0.5: 6/9. At 0.25 false positives an image, 0.8 is allowed."""
    point = choose_for_boxes(MARKS, rule, "val")
    assert (point.threshold, point.value) == (threshold, pytest.approx(value))
    assert point.counts == {"lesions": 4, "images": 4}
    assert point.settings == {"hit_rule": "centre", "duplicates": "ignore"}


def test_ties_go_together():
    """0.8 is a hit and a false positive: no threshold has the one without the other."""
    tied = box_marks([0.8, 0.8, 0.4], [1, 0, 1], 2, images=1)
    assert choose_for_boxes(tied, "sensitivity:0.5", "val").value == 0.5
    with pytest.raises(UserError, match="no threshold on val fulfils fppi:0.5"):
        choose_for_boxes(tied, "fppi:0.5", "val")


def test_applied_by_hand():
    """On test, at >= 0.7: positives 0.7 and 0.6 (missed), negatives 0.8 (called) and 0.1."""
    point = choose_for_units(HAND, "sensitivity:0.9", "val")
    test = units([0.7, 0.6, 0.8, 0.1], [1, 1, 0, 0])
    weights = np.array([[1, 1, 1, 1], [2, 0, 0, 2]], np.int32)
    found = apply_to_units(point, test, Draws(weights, Bootstrap(replicates=2)))
    assert {n: f.value for n, f in found.items()} == dict.fromkeys(found, 0.5)
    assert found["sensitivity"].replicates.tolist() == [0.5, 1]
    assert found["ppv"].of == "2 images called positive"


def test_applied_to_boxes_by_hand():
    """At >= 0.7: lesion 0.7 hit and the other (0.69) not, one false positive (0.71) on four images,
    two of them without a lesion; one of those has the false positive, the other no box at all.
    """
    lesion = {"category_id": 1, "bbox": [0, 0, 9, 9]}
    truth = {
        "images": [{"id": n, "patient_id": n} for n in range(4)],
        "annotations": [{"image_id": 0, **lesion}, {"image_id": 1, **lesion}],
        "categories": [{"id": 1, "name": "mass"}],
    }
    records = [{"image_id": n, **lesion, "score": s} for n, s in enumerate((0.7, 0.69, 0.71))]
    study, rule = read_study(truth), parse_hit_rule("centre")
    table = predictions_from_records(records, study.lesions.image_ids)
    test = marks(study, table, match_predictions(study.lesions, table, rule), rule)
    weights = np.array([[1, 1, 1, 1], [2, 0, 0, 2]], np.int32)
    draws = Draws(weights, Bootstrap(replicates=2))
    point = choose_for_boxes(MARKS, "fppi:0.25", "val")
    found = apply_to_boxes(point, test, study, table, draws)
    values = {name: figure.value for name, figure in found.items()}
    assert values == {"sensitivity": 0.5, "ppv": 0.5, "fppi": 0.25, "specificity": 0.5}
    assert [figure.replicates.tolist()[1] for figure in found.values()] == [1, 1, 0, 1]
    assert found["fppi"].of == "4 images" and found["specificity"].of == "2 negative images"
    lowest = apply_to_boxes(replace(point, threshold=0.0), test, study, table)
    assert lowest["specificity"].value == 0.5  # an image without boxes is not called positive
    with pytest.raises(UserError, match="hit_rule 'centre', but is applied with 'iou:0.2'"):
        apply_to_boxes(point, replace(test, rule="iou:0.2"), study, table)
    with pytest.raises(UserError, match="category None, but is applied with 1"):
        apply_to_boxes(point, replace(test, category=1), study, table)


def test_kept_in_a_checkpoint():
    """Through torch's own file, read without code; a point of the same name is replaced."""
    points = [choose_for_units(HAND, "youden", "val"), choose_for_boxes(MARKS, "f1", "val")]
    checkpoint = {"model": {"w": torch.ones(1)}}
    stored = with_operating_points(checkpoint, points)
    assert CHECKPOINT_KEY not in checkpoint and stored["model"] is checkpoint["model"]
    file = io.BytesIO()
    torch.save(stored, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert read_operating_points(loaded) == points
    newer = replace(points[0], threshold=0.5)
    again = with_operating_points(loaded, [newer, replace(newer, category=3)])
    assert [p.threshold for p in read_operating_points(again)] == [0.5, 0.5, 0.5]
    assert list(again[CHECKPOINT_KEY]) == ["image youden", "box f1", "image youden class 3"]
    assert read_operating_points({}) == []
    assert points[0].text() == (
        "image score >= 0.9, chosen by youden on val (2 positive images, 2 negative images), "
        "where it gave 0.500"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": math.nan},
        {"threshold": "0.5"},
        {"level": "lesion"},
        {"level": [1]},
        {"settings": 3},
        {"rule": "x"},
        {"new": 1},
    ],
)
def test_damaged_points_are_one_sentence(change):
    entry = {**asdict(choose_for_units(HAND, "youden", "val")), **change}
    with pytest.raises(UserError, match="damaged|level was|rule of an operating point"):
        read_operating_points({CHECKPOINT_KEY: {"a": entry}})
    with pytest.raises(UserError, match="damaged"):
        read_operating_points({CHECKPOINT_KEY: [entry]})


@pytest.mark.parametrize(
    ("level", "rule"),
    [
        ("image", "fppi:0.3"),
        ("box", "specificity:0.9"),
        ("box", "youden"),
        ("case", "f1:0.5"),
        ("case", "sensitivity"),
        ("case", "sensitivity:1.1"),
        ("case", "sensitivity:x"),
        ("box", "fppi:0"),
        ("box", "fppi:inf"),
        ("box", ""),
    ],
)
def test_unknown_rules_are_one_sentence(level, rule):
    with pytest.raises(UserError, match=f"for level {level} it is one like .*sensitivity:0.9"):
        parse_rule(rule, level)


def test_mistakes_are_one_sentence():
    with pytest.raises(UserError, match="level was 'lesion'"):
        parse_rule("f1", "lesion")
    with pytest.raises(UserError, match="val has no negative images, so no operating point"):
        choose_for_units(units([0.5], [1]), "youden", "val")
    with pytest.raises(UserError, match="val has no lesions"):
        choose_for_boxes(box_marks([0.5], [0], 0), "f1", "val")
    with pytest.raises(UserError, match="no threshold on val fulfils sensitivity:0.9"):
        choose_for_boxes(MARKS, "sensitivity:0.9", "val")
    with pytest.raises(UserError, match="no threshold on val"):
        choose_for_boxes(box_marks([], [], 1), "f1", "val")
    point = choose_for_units(HAND, "youden", "val")
    with pytest.raises(UserError, match="chosen with views 'max', but is applied with 'mean'"):
        apply_to_units(point, replace(HAND, views="mean"))
    with pytest.raises(UserError, match="chosen with level 'image', but is applied with 'case'"):
        apply_to_units(point, replace(HAND, level="case"))


def slow_best(rule, scores, positive):
    """By trying every threshold from above: plain loops over the definition."""
    kind, target = parse_rule(rule, "image")
    best = None
    for threshold in sorted(set(scores), reverse=True):
        called = [s >= threshold for s in scores]
        hit = sum(c and p for c, p in zip(called, positive, strict=True))
        wrong = sum(c and not p for c, p in zip(called, positive, strict=True))
        num_positive = sum(positive)
        num_negative = len(positive) - num_positive
        value = {
            "sensitivity": hit / num_positive,
            "specificity": (num_negative - wrong) / num_negative,
            "f1": 2 * hit / (hit + wrong + num_positive),
            "youden": hit / num_positive - wrong / num_negative,
        }[kind]
        if kind == "sensitivity" and value >= target - 1e-9:
            return threshold, value
        if kind == "specificity" and value >= target - 1e-9:
            best = threshold, value
        if kind in ("f1", "youden") and (best is None or value > best[1] + 1e-9):
            best = threshold, value
    return best


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([0.1, 0.2, 0.4, 0.5, 0.8]), st.booleans()),
        min_size=2,
        max_size=20,
    ).filter(lambda rows: 0 < sum(row[1] for row in rows) < len(rows)),
    rule=st.sampled_from(["sensitivity:0.6", "specificity:0.75", "specificity:1", "f1", "youden"]),
)
def test_equals_plain_loops(rows, rule):
    scores, positive = zip(*rows, strict=True)
    expected = slow_best(rule, scores, positive)
    if expected is None:
        with pytest.raises(UserError, match="no threshold"):
            choose_for_units(units(scores, positive), rule, "val")
        return
    point = choose_for_units(units(scores, positive), rule, "val")
    assert point.threshold == expected[0]
    assert point.value == pytest.approx(expected[1], abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    fppi=st.sampled_from([0.2, 0.5, 1.0, 3.0]),
    duplicates=st.sampled_from(["ignore", "count"]),
)
def test_box_points_agree_with_the_froc(seed, fppi, duplicates):
    """The threshold is the FROC curve's; applied on the same set it gives the same figures."""
    rng = np.random.default_rng(seed)
    annotations = random_annotations(rng, crowds=False)
    records = random_records(rng, annotations)
    study = read_study(annotations)
    if not len(study.lesions):
        return
    table = predictions_from_records(records, study.lesions.image_ids)
    curve = froc(study, table, FrocSettings(duplicates=duplicates)).overall
    rule = parse_hit_rule("centre")
    matching = match_predictions(study.lesions, table, rule)
    boxes = marks(study, table, matching, rule, duplicates)
    if curve.sensitivity_at(fppi) == 0:
        with pytest.raises(UserError, match="no threshold"):
            choose_for_boxes(boxes, f"fppi:{fppi}", "val")
        return
    point = choose_for_boxes(boxes, f"fppi:{fppi}", "val")
    assert point.threshold == curve.threshold_at(fppi)
    draws = draw_patients(study, Bootstrap(replicates=3))
    found = apply_to_boxes(point, boxes, study, table, draws)
    row = curve.operating_point(fppi)
    assert found["sensitivity"].value == pytest.approx(curve.sensitivity[row])
    assert found["fppi"].value == pytest.approx(curve.fppi[row]) == point.value
    called = {r["image_id"] for r in records if r["score"] >= point.threshold}
    with_lesion = {a["image_id"] for a in annotations["annotations"]}
    negative = {i["id"] for i in annotations["images"]} - with_lesion
    if negative:
        expected = 1 - len(called & negative) / len(negative)
        assert found["specificity"].value == pytest.approx(expected)
    assert isinstance(point, OperatingPoint)
