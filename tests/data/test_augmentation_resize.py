# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Sizes by millimetres and by the short edge, by hand and against detectron2's rule."""

import logging

import numpy as np
import pytest
from detectron2.data.transforms import AugInput, ResizeShortestEdge
from hypothesis import given, settings
from hypothesis import strategies as st

from detrex_mammo.data.augmentation_input import MammogramInput
from detrex_mammo.data.augmentation_resize import RandomScale, ResizeShortEdge, ResizeToSpacing


def mammogram(shape, spacing=None):
    return MammogramInput(
        np.zeros(shape, np.float32),
        boxes=np.array([[10.0, 20.0, 30.0, 60.0]]),
        classes=np.array([0]),
        pixel_spacing=spacing,
    )


def test_millimetres_by_hand():
    """400 rows of 0.1 mm are 40 mm, 200 columns of 0.05 mm are 10 mm: 200x50 at 0.2 mm."""
    augmented = mammogram((400, 200), (0.1, 0.05))
    resize = ResizeToSpacing(0.2, 1000, 1000)
    resize(augmented)
    assert augmented.image.shape == (200, 50)
    np.testing.assert_allclose(augmented.boxes, [[2.5, 10, 7.5, 30]])
    assert augmented.pixel_spacing == pytest.approx((0.2, 0.2))
    assert resize.nominal_size(400, 200, (0.1, 0.05)) == (200, 50)


def test_the_same_lesion_has_the_same_size_from_two_machines():
    """10 mm at 0.07 and at 0.1 mm per pixel."""
    for spacing in (0.07, 0.1):
        augmented = mammogram((1000, 800), (spacing, spacing))
        augmented.boxes = np.array([[100, 100, 100 + 10 / spacing, 100 + 10 / spacing]])
        ResizeToSpacing(0.25, 4000, 4000)(augmented)
        x0, y0, x1, y1 = augmented.boxes[0]
        np.testing.assert_allclose([x1 - x0, y1 - y0], 40, rtol=2e-3)


def test_too_large_an_image_is_fitted_at_coarser_pixels():
    """40 x 10 mm at 0.02 mm are 2000x500; into 1000x400 they fit at 0.04 mm."""
    augmented = mammogram((400, 200), (0.1, 0.05))
    ResizeToSpacing(0.02, 1000, 400)(augmented)
    assert augmented.image.shape == (1000, 250)


def test_without_spacing_it_fits_into_the_frame_and_says_so_once(caplog):
    resize = ResizeToSpacing(0.2, 100, 80)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            augmented = mammogram((400, 200))
            resize(augmented)
            assert augmented.image.shape == (100, 50)
    assert caplog.text.count("has no pixel_spacing") == 1
    assert resize.nominal_size(400, 200, None) == (100, 50)


def test_its_scale_varies_within_the_range():
    sizes = []
    for _ in range(200):
        augmented = mammogram((400, 200), (0.1, 0.1))
        ResizeToSpacing(0.2, 1000, 1000, scale_range=(0.5, 1.5))(augmented)
        sizes.append(augmented.image.shape[0])
    assert 100 <= min(sizes) < 110 and 290 < max(sizes) <= 300
    nominal = ResizeToSpacing(0.2, 1000, 1000, scale_range=(0.5, 1.0)).nominal_size
    assert nominal(400, 200, (0.1, 0.1)) == (150, 75)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 3000), st.integers(2, 3000), st.sampled_from([480, 800]), st.booleans())
def test_the_short_edge_is_detectron2s(height, width, edge, is_limited):
    limit = 1333 if is_limited else None
    expected = ResizeShortestEdge.get_output_shape(height, width, edge, limit or 10**9)
    size = ResizeShortEdge(edge, limit).nominal_size(height, width, None)
    assert np.abs(np.subtract(size, expected)).max() <= 1  # halves are rounded otherwise


def test_the_short_edge_averages_and_is_drawn_from_its_list():
    image = np.zeros((200, 100), np.float32)
    image[12, 17] = 250.0
    augmented = AugInput(image)
    ResizeShortEdge(10, 1333)(augmented)
    np.testing.assert_allclose(augmented.image[1, 1], 2.5, rtol=1e-5)
    drawn = set()
    for _ in range(60):
        augmented = AugInput(image)
        ResizeShortEdge([40, 50, 60], 110)(augmented)
        drawn.add(augmented.image.shape)
    assert drawn == {(80, 40), (100, 50), (110, 55)}


def test_random_scale():
    shapes = []
    for _ in range(300):
        augmented = AugInput(np.zeros((100, 50), np.float32))
        RandomScale((0.8, 1.2), prob=0.5)(augmented)
        shapes.append(augmented.image.shape)
    heights = np.array(shapes)[:, 0]
    assert 100 < (heights == 100).sum() < 210 and heights.min() < 85 and heights.max() > 115
    assert all(abs(width - height / 2) <= 0.5 for height, width in shapes)
    assert RandomScale((0.5, 0.7), prob=0.5).nominal_size(100, 50, None) == (80, 40)
