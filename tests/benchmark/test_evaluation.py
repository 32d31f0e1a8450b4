# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The benchmark of the FROC: its data are what they claim, and it loads no torch."""

import subprocess
import sys

import numpy as np

from detrex_mammo.benchmark import evaluation
from detrex_mammo.benchmark.child import in_child
from detrex_mammo.evaluation.froc import froc

SKILL = evaluation.SKILL


def test_synthetic_data():
    """1,000 images of 4 a patient, 10 predictions each; about 80 % of 300 lesions are marked, and
    scores are all different, the hardest case for a FROC."""
    study, found = evaluation.synthetic(1000, 10, 4)
    assert (study.num_images, study.num_patients, len(found)) == (1000, 250, 10_000)
    assert len(np.unique(found.scores)) == 10_000 and len(study.lesions) == 300
    curve = froc(study, found).overall
    assert abs(curve.sensitivity[-1] - SKILL) < 0.15 and curve.sensitivity_at(0) < 0.1


def test_measured_in_a_process_of_its_own():
    found = in_child(evaluation.measure, images=50, predictions=5, replicates=20, views=2)
    assert found["seconds"] > 0 and 10e6 < found["peak"] < 1e9
    assert "50 images of 25 patients" in found["cpm"]


def test_the_process_needs_no_torch():
    code = "import sys, detrex_mammo.benchmark.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
