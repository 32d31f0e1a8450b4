# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Proposals by hand, and their selection."""

import math

import torch

from detrex_mammo.modeling.heads import Predictor, build_heads
from detrex_mammo.modeling.two_stage import generate_proposals, score_proposals, select_proposals
from tests.modeling.tiny_detector import perturb


def test_proposals_by_hand():
    """2x4 cells, of which 2x3 are valid, and 1x2 cells all valid.

    Cell (1, 1) of the first level: x = 1.5 / 3, y = 1.5 / 2, 0.05 wide and high. Cell (0, 1) of
    the second: x = 3/4, y = 1/2, 0.1 wide and high. The fourth column is padding.
    """
    mask = torch.zeros(1, 10, dtype=torch.bool)
    mask[0, [3, 7]] = True
    valid_ratios = torch.tensor([[[0.75, 1.0], [1.0, 1.0]]])
    proposals, is_invalid = generate_proposals(((2, 4), (1, 2)), valid_ratios, mask)
    found = proposals.sigmoid()[0]
    torch.testing.assert_close(found[5], torch.tensor([0.5, 0.75, 0.05, 0.05]))
    torch.testing.assert_close(found[9], torch.tensor([0.75, 0.5, 0.1, 0.1]))
    assert is_invalid[0, :, 0].tolist() == mask[0].tolist()
    assert (proposals[0, [3, 7]] == math.inf).all()


def test_border_of_a_wide_level_is_not_valid():
    """60 columns: the first centre is 1/120 < 0.01; 40 columns: 1/80 is inside."""
    for width, count in ((60, 2), (40, 0)):
        _, is_invalid = generate_proposals(((1, width),), torch.ones(1, 1, 2), None)
        assert int(is_invalid.sum()) == count
        assert bool(is_invalid[0, 0]) == bool(is_invalid[0, -1]) == (count > 0)


def test_selection_is_by_class_channel_zero():
    """The best tokens by channel 0, in order, as training and as prediction select them."""
    heads = [perturb(head) for head in build_heads(32, 3, 2, True, True)]
    predictor = Predictor(*heads, 1e-5, True)
    tokens, proposals = torch.randn(2, 20, 32), torch.randn(1, 20, 4)
    with torch.no_grad():
        scores = heads[0][-1](tokens)[..., 0]
        deltas = heads[1][-1](tokens)
        selected, outputs = score_proposals(tokens, proposals, predictor, 4)
        fast = select_proposals(tokens, proposals, predictor, 4)
    for image in range(2):
        order = sorted(range(20), key=lambda i, row=scores[image]: -float(row[i]))[:4]
        expected = deltas[image, order] + proposals[0, order]
        torch.testing.assert_close(selected[image], expected)
        torch.testing.assert_close(fast[image], expected)
    torch.testing.assert_close(outputs["pred_boxes"], (deltas + proposals).sigmoid())


def test_fewer_tokens_than_queries():
    heads = build_heads(32, 3, 2, True, True)
    predictor = Predictor(*heads, 1e-5, True)
    tokens, proposals = torch.randn(2, 3, 32), torch.randn(1, 3, 4)
    assert score_proposals(tokens, proposals, predictor, 5)[0].shape == (2, 3, 4)
    assert select_proposals(tokens, proposals, predictor, 5).shape == (2, 3, 4)
