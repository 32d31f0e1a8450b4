# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Bootstrap over patients: what is drawn, intervals, p-values."""

import numpy as np
import pytest

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation import bootstrap as module
from detrex_mammo.evaluation.bootstrap import Bootstrap, paired_p_value

PATIENTS = np.array([0, 0, 1, 2, 2, 2, 3, 4])
POSITIVE = np.array([0, 1, 0, 0, 0, 1, 0, 0], dtype=bool)  # patients 0 and 2


def test_every_replicate_draws_as_many_patients_as_there_are():
    drawn = Bootstrap(replicates=500).weights(PATIENTS)
    assert drawn.shape == (500, 5) and drawn.dtype == np.int32
    assert (drawn.sum(axis=1) == 5).all() and drawn.min() == 0 and drawn.max() > 1


def test_every_patient_is_drawn_equally_often():
    """Weights of 4,000 replicates of 5 patients: each patient's mean is 1 within 5 standard errors,
    sqrt(0.8 / 4000) = 0.014, and its variance 5 * 1/5 * 4/5 = 0.8."""
    for stratified in (False, True):
        bootstrap = Bootstrap(replicates=4000, seed=3, stratified=stratified)
        drawn = bootstrap.weights(PATIENTS, POSITIVE)
        np.testing.assert_allclose(drawn.mean(axis=0), 1, atol=0.07)
    plain = Bootstrap(replicates=4000, seed=3).weights(PATIENTS)
    np.testing.assert_allclose(plain.var(axis=0), 0.8, atol=0.1)


def test_stratified_keeps_the_number_of_patients_with_lesions():
    drawn = Bootstrap(replicates=300, stratified=True).weights(PATIENTS, POSITIVE)
    assert (drawn[:, [0, 2]].sum(axis=1) == 2).all()
    assert (drawn[:, [1, 3, 4]].sum(axis=1) == 3).all()
    plain = Bootstrap(replicates=300).weights(PATIENTS)
    assert (plain[:, [0, 2]].sum(axis=1) != 2).any()


def test_the_seed_decides():
    same = [Bootstrap(replicates=20, seed=7).weights(PATIENTS) for _ in range(2)]
    assert (same[0] == same[1]).all()
    assert (same[0] != Bootstrap(replicates=20, seed=8).weights(PATIENTS)).any()


@pytest.mark.parametrize("stratified", [False, True])
def test_blocks_are_the_rows_of_the_weights(monkeypatch, stratified):
    monkeypatch.setattr(module, "_WEIGHTS_A_BLOCK", 15)
    bootstrap = Bootstrap(replicates=7, stratified=stratified)
    blocks = list(bootstrap.blocks(PATIENTS, POSITIVE))
    assert [len(block) for block in blocks] == [3, 3, 1]
    assert (np.concatenate(blocks) == bootstrap.weights(PATIENTS, POSITIVE)).all()


def test_statistics_see_the_same_replicates():
    bootstrap = Bootstrap(replicates=50)
    weights = bootstrap.weights(PATIENTS)
    first, last = bootstrap.replicate([lambda w: w[:, :1], lambda w: w[:, 4:]], PATIENTS)
    assert (first == weights[:, :1]).all() and (last == weights[:, 4:]).all()


def test_no_images():
    assert Bootstrap(replicates=3).weights(np.zeros(0, dtype=np.int64)).shape == (3, 0)


def test_interval_by_hand():
    """0, 1, ..., 100: the 95 % interval is 2.5 to 97.5, the 80 % one 10 to 90; NaN is left out."""
    values = np.arange(101.0)
    assert Bootstrap().interval(values) == pytest.approx((2.5, 97.5), abs=1e-9)
    low, high = Bootstrap(level=0.8).interval(np.append(values, np.nan))
    assert (low, high) == pytest.approx((10, 90), abs=1e-9)
    assert np.isnan(Bootstrap().interval(np.full(4, np.nan))).all()


def test_paired_p_value_by_hand():
    """Of 100 differences 5 are below 0: 2 * 5/100. 3 below, 4 at 0: 2 * (3 + 2)/100. None below: at
    least 1/101. All at 0: 1."""
    assert paired_p_value(np.r_[-np.ones(5), np.ones(95)]) == pytest.approx(0.1)
    assert paired_p_value(np.r_[-np.ones(3), np.zeros(4), np.ones(93)]) == pytest.approx(0.1)
    assert paired_p_value(np.r_[np.ones(100), np.nan]) == 1 / 101
    assert paired_p_value(np.zeros(10)) == 1
    assert np.isnan(paired_p_value(np.full(3, np.nan)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"replicates": 1}, "replicates was 1"),
        ({"level": 95}, "level was 95"),
        ({"level": 0}, "level was 0"),
        ({"seed": -1}, "seed was -1"),
    ],
)
def test_impossible_settings(options, words):
    with pytest.raises(UserError, match=words):
        Bootstrap(**options)


def test_text_tells_everything():
    text = Bootstrap(replicates=200, seed=4, level=0.9, stratified=True).text()
    assert all(word in text for word in ("90 %", "200", "patients", "seed 4", "lesions"))
