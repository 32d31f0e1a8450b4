# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Spicules: thin, tapering, gently bent, branching lines that leave a mass at odd angles."""

import cv2
import numpy as np

from detrex_mammo.data.lesion_simulation.parameters import MassParameters

_FINE = 3  # spicules are drawn on a grid this much finer and averaged down


def _path(
    start: np.ndarray, direction: float, length: float, bend: float, rng: np.random.Generator
) -> np.ndarray:
    """A random walk of the direction: (n, 2) points (x, y) from ``start``."""
    num_steps = max(int(length / 2.0), 4)
    turns = np.cumsum(rng.normal(0.0, bend, num_steps))
    drift = np.linspace(0.0, 1.0, num_steps) * rng.normal(0.0, 0.35)
    headings = direction + turns + drift
    steps = np.stack([np.cos(headings), np.sin(headings)], axis=1) * (length / num_steps)
    return np.concatenate([start[None], start + np.cumsum(steps, axis=0)])


def _stroke(canvas: np.ndarray, path: np.ndarray, width: float, strength: float) -> None:
    """Draw a path that thins and fades towards its end, keeping the larger value."""
    num_parts = len(path) - 1
    layer = np.zeros_like(canvas)
    for i in range(num_parts):
        rest = 1.0 - i / num_parts
        value = strength * rest**0.9
        thickness = max(int(round(width * (0.35 + 0.65 * rest))), 1)
        a, b = (tuple(int(round(c * 16)) for c in point) for point in path[i : i + 2])
        cv2.line(layer, a, b, float(value), thickness, cv2.LINE_AA, shift=4)
    np.maximum(canvas, layer, out=canvas)


def draw_spicules(
    body: np.ndarray,
    diameter_px: float,
    pitch_mm: float,
    parameters: MassParameters,
    rng: np.random.Generator,
) -> np.ndarray:
    """Spicules around a mass.

    Args:
        body: (side, side) the mass, centred.
        diameter_px: its nominal diameter.
        pitch_mm: pixel pitch.
        parameters: their number, length and width.
        rng: random generator.

    Returns:
        np.ndarray: (side, side) float32 in [0, 1], relative to the mass's thickest part.
    """
    side = body.shape[0]
    # uint8 strokes give OpenCV's anti-aliasing, which it lacks for floating point.
    canvas = np.zeros((side * _FINE, side * _FINE), np.uint8)
    centre = np.array([side, side]) * _FINE / 2.0
    radius = 0.5 * diameter_px * _FINE
    # Fibres come in sheaves, not like the rays of a child's sun.
    sheaves = rng.uniform(0, 2 * np.pi, int(rng.integers(4, 8)))
    for _ in range(parameters.num_spicules.draw_integer(rng)):
        direction = float(rng.choice(sheaves)) + rng.normal(0.0, 0.45)
        origin_angle = direction + rng.normal(0.0, 0.30)
        start = centre + 0.55 * radius * np.array([np.cos(origin_angle), np.sin(origin_angle)])
        length = (0.45 + parameters.spicule_length.draw(rng) * rng.uniform(0.5, 1.0)) * radius
        width = parameters.spicule_width.draw(rng) / pitch_mm * _FINE
        strength = 255.0 * rng.uniform(0.3, 0.75)
        path = _path(start, direction, length, 0.05, rng)
        _stroke(canvas, path, width, strength)
        if rng.uniform() < 0.45:
            fork = int(len(path) * rng.uniform(0.45, 0.7))
            turned = direction + rng.choice([-1, 1]) * rng.uniform(0.25, 0.6)
            branch = _path(path[fork], turned, 0.45 * length, 0.06, rng)
            _stroke(canvas, branch, 0.7 * width, 0.6 * strength)
    small = cv2.resize(canvas.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small / 255.0, (0, 0), 0.18 / pitch_mm)
