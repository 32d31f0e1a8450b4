# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Files of miniature data sets, whole and broken ones, and what a test compares."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detrex_mammo.data.convert.dataset import Dataset
from tests.data.dicom_files import make_dicom


def write_dicom(path: Path, stored: np.ndarray | tuple[int, int], bits: int = 12, **tags) -> None:
    """A DICOM file of these pixels, or of zeros of this (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(stored, np.uint16) if isinstance(stored, tuple) else stored
    make_dicom(pixels, bits, **tags).save_as(path, enforce_file_format=True)


def write_picture(path: Path, pixels: np.ndarray | tuple[int, int]) -> None:
    """A picture of the kind that its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros(pixels, np.uint8) if isinstance(pixels, tuple) else pixels
    assert cv2.imwrite(str(path), pixels)


def mask(size: tuple[int, int], *boxes: tuple[int, int, int, int], value: int = 255) -> np.ndarray:
    """(height, width) uint8 with ``value`` in each box (x, y, width, height)."""
    pixels = np.zeros(size, np.uint8)
    for x, y, width, height in boxes:
        pixels[y : y + height, x : x + width] = value
    return pixels


def write_broken_dicoms(folder: Path, size: tuple[int, int] = (40, 30)) -> dict[str, str]:
    """One file of each damage; returns the reason that the report must give for each name."""
    whole = folder / "whole.dcm"
    write_dicom(whole, size)
    data = whole.read_bytes()
    whole.unlink()
    broken = {
        "empty.dcm": (b"", "images: file is empty"),
        "text.dcm": (b"<!DOCTYPE x>" * 50, _DAMAGED),
        "cut_in_header.dcm": (data[:300], _DAMAGED),
        "cut_in_pixels.dcm": (data[:-100], "images: pixel data are cut off"),
    }
    for name, (content, _) in broken.items():
        (folder / name).write_bytes(content)
    write_dicom(folder / "one_pixel.dcm", (1, 1))
    write_dicom(folder / "processing.dcm", size, PresentationIntentType="FOR PROCESSING")
    write_wrong_syntax(folder / "syntax.dcm", size)
    return {name: reason for name, (_, reason) in broken.items()} | {
        "one_pixel.dcm": "images: smaller than 16 pixels",
        "processing.dcm": "images: raw FOR PROCESSING image",
        "syntax.dcm": "images: transfer syntax does not fit the pixel data",
    }


def counts_of(reasons: dict[str, str]) -> dict[str, int]:
    """How often each reason of :func:`write_broken_dicoms` must be in a report."""
    values = list(reasons.values())
    return {reason: values.count(reason) for reason in values}


def write_wrong_syntax(path: Path, size: tuple[int, int]) -> None:
    """A DICOM file whose header says JPEG, with pixels that are none."""
    write_dicom(path, size)
    path.write_bytes(_with_syntax(path.read_bytes(), b"1.2.840.10008.1.2.4.70"))


def _with_syntax(data: bytes, syntax: bytes) -> bytes:
    """A file of explicit little endian pixels whose header says another transfer syntax."""
    start = data.index(b"\x02\x00\x10\x00UI")
    length = int.from_bytes(data[start + 6 : start + 8], "little")
    group = int.from_bytes(data[140:144], "little") + len(syntax) - length
    new = data[start : start + 6] + len(syntax).to_bytes(2, "little") + syntax
    whole = data[:start] + new + data[start + 8 + length :]
    return whole[:140] + group.to_bytes(4, "little") + whole[144:]


_DAMAGED = "images: no DICOM image, cut off or damaged before its pixels"


def images_of(dataset: Dataset, *keys: str) -> dict[str, tuple[Any, ...]]:
    """The named keys of each image by its file."""
    return {i["file_name"]: tuple(i.get(key) for key in keys) for i in dataset.images}


def boxes_of(dataset: Dataset, *keys: str) -> list[tuple[Any, ...]]:
    """(file, category, box, *keys) of each annotation, in order."""
    content = dataset.to_coco()
    files = {image["id"]: image["file_name"] for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    return [
        (
            files[a["image_id"]],
            names[a["category_id"]],
            tuple(a["bbox"]),
            *(a.get(key) for key in keys),
        )
        for a in content["annotations"]
    ]


def reported(dataset: Dataset, kind: str) -> dict[str, int]:
    """Number of each reason."""
    return dict(dataset.report.counts[kind])
