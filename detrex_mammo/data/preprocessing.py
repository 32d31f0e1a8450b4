# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""From file to the part of the image a network sees: one small object, stored with the weights."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from detrex_mammo.data.breast import BreastRegion, find_breast
from detrex_mammo.data.geometry import Geometry
from detrex_mammo.data.grey_levels import WindowPolicy
from detrex_mammo.data.image_io import read_image
from detrex_mammo.errors import UserError


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a mammogram before it is resized.

    Attributes:
        window: grey values, see :meth:`detrex_mammo.data.grey_levels.WindowPolicy.parse`.
        crop_breast: cut the image to the breast.
        margin: around the breast's box, as a share of the box's longer side.
        chest_wall: "left" or "right": mirror images so that the chest wall lies there; "" leaves
            every image as it is.
        allow_for_processing: also take raw FOR PROCESSING DICOM images.

    Raises:
        UserError: ``window``, ``margin`` or ``chest_wall`` is not possible.
    """

    window: str = "auto"
    crop_breast: bool = True
    margin: float = 0.02
    chest_wall: str = "left"
    allow_for_processing: bool = False

    def __post_init__(self) -> None:
        WindowPolicy.parse(self.window)
        if self.chest_wall not in ("left", "right", ""):
            raise UserError(
                f"preprocessing.chest_wall is {self.chest_wall!r}; use 'left', 'right' or ''"
            )
        if not 0 <= self.margin <= 1:
            raise UserError(f"preprocessing.margin is {self.margin}; use a share from 0 to 1")

    def read(self, path: str | os.PathLike, frame: int | None = None) -> np.ndarray:
        """Read a file as this says: (H, W) float32 in [0, 255].

        Args:
            path: of an image.
            frame: which frame of a multi-frame DICOM file, from 0.

        Raises:
            UserError: the file cannot be read so.
        """
        return read_image(path, self.window, self.allow_for_processing, frame)

    def geometry_for(
        self,
        pixels: np.ndarray,
        record: Mapping[str, Any] | None = None,
        boxes: np.ndarray | None = None,
    ) -> Geometry:
        """Crop and flip for one image.

        Args:
            pixels: (H, W).
            record: ``breast_box`` (xyxy) and ``chest_wall`` ("left" or "right") of a dataset
                that has them stored; found in the pixels otherwise, which are trusted more than
                ``laterality``: headers are wrong now and then.
            boxes: (N, 4) xyxy ground truth that the crop must not cut, in training.
        """
        region = find_breast(pixels) if self.needs_region(record) else None
        return self.geometry_from(pixels.shape[:2], region, record, boxes)

    def needs_region(self, record: Mapping[str, Any] | None = None) -> bool:
        """Whether the breast must be found in the pixels: the record does not say all of it."""
        box, side = _stored(record or {})
        return bool((self.crop_breast and box is None) or (self.chest_wall and side is None))

    def geometry_from(
        self,
        size: tuple[int, int],
        region: BreastRegion | None,
        record: Mapping[str, Any] | None = None,
        boxes: np.ndarray | None = None,
    ) -> Geometry:
        """As :meth:`geometry_for`, without the pixels.

        Args:
            size: (height, width) of the image.
            region: what was found in its pixels; None if nothing need be.
            record: see :meth:`geometry_for`.
            boxes: see :meth:`geometry_for`.
        """
        height, width = size
        box, side = _stored(record or {})
        frame = (0, 0, width, height)
        if region is not None:
            if side is None:
                side = region.side if region.found else _expected_side(record or {}, region.side)
            frame = region.frame if box is None else frame
            box = region.box if box is None else box
        crop = (0, 0, width, height)
        if self.crop_breast:
            crop = self._crop(box, frame, boxes, height, width)
        return Geometry((height, width), crop, bool(self.chest_wall) and side != self.chest_wall)

    def _crop(self, box, frame, boxes, height: int, width: int) -> tuple[int, int, int, int]:
        """Box with its margin, inside the frame, but with all of the boxes; whole pixels."""
        x0, y0, x1, y1 = (float(value) for value in box)
        margin = self.margin * max(x1 - x0, y1 - y0)
        x0, y0 = max(x0 - margin, frame[0]), max(y0 - margin, frame[1])
        x1, y1 = min(x1 + margin, frame[2]), min(y1 + margin, frame[3])
        if boxes is not None and len(boxes):
            x0, y0 = min(x0, boxes[:, 0].min()), min(y0, boxes[:, 1].min())
            x1, y1 = max(x1, boxes[:, 2].max()), max(y1, boxes[:, 3].max())
        ends = (int(np.floor(x0)), int(np.floor(y0)), int(np.ceil(x1)), int(np.ceil(y1)))
        return max(ends[0], 0), max(ends[1], 0), min(ends[2], width), min(ends[3], height)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Preprocessing":
        """Inverse of :meth:`to_dict`.

        Raises:
            UserError: a key that does not exist.
        """
        known = [field.name for field in fields(cls)]
        unknown = [key for key in data if key not in known]
        if unknown:
            raise UserError(f"preprocessing has unknown keys {unknown}; known are {known}")
        return cls(**data)


def laterality_conflict(record: Mapping[str, Any], region: BreastRegion) -> str | None:
    """One sentence if the header's side is not the one that the pixels show; None if it is."""
    expected = _expected_side(record, region.side)
    if not region.found or region.side == expected:
        return None
    return (
        f"laterality is {record['laterality']!r}, but the chest wall lies on the {region.side} of "
        f"the image and not on the {expected}: the image is mirrored or its header is wrong"
    )


def _stored(record: Mapping[str, Any]) -> tuple[Any, str | None]:
    return record.get("breast_box"), record.get("chest_wall")


def _expected_side(record: Mapping[str, Any], otherwise: str) -> str:
    """Where the chest wall of a left or right breast is shown by convention."""
    return {"L": "left", "R": "right"}.get(record.get("laterality"), otherwise)
