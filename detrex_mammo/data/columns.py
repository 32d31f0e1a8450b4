# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What samplers and batches ask of a dataset, one row per image, without touching its records.

N images, M boxes of all images, in the order of the images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Columns:
    """A dataset as arrays.

    Attributes:
        image_ids: (N,) of any kind.
        sizes: (N, 2) int32 (height, width) of the original image; 0 where a record says none.
        box_starts: (N + 1,) int64: boxes of image i are rows ``box_starts[i]`` to
            ``box_starts[i + 1]`` of ``box_classes``. Crowd regions are no boxes.
        box_classes: (M,) int32, from 0.
        patients: (N,) int32 number of the patient; an image without ``patient_id`` has its own.
        datasets: (N,) int32 row in ``dataset_names``.
        dataset_names: "" for images that name none.
    """

    image_ids: Sequence[Any]
    sizes: np.ndarray
    box_starts: np.ndarray
    box_classes: np.ndarray
    patients: np.ndarray
    datasets: np.ndarray
    dataset_names: Sequence[str]

    @property
    def num_boxes(self) -> np.ndarray:
        """(N,) int64 boxes of each image."""
        return np.diff(self.box_starts)


def columns_of(dataset: Sequence[dict[str, Any]]) -> Columns:
    """The ``columns`` of a dataset that has them, or those of its records, read once each."""
    own = getattr(dataset, "columns", None)
    return own if isinstance(own, Columns) else _from_records(dataset)


def _from_records(records: Sequence[dict[str, Any]]) -> Columns:
    ids, sizes, starts, classes = [], [], [0], []
    patients, datasets = [], []
    patient_numbers: dict[Any, int] = {}
    dataset_numbers: dict[str, int] = {}
    for index in range(len(records)):
        record = records[index]
        ids.append(record.get("image_id", index))
        sizes.append((record.get("height") or 0, record.get("width") or 0))
        boxes = [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]
        classes += [a["category_id"] for a in boxes]
        starts.append(len(classes))
        name, patient = record.get("dataset") or "", record.get("patient_id")
        # Two datasets may both have a patient "1".
        key = (index,) if patient in (None, "") else (name, str(patient))
        patients.append(patient_numbers.setdefault(key, len(patient_numbers)))
        datasets.append(dataset_numbers.setdefault(name, len(dataset_numbers)))
    return Columns(
        image_ids=ids,
        sizes=np.array(sizes, dtype=np.int32).reshape(-1, 2),
        box_starts=np.array(starts, dtype=np.int64),
        box_classes=np.array(classes, dtype=np.int32),
        patients=np.array(patients, dtype=np.int32),
        datasets=np.array(datasets, dtype=np.int32),
        dataset_names=list(dataset_numbers),
    )
