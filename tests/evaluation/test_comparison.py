# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Two models on the same set."""

import math

import numpy as np
import pytest

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.comparison import compare
from detrex_mammo.evaluation.estimate import Estimate
from detrex_mammo.evaluation.froc_bootstrap import froc_bootstrap

BOOTSTRAP = Bootstrap(replicates=100)


def figure(value, replicates, of="9 lesions"):
    return Estimate(value, 0.0, 1.0, of, np.asarray(replicates, dtype=float))


def test_by_hand():
    """Differences of 100 replicates: -1 in 4 of them, 2 in 96. Interval (-1, 2), p = 2 * 4/100."""
    a = figure(5.0, np.r_[np.full(4, 3.0), np.full(96, 6.0)])
    b = figure(4.0, np.full(100, 4.0))
    found = compare({"x": a, "only a": a}, {"x": b}, BOOTSTRAP)
    assert list(found) == ["x"]
    difference = found["x"].difference
    assert (found["x"].a, found["x"].b, difference.value) == (5, 4, 1)
    assert (difference.low, difference.high) == (-1, 2)
    assert found["x"].p_value == pytest.approx(0.08)


def test_a_figure_that_one_model_lacks_has_no_difference():
    found = compare(
        {"x": figure(math.nan, np.full(100, math.nan))},
        {"x": figure(1.0, np.ones(100))},
        BOOTSTRAP,
    )["x"]
    assert math.isnan(found.p_value) and math.isnan(found.difference.low)


def test_other_replicates_or_other_data_are_refused():
    one = {"x": figure(1.0, np.ones(100))}
    with pytest.raises(UserError, match="50 replicates"):
        compare(one, {"x": figure(1.0, np.ones(50))}, BOOTSTRAP)
    with pytest.raises(UserError, match="8 lesions"):
        compare(one, {"x": figure(1.0, np.ones(100), "8 lesions")}, BOOTSTRAP)


def test_models_compared_pairwise_are_told_apart_where_unpaired_ones_are_not():
    """B is A with 8 of 150 hits lost: the intervals of both overlap, that of the difference, about
    -8/150, excludes 0; and a model compared with itself has p = 1."""
    rng = np.random.default_rng(0)
    lesion, far = (10, 10, 20, 20), (80, 80, 90, 90)
    truth = {image: {"boxes": [lesion]} for image in range(150)}
    hit = rng.random(150) < 0.7
    lost = hit & (np.cumsum(hit) <= 8)

    def model(hits):
        return {
            i: {"boxes": [lesion, far] if h else [far], "scores": [0.9, 0.2] if h else [0.2]}
            for i, h in enumerate(hits)
        }

    bootstrap = Bootstrap(replicates=500)
    one, two = (
        froc_bootstrap(truth, model(h), bootstrap=bootstrap).figures({0: "mass"})
        for h in (hit, hit & ~lost)
    )
    assert one["sens@0.5"].low < two["sens@0.5"].high
    found = compare(one, two, bootstrap)["sens@0.5"]
    assert found.difference.value == pytest.approx(8 / 150)
    assert found.difference.low > 0 and found.p_value < 0.01
    assert compare(one, one, bootstrap)["cpm"].p_value == 1
