# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Predictions and annotations as COCO's: records, files and tables.

A prediction record is COCO's results format: ``{"image_id", "category_id", "bbox", "score"}`` with
bbox (x, y, w, h) in pixels of the ORIGINAL image and the category id of the annotation file. Both
evaluators score these records, so that what is written is exactly what was scored. In volumes a
record may have a ``slice``. Files of predictions are read by
:mod:`~detrex_mammo.evaluation.prediction_files`.
"""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.annotation_check import check_annotations
from detrex_mammo.evaluation.files import whole_file
from detrex_mammo.evaluation.prediction_files import read_predictions
from detrex_mammo.evaluation.tables import (
    LesionTable,
    PredictionTable,
    lesion_table,
    prediction_table,
)

__all__ = [
    "instances_to_records",
    "lesions_from_annotations",
    "predictions_from_records",
    "read_annotations",
    "read_predictions",
    "with_dataset_categories",
    "write_predictions",
]

logger = logging.getLogger(__name__)


def instances_to_records(instances, sample: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of one image's predictions.

    Args:
        instances: detectron2 ``Instances`` with ``pred_boxes`` (xyxy pixels of the mapper's
            frame), ``scores`` and ``pred_classes`` (contiguous, from 0).
        sample: the mapper's dict; ``image_id``, and ``geometry`` when the mapper's frame (breast
            crop, flip) is not the original image: its ``inverse_boxes`` leads back.

    Returns:
        list[dict]: COCO results in original pixels. ``category_id`` is still the contiguous
        class; :func:`with_dataset_categories` turns it into the annotation file's id.
    """
    boxes = instances.pred_boxes.tensor.detach().cpu().double().numpy().reshape(-1, 4)
    geometry = sample.get("geometry")
    if geometry is not None:
        boxes = np.asarray(geometry.inverse_boxes(boxes), dtype=np.float64).reshape(-1, 4)
    sizes = boxes[:, 2:] - boxes[:, :2]
    bboxes = np.concatenate([boxes[:, :2], sizes], axis=1).tolist()
    scores = instances.scores.detach().cpu().double().tolist()
    classes = instances.pred_classes.detach().cpu().tolist()
    return [
        {"image_id": sample["image_id"], "category_id": int(label), "bbox": bbox, "score": score}
        for bbox, score, label in zip(bboxes, scores, classes, strict=True)
    ]


def with_dataset_categories(
    records: Iterable[Mapping[str, Any]], dataset_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Records with the annotation file's category ids in place of contiguous classes.

    Args:
        dataset_ids: the category id of every contiguous class, in order.

    Raises:
        UserError: a record has a class that the data set does not have.
    """
    renamed = []
    for record in records:
        label = record["category_id"]
        if not 0 <= label < len(dataset_ids):
            raise UserError(
                f"a prediction for image {record['image_id']!r} has class {label}, but the data "
                f"set has {len(dataset_ids)} classes (0 to {len(dataset_ids) - 1}): "
                "set model.num_classes to the data set's number"
            )
        renamed.append({**record, "category_id": int(dataset_ids[label])})
    return renamed


def read_annotations(json_file: str | Path) -> dict[str, Any]:
    """A COCO annotation file as a dict.

    Raises:
        UserError: the file is missing, is not JSON, or its content cannot be scored (see
            :func:`~detrex_mammo.evaluation.annotation_check.check_annotations`).
    """
    annotations = _read_json(json_file, "annotation file")
    check_annotations(annotations, f"annotation file {json_file}")
    return annotations


def lesions_from_annotations(
    annotations: Mapping[str, Any], image_ids: Iterable | None = None
) -> LesionTable:
    """Every box of a COCO annotation file as a lesion; every image, also without boxes.

    Crowd boxes (``iscrowd`` 1) are regions, not lesions: they are left out, with a warning.

    Args:
        image_ids (optional): only these images.
    """
    images = {image["id"]: ([], []) for image in annotations["images"]}
    if image_ids is not None:
        chosen = set(image_ids)
        images = {image_id: entry for image_id, entry in images.items() if image_id in chosen}
    num_crowds = 0
    for annotation in annotations["annotations"]:
        entry = images.get(annotation["image_id"])
        if entry is None:
            continue
        if annotation.get("iscrowd", 0):
            num_crowds += 1
            continue
        entry[0].append(_xywh_to_xyxy(annotation["bbox"]))
        entry[1].append(annotation["category_id"])
    if num_crowds:
        logger.warning("FROC leaves out %d crowd boxes: they are not single lesions", num_crowds)
    return lesion_table(
        {image_id: {"boxes": e[0], "categories": e[1]} for image_id, e in images.items()}
    )


def predictions_from_records(
    records: Iterable[Mapping[str, Any]], image_ids: Sequence
) -> PredictionTable:
    """Prediction records as a table over the images ``image_ids`` of the ground truth."""
    images: dict[Any, dict[str, list]] = {}
    for record in records:
        if len(record["bbox"]) != 4:
            raise UserError(
                f"a prediction for image {record['image_id']!r} has bbox {record['bbox']}: "
                "a bbox is x, y, w, h in original pixels"
            )
        entry = images.setdefault(
            record["image_id"], {"boxes": [], "scores": [], "categories": [], "slices": []}
        )
        entry["boxes"].append(_xywh_to_xyxy(record["bbox"]))
        entry["scores"].append(record["score"])
        entry["categories"].append(record["category_id"])
        entry["slices"].append(record.get("slice"))
    for entry in images.values():
        if all(place is None for place in entry["slices"]):
            del entry["slices"]
        else:
            entry["slices"] = np.array(entry["slices"], dtype=np.float64)  # None becomes NaN
    return prediction_table(images, image_ids)


def write_predictions(records: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Write prediction records as COCO results JSON, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(list(records)), encoding="utf-8")


def _xywh_to_xyxy(bbox):
    x, y, width, height = bbox
    return x, y, x + width, y + height


def _read_json(path, what):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist: check the path") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {path} is not JSON ({error}): write it again") from error
