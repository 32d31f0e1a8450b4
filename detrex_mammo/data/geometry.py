# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""From the original image to the breast, and back: one invertible object.

Coordinates are continuous (x, y) pixels: pixel i covers [i, i + 1), so a flip takes x to W - x.
Boxes are xyxy.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from detrex_mammo.errors import UserError


@dataclass(frozen=True)
class Geometry:
    """Crop to a box of whole pixels, then, optionally, mirror left and right.

    Attributes:
        original_size: (height, width) of the original image.
        crop: (x0, y0, x1, y1), whole pixels of the original image, right and lower ends exclusive.
        flip: mirror the crop left and right.

    Raises:
        UserError: the crop is empty or leaves the image.
    """

    original_size: tuple[int, int]
    crop: tuple[int, int, int, int]
    flip: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "original_size", tuple(int(v) for v in self.original_size))
        object.__setattr__(self, "crop", tuple(int(v) for v in self.crop))
        (height, width), (x0, y0, x1, y1) = self.original_size, self.crop
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise UserError(
                f"crop {list(self.crop)} (x0, y0, x1, y1) must lie in the image of "
                f"{width}x{height} pixels and hold at least one"
            )

    @classmethod
    def identity(cls, height: int, width: int) -> "Geometry":
        """The whole image, unflipped."""
        return cls((height, width), (0, 0, width, height))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the crop."""
        x0, y0, x1, y1 = self.crop
        return y1 - y0, x1 - x0

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """Crop and flip an image (H, W) or (H, W, C); a copy in C order.

        Raises:
            UserError: the image is not of ``original_size``.
        """
        if tuple(image.shape[:2]) != self.original_size:
            raise UserError(
                f"image has {image.shape[1]}x{image.shape[0]} pixels, but this geometry is one of "
                f"{self.original_size[1]}x{self.original_size[0]}"
            )
        x0, y0, x1, y1 = self.crop
        cropped = image[y0:y1, x0:x1]
        return np.ascontiguousarray(cropped[:, ::-1] if self.flip else cropped)

    def inverse_image(self, image: np.ndarray) -> np.ndarray:
        """Put a crop (H, W) or (H, W, C) back where it was; zero outside it.

        Raises:
            UserError: the image is not of the crop's size.
        """
        if tuple(image.shape[:2]) != self.size:
            raise UserError(
                f"image has {image.shape[1]}x{image.shape[0]} pixels, but the crop has "
                f"{self.size[1]}x{self.size[0]}: give it in the crop's frame, before any resize"
            )
        x0, y0, x1, y1 = self.crop
        original = np.zeros((*self.original_size, *image.shape[2:]), image.dtype)
        original[y0:y1, x0:x1] = image[:, ::-1] if self.flip else image
        return original

    def apply_boxes(self, boxes: Any) -> Any:
        """Boxes (N, 4) xyxy of the original image to the crop; not clipped. numpy or torch."""
        x0, y0, x1, _ = self.crop
        left, top, right, bottom = boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]
        if self.flip:
            left, right = x1 - right, x1 - left
        else:
            left, right = left - x0, right - x0
        return _stack_like(boxes, left, top - y0, right, bottom - y0)

    def inverse_boxes(self, boxes: Any) -> Any:
        """Boxes (N, 4) xyxy of the crop to the original image. numpy or torch."""
        x0, y0, x1, _ = self.crop
        left, top, right, bottom = boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]
        if self.flip:
            left, right = x1 - right, x1 - left
        else:
            left, right = left + x0, right + x0
        return _stack_like(boxes, left, top + y0, right, bottom + y0)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Geometry":
        """Inverse of :meth:`to_dict`.

        Raises:
            UserError: a key is missing or unknown, or the crop is not possible.
        """
        if set(data) != {"original_size", "crop", "flip"}:
            raise UserError(f"geometry has keys {sorted(data)}; it needs original_size, crop, flip")
        return cls(tuple(data["original_size"]), tuple(data["crop"]), bool(data["flip"]))


def _stack_like(boxes: Any, *columns: Any) -> Any:
    if isinstance(boxes, np.ndarray):
        return np.stack(columns, axis=-1)
    import torch

    return torch.stack(columns, dim=-1)
