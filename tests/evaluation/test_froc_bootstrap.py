# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""FROC with intervals: every replicate equals the FROC of a real copy of the drawn patients."""

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detrex_mammo.evaluation import bootstrap as bootstrap_module
from detrex_mammo.evaluation import froc_bootstrap as module
from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.froc import CPM_FPPI, FrocCurve, FrocSettings, froc
from detrex_mammo.evaluation.froc_bootstrap import froc_bootstrap
from detrex_mammo.evaluation.study import read_study
from detrex_mammo.evaluation.tables import lesion_table
from tests.evaluation import slow_froc as slow
from tests.evaluation.random_study import (
    RULES,
    fast_data,
    patient_of,
    random_annotations,
    random_found,
    slow_data,
)

RATES = ("0", "0.1", "0.125", "0.25", "0.5", "1", "2", "8")
LESION, FAR = (10, 10, 20, 20), (80, 80, 90, 90)


@pytest.mark.parametrize("rule", sorted(RULES))
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    stratified=st.booleans(),
    options=st.fixed_dictionaries(
        {
            "duplicates": st.sampled_from(["ignore", "count"]),
            "denominator": st.sampled_from(["all", "negative"]),
            "class_aware": st.booleans(),
            "unit": st.sampled_from(["lesion_view", "lesion", "breast", "case"]),
        }
    ),
)
def test_replicates_are_plain_loops_over_copied_patients(rule, seed, stratified, options):
    """600 data sets, 4 replicates each: 2,400 copies, scored from nothing, for every class."""
    rng = np.random.default_rng(seed)
    scale = 40 if rule == "dbt" else 1
    annotations = random_annotations(rng, scale=scale)
    predictions = random_found(rng, annotations, scale)
    study, table = fast_data(annotations, predictions)
    bootstrap = Bootstrap(4, seed % 1000, stratified=stratified)
    rates = [float(rate) for rate in RATES]
    found = froc_bootstrap(
        study, table, FrocSettings(rule, **options), bootstrap=bootstrap, fppi=rates
    )
    names = list(dict.fromkeys(patient_of(image) for image in annotations["images"]))
    curves = {None: found.overall, **found.per_class}
    for row, weights in enumerate(bootstrap.weights(study.patients, study.is_positive)):
        copies = dict(zip(names, weights.tolist(), strict=True))
        truth, marks = slow_data(annotations, predictions, options["unit"], copies)
        args = (RULES[rule], *(options[k] for k in ("duplicates", "denominator", "class_aware")))
        images = slow.slow_fp_images(truth, options["denominator"])
        for category, curve in curves.items():
            got = [curve._column(rate)[row] for rate in rates]
            units = slow.slow_units(truth, category)
            if not units or not images:
                assert np.isnan(got).all()
                continue
            points = slow.slow_froc(truth, marks, *args, category)
            expected = [slow.slow_sensitivity(points, units, images, Fraction(r)) for r in RATES]
            assert got == [float(value) for value in expected]


def crowded(rng, num_images=60):
    """Two images a patient, with ties in score; ground truth and predictions."""
    truth, found = {}, {}
    for image in range(num_images):
        corner = rng.integers(0, 60, (rng.integers(0, 3), 2))
        truth[image] = {"boxes": np.concatenate([corner, corner + 8], axis=1)}
        corner = np.concatenate([corner, rng.integers(0, 60, (20, 2))])
        scores = rng.integers(0, 40, len(corner))
        found[image] = {"boxes": np.concatenate([corner, corner + 8], axis=1), "scores": scores}
    return truth, found


def test_blocks_and_depth_do_not_matter(monkeypatch):
    """The false positives that a replicate needs are found however few are looked at first."""
    truth, found = crowded(np.random.default_rng(2))
    whole = froc_bootstrap(truth, found, bootstrap=Bootstrap(50)).overall.replicates
    monkeypatch.setattr(module, "_NUMBERS_A_BLOCK", 100)
    monkeypatch.setattr(bootstrap_module, "_WEIGHTS_A_BLOCK", 200)
    start = module.SensitivityReplicates.__init__

    def shallow(self, *args):
        start(self, *args)
        self._go_down_to(3)

    monkeypatch.setattr(module.SensitivityReplicates, "__init__", shallow)
    again = froc_bootstrap(truth, found, bootstrap=Bootstrap(50)).overall.replicates
    np.testing.assert_array_equal(whole, again)


def test_weights_of_one_are_the_curve_itself():
    truth, found = crowded(np.random.default_rng(4))
    intervals = froc_bootstrap(truth, found, bootstrap=Bootstrap(2)).overall
    sweep = module.froc_sweeps(truth, found)[1][0]
    statistic = module.SensitivityReplicates(sweep, intervals.fppi)
    (row,) = statistic(np.ones((1, 60), dtype=np.int64))
    assert row.tolist() == [intervals.curve.sensitivity_at(f) for f in intervals.fppi]


def test_patients_are_drawn_not_images():
    """One patient with all 40 images: every replicate is the data, so the interval is a point."""
    truth, found = crowded(np.random.default_rng(5), num_images=40)
    images = [{"id": image, "patient_id": "P"} for image in truth]
    boxes = [
        {"image_id": i, "category_id": 0, "bbox": [x, y, 8, 8]}
        for i, rows in truth.items()
        for x, y, _, _ in rows["boxes"].tolist()
    ]
    categories = [{"id": 0, "name": "mass"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    one = froc_bootstrap(read_study(content), found, bootstrap=Bootstrap(50)).overall
    many = froc_bootstrap(truth, found, bootstrap=Bootstrap(50)).overall
    assert one.curve.num_patients == 1 and many.curve.num_patients == 40
    figure = one.sensitivity_at(1.0)
    assert figure.low == figure.high == figure.value == many.sensitivity_at(1.0).value
    assert many.sensitivity_at(1.0).low < many.sensitivity_at(1.0).high


def test_by_hand():
    """The head's case: A hit at 0.5, B a false positive at 0.9, C nothing; sensitivity at 1/3.

    By weights: without A undefined, NaN; else 1 if B's weight is at most 1, and 0 otherwise.
    """
    truth = {"A": {"boxes": [LESION]}, "B": {"boxes": []}, "C": {"boxes": []}}
    found = {
        "A": {"boxes": [LESION], "scores": [0.5]},
        "B": {"boxes": [FAR], "scores": [0.9]},
    }
    bootstrap = Bootstrap(200)
    third = 1 / 3
    intervals = froc_bootstrap(truth, found, bootstrap=bootstrap, fppi=[third]).overall
    values = intervals.sensitivity_at(third).replicates
    weights = bootstrap.weights(np.arange(3))
    expected = np.where(weights[:, 0] == 0, np.nan, (weights[:, 1] <= 1).astype(float))
    np.testing.assert_array_equal(values, expected)
    assert intervals.sensitivity_at(third).value == 1 and len(np.unique(expected[:50])) > 2


def test_figures_and_report():
    truth, found = crowded(np.random.default_rng(6))
    intervals = froc_bootstrap(truth, found, bootstrap=Bootstrap(100), fppi=(0.3, 1.0))
    figures = intervals.figures({0: "mass"}, (0.3, 1.0))
    assert list(figures) == ["sens@0.3", "sens@1", "cpm"]
    cpm = figures["cpm"]
    columns = [intervals.overall.sensitivity_at(f).replicates for f in CPM_FPPI]
    np.testing.assert_allclose(cpm.replicates, np.mean(columns, axis=0), rtol=1e-15)
    assert cpm.low < cpm.value < cpm.high and "60 images of 60 patients" in cpm.of
    report = json.loads(json.dumps(intervals.overall.to_dict((0.3, 1.0)), allow_nan=False))
    assert report["points"][0]["low"] == figures["sens@0.3"].low
    assert report["cpm_high"] == cpm.high and "100 bootstrap replicates" in report["interval"]
    assert FrocCurve.from_dict(report).cpm() == cpm.value
    band = report["band"]
    place = band["fppi"].index(0.3)
    ends = report["points"][0]["low"], report["points"][0]["high"]
    assert (band["low"][place], band["high"][place]) == ends
    assert all(low <= high for low, high in zip(band["low"], band["high"], strict=True))
    with pytest.raises(ValueError, match=r"fppi was 0\.77"):
        intervals.overall.sensitivity_at(0.77)


def test_undefined_is_undefined():
    """No lesions: NaN without an interval, None in the report."""
    intervals = froc_bootstrap({"a": {"boxes": []}}, {}, bootstrap=Bootstrap(5)).overall
    figure = intervals.sensitivity_at(1.0)
    assert np.isnan([figure.value, figure.low, figure.high]).all()
    report = json.loads(json.dumps(intervals.to_dict(), allow_nan=False))
    assert report["points"][0]["low"] is None and set(report["band"]["low"]) == {None}
    assert froc_bootstrap({}, {}, bootstrap=Bootstrap(5)).overall.curve.reason


def test_the_result_is_that_of_froc():
    truth, found = crowded(np.random.default_rng(7))
    table = lesion_table(truth)
    assert froc_bootstrap(table, found, bootstrap=Bootstrap(2)).result.overall.to_dict() == (
        froc(table, found).overall.to_dict()
    )
