# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Resizing without aliasing at full precision, and exposure that stays in [0, 255]."""

import numpy as np
import pytest
from detectron2.data.transforms import AugInput, NoOpTransform, ResizeShortestEdge

from detrex_mammo.data.augmentation import (
    AreaResizeTransform,
    IntensityTransform,
    RandomIntensity,
    ResizeToFit,
)
from detrex_mammo.errors import UserError


def test_shrinking_is_the_mean_of_the_pixels():
    image = np.random.default_rng(0).uniform(0, 255, (60, 40)).astype(np.float32)
    shrunk = AreaResizeTransform(60, 40, 12, 8).apply_image(image)
    np.testing.assert_allclose(shrunk, image.reshape(12, 5, 8, 5).mean((1, 3)), rtol=1e-5)


def test_a_calcification_survives_shrinking_where_detectron2_loses_it():
    """One bright pixel in a 10x10 cell; sampling without averaging misses it."""
    image = np.zeros((200, 100), np.float32)
    image[12, 17] = 250.0
    sample = AugInput(image.copy())
    ResizeToFit(20, 10)(sample)
    assert sample.image.shape == (20, 10)
    np.testing.assert_allclose(sample.image[1, 1], 2.5, rtol=1e-5)
    sample = AugInput(image.copy())
    ResizeShortestEdge(10, 20)(sample)
    assert sample.image.max() == 0


def test_values_are_not_rounded():
    image = np.full((8, 8), 100.00390625, np.float32)  # 1/256 above
    for size in (4, 16):
        resized = AreaResizeTransform(8, 8, size, size).apply_image(image)
        assert resized.dtype == np.float32
        np.testing.assert_allclose(resized, image[0, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "shape,expected", [((400, 100), (200, 50)), ((100, 400), (25, 100)), ((50, 20), (200, 80))]
)
def test_fits_into_the_frame_and_keeps_the_aspect(shape, expected):
    sample = AugInput(np.zeros(shape, np.float32), boxes=np.array([[10.0, 20.0, 20.0, 40.0]]))
    transform = ResizeToFit(200, 100)(sample)
    assert sample.image.shape == expected
    scale = expected[1] / shape[1], expected[0] / shape[0]
    np.testing.assert_allclose(
        sample.boxes, [[10 * scale[0], 20 * scale[1], 20 * scale[0], 40 * scale[1]]]
    )
    np.testing.assert_allclose(transform.inverse().apply_box(sample.boxes), [[10, 20, 20, 40]])


def test_scale_and_aspect_vary_within_their_range():
    sizes = []
    for _ in range(200):
        sample = AugInput(np.zeros((400, 200), np.float32))
        ResizeToFit(200, 100, scale_range=(0.8, 1.0), aspect_jitter=0.1)(sample)
        sizes.append(sample.image.shape)
    heights, widths = np.array(sizes).T
    assert heights.min() >= 0.8 * 200 * 0.9 - 1 and heights.max() <= 220
    assert heights.max() - heights.min() > 40 and np.ptp(widths / heights) > 0.05


@pytest.mark.parametrize(
    "setting", [{"height": 0}, {"scale_range": (1, 0.5)}, {"aspect_jitter": 1.0}]
)
def test_impossible_sizes_are_refused(setting):
    with pytest.raises(UserError, match="ResizeToFit got"):
        ResizeToFit(**{"height": 10, "width": 10, **setting})


def test_intensity_by_hand():
    """51 is 0.2 of 255: squared 0.04, times 255 * 1.5 is 15.3, and 3 more."""
    transform = IntensityTransform(gamma=2.0, contrast=1.5, offset=3.0)
    image = np.array([[0, 51, 255]], np.float32)
    np.testing.assert_allclose(transform.apply_image(image), [[3, 18.3, 255]], rtol=1e-6)
    assert image.tolist() == [[0, 51, 255]]


def test_intensity_stays_in_range_and_keeps_order_and_boxes():
    image = np.linspace(0, 255, 1000, dtype=np.float32)[None]
    seen = set()
    for _ in range(30):
        sample = AugInput(image.copy(), boxes=np.array([[1.0, 2.0, 3.0, 4.0]]))
        RandomIntensity(prob=1.0)(sample)
        assert sample.image.dtype == np.float32
        assert sample.image.min() >= 0 and sample.image.max() <= 255
        assert (np.diff(sample.image) >= 0).all()
        assert sample.boxes.tolist() == [[1, 2, 3, 4]]
        seen.add(float(sample.image[0, 500]))
    assert len(seen) == 30
    assert isinstance(RandomIntensity(prob=0.0).get_transform(image), NoOpTransform)
