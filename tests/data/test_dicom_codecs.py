# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Every compressed transfer syntax gives the pixels that were compressed, of 12, 14 and 16 bits.

Encoded here by pydicom (RLE) and GDCM, and by others in pydicom's test files. A codec of the extra
``dicom`` that is not installed skips its tests.
"""

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import RLELossless

from detrex_mammo.data.dicom import read_dicom

from .dicom_files import make_dicom

RANDOM = np.random.default_rng(0)
STORED = {
    12: RANDOM.integers(0, 4096, (50, 70)).astype(np.uint16),
    14: RANDOM.integers(-8192, 8192, (50, 70)).astype(np.int16),
    16: RANDOM.permutation(65536).reshape(256, 256).astype(np.uint16),
}
SYNTAXES = {  # as GDCM calls them
    "JPEGLosslessProcess14": "1.2.840.10008.1.2.4.57",
    "JPEGLosslessProcess14_1": "1.2.840.10008.1.2.4.70",
    "JPEGLSLossless": "1.2.840.10008.1.2.4.80",
    "JPEG2000Lossless": "1.2.840.10008.1.2.4.90",
    "RLELossless": "1.2.840.10008.1.2.5",
}


def compress(path, name):
    """Compress a file in place by GDCM."""
    gdcm = pytest.importorskip("gdcm")
    reader, change = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


@pytest.mark.parametrize("bits", STORED)
@pytest.mark.parametrize("name", SYNTAXES)
def test_what_gdcm_compressed(tmp_path, name, bits):
    path = tmp_path / "a.dcm"
    make_dicom(STORED[bits], bits).save_as(path, enforce_file_format=True)
    plain = read_dicom(path, "none").pixels
    compress(path, name)
    assert dcmread(path).file_meta.TransferSyntaxUID == SYNTAXES[name]
    image = read_dicom(path, "none")
    np.testing.assert_array_equal(image.stored, STORED[bits])
    np.testing.assert_array_equal(image.pixels, plain)


@pytest.mark.parametrize("bits", STORED)
def test_frames_of_rle_by_pydicom(tmp_path, bits):
    frames = np.stack([STORED[bits], STORED[bits][::-1]])
    dataset = make_dicom(frames, bits)
    dataset.compress(RLELossless)
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    for number, frame in enumerate(frames):
        np.testing.assert_array_equal(
            read_dicom(tmp_path / "a.dcm", "none", frame=number).stored, frame
        )


@pytest.mark.parametrize(
    "compressed,plain",
    [
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("MR_small_implicit.dcm", "MR_small.dcm"),
        ("RG1_J2KR.dcm", "RG1_UNCR.dcm"),
        ("RG3_J2KR.dcm", "RG3_UNCR.dcm"),
    ],
)
def test_what_others_compressed(compressed, plain):
    path, plain = (get_testdata_file(name, download=False) for name in (compressed, plain))
    syntax = dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID
    if not get_decoder(syntax).is_available:
        pytest.skip(f"no decoder of {syntax.name} is installed")
    image = read_dicom(path)
    np.testing.assert_array_equal(image.stored, pixel_array(plain))
    np.testing.assert_array_equal(image.pixels, read_dicom(plain).pixels)
