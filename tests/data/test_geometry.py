# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Crop and flip are exactly invertible, for images and boxes, in numpy and torch."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detrex_mammo.data.geometry import Geometry
from detrex_mammo.errors import UserError


@st.composite
def geometries(draw):
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    x0, y0 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    x1, y1 = draw(st.integers(x0 + 1, width)), draw(st.integers(y0 + 1, height))
    return Geometry((height, width), (x0, y0, x1, y1), draw(st.booleans()))


# Quarter pixels and sixteenths are exact in float32, so that round trips are compared bit by bit.
boxes_strategy = st.lists(
    st.tuples(*[st.integers(-1600, 3200).map(lambda v: v / 16)] * 4), max_size=5
)


@settings(max_examples=200, deadline=None)
@given(geometries(), boxes_strategy, st.sampled_from([np.float32, np.float64, torch.float32]))
def test_boxes_return_exactly(geometry, boxes, dtype):
    array = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    given_boxes = (
        torch.tensor(array, dtype=dtype) if dtype is torch.float32 else array.astype(dtype)
    )
    for first, second in (
        (geometry.apply_boxes, geometry.inverse_boxes),
        (geometry.inverse_boxes, geometry.apply_boxes),
    ):
        returned = second(first(given_boxes))
        assert type(returned) is type(given_boxes) and returned.dtype == given_boxes.dtype
        np.testing.assert_array_equal(np.asarray(returned), array)


@settings(max_examples=100, deadline=None)
@given(geometries(), st.sampled_from([(), (3,)]))
def test_images_return_exactly(geometry, channels):
    shape = (*geometry.original_size, *channels)
    image = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    crop = geometry.apply_image(image)
    assert crop.shape[:2] == geometry.size and crop.flags.c_contiguous
    returned = geometry.inverse_image(crop)
    x0, y0, x1, y1 = geometry.crop
    np.testing.assert_array_equal(returned[y0:y1, x0:x1], image[y0:y1, x0:x1])
    returned[y0:y1, x0:x1] = 0
    assert returned.shape == image.shape and not returned.any()
    np.testing.assert_array_equal(geometry.apply_image(geometry.inverse_image(crop)), crop)


@settings(max_examples=100, deadline=None)
@given(geometries(), st.data())
def test_a_box_keeps_to_its_pixels(geometry, data):
    """What a box encloses in the original is what its image encloses in the crop."""
    x0, y0, x1, y1 = geometry.crop
    left, top = data.draw(st.integers(x0, x1 - 1)), data.draw(st.integers(y0, y1 - 1))
    right, bottom = data.draw(st.integers(left + 1, x1)), data.draw(st.integers(top + 1, y1))
    image = np.zeros(geometry.original_size, np.float32)
    image[top:bottom, left:right] = 1
    cropped = geometry.apply_image(image)
    box = geometry.apply_boxes(np.array([[left, top, right, bottom]]))[0]
    expected = np.zeros_like(cropped)
    expected[box[1] : box[3], box[0] : box[2]] = 1
    np.testing.assert_array_equal(cropped, expected)


def test_by_hand():
    """A crop of columns 10 to 29 and rows 5 to 14; x becomes 30 - x when it is flipped."""
    box = np.array([[12.5, 6.0, 20.0, 9.0]])
    plain = Geometry((40, 50), (10, 5, 30, 15))
    assert plain.size == (10, 20)
    assert plain.apply_boxes(box).tolist() == [[2.5, 1, 10, 4]]
    flipped = Geometry((40, 50), (10, 5, 30, 15), flip=True)
    assert flipped.apply_boxes(box).tolist() == [[10, 1, 17.5, 4]]
    image = np.arange(2000).reshape(40, 50)
    assert flipped.apply_image(image)[0, 0] == image[5, 29]


def test_identity_and_dict():
    whole = Geometry.identity(4, 6)
    image = np.arange(24).reshape(4, 6)
    np.testing.assert_array_equal(whole.apply_image(image), image)
    geometry = Geometry((np.int64(9), 8), [np.int32(1), 2, 7, 9], True)
    text = json.dumps(geometry.to_dict())
    assert Geometry.from_dict(json.loads(text)) == geometry
    for data in ({"crop": [0, 0, 1, 1]}, {**geometry.to_dict(), "scale": 2}):
        with pytest.raises(UserError, match="geometry has keys"):
            Geometry.from_dict(data)


@pytest.mark.parametrize("crop", [(0, 0, 0, 5), (-1, 0, 3, 3), (0, 0, 7, 4), (3, 3, 2, 4)])
def test_impossible_crops_are_refused(crop):
    with pytest.raises(UserError, match="must lie in the image of 6x4 pixels"):
        Geometry((4, 6), crop)


def test_images_of_other_sizes_are_refused():
    geometry = Geometry((4, 6), (0, 0, 3, 4))
    with pytest.raises(UserError, match="5x4 pixels, but this geometry is one of 6x4"):
        geometry.apply_image(np.zeros((4, 5)))
    with pytest.raises(UserError, match="6x4 pixels, but the crop has 3x4"):
        geometry.inverse_image(np.zeros((4, 6)))
