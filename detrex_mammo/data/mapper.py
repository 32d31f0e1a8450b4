# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A mammogram's record to what the detector takes."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data.transforms import AugInput, Augmentation, AugmentationList
from detectron2.structures import Boxes, Instances

from detrex_mammo.data.geometry import Geometry
from detrex_mammo.data.image_io import read_image
from detrex_mammo.data.preprocessing import Preprocessing

logger = logging.getLogger(__name__)
# A box that a training augmentation leaves smaller than this, in network pixels, teaches nothing.
MIN_SIDE = 1.0


class MammographyMapper:
    """Read, crop to the breast, turn to one side, augment, and make tensors.

    Args:
        is_train: also return ``instances``, and never cut a box by the crop.
        augmentations: detectron2 augmentations, in order; they see float32 (H, W) in [0, 255].
        preprocessing: window, crop and flip; the defaults when None.
    """

    def __init__(
        self,
        is_train: bool,
        augmentations: Sequence[Augmentation] = (),
        preprocessing: Preprocessing | None = None,
    ):
        self.is_train = is_train
        self.augmentations = AugmentationList(list(augmentations))
        self.preprocessing = preprocessing or Preprocessing()

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Map one record of :func:`detrex_mammo.data.datasets.load_coco_json`.

        Returns:
            dict: the record without its annotations, and ``image`` (3, H, W) float32 RGB in
            [0, 255]; ``height`` and ``width`` of the crop, in whose frame the detector answers;
            ``geometry``, which takes its boxes back to the original image; in training
            ``instances`` with ``gt_boxes`` (xyxy, pixels of ``image``) and ``gt_classes``.

        Raises:
            UserError: the image is missing, damaged, or not of the size its record says.
        """
        pixels = read_image(record["file_name"], self.preprocessing.window)
        boxes, classes = _ground_truth(record)
        geometry = self.preprocessing.geometry_for(pixels, record, boxes if self.is_train else None)
        if not self.is_train:
            _report_cut_boxes(record, geometry, boxes)
        height, width = geometry.size
        augmented = AugInput(
            geometry.apply_image(pixels),
            boxes=np.clip(geometry.apply_boxes(boxes), 0, (width, height, width, height)),
        )
        self.augmentations(augmented)
        mapped = {key: value for key, value in record.items() if key != "annotations"}
        grey = torch.from_numpy(np.ascontiguousarray(augmented.image, dtype=np.float32))
        mapped["image"] = grey.expand(3, -1, -1).contiguous()
        mapped["height"], mapped["width"] = height, width
        mapped["geometry"] = geometry
        if self.is_train:
            mapped["instances"] = _instances(augmented, classes)
        return mapped


def _ground_truth(record: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) float64 xyxy and classes (N,) int64; crowd regions are left out."""
    kept = [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]
    boxes = np.array([a["bbox"] for a in kept], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes, np.array([a["category_id"] for a in kept], dtype=np.int64)


def _report_cut_boxes(record: Mapping[str, Any], geometry: Geometry, boxes: np.ndarray) -> None:
    x0, y0, x1, y1 = geometry.crop
    is_cut = (boxes[:, :2] < (x0, y0)).any(axis=1) | (boxes[:, 2:] > (x1, y1)).any(axis=1)
    if is_cut.any():
        logger.warning(
            "%s: %d of %d boxes reach out of the breast crop %s; raise preprocessing.margin",
            record["file_name"],
            int(is_cut.sum()),
            len(boxes),
            list(geometry.crop),
        )


def _instances(augmented: AugInput, classes: np.ndarray) -> Instances:
    height, width = augmented.image.shape[:2]
    boxes = torch.as_tensor(np.asarray(augmented.boxes), dtype=torch.float32).reshape(-1, 4)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(boxes)
    instances.gt_boxes.clip((height, width))
    instances.gt_classes = torch.as_tensor(classes)
    return instances[instances.gt_boxes.nonempty(MIN_SIDE)]
