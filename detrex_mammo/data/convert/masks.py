# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Boxes of masks, (x, y, width, height); a pixel's box reaches from its index to the next."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.convert.headers import BadImage, read_header
from detrex_mammo.data.image_io import is_dicom, read_picture
from detrex_mammo.errors import UserError

Box = tuple[float, float, float, float]


def read_mask(path: Path) -> np.ndarray:
    """A mask as stored, (H, W) uint8 or uint16.

    Raises:
        BadImage: it cannot be read.
    """
    header = read_header(path, allow_for_processing=True)
    try:
        if not is_dicom(path):
            return read_picture(path)
        import pydicom
        from pydicom.pixels import pixel_array

        pixels = pixel_array(pydicom.dcmread(path), index=0)
    except UserError as error:
        raise BadImage("pixel data are cut off or damaged") from error
    except Exception as error:  # pydicom's decoders raise many kinds
        raise BadImage("pixel data are cut off or damaged") from error
    if pixels.shape != (header.height, header.width):
        raise BadImage("no grey image")
    return pixels


def foreground(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool: brighter than half of the brightest; a black mask has none."""
    return mask > mask.max() // 2 if mask.max() else np.zeros(mask.shape, bool)


def box_of(inside: np.ndarray) -> Box | None:
    """Bounds of all True pixels of (H, W), None if there are none."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        return None
    x, y = int(columns[0]), int(rows[0])
    return (x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y)


def boxes_of_components(inside: np.ndarray, min_pixels: int = 1) -> tuple[list[Box], int]:
    """Bounds of each 8-connected component, from top to bottom.

    Args:
        inside: (H, W) bool.
        min_pixels: smaller components are left out.

    Returns:
        tuple: the boxes, and the number of components left out.
    """
    _, _, rows, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=8)
    kept = [row for row in rows[1:] if row[cv2.CC_STAT_AREA] >= min_pixels]
    return [tuple(int(v) for v in row[:4]) for row in kept], len(rows) - 1 - len(kept)


def scaled(box: Box, size: tuple[int, int], to: tuple[int, int]) -> Box:
    """A box of an image of ``size`` (height, width) in one of size ``to``."""
    down, across = to[0] / size[0], to[1] / size[1]
    x, y, width, height = box
    return (x * across, y * down, width * across, height * down)


def find_pairs(files: Iterable[Path], endings: Iterable[str]) -> tuple[dict, dict]:
    """Tell masks from images by the ending of their names.

    Args:
        files: of both.
        endings: such as "_mask", compared without case.

    Returns:
        tuple: {stem: image} and {(stem of the image, ending): mask}.
    """
    pattern = re.compile(rf"(.+?)({'|'.join(map(re.escape, endings))})", re.IGNORECASE)
    images, found = {}, {}
    for path in files:
        match = pattern.fullmatch(path.stem)
        if match:
            found.setdefault((match.group(1), match.group(2).lower()), path)
        else:
            images.setdefault(path.stem, path)
    return images, found


def add_components(
    dataset: Dataset,
    image: dict[str, Any],
    mask: np.ndarray,
    category: str,
    min_pixels: int = 1,
    **more: Any,
) -> int:
    """Add the box of each component of a mask, scaled if the mask has another size.

    Returns:
        int: how many were added.
    """
    boxes, small = boxes_of_components(foreground(mask), min_pixels)
    for _ in range(small):
        reason = f"components of fewer than {min_pixels} pixels"
        dataset.report.add("dropped", reason, image["file_name"])
    size = (image["height"], image["width"])
    if mask.shape != size:
        dataset.report.add(
            "fixed", "masks of another size than their image, scaled", image["file_name"]
        )
    for box in boxes:
        dataset.add_box(image, scaled(box, mask.shape, size), category, source="mask", **more)
    return len(boxes)
