# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Simulated calcification clusters, after the BI-RADS terms (Kallergi et al., Acad. Radiol. 5:670).

Grains are drawn on a grid four times finer than the image, blurred by the screen-film point
spread, and averaged down, so a 0.3 mm grain loses contrast as it does in a scanner.
"""

import cv2
import numpy as np

from detrex_mammo.data.lesion_simulation.masses import Lesion, draw_weighted
from detrex_mammo.data.lesion_simulation.noise import power_law_noise
from detrex_mammo.data.lesion_simulation.parameters import ClusterParameters

_FINE = 4


def _grain(kind: str, size_px: float, rng: np.random.Generator) -> np.ndarray:
    """One grain's relative thickness, (side, side) float32 in [0, 1], on the fine grid."""
    half = int(np.ceil(size_px * (1.6 if kind == "fine linear" else 1.0))) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    side = 2 * half + 1
    if kind == "punctate":
        stretch, ragged = rng.uniform(1.0, 1.25), 0.10
    elif kind == "pleomorphic":
        stretch, ragged = rng.uniform(1.1, 2.0), 0.35
    else:
        stretch, ragged = rng.uniform(2.0, 3.2), 0.25
    angle = rng.uniform(0, np.pi)
    u = (x * np.cos(angle) + y * np.sin(angle)) / np.sqrt(stretch)
    v = (-x * np.sin(angle) + y * np.cos(angle)) * np.sqrt(stretch)
    noise = power_law_noise((side, side), 3.0, rng, lowest_cycles=1.5)
    rho = np.hypot(u, v) / (0.5 * size_px) * (1.0 + ragged * noise)
    return np.sqrt(np.maximum(1.0 - rho**2, 0.0)).astype(np.float32)


def _positions(
    num: int, semi_axes: tuple[float, float], angle: float, gap: float, rng: np.random.Generator
) -> np.ndarray:
    """Grain centres in an ellipse, at least ``gap`` apart where that can be had.

    Args:
        num: how many.
        semi_axes: of the ellipse, in pixels.
        angle: of its first axis, radians from +x towards +y.

    Returns:
        np.ndarray: (num, 2) as (x, y), centred on 0.
    """
    points: list[np.ndarray] = []
    for _ in range(60 * num):
        # The exponent lies between uniform over the area (0.5) and heaped in the middle (1).
        radius, phi = rng.uniform() ** 0.6, rng.uniform(0, 2 * np.pi)
        point = radius * np.array([np.cos(phi) * semi_axes[0], np.sin(phi) * semi_axes[1]])
        if all(np.hypot(*(point - other)) >= gap for other in points):
            points.append(point)
        if len(points) == num:
            break
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return np.array(points) @ turn


def simulate_cluster(
    rng: np.random.Generator, pitch_mm: float, parameters: ClusterParameters | None = None
) -> Lesion:
    """Draw one calcification cluster.

    Args:
        rng: random generator; the same state gives the same cluster.
        pitch_mm: pixel pitch of the image it goes into.
        parameters: ranges; the defaults when None.

    Returns:
        Lesion: category 2, ``contrast`` (h, w) in log10 exposure at ``pitch_mm``.
    """
    parameters = parameters or ClusterParameters()
    kind = draw_weighted(parameters.kind_weights, rng)
    diameter = parameters.diameter.draw(rng)
    aspect = parameters.aspect.draw(rng)
    per_mm = parameters.contrast_per_mm.draw(rng)
    num_grains = parameters.num_grains.draw_integer(rng)
    fine = pitch_mm / _FINE
    axes = (0.5 * diameter / fine, 0.5 * diameter / aspect / fine)
    centres = _positions(num_grains, axes, rng.uniform(0, np.pi), 0.9 / fine, rng)
    side = (int(np.ceil((diameter + 8.0) / pitch_mm)) // 2 * 2 + 1) * _FINE
    canvas = np.zeros((side, side), np.float32)
    sizes = []
    for x, y in centres:
        # Most grains are small, few are large.
        share = rng.beta(1.6, 2.6)
        low, high = parameters.grain_size.low, parameters.grain_size.high
        size = low + (high - low) * share
        sizes.append(float(size))
        own = kind if rng.uniform() < 0.8 else "punctate"
        grain = _grain(own, size / fine, rng) * size * rng.uniform(0.8, 1.0)
        half = grain.shape[0] // 2
        row, column = int(round(side / 2 + y)), int(round(side / 2 + x))
        window = canvas[row - half : row + half + 1, column - half : column + half + 1]
        np.maximum(window, grain, out=window)
    canvas = cv2.GaussianBlur(canvas, (0, 0), parameters.psf_sigma.draw(rng) / fine)
    coarse = side // _FINE
    contrast = per_mm * cv2.resize(canvas, (coarse, coarse), interpolation=cv2.INTER_AREA)
    contrast[contrast < 0.002] = 0.0
    attributes = {
        "shape": kind,
        "diameter_mm": diameter,
        "num_grains": len(sizes),
        "grain_sizes_mm": sizes,
        "contrast_per_mm": per_mm,
    }
    return Lesion(2, contrast.astype(np.float32), parameters.box_fraction, attributes)
