# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Noise has the strength it says, blur is a Gaussian's, and neither rounds a grey value."""

import numpy as np
import pytest
from detectron2.data.transforms import AugInput, NoOpTransform
from scipy.ndimage import gaussian_filter

from detrex_mammo.data.augmentation_photometric import (
    BlurTransform,
    NoiseTransform,
    RandomBlur,
    RandomNoise,
)


@pytest.mark.parametrize(
    "gaussian,quantum,level,expected",
    [
        (3.0, 0.0, 100, 3.0),
        (0.0, 4.0, 127.5, 4 / np.sqrt(2)),
        (0.0, 4.0, 63.75, 2.0),
        (3.0, 4.0, 200, np.sqrt(9 + 16 * 200 / 255)),
        (0.0, 4.0, 0.0, 0.0),
    ],
)
def test_noise_of_a_flat_image(gaussian, quantum, level, expected):
    image = np.full((500, 400), level, np.float32)
    noisy = NoiseTransform(gaussian, quantum, 1).apply_image(image)
    assert noisy.dtype == np.float32
    # 200,000 values: the spread is known to 0.16 %, their mean to a 450th of it.
    np.testing.assert_allclose(noisy.std(dtype=float), expected, rtol=0.008)
    np.testing.assert_allclose(noisy.mean(dtype=float), level, atol=5 * expected / 447)
    if expected:
        neighbours = np.corrcoef(noisy[:, 1:].ravel(), noisy[:, :-1].ravel())[0, 1]
        assert abs(neighbours) < 0.02


def test_noise_stays_in_range_and_one_transform_does_the_same_again():
    image = np.tile(np.float32([0, 1, 254, 255]), (50, 50))
    transform = NoiseTransform(30, 10, 7)
    noisy = transform.apply_image(image)
    assert noisy.min() == 0 and noisy.max() == 255
    np.testing.assert_array_equal(noisy, transform.apply_image(image))
    assert image.max() == 255 and (noisy != NoiseTransform(30, 10, 8).apply_image(image)).any()


def test_blur_is_a_gaussians_and_keeps_the_mean():
    image = np.random.default_rng(0).uniform(0, 255, (60, 50)).astype(np.float32)
    blurred = BlurTransform(1.3).apply_image(image)
    expected = gaussian_filter(image.astype(float), 1.3, mode="mirror", truncate=5)
    np.testing.assert_allclose(blurred, expected, atol=0.05)
    flat = np.full((9, 9), 100.00390625, np.float32)
    np.testing.assert_allclose(BlurTransform(0.7).apply_image(flat), flat, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", [RandomNoise, RandomBlur])
def test_random_ones_follow_the_seed_and_leave_the_boxes(kind):
    image = np.random.default_rng(0).uniform(0, 255, (30, 40)).astype(np.float32)
    results = []
    for _ in range(2):
        np.random.seed(5)
        augmented = AugInput(image.copy(), boxes=np.array([[1.0, 2.0, 3.0, 4.0]]))
        kind(prob=1.0)(augmented)
        assert augmented.boxes.tolist() == [[1, 2, 3, 4]]
        results.append(augmented.image)
    np.testing.assert_array_equal(*results)
    assert results[0].dtype == np.float32 and (results[0] != image).any()
    assert isinstance(kind(prob=0.0).get_transform(image), NoOpTransform)


def test_random_ones_keep_to_their_ranges():
    image = np.zeros((4, 4), np.float32)
    noise = [RandomNoise([1, 3], [5, 6], 1.0).get_transform(image) for _ in range(100)]
    assert all(1 <= n.gaussian <= 3 and 5 <= n.quantum <= 6 for n in noise)
    assert len({n.seed for n in noise}) == 100
    sigmas = [RandomBlur([0.5, 2], 1.0).get_transform(image).sigma for _ in range(100)]
    assert 0.5 <= min(sigmas) < 0.7 and 1.8 < max(sigmas) <= 2
