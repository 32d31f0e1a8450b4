# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What augmentations work on: a mammogram, its boxes with their classes, and its scale.

N boxes, (N, 4) xyxy in continuous pixels: pixel i covers [i, i + 1).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from detectron2.data.transforms import AugInput, Transform

from detrex_mammo.data.augmentation import AreaResizeTransform
from detrex_mammo.errors import UserError


class MammogramInput(AugInput):
    """detectron2's input, in which a box that leaves the image leaves with its class, at once.

    Otherwise a later rotation could bring the box back, but not its pixels.

    Args:
        image: (H, W) float32 in [0, 255].
        boxes: (N, 4) xyxy; they may reach out of the image until the mapper clips them.
        classes: (N,) int64.
        pixel_spacing: (height, width) of a pixel in mm; None if it is not known. Follows each
            resize; a random scaling that keeps the image's size does not change it, so that a
            ``ResizeToSpacing`` after it keeps the variation.
        min_visibility: a box goes when a smaller share of its area is left in the image.
    """

    def __init__(
        self,
        image: np.ndarray,
        *,
        boxes: np.ndarray,
        classes: np.ndarray,
        pixel_spacing: tuple[float, float] | None = None,
        min_visibility: float = 0.0,
    ):
        super().__init__(image, boxes=boxes)
        self.classes = classes
        self.pixel_spacing = pixel_spacing
        self.min_visibility = min_visibility

    def transform(self, tfm: Transform) -> None:
        """Transform image and boxes, in place."""
        super().transform(tfm)
        if self.pixel_spacing is not None and isinstance(tfm, AreaResizeTransform):
            down, across = self.pixel_spacing
            self.pixel_spacing = (down * tfm.h / tfm.new_h, across * tfm.w / tfm.new_w)
        share = visible_share(self.boxes, self.image.shape[:2])
        self.keep((share > 0) & (share >= self.min_visibility))

    def keep(self, which: np.ndarray) -> None:
        """Keep the boxes, and their classes, that a mask or an index array names."""
        self.boxes, self.classes = self.boxes[which], self.classes[which]


def visible_share(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Share (N,) in [0, 1] of each box's area inside an image of (height, width)."""
    height, width = size
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    inside = np.clip(boxes, 0, (width, height, width, height))
    inside_areas = np.prod(np.maximum(inside[:, 2:] - inside[:, :2], 0), axis=1)
    return np.divide(inside_areas, areas, out=np.zeros(len(boxes)), where=areas > 0)


def spacing_of(record: Mapping[str, Any]) -> tuple[float, float] | None:
    """``pixel_spacing`` of a record, (height, width) of a pixel in mm; None if it has none.

    Raises:
        UserError: it is not two positive numbers.
    """
    value = record.get("pixel_spacing")
    if value is None or value == []:
        return None
    try:
        down, across = (float(number) for number in value)
    except (TypeError, ValueError):
        down = across = math.nan
    if not (0 < down < math.inf and 0 < across < math.inf):
        raise UserError(
            f"image {record.get('file_name')!r} has pixel_spacing {value!r}; it is two positive "
            "numbers, the height and width of a pixel in mm: correct it, or leave it out"
        )
    return down, across
