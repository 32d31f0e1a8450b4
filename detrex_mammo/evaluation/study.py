# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Ground truth of a whole data set with what groups it: patients, studies, breasts, lesions.

Legend: I images, G lesions (ground-truth boxes).

A patient is told by ``patient_id`` within a ``dataset``; an image without one is a patient of its
own. A case is one study of a patient, a breast is one side of a case; without ``laterality`` an
image is a breast of its own. Boxes of one case and side with the same ``lesion_id`` are one lesion,
seen in several views; a box without one is a lesion of its own.

An image is positive with a box that counts, negative without any box. With only boxes that do not
count (crowds, ``ignore``) it is neither: what is in it is not known.

In a volume, a box lies on the ``slice`` of its annotation, or else of its image (``slice``, or the
number of its ``frame``); ``num_slices`` of the annotation or the image tells the volume's.
"""

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from detrex_mammo.evaluation.tables import LesionTable, PredictionTable, lesion_table


@dataclass(frozen=True)
class Study:
    """A data set's ground truth.

    Attributes:
        images: I image entries of the annotation file, in the order of ``lesions.image_ids``.
        lesions: every box that counts; crowd regions and ``ignore`` boxes are not among them.
        ignored: the boxes that do not count: a prediction on one is neither right nor wrong.
        lesion_entries: G annotation entries, in the order of ``lesions``.
        patients: (I,) int64 number of the patient.
        cases: (I,) int64 number of the patient's study.
        breasts: (I,) int64 number of the breast.
        lesion_units: (G,) int64 number of the lesion over views.
        category_names: category id -> name, as the annotation file has them.
    """

    images: tuple[Mapping[str, Any], ...]
    lesions: LesionTable
    ignored: LesionTable
    lesion_entries: tuple[Mapping[str, Any], ...]
    patients: np.ndarray
    cases: np.ndarray
    breasts: np.ndarray
    lesion_units: np.ndarray
    category_names: Mapping[int, str]

    @property
    def num_images(self) -> int:
        """Number of images, with and without lesions."""
        return len(self.images)

    @property
    def is_positive(self) -> np.ndarray:
        """(I,) bool, the image has a lesion that counts."""
        return np.bincount(self.lesions.image_index, minlength=self.num_images) > 0

    @property
    def is_negative(self) -> np.ndarray:
        """(I,) bool, the image has no box at all."""
        is_unsure = np.bincount(self.ignored.image_index, minlength=self.num_images) > 0
        return ~(self.is_positive | is_unsure)

    @property
    def num_patients(self) -> int:
        """Number of patients, with and without lesions."""
        return int(self.patients.max()) + 1 if self.num_images else 0

    def with_slices(self, predictions: PredictionTable) -> PredictionTable:
        """The predictions, those without a slice on that of their image where it has one."""
        slices = np.array([_first(image, "slice", "frame") for image in self.images], np.float64)
        slices = slices[predictions.image_index]
        if predictions.slices is not None:
            slices = np.where(np.isnan(predictions.slices), slices, predictions.slices)
        return predictions if np.isnan(slices).all() else replace(predictions, slices=slices)


def as_study(truth: "Study | LesionTable | Mapping[Hashable, Mapping[str, Any]]") -> Study:
    """Ground truth in any form as a Study.

    Args:
        truth: a Study, as it is; else a LesionTable, or image id -> boxes as for
            :func:`~detrex_mammo.evaluation.tables.lesion_table`: every image is then a patient,
            a case and a breast of its own, and every box a lesion of its own.
    """
    if isinstance(truth, Study):
        return truth
    lesions = truth if isinstance(truth, LesionTable) else lesion_table(truth)
    own = np.arange(lesions.num_images)
    return Study(
        images=tuple({"id": image_id} for image_id in lesions.image_ids),
        lesions=lesions,
        ignored=lesions.take(np.zeros(0, dtype=np.int64)),
        lesion_entries=tuple({} for _ in range(len(lesions))),
        patients=own,
        cases=own,
        breasts=own,
        lesion_units=np.arange(len(lesions)),
        category_names={int(c): str(c) for c in np.unique(lesions.categories)},
    )


def read_study(annotations: Mapping[str, Any], image_ids: Iterable | None = None) -> Study:
    """The ground truth of a COCO annotation file's content.

    Args:
        annotations: with ``images``, ``annotations`` and ``categories``; the extra keys of
            ``docs/data_schema.md`` are used where they are there.
        image_ids (optional): only these images.

    Raises:
        UserError: a box is not finite or has its corners swapped.
    """
    images = {image["id"]: image for image in annotations["images"]}
    if image_ids is not None:
        chosen = set(image_ids)
        images = {image_id: image for image_id, image in images.items() if image_id in chosen}
    counted = {image_id: [] for image_id in images}
    ignored = {image_id: [] for image_id in images}
    for entry in annotations["annotations"]:
        if entry["image_id"] in images:
            is_ignored = entry.get("iscrowd") or entry.get("ignore")
            (ignored if is_ignored else counted)[entry["image_id"]].append(entry)
    entries = tuple(entry for found in counted.values() for entry in found)
    rows = tuple(images.values())
    patients, cases, breasts = _groups(rows)
    lesions = _table(counted, images)
    return Study(
        images=rows,
        lesions=lesions,
        ignored=_table(ignored, images),
        lesion_entries=entries,
        patients=patients,
        cases=cases,
        breasts=breasts,
        lesion_units=_lesion_units(entries, images, cases[lesions.image_index]),
        category_names={c["id"]: c["name"] for c in annotations["categories"]},
    )


def _table(
    entries: Mapping[Hashable, list[Mapping[str, Any]]], images: Mapping[Hashable, Mapping]
) -> LesionTable:
    """Boxes by image id as a table over all images."""
    boxes = {}
    for image_id, found in entries.items():
        corners = np.array([entry["bbox"] for entry in found], dtype=np.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        categories = [entry["category_id"] for entry in found]
        boxes[image_id] = {"boxes": corners, "categories": categories}
        image = images[image_id]
        for column, keys in (("slices", ("slice", "frame")), ("num_slices", ("num_slices",))):
            own = [_first(entry, *keys) for entry in found]
            values = [_first(image, *keys) if value is None else value for value in own]
            if any(value is not None for value in values):
                boxes[image_id][column] = np.array(values, dtype=np.float64)  # None becomes NaN
    return lesion_table(boxes)


def _first(entry: Mapping[str, Any], *keys: str) -> Any:
    """The value of the first key that an entry has; None without any."""
    return next((entry[key] for key in keys if entry.get(key) is not None), None)


def _groups(images: tuple[Mapping[str, Any], ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of patient, case and breast of each image, (I,) each."""
    patients, cases, breasts = [], [], []
    for row, image in enumerate(images):
        patient = image.get("patient_id")
        own = (row,) if patient in (None, "") else (image.get("dataset") or "", str(patient))
        case = (*own, str(image.get("study_id") or ""))
        side = image.get("laterality")
        patients.append(own)
        cases.append(case)
        breasts.append((*case, side) if side in ("L", "R") else (*case, row))
    return _numbers(patients), _numbers(cases), _numbers(breasts)


def _lesion_units(
    entries: tuple[Mapping[str, Any], ...], images: Mapping[Hashable, Mapping], cases: np.ndarray
) -> np.ndarray:
    """Numbers of the lesions over views; ``cases`` (G,) are those of the entries' images."""
    keys = []
    for row, (entry, case) in enumerate(zip(entries, cases.tolist(), strict=True)):
        name, side = entry.get("lesion_id"), images[entry["image_id"]].get("laterality")
        keys.append((row,) if name in (None, "") else (case, side, str(name)))
    return _numbers(keys)


def _numbers(keys: list[Hashable]) -> np.ndarray:
    """The same number for the same key, from 0 in the order of appearance, (len(keys),)."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)
