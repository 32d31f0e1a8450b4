# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""FROC against plain loops (slow_froc.py) over exact fractions: equal on thousands of cases."""

import itertools
import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detrex_mammo.evaluation.froc import FrocCurve, FrocSettings, froc
from tests.evaluation import slow_froc as slow
from tests.evaluation.random_study import (
    RULES,
    fast_data,
    random_annotations,
    random_found,
    slow_data,
)


def agree(annotations, predictions, rule, duplicates, denominator, class_aware, unit):
    """Fast and slow give the same points, counts and sensitivities, for all and for each class."""
    options = (duplicates, denominator, class_aware)
    study, table = fast_data(annotations, predictions)
    truth, found = slow_data(annotations, predictions, unit)
    fast = froc(study, table, FrocSettings(rule, *options, unit))
    curves = [(None, fast.overall), *fast.per_class.items()]
    assert len(curves) == (3 if class_aware else 1)
    images = slow.slow_fp_images(truth, denominator)
    for category, curve in curves:
        expected = slow.slow_froc(truth, found, RULES[rule], *options, category)
        thresholds = [None if t == np.inf else int(t) for t in curve.thresholds.tolist()]
        counts = curve.true_positives.tolist(), curve.false_positives.tolist()
        assert list(zip(thresholds, *counts, strict=True)) == expected
        assert (curve.num_units, curve.num_fp_images) == (slow.slow_units(truth, category), images)
        if not curve.num_units or not images:
            assert curve.reason and np.isnan(curve.cpm())
            continue
        for rate in ("0", "0.1", "0.125", "0.25", "0.3", "0.5", "1", "2", "8"):
            best = slow.slow_sensitivity(expected, curve.num_units, images, Fraction(rate))
            assert curve.sensitivity_at(float(rate)) == float(best)
        again = FrocCurve.from_dict(json.loads(json.dumps(curve.to_dict())))
        assert again.to_dict()["curve"] == curve.to_dict()["curve"]
        assert (again.settings, again.num_units) == (curve.settings, curve.num_units)


OPTIONS = {
    "duplicates": ["ignore", "count"],
    "denominator": ["all", "negative"],
    "class_aware": [True, False],
    "unit": ["lesion_view", "lesion", "breast", "case"],
}


@pytest.mark.parametrize("rule", sorted(RULES))
@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_images=st.integers(1, 6),
    options=st.fixed_dictionaries({name: st.sampled_from(v) for name, v in OPTIONS.items()}),
)
def test_agrees_with_plain_loops_on_drawn_cases(rule, seed, num_images, options):
    """1,200 cases, every rule, with units, boxes that do not count, and slices."""
    rng = np.random.default_rng(seed)
    scale = 40 if rule == "dbt" else 1
    annotations = random_annotations(rng, num_images, scale)
    agree(annotations, random_found(rng, annotations, scale), rule, **options)


@pytest.mark.parametrize("unit", OPTIONS["unit"])
@pytest.mark.parametrize("rule", sorted(RULES))
def test_agrees_with_plain_loops_for_every_combination(rule, unit):
    """12 cases for each of the 128 combinations: 1,536 in all; boxes in random order."""
    rng = np.random.default_rng(20)
    scale = 40 if rule == "dbt" else 1
    for combination in itertools.product(*list(OPTIONS.values())[:3]):
        for _ in range(12):
            annotations = random_annotations(rng, scale=scale)
            found = random_found(rng, annotations, scale)
            agree(annotations, found, rule, *combination, unit)


def test_the_order_of_the_input_never_matters():
    """Annotations, images' predictions and boxes shuffled: the same curve, 200 times."""
    rng = np.random.default_rng(21)
    for _ in range(200):
        annotations = random_annotations(rng)
        found = random_found(rng, annotations)
        mixed = {**annotations, "annotations": list(rng.permutation(annotations["annotations"]))}
        order = rng.permutation(list(found)).tolist()
        rows = {i: [found[i][k] for k in rng.permutation(len(found[i]))] for i in order}
        one, two = (froc(*fast_data(*data)) for data in ((annotations, found), (mixed, rows)))
        assert one.overall.to_dict() == two.overall.to_dict()
