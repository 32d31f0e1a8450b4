# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""ROC and its area: by hand, against scikit-learn, and weighted against data drawn again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation import auc as roc_auc
from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.estimate import Draws
from detrex_mammo.evaluation.scores import UnitScores


def units(scores, positive, patients=None):
    patients = np.arange(len(scores)) if patients is None else np.asarray(patients)
    number = int(patients.max()) + 1 if len(patients) else 0
    positive = np.asarray(positive, dtype=bool)
    rows, scores = np.arange(len(scores)), np.asarray(scores, dtype=float)
    return UnitScores("image", "max", None, rows, scores, positive, patients, number, 0)


def draws(weights):
    return Draws(np.asarray(weights, dtype=np.int32), Bootstrap(replicates=max(2, len(weights))))


HAND = units([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 0])


def test_by_hand():
    """The head of auc.py: 3.5 of 4 pairs; 8.5 of 9 with the first and the last counted twice."""
    curve = roc_auc.roc(HAND)
    assert curve.thresholds.tolist() == [np.inf, 0.9, 0.5, 0.1]
    assert curve.sensitivity.tolist() == [0, 0.5, 1, 1]
    assert curve.specificity.tolist() == [1, 1, 0.5, 0]
    found = roc_auc.auc(HAND, draws([[1, 1, 1, 1], [2, 1, 1, 2], [0, 1, 0, 1], [1, 1, 0, 0]]))
    assert found.value == 0.875 and found.of == "2 positive and 2 negative images"
    np.testing.assert_allclose(found.replicates, [0.875, 8.5 / 9, 1, np.nan], rtol=1e-15)
    assert roc_auc.specificity_at(HAND, 0.9).value == 0.5
    assert roc_auc.specificity_at(HAND, 0.5).value == 1
    assert roc_auc.sensitivity_at(HAND, 1.0).value == 0.5
    assert roc_auc.sensitivity_at(HAND, 0.5).value == 1


def test_rates_at_a_threshold_by_hand():
    """At >= 0.5: both positives and one of two negatives are called positive."""
    found = roc_auc.rates_at(HAND, 0.5, draws([[1, 1, 1, 1], [1, 0, 0, 3], [0, 0, 2, 2]]))
    values = {name: f.value for name, f in found.items()}
    assert values == {"sensitivity": 1, "specificity": 0.5, "ppv": 2 / 3, "npv": 1}
    assert found["specificity"].of == "2 negative images"
    assert found["ppv"].of == "3 images called positive"
    np.testing.assert_array_equal(found["specificity"].replicates, [0.5, 1, 0.5])
    np.testing.assert_array_equal(found["sensitivity"].replicates, [1, 1, np.nan])


def test_a_rate_of_counts_is_exact():
    """0.9 of ten positives is nine of them, although 0.9 * 10 may be 9.000000000000002."""
    ten = units(np.r_[np.arange(10, 20), 10.5] / 20, [1] * 10 + [0])
    assert roc_auc.specificity_at(ten, 0.9).value == 1
    assert roc_auc.specificity_at(ten, 0.91).value == 0
    for number in range(1, 60):
        every = units(np.r_[np.arange(1, number + 1), 0.5], [1] * number + [0])
        for hit in range(1, number + 1):
            cut = units(np.r_[np.arange(1, number + 1), number - hit + 0.5], every.positive)
            assert roc_auc.specificity_at(cut, hit / number).value == 1


@pytest.mark.parametrize("positive", [[0, 0], [1, 1]])
def test_one_kind_only_is_nan(positive):
    alike = units([0.3, 0.4], positive)
    for found in (roc_auc.auc(alike), roc_auc.auc(alike, draws([[1, 1], [2, 0]]))):
        assert np.isnan([found.value, found.low, found.high]).all()
    assert np.isnan(roc_auc.specificity_at(alike, 0.9, draws([[1, 1], [2, 0]])).value)


def test_mistakes_are_one_sentence():
    with pytest.raises(UserError, match="sensitivity was 1.5, but it is in"):
        roc_auc.specificity_at(HAND, 1.5)
    with pytest.raises(UserError, match="specificity was 0, but it is in"):
        roc_auc.sensitivity_at(HAND, 0)
    with pytest.raises(UserError, match="rate was 0"):
        roc_auc.roc(HAND).partial_area(0)


CASES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0]), st.booleans(), st.integers(0, 3)),
    min_size=2,
    max_size=30,
).filter(lambda rows: 0 < sum(row[1] for row in rows) < len(rows))


@settings(max_examples=70, deadline=None)
@given(rows=CASES, limit=st.sampled_from([0.1, 0.25, 0.5, 0.77, 1.0]))
def test_equals_scikit_learn(rows, limit):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, positive, weights = (np.array(column) for column in zip(*rows, strict=True))
    data = units(scores, positive)
    curve = roc_auc.roc(data)
    false, true, thresholds = metrics.roc_curve(positive, scores, drop_intermediate=False)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    np.testing.assert_allclose(curve.sensitivity, true, rtol=1e-15)
    np.testing.assert_allclose(1 - curve.specificity, false, rtol=0, atol=1e-15)
    partial = metrics.roc_auc_score(positive, scores, max_fpr=limit)
    assert curve.partial_area(limit) == pytest.approx(partial, abs=1e-12)
    found = roc_auc.auc(data, draws([weights, weights + 1]))
    assert found.value == pytest.approx(metrics.roc_auc_score(positive, scores), abs=1e-12)
    for value, sample_weight in zip(found.replicates, (weights, weights + 1), strict=True):
        if sample_weight[positive].sum() and sample_weight[~positive].sum():
            expected = metrics.roc_auc_score(positive, scores, sample_weight=sample_weight)
            assert value == pytest.approx(expected, abs=1e-12)
        else:
            assert np.isnan(value)


@settings(max_examples=200, deadline=None)
@given(
    rows=CASES,
    owners=st.lists(st.integers(0, 5), min_size=30, max_size=30),
    weights=st.lists(st.integers(0, 3), min_size=6, max_size=6),
    target=st.sampled_from([0.1, 1 / 3, 0.5, 0.9, 1.0]),
)
def test_weighted_equals_data_drawn_again(rows, owners, weights, target):
    """Units of a patient with weight w, copied w times, give the same figures: plain loops."""
    scores, positive, _ = (np.array(column) for column in zip(*rows, strict=True))
    patients = np.unique(owners[: len(rows)], return_inverse=True)[1]
    data = units(scores, positive, patients)
    weight = np.array(weights)[: data.num_patients]
    again = np.repeat(np.arange(len(rows)), weight[patients])
    high, low = scores[again][positive[again]], scores[again][~positive[again]]
    found = {
        "auc": roc_auc.auc(data, draws([weight])),
        "specificity": roc_auc.specificity_at(data, target, draws([weight])),
        "sensitivity": roc_auc.sensitivity_at(data, target, draws([weight])),
    }
    expected = dict.fromkeys(found, np.nan)
    if len(high) and len(low):
        pairs = [(a > b) + (a == b) / 2 for a in high for b in low]
        cuts = [*np.unique(scores[again]), np.inf]
        rates = [(np.mean(high >= cut), np.mean(low < cut)) for cut in cuts]
        expected["auc"] = np.mean(pairs)
        expected["specificity"] = max(b for a, b in rates if a >= target - 1e-9)
        expected["sensitivity"] = max(a for a, b in rates if b >= target - 1e-9)
    for name, figure in found.items():
        np.testing.assert_allclose(figure.replicates[0], expected[name], rtol=1e-12, err_msg=name)


def test_corners_keep_the_curve():
    rng = np.random.default_rng(0)
    data = units(rng.integers(0, 200, 500) / 200, rng.random(500) < 0.3)
    curve = roc_auc.roc(data)
    rows = curve.corners()
    assert len(rows) < len(curve.thresholds)
    x, y = curve.false_positives, curve.true_positives
    np.testing.assert_allclose(np.trapezoid(y[rows], x[rows]), np.trapezoid(y, x), rtol=1e-12)


def test_interval_holds_the_value_and_narrows():
    """Scores of 50 and 5,000 units, alike otherwise."""
    rng, widths = np.random.default_rng(1), []
    for number in (50, 5000):
        positive = rng.random(number) < 0.4
        data = units(rng.normal(positive, 1), positive)
        bootstrap = Bootstrap(replicates=400)
        found = roc_auc.auc(data, Draws(bootstrap.weights(data.patients), bootstrap))
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert 5 < widths[0] / widths[1] < 20  # near sqrt(100) = 10
