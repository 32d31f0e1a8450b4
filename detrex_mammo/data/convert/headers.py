# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Size and record of an image from its header; whether its pixels are there, without decoding.

A converter passes tens of thousands of files, so nothing here reads a whole DICOM file.
"""

import argparse
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.image_io import PICTURE_SUFFIXES, is_dicom, read_picture
from detrex_mammo.errors import UserError

MIN_SIDE, MAX_SIDE, MAX_PIXELS = 16, 1 << 20, 400_000_000  # OpenCV decodes no longer side
_END_OF_FRAGMENTS = b"\xfe\xff\xdd\xe0\0\0\0\0"  # sequence delimitation item, PS3.5 A.4
_ENDS = {"PNG": b"IEND", "JPEG": b"\xff\xd9"}
_TAIL = 1 << 16  # what may stand behind the pixels


class BadImage(UserError):
    """An image that cannot be used; the message is a reason, the same for all of its kind."""


@dataclass(frozen=True)
class Header:
    """What an image file says before its pixels.

    Attributes:
        height: in pixels.
        width: in pixels.
        record: of :data:`detrex_mammo.data.convert.dataset.IMAGE_KEYS` what the file knows.
        texts: DICOM texts that converters ask for: SeriesDescription, SeriesInstanceUID, ...
        frames: number of frames.
    """

    height: int
    width: int
    record: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    frames: int = 1


def add_raw_argument(parser: argparse.ArgumentParser) -> None:
    """The option of a set that holds raw images beside those for reading."""
    parser.add_argument(
        "--allow-for-processing", action="store_true", help="also take raw FOR PROCESSING images"
    )


def add_file(
    dataset: Dataset, root: Path, file_name: str, allow_for_processing: bool = False, **more: Any
) -> dict[str, Any] | None:
    """Add an image file to a dataset, or one line to its report.

    Args:
        dataset: that is being filled.
        root: folder that ``file_name`` is relative to.
        file_name: with "/", not leading out of ``root`` (:func:`.tables.inside`).
        allow_for_processing: also take raw FOR PROCESSING images.
        **more: keys of the image; they win over those of the file's header.

    Returns:
        dict or None: the image; None if it was dropped.
    """
    try:
        header = read_header(root / file_name, allow_for_processing)
        if header.frames > 1:
            raise BadImage("volume of several frames")
    except BadImage as error:
        dataset.report.add("dropped", f"images: {error}", file_name)
        return None
    known = {key: value for key, value in more.items() if value is not None and value != ""}
    return dataset.add_image(file_name, header.height, header.width, **{**header.record, **known})


def read_header(path: Path, allow_for_processing: bool = False) -> Header:
    """Read what stands before the pixels and check that they follow.

    Raises:
        BadImage: missing, damaged, cut off, too small or too large, or FOR PROCESSING.
    """
    try:
        if not path.is_file():
            raise BadImage("file is missing")
        if not path.stat().st_size:
            raise BadImage("file is empty")
        if is_dicom(path):
            header = _read_dicom(path, allow_for_processing)
        elif path.suffix.lower() in PICTURE_SUFFIXES:
            header = _read_picture_header(path)
        else:
            raise BadImage("neither DICOM nor a picture")
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from error
    if min(header.height, header.width) < MIN_SIDE:
        raise BadImage(f"smaller than {MIN_SIDE} pixels")
    if max(header.height, header.width) > MAX_SIDE:
        raise BadImage(f"longer than {MAX_SIDE} pixels")
    if header.height * header.width > MAX_PIXELS:
        raise BadImage(f"larger than {MAX_PIXELS // 10**6} million pixels")
    return header


def _read_dicom(path: Path, allow_for_processing: bool) -> Header:
    import pydicom  # takes a while

    from detrex_mammo.data.dicom_record import describe

    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged file is reported, not warned of
        try:
            dataset = pydicom.dcmread(file, stop_before_pixels=True)
            syntax = dataset.file_meta.TransferSyntaxUID
            frames = int(dataset.get("NumberOfFrames") or 1)
            record = describe(dataset)
            header = Header(int(dataset.Rows), int(dataset.Columns), record, frames=frames)
        except Exception as error:  # pydicom raises many kinds on damaged files
            raise BadImage("no DICOM image, cut off or damaged before its pixels") from error
        if not syntax.is_transfer_syntax or syntax.is_private:
            raise BadImage(f"transfer syntax {syntax} is none")
        samples = int(dataset.get("SamplesPerPixel") or 1)
        bits = int(dataset.get("BitsAllocated") or 0) * samples * frames
        if not syntax.is_deflated:
            bytes_needed = None if syntax.is_compressed else header.height * header.width * bits / 8
            _check_pixel_data(file, syntax, bytes_needed)
    if record.pop("photometric") not in ("MONOCHROME1", "MONOCHROME2"):
        raise BadImage("no grey image")
    intent = str(dataset.get("PresentationIntentType", "")).upper()
    if intent == "FOR PROCESSING" and not allow_for_processing:
        raise BadImage("raw FOR PROCESSING image")
    names = ("SeriesDescription", "SeriesInstanceUID", "StudyInstanceUID", "SOPInstanceUID")
    names += ("PatientID", "PresentationIntentType")
    header.texts.update({name: str(dataset.get(name, "")) for name in names})
    return header


def _check_pixel_data(file: BinaryIO, syntax: Any, bytes_needed: float | None) -> None:
    """Whether pixel data stand at the file's position, of the syntax, and are whole.

    Args:
        file: at the element behind the header.
        syntax: transfer syntax of the file.
        bytes_needed: of native pixels; None for compressed ones.
    """
    start = file.read(8 if syntax.is_implicit_VR else 12)
    order = "little" if syntax.is_little_endian else "big"
    if [int.from_bytes(start[at : at + 2], order) for at in (0, 2)] != [0x7FE0, 0x10]:
        raise BadImage("no pixel data: cut off, or no image")
    length = int.from_bytes(start[-4:], order)
    if (length == 0xFFFFFFFF) != (bytes_needed is None):
        raise BadImage("transfer syntax does not fit the pixel data")
    begin = file.tell()
    end = file.seek(0, os.SEEK_END)
    if bytes_needed is not None:
        if end - begin < min(bytes_needed, length) or length < bytes_needed:
            raise BadImage("pixel data are cut off")
        return
    file.seek(max(begin, end - _TAIL))
    if _END_OF_FRAGMENTS not in file.read():
        raise BadImage("pixel data are cut off")
    file.seek(begin)
    table = int.from_bytes(file.read(8)[4:], "little")
    file.seek(begin + 8 + table + 8)  # behind the first fragment's tag and length
    if not _is_start(file.read(8), syntax):
        raise BadImage("transfer syntax does not fit the pixel data")


def _is_start(data: bytes, syntax: Any) -> bool:
    """Whether a codestream that begins with these 8 bytes is one of a transfer syntax."""
    from pydicom import uid

    if syntax in uid.JPEG2000TransferSyntaxes:
        return data.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "))
    if syntax in (*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes):
        return data.startswith(b"\xff\xd8")
    # Number of segments, then where the first one begins: behind a header of 64 bytes.
    return syntax not in uid.RLETransferSyntaxes or data[1:] == b"\0\0\0\x40\0\0\0"


def _read_picture_header(path: Path) -> Header:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged file is reported, not warned of
            with Image.open(path) as picture:
                (width, height), mode, kind = picture.size, picture.mode, picture.format
    except Exception as error:  # Pillow raises many kinds, also for pictures that are a bomb
        raise BadImage("no picture, or damaged") from error
    bits = 16 if mode.startswith("I") else 8
    if kind in _ENDS:
        with open(path, "rb") as file:
            if kind == "PNG":  # Pillow makes 8 bits of colour with 16
                bits = max(8, file.read(25)[24])
            file.seek(max(0, path.stat().st_size - _TAIL))
            if _ENDS[kind] not in file.read():
                raise BadImage("pixel data are cut off")
    elif height * width <= MAX_PIXELS:
        try:
            bits = 8 * read_picture(path).itemsize
        except UserError as error:
            raise BadImage("pixel data are cut off or of another kind") from error
    return Header(height, width, {"bits_stored": bits})
