# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Do the 95 % intervals hold the truth in 95 % of all studies? Readers whose truth is known."""

import numpy as np
import pytest

from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.froc_bootstrap import froc_bootstrap
from detrex_mammo.evaluation.froc_settings import CPM_FPPI
from detrex_mammo.evaluation.study import read_study
from detrex_mammo.evaluation.tables import PredictionTable

LESION, FAR = (10, 10, 20, 20), (80, 80, 90, 90)
VIEWS, RATE = 4, 10.0  # images of a patient, false positives in an image
SKILL = 3.0, 1.0  # of a patient's lesions, Beta; 3/4 on average


def true_sensitivity(fppi):
    """Of all the women there are, at the threshold that gives so many false positives per image.

    False positives: RATE an image on average, more in some women; scores even in [0, 1]. So there
    are fppi of them above the threshold t = 1 - fppi / RATE. A lesion is marked with the woman's
    chance, 3/4 on average, and its score is above t with 1 - t^4.
    """
    threshold = 1 - np.asarray(fppi) / RATE
    return SKILL[0] / sum(SKILL) * (1 - threshold**4)


def simulate(rng, num_patients):
    """A study of women; half of them have a lesion, seen in two of four views."""
    images = [{"id": i, "patient_id": str(i // VIEWS)} for i in range(VIEWS * num_patients)]
    ill = np.flatnonzero(rng.random(num_patients) < 0.5)
    views = (VIEWS * ill[:, None] + np.arange(2)).ravel()
    x, y = LESION[:2]
    boxes = [{"image_id": i, "category_id": 1, "bbox": [x, y, 10, 10]} for i in views.tolist()]
    categories = [{"id": 1, "name": "mass"}]
    study = read_study({"images": images, "annotations": boxes, "categories": categories})

    rates = np.repeat(rng.gamma(4.0, RATE / 4.0, num_patients), VIEWS)  # alike in a woman's views
    false = np.repeat(np.arange(len(images)), rng.poisson(rates))
    marked = views[rng.random(len(views)) < np.repeat(rng.beta(*SKILL, len(ill)), 2)]
    hit_scores = rng.random(len(marked)) ** (1 / 4)
    number = len(false) + len(marked)
    found = PredictionTable(
        np.concatenate([false, marked]),
        np.concatenate([np.tile(FAR, (len(false), 1)), np.tile(LESION, (len(marked), 1))]) * 1.0,
        np.concatenate([rng.random(len(false)), hit_scores]),
        np.ones(number, dtype=np.int64),
    )
    return study, found


def covered(runs, num_patients, replicates):
    """(runs, 3) bool: the interval of sens@0.5, sens@2 and CPM holds the truth."""
    truth = [*true_sensitivity([0.5, 2.0]), true_sensitivity(CPM_FPPI).mean()]
    rng = np.random.default_rng(0)
    found = []
    for run in range(runs):
        data = simulate(rng, num_patients)
        intervals = froc_bootstrap(*data, bootstrap=Bootstrap(replicates, run)).overall
        figures = intervals.figures((0.5, 2.0)).values()
        found.append([f.low <= t <= f.high for f, t in zip(figures, truth, strict=True)])
    return np.array(found)


def test_truth_is_that_of_a_very_large_study():
    """5,000 women: the sensitivities are the formula's within 0.02."""
    study, found = simulate(np.random.default_rng(1), 5_000)
    intervals = froc_bootstrap(study, found, bootstrap=Bootstrap(2)).overall
    for fppi in (0.5, 2.0, 8.0):
        value = intervals.sensitivity_at(fppi).value
        assert value == pytest.approx(float(true_sensitivity(fppi)), abs=0.02)


def test_a_smaller_number_of_studies_is_covered_about_as_often():
    """60 studies: 57 expected, fewer than 50 by chance in one of 10,000 attempts."""
    assert (covered(60, 100, 200).sum(axis=0) >= 50).all()


@pytest.mark.slow
def test_coverage():
    """1,000 studies of 200 women: 93 to 97 % hold the truth, at two points and for CPM."""
    shares = covered(1000, 200, 1000).mean(axis=0)
    print(f"coverage of sens@0.5, sens@2, CPM: {shares}")
    assert ((shares >= 0.93) & (shares <= 0.97)).all()
