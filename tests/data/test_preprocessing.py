# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The chain from file to crop: its settings, what it keeps, and what it refuses."""

import json

import cv2
import numpy as np
import pytest

from detrex_mammo.data.breast import find_breast
from detrex_mammo.data.geometry import Geometry
from detrex_mammo.data.preprocessing import Preprocessing, laterality_conflict
from detrex_mammo.errors import UserError

from .dicom_files import save_dicom
from .test_breast import phantom

# With its box stored, an image needs no search: 100 wide, 50 high at (20, 30).
STORED = {"breast_box": [20, 30, 120, 80], "chest_wall": "right"}
BLANK = np.zeros((200, 150), np.float32)


def test_dict_round_trip_and_unknown_keys():
    spec = Preprocessing(window="percentile:1,99", margin=0.1, chest_wall="right")
    assert Preprocessing.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert Preprocessing.from_dict({}) == Preprocessing()
    with pytest.raises(UserError, match=r"unknown keys \['marign'\]; known are .*'margin'"):
        Preprocessing.from_dict({"marign": 0.1})


@pytest.mark.parametrize(
    "setting", [{"window": "bright"}, {"chest_wall": "up"}, {"margin": -0.1}, {"margin": 2}]
)
def test_impossible_settings_are_refused(setting):
    ((name, value),) = setting.items()
    with pytest.raises(UserError, match=f"{name} is {value!r}"):
        Preprocessing(**setting)


def test_a_stored_box_with_its_margin_and_side():
    """A tenth of the longer side of 100 is 10 on each side; the right one meets no border."""
    geometry = Preprocessing(margin=0.1).geometry_for(BLANK, STORED)
    assert geometry == Geometry((200, 150), (10, 20, 130, 90), flip=True)
    geometry = Preprocessing(margin=0.4, chest_wall="right").geometry_for(BLANK, STORED)
    assert geometry == Geometry((200, 150), (0, 0, 150, 120), flip=False)
    geometry = Preprocessing(margin=0, chest_wall="").geometry_for(BLANK, STORED)
    assert geometry == Geometry((200, 150), (20, 30, 120, 80), flip=False)


def test_no_crop_and_no_flip_is_the_identity():
    spec = Preprocessing(crop_breast=False, chest_wall="")
    assert spec.geometry_for(BLANK, STORED) == Geometry.identity(200, 150)
    spec = Preprocessing(crop_breast=False)
    assert spec.geometry_for(BLANK, STORED) == Geometry((200, 150), (0, 0, 150, 200), True)


def test_ground_truth_is_never_cut():
    boxes = np.array([[2.5, 40.0, 30.0, 50.0], [100.0, 60.0, 140.2, 199.0]])
    geometry = Preprocessing(margin=0).geometry_for(BLANK, STORED, boxes)
    assert geometry.crop == (2, 30, 141, 199)
    inside = geometry.apply_boxes(boxes)
    height, width = geometry.size
    assert (inside >= 0).all() and (inside <= (width, height, width, height)).all()
    assert Preprocessing(margin=0).geometry_for(BLANK, STORED, boxes[:0]).crop == (20, 30, 120, 80)


@pytest.mark.parametrize("side", ["left", "right"])
def test_pixels_are_trusted_more_than_the_header(side):
    pixels, mask = phantom(side=side, border=24)
    wrong = {"laterality": "R" if side == "left" else "L"}
    geometry = Preprocessing().geometry_for(pixels, wrong)
    assert geometry.flip == (side == "right")
    cropped = geometry.apply_image(pixels)
    assert cropped[:, :50].mean() > 2 * cropped[:, -50:].mean()
    kept = geometry.apply_image(mask).sum() / mask.sum()
    assert kept > 0.99
    assert cropped.size < 0.6 * pixels.size


def test_the_margin_does_not_bring_the_film_border_back():
    pixels, _ = phantom(border=24)
    x0, y0, x1, y1 = Preprocessing(margin=0.3).geometry_for(pixels).crop
    assert y0 >= 24 and y1 <= 1200 - 24 and x1 <= 800


def test_the_header_decides_where_pixels_show_nothing():
    for laterality, flip in (("L", False), ("R", True), (None, False)):
        geometry = Preprocessing().geometry_for(BLANK, {"laterality": laterality})
        assert geometry == Geometry((200, 150), (0, 0, 150, 200), flip)


def test_read_follows_the_settings(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.array([[100, 200]], np.uint8))
    assert Preprocessing().read(tmp_path / "a.png").tolist() == [[100, 200]]
    assert Preprocessing(window="minmax").read(tmp_path / "a.png").tolist() == [[0, 255]]
    raw = save_dicom(
        tmp_path, np.array([[0, 9]], np.uint16), PresentationIntentType="FOR PROCESSING"
    )
    with pytest.raises(UserError, match="FOR PROCESSING"):
        Preprocessing().read(raw)
    assert Preprocessing(allow_for_processing=True).read(raw).tolist() == [[0, 255]]


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2", None])
def test_the_tissue_window_sees_the_breast_alone(tmp_path, photometric):
    """Label and border are brighter than all tissue; percentiles of the breast leave them out."""
    pixels, mask = phantom(border=24)
    stored = (pixels * 16).astype(np.uint16)
    if photometric is None:
        cv2.imwrite(str(tmp_path / "a.png"), stored)
        path = tmp_path / "a.png"
    else:
        inverted = photometric == "MONOCHROME1"
        shown = 4095 - stored if inverted else stored
        path = save_dicom(tmp_path, shown, PhotometricInterpretation=photometric)
    low, high = np.percentile(stored[mask], (5, 95), method="inverted_cdf").astype(float)
    expected = np.clip((stored - low) / (high - low), 0, 1) * 255
    read = Preprocessing(window="tissue:5,95").read(path)
    # The segmentation differs from the true mask in a few per cent of dark skin.
    assert np.abs(read - expected)[mask].mean() < 6
    assert read[:24].min() > 254  # the border is beyond the window
    assert np.abs(Preprocessing(window="percentile:5,95").read(path) - expected)[mask].mean() > 20
    with pytest.raises(UserError, match="window is 'tissue'"):
        Preprocessing(window="tissue")


def test_laterality_against_the_pixels():
    left, right = (find_breast(phantom(side=side)[0]) for side in ("left", "right"))
    for record, region in (
        ({"laterality": "L"}, left),
        ({"laterality": "R"}, right),
        ({"laterality": None}, right),
        ({}, left),
        ({"laterality": "R"}, find_breast(BLANK)),
    ):
        assert laterality_conflict(record, region) is None
    assert "'R', but the chest wall lies on the left" in laterality_conflict(
        {"laterality": "R"}, left
    )


def test_frames_through_the_record(tmp_path):
    frames = np.stack([np.full((4, 4), value, np.uint16) for value in (0, 4095)])
    path = save_dicom(tmp_path, frames)
    assert Preprocessing(window="none").read(path, 1).max() == 255
    assert Preprocessing(window="none").read(path, 0).max() == 0
    cv2.imwrite(str(tmp_path / "a.png"), frames[0])
    assert Preprocessing().read(tmp_path / "a.png", 0).max() == 0
    with pytest.raises(UserError, match="frame is 1, but .*a.png' is a picture"):
        Preprocessing().read(tmp_path / "a.png", 1)
