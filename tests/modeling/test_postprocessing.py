# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Selection of detections, by hand."""

import torch

from detrex_mammo.modeling import select_detections

LOGITS = torch.tensor([[[3.0, -1.0], [2.0, 1.0], [-5.0, 0.0]]])
BOXES = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.1, 0.2, 0.4, 0.2], [0.9, 0.9, 0.1, 0.1]]])


def test_highest_over_queries_and_classes():
    """Order of logits: 3 (query 0, class 0), 2 (1, 0), 1 (1, 1); scaled to 100 high, 200 wide."""
    (found,) = select_detections(LOGITS, BOXES, [(100, 200)], topk=3)
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0, 1.0]).sigmoid())
    assert found.pred_classes.tolist() == [0, 0, 1]
    expected = torch.tensor([[80.0, 30, 120, 70], [-20.0, 10, 60, 30], [-20.0, 10, 60, 30]])
    torch.testing.assert_close(found.pred_boxes.tensor, expected)
    assert found.image_size == (100, 200)


def test_clipping_is_a_choice():
    (found,) = select_detections(LOGITS, BOXES, [(100, 200)], topk=2, clip_boxes=True)
    torch.testing.assert_close(found.pred_boxes.tensor[1], torch.tensor([0.0, 10, 60, 30]))


def test_never_more_than_there_are():
    (found,) = select_detections(LOGITS, BOXES, [(100, 200)], topk=300)
    assert len(found) == 6


def test_each_image_has_its_size():
    found = select_detections(
        LOGITS.repeat(2, 1, 1), BOXES.repeat(2, 1, 1), [(100, 200), (10, 10)], topk=1
    )
    torch.testing.assert_close(found[1].pred_boxes.tensor, torch.tensor([[4.0, 3, 6, 7]]))
    assert found[1].image_size == (10, 10)
