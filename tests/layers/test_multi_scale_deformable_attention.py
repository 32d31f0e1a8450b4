# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The attention module: its start by numbers, its locations and its mask by hand."""

import math

import pytest
import torch

from detrex_mammo.layers import MultiScaleDeformableAttention

SHAPES = ((3, 5), (2, 3))


def identity_attention(num_points=1, offsets=(0.0, 0.0)):
    """Reads exactly one point per level: projections are identities, all offsets ``offsets``."""
    attention = MultiScaleDeformableAttention(4, 1, 2, num_points)
    with torch.no_grad():
        for projection in (attention.value_proj, attention.output_proj):
            projection.weight.copy_(torch.eye(4))
        attention.sampling_offsets.bias.copy_(torch.tensor(offsets).repeat(2 * num_points))
    return attention


def test_published_start():
    """8 heads look in 8 directions on a square ring; point p is p + 1 cells away."""
    attention = MultiScaleDeformableAttention(256, 8, 4, 4)
    bias = attention.sampling_offsets.bias.view(8, 4, 4, 2)
    ring = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, (x, y) in enumerate(ring):
        for point in range(4):
            expected = torch.tensor([x, y], dtype=torch.float32).expand(4, 2) * (point + 1)
            # up to 4 cells, after a division in float32
            torch.testing.assert_close(bias[head, :, point], expected, rtol=0, atol=1e-5)
    assert not attention.sampling_offsets.weight.any()
    assert not attention.attention_weights.weight.any()
    assert not attention.attention_weights.bias.any()
    limit = math.sqrt(6 / 512)
    for projection in (attention.value_proj, attention.output_proj):
        assert 0.99 * limit < float(projection.weight.detach().abs().max()) <= limit
        assert not projection.bias.any()


@pytest.mark.parametrize("offsets", [(1.0, 0.0), (0.0, -1.0)])
def test_offsets_count_cells_of_each_level(offsets):
    """From the centre of cell (row 1, column 1) one cell right, and one up, on both levels.

    Weights are 1/2 for each level. (row, column) is (1, 1) on 3x5 and, at the same place of 2x3
    (y 0.5, x 0.3: row 0.5, column 0.4), between cells; so only differences are looked at:
    value = column index + 10 * row index is linear, and a step of one cell changes it by 1 or 10.
    """
    value = [torch.arange(w).expand(h, w) + 10.0 * torch.arange(h)[:, None] for h, w in SHAPES]
    value = torch.cat([v.flatten() for v in value])[None, :, None].expand(1, -1, 4).contiguous()
    reference = torch.tensor([1.5 / 5, 1.5 / 3]).expand(1, 1, 2, 2)
    query = torch.zeros(1, 1, 4)
    with torch.no_grad():
        here = identity_attention()(query, reference, value, SHAPES)[0, 0, 0]
        there = identity_attention(offsets=offsets)(query, reference, value, SHAPES)[0, 0, 0]
    fine = offsets[0] + 10 * offsets[1]
    if offsets[1]:  # on the coarse level row -0.5: half of row 0, so half of the column index 0.4
        coarse = 0.2 - (0.4 + 5.0)
    else:
        coarse = 1.0
    assert float(there - here) == pytest.approx((fine + coarse) / 2, abs=1e-5)


def test_offsets_count_parts_of_the_box():
    """4-d references: an offset of P is half the box's width; P = 2, box width 0.4: 0.2 of 5 cells.

    The value is the column index, 0.5 + 0.2 lies at column 3 of 5 on the fine level (the centre at
    column 2) and at column 1.6 of 3 on the coarse one (centre 1): mean (3 + 1.6) / 2.
    """
    value = torch.cat([torch.arange(w).expand(h, w).flatten().float() for h, w in SHAPES])
    value = value[None, :, None].expand(1, -1, 4).contiguous()
    reference = torch.tensor([0.5, 0.5, 0.4, 0.3]).expand(1, 1, 2, 4)
    attention = identity_attention(num_points=2, offsets=(2.0, 0.0))
    with torch.no_grad():
        found = attention(torch.zeros(1, 1, 4), reference, value, SHAPES)
    torch.testing.assert_close(found, torch.full((1, 1, 4), 2.3))


def test_padding_reads_as_zero_even_with_a_bias():
    attention = identity_attention()
    with torch.no_grad():
        attention.value_proj.bias.fill_(5.0)
    mask = torch.ones(2, 21, dtype=torch.bool)
    mask[1] = False
    reference = torch.full((1, 1, 2, 2), 0.5)
    with torch.no_grad():
        found = attention(torch.zeros(2, 1, 4), reference, torch.zeros(2, 21, 4), SHAPES, mask)
    torch.testing.assert_close(found[0], torch.zeros(1, 4))
    torch.testing.assert_close(found[1], torch.full((1, 4), 5.0))


def test_locations_stay_float32_under_autocast():
    """bfloat16 has 8 bits: a location near 1 on a level of 400 cells would be off by a cell."""
    attention = identity_attention()
    shapes = ((1, 400), (1, 1))
    value = torch.cat((torch.arange(400.0) / 400, torch.zeros(1)))[None, :, None]
    reference = torch.tensor([399.5 / 400, 0.5]).expand(1, 1, 2, 2)
    value = value.expand(1, -1, 4).contiguous()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = attention(torch.zeros(1, 1, 4), reference, value, shapes)
    assert float(found[0, 0, 0]) == pytest.approx(399 / 400 / 2, abs=4e-3)


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="embed_dim is 6.*num_heads, 4"):
        MultiScaleDeformableAttention(6, 4)
    attention = identity_attention()
    with pytest.raises(ValueError, match="reference_points"):
        attention(torch.zeros(1, 1, 4), torch.zeros(1, 1, 2, 3), torch.zeros(1, 21, 4), SHAPES)
