# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Boxes leave with their classes, and the pixel spacing follows a resize."""

import numpy as np
import pytest
from detectron2.data.transforms import CropTransform, HFlipTransform

from detrex_mammo.data.augmentation import AreaResizeTransform
from detrex_mammo.data.augmentation_geometry import AffineTransform
from detrex_mammo.data.augmentation_input import MammogramInput, spacing_of, visible_share
from detrex_mammo.errors import UserError


def sample(boxes, **settings):
    boxes = np.array(boxes, float)
    image = np.zeros((20, 40), np.float32)
    return MammogramInput(image, boxes=boxes, classes=np.arange(len(boxes)), **settings)


def test_visible_share_by_hand():
    """Whole; right half out; a quarter left; outside; no area."""
    boxes = [[0, 0, 4, 4], [8, 2, 12, 4], [-2, -2, 2, 2], [20, 0, 24, 4], [3, 3, 3, 5]]
    share = visible_share(np.array(boxes, float), (10, 10))
    np.testing.assert_allclose(share, [1, 0.5, 0.25, 0, 0])
    assert visible_share(np.zeros((0, 4)), (5, 5)).shape == (0,)


def test_a_box_that_left_does_not_come_back_without_its_pixels():
    """Cut to columns 10 to 29, the first box is out; half a turn would bring it into the image."""
    boxes = [[2, 5, 8, 9], [12, 4, 16, 8], [26, 2, 34, 6]]
    augmented = sample(boxes)
    augmented.transform(CropTransform(10, 0, 20, 20))
    assert augmented.classes.tolist() == [1, 2]
    assert augmented.boxes.tolist() == [[2, 4, 6, 8], [16, 2, 24, 6]]
    augmented.transform(AffineTransform(20, 20, 180, 1.0))
    assert augmented.classes.tolist() == [1, 2]
    np.testing.assert_allclose(augmented.boxes, [[14, 12, 18, 16], [-4, 14, 4, 18]], atol=1e-9)


@pytest.mark.parametrize("least,kept", [(0.0, [0, 1]), (0.5, [0, 1]), (0.51, [0])])
def test_a_box_of_which_too_little_is_left_goes(least, kept):
    augmented = sample([[2, 5, 8, 9], [26, 2, 34, 6]], min_visibility=least)
    augmented.transform(CropTransform(0, 0, 30, 20))
    assert augmented.classes.tolist() == kept


def test_spacing_follows_a_resize_and_nothing_else():
    augmented = sample([], pixel_spacing=(0.1, 0.2))
    augmented.transform(HFlipTransform(40))
    augmented.transform(AffineTransform(20, 40, 5, 2.0))
    augmented.transform(CropTransform(0, 0, 30, 20))
    assert augmented.pixel_spacing == (0.1, 0.2)
    augmented.transform(AreaResizeTransform(20, 30, 5, 60))  # 4 times coarser, 2 times finer
    assert augmented.pixel_spacing == pytest.approx((0.4, 0.1))
    augmented = sample([])
    augmented.transform(AreaResizeTransform(20, 40, 5, 60))
    assert augmented.pixel_spacing is None


def test_spacing_of_a_record():
    for nothing in ({}, {"pixel_spacing": None}, {"pixel_spacing": []}):
        assert spacing_of(nothing) is None
    assert spacing_of({"pixel_spacing": [0.07, "0.08"]}) == (0.07, 0.08)
    for wrong in ([0.1], [0, 0.1], [0.1, -1], "a", 0.1, [float("nan"), 1], [float("inf"), 1]):
        with pytest.raises(UserError, match="'a.png' has pixel_spacing"):
            spacing_of({"file_name": "a.png", "pixel_spacing": wrong})
