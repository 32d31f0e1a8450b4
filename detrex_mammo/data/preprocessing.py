# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""From file to the part of the image a network sees: one small object, stored with the weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from detrex_mammo.data.breast import find_breast
from detrex_mammo.data.geometry import Geometry
from detrex_mammo.errors import UserError


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a mammogram before it is resized.

    Attributes:
        window: grey values of DICOM, see :func:`detrex_mammo.data.dicom.read_dicom`.
        crop_breast: cut the image to the breast.
        margin: around the breast's box, as a share of the box's longer side.
        chest_wall: "left" or "right": mirror images so that the chest wall lies there; "" leaves
            every image as it is.

    Raises:
        UserError: ``margin`` or ``chest_wall`` is not possible.
    """

    window: str = "auto"
    crop_breast: bool = True
    margin: float = 0.02
    chest_wall: str = "left"

    def __post_init__(self) -> None:
        if self.chest_wall not in ("left", "right", ""):
            raise UserError(
                f"preprocessing.chest_wall is {self.chest_wall!r}; use 'left', 'right' or ''"
            )
        if not 0 <= self.margin <= 1:
            raise UserError(f"preprocessing.margin is {self.margin}; use a share from 0 to 1")

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
                that has them stored; found in the pixels otherwise.
            boxes: (N, 4) xyxy ground truth that the crop must not cut, in training.
        """
        height, width = pixels.shape[:2]
        if not (self.crop_breast or self.chest_wall):
            return Geometry.identity(height, width)
        record = record or {}
        box, side = record.get("breast_box"), record.get("chest_wall")
        if (self.crop_breast and box is None) or (self.chest_wall and side is None):
            region = find_breast(pixels)
            box = region.box if box is None else box
            side = region.side if side is None else side
        crop = self._crop(box, boxes, height, width) if self.crop_breast else (0, 0, width, height)
        return Geometry((height, width), crop, bool(self.chest_wall) and side != self.chest_wall)

    def _crop(self, box, boxes, height: int, width: int) -> tuple[int, int, int, int]:
        x0, y0, x1, y1 = (float(value) for value in box)
        margin = self.margin * max(x1 - x0, y1 - y0)
        x0, y0, x1, y1 = x0 - margin, y0 - margin, x1 + margin, y1 + margin
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
