# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Predictions and annotations as JSON: what is written, read back and refused."""

import json

import numpy as np
import pytest

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.predictions import (
    instances_to_records,
    lesions_from_annotations,
    predictions_from_records,
    read_annotations,
    read_predictions,
    with_dataset_categories,
    write_predictions,
)
from tests.evaluation.small_dataset import CROP_AND_FLIP, outputs

BOX = (10.0, 20.0, 40.0, 60.0)


def test_record_by_hand():
    """xyxy (10, 20, 40, 60) is xywh (10, 20, 30, 40).

    In the crop that starts at (37, 12), ends at x = 549 and is mirrored, x in 10..40 is
    549 - 40 = 509 to 549 - 10 = 539 of the original, y in 20..60 is 32..72.
    """
    instances = outputs([BOX], [0.5], [1])["instances"]
    (plain,) = instances_to_records(instances, {"image_id": 7})
    assert plain == {"image_id": 7, "category_id": 1, "bbox": [10, 20, 30, 40], "score": 0.5}
    (mapped,) = instances_to_records(instances, {"image_id": 7, "geometry": CROP_AND_FLIP})
    assert mapped["bbox"] == [509, 32, 30, 40]
    assert with_dataset_categories([plain], [3, 9])[0]["category_id"] == 9
    assert plain["category_id"] == 1  # a copy is renamed


def test_no_instances_are_no_records():
    empty = outputs(np.zeros((0, 4)), [], [])["instances"]
    assert instances_to_records(empty, {"image_id": 7, "geometry": CROP_AND_FLIP}) == []


@pytest.mark.parametrize("label", [-1, 2])
def test_class_out_of_range(label):
    record = {"image_id": "x", "category_id": label, "bbox": [0, 0, 1, 1], "score": 0.5}
    with pytest.raises(UserError, match=f"class {label}, but the data set has 2"):
        with_dataset_categories([record], [3, 9])


def test_file_round_trip(tmp_path):
    records = [
        {"image_id": 1, "category_id": 3, "bbox": [0.1, 1 / 3, 2.0, 1e-7], "score": 0.123456789},
        {"image_id": 2, "category_id": 3, "bbox": [5.0, 5.0, 2.0, 2.0], "score": 1.0},
    ]
    write_predictions(records, tmp_path / "p.json")
    assert read_predictions(tmp_path / "p.json") == records
    table = predictions_from_records(records, [2, 1])
    assert table.image_index.tolist() == [1, 0]
    assert table.boxes[1].tolist() == [5, 5, 7, 7] and table.slices is None
    records[1]["slice"] = 31
    np.testing.assert_array_equal(predictions_from_records(records, [1, 2]).slices, [np.nan, 31])


def test_annotations_keep_images_without_boxes():
    box = {"image_id": 1, "bbox": [1, 2, 3, 4], "category_id": 9}
    annotations = {"images": [{"id": 1}, {"id": 2}], "annotations": [box], "categories": []}
    lesions = lesions_from_annotations(annotations)
    assert lesions.image_ids == (1, 2) and len(lesions) == 1
    assert lesions.boxes.tolist() == [[1, 2, 4, 6]] and lesions.categories.tolist() == [9]
    assert len(lesions_from_annotations(annotations, [2])) == 0


def test_broken_box_in_a_record():
    record = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 1], "score": 0.5}
    with pytest.raises(UserError, match="bbox"):
        predictions_from_records([record], [1])


def test_broken_annotation_file(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"images": []}))
    with pytest.raises(UserError, match="lacks annotations, categories"):
        read_annotations(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(UserError, match="lacks images"):
        read_annotations(tmp_path / "a.json")
