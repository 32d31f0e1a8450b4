# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""DICOM data sets built in memory for the tests."""

from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def make_dicom(stored: np.ndarray, bits: int = 12, **tags) -> pydicom.FileDataset:
    """A grey image, uncompressed.

    Args:
        stored: (H, W) or (F, H, W) int16 or uint16 stored values.
        bits: BitsStored.
        **tags: values of further or other tags, by keyword.
    """
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SECONDARY_CAPTURE
    meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset = pydicom.FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = SECONDARY_CAPTURE, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    if stored.ndim == 3:
        dataset.NumberOfFrames = len(stored)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = int(stored.dtype == np.int16)
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def save_dicom(folder: Path, stored: np.ndarray, bits: int = 12, **tags) -> Path:
    """Write :func:`make_dicom`'s data set into a folder and return its path."""
    path = folder / "image.dcm"
    make_dicom(stored, bits, **tags).save_as(path, enforce_file_format=True)
    return path
