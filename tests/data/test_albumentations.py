# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""albumentations' transforms in a mapper's list; without the package, one sentence."""

import sys

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.data.transforms import AugInput

from detrex_mammo.config import instantiate
from detrex_mammo.data.albumentations import Albumentations
from detrex_mammo.data.augmentation_input import MammogramInput
from detrex_mammo.data.image_io import write_png16
from detrex_mammo.data.mapper import MammographyMapper
from detrex_mammo.data.preprocessing import Preprocessing
from detrex_mammo.errors import UserError

FLIP = {"name": "HorizontalFlip", "p": 1.0}
# MammoMix's transforms, by albumentations' own names.
FLOAT_TRANSFORMS = [
    {"name": "ElasticTransform", "alpha": 50, "sigma": 5},
    {"name": "Perspective", "scale": [0.05, 0.1]},
    {"name": "HorizontalFlip"},
    {"name": "Rotate", "limit": 10},
    {"name": "RandomScale", "scale_limit": 0.2},
    {"name": "Affine", "scale": [0.9, 1.1], "translate_percent": 0.1, "rotate": 10, "shear": 5},
    {"name": "RandomBrightnessContrast", "brightness_limit": 0.2, "contrast_limit": 0.2},
    {"name": "GaussNoise", "std_range": [0.05, 0.05]},
    {"name": "GaussianBlur"},
]


@pytest.fixture
def package():
    """The package that the tests of its transforms need."""
    from detrex_mammo.data.albumentations import _import

    try:
        return _import()
    except UserError as error:
        pytest.skip(str(error))


def sample(boxes=((10, 20, 30, 50), (40, 5, 60, 25)), shape=(80, 64)):
    image = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    boxes = np.array(boxes, float).reshape(-1, 4)
    return MammogramInput(image, boxes=boxes, classes=np.arange(len(boxes)) + 5)


def test_without_the_package_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(UserError, match=r"pip install 'detrex_mammo\[albumentations\]'"):
        Albumentations([FLIP])


def test_a_flip_by_hand(package):
    augmented = sample()
    before = augmented.image.copy()
    Albumentations([FLIP])(augmented)
    np.testing.assert_allclose(augmented.image, before[:, ::-1], rtol=1e-6)
    assert augmented.image.dtype == np.float32 and augmented.image.shape == (80, 64)
    np.testing.assert_allclose(augmented.boxes, [[34, 20, 54, 50], [4, 5, 24, 25]], atol=1e-4)
    assert augmented.classes.tolist() == [5, 6]


def test_dropped_boxes_leave_with_their_class(package):
    """The crop to columns 32 to 63 cuts the first box off, and a quarter of the third's width."""
    crop = {"name": "Crop", "x_min": 32, "y_min": 0, "x_max": 64, "y_max": 80, "p": 1.0}
    boxes = [[10, 20, 30, 50], [40, 5, 60, 25], [28, 30, 44, 40]]
    augmented = sample(boxes)
    Albumentations([crop])(augmented)
    np.testing.assert_allclose(augmented.boxes, [[8, 5, 28, 25], [0, 30, 12, 40]], atol=1e-4)
    assert augmented.classes.tolist() == [6, 7]
    for limits, kept in (
        ({"min_visibility": 0.8}, [6]),
        ({"min_area": 130}, [6]),
        ({"min_area": 110, "min_visibility": 0.7}, [6, 7]),
    ):
        augmented = sample(boxes)
        Albumentations([crop], **limits)(augmented)
        assert augmented.classes.tolist() == kept


@pytest.mark.parametrize("spec", FLOAT_TRANSFORMS, ids=lambda s: s["name"])
def test_float_transforms_follow_np_random(package, spec):
    results = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        augmented = sample()
        Albumentations([{**spec, "p": 1.0}])(augmented)
        assert augmented.image.dtype == np.float32 and augmented.image.ndim == 2
        assert 0 <= augmented.image.min() and augmented.image.max() <= 255
        assert len(augmented.boxes) == len(augmented.classes)
        results.append(augmented)
    np.testing.assert_array_equal(results[0].image, results[1].image)
    np.testing.assert_array_equal(results[0].boxes, results[1].boxes)
    if spec["name"] != "HorizontalFlip":
        shapes = {results[0].image.shape, results[2].image.shape}
        assert len(shapes) == 2 or (results[0].image != results[2].image).any()


def test_16_bits_survive(package):
    ramp = np.random.default_rng(0).permutation(65536).reshape(256, 256)
    augmented = sample([], (256, 256))
    augmented.image = (ramp / 257).astype(np.float32)
    Albumentations([FLIP])(augmented)
    assert len(np.unique(augmented.image)) > 60_000
    assert augmented.boxes.shape == (0, 4) and augmented.classes.shape == (0,)


def test_in_the_mapper_from_a_config(package, tmp_path):
    write_png16(tmp_path / "a.png", np.full((80, 64), 90.0))
    record = {
        "file_name": str(tmp_path / "a.png"),
        "annotations": [{"bbox": [10, 20, 20, 30], "category_id": 1}],
    }
    nodes = [
        L(Albumentations)(
            transforms=[
                dict(name="OneOf", transforms=[dict(FLIP)], p=1.0),
                dict(FLOAT_TRANSFORMS[1]),
            ]
        )
    ]
    node = L(MammographyMapper)(
        is_train=True,
        preprocessing=L(Preprocessing)(crop_breast=False, chest_wall=""),
        augmentations=nodes,
    )
    node.augmentations[0].transforms[1].p = 0.0
    mapped = instantiate(node)(record)
    boxes = mapped["instances"].gt_boxes.tensor
    torch.testing.assert_close(boxes, torch.tensor([[34.0, 20, 54, 50]]), rtol=0, atol=1e-4)


def test_plain_inputs_and_ready_objects(package):
    augmented = AugInput(np.ones((8, 6), np.float32), boxes=np.array([[1.0, 2, 3, 4]]))
    done = Albumentations([package.VerticalFlip(p=1.0)])(augmented)
    np.testing.assert_allclose(augmented.boxes, [[1, 4, 3, 6]], atol=1e-5)
    augmented = AugInput(np.ones((8, 6), np.float32))
    Albumentations([FLIP])(augmented)
    assert augmented.boxes is None
    with pytest.raises(TypeError, match="a second time"):
        done.apply_image(augmented.image)
    with pytest.raises(TypeError, match="a second time"):
        done.apply_coords(np.zeros((1, 2)))


@pytest.mark.parametrize(
    "spec,words",
    [
        ({"name": "HorizontalFlap"}, "'HorizontalFlap', which is no transform of albumentations 2"),
        ({"name": "random_utils"}, "'random_utils', which is no transform"),
        ({"p": 1.0}, "it is a dict of 'name' and settings"),
        ("HorizontalFlip", "it is a dict of 'name' and settings"),
        ({"name": "GaussianBlur", "sigmas": 3}, "cannot make 'GaussianBlur': .*sigmas"),
        ({"name": "Rotate", "limit": "far"}, "cannot make 'Rotate'"),
        ({"name": "HorizontalFlip", "p": 2}, "cannot make 'HorizontalFlip'"),
    ],
)
def test_impossible_transforms(package, spec, words):
    with pytest.raises(UserError, match=words) as caught:
        Albumentations([spec])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Equalize", "CLAHE", "Posterize"])
def test_a_transform_of_8_bits_is_refused_by_name(package, name):
    for spec in ({"name": name}, {"name": "OneOf", "transforms": [FLIP, {"name": name}]}):
        with pytest.raises(UserError, match=f"albumentations' {name} rounds a mammogram to 8 bits"):
            Albumentations([spec])


def test_a_transform_that_fails_is_named(package):
    crop = {"name": "RandomCrop", "height": 400, "width": 400, "p": 1.0}
    with pytest.raises(UserError, match="albumentations' RandomCrop cannot transform a float32"):
        Albumentations([crop])(sample())
