# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""How many heads there are, and their published start."""

import math

import pytest
import torch

from detrex_mammo.modeling.heads import Predictor, build_heads


@pytest.mark.parametrize(
    ("refine", "two_stage", "count"), [(False, False, 1), (True, False, 6), (True, True, 7)]
)
def test_published_start(refine, two_stage, count):
    """Class bias -log 99; boxes start at the reference, or 0.12 wide without one."""
    class_embed, bbox_embed = build_heads(32, 5, 6, refine, two_stage)
    assert len(class_embed) == len(bbox_embed) == count
    for index, (class_head, box_head) in enumerate(zip(class_embed, bbox_embed)):
        torch.testing.assert_close(class_head.bias.detach(), torch.full((5,), -math.log(99)))
        assert not box_head.layers[-1].weight.any()
        size = -2.0 if index == 0 and not two_stage else 0.0
        expected = torch.tensor([0.0, 0.0, size, size])
        torch.testing.assert_close(box_head.layers[-1].bias.detach(), expected)


def test_heads_share_nothing():
    class_embed, bbox_embed = build_heads(32, 5, 3, True, False)
    parameters = [*class_embed.parameters(), *bbox_embed.parameters()]
    assert len({p.data_ptr() for p in parameters}) == len(parameters)


def test_boxes_by_hand():
    """Deltas (0, 0, -2, -2) from the point (0.5, 0.25), and deltas from a box."""
    class_embed, bbox_embed = build_heads(32, 5, 1, False, False)
    predictor = Predictor(class_embed, bbox_embed, 1e-5, False)
    with torch.no_grad():
        boxes = predictor.boxes(0, torch.zeros(1, 1, 32), torch.tensor([[[0.5, 0.25]]]))
        size = 1 / (1 + math.exp(2))
        torch.testing.assert_close(boxes, torch.tensor([[[0.5, 0.25, size, size]]]))
        boxes = predictor.boxes(0, torch.zeros(1, 1, 32), torch.tensor([[[0.5, 0.25, 0.5, 0.5]]]))
        torch.testing.assert_close(boxes, torch.tensor([[[0.5, 0.25, size, size]]]))
