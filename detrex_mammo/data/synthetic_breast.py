# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Synthetic breasts: outline, fat, gland, fibres, skin, muscle, film. More training backgrounds.

Gland is filtered noise with a spectrum 1/f^beta (Burgess, Proc. SPIE 5034, 2003; see
:func:`power_law_noise`), shaped by depth and distance from the nipple as in the software phantoms
of Bliznakova et al. (Med. Phys. 37:5604, 2010), fibres are ridges of such noise. Every image is
synthetic and says so in its record.
"""

import cv2
import numpy as np

from detrex_mammo.data.demo_backgrounds import Background
from detrex_mammo.data.lesion_simulation.noise import power_law_noise


def synthetic_breast(
    rng: np.random.Generator, pitch_mm: float, size_mm: tuple[float, float] = (236.0, 132.0)
) -> Background:
    """Draw one breast.

    Args:
        rng: random generator.
        pitch_mm: pixel pitch.
        size_mm: height and width of the film.

    Returns:
        Background: chest wall on the left or the right; ``record`` says it is synthetic.
    """
    shape = (round(size_mm[0] / pitch_mm), round(size_mm[1] / pitch_mm))
    view = "MLO" if rng.uniform() < 0.5 else "CC"
    depth = _depth_from_skin(shape, pitch_mm, view, rng)
    breast = depth > 0
    muscle = _muscle(shape, rng) * breast if view == "MLO" else np.zeros(shape, np.float32)
    tissue_value = _tissue(shape, depth, pitch_mm, rng)
    value = tissue_value * (1 - muscle) + muscle * _muscle_value(shape, tissue_value, rng)
    # The edge of the compressed breast thins out over a centimetre.
    thickness = 1.0 - np.exp(-depth / rng.uniform(3.0, 6.0))
    skin = 0.05 * np.exp(-(((depth - 1.0) / 0.7) ** 2))
    value = value * thickness**0.8 + skin * breast
    value = cv2.GaussianBlur(value.astype(np.float32), (0, 0), 0.12 / pitch_mm)
    value = value + 0.003 * rng.standard_normal(shape, dtype=np.float32) * breast
    value = np.clip(value, 0.0, 1.0) * 65535.0 * rng.uniform(0.78, 0.95)
    chest_wall = "left" if rng.uniform() < 0.5 else "right"
    tissue = breast & (muscle < 0.5)
    _label(value, breast, pitch_mm, rng)
    if chest_wall == "right":
        value, tissue = value[:, ::-1], tissue[:, ::-1]
    record = {
        "patient_id": "synthetic",
        "laterality": chest_wall[0].upper(),
        "view": view,
        "study_id": "synthetic",
        "dataset": "synthetic breast texture, simulated lesions",
        "source": "synthetic",
        "synthetic": True,
    }
    pixels = np.ascontiguousarray(np.rint(value).astype(np.uint16))
    return Background(pixels, np.ascontiguousarray(tissue), chest_wall, record)


def _depth_from_skin(
    shape: tuple[int, int], pitch_mm: float, view: str, rng: np.random.Generator
) -> np.ndarray:
    """Distance from the skin line in mm inside the breast, 0 outside; chest wall on the left."""
    height, width = shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) * pitch_mm
    centre = height * pitch_mm * rng.uniform(0.45, 0.6)
    half_height = height * pitch_mm * rng.uniform(0.28, 0.44)
    reach = width * pitch_mm * rng.uniform(0.45, 0.85)
    up = (y - centre) / half_height
    power = rng.uniform(1.8, 2.4)
    edge = reach * np.maximum(1.0 - np.abs(up) ** power, 0.0) ** rng.uniform(0.5, 0.75)
    # The nipple is a small bump.
    nipple = rng.uniform(-0.25, 0.25)
    edge = edge + rng.uniform(0.0, 5.0) * np.exp(-(((up - nipple) * half_height / 5.0) ** 2))
    if view == "MLO":
        # Towards the arm the breast runs out into the axilla.
        tail = reach * rng.uniform(0.38, 0.6) * (0.8 + 0.35 * y / centre)
        edge = np.where(up < 0, np.maximum(edge, tail), edge)
        edge = cv2.GaussianBlur(edge, (0, 0), rng.uniform(16.0, 26.0) / pitch_mm)
    wave = power_law_noise((height, 8), 4.0, rng)[:, :1]
    inside = (x < edge + 1.5 * wave).astype(np.uint8)
    padded = cv2.copyMakeBorder(inside, 60, 60, 200, 0, cv2.BORDER_REPLICATE)
    return cv2.distanceTransform(padded, cv2.DIST_L2, 5)[60:-60, 200:] * pitch_mm


def _tissue(
    shape: tuple[int, int], depth: np.ndarray, pitch_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """Fat with gland and fibres in it, (H, W) in about [0.2, 0.9] of the film's full scale."""
    extent = max(shape) * pitch_mm
    beta = rng.uniform(2.9, 3.6)
    angle = rng.uniform(-0.7, 0.7)
    coarse = power_law_noise(
        shape, beta, rng, lowest_cycles=extent / rng.uniform(35, 80), anisotropy=1.5, angle=angle
    )
    regional = power_law_noise(shape, 4.0, rng, lowest_cycles=extent / 110.0)
    deepest = max(float(depth.max()), 1.0)
    # Gland fills the middle of the breast, fat lies below the skin.
    middle = np.clip(depth / (0.35 * deepest), 0.0, 1.0) ** 1.5
    density = rng.uniform(-1.2, 1.8)
    gland = 1.0 / (1.0 + np.exp(-(1.3 * regional + 0.7 * coarse + density + 2.2 * middle - 1.6)))
    fibres = _fibres(shape, extent, pitch_mm, rng)
    fat = rng.uniform(0.24, 0.36)
    value = fat + rng.uniform(0.28, 0.58) * gland * (1.0 + 0.12 * coarse)
    return value + rng.uniform(0.05, 0.10) * fibres * (0.4 + 0.6 * gland) + 0.012 * coarse


def _fibres(
    shape: tuple[int, int], extent: float, pitch_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """Ligaments and vessels: thin lines along which smooth noise is 0; (H, W), 0 to about 2."""
    full, pitch_mm = shape, 2.0 * pitch_mm  # half the resolution is enough for lines this soft
    shape = (full[0] // 2, full[1] // 2)
    fibres = np.zeros(shape, np.float32)
    for _ in range(int(rng.integers(3, 6))):
        smooth = power_law_noise(
            shape,
            rng.uniform(4.4, 5.4),
            rng,
            lowest_cycles=extent / rng.uniform(18, 40),
            anisotropy=rng.uniform(1.2, 3.0),
            angle=rng.uniform(-1.2, 1.2),
        )
        gradient = np.hypot(*np.gradient(smooth)) / pitch_mm + 1e-3
        width_mm = rng.uniform(0.35, 0.9)
        # Distance from the zero line in mm is |value| / |gradient|; lines come and go.
        line = np.exp(-((smooth / gradient / width_mm) ** 2))
        presence = power_law_noise(shape, 4.0, rng, lowest_cycles=extent / 40.0)
        fibres += line * np.clip(0.4 + 0.6 * presence, 0.0, 1.2)
    return cv2.resize(fibres, full[::-1], interpolation=cv2.INTER_CUBIC)


def _muscle(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """The pectoral muscle, (H, W) from 0 to 1, a soft-edged triangle at the upper left."""
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    at_top = shape[1] * rng.uniform(0.3, 0.6)
    at_wall = shape[0] * rng.uniform(0.35, 0.65)
    bent = x / at_top + (y / at_wall) ** rng.uniform(0.9, 1.15) - 1.0
    return (1.0 / (1.0 + np.exp(np.clip(bent * rng.uniform(40, 90), -40, 40)))).astype(np.float32)


def _muscle_value(
    shape: tuple[int, int], tissue: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    streaks = power_law_noise(shape, 3.0, rng, lowest_cycles=6.0, anisotropy=5.0, angle=1.1)
    return rng.uniform(0.55, 0.78) + 0.025 * streaks + 0.15 * (tissue - tissue.mean())


def _label(
    value: np.ndarray, breast: np.ndarray, pitch_mm: float, rng: np.random.Generator
) -> None:
    """A film label beside the breast, in place."""
    height, width = value.shape
    layer = np.zeros((height, width), np.uint8)
    text = str(rng.choice(["CC", "MLO", "R", "L", "15", "RCC", "LMLO"]))
    place = (int(width * rng.uniform(0.6, 0.8)), int(height * rng.uniform(0.06, 0.2)))
    scale = rng.uniform(0.25, 0.45) / pitch_mm
    cv2.putText(layer, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, 255, round(3 * scale) or 1)
    layer = cv2.GaussianBlur(layer, (0, 0), 0.2 / pitch_mm)
    outside = ~cv2.dilate(breast.astype(np.uint8), np.ones((25, 25), np.uint8)).astype(bool)
    share = layer / 255.0 * outside
    value[:] = value * (1 - share) + share * 65535.0 * rng.uniform(0.5, 0.85)
