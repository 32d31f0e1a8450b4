# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Where the breast is: robust to white film borders and burned-in labels."""

from dataclasses import dataclass, fields
from typing import Any

import cv2
import numpy as np

# The mask is found on a copy whose longer side has this many pixels.
WORKING_SIZE = 512
# Low thresholds keep the skin line: Otsu's own cuts off a tenth of many breasts.
OTSU_FACTOR = 0.2
# What is this share as bright as the breast, and near it, is its skin or nipple.
DIM_FACTOR = 0.04
# How far, as a share of the longer side, those may lie outside the bright part.
MAX_GROWTH = 0.04
# Film borders are stripped up to this share of the side.
MAX_BORDER = 0.06
# Above and below the breast the film's edge is often fogged: a strip this narrow is not breast.
MIN_WIDTH = 0.13


@dataclass(frozen=True)
class BreastRegion:
    """The breast in an image.

    Attributes:
        mask: (H, W) bool, True on the breast; None where it was not kept (in a cache).
        box: (x0, y0, x1, y1) bounds of the mask, whole pixels, ends exclusive.
        side: "left" or "right": the side of the image on which the chest wall lies.
        share: part of the image that the mask covers, in [0, 1].
        frame: (x0, y0, x1, y1) of the image without bright film borders; holds the box.
        found: False if nothing stands out from the background; the mask is the whole image then.
    """

    mask: np.ndarray | None
    box: tuple[int, int, int, int]
    side: str
    share: float
    frame: tuple[int, int, int, int]
    found: bool = True

    def without_mask(self) -> dict[str, Any]:
        """Plain JSON data of all but the mask."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "mask"}


def find_breast(pixels: np.ndarray) -> BreastRegion:
    """Segment the breast: strip borders, threshold low, keep the largest smooth component.

    Works on a copy of ``WORKING_SIZE``, so that its time does not depend on the image's size.

    Args:
        pixels: (H, W), any range, bright is dense tissue.
    """
    height, width = pixels.shape
    scale = min(1.0, WORKING_SIZE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(pixels.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    foreground, dim, (left, top, right, bottom) = _foreground(small)
    small_mask = _grow_sideways(_trim_ends(_largest_component(foreground)), dim)
    found = bool(small_mask.any())
    if not found:
        small_mask = np.ones_like(small_mask)
    mask = cv2.resize(small_mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    mask = mask.astype(bool)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    frame = (
        min(round(left * width / size[0]), box[0]),
        min(round(top * height / size[1]), box[1]),
        max(width - round(right * width / size[0]), box[2]),
        max(height - round(bottom * height / size[1]), box[3]),
    )
    side = _chest_wall_side(mask, box)
    return BreastRegion(mask, box, side, float(mask.mean()), frame, found)


def _foreground(small: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """What is brighter than the background, what may be, and the film border's depths.

    Returns:
        tuple: (H, W) uint8 of the breast's bulk and other bright things; (H, W) uint8 of all that
        is above the background's grain; border at the left, top, right and bottom.
    """
    low, high = np.percentile(small, (0.5, 99.5))
    if high <= low:
        nothing = np.zeros(small.shape, np.uint8)
        return nothing, nothing, [0, 0, 0, 0]
    scaled = np.clip((small - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    otsu, _ = cv2.threshold(scaled, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    foreground = (scaled > max(otsu * OTSU_FACTOR, 3)).astype(np.uint8)
    depths = _strip_borders(foreground, scaled > otsu)
    dim = _above_grain(small, foreground)
    # Detach labels and scratches that touch the breast by a thin bridge.
    side = max(3, round(max(small.shape) * 0.02)) | 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    padded = cv2.copyMakeBorder(foreground, side, side, side, side, cv2.BORDER_REPLICATE)
    opened = cv2.morphologyEx(padded, cv2.MORPH_OPEN, kernel)
    return opened[side:-side, side:-side], dim, depths


def _above_grain(small: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """(H, W) uint8, 1 where a smoothed image stands out from the darkest part of the background."""
    smooth = cv2.GaussianBlur(small, (0, 0), 1.5)
    background = smooth[foreground == 0]
    if not background.size:
        return foreground
    # Half of the background is darker than its median; that half's spread is the grain's.
    middle = float(np.median(background))
    spread = float(np.sqrt(np.mean((background[background <= middle] - middle) ** 2)))
    bright = float(np.median(smooth[foreground > 0])) if foreground.any() else middle
    threshold = max(middle + 6 * spread, middle + DIM_FACTOR * (bright - middle))
    return (smooth > threshold).astype(np.uint8)


def _grow_sideways(mask: np.ndarray, dim: np.ndarray) -> np.ndarray:
    """With what is dim, touches the mask and lies near it, between its upper and lower end.

    That is the skin line and the nipple. Film edges are fogged above and below the breast, so it
    does not grow there; ``MAX_GROWTH`` holds it back from labels.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return mask
    reach = max(1, round(MAX_GROWTH * max(mask.shape)))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    near = cv2.dilate(mask.astype(np.uint8), kernel)
    near[: rows[0]] = near[rows[-1] + 1 :] = 0
    small = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    opened = cv2.morphologyEx(near & (dim | mask.astype(np.uint8)), cv2.MORPH_OPEN, small)
    return _largest_component(opened | mask.astype(np.uint8))


def _strip_borders(foreground: np.ndarray, is_bright: np.ndarray) -> list[int]:
    """Clear bright lines along the image's four sides, in place.

    A film border is thin, and bright over most of its length and at both of its ends; the chest
    wall's side of a breast is dark above or below the breast, or bright farther in, too.

    Returns:
        list: lines cleared at the left, top, right and bottom.
    """
    depths = {}
    for axis in (0, 1):
        lines = foreground if axis == 0 else foreground.T
        bright = is_bright if axis == 0 else is_bright.T
        fifth = max(1, bright.shape[1] // 5)
        at_ends = np.minimum(bright[:, :fifth].mean(axis=1), bright[:, -fifth:].mean(axis=1))
        is_bright_line = bright.mean(axis=1) > 0.5
        is_border_line = is_bright_line & (at_ends > 0.25)
        limit = max(2, round(MAX_BORDER * len(lines)))
        limit = min(limit, len(lines))
        orders = (np.arange(limit), len(lines) - 1 - np.arange(limit))
        for end, order in enumerate(orders):
            depth = 0
            if is_border_line[order].any() and not is_bright_line[order].all():
                depth = min(int(np.flatnonzero(is_border_line[order])[-1]) + 3, limit)
            lines[order[:depth]] = 0
            depths[axis, end] = depth
    return [depths[1, 0], depths[0, 0], depths[1, 1], depths[0, 1]]


def _largest_component(foreground: np.ndarray) -> np.ndarray:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(foreground, connectivity=4)
    if count < 2:
        return np.zeros(foreground.shape, bool)
    largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
    mask = (labels == largest).astype(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(mask, contours, -1, 1, thickness=cv2.FILLED)
    return mask.astype(bool)


def _trim_ends(mask: np.ndarray) -> np.ndarray:
    """Without the upper and lower rows that are narrow beside the widest."""
    widths = mask.sum(axis=1)
    wide = np.flatnonzero(widths >= MIN_WIDTH * max(widths.max(), 1))
    trimmed = np.zeros_like(mask)
    if len(wide):
        trimmed[wide[0] : wide[-1] + 1] = mask[wide[0] : wide[-1] + 1]
    return trimmed


def _chest_wall_side(mask: np.ndarray, box: tuple[int, int, int, int]) -> str:
    """The side of the box along which more of the breast lies."""
    x0, y0, x1, y1 = box
    inside = mask[y0:y1, x0:x1]
    strip = max(1, (x1 - x0) // 10)
    return "left" if inside[:, :strip].mean() >= inside[:, -strip:].mean() else "right"
