# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""One list of detections from those of overlapping tiles.

N detections, V views (the tiles, and the whole image where asked for). Boxes are xyxy pixels of the
image.
"""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import Instances

# A cut box is continued by one of at least this share of its score, not by a random guess.
CREDIBLE = 0.1


class SeamMerger:
    """Makes one detection of what several tiles show of one lesion.

    Two boxes of one class from different views are the same lesion if they agree in the area that
    both views see: their parts inside it overlap by IoU >= ``merge_iou``; where a tile's border
    cuts one of the boxes, that share of the cut box's part (of the smaller one if both are cut)
    lies in the other. What only one tile sees has nothing to agree with and stays; boxes of the
    same tile are never compared, as the detector gives each lesion once.

    From the highest score down, a detection takes its duplicates out of the list and keeps its
    score. If it is whole, it keeps its box too. If it is cut, it is followed through its best
    duplicate in each other view (of at least ``CREDIBLE`` of its score): the best whole box of
    those found is taken, and where none is whole (a lesion larger than the overlap) the box around
    all of them.

    Args:
        views: V boxes (x0, y0, x1, y1).
        image_size: (height, width).
        merge_iou: see :class:`detrex_mammo.modeling.tiling.Tiles`.
        border: see there.
    """

    def __init__(
        self,
        views: Sequence[tuple[int, int, int, int]],
        image_size: tuple[int, int],
        merge_iou: float,
        border: float,
    ):
        self.views = np.array(views, dtype=np.float64).reshape(-1, 4)
        self.image_size = image_size
        self.share_pixels = _area(_intersection(self.views[:, None], self.views)) > 0
        self.merge_iou, self.border = merge_iou, border

    def __call__(self, found: Sequence[Instances], topk: int) -> tuple[np.ndarray, ...]:
        """Merge.

        Args:
            found: for each view its detections, in pixels from the view's corner.
            topk: detections to keep.

        Returns:
            tuple: boxes (M, 4) float64, scores (M,), highest first, and classes (M,) int64.
        """
        self._sort(found)
        boxes, scores, classes = [], [], []
        free = np.ones(len(self.scores), dtype=bool)
        for leader in range(len(free)):
            if len(boxes) == topk:
                break
            if free[leader]:
                boxes.append(self._box(leader, free))
                scores.append(self.scores[leader])
                classes.append(self.classes[leader])
        merged = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        return merged, np.array(scores, dtype=np.float64), np.array(classes, dtype=np.int64)

    def _sort(self, found: Sequence[Instances]) -> None:
        """All detections in the image's pixels, highest score first."""
        view = np.repeat(np.arange(len(found)), [len(instances) for instances in found])
        columns = [np.zeros((0, 6))]
        for instances in found:
            numbers = torch.cat(
                (
                    instances.pred_boxes.tensor.double(),
                    instances.scores.double()[:, None],
                    instances.pred_classes.double()[:, None],
                ),
                dim=1,
            )
            columns.append(numbers.cpu().numpy())
        numbers = np.concatenate(columns)
        order = np.argsort(-numbers[:, 4], kind="stable")
        self.view, numbers = view[order], numbers[order]
        self.scores, self.classes = numbers[:, 4], numbers[:, 5].astype(np.int64)
        area = self.views[self.view]
        self.boxes = numbers[:, :4] + area[:, [0, 1, 0, 1]]
        height, width = self.image_size
        is_inner = area != (0, 0, width, height)  # the image's own border cuts nothing
        distance = (self.boxes - area) * (1, 1, -1, -1)  # inwards from each border
        self.is_cut = (is_inner & (distance <= self.border)).any(axis=1)

    def _box(self, leader: int, free: np.ndarray) -> np.ndarray:
        """The box of a detection; it and its duplicates are free no longer."""
        free[leader] = False
        pending, group, seen = [leader], [], {self.view[leader]}
        while pending:
            member = pending.pop(0)
            group.append(member)
            others = self._duplicates(member, free)
            others = others[[view not in seen for view in self.view[others]]]
            free[others] = False
            seen.update(self.view[others])
            if self.is_cut[member]:
                _, best = np.unique(self.view[others], return_index=True)
                best = others[best]
                pending += best[self.scores[best] >= CREDIBLE * self.scores[leader]].tolist()
        whole = [member for member in group if not self.is_cut[member]]
        if whole:
            return self.boxes[min(whole)]
        boxes = self.boxes[group]
        return np.concatenate((boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)))

    def _duplicates(self, index: int, free: np.ndarray) -> np.ndarray:
        """(M,) int64, best first: the free detections of the same lesion, if their views differ."""
        is_near = self.share_pixels[self.view[index], self.view]
        others = np.flatnonzero(free & is_near & (self.classes == self.classes[index]))
        shared = _intersection(self.views[self.view[index]], self.views[self.view[others]])
        one = _intersection(self.boxes[index], shared)
        other = _intersection(self.boxes[others], shared)
        common, one, other = _area(_intersection(one, other)), _area(one), _area(other)
        is_cut = self.is_cut[others]
        if self.is_cut[index]:
            whole = np.where(is_cut, np.minimum(one, other), one)
        else:
            whole = np.where(is_cut, other, one + other - common)
        return others[(common > 0) & (common >= self.merge_iou * whole)]


def _intersection(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """(..., 4); with its right end before its left one where there is none."""
    return np.concatenate(
        (
            np.maximum(boxes1[..., :2], boxes2[..., :2]),
            np.minimum(boxes1[..., 2:], boxes2[..., 2:]),
        ),
        axis=-1,
    )


def _area(boxes: np.ndarray) -> np.ndarray:
    """(..., 4) to (...,); 0 where there is no box."""
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    return sides[..., 0] * sides[..., 1]
