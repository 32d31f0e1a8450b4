# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A header with any single tag damaged gives valid pixels or one sentence, never another error.

Each tag is taken away, emptied, doubled, turned into another type, and set to values that
contradict the rest; the files are put together past pydicom's own checks.
"""

import io
import re
import struct
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.datadict import dictionary_VR
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element, write_file_meta_info
from pydicom.tag import Tag
from pydicom.uid import JPEG2000Lossless, RLELossless

from detrex_mammo.data.dicom import read_dicom
from detrex_mammo.errors import UserError

from .dicom_files import make_dicom

STORED = np.arange(4096, dtype=np.uint16).reshape(64, 64)
TAGS = [
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PixelData",
    "PresentationIntentType", "PatientID", "StudyInstanceUID", "ImageLaterality", "Laterality",
    "ViewPosition", "ViewCodeSequence", "PatientOrientation", "SeriesDescription", "PixelSpacing",
    "ImagerPixelSpacing", "Manufacturer", "Modality", "PlanarConfiguration",
]  # fmt: skip
# (VR, value as bytes): with these a tag is of another type, has several values, or is nonsense.
RAW = {
    "empty": ("", b""),
    "zero": ("US", b"\0\0"),
    "one": ("US", b"\1\0"),
    "seven": ("US", b"\7\0"),
    "large": ("US", b"\xff\xff"),
    "negative": ("SS", b"\xff\xff"),
    "two": ("US", b"\x0c\0\x0c\0"),
    "odd": ("US", b"\1\0\1"),
    "text": ("LO", b"no number "),
    "texts": ("LO", b"a\\\\b "),
    "decimal": ("DS", b"12.5"),
    "nan": ("DS", b"nan "),
    "decimals": ("DS", b"1e400\\-1 "),
    "zeros": ("DS", b"0\\0 "),
    "count": ("IS", b"-3"),
    "bytes": ("UN", b"\1\2\3\4"),
    "latin": ("LO", b"\xff\xfe\xfd\xfc"),
    "double": ("FD", b"\0\0\0\0\0\0\xf8\x7f"),
    "huge": ("UL", b"\xff\xff\xff\xff"),
}


def dataset_with_everything(photometric="MONOCHROME2"):
    dataset = make_dicom(
        STORED,
        PhotometricInterpretation=photometric,
        PixelPaddingValue=0,
        PixelPaddingRangeLimit=5,
        RescaleSlope="1",
        RescaleIntercept="0",
        WindowCenter=2000,
        WindowWidth=1000,
        VOILUTFunction="LINEAR",
        PixelSpacing=[0.1, 0.1],
        PatientID="1",
    )
    return dataset


def file_bytes(dataset, name=None, vr="", value=b""):
    """The file, with one element put in as it is, which pydicom would refuse to write."""
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    whole = buffer.getvalue()
    elements = {}
    for element in dataset:
        one = DicomBytesIO()
        one.is_little_endian, one.is_implicit_VR = True, False
        write_data_element(one, element)
        elements[element.tag] = one.getvalue()
    if name is not None:
        tag = Tag(name)
        vr = vr or dictionary_VR(tag).split(" or ")[0]
        long = vr in ("OB", "OW", "SQ", "UN")
        length = struct.pack("<2xI" if long else "<H", len(value))
        elements[tag] = struct.pack("<HH", tag.group, tag.elem) + vr.encode() + length + value
    end = 144 + struct.unpack("<I", whole[140:144])[0]
    return whole[:end] + b"".join(elements[tag] for tag in sorted(elements))


def outcome(path, data, window="auto"):
    """What read_dicom gives: "pixels", or its sentence."""
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = read_dicom(path, window)
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error), error
            return str(error)
    assert image.pixels.dtype == np.float32 and image.pixels.ndim == 2
    assert 0 <= image.pixels.min() and image.pixels.max() <= 255  # also False for NaN
    return "pixels"


def test_the_whole_file_is_read(tmp_path):
    dataset = dataset_with_everything()
    assert outcome(tmp_path / "a.dcm", file_bytes(dataset)) == "pixels"
    assert outcome(tmp_path / "a.dcm", file_bytes(dataset, "BitsStored", "US", b"\x0c\0")) == (
        "pixels"
    )


@pytest.mark.parametrize("name", TAGS)
def test_one_damaged_tag(tmp_path, name):
    path, dataset = tmp_path / "a.dcm", dataset_with_everything()
    for vr, value in RAW.values():
        data = file_bytes(dataset, name, vr, value)
        for window in ("auto", "minmax", "none", "tissue:1,99"):
            result = outcome(path, data, window)
            assert result == "pixels" or str(path) in result
    if name in dataset:
        del dataset[name]
        result = outcome(path, file_bytes(dataset))
        assert result == "pixels" or str(path) in result


@pytest.mark.parametrize(
    "name,vr,value,message",
    [
        ("NumberOfFrames", "IS", b"0 ", "NumberOfFrames is 0, but it must be 1 or more"),
        ("NumberOfFrames", "IS", b"xy", "NumberOfFrames is 'xy', but it must be one whole"),
        ("NumberOfFrames", "IS", b"1\\2 ", r"NumberOfFrames is \[1, 2\], but it must be one"),
        ("Rows", "US", b"", "Rows is missing, but it must be one whole number: repair its header"),
        ("Rows", "US", b"\0\0", "Rows is 0, but it must be 1 or more"),
        ("Columns", "US", b"\x40\0\x40\0", r"Columns is \[64, 64\], but it must be one whole"),
        ("BitsStored", "US", b"\x11\0", "16 bits allocated and 17 stored; a mammogram has 8 or 16"),
        ("BitsStored", "US", b"\0\0", "16 bits allocated and 0 stored"),
        ("BitsStored", "US", b"\x08\0", r"values from 6 to 4095, but BitsStored is 8"),
        ("HighBit", "US", b"\5\0", "HighBit is 5, but it must be 11 to 15 with 12 of 16"),
        ("HighBit", "US", b"\x10\0", "HighBit is 16, but it must be 11 to 15 with 12 of 16"),
        ("PixelRepresentation", "US", b"\2\0", "PixelRepresentation is 2, but it must be 0"),
        ("PixelPaddingValue", "US", b"\1\0\2\0", r"PixelPaddingValue is \[1, 2\], but it must"),
        ("PixelData", "OW", b"", "pixels of .* cannot be decoded"),
        ("PixelData", "OW", b"\0" * 8190, "pixels of .* cannot be decoded"),
        ("SamplesPerPixel", "US", b"\3\0", "MONOCHROME2 with 3 samples a pixel; a mammogram is"),
        ("WindowWidth", "DS", b"nan ", "grey value tables of .* are damaged"),
        ("RescaleSlope", "DS", b"a ", "grey value tables of .* are damaged"),
    ],
)  # fmt: skip
def test_what_the_sentence_says(tmp_path, name, vr, value, message):
    sentence = outcome(tmp_path / "a.dcm", file_bytes(dataset_with_everything(), name, vr, value))
    assert re.search(message, sentence), sentence


def test_faults_that_do_not_touch_pixels_cost_only_their_field(tmp_path):
    path = tmp_path / "a.dcm"
    for name, vr, value in (
        ("PixelSpacing", "DS", b"0.1 "),
        ("ViewCodeSequence", "LO", b"CC"),
        ("ImageLaterality", "US", b"\1\0\1"),
    ):
        assert outcome(path, file_bytes(dataset_with_everything(), name, vr, value)) == "pixels"
        record = read_dicom(path).record
        assert record["pixel_spacing"] == (None if name == "PixelSpacing" else [0.1, 0.1])
        assert record["patient_id"] == "1" and record["laterality"] is record["view"] is None


@pytest.mark.parametrize("syntax", [None, "", "1.2.3", RLELossless, JPEG2000Lossless])
def test_a_transfer_syntax_that_is_not_that_of_the_pixels(tmp_path, syntax):
    data = file_bytes(dataset_with_everything())
    meta = pydicom.dcmread(io.BytesIO(data)).file_meta
    end = 144 + meta.FileMetaInformationGroupLength
    if syntax is None:
        del meta.TransferSyntaxUID
    else:
        meta.TransferSyntaxUID = syntax
    buffer = DicomBytesIO()
    write_file_meta_info(buffer, meta, enforce_standard=False)
    sentence = outcome(tmp_path / "a.dcm", data[:132] + buffer.getvalue() + data[end:])
    assert sentence != "pixels" or not syntax


@pytest.mark.parametrize("compressed", [False, True])
def test_random_bytes(tmp_path, compressed):
    """One to four bytes of the first 1200 are changed: header and beginning of the pixels."""
    dataset = dataset_with_everything("MONOCHROME1")
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"  # not drawn
    if compressed:
        dataset.compress(RLELossless, generate_instance_uid=False)
    data, random = file_bytes(dataset), np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        damaged = bytearray(data)
        for place in random.integers(132, 1200, random.integers(1, 5)):
            damaged[place] = random.integers(256)
        seen.add(outcome(tmp_path / "a.dcm", bytes(damaged)) == "pixels")
    assert seen == {True, False}


def test_an_overlay_above_the_stored_bits_is_cut_off(tmp_path):
    """PS3.3 C.9.2 as it was: bit 12 holds graphics, and no (6000,3000) does."""
    path = tmp_path / "a.dcm"
    overlaid = STORED | np.where(STORED % 7 == 0, 1 << 12, 0).astype(np.uint16)
    dataset = make_dicom(overlaid)
    assert "holds values from" in outcome(path, file_bytes(dataset))
    dataset.add_new(0x60000102, "US", 12)
    assert outcome(path, file_bytes(dataset)) == "pixels"
    np.testing.assert_array_equal(read_dicom(path).stored, STORED)


def test_padding_may_lie_outside_the_stored_bits(tmp_path):
    stored = STORED.copy()
    stored[0] = 65535
    dataset = make_dicom(stored, PixelPaddingValue=65535)
    assert outcome(tmp_path / "a.dcm", file_bytes(dataset)) == "pixels"
    image = read_dicom(tmp_path / "a.dcm", "none")
    assert not image.pixels[0].any() and image.pixels.max() == 255
