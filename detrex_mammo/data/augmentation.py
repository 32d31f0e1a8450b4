# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Augmentations for float images, on detectron2's interface.

detectron2's own resize of float images does not average when it shrinks; a mammogram shrunk ten
times would lose its calcifications to chance.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.data.transforms import Augmentation, NoOpTransform, Transform

from detrex_mammo.data.augmentation_checks import (
    check_number,
    check_probability,
    check_range,
    check_sizes,
)


class AreaResizeTransform(Transform):
    """Resize (H, W) or (H, W, C) to (new_h, new_w), averaging where it shrinks."""

    def __init__(self, h: int, w: int, new_h: int, new_w: int):
        super().__init__()
        self.h, self.w, self.new_h, self.new_w = h, w, new_h, new_w

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        shrinks = self.new_h * self.new_w < self.h * self.w
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return cv2.resize(img, (self.new_w, self.new_h), interpolation=method)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        coords[:, 0] = coords[:, 0] * (self.new_w / self.w)
        coords[:, 1] = coords[:, 1] * (self.new_h / self.h)
        return coords

    def inverse(self) -> Transform:
        return AreaResizeTransform(self.new_h, self.new_w, self.h, self.w)


class Resize(Augmentation):
    """An augmentation that resizes the whole image, so that a pixel's size changes with it."""

    def nominal_size(
        self, height: int, width: int, pixel_spacing: tuple[float, float] | None
    ) -> tuple[int, int]:
        """(height, width) that an image gets, at the middle of each random range."""
        raise NotImplementedError


def scaled_size(height: int, width: int, down: float, across: float) -> tuple[int, int]:
    """(height, width) times a factor each, whole and at least 1."""
    return max(1, round(height * down)), max(1, round(width * across))


class ResizeToFit(Resize):
    """Resize to the largest size that fits into (height, width), keeping the aspect ratio.

    Args:
        height: of the frame, in pixels.
        width: of the frame, in pixels.
        scale_range: the size is multiplied by a number drawn from it; (1, 1) in evaluation.
        aspect_jitter: width and height are multiplied by up to ``1 +- aspect_jitter``, one each.

    Raises:
        UserError: a size or range is not possible.
    """

    def __init__(
        self,
        height: int,
        width: int,
        scale_range: Sequence[float] = (1.0, 1.0),
        aspect_jitter: float = 0.0,
    ):
        super().__init__()
        check_sizes("ResizeToFit", height=height, width=width)
        self.height, self.width = height, width
        self.scale_range = check_range("ResizeToFit", "scale_range", scale_range, above=0)
        self.aspect_jitter = check_number("ResizeToFit", "aspect_jitter", aspect_jitter, 0, 1, "[)")

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        scale = min(self.height / height, self.width / width)
        scale *= np.random.uniform(*self.scale_range)
        stretch = 1 + np.random.uniform(-self.aspect_jitter, self.aspect_jitter, size=2)
        new_size = scaled_size(height, width, scale * stretch[0], scale * stretch[1])
        return AreaResizeTransform(height, width, *new_size)

    def nominal_size(
        self, height: int, width: int, pixel_spacing: tuple[float, float] | None
    ) -> tuple[int, int]:
        scale = min(self.height / height, self.width / width) * sum(self.scale_range) / 2
        return scaled_size(height, width, scale, scale)


class IntensityTransform(Transform):
    """``offset + contrast * 255 * (value / 255)**gamma``, clipped to [0, 255]; boxes stay."""

    def __init__(self, gamma: float, contrast: float, offset: float):
        super().__init__()
        self.gamma, self.contrast, self.offset = gamma, contrast, offset

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        curve = np.power(img * np.float32(1 / 255), np.float32(self.gamma))
        return np.clip(curve * np.float32(255 * self.contrast) + np.float32(self.offset), 0, 255)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords


class RandomIntensity(Augmentation):
    """Vary exposure and film: gamma, contrast and offset, each drawn from a range.

    Args:
        gamma: range of the exponent, drawn on a log scale.
        contrast: range of the factor.
        offset: range of the summand, in grey values of [0, 255].
        prob: probability of doing anything.

    Raises:
        UserError: a range or ``prob`` is not possible.
    """

    def __init__(
        self,
        gamma: Sequence[float] = (0.75, 1.35),
        contrast: Sequence[float] = (0.85, 1.15),
        offset: Sequence[float] = (-8.0, 8.0),
        prob: float = 0.8,
    ):
        super().__init__()
        self.gamma = check_range("RandomIntensity", "gamma", gamma, above=0)
        self.contrast = check_range("RandomIntensity", "contrast", contrast, 0)
        self.offset = check_range("RandomIntensity", "offset", offset, -255, 255)
        self.prob = check_probability("RandomIntensity", prob)

    def get_transform(self, image: np.ndarray) -> Transform:
        if np.random.uniform() >= self.prob:
            return NoOpTransform()
        gamma = float(np.exp(np.random.uniform(*np.log(self.gamma))))
        contrast = np.random.uniform(*self.contrast)
        return IntensityTransform(gamma, contrast, np.random.uniform(*self.offset))
