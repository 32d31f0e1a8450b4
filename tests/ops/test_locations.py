# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Sampling locations and attention weights, with numbers worked by hand."""

import pytest
import torch

from detrex_mammo.ops.locations import attention_weights, sampling_locations


def test_offsets_from_a_point_count_cells():
    """One cell of a level 4 cells wide is a quarter of it; 3 of 6 cells down are a half."""
    references = torch.tensor([0.5, 0.25]).view(1, 1, 1, 2)
    offsets = torch.tensor([1.0, 3.0]).view(1, 1, 1, 1, 1, 2)
    found = sampling_locations(references, offsets, ((6, 4),))
    torch.testing.assert_close(found.flatten(), torch.tensor([0.75, 0.75]))


def test_offsets_from_a_box_count_parts_of_its_half():
    """P = 2 points: an offset of 1 is half of half the width 0.4, that is 0.1."""
    references = torch.tensor([0.5, 0.5, 0.4, 0.8]).view(1, 1, 1, 4)
    offsets = torch.tensor([[1.0, 0.0], [2.0, -2.0]]).view(1, 1, 1, 1, 2, 2)
    found = sampling_locations(references, offsets, ((6, 4),))
    torch.testing.assert_close(found.view(2, 2), torch.tensor([[0.6, 0.5], [0.7, 0.1]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_precision_is_float32_or_better(dtype):
    """0.5 + 1/1000 in bfloat16 would be 0.5."""
    references = torch.tensor([0.5, 0.5]).view(1, 1, 1, 2)
    offsets = torch.ones(1, 1, 1, 1, 1, 2, dtype=dtype)
    found = sampling_locations(references, offsets, ((1000, 1000),))
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.double().flatten(), torch.tensor([0.501, 0.501]).double())
    weights = attention_weights(offsets[..., 0])
    assert weights.dtype == found.dtype


def test_the_softmax_spans_levels_and_points():
    logits = torch.tensor([0.0, 1.0, 2.0, 3.0]).view(1, 1, 1, 2, 2)
    found = attention_weights(logits)
    expected = torch.tensor([0.0320586, 0.0871443, 0.2368828, 0.6439143])
    torch.testing.assert_close(found.flatten(), expected)
