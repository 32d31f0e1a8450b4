# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""From the original image to the network and back: boxes to half a pixel, 16 bits of grey."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detrex_mammo.data.augmentation import RandomIntensity, ResizeToFit
from detrex_mammo.data.augmentation_resize import ResizeShortEdge, ResizeToSpacing
from detrex_mammo.data.image_io import write_png16
from detrex_mammo.data.mapper import MammographyMapper
from detrex_mammo.data.preprocessing import Preprocessing

from .test_mapper import annotation


def there_and_back(record, spec, augmentations):
    """Boxes (N, 4) xyxy of the original image, from those of the network's."""
    mapped = MammographyMapper(True, augmentations, spec, min_visibility=0.0)(record)
    boxes = mapped["instances"].gt_boxes.tensor.double()
    height, width = mapped["image"].shape[1:]
    scale = torch.tensor([mapped["width"] / width, mapped["height"] / height]).repeat(2)
    return mapped["geometry"].inverse_boxes(boxes * scale).numpy()


@pytest.mark.parametrize("chest_wall", ["left", "right"])
@pytest.mark.parametrize("crop", [False, True])
def test_boxes_return_to_half_an_original_pixel(tmp_path, chest_wall, crop):
    """Crop, flip and a resize of a 3518 x 2800 frame to 1333 x 800, there and back."""
    write_png16(tmp_path / "a.png", np.zeros((3518, 2800)))
    random = np.random.default_rng(1)
    corners = random.uniform((800, 300), (2500, 3000), (50, 2))
    sizes = random.uniform(3, 250, (50, 2))
    record = {
        "file_name": str(tmp_path / "a.png"),
        "breast_box": [700, 200, 2800, 3400],
        "chest_wall": "right",
        "annotations": [annotation([*c, *s]) for c, s in zip(corners, sizes)],
    }
    spec = Preprocessing(crop_breast=crop, chest_wall=chest_wall)
    original = there_and_back(record, spec, [ResizeToFit(1333, 800)])
    np.testing.assert_allclose(original, np.hstack([corners, corners + sizes]), rtol=0, atol=0.5)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_boxes_of_any_image_return_to_half_an_original_pixel(data):
    """Crop, flip and resize, there and back, for random sizes; boxes of a network pixel or more."""
    height, width = data.draw(st.integers(40, 900)), data.draw(st.integers(40, 900))
    side = st.floats(0.15, 0.5)
    boxes = []
    for _ in range(data.draw(st.integers(1, 4))):
        w, h = data.draw(side) * width, data.draw(side) * height
        x, y = data.draw(st.floats(0, width - w)), data.draw(st.floats(0, height - h))
        boxes.append([x, y, w, h])
    x0, y0 = data.draw(st.integers(0, width - 20)), data.draw(st.integers(0, height - 20))
    x1, y1 = data.draw(st.integers(x0 + 10, width)), data.draw(st.integers(y0 + 10, height))
    resize = data.draw(
        st.sampled_from(
            [
                ResizeToFit(700, 500),
                ResizeToFit(300, 400, scale_range=(0.5, 2.0), aspect_jitter=0.3),
                ResizeShortEdge([200, 400], 800),
                ResizeToSpacing(0.2, 500, 500),
            ]
        )
    )
    spec = Preprocessing(
        crop_breast=data.draw(st.booleans()), chest_wall=data.draw(st.sampled_from(["left", ""]))
    )
    with tempfile.TemporaryDirectory() as folder:
        write_png16(Path(folder) / "a.png", np.zeros((height, width)))
        record = {
            "file_name": str(Path(folder) / "a.png"),
            "breast_box": [x0, y0, x1, y1],
            "chest_wall": data.draw(st.sampled_from(["left", "right"])),
            "pixel_spacing": [0.1, 0.07],
            "annotations": [annotation(box) for box in boxes],
        }
        original = there_and_back(record, spec, [resize])
    expected = np.array(boxes)
    expected[:, 2:] += expected[:, :2]
    np.testing.assert_allclose(original, expected, rtol=0, atol=0.5)


def test_16_bits_survive_intensity_and_spacing(tmp_path):
    """All 65536 values of a ramp, at the network: exposure is changed in float."""
    ramp = np.random.default_rng(0).permutation(65536).astype(np.uint16).reshape(256, 256)
    write_png16(tmp_path / "a.png", ramp)
    record = {"file_name": str(tmp_path / "a.png"), "pixel_spacing": [0.1, 0.1]}
    spec = Preprocessing(crop_breast=False, chest_wall="")
    steps = [
        ResizeToSpacing(0.1, 900, 900),
        RandomIntensity(contrast=(0.8, 0.9), offset=(1, 5), prob=1.0),
    ]
    image = MammographyMapper(True, steps, spec)(record)["image"]
    assert image.shape == (3, 256, 256) and len(image.unique()) > 60_000
