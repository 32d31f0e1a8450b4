# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Crops cut no lesion; rotated and scaled boxes stay on what they enclose."""

import cv2
import numpy as np
import pytest
from detectron2.data.transforms import AugInput
from hypothesis import given, settings
from hypothesis import strategies as st

from detrex_mammo.data.augmentation_geometry import AffineTransform, LesionSafeCrop, RandomAffine
from detrex_mammo.errors import UserError


@st.composite
def images_with_boxes(draw):
    height, width = draw(st.integers(1, 50)), draw(st.integers(1, 50))
    boxes = []
    for _ in range(draw(st.integers(0, 4))):
        x0, y0 = draw(st.floats(0, width - 0.5)), draw(st.floats(0, height - 0.5))
        x1, y1 = draw(st.floats(x0 + 0.01, width)), draw(st.floats(y0 + 0.01, height))
        boxes.append([x0, y0, x1, y1])
    return (height, width), np.array(boxes, np.float64).reshape(-1, 4)


@settings(max_examples=200, deadline=None)
@given(images_with_boxes(), st.floats(0.05, 1.0), st.integers(0, 2**31))
def test_no_box_is_ever_cut(case, min_share, seed):
    (height, width), boxes = case
    np.random.seed(seed)
    image = np.arange(height * width, dtype=np.float32).reshape(height, width)
    sample = AugInput(image, boxes=boxes.copy())
    transform = LesionSafeCrop(min_share, prob=1.0)(sample)
    h, w = sample.image.shape
    assert 1 <= h <= height and 1 <= w <= width
    assert (sample.boxes >= 0).all() and (sample.boxes <= (w, h, w, h)).all()
    np.testing.assert_allclose(
        sample.boxes[:, 2:] - sample.boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    )
    if not len(boxes):
        assert h >= np.floor(min_share * height) and w >= np.floor(min_share * width)
    y, x = divmod(int(sample.image[0, 0]), width)
    np.testing.assert_allclose(transform.apply_box(boxes.copy()), boxes - [x, y, x, y])


def test_crops_differ_and_reach_every_side():
    starts = set()
    for _ in range(300):
        sample = AugInput(np.arange(100, dtype=np.float32).reshape(10, 10), boxes=np.zeros((0, 4)))
        LesionSafeCrop(0.5, prob=1.0)(sample)
        starts.add(divmod(int(sample.image[0, 0]), 10))
    assert {y for y, _ in starts} == {x for _, x in starts} == set(range(6))


def ellipse_bounds(image):
    ys, xs = np.nonzero(image > 100)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


@pytest.mark.parametrize("degrees", [-30, -8, 0, 8, 45, 90])
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.15])
def test_the_box_of_an_ellipse_stays_its_box(degrees, scale):
    """Drawn off the centre of a non-square image, so that a wrong centre or angle shows."""
    image = np.zeros((300, 240), np.uint8)
    cv2.ellipse(image, (150, 120), (40, 20), 0, 0, 360, 200, -1)
    box = ellipse_bounds(image)[None].astype(np.float64)
    transform = AffineTransform(300, 240, degrees, scale)
    moved = transform.apply_image(image.astype(np.float32))
    assert moved.shape == image.shape and moved.dtype == np.float32
    np.testing.assert_allclose(transform.apply_box(box)[0], ellipse_bounds(moved), rtol=0, atol=1.5)


def test_quarter_turn_is_exact():
    """90 degrees take x right to y down: columns become rows, on the square's own centre."""
    image = np.arange(16, dtype=np.float32).reshape(4, 4)
    transform = AffineTransform(4, 4, 90, 1.0)
    np.testing.assert_allclose(transform.apply_image(image), np.rot90(image, -1), atol=1e-4)
    np.testing.assert_allclose(transform.apply_box([[0, 0, 1, 2]]), [[2, 0, 4, 1]], atol=1e-9)
    np.testing.assert_allclose(transform.apply_coords(np.array([[1.0, 0.0]])), [[4, 1]], atol=1e-9)


def test_random_affine_keeps_to_its_range():
    image = np.zeros((10, 20), np.float32)
    angles, scales = [], []
    for _ in range(200):
        linear = RandomAffine(degrees=5, scale=(0.9, 1.2), prob=1.0).get_transform(image).linear
        scales.append(np.hypot(*linear[0]))
        angles.append(np.degrees(np.arctan2(linear[1, 0], linear[0, 0])))
    assert -5 <= min(angles) < -4 and 4 < max(angles) <= 5
    assert 0.9 <= min(scales) < 0.92 and 1.18 < max(scales) <= 1.2


def test_empty_boxes_and_impossible_settings():
    sample = AugInput(np.zeros((5, 6), np.float32), boxes=np.zeros((0, 4)))
    RandomAffine(prob=1.0)(sample)
    assert sample.boxes.shape == (0, 4)
    for build in (
        lambda: LesionSafeCrop(min_share=0),
        lambda: LesionSafeCrop(prob=2),
        lambda: RandomAffine(degrees=-1),
        lambda: RandomAffine(scale=(1.2, 0.9)),
    ):
        with pytest.raises(UserError, match="got "):
            build()
