# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What a DICOM header must say before its pixels can be read; each fault is one sentence."""

import os
from dataclasses import dataclass
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError

from detrex_mammo.errors import UserError

_MISSING = object()


@dataclass(frozen=True)
class Header:
    """The part of a header that pixels depend on, checked.

    Attributes:
        rows: height in pixels.
        columns: width in pixels.
        frames: number of images, at least 1.
        bits_allocated: 8 or 16.
        bits_stored: 1 to ``bits_allocated``.
        high_bit: place of the highest stored bit, from 0.
        is_signed: two's complement.
        is_inverted: MONOCHROME1, whose largest values are black.
        padding: (low, high) stored values, both included, that are no image; or None.
        for_processing: raw detector values.
    """

    rows: int
    columns: int
    frames: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    is_signed: bool
    is_inverted: bool
    padding: tuple[int, int] | None
    for_processing: bool

    @property
    def storable(self) -> tuple[int, int]:
        """Smallest and largest value that the stored bits can hold."""
        if self.is_signed:
            return -(2 ** (self.bits_stored - 1)), 2 ** (self.bits_stored - 1) - 1
        return 0, 2**self.bits_stored - 1


def open_dicom(path: str | os.PathLike) -> tuple[pydicom.Dataset, Header]:
    """Read a file's tags and check them; pixels are not decoded.

    Raises:
        UserError: the file is missing, cut off, not DICOM or without pixels, or a tag that the
            pixels need is missing, damaged or contradicts another.
    """
    try:
        dataset = pydicom.dcmread(path)
    except FileNotFoundError:
        raise UserError(f"DICOM file {str(path)!r} does not exist: check the path") from None
    except IsADirectoryError:
        raise UserError(f"{str(path)!r} is a folder: give a DICOM file") from None
    except InvalidDicomError:
        raise UserError(f"{str(path)!r} is not a DICOM file: it lacks the DICM prefix") from None
    except Exception as error:  # pydicom raises many kinds on damaged files
        raise UserError(f"DICOM file {str(path)!r} is cut off or damaged ({error})") from error
    if "PixelData" not in dataset:
        raise UserError(
            f"DICOM file {str(path)!r} holds no pixel data: it is cut off or no image "
            f"(modality {text_of(dataset, 'Modality') or 'unknown'})"
        )
    return dataset, _check(dataset, _Tags(dataset, path), path)


class _Tags:
    """Whole numbers and words of a data set."""

    def __init__(self, dataset: pydicom.Dataset, path: str | os.PathLike):
        self.dataset, self.path = dataset, path

    def number(self, name: str, default: int | None = None) -> int:
        """One whole number; ``default`` where the tag is missing or empty."""
        value = value_of(self.dataset, name, _MISSING)
        if default is not None and (value is None or value == ""):
            return default
        try:
            if isinstance(value, float) and value != int(value):
                raise ValueError
            return int(value)
        except (TypeError, ValueError, OverflowError):
            raise self.error(name, value, "it must be one whole number") from None

    def error(self, name: str, value: Any, needed: str) -> UserError:
        """The sentence for a tag."""
        shown = "damaged" if value is _MISSING else "missing" if value is None else f"{value!r:.60}"
        return UserError(
            f"DICOM file {str(self.path)!r}: {name} is {shown}, but {needed}: repair its header"
        )


def _check(dataset: pydicom.Dataset, tags: _Tags, path: str | os.PathLike) -> Header:
    photometric = text_of(dataset, "PhotometricInterpretation").upper()
    samples = tags.number("SamplesPerPixel", 1)
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or samples != 1:
        kind = photometric or "of no photometric interpretation"
        kind += "" if samples == 1 else f" with {samples} samples a pixel"
        raise UserError(
            f"DICOM file {str(path)!r} is {kind}; a mammogram is MONOCHROME1 or MONOCHROME2 with "
            "one sample a pixel"
        )
    allocated, stored = tags.number("BitsAllocated"), tags.number("BitsStored")
    high = tags.number("HighBit", stored - 1)
    if allocated not in (8, 16) or not 1 <= stored <= allocated:
        raise UserError(
            f"DICOM file {str(path)!r} has {allocated} bits allocated and {stored} stored; a "
            "mammogram has 8 or 16 allocated, and no more stored"
        )
    if not stored - 1 <= high < allocated:
        needed = (
            f"it must be {stored - 1} to {allocated - 1} with {stored} of {allocated} bits stored"
        )
        raise tags.error("HighBit", high, needed)
    numbers = {name: tags.number(name) for name in ("Rows", "Columns")}
    numbers["NumberOfFrames"] = tags.number("NumberOfFrames", 1)
    for name, value in numbers.items():
        if value < 1:
            raise tags.error(name, value, "it must be 1 or more")
    sign = tags.number("PixelRepresentation", 0)
    if sign not in (0, 1):
        raise tags.error("PixelRepresentation", sign, "it must be 0 (unsigned) or 1 (signed)")
    return Header(
        *numbers.values(),
        allocated,
        stored,
        high,
        is_signed=sign == 1,
        is_inverted=photometric == "MONOCHROME1",
        padding=_padding(tags),
        for_processing=text_of(dataset, "PresentationIntentType").upper() == "FOR PROCESSING",
    )


def _padding(tags: _Tags) -> tuple[int, int] | None:
    if value_of(tags.dataset, "PixelPaddingValue", _MISSING) in (None, ""):
        return None
    value = tags.number("PixelPaddingValue")
    low, high = sorted((value, tags.number("PixelPaddingRangeLimit", value)))
    return low, high


def value_of(dataset: pydicom.Dataset, name: str, damaged: Any = None) -> Any:
    """A tag's value; None if it is absent or empty, ``damaged`` if pydicom cannot make it out."""
    try:
        return dataset.get(name)
    except Exception:  # pydicom converts on access, and raises many kinds
        return damaged


def text_of(dataset: pydicom.Dataset, name: str) -> str:
    """A tag's value as one string; "" if it is absent, damaged, empty or of several values."""
    value = value_of(dataset, name)
    if value is None or isinstance(value, pydicom.multival.MultiValue | pydicom.Sequence | bytes):
        return ""
    return str(value).strip()
