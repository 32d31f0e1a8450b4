# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""COCO images: branches, boxes, sizes."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data.transforms import CropTransform, HFlipTransform, RandomFlip, ResizeShortestEdge
from detectron2.structures import BoxMode

from detrex_mammo.data.coco_mapper import COCOMapper, ResizeShortEdge
from detrex_mammo.errors import UserError

HEIGHT, WIDTH = 20, 30


@pytest.fixture
def record(tmp_path: Path) -> dict:
    """A picture whose red channel is the column, green the row."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.uint8)
    blue = np.full_like(rows, 200)
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.stack([blue, rows, columns], axis=-1))
    boxes = [[4, 5, 10, 8], [20, 0, 10, 4], [0, 0, 30, 20]]
    return {
        "file_name": str(path),
        "height": HEIGHT,
        "width": WIDTH,
        "image_id": 7,
        "annotations": [
            {
                "bbox": box,
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": index,
                "iscrowd": int(index == 2),
                "segmentation": [[0, 0, 1, 1, 0, 1]],
            }
            for index, box in enumerate(boxes)
        ],
    }


class Always(RandomFlip):
    """An augmentation that is always the given transform."""

    def __init__(self, transform):
        super().__init__()
        self.transform = transform

    def get_transform(self, image):
        return self.transform


def test_training_sample(record: dict) -> None:
    sample = COCOMapper(is_train=True, branches=[[]])(record)
    image = sample["image"]
    assert (image.dtype, tuple(image.shape)) == (torch.float32, (3, HEIGHT, WIDTH))
    assert image[:, 3, 11].tolist() == [11, 3, 200]  # R, G, B
    assert sample["instances"].gt_boxes.tensor.tolist() == [[4, 5, 14, 13], [20, 0, 30, 4]]
    assert sample["instances"].gt_classes.tolist() == [0, 1]  # the crowd is left out
    assert "annotations" not in sample and len(record["annotations"]) == 3
    assert (sample["height"], sample["width"], sample["image_id"]) == (HEIGHT, WIDTH, 7)


def test_flip_and_crop_move_boxes_with_the_picture(record: dict) -> None:
    """Flip: x -> 30 - x. Crop to x 10..28, y 2..18: box 0 is x 16..26, box 1 ends at y 4."""
    branch = [Always(HFlipTransform(WIDTH)), Always(CropTransform(10, 2, 18, 16))]
    sample = COCOMapper(is_train=True, branches=[branch])(record)
    assert sample["instances"].gt_boxes.tensor.tolist() == [[6, 3, 16, 11]]
    assert sample["image"][:2, 0, 0].tolist() == [19, 2]
    assert sample["instances"].image_size == (16, 18)


@pytest.mark.parametrize("annotations", [None, []])
def test_image_without_boxes_has_instances(record: dict, annotations: list | None) -> None:
    record.pop("annotations")
    if annotations is not None:
        record["annotations"] = annotations
    instances = COCOMapper(is_train=True, branches=[[]])(record)["instances"]
    assert tuple(instances.gt_boxes.tensor.shape) == (0, 4)
    assert instances.gt_classes.dtype is torch.int64


def test_evaluation_sample_has_no_truth(record: dict) -> None:
    assert "instances" not in COCOMapper(is_train=False, branches=[[]])(record)


def test_branches_are_drawn_with_equal_chance(record: dict) -> None:
    mapper = COCOMapper(is_train=False, branches=[[], [Always(HFlipTransform(WIDTH))]])
    flipped = [bool(mapper(record)["image"][0, 0, 0] > 0) for _ in range(200)]
    assert 70 < sum(flipped) < 130  # 4 standard deviations


def test_unusable_image_is_one_sentence(record: dict) -> None:
    mapper = COCOMapper(is_train=False, branches=[[]])
    with pytest.raises(UserError, match="cannot be used: Mismatched image shape"):
        mapper({**record, "width": WIDTH + 1})
    with pytest.raises(UserError, match="nowhere.png.* cannot be used"):
        mapper({**record, "file_name": "nowhere.png"})
    Path(record["file_name"]).write_text("no picture")
    with pytest.raises(UserError, match="cannot be used: cannot identify image"):
        mapper(record)


def test_no_branch_is_refused() -> None:
    with pytest.raises(UserError, match="branches"):
        COCOMapper(is_train=True, branches=[])


def size_of(augmentation, height: int, width: int) -> tuple[int, int]:
    image = np.zeros((height, width, 3), dtype=np.uint8)
    return augmentation.get_transform(image).apply_image(image).shape[:2]


def test_nearest_rounding_is_detectron2s() -> None:
    rng = np.random.default_rng(0)
    for height, width in rng.integers(10, 90, (40, 2)):
        ours = ResizeShortEdge(37, max_size=61, rounding="nearest")
        assert size_of(ours, height, width) == size_of(
            ResizeShortestEdge(37, max_size=61), height, width
        )


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1066)),  # 800 * 640 / 480 = 1066.67
        ((640, 480), (1066, 800)),
        ((427, 640), (800, 1199)),  # 1199.06
        ((300, 640), (625, 1333)),  # 1333 * 300 / 640 = 624.8 -> 625; 625 * 640 / 300 = 1333.3
        ((500, 500), (800, 800)),
    ],
)
def test_truncation_is_the_published_one(size: tuple, expected: tuple) -> None:
    assert size_of(ResizeShortEdge(800, 1333, rounding="truncate"), *size) == expected


def test_short_edge_is_drawn_from_all_lengths() -> None:
    augmentation = ResizeShortEdge([20, 30, 40])
    assert {min(size_of(augmentation, 50, 60)) for _ in range(40)} == {20, 30, 40}


def test_unknown_rounding_is_refused() -> None:
    with pytest.raises(UserError, match="'up'"):
        ResizeShortEdge(800, rounding="up")
