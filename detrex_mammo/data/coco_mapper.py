# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""COCO images for DETR-type training: one of several augmentation branches per image.

Images are (H, W, 3) uint8 RGB while they are augmented, (3, H, W) float32 afterwards.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data import detection_utils
from detectron2.data.transforms import (
    AugInput,
    Augmentation,
    AugmentationList,
    NoOpTransform,
    ResizeTransform,
    Transform,
)
from detectron2.structures import Boxes, Instances

from detrex_mammo.errors import UserError

# Annotations of a mapped image: its box and class; masks and keypoints would only cost time.
_KEPT = ("bbox", "bbox_mode", "category_id")


class COCOMapper:
    """Turn a detectron2 dataset dict of an image file into a model's input.

    Args:
        is_train: with ``instances``, always, also for an image without any box.
        branches: lists of detectron2 augmentations; one list is drawn per image, equal chance.
    """

    def __init__(self, is_train: bool, branches: Sequence[Sequence[Augmentation]]):
        if not branches:
            raise UserError("branches of COCOMapper is empty: give [[]] for no augmentation")
        self.is_train = is_train
        self.branches = [AugmentationList(list(branch)) for branch in branches]

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Read and augment one image.

        Args:
            dataset_dict: ``file_name``, ``height``, ``width``, ``annotations`` (may be absent).

        Returns:
            dict: as given, without ``annotations``, with ``image`` (3, H, W) float32 RGB in
            [0, 255] and, in training, ``instances`` (``gt_boxes`` xyxy in pixels of ``image``,
            ``gt_classes``); crowd regions are left out.
        """
        item = {key: value for key, value in dataset_dict.items() if key != "annotations"}
        item = copy.deepcopy(item)
        pixels = _read(item)
        branch = self.branches[np.random.randint(len(self.branches))]
        sample = AugInput(pixels)
        transforms = branch(sample)
        pixels = np.ascontiguousarray(sample.image.transpose(2, 0, 1))
        item["image"] = torch.from_numpy(pixels).float()
        if self.is_train:
            item["instances"] = _instances(
                dataset_dict.get("annotations", ()), transforms, sample.image.shape[:2]
            )
        return item


class ResizeShortEdge(Augmentation):
    """Resize the short edge to a length, the long one accordingly, at most ``max_size``.

    Args:
        short_edges (int or Sequence[int]): one is drawn per image.
        max_size (int, optional): limit of the long edge; the short one shrinks with it.
        rounding: "nearest" as detectron2 does; "truncate" as the published Deformable DETR does
            (datasets/transforms.py, commit 11169a6): 480x640 becomes 800x1066 instead of 800x1067.
    """

    def __init__(
        self,
        short_edges: int | Sequence[int],
        max_size: int | None = None,
        rounding: str = "nearest",
    ):
        super().__init__()
        if rounding not in ("nearest", "truncate"):
            raise UserError(f"rounding is {rounding!r}, but must be 'nearest' or 'truncate'")
        self.short_edges = [short_edges] if isinstance(short_edges, int) else list(short_edges)
        self.max_size = max_size
        self.rounding = rounding

    def get_transform(self, image: np.ndarray) -> Transform:
        """Resize (H, W, 3) uint8; bilinear, antialiased by Pillow."""
        height, width = image.shape[:2]
        short_edge = int(np.random.choice(self.short_edges))
        size = _nearest_size if self.rounding == "nearest" else _truncated_size
        new_height, new_width = size(height, width, short_edge, self.max_size)
        if (new_height, new_width) == (height, width):
            return NoOpTransform()
        return ResizeTransform(height, width, new_height, new_width)


def _read(item: dict[str, Any]) -> np.ndarray:
    """Pixels of the right size, or one sentence."""
    try:
        pixels = detection_utils.read_image(item["file_name"], format="RGB")
        detection_utils.check_image_size(item, pixels)
    except (OSError, detection_utils.SizeMismatchError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"image {item['file_name']!r} cannot be used: {reason}") from error
    return pixels


def _nearest_size(h: int, w: int, short_edge: int, max_size: int | None) -> tuple[int, int]:
    scale = short_edge / min(h, w)
    if max_size is not None:
        scale = min(scale, max_size / max(h, w))
    return int(h * scale + 0.5), int(w * scale + 0.5)


def _truncated_size(h: int, w: int, short_edge: int, max_size: int | None) -> tuple[int, int]:
    if max_size is not None and max(h, w) / min(h, w) * short_edge > max_size:
        short_edge = round(max_size * min(h, w) / max(h, w))
    if w < h:
        return int(short_edge * h / w), short_edge
    return short_edge, int(short_edge * w / h)


def _instances(
    annotations: Sequence[dict[str, Any]], transforms: Transform, image_size: tuple[int, int]
) -> Instances:
    """Boxes that are left inside the augmented image; (0, 4) if there is none."""
    kept = [
        detection_utils.transform_instance_annotations(
            {key: annotation[key] for key in _KEPT}, transforms, image_size
        )
        for annotation in annotations
        if not annotation.get("iscrowd", 0)
    ]
    instances = Instances(image_size)
    boxes = np.array([annotation["bbox"] for annotation in kept], dtype=np.float32)
    instances.gt_boxes = Boxes(torch.from_numpy(boxes.reshape(-1, 4)))
    classes = [annotation["category_id"] for annotation in kept]
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return instances[instances.gt_boxes.nonempty(threshold=1e-5)]
