# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Losses with numbers worked by hand."""

import math

import torch

from detrex_mammo.modeling.losses import giou_loss, l1_loss, sigmoid_focal_loss


def test_focal_loss_by_hand():
    """alpha 1/4, gamma 2.

    logit 0, target 1: 1/4 * (1/2)^2 * log 2 = 0.0433217.
    logit 0, target 0: 3/4 * (1/2)^2 * log 2 = 0.1299651.
    logit log 3 (p = 3/4), target 1: 1/4 * (1/4)^2 * log(4/3) = 0.0044951.
    logit log 3, target 0: 3/4 * (3/4)^2 * log 4 = 0.5848367.
    """
    logits = torch.tensor([0.0, 0.0, math.log(3), math.log(3)], dtype=torch.float64)
    targets = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    expected = [
        0.25 * 0.25 * math.log(2),
        0.75 * 0.25 * math.log(2),
        0.25 / 16 * math.log(4 / 3),
        0.75 * 9 / 16 * math.log(4),
    ]
    for index, value in enumerate(expected):
        found = sigmoid_focal_loss(logits[index], targets[index])
        torch.testing.assert_close(float(found), value, rtol=1e-12, atol=0)
    found = sigmoid_focal_loss(logits, targets)
    torch.testing.assert_close(float(found), sum(expected), rtol=1e-12, atol=0)


def test_focal_loss_without_focus_is_cross_entropy():
    """gamma 0 and alpha 1/2: half of the binary cross-entropy."""
    logits, targets = torch.randn(4, 5), (torch.rand(4, 5) > 0.5).float()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, targets, reduction="sum"
    )
    found = sigmoid_focal_loss(logits, targets, alpha=0.5, gamma=0.0)
    torch.testing.assert_close(found, expected / 2)


def test_focal_loss_of_extreme_logits_is_finite():
    logits = torch.tensor([100.0, -100.0, 100.0, -100.0], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([1.0, 1.0, 0.0, 0.0]))
    # The two wrong ones: (0.25 + 0.75) * 1 * 100
    torch.testing.assert_close(loss, torch.tensor(100.0))
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.tensor([0.0, -0.25, 0.75, 0.0]))


def test_box_losses_by_hand():
    """(0.5, 0.5, 0.2, 0.2) against itself: 0 and 0. Against (0.6, 0.5, 0.2, 0.2): L1 0.1.

    Overlap half: intersection 0.02, union 0.06, enclosing 0.06: GIoU 1/3, loss 2/3.
    """
    box = torch.tensor([[0.5, 0.5, 0.2, 0.2]], dtype=torch.float64)
    moved = torch.tensor([[0.6, 0.5, 0.2, 0.2]], dtype=torch.float64)
    pair = torch.cat((box, moved)), torch.cat((box, box))
    torch.testing.assert_close(float(l1_loss(*pair)), 0.1)
    torch.testing.assert_close(float(giou_loss(*pair)), 2 / 3)
    assert float(giou_loss(torch.empty(0, 4), torch.empty(0, 4))) == 0
