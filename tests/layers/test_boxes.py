# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Box formats and overlaps, with numbers worked by hand."""

import torch

from detrex_mammo.layers import (
    box_area,
    box_cxcywh_to_xyxy,
    box_iou,
    box_xyxy_to_cxcywh,
    elementwise_generalized_box_iou,
    generalized_box_iou,
)


def test_formats_are_inverse():
    boxes = torch.tensor([[[0.5, 0.25, 0.5, 0.1]], [[10.0, 20.0, 4.0, 6.0]]])
    corners = torch.tensor([[[0.25, 0.2, 0.75, 0.3]], [[8.0, 17.0, 12.0, 23.0]]])
    torch.testing.assert_close(box_cxcywh_to_xyxy(boxes), corners)
    torch.testing.assert_close(box_xyxy_to_cxcywh(corners), boxes)
    torch.testing.assert_close(box_area(corners), torch.tensor([[0.05], [24.0]]))


def test_overlaps_by_hand():
    """Pairs with the box (0, 0, 2, 2), of area 4.

    (1, 1, 3, 3): intersection 1, union 7, enclosing 9: IoU 1/7, GIoU 1/7 - 2/9.
    (2, 0, 4, 2): touching, enclosing 8 = union: IoU 0, GIoU 0.
    (3, 0, 4, 1): apart, union 5, enclosing 8: IoU 0, GIoU -3/8.
    (0, 0, 1, 2): inside, union 4 = enclosing: both 1/2.
    """
    box = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    others = torch.tensor(
        [[1.0, 1.0, 3.0, 3.0], [2.0, 0.0, 4.0, 2.0], [3.0, 0.0, 4.0, 1.0], [0.0, 0.0, 1.0, 2.0]]
    )
    iou = torch.tensor([[1 / 7, 0.0, 0.0, 0.5]])
    giou = torch.tensor([[1 / 7 - 2 / 9, 0.0, -3 / 8, 0.5]])
    torch.testing.assert_close(box_iou(box, others), iou)
    torch.testing.assert_close(generalized_box_iou(box, others), giou)
    torch.testing.assert_close(generalized_box_iou(others, box), giou.T)
    torch.testing.assert_close(elementwise_generalized_box_iou(box, others), giou[0])


def test_perfect_match_of_a_tiny_box_has_giou_one():
    """4 pixels on 4000: an epsilon of 1e-6, the area of the box, would give 0.5."""
    boxes = torch.tensor([[0.3, 0.7, 4 / 4000, 4 / 4000]])
    corners = box_cxcywh_to_xyxy(boxes)
    torch.testing.assert_close(
        elementwise_generalized_box_iou(corners, corners), torch.ones(1), rtol=0, atol=0
    )


def test_boxes_without_area_are_finite():
    """Two points: 0, with a gradient that is 0 and not NaN."""
    points = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    others = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.1, 0.1, 0.1, 0.1], [0.0, 0.0, 1.0, 1.0]])
    giou = generalized_box_iou(points, others)
    torch.testing.assert_close(giou, torch.tensor([[0.0, -1.0, 0.0]]))
    giou.sum().backward()
    assert points.grad.isfinite().all()


def test_no_boxes():
    none, some = torch.zeros(0, 4), torch.rand(3, 4)
    assert generalized_box_iou(some, none).shape == (3, 0)
    assert generalized_box_iou(none, some).shape == (0, 3)
