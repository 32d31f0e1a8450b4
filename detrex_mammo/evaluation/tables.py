# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Lesions and predictions of a whole data set as flat numpy tables, keyed by image id.

Legend: I images, G lesions (ground-truth boxes), N predictions.
Boxes are xyxy pixels of the ORIGINAL image, float64.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from detrex_mammo.errors import UserError


@dataclass(frozen=True)
class LesionTable:
    """Every lesion of a data set, and every image, with or without lesions.

    Attributes:
        image_ids: I ids; the images that are evaluated, negatives among them.
        image_index: (G,) int64, row of ``image_ids`` that a lesion lies in.
        boxes: (G, 4) float64 xyxy.
        categories: (G,) int64 category ids of the data set.
        slices: (G,) float64, slice of the volume that the box lies on; NaN without one. None if
            no lesion has one.
        num_slices: (G,) float64, slices of that volume; NaN if not known. None like ``slices``.
    """

    image_ids: tuple
    image_index: np.ndarray
    boxes: np.ndarray
    categories: np.ndarray
    slices: np.ndarray | None = None
    num_slices: np.ndarray | None = None

    @property
    def num_images(self) -> int:
        """Number of images, with and without lesions."""
        return len(self.image_ids)

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, rows: np.ndarray) -> "LesionTable":
        """The lesions of these rows, (K,), in their order and with repeats; the same images."""
        return LesionTable(self.image_ids, *_take(self, rows))


@dataclass(frozen=True)
class PredictionTable:
    """Every prediction of a data set.

    Attributes:
        image_index: (N,) int64, row of the lesion table's ``image_ids``.
        boxes: (N, 4) float64 xyxy.
        scores: (N,) float64, finite.
        categories: (N,) int64 category ids of the data set.
        slices: (N,) float64, slice of the volume that a prediction lies on; NaN without one.
            None if no prediction has one.
    """

    image_index: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    categories: np.ndarray
    slices: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, rows: np.ndarray) -> "PredictionTable":
        """The predictions of these rows, (K,), in their order and with repeats."""
        return PredictionTable(*_take(self, rows))


def _take(table: LesionTable | PredictionTable, rows: np.ndarray) -> list[np.ndarray | None]:
    """Every column of a table, at these rows."""
    columns = [getattr(table, f.name) for f in fields(table) if f.name != "image_ids"]
    return [None if column is None else column[rows] for column in columns]


def lesion_table(truth: Mapping[Hashable, Mapping[str, Any]]) -> LesionTable:
    """Flatten ground truth keyed by image id.

    Args:
        truth: image id -> ``{"boxes": (g, 4) xyxy, "categories": (g,)}``; ``categories`` may be
            left out when there is one class (it is then 0). An image without lesions has an
            empty ``boxes``; it must be there to count as an image. ``slices`` and ``num_slices``,
            (g,), are for boxes in volumes.

    Raises:
        UserError: a box is not finite or has its corners swapped.
    """
    image_ids = tuple(truth)
    image_index, boxes, categories, _ = _flatten(truth, image_ids, with_scores=False)
    volumes = [_optional_column(truth, name) for name in ("slices", "num_slices")]
    return LesionTable(image_ids, image_index, boxes, categories, *volumes)


def prediction_table(
    predictions: Mapping[Hashable, Mapping[str, Any]], image_ids: Sequence[Hashable]
) -> PredictionTable:
    """Flatten predictions keyed by image id.

    Args:
        predictions: image id -> ``{"boxes": (n, 4) xyxy, "scores": (n,), "categories": (n,)}``,
            in volumes also ``slices``. An image that is left out has no predictions.
        image_ids: the ids of the ground truth.

    Raises:
        UserError: an image id that the ground truth does not have, a score or a box that is not
            finite, or a box with its corners swapped.
    """
    image_index, boxes, categories, scores = _flatten(predictions, image_ids, with_scores=True)
    slices = _optional_column(predictions, "slices")
    return PredictionTable(image_index, boxes, scores, categories, slices)


def check_categories(
    predictions: PredictionTable, known: Sequence[int], image_ids: Sequence[Hashable]
) -> None:
    """Refuse predictions of a category that the data set does not have.

    Raises:
        UserError: naming the category, one of its images and the known categories.
    """
    unknown = np.flatnonzero(~np.isin(predictions.categories, np.asarray(list(known), np.int64)))
    if unknown.size:
        first = unknown[0]
        raise UserError(
            f"a prediction for image {image_ids[predictions.image_index[first]]!r} has category "
            f"{int(predictions.categories[first])}, which the ground truth does not have "
            f"(it has {sorted(int(k) for k in known)}); {unknown.size} predictions are like this: "
            "use the category ids of the annotation file"
        )


def _flatten(per_image, image_ids, with_scores):
    """Concatenate per-image boxes, categories and scores, in the order of ``image_ids``."""
    rows = {image_id: row for row, image_id in enumerate(image_ids)}
    unknown = [image_id for image_id in per_image if image_id not in rows]
    if unknown:
        raise UserError(
            f"{len(unknown)} image ids of the predictions are not in the ground truth, the first "
            f"is {unknown[0]!r}: predictions and annotations must be of the same data set"
        )
    index, boxes, categories, scores = [], [], [], []
    for image_id, entry in per_image.items():
        image_boxes = np.asarray(entry["boxes"], dtype=np.float64).reshape(-1, 4)
        number = len(image_boxes)
        index.append(np.full(number, rows[image_id], dtype=np.int64))
        boxes.append(image_boxes)
        categories.append(_column(entry, "categories", number, np.int64, image_id))
        if with_scores:
            scores.append(_column(entry, "scores", number, np.float64, image_id))
    index = np.concatenate(index) if index else np.zeros(0, dtype=np.int64)
    boxes = np.concatenate(boxes) if boxes else np.zeros((0, 4))
    categories = np.concatenate(categories) if categories else np.zeros(0, dtype=np.int64)
    scores = np.concatenate(scores) if scores else np.zeros(0)
    _check_boxes(boxes, index, image_ids, "prediction" if with_scores else "lesion")
    _check_scores(scores, index, image_ids)
    return index, boxes, categories, scores


def _column(entry, name, number, dtype, image_id):
    """One value a box; a missing ``categories`` means a single class, 0."""
    if name == "categories" and entry.get(name) is None:
        return np.zeros(number, dtype=dtype)
    values = np.asarray(entry[name], dtype=dtype).reshape(-1)
    if len(values) != number:
        raise UserError(
            f"image {image_id!r} has {number} boxes but {len(values)} {name}: give one a box"
        )
    return values


def _optional_column(per_image, name):
    """(N,) float64, NaN where an image or a box does not have it; None if none has."""
    if all(entry.get(name) is None for entry in per_image.values()):
        return None
    columns = [np.zeros(0)]
    for image_id, entry in per_image.items():
        number = len(np.asarray(entry["boxes"], dtype=np.float64).reshape(-1, 4))
        if entry.get(name) is None:
            columns.append(np.full(number, np.nan))
        else:
            columns.append(_column(entry, name, number, np.float64, image_id))
    return np.concatenate(columns)


def _check_boxes(boxes, index, image_ids, what):
    wrong = ~np.isfinite(boxes).all(axis=1)
    wrong |= (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise UserError(
            f"a {what} of image {image_ids[index[first]]!r} has the box {boxes[first].tolist()}: "
            "boxes are finite xyxy pixels with x1 <= x2 and y1 <= y2; "
            f"{int(wrong.sum())} boxes are wrong"
        )


def _check_scores(scores, index, image_ids):
    wrong = ~np.isfinite(scores)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise UserError(
            f"a prediction for image {image_ids[index[first]]!r} has the score {scores[first]}: "
            f"scores are finite numbers; {int(wrong.sum())} are not, so the model or the "
            "predictions file is broken"
        )
