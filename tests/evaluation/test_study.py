# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A data set's study: patients, cases, breasts, lesions over views, boxes that do not count."""

import numpy as np
import pytest

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.study import as_study, read_study
from detrex_mammo.evaluation.tables import lesion_table, prediction_table


def read(images, boxes=(), **options):
    images = [{"id": number, **image} for number, image in enumerate(images)]
    boxes = [{"category_id": 1, "bbox": [1, 2, 3, 4], **box} for box in boxes]
    categories = [{"id": 1, "name": "mass"}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    return read_study(content, **options)


def groups(numbers):
    """Sets of the rows with one number."""
    numbers = numbers.tolist()
    return {tuple(k for k, n in enumerate(numbers) if n == number) for number in numbers}


def test_patients_cases_breasts():
    """A patient of one number in two data sets is two; a missing side is a breast of its own."""
    study = read(
        [
            {"patient_id": "1", "dataset": "X", "study_id": "a", "laterality": "L"},
            {"patient_id": "1", "dataset": "X", "study_id": "a", "laterality": "L"},
            {"patient_id": 1, "dataset": "X", "study_id": "a", "laterality": "R"},
            {"patient_id": "1", "dataset": "X", "study_id": "b", "laterality": "L"},
            {"patient_id": "1", "dataset": "Y", "study_id": "a", "laterality": "L"},
            {"patient_id": "1", "dataset": "X", "study_id": "a"},
            {"laterality": "L"},
            {"laterality": "L", "patient_id": ""},
        ]
    )
    assert groups(study.patients) == {(0, 1, 2, 3, 5), (4,), (6,), (7,)}
    assert groups(study.cases) == {(0, 1, 2, 5), (3,), (4,), (6,), (7,)}
    assert groups(study.breasts) == {(0, 1), (2,), (3,), (4,), (5,), (6,), (7,)}
    assert study.num_patients == 4 and study.num_images == 8


def test_lesions_over_views():
    """One name on one side of a case is one lesion; on the other side, or without name, another."""
    sides = ["L", "L", "R", None, None]
    study = read(
        [{"patient_id": "p", "laterality": side} for side in sides],
        [{"image_id": i, "lesion_id": "1"} for i in range(5)] + [{"image_id": 0}, {"image_id": 0}],
    )
    # by image: image 0's three boxes, then those of images 1 to 4
    assert groups(study.lesion_units) == {(0, 3), (1,), (2,), (4,), (5, 6)}


def test_positive_negative_and_neither():
    boxes = [{"image_id": 0}, {"image_id": 1, "iscrowd": 1}, {"image_id": 2, "ignore": 1}]
    boxes += [{"image_id": 3}, {"image_id": 3, "iscrowd": 1}]
    study = read([{}] * 5, boxes)
    assert study.is_positive.tolist() == [True, False, False, True, False]
    assert study.is_negative.tolist() == [False, False, False, False, True]
    assert len(study.lesions) == 2 and len(study.ignored) == 3
    assert study.lesions.boxes[0].tolist() == [1, 2, 4, 6]


def test_a_part_of_the_images():
    study = read([{}, {}], [{"image_id": 0}, {"image_id": 1}], image_ids=[1])
    assert study.lesions.image_ids == (1,) and len(study.lesions) == len(study.lesion_entries) == 1


def test_slices_of_box_image_and_frame():
    images = [{"slice": 4, "num_slices": 9}, {"frame": 0, "num_slices": 7}, {}]
    boxes = [{"image_id": 0}, {"image_id": 0, "slice": 0}, {"image_id": 1}, {"image_id": 2}]
    study = read(images, boxes)
    np.testing.assert_array_equal(study.lesions.slices, [4, 0, 0, np.nan])
    np.testing.assert_array_equal(study.lesions.num_slices, [9, 9, 7, np.nan])
    rows = {"boxes": [[0, 0, 1, 1]] * 2, "scores": [0.1, 0.2], "categories": [1, 1]}
    found = prediction_table({0: {**rows, "slices": [2, np.nan]}, 1: rows, 2: rows}, (0, 1, 2))
    expected = [2, 4, 0, 0, np.nan, np.nan]
    np.testing.assert_array_equal(study.with_slices(found).slices, expected)
    assert read([{}], [{"image_id": 0}]).lesions.slices is None


def test_plain_ground_truth_is_a_study():
    truth = {"a": {"boxes": [[0, 0, 1, 1]], "categories": [5]}, "b": {"boxes": []}}
    for form in (truth, lesion_table(truth)):
        study = as_study(form)
        assert study.num_patients == study.num_images == 2 and len(study.ignored) == 0
        assert study.is_negative.tolist() == [False, True] and list(study.category_names) == [5]
    assert as_study(study) is study


def test_broken_boxes():
    with pytest.raises(UserError, match="lesion of image 0"):
        read([{}], [{"image_id": 0, "bbox": [0, 0, -1, 1]}])
