# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Calibration: by hand, against scikit-learn and plain loops, and on data of known calibration."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation import calibration
from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.calibration import Isotonic, Labelled, Temperature
from detrex_mammo.evaluation.estimate import Draws
from detrex_mammo.evaluation.marks import Marks
from detrex_mammo.evaluation.scores import UnitScores
from detrex_mammo.evaluation.tables import prediction_table


def labelled(scores, positive, patients=None):
    patients = np.arange(len(scores)) if patients is None else np.asarray(patients)
    number = int(patients.max()) + 1 if len(patients) else 0
    positive = np.asarray(positive, dtype=bool)
    return Labelled(np.asarray(scores, dtype=float), positive, patients, number, "boxes")


HAND = labelled([0.2, 0.4, 0.8, 0.8], [0, 1, 1, 0])


def test_by_hand():
    """The head of calibration.py."""
    bins = calibration.reliability(HAND, 2)
    assert bins.low.tolist() == [0, 0.5] and bins.high.tolist() == [0.5, 1]
    np.testing.assert_allclose(bins.mean_score, [0.3, 0.8], rtol=1e-15)
    assert bins.share.tolist() == [0.5, 0.5] and bins.count.tolist() == [2, 2]
    assert bins.ece == pytest.approx(0.25, abs=1e-15)
    found = calibration.ece(HAND, 2)
    assert found.value == pytest.approx(0.25, abs=1e-15) and found.of == "4 boxes"
    assert calibration.brier(HAND).value == pytest.approx(0.27, abs=1e-15)
    fitted = calibration.fit("isotonic", HAND, "val")
    assert fitted.scores == (0.2, 0.4, 0.8)
    assert fitted.probabilities == (0, pytest.approx(2 / 3), pytest.approx(2 / 3))
    np.testing.assert_allclose(fitted(np.array([0, 0.3, 1])), [0, 1 / 3, 2 / 3], rtol=1e-12)


def test_wilson_by_hand():
    """1 of 2: 0.5 -+ 0.4055; 0 of 10: z^2 / (10 + z^2) = 0.2775 is the upper end."""
    low, high = calibration.wilson(np.array([1, 0, 10, 0]), np.array([2, 10, 10, 0]))
    np.testing.assert_allclose(low[:3], [0.0945, 0, 0.7225], atol=5e-5)
    np.testing.assert_allclose(high[:3], [0.9055, 0.2775, 1], atol=5e-5)
    assert math.isnan(low[3]) and math.isnan(high[3])


def test_bins_of_equal_numbers_keep_ties_together():
    """Six scores in three bins; 0.5 is there three times, and stays in one bin."""
    data = labelled([0.1, 0.2, 0.5, 0.5, 0.5, 0.9], [0, 0, 1, 0, 1, 1])
    bins = calibration.reliability(data, 3, "mass")
    assert bins.count.tolist() == [2, 4]
    assert bins.low.tolist() == [0.1, 0.5] and bins.high.tolist() == [0.2, 0.9]
    plain = calibration.reliability(labelled(np.arange(9) / 10, np.arange(9) % 2), 3, "mass")
    assert plain.count.tolist() == [3, 3, 3]


def test_edges_belong_to_the_upper_bin_and_one_to_the_last():
    bins = calibration.reliability(labelled([0.0, 0.1, 0.5, 1.0], [0, 0, 1, 1]), 10)
    assert bins.low.tolist() == [0, 0.1, 0.5, 0.9] and bins.count.tolist() == [1, 1, 1, 1]


def test_nothing_is_nan():
    empty = labelled([], [])
    assert math.isnan(calibration.ece(empty).value) and math.isnan(calibration.brier(empty).value)
    assert math.isnan(calibration.reliability(empty, 5, "mass").ece)


def test_temperature_is_found_again():
    """Labels drawn with probability p, scores sigmoid(2.5 logit p): the temperature is 2.5.

    Its log loss is then that of p, and no other temperature's is lower.
    """
    rng = np.random.default_rng(3)
    probability = rng.uniform(0.02, 0.98, 40_000)
    positive = rng.random(40_000) < probability
    odds = (probability / (1 - probability)) ** 2.5
    data = labelled(odds / (1 + odds), positive)
    fitted = calibration.fit("temperature", data, "val")
    assert fitted.temperature == pytest.approx(2.5, rel=0.03)
    assert fitted.of == f"val: 40000 boxes, {positive.sum()} positive"

    def loss(temperature):
        p = Temperature(temperature)(data.scores)
        return -np.where(positive, np.log(p), np.log(1 - p)).mean()

    best = loss(fitted.temperature)
    assert all(best <= loss(fitted.temperature * step) for step in (0.999, 1.001, 0.5, 2))
    for kind in calibration.KINDS:
        calibrated = calibration.fit(kind, data)(data.scores)
        after = calibration.ece(labelled(calibrated, positive)).value
        assert after < 0.02 < 0.1 < calibration.ece(data).value


def test_temperature_keeps_the_order_and_the_ends():
    scores = np.array([0, 1e-9, 0.3, 0.5, 0.9, 1 - 1e-9, 1])
    hot = Temperature(3.0)(scores)
    assert (np.diff(hot) >= 0).all() and hot[3] == 0.5 and 0 < hot[0] and hot[-1] < 1
    np.testing.assert_allclose(Temperature(1.0)(scores), scores, atol=1.1e-7)


CASES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.77, 0.9, 1.0]), st.booleans()),
    min_size=2,
    max_size=40,
).filter(lambda rows: 0 < sum(row[1] for row in rows) < len(rows))


@settings(max_examples=60, deadline=None)
@given(rows=CASES)
def test_equals_scikit_learn(rows):
    isotonic = pytest.importorskip("sklearn.isotonic")
    metrics = pytest.importorskip("sklearn.metrics")
    scores, positive = (np.array(column) for column in zip(*rows, strict=True))
    data = labelled(scores, positive)
    expected = metrics.brier_score_loss(positive, scores)
    assert calibration.brier(data).value == pytest.approx(expected, abs=1e-12)
    theirs = isotonic.IsotonicRegression(out_of_bounds="clip").fit(scores, positive)
    ask = np.linspace(0, 1, 41)
    mine = calibration.fit("isotonic", data)(ask)
    np.testing.assert_allclose(mine, theirs.predict(ask), rtol=0, atol=1e-12)


@settings(max_examples=150, deadline=None)
@given(
    rows=CASES,
    owners=st.lists(st.integers(0, 4), min_size=40, max_size=40),
    weights=st.lists(st.integers(0, 3), min_size=5, max_size=5),
    num_bins=st.sampled_from([1, 2, 5, 10]),
    binning=st.sampled_from(["width", "mass"]),
)
def test_weighted_equals_plain_loops(rows, owners, weights, num_bins, binning):
    """Bins of the data, every patient's scores copied as often as drawn."""
    scores, positive = (np.array(column) for column in zip(*rows, strict=True))
    patients = np.unique(owners[: len(rows)], return_inverse=True)[1]
    data = labelled(scores, positive, patients)
    weight = np.array(weights, dtype=np.int32)[: data.num_patients]
    draws = Draws(weight[None], Bootstrap(replicates=2))
    table = calibration.reliability(data, num_bins, binning)
    copies = [
        (s, p) for s, p, owner in zip(scores, positive, patients) for _ in range(weight[owner])
    ]
    gap = 0.0
    for row, (low, high) in enumerate(zip(table.low, table.high, strict=True)):
        last = binning == "mass" or row == len(table.low) - 1 and high == 1
        inside = [(s, p) for s, p in copies if low <= s and (s <= high if last else s < high)]
        if inside:
            share, mean = np.mean([p for _, p in inside]), np.mean([s for s, _ in inside])
            gap += len(inside) * abs(share - mean)
    found = calibration.ece(data, num_bins, binning, draws)
    squares = calibration.brier(data, draws)
    assert found.value == pytest.approx(table.ece, abs=1e-12)
    if copies:
        assert found.replicates[0] == pytest.approx(gap / len(copies), abs=1e-12)
        expected = np.mean([(s - p) ** 2 for s, p in copies])
        assert squares.replicates[0] == pytest.approx(expected, abs=1e-12)
    else:
        assert math.isnan(found.replicates[0]) and math.isnan(squares.replicates[0])


@pytest.mark.parametrize("kind", list(calibration.KINDS))
def test_round_trip_through_json(kind):
    rng = np.random.default_rng(0)
    data = labelled(rng.random(50), rng.random(50) < 0.4)
    fitted = calibration.fit(kind, data, "val")
    again = calibration.from_dict(json.loads(json.dumps(calibration.to_dict(fitted))))
    assert again == fitted
    np.testing.assert_array_equal(again(data.scores), fitted(data.scores))


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"kind": "platt"},
        {"kind": "temperature", "temperature": 0},
        {"kind": "temperature", "temperature": "hot"},
        {"kind": "temperature", "temperature": 1.0, "extra": 1},
        {"kind": "isotonic", "scores": [0.5, 0.4], "probabilities": [0, 1]},
        {"kind": "isotonic", "scores": [0.1, 0.4], "probabilities": [1, 0]},
        {"kind": "isotonic", "scores": [0.1], "probabilities": [0, 1]},
        {"kind": "isotonic", "scores": [], "probabilities": []},
        {"kind": "isotonic", "scores": [0.1, math.nan], "probabilities": [0, 1]},
    ],
)
def test_damaged_calibrations_are_one_sentence(entry):
    with pytest.raises(UserError, match="stored calibration is damaged"):
        calibration.from_dict(entry)


def test_of_units_and_boxes():
    rows = np.arange(2)
    scores, flags = np.array([0.3, 0.6]), np.array([True, False])
    units = UnitScores("case", "max", None, rows, scores, flags, rows, 3, 0)
    assert (Labelled.of(units).what, Labelled.of(units).num_patients) == ("cases", 3)
    found = Marks(rows, scores, flags, rows, np.ones(4), np.ones(4), "centre", "ignore", None)
    assert (Labelled.of(found).what, Labelled.of(found).num_patients) == ("boxes", 4)
    assert Labelled.of(found).positive is flags


def test_predictions_are_calibrated():
    """sigmoid(logit(0.9) / 2) = 3 / 4; the boxes stay."""
    found = prediction_table({1: {"boxes": [[0, 0, 2, 2]], "scores": [0.9]}}, [1])
    changed = calibration.calibrated(found, Temperature(2.0))
    assert changed.scores.tolist() == [pytest.approx(0.75)] and found.scores.tolist() == [0.9]
    assert changed.boxes is found.boxes


def test_mistakes_are_one_sentence():
    with pytest.raises(UserError, match="scores in \\[0, 1\\], but they go from -1 to 2"):
        labelled([-1, 2], [0, 1])
    with pytest.raises(UserError, match="scores in"):
        Isotonic((0.0,), (0.5,))(np.array([np.nan]))
    with pytest.raises(UserError, match="val has 2 of 2 positive"):
        calibration.fit("isotonic", labelled([0.1, 0.2], [1, 1]), "val")
    with pytest.raises(UserError, match="calibration was 'platt'"):
        calibration.fit("platt", HAND)
    with pytest.raises(UserError, match="binning was 'log'"):
        calibration.ece(HAND, binning="log")
    with pytest.raises(UserError, match="number of bins was 0"):
        calibration.ece(HAND, 0)
