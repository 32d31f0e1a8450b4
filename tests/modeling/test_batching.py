# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Padding and its mask."""

import torch

from detrex_mammo.modeling.batching import (
    convolutions_to_channels_last,
    pad_and_stack,
    resize_padding_mask,
)
from tests.modeling.tiny_detector import make_inputs, tiny_detector


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


def test_channels_last_from_the_image_to_the_tokens():
    """Batches with and without padding, weights, and levels, whose tokens are then a view."""
    for sizes in ((2, 4), (2, 4)), ((2, 4), (3, 2)):
        batch, _ = pad_and_stack([torch.rand(3, *size) for size in sizes])
        assert batch.is_contiguous(memory_format=torch.channels_last)
    detector = tiny_detector()
    convolutions = [m for m in detector.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) > 5
    for conv in convolutions:
        assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    levels = []
    detector.transformer.register_forward_pre_hook(lambda _, args: levels.extend(args[0]))
    detector(make_inputs())
    assert len(levels) == 3
    for level in levels:
        tokens = level.flatten(2).transpose(1, 2)
        assert tokens.data_ptr() == level.data_ptr() and tokens.is_contiguous()


def test_channels_last_weights_keep_values_and_names():
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 4))
    state = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    convolutions_to_channels_last(plain)
    torch.testing.assert_close(dict(plain.state_dict()), state, rtol=0, atol=0)
    plain.load_state_dict(state)
    assert plain[0].weight.is_contiguous(memory_format=torch.channels_last)
