# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Who sees whom, by hand, and losses of groups by hand."""

import math

import numpy as np
import pytest
import torch

from detrex_mammo.modeling import HungarianMatcher, SetCriterion
from detrex_mammo.modeling.query_groups import ExtraQueries, LossGroup

CPU = torch.device("cpu")


def extra(num_queries=2, num_further=1, num_denoising=4, **settings):
    boxes = torch.rand(2, num_denoising, 4) if num_denoising else None
    return ExtraQueries(num_queries, num_further, boxes=boxes, group_size=2, **settings)


def test_masks_by_hand():
    """2 queries of inference, 1 further, 2 groups of 2 denoising ones; x is hidden.

    Inference sees itself only, so does the further one; denoising groups see themselves and
    inference.
    """
    rows = """
        . . x x x x x
        . . x x x x x
        x x . x x x x
        . . x . . x x
        . . x . . x x
        . . x x x . .
        . . x x x . .
    """
    expected = [[cell == "x" for cell in row.split()] for row in rows.strip().splitlines()]
    masks = extra().masks(7, CPU)
    assert masks.keys() == {"self_attn_mask"}
    assert masks["self_attn_mask"].tolist() == expected


def test_padding_is_behind_all_others():
    padding = torch.tensor([[False] * 4, [False, True, False, True]])
    mask = extra(is_padding=padding).masks(7, CPU)["self_padding_mask"]
    assert mask.int().tolist() == [[0] * 7, [0, 0, 0, 0, 1, 0, 1]]


def test_sizes_where_there_are_fewer_tokens_than_queries():
    """6 tokens: for 4 + 5 queries 4 and 2; for 8 + 5 all 6 are of inference; 4 denoising behind."""
    assert extra(4, 5).sizes(6 + 4) == (4, 2, 4)
    assert extra(8, 5).sizes(6 + 4) == (6, 0, 4)
    assert extra(3, 0, 0).sizes(3) == (3, 0, 0)


def test_split_by_hand():
    boxes = torch.arange(14.0).view(1, 7, 2)
    parts = extra().split([{"pred_boxes": boxes}, {"pred_boxes": -boxes}])
    for part, places in zip(parts, ([0, 1], [2], [3, 4, 5, 6])):
        assert [layer["pred_boxes"][0, :, 0].abs().tolist() for layer in part] == 2 * [
            [2.0 * place for place in places]
        ]


def one_target():
    return [{"labels": torch.tensor([2]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}]


def output(num_queries):
    """All logits 0; the first box is 0.1 off the target in x, the others far away."""
    boxes = torch.tensor([[0.6, 0.5, 0.2, 0.2]] + [[0.1, 0.1, 0.1, 0.1]] * (num_queries - 1))
    return {"pred_logits": torch.zeros(1, num_queries, 3), "pred_boxes": boxes[None]}


@pytest.mark.parametrize("weight", [1.0, 0.5, 0.0])
def test_losses_of_a_group_by_hand(weight):
    """Two queries, three classes, one box twice a target: both are matched.

    Focal: four negatives of 3/16 log 2 and two positives of 1/16 log 2 = 7/8 log 2. L1: 0.1 and
    0.4 + 0.4 + 0.1 + 0.1. GIoU losses: 2/3, and of (0.05 .. 0.15) with (0.4 .. 0.6), apart:
    1 + (0.55^2 - 0.05) / 0.55^2. Weights 2, 5, 2; divided by 1 box times 2 copies.
    """
    target = one_target()
    doubled = [{name: tensor.repeat_interleave(2, 0) for name, tensor in target[0].items()}]
    group = LossGroup([output(2), output(2)], doubled, "_x", copies=2, weight=weight)
    criterion = SetCriterion(3, HungarianMatcher())
    plain = criterion([output(2)], None, target)
    losses = criterion([output(2)], None, target, [group])
    far = 1 + (0.55**2 - 0.05) / 0.55**2
    expected = {
        "loss_class": 2 * 7 / 8 * math.log(2) / 2,
        "loss_bbox": 5 * 1.1 / 2,
        "loss_giou": 2 * (2 / 3 + far) / 2,
    }
    names = set(plain) | {f"{name}_x{layer}" for name in expected for layer in ("", "_0")}
    assert losses.keys() == names
    for name, value in plain.items():
        assert torch.equal(losses[name], value)
    for name, value in expected.items():
        for layer in ("", "_0"):
            found = float(losses[f"{name}_x{layer}"])
            assert found == pytest.approx(weight * value, abs=1e-6), name


def test_a_matching_that_is_given_is_taken():
    """The target goes to the second query, which the matcher would not choose."""
    group = LossGroup([output(2)], one_target(), "_x", [(np.array([1]), np.array([0]))])
    losses = SetCriterion(3, HungarianMatcher())([output(2)], None, one_target(), [group])
    assert float(losses["loss_bbox"]) == pytest.approx(5 * 0.1)
    assert float(losses["loss_bbox_x"]) == pytest.approx(5 * 1.0)
