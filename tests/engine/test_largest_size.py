# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Largest sizes by hand, and above what the real augmentations make."""

import numpy as np
import pytest
from detectron2.data.transforms import AugInput, AugmentationList
from omegaconf import OmegaConf

from detrex_mammo.config import get_config, instantiate
from detrex_mammo.engine.largest_size import largest_sizes

LISTS = get_config("configs/common/data/augmentation.py").lists


def node(*steps: dict):
    return OmegaConf.create({"augmentations": list(steps)})


FIT = {"_target_": "x.ResizeToFit", "height": 100, "width": 60}
EDGE = {"_target_": "x.ResizeShortEdge", "short_edges": [40, 50], "max_size": None}
CROP = {"_target_": "RandomCrop", "crop_type": "absolute_range", "crop_size": [20, 30]}


@pytest.mark.parametrize(
    ("steps", "originals", "expected"),
    [
        ([FIT], [], [(100, 60)]),
        ([{**FIT, "scale_range": [0.5, 1.5], "aspect_jitter": 0.1}], [], [(165, 99)]),
        ([{**EDGE, "max_size": 70}], [], [(50, 70), (70, 50)]),
        ([EDGE], [(10, 20), (40, 20)], [(50, 100), (100, 50)]),
        ([EDGE], [], None),
        ([EDGE, CROP], [], [(30, 30)]),
        ([EDGE, CROP, {**EDGE, "max_size": 70}], [], [(50, 70), (70, 50)]),
        ([FIT, {"_target_": "RandomScale", "scale": [0.5, 2.0]}], [], [(200, 120)]),
        ([FIT, {"_target_": "LesionTile", "height": 50, "width": 80}], [], [(50, 60)]),
        ([{"_target_": "Resize", "shape": [30, 20]}, {"_target_": "RandomFlip"}], [], [(30, 20)]),
        ([FIT, {**CROP, "crop_type": "relative"}], [], [(100, 60)]),
        ([], [(10, 20), (10, 20)], [(10, 20)]),
        ([], [], None),
    ],
)
def test_by_hand(steps, originals, expected) -> None:
    found = largest_sizes(node(*steps), originals)
    if expected is None:
        assert found is None
    else:
        np.testing.assert_allclose(found, expected)


def test_each_branch_counts() -> None:
    branches = OmegaConf.create({"branches": [[FIT], [{**EDGE, "max_size": 70}]]})
    assert largest_sizes(branches, []) == [(100, 60), (50, 70), (70, 50)]


@pytest.mark.parametrize("name", ["mammography_basic", "mammography_strong", "mammomix"])
def test_no_shipped_list_makes_a_larger_one(name: str) -> None:
    """60 random images of each list; the largest comes close to what was told."""
    found = largest_sizes(OmegaConf.create({"augmentations": LISTS[name]}), [(1500, 1100)])
    height, width = (max(side) for side in zip(*found, strict=True))
    augment = AugmentationList(list(instantiate(LISTS[name])))
    rng, made = np.random.default_rng(0), []
    np.random.seed(0)
    for _ in range(6):
        pixels = rng.uniform(0, 255, (int(rng.integers(100, 300)), 150)).astype(np.float32)
        sample = AugInput(pixels, boxes=np.zeros((0, 4)))
        augment(sample)
        made.append(sample.image.shape)
    assert all(h <= round(height) and w <= round(width) for h, w in made)
    assert max(h / height for h, _ in made) > 0.7
