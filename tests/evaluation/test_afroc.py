# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Areas under AFROC and LROC: by hand, by plain loops over pairs, and as scikit-learn's AUC."""

from fractions import Fraction

import numpy as np
import pytest

from detrex_mammo.evaluation import afroc
from detrex_mammo.evaluation.afroc import afroc_pairs, area_figures, lroc_pairs
from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.froc import FrocSettings, as_predictions, match_study
from detrex_mammo.evaluation.froc_events import Part
from detrex_mammo.evaluation.study import as_study, read_study
from tests.evaluation.random_study import (
    CATEGORIES,
    fast_data,
    patient_of,
    random_annotations,
    random_found,
    slow_data,
)
from tests.evaluation.slow_froc import assign, slow_froc, touch, unit_of

LESION, FAR = (10, 10, 20, 20), (80, 80, 90, 90)


def matched(truth, predictions, **options):
    """Study, predictions, matching and settings, as the areas take them."""
    settings = FrocSettings(**options)
    study, table = as_study(truth), as_predictions(truth, predictions)
    return study, table, match_study(study, table, settings)[1], settings


def areas(truth, predictions, **options):
    (found,) = area_figures(*matched(truth, predictions, **options))
    return found["afroc"].value, found["lroc"].value


def marks(*rows):
    return {"boxes": [box for box, _ in rows], "scores": [score for _, score in rows]}


def test_by_hand():
    """The head's case: 2/3 and 7/12."""
    truth = {i: {"boxes": [LESION]} for i in "abc"}
    truth |= {i: {"boxes": []} for i in "xy"}
    found = {
        "a": marks((LESION, 0.9)),
        "b": marks((LESION, 0.5), (FAR, 0.4)),
        "c": marks((FAR, 0.7)),
        "x": marks((FAR, 0.5), (LESION, 0.1)),
    }
    assert areas(truth, found) == pytest.approx((2 / 3, 7 / 12), abs=1e-15)
    (figures,) = area_figures(*matched(truth, found))
    assert figures["afroc"].of == "3 lesions, 2 images without"
    assert figures["lroc"].of == "3 images with lesions, 2 images without"


def test_perfect_nothing_and_worst():
    """All right: 1 and 1. Nothing marked: 1/2 and 0. Only false positives, everywhere: 0 and 0."""
    truth = {"a": {"boxes": [LESION]}, "x": {"boxes": []}}
    assert areas(truth, {"a": marks((LESION, 0.9))}) == (1, 1)
    assert areas(truth, {}) == (0.5, 0)
    assert areas(truth, {"a": marks((FAR, 0.9)), "x": marks((FAR, 0.5))}) == (0, 0)


def test_highest_of_equal_marks_counts_by_its_share():
    """The positive image's two highest marks tie, one on the lesion: half of the LROC pair."""
    truth = {"a": {"boxes": [LESION]}, "x": {"boxes": []}}
    assert areas(truth, {"a": marks((LESION, 0.9), (FAR, 0.9))}) == (1, 0.5)


def test_marks_on_boxes_that_do_not_count_are_left_out():
    """The positive image has a lesion, hit at 0.5, and an ignored box, marked at 0.9; the negative
    one a mark at 0.6: the lesion loses, 0 and 0. A third image with an ignored box only, marked
    at 0.4, is in neither group: with it as a negative both areas would be 1/2."""
    boxes = [(1, LESION, {}), (1, FAR, {"ignore": 1}), (3, FAR, {"ignore": 1})]
    boxes = [
        {"image_id": i, "category_id": 0, "bbox": [x, y, 10, 10], **more}
        for i, (x, y, _, _), more in boxes
    ]
    images, categories = [{"id": 1}, {"id": 2}, {"id": 3}], [{"id": 0, "name": "mass"}]
    study = read_study({"images": images, "annotations": boxes, "categories": categories})
    found = {1: marks((LESION, 0.5), (FAR, 0.9)), 2: marks((FAR, 0.6)), 3: marks((FAR, 0.4))}
    assert areas(study, found) == (0, 0)


def test_undefined_without_negatives_or_lesions():
    assert np.isnan(areas({"a": {"boxes": [LESION]}}, {})).all()
    assert np.isnan(areas({"x": {"boxes": []}}, {"x": marks((FAR, 0.5))})).all()
    assert np.isnan(areas({}, {})).all()


def test_afroc_is_the_auc_of_hits_against_negative_images():
    """As scikit-learn's ROC AUC, with a low score for what is not marked."""
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    truth = {i: {"boxes": [LESION] * (i % 2)} for i in range(80)}
    found = {
        i: marks(*[((LESION, FAR)[rng.integers(2)], int(s)) for s in rng.integers(1, 9, 2)])
        for i in range(0, 80, 3)
    }
    pairs = afroc_pairs(*matched(truth, found))
    scores = np.maximum(np.r_[pairs.negative, pairs.positive], 0)
    labels = np.r_[np.zeros(len(pairs.negative)), np.ones(len(pairs.positive))]
    assert pairs.value() == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-14)


def slow_areas(truth, found, rule, class_aware, category):
    """Both areas, by loops over pairs of copies; outcomes from slow_froc of single images."""
    unit_scores, negative, positive = {}, [], []
    for image, lesions in truth.items():
        marked = [f for f in found[image] if category in (None, f.category)]
        counted = [g for g in lesions if not g.is_ignored]
        wanted = [g for g in counted if category in (None, g.category)]
        for place, lesion in enumerate(lesions):
            if lesion in wanted:
                unit_scores.setdefault(unit_of(image, place, lesion), -1)
        for threshold, _, _ in slow_froc(
            {image: lesions}, {image: found[image]}, rule, "ignore", "all", class_aware, category
        )[1:]:
            above = [f for f in found[image] if f.score >= threshold]
            for unit in _hit(image, lesions, above, rule, class_aware, category):
                unit_scores[unit] = max(unit_scores[unit], threshold)
        marked = [f for f in marked if not _left_out(lesions, f, rule, class_aware)]
        top = max((f.score for f in marked), default=-1)
        best = [f for f in marked if f.score == top]
        right = [f for f in best if _touches(counted, f, rule, class_aware)]
        if not lesions:
            negative.append(top)
        elif wanted:
            positive.append((top, Fraction(len(right), len(best)) if best else Fraction(0)))
    hits = [(score, Fraction(1)) for score in unit_scores.values()]
    return _area(negative, hits), _area(negative, positive)


def _area(negative, positive):
    won = sum(
        gain * (Fraction(y > x) + Fraction(y == x, 2)) for x in negative for y, gain in positive
    )
    return float(won / (len(negative) * len(positive))) if negative and positive else None


def _hit(image, lesions, found, rule, class_aware, category):
    hit_of, _ = assign(lesions, found, rule, class_aware)
    return {
        unit_of(image, g, lesions[g]) for g in hit_of.values() if category in (None, lesions[g][1])
    }


def _touches(lesions, found, rule, class_aware):
    same = [g for g in lesions if not class_aware or g.category == found.category]
    return any(touch(found, g, rule)[0] for g in same)


def _left_out(lesions, found, rule, class_aware):
    """On a box that does not count, and on none that does."""
    counted = [g for g in lesions if not g.is_ignored]
    return _touches([g for g in lesions if g.is_ignored], found, rule, class_aware) and not (
        _touches(counted, found, rule, class_aware)
    )


@pytest.mark.parametrize("unit", ["lesion_view", "lesion", "breast", "case"])
@pytest.mark.parametrize("class_aware", [True, False])
def test_replicates_are_plain_loops_over_copied_patients(class_aware, unit):
    """60 data sets of each kind, 3 replicates, all classes: equal to loops over real copies."""
    rng = np.random.default_rng(8)
    num_defined = 0
    for number in range(60):
        annotations = random_annotations(rng)
        predictions = random_found(rng, annotations)
        study, table, matching, settings = matched(
            *fast_data(annotations, predictions), class_aware=class_aware, unit=unit
        )
        names = list(dict.fromkeys(patient_of(image) for image in annotations["images"]))
        weights = Bootstrap(3, number).weights(study.patients).astype(np.int64)
        for category in (None, *CATEGORIES) if class_aware else (None,):
            part = Part()
            if category is not None:
                part = Part.of_category(study, table, category)
            pairs = afroc_pairs(study, table, matching, settings, part)
            marked = lroc_pairs(study, table, matching, part)
            got = np.concatenate([pairs(weights), marked(weights)], axis=1)
            for row, drawn in zip(got.tolist(), weights.tolist(), strict=True):
                copies = dict(zip(names, drawn, strict=True))
                data = slow_data(annotations, predictions, unit, copies)
                expected = slow_areas(*data, "centre", class_aware, category)
                for value, area in zip(row, expected, strict=True):
                    num_defined += area is not None
                    assert np.isnan(value) if area is None else abs(value - area) < 1e-14
    assert num_defined > 40


def test_blocks_do_not_matter(monkeypatch):
    rng = np.random.default_rng(9)
    truth = {i: {"boxes": [LESION] * (i % 2)} for i in range(40)}
    found = {i: marks((LESION, int(rng.integers(5))), (FAR, int(rng.integers(5)))) for i in truth}
    args = matched(truth, found)
    (whole,) = area_figures(*args, Bootstrap(30))
    monkeypatch.setattr(afroc, "_NUMBERS_A_BLOCK", 70)
    (again,) = area_figures(*args, Bootstrap(30))
    for name, figure in whole.items():
        np.testing.assert_array_equal(figure.replicates, again[name].replicates)
        assert figure.low < figure.value < figure.high
