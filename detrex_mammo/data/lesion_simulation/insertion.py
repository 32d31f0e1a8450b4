# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Putting lesions into a breast, and the boxes that follow.

The box of a lesion is exact by definition: it bounds the pixels whose 16-bit value rose by at
least ``box_fraction`` of the lesion's largest rise. So a box can be recomputed from the image
with and without the lesion; the faint tips of spicules and the blur around grains stay outside.
Boxes are xyxy in pixels, the right and lower edges exclusive.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from detrex_mammo.data.lesion_simulation.film import FilmCurve
from detrex_mammo.data.lesion_simulation.masses import Lesion
from detrex_mammo.data.lesion_simulation.parameters import PlacementParameters

MASS = 1
# Tissue is smoothed over about 1 mm (full width at half maximum) before its clutter is measured.
CLUTTER_SIGMA_MM = 0.4


@dataclass
class InsertedLesion:
    """A lesion in its place.

    Attributes:
        category_id: 1 mass, 2 calcification cluster.
        box: (x0, y0, x1, y1) of the visible core, in pixels.
        support: (x0, y0, x1, y1) of every pixel that changed.
        attributes: what was drawn, and the reached peak and contrast-to-clutter ratio.
    """

    category_id: int
    box: tuple[int, int, int, int]
    support: tuple[int, int, int, int]
    attributes: dict[str, Any]


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Bounds of the True pixels of a non-empty mask as (x0, y0, x1, y1), ends exclusive."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _core_half_size(lesion: Lesion) -> float:
    """Half the longer side of the visible core, from the contrast alone."""
    x0, y0, x1, y1 = bounds(lesion.contrast >= lesion.box_fraction * lesion.contrast.max())
    return 0.5 * max(x1 - x0, y1 - y0)


def _room(free: np.ndarray) -> np.ndarray:
    """Distance in pixels of each pixel from what is not free; the image's rim is not free."""
    padded = np.pad(free.astype(np.uint8), 1)
    return cv2.distanceTransform(padded, cv2.DIST_L2, 5)[1:-1, 1:-1]


def _try_place(
    pixels: np.ndarray,
    lesion: Lesion,
    centre: tuple[int, int],
    film: FilmCurve,
    pitch_mm: float,
) -> tuple[np.ndarray, tuple[int, int], InsertedLesion] | None:
    """The patch with the lesion at ``centre`` (x, y), its corner and what it holds.

    None when no pixel changes.
    """
    height, width = pixels.shape
    half_h, half_w = (side // 2 for side in lesion.contrast.shape)
    left, top = centre[0] - half_w, centre[1] - half_h
    x0, y0 = max(left, 0), max(top, 0)
    x1 = min(left + lesion.contrast.shape[1], width)
    y1 = min(top + lesion.contrast.shape[0], height)
    contrast = lesion.contrast[y0 - top : y1 - top, x0 - left : x1 - left]
    before = pixels[y0:y1, x0:x1]
    after = np.rint(film.add_contrast(before, contrast)).astype(np.uint16)
    rise = after.astype(np.int32) - before.astype(np.int32)
    peak = int(rise.max())
    if peak < 1:
        return None
    core = rise >= lesion.box_fraction * peak
    smooth = cv2.GaussianBlur(before.astype(np.float32), (0, 0), CLUTTER_SIGMA_MM / pitch_mm)
    clutter = float(smooth[contrast > 0].std())
    bx0, by0, bx1, by1 = bounds(core)
    sx0, sy0, sx1, sy1 = bounds(rise > 0)
    attributes = {
        **lesion.attributes,
        "peak_of_full_scale": peak / film.full_scale,
        "contrast_to_clutter": float(rise[core].mean()) / max(clutter, 1.0),
    }
    placed = InsertedLesion(
        lesion.category_id,
        (bx0 + x0, by0 + y0, bx1 + x0, by1 + y0),
        (sx0 + x0, sy0 + y0, sx1 + x0, sy1 + y0),
        attributes,
    )
    return after, (x0, y0), placed


def _acceptable(placed: InsertedLesion, placement: PlacementParameters) -> bool:
    peak = placed.attributes["peak_of_full_scale"]
    if placed.category_id != MASS:
        return peak >= placement.min_peak_cluster
    ratio = placed.attributes["contrast_to_clutter"]
    return peak >= placement.min_peak and ratio >= placement.min_contrast_to_clutter


def _taken(mask: np.ndarray, box: tuple[int, int, int, int], margin: int = 0) -> np.ndarray:
    """The part of a mask inside a box and ``margin`` pixels around it: a view."""
    x0, y0, x1, y1 = box
    return mask[max(y0 - margin, 0) : y1 + margin, max(x0 - margin, 0) : x1 + margin]


def insert_lesions(
    pixels: np.ndarray,
    tissue: np.ndarray,
    lesions: Sequence[Lesion],
    rng: np.random.Generator,
    pitch_mm: float,
    film: FilmCurve | None = None,
    placement: PlacementParameters | None = None,
) -> tuple[np.ndarray, list[InsertedLesion]]:
    """Insert lesions one after the other, none touching another.

    Args:
        pixels: (H, W) uint16, bright is dense tissue; not changed.
        tissue: (H, W) bool, True where a lesion may lie.
        lesions: what to insert. One that finds no place is left out.
        rng: random generator for the places.
        pitch_mm: pixel pitch.
        film: characteristic curve; taken from the tissue when None.
        placement: rules; the defaults when None.

    Returns:
        (np.ndarray, list[InsertedLesion]): the new (H, W) uint16 image and what it holds.
    """
    placement = placement or PlacementParameters()
    film = film or FilmCurve.of_breast(pixels, tissue)
    image = pixels.copy()
    taken = np.zeros_like(tissue)
    done: list[InsertedLesion] = []
    for lesion in lesions:
        needed = _core_half_size(lesion) + placement.skin_margin_mm / pitch_mm
        candidates = np.flatnonzero(_room(tissue & ~taken) >= needed)
        if len(candidates) == 0:
            continue
        for index in rng.choice(candidates, size=placement.tries):
            centre = (int(index % image.shape[1]), int(index // image.shape[1]))
            result = _try_place(image, lesion, centre, film, pitch_mm)
            if result is None:
                continue
            patch, (x0, y0), placed = result
            if not _acceptable(placed, placement) or _taken(taken, placed.support).any():
                continue
            image[y0 : y0 + patch.shape[0], x0 : x0 + patch.shape[1]] = patch
            done.append(placed)
            _taken(taken, placed.support, round(placement.gap_mm / pitch_mm))[:] = True
            break
    return image, done
