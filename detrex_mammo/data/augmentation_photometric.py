# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Noise and blur, in float: no grey value is rounded, and boxes stay."""

from collections.abc import Sequence

import cv2
import numpy as np
from detectron2.data.transforms import Augmentation, NoOpTransform, Transform

from detrex_mammo.data.augmentation_checks import check_probability, check_range


class NoiseTransform(Transform):
    """Add noise of standard deviation ``sqrt(gaussian**2 + quantum**2 * value / 255)``.

    Args:
        gaussian: of electronics and film grain, in grey values of [0, 255], the same everywhere.
        quantum: of the X-ray quanta, in grey values, where the image is 255. Dense tissue lets
            few quanta through and is shown bright, so it is noisier.
        seed: of the noise: the same transform does the same again.
    """

    def __init__(self, gaussian: float, quantum: float, seed: int):
        super().__init__()
        self.gaussian, self.quantum, self.seed = gaussian, quantum, seed

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(self.seed).standard_normal(img.shape, dtype=np.float32)
        variance = img * np.float32(self.quantum**2 / 255) + np.float32(self.gaussian**2)
        return np.clip(img + np.sqrt(variance) * noise, 0, 255)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords


class RandomNoise(Augmentation):
    """Add grain, see :class:`NoiseTransform`; independent from pixel to pixel.

    Args:
        gaussian: range of the even part, in grey values of [0, 255].
        quantum: range of the part that grows with the signal, in grey values at 255.
        prob: probability of doing anything.

    Raises:
        UserError: a range or ``prob`` is not possible.
    """

    def __init__(
        self,
        gaussian: Sequence[float] = (0.0, 2.0),
        quantum: Sequence[float] = (0.0, 4.0),
        prob: float = 0.5,
    ):
        super().__init__()
        self.gaussian = check_range("RandomNoise", "gaussian", gaussian, 0, 255)
        self.quantum = check_range("RandomNoise", "quantum", quantum, 0, 255)
        self.prob = check_probability("RandomNoise", prob)

    def get_transform(self, image: np.ndarray) -> Transform:
        if np.random.uniform() >= self.prob:
            return NoOpTransform()
        gaussian, quantum = np.random.uniform(*self.gaussian), np.random.uniform(*self.quantum)
        return NoiseTransform(gaussian, quantum, int(np.random.randint(2**31)))


class BlurTransform(Transform):
    """Convolve with a Gaussian of ``sigma`` pixels; boxes stay."""

    def __init__(self, sigma: float):
        super().__init__()
        self.sigma = sigma

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(img, (0, 0), self.sigma)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords


class RandomBlur(Augmentation):
    """Blur a little: motion, a large focal spot, a coarse detector.

    Args:
        sigma: range of the Gaussian's standard deviation, in pixels; much above 1 network pixel
            takes calcifications away, whose boxes stay.
        prob: probability of doing anything.

    Raises:
        UserError: ``sigma`` or ``prob`` is not in its range.
    """

    def __init__(self, sigma: Sequence[float] = (0.3, 1.0), prob: float = 0.3):
        super().__init__()
        self.sigma = check_range("RandomBlur", "sigma", sigma, highest=100, above=0)
        self.prob = check_probability("RandomBlur", prob)

    def get_transform(self, image: np.ndarray) -> Transform:
        if np.random.uniform() >= self.prob:
            return NoOpTransform()
        return BlurTransform(np.random.uniform(*self.sigma))
