# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Which boxes of two tiles are one lesion, and which box it gets, by hand.

Where lesions lie anywhere on seams and corners of many tiles: see test_tiling.py.
"""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from detrex_mammo.modeling.seam_merging import SeamMerger


def instances(*rows):
    """Detections (x0, y0, x1, y1, score, class)."""
    numbers = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    found = Instances((0, 0))
    found.pred_boxes, found.scores = Boxes(numbers[:, :4]), numbers[:, 4]
    found.pred_classes = numbers[:, 5].long()
    return found


def merge(left, right, topk=9, border=2.0):
    """Two tiles, 60 wide and 50 high, in an image 100 wide: they share x from 40 to 60."""
    views = [(0, 0, 60, 50), (40, 0, 100, 50)]
    boxes, scores, classes = SeamMerger(views, (50, 100), 0.5, border)(
        [instances(*left), instances(*right)], topk
    )
    return [
        (*box, pytest.approx(s), label) for box, s, label in zip(boxes.tolist(), scores, classes)
    ]


def test_merging_by_hand():
    """Right tile's boxes are 40 further right in the image."""
    # A whole box beats the cut one, which scores higher, and takes its score.
    cut, whole = (50, 10, 60, 30, 0.9, 0), (10, 10, 30, 30, 0.4, 0)
    assert merge([cut], [whole]) == [(50, 10, 70, 30, 0.9, 0)]
    # Its box is not stretched to the cut one's, which reaches 2 pixels higher.
    assert merge([(50, 8, 60, 30, 0.9, 0)], [whole]) == [(50, 10, 70, 30, 0.9, 0)]
    # Another class is another lesion.
    assert len(merge([cut], [(*whole[:5], 1)])) == 2
    # Both cut: the box around both, though they share 20 of its 60 columns.
    parts = [(20, 10, 60, 30, 0.8, 0)], [(0, 10, 40, 30, 0.7, 0)]
    assert merge(*parts) == [(20, 10, 80, 30, 0.8, 0)]
    # Both whole, shifted by 4 of 12 columns: IoU 8 / 16; by 5: 7 / 17, two lesions.
    assert merge([(42, 10, 54, 30, 0.8, 0)], [(6, 10, 18, 30, 0.7, 0)]) == [
        (42, 10, 54, 30, 0.8, 0)
    ]
    assert len(merge([(42, 10, 54, 30, 0.8, 0)], [(7, 10, 19, 30, 0.7, 0)])) == 2
    # The same at the image's lower border, which cuts nothing.
    assert len(merge([(42, 30, 54, 50, 0.8, 0)], [(7, 30, 19, 50, 0.7, 0)])) == 2
    # A small whole lesion inside a large cut one of the same class stays.
    assert len(merge([(46, 20, 50, 24, 0.5, 0)], [(0, 0, 55, 50, 0.9, 0)])) == 2
    # Two boxes of one tile stay two, though a box of the other tile agrees with both.
    left = [(20, 10, 60, 30, 0.9, 0), (42, 12, 56, 30, 0.6, 0)]
    found = merge(left, [(0, 10, 40, 30, 0.7, 0)])
    assert found == [(20, 10, 80, 30, 0.9, 0), (42, 12, 56, 30, 0.6, 0)]
    # What only one tile sees stays, at the seam as well.
    assert merge([cut], []) == [(50, 10, 60, 30, 0.9, 0)]
    # Of two boxes of one tile neither is a duplicate, however much they overlap.
    assert len(merge([cut, cut], [])) == 2


def test_best_of_several_whole_boxes_is_taken():
    """Four tiles of 40 with corners at 0 and 30: the lesion is cut in one, whole in three."""
    views = [(x, y, x + 40, y + 40) for y in (0, 30) for x in (0, 30)]
    found = [
        instances((31, 31, 40, 38, 0.9, 0)),
        instances((3, 32, 9, 38, 0.3, 0)),
        instances((32, 3, 39, 9, 0.7, 0)),
        instances((3, 3, 10, 9, 0.5, 0)),
    ]
    boxes, scores, _ = SeamMerger(views, (70, 70), 0.5, 0.0)(found, 9)
    assert boxes.tolist() == [[32, 33, 39, 39]] and scores.tolist() == [pytest.approx(0.9)]


def test_low_scores_do_not_pull_a_box_away():
    """Of the boxes that agree with a cut one, the best of the tile is its continuation."""
    left = [(30, 10, 60, 30, 0.9, 0)]
    right = [(0, 10, 30, 30, 0.8, 0), (4, 8, 22, 32, 0.01, 0)]
    assert merge(left, right) == [(30, 10, 70, 30, 0.9, 0)]
    # A guess is no continuation, and no lesion of its own either.
    assert merge(left, right[1:]) == [(30, 10, 60, 30, 0.9, 0)]


def test_topk_counts_lesions():
    """Four lesions, one of them in both tiles; the best two and the best three."""
    left = [(44, 5, 56, 15, 0.9, 0), (5, 5, 15, 15, 0.7, 0)]
    right = [(4, 5, 16, 15, 0.8, 0), (40, 5, 50, 15, 0.6, 1), (40, 25, 50, 35, 0.5, 1)]
    assert [row[4] for row in merge(left, right, topk=2)] == [0.9, 0.7]
    assert [row[4] for row in merge(left, right, topk=3)] == [0.9, 0.7, 0.6]
