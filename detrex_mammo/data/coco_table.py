# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A COCO JSON as columns of numbers: what splits and checks ask of ten million boxes.

Nothing is refused here: what an entry lacks becomes -1 or NaN, for the checks to report.
"""

import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple

import numpy as np

from detrex_mammo.data.json_stream import read_entries
from detrex_mammo.errors import UserError

# Ways an annotation's entry is odd, beside values that are missing.
IS_TEXT = 1  # a number of its box is written as text
IS_CROWD = 2
NO_OBJECT = 4  # the entry is no object


class ImageRow(NamedTuple):
    """What an image's entry says; None where it does not, or not in the right kind."""

    index: int  # of the entry in its list
    id: Any
    file_name: str | None
    height: int | None
    width: int | None
    patient_id: str | None
    study_id: str | None
    dataset: str
    split: str | None
    density: str | None
    frame: str | None


@dataclass
class CocoTable:
    """One JSON file.

    Attributes:
        path: of the file.
        images: in their order.
        categories: (id, name) in their order; None for what is missing.
        image_of: (N,) int64: row in ``images`` of each annotation, -1 if there is none. The first
            of several images with the same id counts.
        category_of: (N,) int64: row in ``categories``, -1 if there is none.
        boxes: (N, 4) float64 xywh, NaN where it is not a box of four numbers.
        flags: (N,) uint8 of ``IS_TEXT``, ``IS_CROWD``, ``NO_OBJECT``.
        repeated_ids: annotations whose id an earlier one has.
        pathology_of: (N,) uint8: row in ``pathologies``, 0 for none.
        pathologies: names; the first is "".
    """

    path: Path
    images: list[ImageRow]
    categories: list[tuple[Any, Any]]
    image_of: np.ndarray
    category_of: np.ndarray
    boxes: np.ndarray
    flags: np.ndarray
    repeated_ids: np.ndarray
    pathology_of: np.ndarray
    pathologies: list[str] = field(default_factory=lambda: [""])


def read_table(path: Path, progress: bool = False) -> CocoTable:
    """Read a COCO JSON of any size.

    Raises:
        UserError: the file is missing, no JSON, or has no image or no category.
    """
    builder = _Builder()
    for key, index, value in read_entries(path, progress):
        if key == "annotations" and index is not None:
            builder.add_annotation(value)
        elif key == "images" and index is not None:
            builder.images.append(_image_row(index, value))
        elif key == "categories" and index is not None:
            entry = value if isinstance(value, dict) else {}
            builder.categories.append((_hashable(entry.get("id")), entry.get("name")))
        elif key in ("images", "annotations", "categories"):
            raise UserError(f"annotation file {str(path)!r} has no list {key!r}: it is not COCO")
    for key in ("images", "categories"):
        if not getattr(builder, key):
            raise UserError(f"annotation file {str(path)!r} lists no {key}: it is not COCO")
    return builder.table(path)


class _Builder:
    """Columns while they grow; ids are numbered in the order in which they are met."""

    def __init__(self) -> None:
        self.images: list[ImageRow] = []
        self.categories: list[tuple[Any, Any]] = []
        self.image_ids: dict[Any, int] = {}
        self.category_ids: dict[Any, int] = {}
        self.ids: dict[Any, None] = {}
        self.int_ids = array("q")
        self.pathologies: dict[str, int] = {"": 0}
        self.image, self.category = array("q"), array("q")
        self.boxes, self.flags, self.pathology = array("d"), array("B"), array("B")
        self.other_repeats: list[int] = []

    def add_annotation(self, entry: Any) -> None:
        flags = 0
        if not isinstance(entry, dict):
            entry, flags = {}, NO_OBJECT
        self.image.append(_number(self.image_ids, entry.get("image_id")))
        self.category.append(_number(self.category_ids, entry.get("category_id")))
        box = entry.get("bbox")
        try:
            x, y, width, height = box
            self.boxes.extend((x, y, width, height))
        except (TypeError, ValueError, OverflowError):
            # Some of the four may be appended already.
            del self.boxes[4 * (len(self.image) - 1) :]
            numbers = _four_numbers(box)
            flags |= IS_TEXT if not math.isnan(numbers[0]) else 0
            self.boxes.extend(numbers)
        self._add_id(entry.get("id"))
        flags |= IS_CROWD if entry.get("iscrowd") or entry.get("ignore") else 0
        self.flags.append(flags)
        pathology = entry.get("pathology")
        if pathology:
            pathology = str(pathology)
            known = self.pathologies
            if pathology not in known and len(known) < 256:
                known[pathology] = len(known)
            self.pathology.append(known.get(pathology, 0))
        else:
            self.pathology.append(0)

    def _add_id(self, value: Any) -> None:
        if type(value) is int and -(2**62) < value < 2**62:
            self.int_ids.append(value)
            return
        # No number: told apart by a negative number of its own, unless it was there before.
        value = _hashable(value)
        if value is not None and value in self.ids:
            self.other_repeats.append(len(self.int_ids))
        self.ids[value] = None
        self.int_ids.append(-(2**62) - len(self.int_ids))

    def table(self, path: Path) -> CocoTable:
        ids = np.frombuffer(self.int_ids, dtype=np.int64)
        _, first = np.unique(ids, return_index=True)
        is_repeated = np.ones(len(ids), dtype=bool)
        is_repeated[first] = False
        is_repeated[self.other_repeats] = True
        categories = [row[0] for row in self.categories]
        return CocoTable(
            path=Path(path),
            images=self.images,
            categories=self.categories,
            image_of=_rows(self.image, self.image_ids, [row.id for row in self.images]),
            category_of=_rows(self.category, self.category_ids, categories),
            boxes=np.array(self.boxes, dtype=np.float64).reshape(-1, 4),
            flags=np.array(self.flags, dtype=np.uint8),
            repeated_ids=np.flatnonzero(is_repeated),
            pathology_of=np.array(self.pathology, dtype=np.uint8),
            pathologies=list(self.pathologies),
        )


def _number(known: dict[Any, int], value: Any) -> int:
    """A small number for an id, -1 for none."""
    try:
        return -1 if value is None else known.setdefault(value, len(known))
    except TypeError:  # a list or an object
        return -1


def _rows(numbers: array, known: dict[Any, int], ids: list[Any]) -> np.ndarray:
    """Numbers of ids to rows of the list that has them."""
    row_of = np.full(len(known) + 1, -1, dtype=np.int64)  # its last is what -1 takes
    for row in range(len(ids) - 1, -1, -1):  # backwards: the first one stays
        number = known.get(ids[row])
        if ids[row] is not None and number is not None:
            row_of[number] = row
    return row_of[np.array(numbers, dtype=np.int64)]


def _four_numbers(box: Any) -> tuple[float, ...]:
    try:
        numbers = () if isinstance(box, str) else tuple(float(value) for value in box)
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    return numbers if len(numbers) == 4 and numbers[0] == numbers[0] else (math.nan,) * 4


def _image_row(index: int, entry: Any) -> ImageRow:
    if not isinstance(entry, dict):
        entry = {}
    name = entry.get("file_name")
    return ImageRow(
        index=index,
        id=_hashable(entry.get("id")),
        file_name=name if isinstance(name, str) and name else None,
        height=_size(entry.get("height")),
        width=_size(entry.get("width")),
        patient_id=_text(entry.get("patient_id")),
        study_id=_text(entry.get("study_id")),
        dataset=_text(entry.get("dataset")) or "",
        split=_text(entry.get("split")),
        density=_text(entry.get("density")),
        frame=_text(entry.get("frame")),
    )


def _hashable(value: Any) -> Any:
    return value if isinstance(value, (str, int, float)) else None


def _size(value: Any) -> int | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return int(value) if is_number and 1 <= value < 2**31 and value == int(value) else None


def _text(value: Any) -> str | None:
    """A short value as text, the same object for the same text; 5 and "5" are one patient."""
    if value is None or value == "" or isinstance(value, (dict, list)):
        return None
    return intern(str(value).strip()) or None
