# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Losses of DETR-type detectors, as sums; who calls them divides by the number of boxes.

B batch, Q queries, K classes, N matched pairs.
"""

import torch.nn.functional as F
from torch import Tensor

from detrex_mammo.layers import box_cxcywh_to_xyxy, elementwise_generalized_box_iou


def sigmoid_focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    quality: Tensor | None = None,
) -> Tensor:
    """Focal loss of independent binary decisions, https://arxiv.org/abs/1708.02002, summed.

    With p = sigmoid(logit): ``-alpha * (1 - p)**gamma * log(p)`` for a target of 1 and
    ``-(1 - alpha) * p**gamma * log(1 - p)`` for 0. A target of 1 can ask for a score q below 1, as
    in https://arxiv.org/abs/2304.04742:
    ``alpha * |q - p|**gamma * -(q * log(p) + (1 - q) * log(1 - p))``.

    Args:
        logits (Tensor): any shape.
        targets (Tensor): same shape, 0 or 1.
        alpha (float): weight of the positive side, in [0, 1].
        gamma (float): how much less an easy decision counts, at least 0.
        quality (Tensor, optional): same shape, q in [0, 1] where the target is 1, elsewhere 0;
            None is 1 for all.

    Returns:
        Tensor: (), the sum. The logit 0 with target 1: 0.25 * 0.5**2 * log 2 = 0.0433.
    """
    probabilities = logits.sigmoid()
    scores = targets if quality is None else quality
    cross_entropy = F.binary_cross_entropy_with_logits(logits, scores, reduction="none")
    if quality is None:
        miss = probabilities + targets - 2 * probabilities * targets  # 1 - probability of the truth
    else:
        miss = (quality - probabilities).abs()
    balance = (1 - alpha) + (2 * alpha - 1) * targets
    return (balance * miss**gamma * cross_entropy).sum()


def l1_loss(boxes_cxcywh: Tensor, targets_cxcywh: Tensor) -> Tensor:
    """Sum of absolute differences of (N, 4) boxes."""
    return (boxes_cxcywh - targets_cxcywh).abs().sum()


def giou_loss(boxes_cxcywh: Tensor, targets_cxcywh: Tensor) -> Tensor:
    """Sum of ``1 - GIoU`` over N pairs, (N, 4) each; 0 for a perfect match of any size.

    Two unit squares side by side: IoU 0, enclosing box filled, GIoU 0, loss 1.
    """
    giou = elementwise_generalized_box_iou(
        box_cxcywh_to_xyxy(boxes_cxcywh), box_cxcywh_to_xyxy(targets_cxcywh)
    )
    return (1 - giou).sum()
