# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Image, breast and case scores: worked by hand, and by plain loops on random studies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.predictions import predictions_from_records
from detrex_mammo.evaluation.scores import unit_scores
from detrex_mammo.evaluation.study import read_study
from tests.evaluation.random_annotations import random_annotations, random_records


def box(image_id, score, category=1):
    return {"image_id": image_id, "category_id": category, "bbox": [0, 0, 9, 9], "score": score}


def image(image_id, patient, side, view):
    return {"id": image_id, "patient_id": patient, "laterality": side, "view": view}


ANNOTATIONS = {
    "images": [
        image(1, "a", "L", "CC"),
        image(2, "a", "L", "MLO"),
        image(3, "a", "R", "CC"),
        image(4, "b", "L", "CC"),
    ],
    "annotations": [
        {"image_id": 2, "category_id": 1, "bbox": [0, 0, 9, 9]},
        {"image_id": 3, "category_id": 2, "bbox": [0, 0, 9, 9], "ignore": 1},
    ],
    "categories": [{"id": 1, "name": "mass"}, {"id": 2, "name": "calcification"}],
}
RECORDS = [box(1, 0.9), box(1, 0.4), box(2, 0.3, 2), box(4, 0.2)]


def units_of(level, views="max", category=None, records=RECORDS):
    study = read_study(ANNOTATIONS)
    table = predictions_from_records(records, study.lesions.image_ids)
    return unit_scores(study, table, level, views, category)


@pytest.mark.parametrize(
    ("level", "views", "units", "scores", "positive"),
    [
        ("image", "max", [0, 1, 3], [0.9, 0.3, 0.2], [False, True, False]),
        ("breast", "max", [0, 2], [0.9, 0.2], [True, False]),
        ("breast", "mean", [0, 2], [0.6, 0.2], [True, False]),
        ("case", "max", [0, 1], [0.9, 0.2], [True, False]),
        ("case", "mean", [0, 1], [0.6, 0.2], [True, False]),
    ],
)
def test_by_hand(level, views, units, scores, positive):
    """Patient a: left CC 0.9 (and 0.4), MLO 0.3 with the lesion; right CC without boxes, whose only
    finding is to be ignored, so image 3 and her right breast are left out. Patient b: 0.2.
    """
    found = units_of(level, views)
    assert found.units.tolist() == units
    assert found.scores.tolist() == pytest.approx(scores, abs=0)
    assert found.positive.tolist() == positive
    assert found.patients.tolist() == [0] * (len(units) - 1) + [1]
    assert found.num_left_out == (0 if level == "case" else 1)


def test_of_one_class():
    """Class 1 has neither MLO's box (class 2) nor the ignored finding: nothing is left out."""
    mass = units_of("image", category=1)
    assert mass.scores.tolist() == [0.9, 0, 0, 0.2]
    assert mass.positive.tolist() == [False, True, False, False]
    calcification = units_of("image", category=2)
    assert calcification.scores.tolist() == [0, 0.3, 0] and calcification.num_left_out == 1
    assert not calcification.positive.any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"level": "lesion"}, "level was 'lesion', but it is one of image, breast, case"),
        ({"level": "case", "views": "min"}, "views was 'min'"),
        ({"level": "case", "category": 7}, "category was 7.*mass"),
        ({"level": "case", "records": [box(1, -0.5)]}, "score -0.5.*without predictions has 0"),
    ],
)
def test_mistakes_are_one_sentence(options, words):
    with pytest.raises(UserError, match=words):
        units_of(**options)


def slow(annotations, records, level, views, category):
    """Unit -> (score, positive, patient), and the number left out."""

    def of_class(entries):
        return [e for e in entries if category in (None, e["category_id"])]

    keys = {"image": ("id",), "breast": ("patient_id", "laterality"), "case": ("patient_id",)}
    groups = {}
    for row in annotations["images"]:
        groups.setdefault(tuple(row[key] for key in keys[level]), []).append(row)
    found, left_out = [], 0
    for rows in groups.values():
        breasts = {}
        for row in rows:
            scores = [r["score"] for r in of_class(records) if r["image_id"] == row["id"]]
            breasts.setdefault(row["laterality"], []).append(max(scores, default=0.0))
        pooled = [np.mean(s) if views == "mean" else max(s) for s in breasts.values()]
        ids = {row["id"] for row in rows}
        here = of_class(a for a in annotations["annotations"] if a["image_id"] in ids)
        ignored = [a["iscrowd"] or a["ignore"] for a in here]
        if here and all(ignored):
            left_out += 1
        else:
            found.append((max(pooled), bool(here), rows[0]["patient_id"]))
    return found, left_out


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    level=st.sampled_from(["image", "breast", "case"]),
    views=st.sampled_from(["max", "mean"]),
    category=st.sampled_from([None, 2, 5]),
)
def test_equals_plain_loops(seed, level, views, category):
    rng = np.random.default_rng(seed)
    annotations = random_annotations(rng)
    records = random_records(rng, annotations)
    study = read_study(annotations)
    table = predictions_from_records(records, study.lesions.image_ids)
    found = unit_scores(study, table, level, views, category)
    expected, left_out = slow(annotations, records, level, views, category)
    assert found.num_left_out == left_out
    assert found.scores.tolist() == [row[0] for row in expected]
    assert found.positive.tolist() == [row[1] for row in expected]
    names = {n: i["patient_id"] for n, i in zip(study.patients.tolist(), study.images)}
    assert [names[n] for n in found.patients.tolist()] == [row[2] for row in expected]
