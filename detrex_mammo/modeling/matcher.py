# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""One-to-one assignment of predictions to target boxes.

B batch, Q queries, K classes, T target boxes of one image.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from detrex_mammo.errors import UserError
from detrex_mammo.layers import at_least_float32, box_cxcywh_to_xyxy, generalized_box_iou

Matching = list[tuple[np.ndarray, np.ndarray]]


class HungarianMatcher(nn.Module):
    """The assignment of least cost: focal class cost, L1 and GIoU of the boxes.

    https://arxiv.org/abs/2010.04159, appendix A.3; computed in at least float32.

    Args:
        cost_class (float): weight of (focal loss as a positive - as a negative).
        cost_bbox (float): weight of the L1 distance of normalised cxcywh boxes.
        cost_giou (float): weight of -GIoU.
        focal_alpha (float): as in the loss.
        focal_gamma (float): as in the loss.
    """

    def __init__(
        self,
        cost_class: float = 2.0,
        cost_bbox: float = 5.0,
        cost_giou: float = 2.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ):
        super().__init__()
        if min(cost_class, cost_bbox, cost_giou) < 0 or cost_class == cost_bbox == cost_giou == 0:
            raise UserError(
                f"cost_class, cost_bbox and cost_giou are {cost_class}, {cost_bbox} and "
                f"{cost_giou}; none may be negative and at least one must be above 0"
            )
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

    @torch.no_grad()
    def forward(
        self, outputs: Sequence[dict[str, Tensor]], targets: Sequence[Sequence[dict[str, Tensor]]]
    ) -> list[Matching]:
        """Match several predictions (decoder layers, encoder) with one copy to the host.

        Args:
            outputs (Sequence[dict]): each with ``pred_logits`` (B, Q, K) and ``pred_boxes``
                (B, Q, 4) cxcywh in [0, 1]; Q may differ between them.
            targets (Sequence[Sequence[dict]]): for each of the outputs the B images, each with
                ``labels`` (T,) int64 and ``boxes`` (T, 4) cxcywh in [0, 1]; T may be 0.

        Returns:
            list[Matching]: for each of the outputs the B images, each a pair of int64 arrays
            (queries, targets) of length min(Q, T).

        A cost that is not finite counts as higher than any that is: such pairs are made last, and
        it is the losses that tell.
        """
        costs = []
        for output, images in zip(outputs, targets):
            for index, target in enumerate(images):
                logits, boxes = output["pred_logits"][index], output["pred_boxes"][index]
                costs.append(self.cost(logits, boxes, target["labels"], target["boxes"]))
        flat = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
        is_finite = np.isfinite(flat)
        if not is_finite.all():
            flat = flat.astype(np.float64)  # the highest float32 has a higher one there
            flat[~is_finite] = 2 * np.abs(flat[is_finite]).max(initial=0.0) + 1
        pairs, start = [], 0
        for cost in costs:
            matrix = flat[start : start + cost.numel()].reshape(cost.shape)
            pairs.append(linear_sum_assignment(matrix))
            start += cost.numel()
        matchings, start = [], 0
        for images in targets:
            matchings.append(pairs[start : start + len(images)])
            start += len(images)
        return matchings

    def cost(self, logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor) -> Tensor:
        """Cost of every pair in one image.

        Args:
            logits (Tensor): (Q, K).
            boxes (Tensor): (Q, 4) cxcywh.
            labels (Tensor): (T,), in [0, K).
            target_boxes (Tensor): (T, 4) cxcywh.

        Returns:
            Tensor: (Q, T), at least float32.
        """
        logits, boxes = at_least_float32(logits), at_least_float32(boxes)
        target_boxes = target_boxes.to(boxes)
        with torch.autocast(boxes.device.type, enabled=False):
            p = logits[:, labels].sigmoid()
            alpha, gamma = self.focal_alpha, self.focal_gamma
            negative = (1 - alpha) * p**gamma * -(1 - p + 1e-8).log()
            positive = alpha * (1 - p) ** gamma * -(p + 1e-8).log()
            l1 = torch.cdist(boxes, target_boxes, p=1)
            giou = generalized_box_iou(box_cxcywh_to_xyxy(boxes), box_cxcywh_to_xyxy(target_boxes))
            return (
                self.cost_bbox * l1
                + self.cost_class * (positive - negative)
                - self.cost_giou * giou
            )
