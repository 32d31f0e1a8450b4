# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Columns of a record store while a file is read; images and boxes may come in any order.

N images, M boxes.
"""

import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from detrex_mammo.data.record_store import RecordArrays, RecordStore, patient_key

_encode = json.JSONEncoder(separators=(",", ":")).encode
_CHUNK = 1 << 16  # boxes that are worked on together, so that little memory is needed beside them


@dataclass(frozen=True)
class BoxCounts:
    """What became of a file's boxes.

    Attributes:
        clipped: that left their image.
        dropped: without area inside it.
        unwanted: category id: boxes of a class that is left out.
    """

    clipped: int
    dropped: int
    unwanted: dict[Any, int]


class RecordBuilder:
    """Takes records and boxes one at a time, as columns."""

    def __init__(self) -> None:
        self._images, self._image_starts = bytearray(), array("q", [0])
        self._sizes, self._image_numbers = array("i"), array("i")
        self._patients, self._datasets = array("i"), array("i")
        self._patient_numbers: dict[tuple, int] = {}
        self._dataset_numbers: dict[str, int] = {}
        # Ids are numbered as they are met, because an annotation may come before its image.
        self._image_ids: dict[Any, int] = {}
        self._category_ids: dict[Any, int] = {}
        self._image_of, self._category_of = array("i"), array("i")
        self._boxes, self._is_crowd = array("d"), array("B")
        self._extras, self._extra_starts = bytearray(), array("q", [0])

    @property
    def num_images(self) -> int:
        """Images so far."""
        return len(self._image_numbers)

    def add_image(self, image: Mapping[str, Any]) -> None:
        """Add a record without annotations.

        Args:
            image: JSON data; ``image_id``, ``file_name`` relative to the image root, ``height``
                and ``width`` below 2**31, and any other keys.
        """
        row = self.num_images
        self._images += _encode(image).encode()
        self._image_starts.append(len(self._images))
        self._sizes.extend((image["height"], image["width"]))
        self._image_numbers.append(
            self._image_ids.setdefault(image["image_id"], len(self._image_ids))
        )
        patient, dataset = patient_key(image, row), image.get("dataset") or ""
        known = self._patient_numbers
        self._patients.append(known.setdefault(patient, len(known)))
        known = self._dataset_numbers
        self._datasets.append(known.setdefault(dataset, len(known)))

    def add_box(
        self, image_id: Any, category_id: Any, box: Any, is_crowd: int, extra: Mapping[str, Any]
    ) -> None:
        """Add an annotation.

        Args:
            image_id: of an image that was or will be added.
            category_id: as in the file.
            box: four numbers, xywh.
            is_crowd: 0 or 1.
            extra: JSON data, what else is kept of it.
        """
        x, y, width, height = box
        self._boxes.extend((x, y, width, height))
        self._image_of.append(self._image_ids.setdefault(image_id, len(self._image_ids)))
        known = self._category_ids
        self._category_of.append(known.setdefault(category_id, len(known)))
        self._is_crowd.append(is_crowd)
        if extra:
            if len(self._extra_starts) == 1:  # the first box that has any
                self._extra_starts.extend([0] * (len(self._is_crowd) - 1))
            self._extras += _encode(extra).encode()
        if extra or len(self._extra_starts) > 1:
            self._extra_starts.append(len(self._extras))

    def has_repeated_image_ids(self) -> bool:
        """Whether two images have the same id."""
        return len(set(self._image_numbers)) < self.num_images

    def first_unknown(self, category_ids: Any) -> tuple[int, str] | None:
        """The first box whose image or category there is not, and the name of the key.

        Args:
            category_ids: those there are.
        """
        is_known = np.array([key in category_ids for key in self._category_ids], dtype=bool)
        no_image = self._rows_of_images() < 0
        wrong = np.flatnonzero(no_image | ~is_known[_view(self._category_of)])
        if not len(wrong):
            return None
        return int(wrong[0]), "image_id" if no_image[wrong[0]] else "category_id"

    def _rows_of_images(self) -> np.ndarray:
        """(M,) int32 row of each box's image, -1 if there is none."""
        row_of = np.full(len(self._image_ids), -1, dtype=np.int32)
        row_of[_view(self._image_numbers)] = np.arange(self.num_images, dtype=np.int32)
        return row_of[_view(self._image_of)]

    def store(
        self, image_root: str, classes: Mapping[Any, int | None]
    ) -> tuple[RecordStore, BoxCounts]:
        """The records; boxes are clipped to their images, and sorted by them. Called once.

        Args:
            image_root: folder of the file names.
            classes: category id to class from 0; None leaves its boxes out.
        """
        image_of, category_of = self._rows_of_images(), _view(self._category_of)
        numbers = [classes[key] for key in self._category_ids]
        class_of = np.array([-1 if n is None else n for n in numbers], dtype=np.int32)[category_of]
        boxes, sizes = _view(self._boxes).reshape(-1, 4), _view(self._sizes).reshape(-1, 2)
        is_wanted = class_of >= 0
        left_out = np.bincount(category_of[~is_wanted], minlength=len(numbers)).tolist()
        has_area, clipped = _clip(boxes, sizes, image_of, is_wanted)
        counts = BoxCounts(
            clipped=clipped,
            dropped=int((is_wanted & ~has_area).sum()),
            unwanted={k: n for k, n in zip(self._category_ids, left_out) if n},
        )
        rows = np.flatnonzero(is_wanted & has_area)
        image_of = image_of[rows]
        is_sorted = bool((image_of[1:] >= image_of[:-1]).all())
        if not is_sorted:
            rows = rows[np.argsort(image_of, kind="stable")]
        is_all = is_sorted and len(rows) == len(boxes)
        box_starts = np.zeros(self.num_images + 1, dtype=np.int64)
        np.cumsum(np.bincount(image_of, minlength=self.num_images), out=box_starts[1:])
        extras, extra_starts = self._sorted_extras(None if is_all else rows)
        take = (lambda column: column) if is_all else (lambda column: column[rows])
        arrays = RecordArrays(
            images=np.frombuffer(self._images, dtype=np.uint8),
            image_starts=_view(self._image_starts),
            sizes=sizes,
            patients=_view(self._patients),
            datasets=_view(self._datasets),
            box_starts=box_starts,
            boxes=take(boxes),
            classes=take(class_of),
            is_crowd=take(_view(self._is_crowd)),
            extras=extras,
            extra_starts=extra_starts,
        )
        for item in fields(arrays):  # as when they are mapped from a file
            getattr(arrays, item.name).flags.writeable = False
        return RecordStore(arrays, image_root, list(self._dataset_numbers)), counts

    def _sorted_extras(self, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Bytes and places of the boxes' extras in the order of ``rows``; None keeps all."""
        if len(self._extra_starts) == 1:
            return np.zeros(0, dtype=np.uint8), np.zeros(0, dtype=np.int64)
        text, starts = np.frombuffer(self._extras, dtype=np.uint8), _view(self._extra_starts)
        if rows is None:
            return text, starts
        lengths = np.diff(starts)[rows]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        moved = np.empty(int(ends[-1]), dtype=np.uint8)
        for first in range(0, len(rows), _CHUNK):
            last = min(first + _CHUNK, len(rows))
            begin, end = ends[first], ends[last]
            # Each byte's place in the old text: its new one, moved as far as its box was.
            shift = np.repeat(starts[rows[first:last]] - ends[first:last], lengths[first:last])
            moved[begin:end] = text[np.arange(begin, end) + shift]
        return moved, ends


def _view(numbers: array) -> np.ndarray:
    return np.frombuffer(numbers, dtype=numbers.typecode)


def _clip(
    boxes: np.ndarray, sizes: np.ndarray, image_of: np.ndarray, is_wanted: np.ndarray
) -> tuple[np.ndarray, int]:
    """Clip boxes (M, 4) xywh in place to images of ``sizes`` (N, 2) height, width.

    Returns:
        tuple: (M,) bool, whether something is left of the box; number of wanted boxes that left
        their image and have something left.
    """
    has_area, clipped = np.zeros(len(boxes), dtype=bool), 0
    for first in range(0, len(boxes), _CHUNK):
        part = slice(first, first + _CHUNK)
        start, size = boxes[part, :2], boxes[part, 2:]
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity have no area, or end
            end = start + size
            low = np.where(start < 0, 0.0, start)
            high = np.minimum(end, sizes[image_of[part]][:, ::-1])
            has_area[part] = (high > low).all(axis=1)
            is_cut = ((low != start) | (high != end)).any(axis=1) & has_area[part]
        clipped += int((is_cut & is_wanted[part]).sum())
        start[is_cut], size[is_cut] = low[is_cut], high[is_cut] - low[is_cut]
    return has_area, clipped
