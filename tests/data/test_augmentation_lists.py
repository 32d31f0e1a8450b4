# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The named lists of configs/common/data/augmentation.py: each can be taken, and does its work."""

import numpy as np
import pytest
from detectron2.data.transforms import Augmentation
from omegaconf import OmegaConf

from detrex_mammo.config import get_config, instantiate
from detrex_mammo.data.image_io import write_png16
from detrex_mammo.data.mapper import MammographyMapper
from detrex_mammo.data.preprocessing import Preprocessing

CONFIG = """
from {up}configs.common.data.augmentation import (
    coco_style, large_scale_jitter, mammography_basic, mammography_strong, mammomix, tile
)
lists = dict(
    coco_style=coco_style,
    large_scale_jitter=large_scale_jitter(96, 64),
    mammography_basic=mammography_basic,
    mammography_strong=mammography_strong,
    mammomix=mammomix,
    tile=tile(50, 40),
)
"""
# Largest network image (height, width) of a breast of 160 x 100 pixels.
LARGEST = {
    "coco_style": (1333, 1333),
    "large_scale_jitter": (96, 64),
    "mammography_basic": (1333, 800),
    "mammography_strong": (1333 * 1.05, 800 * 1.05),
    "mammomix": (800, 800),
    "tile": (50, 40),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """As a run's config takes them: relatively, from the shipped folder."""
    from detrex_mammo.config import shipped_root

    folder = tmp_path_factory.mktemp("config")
    # A leading dot for each folder up to the root.
    up = "." * len(folder.parts) + ".".join(shipped_root().parts[1:]) + "."
    (folder / "own.py").write_text(CONFIG.format(up=up), encoding="utf-8")
    return get_config(folder / "own.py")


@pytest.fixture
def record(tmp_path):
    """A breast with a round and a long bright lesion."""
    ys, xs = np.indices((160, 100)) + 0.5
    pixels = np.where(np.hypot((ys - 80) / 75, xs / 90) < 1, 60.0, 0)
    pixels[np.hypot(xs - 30, ys - 50) < 10] = 200
    pixels[np.hypot((xs - 40) / 14, (ys - 110) / 6) < 1] = 200
    write_png16(tmp_path / "a.png", pixels)
    boxes = [[20, 40, 20, 20], [26, 104, 28, 12]]
    return {
        "file_name": str(tmp_path / "a.png"),
        "height": 160,
        "width": 100,
        "annotations": [{"bbox": box, "category_id": i} for i, box in enumerate(boxes)],
    }


@pytest.mark.parametrize("name", sorted(LARGEST))
def test_each_list_makes_images_whose_boxes_hold_their_lesions(config, record, name):
    spec = Preprocessing(crop_breast=False, chest_wall="")
    mapper = MammographyMapper(True, instantiate(config.lists[name]), spec)
    np.random.seed(0)
    results = [mapper(record) for _ in range(8)]
    for mapped in results:
        size = np.array(mapped["image"].shape[1:])
        assert (size <= np.ceil(LARGEST[name])).all()
        assert 0 <= mapped["image"].min() and mapped["image"].max() <= 255.001  # interpolated
        for box in mapped["instances"].gt_boxes.tensor:
            x0, y0, x1, y1 = (int(v) for v in box.round())
            if x1 - x0 < 4 or y1 - y0 < 4:
                continue
            middle = mapped["image"][0, (y0 + y1) // 2, (x0 + x1) // 2]
            assert middle > 1.3 * mapped["image"].mean()
    assert any(len(mapped["instances"]) for mapped in results)
    images = [tuple(m["image"].shape) + (round(float(m["image"].mean()), 3),) for m in results]
    assert len(set(images)) > 4


def test_basic_is_that_of_the_mammography_loader(config):
    theirs = get_config("configs/common/data/mammography.py").dataloader.train.mapper
    assert OmegaConf.to_container(theirs.augmentations, resolve=False) == OmegaConf.to_container(
        OmegaConf.create(config.lists.mammography_basic, flags={"allow_objects": True})
    )


@pytest.mark.parametrize("name", ["coco_style", "mammography_basic", "mammomix"])
def test_a_list_is_found_from_a_config_that_lies_elsewhere(config, name):
    found = get_config("configs/common/data/augmentation.py").lists[name]
    assert found == config.lists[name]
    assert isinstance(instantiate(found)[0], Augmentation)


def test_mammomix_has_each_published_transform_once(config):
    names = [str(node._target_).rpartition(".")[2] for node in config.lists.mammomix]
    assert [name.rstrip("'>") for name in names] == [
        "RandomElastic",
        "RandomPerspective",
        "RandomFlip",
        "RandomAffine",
        "RandomScale",
        "RandomAffine",
        "RandomIntensity",
        "RandomNoise",
        "RandomBlur",
        "ResizeToFit",
    ]
    assert all(node.prob == 0.5 for node in config.lists.mammomix[:-1])
