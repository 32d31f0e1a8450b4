# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Bent boxes stay on bent discs to half a pixel."""

import cv2
import numpy as np
import pytest
from detectron2.data.transforms import AugInput, NoOpTransform

from detrex_mammo.data.augmentation_geometry import AffineTransform
from detrex_mammo.data.augmentation_warp import (
    MAX_STRAIN,
    ElasticTransform,
    PerspectiveTransform,
    RandomElastic,
    RandomPerspective,
    smooth_field,
)

SIZE = (300, 240)
FINER = 8


def cone(centre, halves):
    """(H, W) float32 with 100 on the ellipse's outline, more inside: its edge is between pixels."""
    ys, xs = np.indices(SIZE) + 0.5
    radius = np.hypot((xs - centre[0]) / halves[0], (ys - centre[1]) / halves[1])
    return (100 * (2 - np.minimum(radius, 2))).astype(np.float32)


def bounds(image):
    """xyxy of what is above 100, to an eighth of a pixel."""
    ys, xs = np.nonzero(image > 90)
    x0, y0, x1, y1 = xs.min() - 2, ys.min() - 2, xs.max() + 3, ys.max() + 3
    part = image[y0:y1, x0:x1]
    fine = cv2.resize(part, None, fx=FINER, fy=FINER, interpolation=cv2.INTER_LINEAR)
    ys, xs = np.nonzero(fine > 100)
    low = np.array([xs.min(), ys.min()]) / FINER + (x0, y0)
    return np.array([*low, (xs.max() + 1) / FINER + x0, (ys.max() + 1) / FINER + y0])


def check_discs(transform, atol=0.5):
    for centre, halves in (((90, 110), (40, 40)), ((150, 170), (30, 14)), ((120.5, 80.2), (7, 9))):
        image = cone(centre, halves)
        box = np.array([[*np.subtract(centre, halves), *np.add(centre, halves)]])
        np.testing.assert_allclose(bounds(image), box[0], atol=0.2)  # the ruler itself
        moved = transform.apply_image(image)
        assert moved.shape == SIZE and moved.dtype == np.float32
        np.testing.assert_allclose(transform.apply_box(box)[0], bounds(moved), rtol=0, atol=atol)


@pytest.mark.parametrize("displacement,sigma", [(1, 40), (5, 40), (8, 60), (3, 12)])
def test_discs_under_an_elastic_field(displacement, sigma):
    for seed in range(3):
        np.random.seed(seed)
        check_discs(ElasticTransform(smooth_field(SIZE, displacement, sigma)))


def test_a_shift_by_hand_shows_the_direction():
    """A field of (3, -2) shows at each pixel what lies 3 to the right and 2 above."""
    transform = ElasticTransform(np.full((*SIZE, 2), (3, -2), np.float32))
    image = np.random.default_rng(0).uniform(0, 255, SIZE).astype(np.float32)
    np.testing.assert_allclose(
        transform.apply_image(image)[2:, :-3], image[:-2, 3:], rtol=0, atol=1e-3
    )
    np.testing.assert_allclose(transform.apply_box([[10, 20, 30, 50]]), [[7, 22, 27, 52]])
    np.testing.assert_allclose(transform.apply_coords(np.array([[5.0, 6.0]])), [[2, 8]])


def test_coordinates_follow_the_inverse_of_the_field():
    """Tissue at p + field(p) is shown at p, for the centre p of each pixel."""
    np.random.seed(3)
    field = smooth_field(SIZE, 6, 20)
    ys, xs = np.indices(SIZE) + 0.5
    centres = np.stack([xs, ys], axis=-1)
    shown = ElasticTransform(field).apply_coords((centres + field).reshape(-1, 2))
    np.testing.assert_allclose(shown.reshape(centres.shape), centres, rtol=0, atol=2e-3)


def test_the_field_has_its_strength_and_folds_nothing():
    np.random.seed(0)
    field = smooth_field((400, 300), 3.0, 30)
    np.testing.assert_allclose(np.sqrt(np.mean(field.astype(float) ** 2)), 3.0, rtol=1e-4)
    strong = smooth_field((400, 300), 50.0, 10)
    for field in (strong, smooth_field((200, 100), 2.8, 5.0)):
        down, across = np.diff(field, axis=0)[:, 1:], np.diff(field, axis=1)[1:]
        strain = np.sqrt((down**2 + across**2).sum(axis=-1))
        assert MAX_STRAIN / 2 < strain.max() <= MAX_STRAIN + 1e-6


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (3, 2)])
def test_the_smallest_images(shape):
    image = np.full(shape, 7, np.float32)
    for augmentation in (RandomElastic(prob=1.0), RandomPerspective(prob=1.0)):
        augmented = AugInput(image, boxes=np.array([[0.0, 0.0, 1.0, 1.0]]))
        augmentation(augmented)
        assert augmented.image.shape == shape and np.isfinite(augmented.boxes).all()
        augmented = AugInput(image, boxes=np.zeros((0, 4)))
        augmentation(augmented)
        assert augmented.boxes.shape == (0, 4)


def test_discs_under_perspective():
    for seed in range(4):
        np.random.seed(seed)
        transform = RandomPerspective((0.05, 0.1), prob=1.0).get_transform(np.zeros(SIZE))
        check_discs(transform)


def test_perspective_takes_its_corners_to_the_images():
    corners = np.array([[10, 20], [220, 30], [230, 280], [15, 290]], float)
    transform = PerspectiveTransform(*SIZE, corners)
    moved = transform.apply_coords(corners)
    np.testing.assert_allclose(moved, [[0, 0], [240, 0], [240, 300], [0, 300]], atol=1e-3)
    # A plain cut by a quarter on each side doubles everything.
    corners = np.array([[60, 75], [180, 75], [180, 225], [60, 225]], float)
    transform = PerspectiveTransform(*SIZE, corners)
    np.testing.assert_allclose(transform.apply_box([[70, 80, 90, 100]]), [[20, 10, 60, 50]], 1e-4)
    image = np.random.default_rng(0).uniform(0, 255, SIZE).astype(np.float32)
    doubled = AffineTransform(*SIZE, 0, 2.0).apply_image(image)
    np.testing.assert_allclose(transform.apply_image(image), doubled, rtol=0, atol=0.5)


@pytest.mark.parametrize("kind", [RandomElastic, RandomPerspective])
def test_random_ones_follow_the_seed(kind):
    image = np.random.default_rng(0).uniform(0, 255, (60, 50)).astype(np.float32)
    results = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        augmented = AugInput(image.copy(), boxes=np.array([[10.0, 20.0, 30.0, 40.0]]))
        kind(prob=1.0)(augmented)
        results.append((augmented.image, augmented.boxes))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert (results[0][0] != results[2][0]).any() and (results[0][1] != results[2][1]).any()
    assert isinstance(kind(prob=0.0).get_transform(image), NoOpTransform)
