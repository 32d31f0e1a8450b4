# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A dataset's columns from its records, by hand."""

from types import SimpleNamespace

import numpy as np

from detrex_mammo.data.columns import Columns, columns_of


def record(image_id, classes=(), crowds=(), **more) -> dict:
    boxes = [{"category_id": c} for c in classes]
    boxes += [{"category_id": c, "iscrowd": 1} for c in crowds]
    return {"image_id": image_id, "height": 4, "width": 3, "annotations": boxes, **more}


RECORDS = [
    record("a", [2, 0], [1], patient_id="7", dataset="X"),
    record("b", patient_id=7, dataset="Y"),  # another woman: another dataset
    record("c", [1], patient_id="", dataset="X"),
    record("d", patient_id=7, dataset="X", height=None),
    record("e", [], [1], dataset=None),
    {"file_name": "f.png"},  # detectron2 asks for no more
]


def test_one_row_for_each_image() -> None:
    """The patients: "7" and 7 of X are one, 7 of Y another, and images without one have their own.
    Crowd regions are no boxes."""
    columns = columns_of(RECORDS)
    assert columns.image_ids == ["a", "b", "c", "d", "e", 5]
    assert columns.sizes.tolist() == [[4, 3], [4, 3], [4, 3], [0, 3], [4, 3], [0, 0]]
    assert columns.box_starts.tolist() == [0, 2, 2, 3, 3, 3, 3]
    assert columns.box_classes.tolist() == [2, 0, 1]
    assert columns.num_boxes.tolist() == [2, 0, 1, 0, 0, 0]
    assert columns.patients.tolist() == [0, 1, 2, 0, 3, 4]
    assert columns.datasets.tolist() == [0, 1, 0, 0, 2, 2]
    assert columns.dataset_names == ["X", "Y", ""]
    kinds = {n: getattr(columns, n).dtype for n in ("sizes", "box_classes", "patients", "datasets")}
    assert set(kinds.values()) == {np.dtype(np.int32)} and columns.box_starts.dtype == np.int64


def test_no_image_has_columns_too() -> None:
    columns = columns_of([])
    assert columns.sizes.shape == (0, 2) and columns.box_starts.tolist() == [0]
    assert len(columns.num_boxes) == len(columns.box_classes) == len(columns.dataset_names) == 0


def test_a_datasets_own_columns_are_taken() -> None:
    own = columns_of(RECORDS)
    assert columns_of(SimpleNamespace(columns=own)) is own


def test_other_things_called_columns_are_not() -> None:
    """A table has names of columns, and still is a list of records."""

    class Table(list):
        columns = ["image_id", "height"]

    found = columns_of(Table(RECORDS[:1]))
    assert isinstance(found, Columns) and found.image_ids == ["a"]
