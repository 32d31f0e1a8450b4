# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Sine embeddings against a loop that follows the published formula."""

import math

import torch

from detrex_mammo.layers import SinePositionEmbedding, box_sine_embedding


def by_loop(size, valid, embed_dim, temperature=10000.0):
    """(h*w, C) of one image whose top left ``valid`` (h, w) cells are not padding."""
    (height, width), half = size, embed_dim // 2
    rows = []
    for i in range(height):
        for j in range(width):
            row = []
            for index, count in ((i, valid[0]), (j, valid[1])):  # y first
                # Cells in the padding keep the last count, as a running sum does.
                angle = (min(index + 1, count) - 0.5) / (count + 1e-6) * 2 * math.pi
                for channel in range(half):
                    scaled = angle / temperature ** (2 * (channel // 2) / half)
                    row.append(math.cos(scaled) if channel % 2 else math.sin(scaled))
            rows.append(row)
    return torch.tensor(rows)


def test_positions_of_unpadded_cells():
    """Two images in 3x5 cells, one with 2x4 valid; the padding itself is never read."""
    mask = torch.zeros(2, 3, 5, dtype=torch.bool)
    mask[1, 2:], mask[1, :, 4:] = True, True
    found = SinePositionEmbedding(16)((3, 5), mask, torch.device("cpu"))
    torch.testing.assert_close(found[0], by_loop((3, 5), (3, 5), 16), rtol=0, atol=1e-6)
    valid = ~mask[1].flatten()
    expected = by_loop((3, 5), (2, 4), 16)
    torch.testing.assert_close(found[1][valid], expected[valid], rtol=0, atol=1e-6)


def test_without_mask_is_the_all_valid_mask():
    embedding = SinePositionEmbedding(24)
    mask = torch.zeros(3, 4, 7, dtype=torch.bool)
    masked = embedding((4, 7), mask, torch.device("cpu"))
    unmasked = embedding((4, 7), None, torch.device("cpu"))
    assert unmasked.shape == (1, 28, 24)
    torch.testing.assert_close(unmasked.expand(3, -1, -1), masked, rtol=0, atol=0)


def test_box_embedding_by_hand():
    """C = 4: two channels for each of cx, cy, w, h; the first pair of frequencies is 1."""
    boxes = torch.tensor([[[0.25, 0.5, 0.125, 0.75]]])
    found = box_sine_embedding(boxes, 4)
    half = math.sqrt(0.5)
    expected = torch.tensor([[[1.0, 0.0, 0.0, -1.0, half, half, -1.0, 0.0]]])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
