# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Box formats and overlaps.

N and M count boxes; "cxcywh" is (centre x, centre y, width, height), "xyxy" is (left, top, right,
bottom). No overlap here carries an epsilon: added to an area of normalised coordinates it would
swallow small boxes (detrex's 1e-6 gives a perfect 4-pixel match on 4000 pixels a GIoU of 0.5).
"""

import torch
from torch import Tensor


def box_cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """(..., 4) cxcywh to (..., 4) xyxy."""
    cx, cy, w, h = boxes_cxcywh.unbind(-1)
    return torch.stack((cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h), dim=-1)


def box_xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) xyxy to (..., 4) cxcywh."""
    x0, y0, x1, y1 = boxes_xyxy.unbind(-1)
    return torch.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), dim=-1)


def box_area(boxes_xyxy: Tensor) -> Tensor:
    """(..., 4) xyxy to (...,) areas."""
    return _product(boxes_xyxy[..., 2:] - boxes_xyxy[..., :2])


def _product(size: Tensor) -> Tensor:
    """(..., 2) to (...,). Not ``prod``, whose gradient waits for the device to count zeros."""
    return size[..., 0] * size[..., 1]


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, and 0 (with gradient 0) where the denominator is 0."""
    is_zero = denominator == 0
    return (numerator / denominator.masked_fill(is_zero, 1)).masked_fill(is_zero, 0)


def _overlap(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Intersection over union and union of boxes that broadcast, (..., 4) xyxy."""
    top_left = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    bottom_right = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    intersection = _product((bottom_right - top_left).clamp(min=0))
    union = box_area(boxes1) + box_area(boxes2) - intersection
    return _ratio(intersection, union), union


def elementwise_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of each box with the one in the same place; (..., 4) xyxy, broadcasting, to (...,)."""
    return _overlap(boxes1, boxes2)[0]


def elementwise_generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised IoU of each box with the one in the same place.

    https://arxiv.org/abs/1902.09630: IoU minus the share of the enclosing box that neither covers.

    Args:
        boxes1 (Tensor): (..., 4) xyxy, right >= left and bottom >= top, in any unit.
        boxes2 (Tensor): (..., 4) xyxy, broadcasting against ``boxes1``.

    Returns:
        Tensor: (...,) in (-1, 1]. Exactly 1 for a perfect match of any non-empty box; 0 for two
        boxes without area.
    """
    iou, union = _overlap(boxes1, boxes2)
    top_left = torch.minimum(boxes1[..., :2], boxes2[..., :2])
    bottom_right = torch.maximum(boxes1[..., 2:], boxes2[..., 2:])
    enclosing = _product(bottom_right - top_left)
    return iou - _ratio(enclosing - union, enclosing)


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of every pair: (..., N, 4) and (..., M, 4) xyxy to (..., N, M)."""
    return elementwise_box_iou(boxes1[..., :, None, :], boxes2[..., None, :, :])


def generalized_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Generalised IoU of every pair: (..., N, 4) and (..., M, 4) xyxy to (..., N, M)."""
    return elementwise_generalized_box_iou(boxes1[..., :, None, :], boxes2[..., None, :, :])
