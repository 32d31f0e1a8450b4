# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Resizing by millimetres, by the short edge, or at random; all of them average where they shrink.

:class:`detrex_mammo.data.augmentation.ResizeToFit` fits an image into a frame.
"""

import logging
from collections.abc import Sequence

import numpy as np
from detectron2.data.transforms import NoOpTransform, Transform

from detrex_mammo.data.augmentation import AreaResizeTransform, Resize, scaled_size
from detrex_mammo.data.augmentation_checks import (
    check_number,
    check_probability,
    check_range,
    check_sizes,
)
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
Spacing = tuple[float, float] | None


class ResizeToSpacing(Resize):
    """Resize so that a network pixel is as many millimetres, whatever machine made the image.

    An image that would not fit into (max_height, max_width) becomes the largest that does, at
    coarser pixels. One whose pixel spacing is not known is fitted into that frame, too: a whole
    breast has its usual size then, but not its own; this is told once per process.

    Args:
        mm_per_pixel: side of a network pixel.
        max_height: of the network's image, in pixels.
        max_width: of the network's image, in pixels.
        scale_range: the size is multiplied by a number drawn from it; (1, 1) in evaluation.

    Raises:
        UserError: a size or range is not possible.
    """

    def __init__(
        self,
        mm_per_pixel: float,
        max_height: int,
        max_width: int,
        scale_range: Sequence[float] = (1.0, 1.0),
    ):
        super().__init__()
        check_sizes("ResizeToSpacing", max_height=max_height, max_width=max_width)
        self.mm_per_pixel = check_number(
            "ResizeToSpacing", "mm_per_pixel", mm_per_pixel, 0, 100, "(]"
        )
        self.max_height, self.max_width = max_height, max_width
        self.scale_range = check_range("ResizeToSpacing", "scale_range", scale_range, above=0)
        self._has_told = False

    def get_transform(self, image: np.ndarray, pixel_spacing: Spacing) -> Transform:
        if pixel_spacing is None and not self._has_told:
            self._has_told = True
            logger.warning(
                "an image has no pixel_spacing: it, and each like it, is fitted into %dx%d pixels "
                "instead of %g mm per pixel",
                self.max_width,
                self.max_height,
                self.mm_per_pixel,
            )
        height, width = image.shape[:2]
        scale = np.random.uniform(*self.scale_range)
        return AreaResizeTransform(height, width, *self._size(height, width, pixel_spacing, scale))

    def nominal_size(self, height: int, width: int, pixel_spacing: Spacing) -> tuple[int, int]:
        return self._size(height, width, pixel_spacing, sum(self.scale_range) / 2)

    def _size(self, height: int, width: int, spacing: Spacing, scale: float) -> tuple[int, int]:
        if spacing is None:
            down = across = min(self.max_height / height, self.max_width / width)
        else:
            down, across = (side / self.mm_per_pixel for side in spacing)
            fit = min(self.max_height / (height * down), self.max_width / (width * across), 1.0)
            down, across = down * fit, across * fit
        return scaled_size(height, width, down * scale, across * scale)


class ResizeShortEdge(Resize):
    """As :class:`detrex_mammo.data.coco_mapper.ResizeShortEdge`, for float images.

    Args:
        short_edges (int or Sequence[int]): one is drawn per image.
        max_size (int, optional): limit of the long edge; the short one shrinks with it.

    Raises:
        UserError: a length is not possible.
    """

    def __init__(self, short_edges: int | Sequence[int], max_size: int | None = None):
        super().__init__()
        is_list = isinstance(short_edges, Sequence) and not isinstance(short_edges, str)
        if is_list and not short_edges:
            raise UserError("ResizeShortEdge got short_edges=[]; give at least one length")
        self.short_edges = list(short_edges) if is_list else [short_edges]
        self.max_size = max_size
        for edge in self.short_edges:
            check_sizes("ResizeShortEdge", short_edges=edge)
        if max_size is not None:
            check_sizes("ResizeShortEdge", max_size=max_size)

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        edge = int(np.random.choice(self.short_edges))
        return AreaResizeTransform(height, width, *self._size(height, width, edge))

    def nominal_size(self, height: int, width: int, pixel_spacing: Spacing) -> tuple[int, int]:
        return self._size(height, width, float(np.median(self.short_edges)))

    def _size(self, height: int, width: int, edge: float) -> tuple[int, int]:
        scale = edge / min(height, width)
        if self.max_size is not None:
            scale = min(scale, self.max_size / max(height, width))
        return scaled_size(height, width, scale, scale)


class RandomScale(Resize):
    """Resize by a random factor; a resize to a fixed size after it leaves only the resampling.

    Args:
        scale: range of the factor.
        prob: probability of doing anything.

    Raises:
        UserError: ``scale`` or ``prob`` is not in its range.
    """

    def __init__(self, scale: Sequence[float] = (0.8, 1.2), prob: float = 0.5):
        super().__init__()
        self.scale = check_range("RandomScale", "scale", scale, above=0)
        self.prob = check_probability("RandomScale", prob)

    def get_transform(self, image: np.ndarray) -> Transform:
        if np.random.uniform() >= self.prob:
            return NoOpTransform()
        scale = np.random.uniform(*self.scale)
        height, width = image.shape[:2]
        return AreaResizeTransform(height, width, *scaled_size(height, width, scale, scale))

    def nominal_size(self, height: int, width: int, pixel_spacing: Spacing) -> tuple[int, int]:
        scale = 1 + self.prob * (sum(self.scale) / 2 - 1)
        return scaled_size(height, width, scale, scale)
