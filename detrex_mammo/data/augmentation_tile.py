# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A training tile of a fixed size that halves no lesion.

Boxes are (N, 4) xyxy in continuous pixels: pixel i covers [i, i + 1).
"""

import numpy as np
from detectron2.data.transforms import Augmentation, CropTransform, Transform

from detrex_mammo.data.augmentation_checks import check_probability, check_sizes
from detrex_mammo.data.breast import find_breast


class LesionTile(Augmentation):
    """Crop to a tile that holds each lesion whole, or nothing of it.

    All positions of the tile are looked at, and one is drawn evenly from those that are best:

    1. with probability ``lesion_prob``, if there is a lesion: around one drawn lesion;
    2. otherwise: centred on the breast and free of lesions, or else centred on the breast;
    3. where these would cut a lesion: any that cuts none;
    4. where all would: the tile grows until it cuts none, and is larger than asked for.

    Where the image is smaller than the tile, it stays as it is along that side.

    Args:
        height: of the tile, in pixels.
        width: of the tile, in pixels.
        lesion_prob: probability of a tile around a lesion.

    Raises:
        UserError: a size or ``lesion_prob`` is not possible.
    """

    def __init__(self, height: int, width: int, lesion_prob: float = 0.5):
        super().__init__()
        check_sizes("LesionTile", height=height, width=width)
        self.height, self.width = height, width
        self.lesion_prob = check_probability("LesionTile", lesion_prob, "lesion_prob")

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> Transform:
        size = image.shape[:2]
        tile = self.nominal_size(*size)
        boxes = _whole_pixels(boxes, size)
        wants_lesion = np.random.uniform() < self.lesion_prob and len(boxes) > 0
        uncut, free = _position_maps(boxes, size, tile)
        if wants_lesion:
            target = boxes[np.random.randint(len(boxes))]
            choices = [uncut & _around(target, tile, uncut.shape)]
        else:
            on_breast = _centred_on_breast(image, tile, uncut.shape)
            target = None
            choices = [free & on_breast, uncut & on_breast, uncut]
        for choice in choices:
            places = np.flatnonzero(choice)
            if len(places):
                y, x = divmod(int(np.random.choice(places)), choice.shape[1])
                return CropTransform(x, y, tile[1], tile[0])
        start = np.random.randint(uncut.shape)[::-1] if target is None else target[:2]
        x0, y0, x1, y1 = _grown(start, target, boxes, size, tile)
        return CropTransform(x0, y0, x1 - x0, y1 - y0)

    def nominal_size(
        self, height: int, width: int, pixel_spacing: object = None
    ) -> tuple[int, int]:
        """Size of the tile of an image of (height, width), unless it grows."""
        return min(self.height, height), min(self.width, width)


def _whole_pixels(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(N, 4) int: pixels that the boxes touch; those wholly outside the image are left out."""
    height, width = size
    ends = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1)
    ends = np.clip(ends, 0, (width, height, width, height)).astype(np.int64)
    return ends[(ends[:, 0] < ends[:, 2]) & (ends[:, 1] < ends[:, 3])]


def _position_maps(
    boxes: np.ndarray, size: tuple[int, int], tile: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """For each upper left corner of the tile: whether it cuts no box, and touches none."""
    shape = (size[0] - tile[0] + 1, size[1] - tile[1] + 1)
    uncut, free = np.ones(shape, bool), np.ones(shape, bool)
    for box in boxes:
        x0, y0, x1, y1 = box
        touching = np.s_[max(y0 - tile[0] + 1, 0) : y1, max(x0 - tile[1] + 1, 0) : x1]
        whole = _around(box, tile, shape)
        uncut[touching] &= whole[touching]
        free[touching] = False
    return uncut, free


def _around(box: np.ndarray, tile: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """Positions whose tile holds the whole box."""
    x0, y0, x1, y1 = box
    found = np.zeros(shape, bool)
    found[max(y1 - tile[0], 0) : y0 + 1, max(x1 - tile[1], 0) : x0 + 1] = True
    return found


def _centred_on_breast(
    image: np.ndarray, tile: tuple[int, int], shape: tuple[int, int]
) -> np.ndarray:
    """Positions whose tile has its centre on the breast; all, if there is no breast."""
    top, left = tile[0] // 2, tile[1] // 2
    return find_breast(image).mask[top : top + shape[0], left : left + shape[1]]


def _grown(start, target, boxes: np.ndarray, size: tuple[int, int], tile: tuple[int, int]):
    """The tile at ``start``, grown to hold the target and each box that it would cut.

    Args:
        start: (x, y) of its upper left corner.
        target: (4,) xyxy, or None.
        boxes: (N, 4) xyxy, whole pixels.
        size: (height, width) of the image.
        tile: (height, width) of the tile.

    Returns:
        tuple: (x0, y0, x1, y1).
    """
    x = int(min(start[0], size[1] - tile[1]))
    y = int(min(start[1], size[0] - tile[0]))
    region = np.array([x, y, x + tile[1], y + tile[0]])
    wanted = boxes[:0] if target is None else target[None]
    while True:
        for box in wanted:
            region = np.concatenate(
                [np.minimum(region[:2], box[:2]), np.maximum(region[2:], box[2:])]
            )
        touches = (boxes[:, :2] < region[2:]).all(axis=1) & (boxes[:, 2:] > region[:2]).all(axis=1)
        held = (boxes[:, :2] >= region[:2]).all(axis=1) & (boxes[:, 2:] <= region[2:]).all(axis=1)
        wanted = boxes[touches & ~held]
        if not len(wanted):
            return tuple(int(value) for value in region)
