# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Padding and its mask."""

import torch

from detrex_mammo.modeling.batching import pad_and_stack, resize_padding_mask


def test_padding_is_bottom_right_and_zero():
    images = [torch.ones(3, 2, 4), torch.ones(3, 3, 2)]
    batch, mask = pad_and_stack(images)
    assert batch.shape == (2, 3, 3, 4)  # the largest of each axis, no divisibility
    expected = torch.tensor(
        [[[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]], [[0, 0, 1, 1]] * 3], dtype=torch.bool
    )
    assert torch.equal(mask, expected)
    assert torch.equal(batch, (~expected)[:, None].expand(-1, 3, -1, -1).float())


def test_equal_sizes_need_no_mask():
    batch, mask = pad_and_stack([torch.rand(3, 2, 4)] * 2)
    assert batch.shape == (2, 3, 2, 4) and mask is None


def test_mask_of_a_feature_map_is_the_nearest_pixel_rounded_down():
    """7 columns to 3: pixels floor(0), floor(7/3) = 2, floor(14/3) = 4; valid up to column 3."""
    mask = torch.zeros(1, 2, 7, dtype=torch.bool)
    mask[..., 3:] = True
    expected = torch.tensor([[[False, False, True]]])
    assert torch.equal(resize_padding_mask(mask, (1, 3)), expected)
    assert resize_padding_mask(None, (1, 3)) is None
