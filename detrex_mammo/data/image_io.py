# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Grey images in and out at full precision: 16 bits stay 16 bits."""

import logging
import os
from pathlib import Path

import cv2
import numpy as np

from detrex_mammo.data.breast import find_breast
from detrex_mammo.data.grey_levels import WindowPolicy, range_of_pixels, stretch
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
# OpenCV prints its own lines of a damaged file; ours is one sentence.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
DICOM_SUFFIXES = {".dcm", ".dicom", ".dcim", ".ima"}
PICTURE_SUFFIXES = {".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp", ".pgm"}
_has_warned = False


def is_dicom(path: str | os.PathLike) -> bool:
    """Whether a file is DICOM, by its suffix or, without a known one, by its preamble."""
    suffix = Path(path).suffix.lower()
    if suffix in DICOM_SUFFIXES:
        return True
    if suffix in PICTURE_SUFFIXES:
        return False
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def read_image(
    path: str | os.PathLike,
    window: str = "auto",
    allow_for_processing: bool = False,
    frame: int | None = None,
) -> np.ndarray:
    """Read a mammogram of any supported kind.

    Args:
        path: DICOM, or PNG, TIFF, JPEG, BMP, PGM of 8 or 16 bits; colour is averaged to grey.
        window: see :meth:`detrex_mammo.data.grey_levels.WindowPolicy.parse`. A picture has no
            windows of its own: "auto" and "none" are all that its 8 or 16 bits can store.
        allow_for_processing: also take raw FOR PROCESSING DICOM images.
        frame: which frame of a multi-frame DICOM file, from 0.

    Returns:
        np.ndarray: (H, W) float32 in [0, 255]; 16-bit pixels become fractions (value / 257).

    Raises:
        UserError: the file is missing, damaged or of another kind.
    """
    if is_dicom(path):
        from detrex_mammo.data.dicom import read_dicom  # pydicom takes a second to import

        return read_dicom(path, window, frame, allow_for_processing).pixels
    policy = WindowPolicy.parse(window)
    stored = read_picture(path)
    if policy.kind in ("window", "lut"):
        raise UserError(
            f"window is {window!r}, but {str(path)!r} is no DICOM file and has none: use 'auto', "
            "'minmax', 'percentile:low,high' or 'tissue:low,high'"
        )
    if frame:
        raise UserError(f"frame is {frame}, but {str(path)!r} is a picture, which has one: use 0")
    if policy.kind in ("minmax", "percentile", "tissue"):
        counted = stored[find_breast(stored).mask] if policy.kind == "tissue" else stored
        counts = np.bincount(counted.ravel(), minlength=int(stored.max()) + 1)
        levels = np.arange(len(counts), dtype=np.float64)
        ends = range_of_pixels(levels, counts, policy.percentiles)
        return stretch(levels, *ends).astype(np.float32)[stored]
    _warn_if_dark(stored, path)
    return to_unit_255(stored, path)


def _warn_if_dark(stored: np.ndarray, path: str | os.PathLike) -> None:
    """12 bits in a 16-bit picture are nearly black; once per process is enough."""
    global _has_warned
    if not _has_warned and stored.dtype == np.uint16 and 0 < stored.max() < 4096:
        _has_warned = True
        logger.warning(
            "%s has 16 bits but no pixel above %d of 65535: if it holds 12-bit values, set "
            "preprocessing.window to 'minmax' or write it with its full range (told once)",
            path,
            stored.max(),
        )


def read_picture(path: str | os.PathLike) -> np.ndarray:
    """Stored values of a picture file, (H, W) uint8 or uint16.

    Raises:
        UserError: the file is missing, damaged, or not of 8 or 16 bits.
    """
    if not os.path.isfile(path):
        raise UserError(f"image {str(path)!r} does not exist: check file_name and image_root")
    data = np.fromfile(path, dtype=np.uint8)
    try:
        # imdecode, not imread: it takes any path, and an unreadable file is told apart from none.
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    except cv2.error:  # a side or area beyond OpenCV's limits
        pixels = None
    if pixels is None:
        raise UserError(
            f"image {str(path)!r} cannot be decoded ({data.size} bytes): it is cut off, damaged, "
            f"or not one of DICOM, {', '.join(sorted(s[1:] for s in PICTURE_SUFFIXES))}"
        )
    if pixels.dtype not in (np.uint8, np.uint16):
        raise UserError(f"image {str(path)!r} has {pixels.dtype} pixels; use 8 or 16 bits")
    if pixels.ndim == 3:
        colour = pixels[..., :3].astype(np.float32) if pixels.shape[2] > 2 else pixels[..., :1]
        pixels = np.rint(colour.mean(axis=2)).astype(pixels.dtype)
    return pixels


def to_unit_255(pixels: np.ndarray, path: str | os.PathLike = "") -> np.ndarray:
    """uint8 or uint16 pixels as float32 in [0, 255]."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float32)
    if pixels.dtype == np.uint16:
        return pixels.astype(np.float32) / np.float32(257.0)
    raise UserError(f"image {str(path)!r} has {pixels.dtype} pixels; use 8 or 16 bits")


def write_png16(path: str | os.PathLike, pixels: np.ndarray) -> None:
    """Write a grey PNG of 16 bits, whole or not at all.

    Args:
        path: target.
        pixels: (H, W) uint16, or float in [0, 255], which is multiplied by 257 and rounded.

    Raises:
        UserError: the file cannot be written.
    """
    if pixels.dtype != np.uint16:
        pixels = np.rint(np.clip(pixels, 0, 255) * 257.0).astype(np.uint16)
    coded, data = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not coded:
        raise AssertionError(f"PNG encoding of shape {pixels.shape} failed")
    partial = f"{os.fspath(path)}.partial"
    try:
        data.tofile(partial)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"image {str(path)!r} cannot be written: {error.strerror}") from error
