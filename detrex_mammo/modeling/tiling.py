# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Detection in overlapping tiles: an image larger than a tile is looked at piece by piece.

The network then sees every pixel at full size, and its memory depends on the tile, not the image.

h and w are the image's size in pixels of the network's input.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor

from detrex_mammo.errors import UserError
from detrex_mammo.layers import at_least_float32
from detrex_mammo.modeling.seam_merging import SeamMerger

# Normalised images (3, h, w) and the sizes that boxes are scaled to: detections of each image.
Detect = Callable[[Sequence[Tensor], Sequence[tuple[int, int]]], list[Instances]]


@dataclass(frozen=True)
class Tiles:
    """How to split an image, and how to make one list of what its tiles show.

    Tiles are spread evenly from one end of the image to the other, so all overlaps of a direction
    are equal up to a pixel and at least the one asked for. A lesion no larger than the overlap is
    whole in at least one tile, wherever it lies; see :class:`SeamMerger` for those on seams.

    Attributes:
        height: of a tile, in pixels of the network's input.
        width: of a tile.
        overlap: of neighbouring tiles, as a share of the tile, in [0, 1): at least the largest
            lesion, where memory allows.
        batch_size: tiles in one pass through the network.
        whole_image: look at the whole image too, shrunk to fit into a tile, for what is larger
            than a tile.
        merge_iou: how much two tiles' boxes overlap, at least, if they show one lesion.
        border: a box that ends within so many pixels of an inner border of its tile counts as cut.
        skip_uniform: leave out tiles whose pixels are all equal (the black beside the breast), in
            which there is nothing to see.

    Raises:
        UserError: a setting is not possible.
    """

    height: int
    width: int
    overlap: float = 0.25
    batch_size: int = 4
    whole_image: bool = False
    merge_iou: float = 0.5
    border: float = 8.0
    skip_uniform: bool = True

    def __post_init__(self) -> None:
        whole, number, switch = (int,), (int, float), (bool,)
        allowed = {
            "height": (whole, "a whole number, at least 1", lambda value: value >= 1),
            "width": (whole, "a whole number, at least 1", lambda value: value >= 1),
            "overlap": (number, "a share of the tile in [0, 1)", lambda value: 0 <= value < 1),
            "batch_size": (whole, "a whole number, at least 1", lambda value: value >= 1),
            "whole_image": (switch, "true or false", lambda value: True),
            "merge_iou": (number, "in (0, 1]", lambda value: 0 < value <= 1),
            "border": (number, "0 or more pixels", lambda value: value >= 0),
            "skip_uniform": (switch, "true or false", lambda value: True),
        }
        for name, (kinds, words, fits) in allowed.items():
            value = getattr(self, name)
            if type(value) not in kinds or not fits(value):
                raise UserError(f"model.tiles.{name} is {value!r}; it must be {words}")

    def applies_to(self, image: Tensor) -> bool:
        """Whether an image (3, h, w) is larger than a tile."""
        return image.shape[-2] > self.height or image.shape[-1] > self.width

    def split(self, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """Tiles (x0, y0, x1, y1) that cover an image, row by row; one if it is no larger."""
        columns = _spans(width, self.width, self.overlap)
        rows = _spans(height, self.height, self.overlap)
        return [(x0, y0, x1, y1) for y0, y1 in rows for x0, x1 in columns]

    def detect(self, detect: Detect, image: Tensor, size: tuple[int, int], topk: int) -> Instances:
        """Detections of one image.

        Args:
            detect (Callable): the detector without tiles.
            image (Tensor): (3, h, w), normalised.
            size (tuple[int, int]): (height, width) that boxes are scaled to.
            topk (int): detections to keep.

        Returns:
            Instances: as :func:`select_detections` gives them. An image no larger than a tile goes
            through the detector as it is.
        """
        if not self.applies_to(image):
            return detect([image], [size])[0]
        height, width = image.shape[-2:]
        views = self.split(height, width)
        if self.skip_uniform:
            views = _not_uniform(image, views)
        found: list[Instances] = []
        for start in range(0, len(views), self.batch_size):
            tiles = [image[:, y0:y1, x0:x1] for x0, y0, x1, y1 in views[start:][: self.batch_size]]
            found += detect(tiles, [tuple(tile.shape[-2:]) for tile in tiles])
        if self.whole_image:
            views.append((0, 0, width, height))
            found += detect([self._shrink(image)], [(height, width)])
        merged = SeamMerger(views, (height, width), self.merge_iou, self.border)(found, topk)
        return _scale(merged, (height, width), size, image.device)

    def _shrink(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        scale = min(self.height / height, self.width / width)
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        shrunk = F.interpolate(
            at_least_float32(image)[None], size, mode="bilinear", antialias=True
        )[0]
        return shrunk.to(image.dtype)


def _spans(size: int, tile: int, overlap: float) -> list[tuple[int, int]]:
    """(start, end) of the fewest tiles along one axis that overlap by at least the share."""
    if size <= tile:
        return [(0, size)]
    step = max(1, int(tile * (1 - overlap)))
    steps = -(-(size - tile) // step)
    starts = [round(index * (size - tile) / steps) for index in range(steps + 1)]
    return [(start, start + tile) for start in starts]


def _not_uniform(image: Tensor, views: list[tuple[int, int, int, int]]) -> list:
    is_uniform = []
    for x0, y0, x1, y1 in views:
        tile = image[:, y0:y1, x0:x1]
        is_uniform.append((tile == tile[:, :1, :1]).all())
    return [view for view, skip in zip(views, torch.stack(is_uniform).tolist()) if not skip]


def _scale(merged, image_size, size, device: torch.device) -> Instances:
    boxes, scores, classes = (torch.from_numpy(values) for values in merged)
    (height, width), (new_height, new_width) = image_size, size
    factors = (new_width / width, new_height / height)
    boxes = boxes * torch.tensor(factors * 2, dtype=boxes.dtype)
    instances = Instances(size)
    instances.pred_boxes = Boxes(boxes.float()).to(device)
    instances.scores = scores.float().to(device)
    instances.pred_classes = classes.to(device)
    return instances
