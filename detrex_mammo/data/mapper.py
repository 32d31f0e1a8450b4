# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A mammogram's record to what the detector takes."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.data.transforms import Augmentation, AugmentationList, Transform
from detectron2.structures import Boxes, Instances

from detrex_mammo.data.augmentation import Resize
from detrex_mammo.data.augmentation_checks import check_probability
from detrex_mammo.data.augmentation_input import MammogramInput, spacing_of
from detrex_mammo.data.breast import BreastRegion, find_breast
from detrex_mammo.data.cache import Entry, ImageCache, key_of
from detrex_mammo.data.copy_paste import LesionCopyPaste
from detrex_mammo.data.geometry import Geometry
from detrex_mammo.data.image_io import to_unit_255
from detrex_mammo.data.preprocessing import Preprocessing, laterality_conflict
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
# A box that a training augmentation leaves smaller than this, in network pixels, teaches nothing.
MIN_SIDE = 1.0


class MammographyMapper:
    """Read, crop to the breast, turn to one side, augment, and make tensors.

    Args:
        is_train: also return ``instances``, and never cut a box by the crop.
        augmentations: detectron2 augmentations, in order; they see float32 (H, W) in [0, 255], and
            a :class:`detrex_mammo.data.augmentation_input.MammogramInput`.
        preprocessing: window, crop and flip, also as a dict; the defaults when None.
        cache_megabytes: keep decoded crops in memory up to this size, in each loader worker, so
            that later epochs read no file. The mapped images are the same, bit for bit.
        cache_dir: folder that ``tools/cache_data.py`` made: nothing is decoded, and the mapped
            images are the same, bit for bit. "" reads the files.
        copy_paste: pastes lesions of other images before the augmentations; each of them is read
            for it, so have a cache. Needs :meth:`attach`.
        min_visibility: in training, a box of which the augmentations leave a smaller share in the
            image is dropped.

    Attributes:
        num_laterality_conflicts: images, of those this process has read, that show the chest wall
            on another side than their ``laterality`` says; each was told once.

    Raises:
        UserError: ``preprocessing``, ``cache_megabytes``, ``copy_paste`` or ``min_visibility`` is
            not possible, or the cache was made with another preprocessing.
    """

    def __init__(
        self,
        is_train: bool,
        augmentations: Sequence[Augmentation] = (),
        preprocessing: Preprocessing | Mapping[str, Any] | None = None,
        cache_megabytes: float = 0,
        cache_dir: str = "",
        copy_paste: LesionCopyPaste | None = None,
        min_visibility: float = 0.1,
    ):
        _check_augmentations(augmentations)
        if type(cache_megabytes) not in (int, float) or not cache_megabytes >= 0:
            raise UserError(f"cache_megabytes is {cache_megabytes!r}; use 0 (no cache) or more")
        if copy_paste is not None and not isinstance(copy_paste, LesionCopyPaste):
            raise UserError(
                f"copy_paste is {copy_paste!r}; it is null or a LesionCopyPaste, whose setting "
                "mapper.copy_paste.prob turns it on"
            )
        if copy_paste is not None and not is_train:
            raise UserError("copy_paste is set where is_train is False: it is for training only")
        self.is_train = is_train
        self.augmentations = AugmentationList(list(augmentations))
        if not isinstance(preprocessing, Preprocessing):
            preprocessing = Preprocessing.from_dict(preprocessing or {})
        self.preprocessing = preprocessing
        self.copy_paste = copy_paste
        self.min_visibility = check_probability(
            "MammographyMapper", min_visibility, "min_visibility"
        )
        self._cache = _CropCache(int(cache_megabytes * 2**20))
        self._disk = ImageCache(cache_dir, preprocessing) if cache_dir else None
        self._conflicts: set[Any] = set()

    @property
    def num_laterality_conflicts(self) -> int:
        """See the class."""
        return len(self._conflicts)

    def attach(self, dataset: Sequence[Mapping[str, Any]]) -> None:
        """Name the training set, whose lesions ``copy_paste`` takes; nothing without it.

        Raises:
            UserError: it has no lesion to take.
        """
        if self.copy_paste is not None:
            self.copy_paste.attach(dataset)

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
        pixels, geometry = self._crop(record)
        boxes, classes = _truth_in(record, geometry)
        if self.copy_paste is not None:
            pixels, boxes, classes = self.copy_paste(record, pixels, boxes, classes, self._donor)
        augmented = MammogramInput(
            pixels,
            boxes=boxes,
            classes=classes,
            pixel_spacing=spacing_of(record),
            min_visibility=self.min_visibility,
        )
        self.augmentations(augmented)
        mapped = {key: value for key, value in record.items() if key != "annotations"}
        grey = torch.from_numpy(np.ascontiguousarray(augmented.image, dtype=np.float32))
        mapped["image"] = grey.expand(3, -1, -1).contiguous()
        mapped["height"], mapped["width"] = geometry.size
        mapped["geometry"] = geometry
        if self.is_train:
            mapped["instances"] = _instances(augmented)
        else:
            mapped["boxes_cut_by_crop"] = _report_cut_boxes(record, geometry)
        return mapped

    def nominal_size(self, record: Mapping[str, Any]) -> tuple[int, int]:
        """(height, width) that the network's image of a record has, about; nothing is read.

        Each random range counts by its middle. The crop is the cache's, or that of the record's
        ``breast_box``; without both it is the whole image, and the size an upper bound.

        Raises:
            UserError: the record has no ``height`` and ``width``, or a bad ``pixel_spacing``.
        """
        height, width = self._nominal_crop(record)
        spacing = spacing_of(record)
        for step in self.augmentations.augs:
            if not hasattr(step, "nominal_size"):
                continue
            new_height, new_width = step.nominal_size(height, width, spacing)
            if spacing is not None and isinstance(step, Resize):
                spacing = (spacing[0] * height / new_height, spacing[1] * width / new_width)
            height, width = new_height, new_width
        return height, width

    def _nominal_crop(self, record: Mapping[str, Any]) -> tuple[int, int]:
        boxes = ground_truth(record)[0] if self.is_train else None
        entry = self._entry(record)
        geometry = entry and entry.geometry(self.preprocessing, record, boxes)
        if geometry:
            return geometry.size
        size = (record.get("height"), record.get("width"))
        if None in size:
            raise UserError(
                f"image {record['file_name']!r} has no height and width in its record: its size "
                "in the network cannot be told, so prepare the dataset again"
            )
        if not self.preprocessing.crop_breast or record.get("breast_box") is None:
            return size
        return self.preprocessing.geometry_from(size, None, record, boxes).size

    def _donor(self, record: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels, boxes and classes of another record, in its crop."""
        pixels, geometry = self._crop(record)
        return pixels, *_truth_in(record, geometry)

    def _crop(self, record: Mapping[str, Any]) -> tuple[np.ndarray, Geometry]:
        """Pixels (H, W) float32 of the crop, turned to its side, and where it lies."""
        key = (*key_of(record), record.get("image_id"))
        found = self._cache.get(key)
        if found is None:
            found = self._read(record, ground_truth(record)[0] if self.is_train else None)
            self._cache.put(key, *found)
        return found

    def _read(
        self, record: Mapping[str, Any], boxes: np.ndarray | None
    ) -> tuple[np.ndarray, Geometry]:
        if self._disk is not None:
            pixels, geometry = self._disk.crop(record, boxes)
            _check_size(record, geometry.original_size)
            entry = self._entry(record)
            stored = entry.region if entry else None
            self._report_side(record, BreastRegion(mask=None, **stored) if stored else None)
            return pixels, geometry
        pixels = self.preprocessing.read(record["file_name"], record.get("frame"))
        _check_size(record, pixels.shape)
        region = find_breast(pixels) if self.preprocessing.needs_region(record) else None
        self._report_side(record, region)
        geometry = self.preprocessing.geometry_from(pixels.shape, region, record, boxes)
        return geometry.apply_image(pixels), geometry

    def _entry(self, record: Mapping[str, Any]) -> Entry | None:
        return None if self._disk is None else self._disk.entry(record)

    def _report_side(self, record: Mapping[str, Any], region: BreastRegion | None) -> None:
        """Tell, once for each image, that its header names another side than its pixels show."""
        if region is None and record.get("chest_wall"):  # stored when the dataset was prepared
            region = BreastRegion(None, (0, 0, 0, 0), record["chest_wall"], 0.0, (0, 0, 0, 0))
        conflict = laterality_conflict(record, region) if region else None
        if conflict and key_of(record) not in self._conflicts:
            self._conflicts.add(key_of(record))
            logger.warning(
                "%s: %s (%d so far)", record["file_name"], conflict, self.num_laterality_conflicts
            )


def _check_augmentations(augmentations: Any) -> None:
    is_list = isinstance(augmentations, Sequence) and not isinstance(augmentations, str)
    wrong = [augmentations]
    if is_list:
        wrong = [one for one in augmentations if not isinstance(one, (Augmentation, Transform))]
    if wrong:
        raise UserError(
            f"augmentations holds {wrong[0]!r}; it is a list of nodes such as "
            "{_target_: detrex_mammo.data.augmentation.RandomIntensity, prob: 0.5}, or one of the "
            "lists of configs/common/data/augmentation.py, taken in a config file"
        )


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


def _truth_in(record: Mapping[str, Any], geometry: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """:func:`ground_truth` in the crop, clipped to it."""
    boxes, classes = ground_truth(record)
    height, width = geometry.size
    return np.clip(geometry.apply_boxes(boxes), 0, (width, height, width, height)), classes


def _report_cut_boxes(record: Mapping[str, Any], geometry: Geometry) -> int:
    boxes, _ = ground_truth(record)
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


def _instances(augmented: MammogramInput) -> Instances:
    height, width = augmented.image.shape[:2]
    boxes = torch.as_tensor(np.asarray(augmented.boxes), dtype=torch.float32).reshape(-1, 4)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(boxes)
    instances.gt_boxes.clip((height, width))
    instances.gt_classes = torch.as_tensor(augmented.classes)
    return instances[instances.gt_boxes.nonempty(MIN_SIDE)]
