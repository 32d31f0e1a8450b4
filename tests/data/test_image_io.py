# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Pictures in and out: no bit is lost, no damaged file is a traceback."""

import logging

import cv2
import numpy as np
import pytest

from detrex_mammo.data import image_io
from detrex_mammo.data.image_io import is_dicom, read_image, read_picture, write_png16
from detrex_mammo.errors import UserError

from .dicom_files import save_dicom

RAMP16 = np.arange(65536, dtype=np.uint16).reshape(256, 256)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_16_bit_ramp_keeps_65536_values(tmp_path, suffix):
    path = tmp_path / f"ramp.{suffix}"
    cv2.imwrite(str(path), RAMP16)
    pixels = read_image(path)
    assert pixels.dtype == np.float32 and len(np.unique(pixels)) == 65536
    assert pixels.min() == 0 and pixels.max() == 255
    np.testing.assert_allclose(pixels, RAMP16 / 65535 * 255, rtol=1e-6)


def test_png16_round_trip_is_exact(tmp_path):
    path = tmp_path / "a.png"
    write_png16(path, RAMP16)
    np.testing.assert_array_equal(read_picture(path), RAMP16)
    write_png16(path, read_image(path))  # through float [0, 255] and back
    np.testing.assert_array_equal(read_picture(path), RAMP16)
    write_png16(path, np.array([[-3.0, 300.0]]))
    assert read_picture(path).tolist() == [[0, 65535]]
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_write_to_nowhere_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        write_png16(tmp_path / "none" / "a.png", RAMP16)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "pgm"])
def test_8_bits_stay_what_they_are(tmp_path, suffix):
    stored = np.full((8, 16), 77, np.uint8)
    cv2.imwrite(str(tmp_path / f"a.{suffix}"), stored)
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{suffix}"), stored)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colour_copies_of_grey_and_alpha(tmp_path, dtype):
    grey = np.arange(256, dtype=dtype).reshape(16, 16) * dtype(np.iinfo(dtype).max // 255)
    alpha = np.zeros_like(grey)
    for channels in ([grey] * 3, [grey] * 3 + [alpha]):
        cv2.imwrite(str(tmp_path / "a.png"), np.dstack(channels))
        np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), grey)


def test_windows_of_pictures(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.array([[1000, 2000, 3000, 60000]], np.uint16))
    np.testing.assert_allclose(
        read_image(path, "minmax"), [[0, 1000 / 59000 * 255, 2000 / 59000 * 255, 255]]
    )
    np.testing.assert_allclose(read_image(path, "percentile:0,75"), [[0, 127.5, 255, 255]])
    for window in ("window:0", "lut:0"):
        with pytest.raises(UserError, match="is no DICOM file and has none"):
            read_image(path, window)


def test_12_bits_in_16_are_told_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(image_io, "_has_warned", False)
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.array([[0, 4095]], np.uint16))
    with caplog.at_level(logging.WARNING):
        read_image(path), read_image(path)
    assert len(caplog.records) == 1 and "'minmax'" in caplog.text


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_image(tmp_path / "none.png")
    path = tmp_path / "a.png"
    write_png16(path, RAMP16)
    whole = path.read_bytes()
    for damaged in (b"", b"text", whole[:40]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be decoded"):
            read_image(path)
    cv2.imwrite(str(tmp_path / "a.tif"), np.zeros((4, 4), np.float32))
    with pytest.raises(UserError, match="float32 pixels; use 8 or 16 bits"):
        read_image(tmp_path / "a.tif")


def test_a_half_written_picture_is_not_taken_for_a_whole_one(tmp_path):
    """libpng fills what is missing with black and only warns: half a breast, silently."""
    path = tmp_path / "a.png"
    write_png16(path, np.random.default_rng(0).integers(0, 65536, (256, 256)).astype(np.uint16))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="cut off"):
        read_image(path)


def test_dicom_is_known_by_suffix_or_by_its_preamble(tmp_path):
    path = save_dicom(tmp_path, np.array([[0, 4095]], np.uint16))
    assert is_dicom(path) and read_image(path).tolist() == [[0, 255]]
    bare = tmp_path / "IM0001"
    path.rename(bare)
    assert is_dicom(bare) and read_image(bare, "none").tolist() == [[0, 255]]
    (tmp_path / "text").write_text("x" * 200)
    assert not is_dicom(tmp_path / "text") and not is_dicom(tmp_path / "none")
    raw = save_dicom(
        tmp_path, np.array([[0, 9]], np.uint16), PresentationIntentType="FOR PROCESSING"
    )
    with pytest.raises(UserError, match="FOR PROCESSING"):
        read_image(raw)
    assert read_image(raw, allow_for_processing=True).tolist() == [[0, 255]]
