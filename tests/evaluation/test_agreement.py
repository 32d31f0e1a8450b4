# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What the other view of a breast says, worked by hand."""

import numpy as np
import pytest

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.agreement import Agreement, pairs_of_views
from detrex_mammo.evaluation.study import read_study
from detrex_mammo.evaluation.tables import PredictionTable


def image(number, view, side="L", **more):
    place = {"patient_id": "P", "study_id": "S", "laterality": side, "view": view}
    return {"id": number, "width": 200, "height": 300, **place, **more}


def study_of(*images):
    categories = [{"id": 1, "name": "mass"}, {"id": 2, "name": "calcification"}]
    return read_study({"images": images, "annotations": [], "categories": categories})


def boxes(*rows):
    """Rows (image, x of the centre, score, class); boxes are 10 x 10."""
    rows = np.array(rows, dtype=np.float64).reshape(-1, 4)
    x = rows[:, 1]
    corners = np.column_stack((x - 5, np.full(len(x), 20), x + 5, np.full(len(x), 30)))
    return PredictionTable(rows[:, 0].astype(int), corners, rows[:, 2], rows[:, 3].astype(int))


def test_by_hand():
    """The module's numbers: 0.8 and 0.2 become 2/3 and 1/3; the class without support drops.

    Class 2 is in CC only, with 0.5 and 0.1; the other view holds none, so the support is the
    lowest score, 0.1: 0.1 stays, and 0.5 (logit 0) becomes sigmoid(1/4 * -ln 9) = 1 / (1 + sqrt 3).
    """
    study = study_of(image(1, "CC"), image(2, "MLO"))
    found = boxes((0, 50, 0.8, 1), (1, 90, 0.2, 1), (0, 10, 0.5, 2), (0, 30, 0.1, 2))
    moved = Agreement(0.25)(study, found)
    np.testing.assert_allclose(moved.scores, [2 / 3, 1 / 3, 1 / (1 + 3**0.5), 0.1], atol=1e-12)
    assert moved.boxes is found.boxes


def test_depth_decides_which_box_fits():
    """Chest wall left in CC (front at x = 100, 1 mm), right in MLO (front at x = 40, 2 mm).

    Depths: CC box at x = 70: 30 mm. MLO boxes at x = 65, 75, 50: 50, 70, 20 mm. With 20 mm,
    the first and the third fit: support 0.5 (not 0.9). With 50 mm 0.9 does too; with 5 mm nothing
    fits, and the support is the lowest score, 0.3. Weight 1 shows the support.
    """
    cc = image(1, "CC", breast_box=[0, 0, 100, 300], chest_wall="left", pixel_spacing=[9, 1])
    mlo = image(2, "MLO", breast_box=[40, 0, 200, 300], chest_wall="right", pixel_spacing=[9, 2])
    found = boxes((0, 70, 0.7, 1), (1, 65, 0.5, 1), (1, 75, 0.9, 1), (1, 50, 0.3, 1))
    for tolerance, support in ((20, 0.5), (50, 0.9), (5, 0.3)):
        moved = Agreement(1, tolerance)(study_of(cc, mlo), found)
        assert moved.scores[0] == pytest.approx(support)
    for lacking in ("breast_box", "chest_wall", "pixel_spacing"):
        bare = {key: value for key, value in mlo.items() if key != lacking}
        assert Agreement(1, 5)(study_of(cc, bare), found).scores[0] == pytest.approx(0.9)


def test_only_other_views_of_the_same_breast_and_study():
    """CC twice, MLO, the other side, another study, another patient, and images without a view."""
    study = study_of(
        image(1, "CC"), image(2, "CC"), image(3, "MLO"), image(4, "MLO", "R"),
        image(5, "MLO", study_id="T"), image(6, "MLO", patient_id="Q"), image(7, None),
        image(8, "CC", laterality=None), image(9, "MLO", laterality=None),
    )  # fmt: skip
    assert pairs_of_views(study) == [(0, 2), (1, 2), (2, 0), (2, 1)]
    found = boxes(*((row, 50, 0.9 - 0.1 * row, 1) for row in range(9)))
    moved = Agreement(1)(study, found)
    np.testing.assert_allclose(moved.scores[:3], [0.7, 0.7, 0.9])  # the better of two CC
    np.testing.assert_array_equal(moved.scores[3:], found.scores[3:])


def test_weight_0_and_equal_support_change_nothing():
    study = study_of(image(1, "CC"), image(2, "MLO"))
    found = boxes((0, 50, 1.0, 1), (1, 90, 0.0, 1))
    np.testing.assert_array_equal(Agreement(0)(study, found).scores, [1.0, 0.0])
    same = boxes((0, 50, 0.37, 1), (1, 90, 0.37, 1))
    np.testing.assert_allclose(Agreement(0.5)(study, same).scores, [0.37, 0.37], atol=1e-12)
    assert np.isfinite(Agreement(0.5)(study, found).scores).all()
    assert len(Agreement(0.5)(study, boxes())) == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Agreement(1.5), r"agreement was 1.5, but it is a weight in \[0, 1\]"),
        (lambda: Agreement(0.5, -1), "tolerance was -1"),
        (
            lambda: Agreement(0.5)(study_of(image(1, "CC")), boxes((0, 9, 2.0, 1))),
            r"needs scores in \[0, 1\]",
        ),
    ],
)
def test_one_sentence(make, words):
    with pytest.raises(UserError, match=words):
        make()
