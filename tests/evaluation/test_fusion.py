# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Fusing several models' boxes: numbers by hand, and the package called directly."""

import builtins
import logging
import warnings

import ensemble_boxes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.fusion import METHODS, Fusion
from detrex_mammo.evaluation.study import read_study
from detrex_mammo.evaluation.tables import PredictionTable

SIZES = ((100, 200), (3000, 2000))  # width, height


def study_of(sizes=SIZES):
    images = [{"id": f"i{n}", "width": w, "height": h} for n, (w, h) in enumerate(sizes)]
    categories = [{"id": 3, "name": "mass"}, {"id": 900_000_007, "name": "calcification"}]
    return read_study({"images": images, "annotations": [], "categories": categories})


def table(rows, slices=None):
    """Rows (image, x0, y0, x1, y1, score, category)."""
    rows = np.array(rows, dtype=np.float64).reshape(-1, 7)
    columns = (rows[:, 0].astype(int), rows[:, 1:5], rows[:, 5], rows[:, 6].astype(int))
    return PredictionTable(*columns, None if slices is None else np.array(slices, float))


def rows_of(found):
    columns = (found.image_index, found.boxes, found.scores, found.categories)
    return np.column_stack(columns)


HAND = (
    table([(0, 0, 0, 10, 10, 0.9, 3)]),
    table(
        [
            (0, 0, 0, 10, 12, 0.6, 3),
            (0, 50, 50, 60, 60, 0.4, 3),
            (0, 0, 0, 10, 10, 0.5, 900_000_007),
        ]
    ),
)


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [
        # the head of the module; the other class is found by one of two models
        (
            Fusion("wbf"),
            [
                (0, 0, 10, 10.8, 0.75, 3),
                (0, 0, 10, 10, 0.25, 900_000_007),
                (50, 50, 60, 60, 0.2, 3),
            ],
        ),
        # weights 3 and 1: scores 2.7 and 0.6; (27 + 7.2) / 3.3; 3.3 / 2 * 2 / 4; 0.4 * 1 / 4
        (
            Fusion("wbf", weights=(3, 1)),
            [
                (0, 0, 10, 34.2 / 3.3, 0.825, 3),
                (0, 0, 10, 10, 0.125, 900_000_007),
                (50, 50, 60, 60, 0.1, 3),
            ],
        ),
        # overlap 100 / 120 is below 0.9, so nothing joins: halves
        (
            Fusion("wbf", iou=0.9),
            [
                (0, 0, 10, 10, 0.45, 3),
                (0, 0, 10, 12, 0.3, 3),
                (0, 0, 10, 10, 0.25, 900_000_007),
                (50, 50, 60, 60, 0.2, 3),
            ],
        ),
        (
            Fusion("nms"),
            [
                (0, 0, 10, 10, 0.9, 3),
                (0, 0, 10, 10, 0.5, 900_000_007),
                (50, 50, 60, 60, 0.4, 3),
            ],
        ),
        # 0.6 * exp(-(5/6)^2 / 0.5)
        (
            Fusion("soft-nms"),
            [
                (0, 0, 10, 10, 0.9, 3),
                (0, 0, 10, 10, 0.5, 900_000_007),
                (50, 50, 60, 60, 0.4, 3),
                (0, 0, 10, 12, 0.6 * np.exp(-25 / 18), 3),
            ],
        ),
        # weighted by 0.9 * 1 and 0.6 * 5/6 = 0.5: (9 + 6) / 1.4
        (
            Fusion("nmw"),
            [
                (0, 0, 10, 15 / 1.4, 0.9, 3),
                (0, 0, 10, 10, 0.5, 900_000_007),
                (50, 50, 60, 60, 0.4, 3),
            ],
        ),
        # the second model counts a third: 0.9 by 0.2 * 5/6 = 1/6; (9 + 2) / (0.9 + 1/6)
        (
            Fusion("nmw", weights=(3, 1)),
            [
                (0, 0, 10, 11 / (0.9 + 1 / 6), 0.9, 3),
                (0, 0, 10, 10, 0.5 / 3, 900_000_007),
                (50, 50, 60, 60, 0.4 / 3, 3),
            ],
        ),
    ],
    ids=["wbf", "wbf weighted", "wbf apart", "nms", "soft-nms", "nmw", "nmw weighted"],
)
def test_by_hand(fusion, expected):
    found = rows_of(fusion(study_of(), HAND))
    np.testing.assert_allclose(found[:, 1:], expected, rtol=0, atol=1e-4)
    assert (found[:, 0] == 0).all()


def test_nms_weights_lower_the_scores_of_lesser_models():
    """Weights 1 and 2: 0.9 counts 0.45 and loses to 0.6."""
    found = rows_of(Fusion("nms", weights=(1, 2))(study_of(), HAND))
    expected = [(0, 0, 10, 12, 0.6, 3), (0, 0, 10, 10, 0.5, 900_000_007), (50, 50, 60, 60, 0.4, 3)]
    np.testing.assert_allclose(found[:, 1:], expected, atol=1e-9)


def test_boxes_partly_outside_are_not_cut():
    """[-20, -10, 20, 30] and [-20, -10, 20, 31] in an image of 100 x 200, and one past its end."""
    models = (
        table([(0, -20, -10, 20, 30, 0.5, 3), (0, 90, 150, 130, 260, 0.3, 3)]),
        table([(0, -20, -10, 20, 32, 0.5, 3)]),
    )
    found = rows_of(Fusion()(study_of(), models))
    expected = [(0, -20, -10, 20, 31, 0.5, 3), (0, 90, 150, 130, 260, 0.15, 3)]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def direct(fusion, boxes, scores, labels, size):
    """The package itself, on boxes divided by the image's size."""
    scale = np.array([*size, *size], dtype=np.float64)
    lists = [[b / scale for b in boxes], [s.copy() for s in scores], [x.copy() for x in labels]]
    weights = fusion.weights
    call = {
        "wbf": ensemble_boxes.weighted_boxes_fusion,
        "nmw": ensemble_boxes.non_maximum_weighted,
        "nms": ensemble_boxes.nms,
    }[fusion.method]
    found = call(*lists, weights=None if weights is None else list(weights), iou_thr=fusion.iou)
    scores = found[1]
    if fusion.method == "nms" and weights is not None:
        scores = scores * sum(weights) / max(weights)  # ours keep the best model's scores
    # two boxes of the heavier model make the package's score more than 1
    rows = np.column_stack((found[0] * scale, np.minimum(scores, 1), found[2]))
    return rows[np.lexsort((*rows[:, :4].T, -rows[:, 4]))]


@settings(max_examples=40, deadline=None)
@example(seed=3, method="wbf", num_models=3, is_weighted=True, iou=0.25)
@given(
    seed=st.integers(0, 10**6),
    method=st.sampled_from(("wbf", "nms", "nmw")),
    num_models=st.integers(1, 3),
    is_weighted=st.booleans(),
    iou=st.floats(0.2, 0.8),
)
def test_agrees_with_the_package(seed, method, num_models, is_weighted, iou):
    """Random boxes in two images of different size, one of them 3000 x 2000."""
    rng = np.random.default_rng(seed)
    weights = tuple(rng.uniform(0.5, 3, num_models).tolist()) if is_weighted else None
    fusion, models, expected = Fusion(method, iou, weights), [], []
    drawn = {}
    for image, (width, height) in enumerate(SIZES):
        for model in range(num_models):
            number = rng.integers(0 if model else 1, 9)
            corner = rng.uniform(0, 0.6, (number, 2))
            box = np.column_stack((corner, corner + rng.uniform(0.1, 0.4, (number, 2))))
            box *= (width, height, width, height)
            drawn[image, model] = (box, rng.uniform(0.01, 1, number), rng.integers(2, size=number))
        lists = zip(*(drawn[image, model] for model in range(num_models)), strict=True)
        rows = direct(fusion, *map(list, lists), (width, height))
        expected.append(np.column_stack((np.full(len(rows), image), rows)))
    for model in range(num_models):
        rows = []
        for image in range(len(SIZES)):
            box, score, label = drawn[image, model]
            ids = np.array([3, 900_000_007])[label]
            rows.append(np.column_stack((np.full(len(box), image), box, score, ids)))
        models.append(table(np.concatenate(rows)))
    found = rows_of(fusion(study_of(), models))
    found[:, 6] = found[:, 6] != 3
    found = found[np.lexsort((*found[:, 1:5].T, -found[:, 5], found[:, 0]))]
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=0, atol=2e-3)


def test_slices_are_fused_for_themselves():
    """The same box on slice 5 (twice), on slice 6 and without a slice (twice)."""
    box = (0, 0, 0, 10, 10, 0.8, 3)
    models = (table([box, box], [5, np.nan]), table([box, box, box], [np.nan, 6, 5]))
    found = Fusion()(study_of(), models)
    np.testing.assert_array_equal(found.slices, [5, 6, np.nan])
    np.testing.assert_allclose(found.scores, [0.8, 0.4, 0.8])


@pytest.mark.parametrize("method", METHODS)
def test_scores_of_zero_and_nothing_at_all(method):
    zero = table([(0, 0, 0, 10, 10, 0, 3), (0, 0, 0, 10, 10, 0, 3)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Fusion(method)(study_of(), [zero, zero])
        assert np.isfinite(rows_of(found)).all() and found.scores.max() < 1e-9 and len(found)
        assert len(Fusion(method)(study_of(), [table([]), table([])])) == 0
        one = Fusion(method)(study_of(), [table([]), table([(1, 5, 6, 7, 8, 0.5, 3)])])
    np.testing.assert_allclose(one.boxes, [[5, 6, 7, 8]], atol=1e-3)
    assert one.image_index.tolist() == [1] and one.categories.tolist() == [3]


def test_boxes_without_area_are_told(caplog):
    rows = [(0, 5, 5, 5, 9, 0.5, 3), (0, 0, 0, 10, 10, 0.8, 3)]
    with caplog.at_level(logging.WARNING):
        found = Fusion()(study_of(), [table(rows), table([])])
    assert len(found) == 1 and "1 predictions without area are left out" in caplog.text


def test_the_package_is_named_when_it_is_missing(monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "ensemble_boxes":
            raise ImportError("No module named 'ensemble_boxes'")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'detrex_mammo\[ensemble\]'"):
        Fusion()(study_of(), HAND)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Fusion("mean"), "method was 'mean', but it is one of wbf, nms"),
        (lambda: Fusion(iou=1.0), r"iou was 1.0, but it is a share in \(0, 1\)"),
        (lambda: Fusion(weights=(1, 0)), "each is a number above 0"),
        (lambda: Fusion(weights=(1,))(study_of(), HAND), "2 models: give one for each"),
        (
            lambda: Fusion()(study_of(), [table([(0, 0, 0, 1, 1, 1.5, 3)])]),
            r"scores in \[0, 1\], but they go from 1.5 to 1.5",
        ),
    ],
)
def test_one_sentence(make, words):
    with pytest.raises(UserError, match=words):
        make()
