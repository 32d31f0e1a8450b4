# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A mammogram's record to what the detector takes."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data.transforms import AugInput, Augmentation, AugmentationList
from detectron2.structures import Boxes, Instances

from detrex_mammo.data.cache import ImageCache, key_of
from detrex_mammo.data.geometry import Geometry
from detrex_mammo.data.image_io import to_unit_255
from detrex_mammo.data.preprocessing import Preprocessing
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
# A box that a training augmentation leaves smaller than this, in network pixels, teaches nothing.
MIN_SIDE = 1.0


class MammographyMapper:
    """Read, crop to the breast, turn to one side, augment, and make tensors.

    Args:
        is_train: also return ``instances``, and never cut a box by the crop.
        augmentations: detectron2 augmentations, in order; they see float32 (H, W) in [0, 255].
        preprocessing: window, crop and flip, also as a dict; the defaults when None.
        cache_megabytes: keep decoded crops in memory up to this size, in each loader worker, so
            that later epochs read no file. The mapped images are the same, bit for bit.
        cache_dir: folder that ``tools/cache_data.py`` made: nothing is decoded, and the mapped
            images are the same, bit for bit. "" reads the files.

    Raises:
        UserError: ``preprocessing`` or ``cache_megabytes`` is not possible, or the cache was made
            with another preprocessing.
    """

    def __init__(
        self,
        is_train: bool,
        augmentations: Sequence[Augmentation] = (),
        preprocessing: Preprocessing | Mapping[str, Any] | None = None,
        cache_megabytes: float = 0,
        cache_dir: str = "",
    ):
        if not cache_megabytes >= 0:
            raise UserError(f"cache_megabytes is {cache_megabytes}; use 0 (no cache) or more")
        self.is_train = is_train
        self.augmentations = AugmentationList(list(augmentations))
        if not isinstance(preprocessing, Preprocessing):
            preprocessing = Preprocessing.from_dict(preprocessing or {})
        self.preprocessing = preprocessing
        self._cache = _CropCache(int(cache_megabytes * 2**20))
        self._disk = ImageCache(cache_dir, preprocessing) if cache_dir else None

    def __call__(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Map one record of :func:`detrex_mammo.data.datasets.load_coco_json`.

        Returns:
            dict: the record without its annotations, and ``image`` (3, H, W) float32 RGB in
            [0, 255]; ``height`` and ``width`` of the crop, in whose frame the detector answers;
            ``geometry``, which takes its boxes back to the original image; in training
            ``instances`` with ``gt_boxes`` (xyxy, pixels of ``image``) and ``gt_classes``; in
            evaluation ``boxes_cut_by_crop``, the number of true boxes that leave the crop.

        Raises:
            UserError: the image is missing, damaged, or not of the size its record says.
        """
        boxes, classes = ground_truth(record)
        pixels, geometry = self._crop(record, boxes)
        height, width = geometry.size
        augmented = AugInput(
            pixels,
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
        else:
            mapped["boxes_cut_by_crop"] = _report_cut_boxes(record, geometry, boxes)
        return mapped

    def _crop(self, record: Mapping[str, Any], boxes: np.ndarray) -> tuple[np.ndarray, Geometry]:
        """Pixels (H, W) float32 of the crop, turned to its side, and where it lies."""
        key = (*key_of(record), record.get("image_id"))
        found = self._cache.get(key)
        if found is None:
            found = self._read(record, boxes if self.is_train else None)
            self._cache.put(key, *found)
        return found

    def _read(
        self, record: Mapping[str, Any], boxes: np.ndarray | None
    ) -> tuple[np.ndarray, Geometry]:
        if self._disk is not None:
            found = self._disk.crop(record, boxes)
            _check_size(record, found[1].original_size)
            return found
        pixels = self.preprocessing.read(record["file_name"], record.get("frame"))
        _check_size(record, pixels.shape)
        geometry = self.preprocessing.geometry_for(pixels, record, boxes)
        return geometry.apply_image(pixels), geometry


def _check_size(record: Mapping[str, Any], size: tuple[int, int]) -> None:
    height, width = size
    if (height, width) != (record.get("height", height), record.get("width", width)):
        raise UserError(
            f"image {record['file_name']!r} has {width}x{height} pixels, but its record says "
            f"{record.get('width')}x{record.get('height')}: its boxes would lie wrong, so prepare "
            "the dataset again"
        )


class _CropCache:
    """Crops with their geometry until ``capacity`` bytes are full; later ones are not kept."""

    def __init__(self, capacity: int):
        self.free = capacity
        self._kept: dict[Any, tuple[np.ndarray, Geometry]] = {}

    def get(self, key: Any) -> tuple[np.ndarray, Geometry] | None:
        if key not in self._kept:
            return None
        pixels, geometry = self._kept[key]
        if pixels.dtype == np.uint16:
            pixels = to_unit_255(pixels)
        return pixels.copy(), geometry

    def put(self, key: Any, pixels: np.ndarray, geometry: Geometry) -> None:
        if 2 * pixels.size > self.free:
            return
        stored = np.rint(pixels * np.float32(257)).astype(np.uint16)
        # Most files hold 16 bits or less: half the memory. Otherwise nothing is rounded.
        stored = stored if np.array_equal(to_unit_255(stored), pixels) else pixels.copy()
        if stored.nbytes <= self.free:
            self.free -= stored.nbytes
            self._kept[key] = (stored, geometry)


def ground_truth(record: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) float64 xyxy and classes (N,) int64; crowd regions are left out."""
    kept = [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]
    boxes = np.array([a["bbox"] for a in kept], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes, np.array([a["category_id"] for a in kept], dtype=np.int64)


def _report_cut_boxes(record: Mapping[str, Any], geometry: Geometry, boxes: np.ndarray) -> int:
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
    return int(is_cut.sum())


def _instances(augmented: AugInput, classes: np.ndarray) -> Instances:
    height, width = augmented.image.shape[:2]
    boxes = torch.as_tensor(np.asarray(augmented.boxes), dtype=torch.float32).reshape(-1, 4)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(boxes)
    instances.gt_boxes.clip((height, width))
    instances.gt_classes = torch.as_tensor(classes)
    return instances[instances.gt_boxes.nonempty(MIN_SIDE)]
