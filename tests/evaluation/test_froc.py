# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""FROC: cases worked by hand; test_froc_agreement.py compares it with plain loops."""

import json

import numpy as np
import pytest

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.froc import FrocSettings, froc

LESION = (10, 10, 20, 20)
FAR = (80, 80, 90, 90)


def boxes(*rows):
    """Ground truth of one image."""
    return {"boxes": np.array(rows, dtype=float).reshape(-1, 4)}


def scored(*rows):
    """Predictions of one image from (box, score)."""
    return {"boxes": np.array([r[0] for r in rows], float), "scores": [r[1] for r in rows]}


def points(curve):
    """(false positives per image, sensitivity) of every operating point."""
    return list(zip(curve.fppi.tolist(), curve.sensitivity.tolist(), strict=True))


def run(truth, predictions, **options):
    return froc(truth, predictions, FrocSettings(**options)).overall


def test_perfect():
    """One lesion, one prediction on it: (0, 0), (0, 1)."""
    curve = run({"a": boxes(LESION)}, {"a": scored((LESION, 0.9))})
    assert points(curve) == [(0, 0), (0, 1)]
    assert curve.sensitivity_at(0) == curve.sensitivity_at(0.1) == curve.cpm() == 1
    assert curve.threshold_at(0.1) == 0.9


def test_nothing_found():
    """No prediction at all, and an image that is not even named: (0, 0)."""
    curve = run({"a": boxes(LESION), "b": boxes()}, {})
    assert points(curve) == [(0, 0)]
    assert curve.sensitivity_at(8) == curve.cpm() == 0
    assert curve.threshold_at(8) == np.inf
    assert (curve.num_lesions, curve.num_images, curve.num_negative_images) == (1, 2, 1)


def test_far_away_box_is_a_miss_and_a_false_positive():
    """One lesion, one box far from it: (0, 0), (1, 0); by centre and by IoU."""
    for rule in ("centre", "iou:0.01"):
        curve = run({"a": boxes(LESION)}, {"a": scored((FAR, 0.9))}, rule=rule)
        assert points(curve) == [(0, 0), (1, 0)]
        assert curve.sensitivity_at(4) == 0


def test_ties_make_one_operating_point():
    """A hit and a false positive of one score: (0, 0), (1, 1), whatever their order."""
    for rows in ([(LESION, 0.5), (FAR, 0.5)], [(FAR, 0.5), (LESION, 0.5)]):
        curve = run({"a": boxes(LESION)}, {"a": scored(*rows)})
        assert points(curve) == [(0, 0), (1, 1)]
        assert curve.sensitivity_at(0.5) == 0
        assert curve.sensitivity_at(1) == 1


def test_tied_predictions_and_two_lesions_hit_both():
    """Lesions A (0, 0, 10, 10), B (4, 0, 14, 10). Score 0.5 each: P (3, 0, 10, 10), centre 6.5, in
    both, nearer to A's 5 than to B's 9; Q (0, 0, 10, 10), centre 5, in both, on A's centre.

    The best fitting pair is Q-A (distance 0), so P hits B: both are hit, in either order.
    """
    truth = {"a": boxes((0, 0, 10, 10), (4, 0, 14, 10))}
    rows = [((3, 0, 10, 10), 0.5), ((0, 0, 10, 10), 0.5)]
    for order in (rows, rows[::-1]):
        assert points(run(truth, {"a": scored(*order)})) == [(0, 0), (0, 1)]


def test_duplicates_are_ignored_or_counted():
    """Two boxes on one lesion: (0, 1) and (0, 1), or (0, 1) and (1, 1)."""
    predictions = {"a": scored((LESION, 0.9), ((11, 11, 21, 21), 0.8))}
    ignored = run({"a": boxes(LESION)}, predictions)
    counted = run({"a": boxes(LESION)}, predictions, duplicates="count")
    assert points(ignored) == [(0, 0), (0, 1), (0, 1)]
    assert points(counted) == [(0, 0), (0, 1), (1, 1)]
    assert ignored.num_duplicates == counted.num_duplicates == 1


def test_two_lesions_one_box_hits_the_nearer_centre():
    """Lesions (0, 0, 10, 10) and (4, 0, 14, 10), box (3, 0, 13, 10): centre 8, nearer to 9 than 5.

    The second lesion is hit: sensitivity 1/2. The same box again, of lower score, hits the first.
    """
    truth = {"a": boxes((0, 0, 10, 10), (4, 0, 14, 10))}
    one = froc(truth, {"a": scored(((3, 0, 13, 10), 0.9))})
    assert points(one.overall) == [(0, 0), (0, 0.5)]
    assert one.matching.lesion.tolist() == [1]
    two = froc(truth, {"a": scored(((3, 0, 13, 10), 0.9), ((3, 0, 13, 10), 0.8))})
    assert points(two.overall) == [(0, 0), (0, 0.5), (0, 1)]
    assert two.matching.lesion.tolist() == [1, 0]


def test_equally_near_lesions_are_taken_in_the_order_of_their_coordinates():
    """A (0, 0, 10, 10), B (10, 0, 20, 10); P's centre (10, 5) is on both, 5 from each centre.

    P takes A, the first by coordinates, so Q at (2, 5), which lies in A alone, is a duplicate:
    sensitivity 1/2, in whatever order the lesions come.
    """
    lesions = [(0, 0, 10, 10), (10, 0, 20, 10)]
    found = {"a": scored(((8, 0, 12, 10), 0.9), ((0, 0, 4, 10), 0.8))}
    for order in (lesions, lesions[::-1]):
        assert points(run({"a": boxes(*order)}, found)) == [(0, 0), (0, 0.5), (0, 0.5)]


def test_corners_draw_the_curve():
    """FP, hit, hit, FP, FP: rows 0 to 5; the curve rises at rows 2 and 3 and ends at 5."""
    truth = {"a": boxes(LESION, (40, 40, 50, 50))}
    rows = [(FAR, 0.9), (LESION, 0.8), ((40, 40, 50, 50), 0.7), (FAR, 0.6), (FAR, 0.5)]
    curve = run(truth, {"a": scored(*rows)})
    assert curve.corners().tolist() == [0, 2, 3, 5]
    assert curve.to_dict()["curve"] == {
        "threshold": [None, 0.8, 0.7, 0.5],
        "true_positives": [0, 1, 2, 2],
        "false_positives": [0, 1, 1, 3],
        "fppi": [0, 1, 1, 3],
        "sensitivity": [0, 0.5, 1, 1],
    }


def test_negatives_only():
    """No lesions: sensitivity is NaN with a reason; 1 false positive on 2 images is 0.5."""
    curve = run({"a": boxes(), "b": boxes()}, {"a": scored((FAR, 0.9))})
    assert curve.fppi.tolist() == [0, 0.5]
    assert np.isnan(curve.sensitivity).all() and np.isnan(curve.cpm())
    assert np.isnan(curve.sensitivity_at(1)) and np.isnan(curve.threshold_at(1))
    assert "no lesions" in curve.reason


def test_no_images_at_all():
    curve = run({}, {})
    assert np.isnan(curve.cpm()) and curve.reason


def test_negative_denominator():
    """A false positive on the lesion's image and one on the only negative image.

    all: (0.5, 0), (1, 0), (1, 1). negative: (0, 0), (1, 0), (1, 1): the first is not counted.
    """
    truth = {"a": boxes(LESION), "b": boxes()}
    predictions = {"a": scored((FAR, 0.9), (LESION, 0.7)), "b": scored((FAR, 0.8))}
    assert points(run(truth, predictions)) == [(0, 0), (0.5, 0), (1, 0), (1, 1)]
    negative = run(truth, predictions, denominator="negative")
    assert points(negative) == [(0, 0), (0, 0), (1, 0), (1, 1)]
    assert negative.num_fp_images == 1
    none = run({"a": boxes(LESION)}, {"a": scored((LESION, 0.7))}, denominator="negative")
    assert "no negative images" in none.reason and np.isnan(none.sensitivity_at(1))


def test_centre_on_the_edge_is_inside():
    """Centre (20, 15) on the edge of (10, 10, 20, 20) is a hit; (20.5, 15) is not."""
    truth = {"a": boxes(LESION)}
    assert run(truth, {"a": scored(((19, 10, 21, 20), 0.5))}).sensitivity_at(0) == 1
    assert run(truth, {"a": scored(((20, 10, 21, 20), 0.5))}).sensitivity_at(0) == 0


def test_iou_of_exactly_the_threshold_is_a_hit():
    """(0, 0, 10, 10) and (0, 0, 10, 5): IoU 50/100 = 0.5."""
    truth, predictions = {"a": boxes((0, 0, 10, 10))}, {"a": scored(((0, 0, 10, 5), 0.5))}
    assert run(truth, predictions, rule="iou:0.5").sensitivity_at(0) == 1
    assert run(truth, predictions, rule="iou:0.51").sensitivity_at(0) == 0


def test_classes():
    """A prediction of class 2 on a lesion of class 1: a false positive, unless class-agnostic."""
    truth = {"a": {"boxes": [LESION], "categories": [1]}}
    predictions = {"a": {**scored((LESION, 0.9)), "categories": [2]}}
    result = froc(truth, predictions, categories=[1, 2])
    assert points(result.overall) == [(0, 0), (1, 0)]
    assert points(result.per_class[1]) == [(0, 0)]
    assert result.per_class[2].reason and result.per_class[2].fppi.tolist() == [0, 1]
    agnostic = froc(truth, predictions, FrocSettings(class_aware=False), categories=[1, 2])
    assert points(agnostic.overall) == [(0, 0), (0, 1)]
    assert agnostic.per_class == {}


def test_rate_is_compared_as_a_count():
    """100 images and 0.29 an image allow exactly 29 false positives: 0.29 * 100 is 28.99...96."""
    for images, rate, allowed in ((100, 0.29, 29), (410, 0.3, 123), (10, 0.7, 7)):
        truth = {i: boxes(LESION) if i == 0 else boxes() for i in range(images)}
        rows = [(FAR, 1.0 - 0.001 * k) for k in range(allowed)]
        assert run(truth, {0: scored(*rows, (LESION, 0.1))}).sensitivity_at(rate) == 1
        rows.append((FAR, 0.2))
        assert run(truth, {0: scored(*rows, (LESION, 0.1))}).sensitivity_at(rate) == 0


def test_cpm_by_hand():
    """4 images, 1 lesion: 2 false positives above the hit, so sensitivity is 1 from 0.5 on.

    At 1/8 and 1/4 it is 0, at 1/2, 1, 2, 4, 8 it is 1: CPM = 5/7.
    """
    truth = {i: boxes(LESION) if i == 0 else boxes() for i in range(4)}
    curve = run(truth, {0: scored((FAR, 0.9), (FAR, 0.8), (LESION, 0.7))})
    assert curve.cpm() == pytest.approx(5 / 7, abs=1e-15)


@pytest.mark.parametrize(
    ("truth", "predictions", "words"),
    [
        ({"a": boxes(LESION)}, {"b": scored((LESION, 0.5))}, "'b'"),
        ({"a": boxes(LESION)}, {"a": scored((LESION, np.nan))}, "score nan"),
        ({"a": boxes(LESION)}, {"a": scored((LESION, np.inf))}, "score inf"),
        ({"a": boxes(LESION)}, {"a": scored(((1, 1, 0, 2), 0.5))}, "x1 <= x2"),
        ({"a": boxes((1, 1, np.nan, 2))}, {}, "lesion"),
        ({"a": boxes(LESION)}, {"a": {**scored((LESION, 0.5)), "categories": [7]}}, "category 7"),
        ({"a": boxes(LESION)}, {"a": {"boxes": [LESION], "scores": [0.1, 0.2]}}, "1 boxes but 2"),
    ],
)
def test_mistakes_are_one_sentence(truth, predictions, words):
    with pytest.raises(UserError, match=words) as caught:
        froc(truth, predictions)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", ["center", "iou", "iou:0", "iou:1.5", "iou:x", "", "iou:nan"])
def test_unknown_rule(rule):
    with pytest.raises(UserError, match="'centre'"):
        FrocSettings(rule=rule)


def test_unknown_option():
    with pytest.raises(UserError, match="duplicates was 'drop'"):
        FrocSettings(duplicates="drop")
    with pytest.raises(UserError, match="denominator"):
        FrocSettings(denominator="positive")
    with pytest.raises(UserError, match="unit was 'patient'"):
        FrocSettings(unit="patient")
    with pytest.raises(UserError, match="fppi"):
        run({"a": boxes(LESION)}, {}).sensitivity_at(-1)


def test_pairs_made_in_blocks(monkeypatch):
    """The result does not depend on how many candidate pairs are made at once."""
    rng = np.random.default_rng(3)
    truth = {i: {"boxes": rng.integers(0, 9, (4, 2))} for i in range(30)}
    truth = {i: boxes(*np.tile(t["boxes"], 2) + [0, 0, 4, 4]) for i, t in truth.items()}
    found = {
        i: scored(*[((x, y, x + 4, y + 4), s) for x, y, s in rng.integers(0, 9, (7, 3))])
        for i in truth
    }
    whole = run(truth, found)
    for block in (1, 5, 28, 29):
        monkeypatch.setattr("detrex_mammo.evaluation.matching._PAIRS_A_BLOCK", block)
        assert points(run(truth, found)) == points(whole)


def test_report_is_strict_json():
    curve = run({"a": boxes()}, {"a": scored((FAR, 0.9))})
    report = json.loads(json.dumps(curve.to_dict(), allow_nan=False))
    assert report["cpm"] is None and "no lesions" in report["reason"]
    assert report["curve"]["sensitivity"] == [None, None]
    assert report["rule"] == "centre" and "centre lies in" in report["text"]


def test_large_set():
    """10,000 images x 50 predictions, one of them on every lesion, in a second or two."""
    rng = np.random.default_rng(1)
    corner, sizes = rng.uniform(0, 2000, (500_000, 2)), rng.uniform(20, 400, (500_000, 2))
    all_boxes = np.concatenate([corner, corner + sizes], axis=1).reshape(10_000, 50, 4)
    scores = rng.random((10_000, 50))
    truth = {i: {"boxes": all_boxes[i, : i % 3]} for i in range(10_000)}
    found = {i: {"boxes": all_boxes[i], "scores": scores[i]} for i in range(10_000)}
    curve = run(truth, found)
    assert curve.num_lesions == 3333 + 2 * 3333
    assert curve.true_positives[-1] == curve.num_lesions
