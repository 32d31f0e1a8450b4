# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Augmentations that move lesions: a crop that cuts none, and a small rotation and scaling.

Boxes are (N, 4) xyxy in continuous pixels: pixel i covers [i, i + 1).
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.data.transforms import Augmentation, CropTransform, NoOpTransform, Transform

from detrex_mammo.data.augmentation_checks import check_number, check_probability, check_range


class LesionSafeCrop(Augmentation):
    """Crop to a random part of the image that holds every box whole.

    Where the boxes lie too far apart for the drawn size, the crop grows to hold them.

    Args:
        min_share: the crop's height and width are each drawn from [min_share, 1] of the image's.
        prob: probability of doing anything.

    Raises:
        UserError: ``min_share`` or ``prob`` is not in its range.
    """

    def __init__(self, min_share: float = 0.6, prob: float = 0.5):
        super().__init__()
        self.min_share = check_number("LesionSafeCrop", "min_share", min_share, 0, 1, "(]")
        self.prob = check_probability("LesionSafeCrop", prob)

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> Transform:
        if np.random.uniform() >= self.prob:
            return NoOpTransform()
        height, width = image.shape[:2]
        x0, x1 = self._span(width, boxes[:, 0], boxes[:, 2])
        y0, y1 = self._span(height, boxes[:, 1], boxes[:, 3])
        return CropTransform(x0, y0, x1 - x0, y1 - y0)

    def nominal_size(
        self, height: int, width: int, pixel_spacing: object = None
    ) -> tuple[int, int]:
        """Mean (height, width) of the crops of an image without boxes."""
        share = 1 - self.prob * (1 - self.min_share) / 2
        return max(1, round(height * share)), max(1, round(width * share))

    def _span(self, size: int, starts: np.ndarray, ends: np.ndarray) -> tuple[int, int]:
        """Whole pixels [start, end) along one axis, within [0, size), around all boxes."""
        length = max(1, round(size * np.random.uniform(self.min_share, 1.0)))
        first, last = size, 0
        if len(starts):
            first, last = max(0, math.floor(starts.min())), min(size, math.ceil(ends.max()))
            length = max(length, last - first)
        low, high = max(0, last - length), min(first, size - length)
        start = int(np.random.randint(low, high + 1))
        return start, start + length


class AffineTransform(Transform):
    """Shear, rotate and scale about the image's centre, then shift; the image keeps its size.

    A box becomes the box of the ellipse that fills it, not of its corners: masses are round, and
    rotated corners would grow a box by a sixth at 10 degrees, more with each augmentation.
    """

    def __init__(
        self,
        height: int,
        width: int,
        degrees: float,
        scale: float,
        shear: Sequence[float] = (0.0, 0.0),
        shift: Sequence[float] = (0.0, 0.0),
    ):
        super().__init__()
        angle, (along_x, along_y) = math.radians(degrees), np.tan(np.radians(shear))
        rotation = np.array(
            [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        )
        self.linear = scale * rotation @ np.array([[1, along_x], [along_y, 1]])
        self.centre = np.array([width / 2, height / 2])
        self.shift = np.asarray(shift, dtype=np.float64)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        # cv2 puts the centre of pixel i at i, we at i + 1/2.
        shift = self.centre + self.shift - self.linear @ self.centre
        shift += self.linear @ [0.5, 0.5] - [0.5, 0.5]
        matrix = np.column_stack([self.linear, shift])
        size = (img.shape[1], img.shape[0])
        return cv2.warpAffine(img, matrix, size, flags=cv2.INTER_LINEAR)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return (coords - self.centre) @ self.linear.T + self.centre + self.shift

    def apply_box(self, box: np.ndarray) -> np.ndarray:
        box = np.asarray(box, dtype=np.float64).reshape(-1, 4)
        centres = self.apply_coords((box[:, :2] + box[:, 2:]) / 2)
        halves = np.sqrt(((box[:, 2:] - box[:, :2]) / 2) ** 2 @ (self.linear**2).T)
        return np.concatenate([centres - halves, centres + halves], axis=1)


class RandomAffine(Augmentation):
    """Rotate and scale a little, as breasts are positioned; outside the image it is black.

    Args:
        degrees: largest angle, to both sides.
        scale: range of the factor.
        prob: probability of doing anything.
        shear: largest angle in degrees, to both sides, along each axis.
        translate: largest shift, to both sides, as a share of height and of width.

    Raises:
        UserError: a range is not possible.
    """

    def __init__(
        self,
        degrees: float = 8.0,
        scale: Sequence[float] = (0.9, 1.1),
        prob: float = 0.5,
        shear: float = 0.0,
        translate: float = 0.0,
    ):
        super().__init__()
        self.degrees = check_number("RandomAffine", "degrees", degrees, 0, 180)
        self.scale = check_range("RandomAffine", "scale", scale, above=0)
        self.prob = check_probability("RandomAffine", prob)
        self.shear = check_number("RandomAffine", "shear", shear, 0, 45)
        self.translate = check_number("RandomAffine", "translate", translate, 0, 1, "[)")

    def get_transform(self, image: np.ndarray) -> Transform:
        if np.random.uniform() >= self.prob:
            return NoOpTransform()
        height, width = image.shape[:2]
        degrees = np.random.uniform(-self.degrees, self.degrees)
        scale = np.random.uniform(*self.scale)
        shear = np.random.uniform(-self.shear, self.shear, size=2)
        shift = np.random.uniform(-self.translate, self.translate, size=2) * (width, height)
        return AffineTransform(height, width, degrees, scale, shear, shift)
