# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Header and wholeness of each kind of file; damaged ones get one line each."""

from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.convert.headers import BadImage, add_file, read_header
from detrex_mammo.data.image_io import read_picture
from detrex_mammo.errors import UserError
from tests.data.convert.trees import (
    images_of,
    reported,
    write_broken_dicoms,
    write_dicom,
    write_picture,
)


def test_dicom_header_without_its_pixels(tmp_path):
    path = tmp_path / "a.dcm"
    write_dicom(path, (40, 30), bits=14, PatientID="x1", ImageLaterality="R", ViewPosition="CC")
    header = read_header(path)
    assert (header.height, header.width, header.frames) == (40, 30, 1)
    assert header.record["patient_id"] == "x1"
    assert header.record["laterality"] == "R" and header.record["view"] == "CC"
    assert header.record["bits_stored"] == 14


def test_native_pixels_of_big_endian(tmp_path):
    whole = Path(get_testdata_file("MR_small_bigendian.dcm", download=False)).read_bytes()
    (tmp_path / "a.dcm").write_bytes(whole)
    assert read_header(tmp_path / "a.dcm").height == 64
    (tmp_path / "a.dcm").write_bytes(whole[:-200])
    with pytest.raises(BadImage, match="cut off"):
        read_header(tmp_path / "a.dcm")


def test_compressed_pixels_are_whole_only_with_their_end(tmp_path):
    path = tmp_path / "a.dcm"
    write_dicom(path, np.arange(1200, dtype=np.uint16).reshape(40, 30))
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)
    assert read_header(path).height == 40
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadImage, match="cut off"):
        read_header(path)


@pytest.mark.parametrize("wrong", [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless])
def test_compressed_pixels_of_another_syntax(tmp_path, wrong):
    path = tmp_path / "a.dcm"
    write_dicom(path, np.arange(1200, dtype=np.uint16).reshape(40, 30))
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.file_meta.TransferSyntaxUID = wrong
    dataset.save_as(path)
    with pytest.raises(BadImage, match="transfer syntax does not fit"):
        read_header(path)


def test_each_broken_dicom_is_one_line_and_the_rest_is_kept(tmp_path):
    expected = write_broken_dicoms(tmp_path)
    write_dicom(tmp_path / "good.dcm", (40, 30))
    dataset = Dataset("x")
    for name in ["missing.dcm", *expected, "good.dcm"]:
        add_file(dataset, tmp_path, name)
    assert list(images_of(dataset)) == ["good.dcm"]
    examples = {e: reason for (_, reason), files in dataset.report.examples.items() for e in files}
    assert examples == {**expected, "missing.dcm": "images: file is missing"}
    assert sum(reported(dataset, "dropped").values()) == len(expected) + 1
    assert add_file(dataset, tmp_path, "processing.dcm", allow_for_processing=True)


def test_colour_and_volumes_are_no_mammograms(tmp_path):
    write_dicom(tmp_path / "colour.dcm", (40, 30), PhotometricInterpretation="RGB")
    write_dicom(tmp_path / "volume.dcm", np.zeros((3, 40, 30), np.uint16))
    assert read_header(tmp_path / "volume.dcm").frames == 3
    dataset = Dataset("x")
    for name in ("colour.dcm", "volume.dcm"):
        assert add_file(dataset, tmp_path, name) is None
    reasons = ("images: no grey image", "images: volume of several frames")
    assert reported(dataset, "dropped") == dict.fromkeys(reasons, 1)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".pgm", ".bmp"])
@pytest.mark.parametrize("bits", [8, 16])
def test_pictures(tmp_path, suffix, bits):
    if bits == 16 and suffix in (".jpg", ".bmp"):
        pytest.skip("8 bits only")
    path = tmp_path / f"a{suffix}"
    noise = np.random.default_rng(0).integers(0, 2**bits, (40, 30))
    write_picture(path, noise.astype(np.uint8 if bits == 8 else np.uint16))
    header = read_header(path)
    assert (header.height, header.width, header.record) == (40, 30, {"bits_stored": bits})
    path.write_bytes(path.read_bytes()[:-200])
    if suffix == ".bmp" and cv2.imread(str(path)) is not None:
        return  # the decoder fills it up
    with pytest.raises(BadImage):
        read_header(path)


def test_a_side_that_cannot_be_decoded(tmp_path):
    for name in ("a.pgm", "b.pgm"):
        size = b"1100000 20" if name == "a.pgm" else b"20 1100000"
        (tmp_path / name).write_bytes(b"P5\n" + size + b"\n255\n" + b"\7" * 22_000_000)
        with pytest.raises(BadImage):
            read_header(tmp_path / name)
        with pytest.raises(UserError, match="cannot be decoded"):
            read_picture(tmp_path / name)


def test_colour_of_16_bits(tmp_path):
    write_picture(tmp_path / "a.png", np.zeros((40, 30, 3), np.uint16))
    assert read_header(tmp_path / "a.png").record == {"bits_stored": 16}


def test_no_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "a.exe").write_bytes(b"MZ")
    for name, reason in (("a.png", "no picture"), ("a.exe", "neither DICOM")):
        with pytest.raises(BadImage, match=reason):
            read_header(tmp_path / name)
