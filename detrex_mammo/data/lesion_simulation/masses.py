# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Simulated masses: round, lobulated, spiculated.

A mass is the projected thickness of a body whose outline is a random function of the angle, the
2D section of the Gaussian random sphere of de Sisternes et al. (Med. Phys. 42:1098, 2015), with
branching spicules for the spiculated ones. Legend: theta angle, rho radius over outline.
"""

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from detrex_mammo.data.lesion_simulation.noise import power_law_noise
from detrex_mammo.data.lesion_simulation.parameters import MassParameters
from detrex_mammo.data.lesion_simulation.spicules import draw_spicules


@dataclass
class Lesion:
    """A lesion before it is put into a breast.

    Attributes:
        category_id: 1 mass, 2 calcification cluster.
        contrast: (h, w) float32, the fall of log10 exposure; 0 outside the lesion.
        box_fraction: a pixel belongs to the box when its added pixel value reaches this part of
            the lesion's largest.
        attributes: what was drawn, for the record.
    """

    category_id: int
    contrast: np.ndarray
    box_fraction: float
    attributes: dict[str, Any] = field(default_factory=dict)


def draw_weighted(weights: tuple[tuple[str, float], ...], rng: np.random.Generator) -> str:
    """One name, with probability proportional to its weight."""
    names = [name for name, _ in weights]
    shares = np.array([weight for _, weight in weights], dtype=np.float64)
    return names[int(rng.choice(len(names), p=shares / shares.sum()))]


def _outline(
    shape: str, theta: np.ndarray, parameters: MassParameters, rng: np.random.Generator
) -> np.ndarray:
    """Radius over mean radius at each angle.

    Args:
        shape: "round", "lobulated" or "spiculated".
        theta: (h, w) angles in radians.

    Returns:
        np.ndarray: (h, w), about 1.
    """
    radius = np.ones_like(theta)
    for order in range(2, 9):
        # Every outline has a little of every harmonic: nothing in a breast is a perfect ellipse.
        sigma = (0.10 if shape == "spiculated" else 0.035) / order**0.8
        radius += sigma * rng.standard_normal() * np.cos(order * theta + rng.uniform(0, 2 * np.pi))
    if shape == "lobulated":
        lobes = parameters.num_lobes.draw_integer(rng)
        depth = parameters.lobe_depth.draw(rng)
        phase = rng.uniform(0, 2 * np.pi)
        # Lobes are unequal: their phase and depth wander around the mass.
        wander = 0.5 * np.cos(theta + rng.uniform(0, 2 * np.pi))
        swell = 1.0 + 0.5 * np.cos(theta + rng.uniform(0, 2 * np.pi))
        # |cos| makes round lobes with narrow notches between them.
        wave = 1.4 * np.abs(np.cos((lobes * (theta + phase) + wander) / 2.0)) - 0.9
        radius += 2.0 * depth * swell * wave * 0.75
    return np.maximum(radius, 0.45)


def _body(
    shape: str,
    diameter_px: float,
    parameters: MassParameters,
    rng: np.random.Generator,
    half: int,
) -> np.ndarray:
    """Relative thickness of the mass without spicules and blur, (2 half + 1) squared, max 1."""
    aspect = parameters.aspect.draw(rng)
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    side = 2 * half + 1
    # A slow random warp bends the outline beyond what a function of the angle can do.
    warp = 0.06 * diameter_px * (1.5 if shape == "spiculated" else 0.6)
    x = x + warp * power_law_noise((side, side), 4.5, rng, lowest_cycles=side / diameter_px)
    y = y + warp * power_law_noise((side, side), 4.5, rng, lowest_cycles=side / diameter_px)
    u = (x * np.cos(angle) + y * np.sin(angle)) * np.sqrt(aspect)
    v = (-x * np.sin(angle) + y * np.cos(angle)) / np.sqrt(aspect)
    outline = _outline(shape, np.arctan2(v, u), parameters, rng) * diameter_px / 2.0
    rho = np.hypot(u, v) / outline
    return np.maximum(1.0 - rho**2, 0.0) ** parameters.dome.draw(rng)


def simulate_mass(
    rng: np.random.Generator, pitch_mm: float, parameters: MassParameters | None = None
) -> Lesion:
    """Draw one mass.

    Args:
        rng: random generator; the same state gives the same mass.
        pitch_mm: pixel pitch of the image it goes into.
        parameters: ranges; the defaults when None.

    Returns:
        Lesion: category 1, ``contrast`` (h, w) in log10 exposure at ``pitch_mm``.
    """
    parameters = parameters or MassParameters()
    shape = draw_weighted(parameters.shape_weights, rng)
    diameter = parameters.diameter.draw(rng)
    contrast = parameters.contrast.draw(rng)
    soft = shape == "spiculated" or rng.uniform() < 0.25
    margin = (parameters.margin_soft if soft else parameters.margin_sharp).draw(rng)
    diameter_px = diameter / pitch_mm
    reach = 0.5 * diameter_px * (2.3 if shape == "spiculated" else 1.6) + 3 * margin / pitch_mm
    half = int(np.ceil(reach)) + 2
    profile = _body(shape, diameter_px, parameters, rng, half)
    texture = parameters.texture.draw(rng)
    noise = power_law_noise(profile.shape, 3.0, rng, lowest_cycles=2 * half / diameter_px)
    profile = profile * np.maximum(1.0 + texture * noise, 0.0)
    profile = cv2.GaussianBlur(profile, (0, 0), margin / pitch_mm)
    if shape == "spiculated":
        spicules = draw_spicules(profile, diameter_px, pitch_mm, parameters, rng)
        profile = np.maximum(profile, spicules) + 0.35 * np.minimum(profile, spicules)
    profile = _fade_out(profile)
    attributes = {
        "shape": shape,
        "diameter_mm": diameter,
        "margin_sigma_mm": margin,
        "peak_log10_exposure": contrast,
    }
    # A higher threshold keeps the box of a spiculated mass to its body: the tips are faint.
    spiculated = shape == "spiculated"
    fraction = parameters.box_fraction_spiculated if spiculated else parameters.box_fraction
    return Lesion(1, (contrast * profile).astype(np.float32), fraction, attributes)


def _fade_out(profile: np.ndarray) -> np.ndarray:
    """Scale to a maximum of 1 and bring the patch's rim smoothly to exactly 0."""
    profile = profile / max(float(profile.max()), 1e-6)
    side = profile.shape[0]
    ramp = np.minimum(np.arange(side), np.arange(side)[::-1]) / (0.12 * side)
    window = np.clip(ramp, 0.0, 1.0)
    window = window * window * (3.0 - 2.0 * window)
    return np.where(profile < 0.004, 0.0, profile * np.outer(window, window)).astype(np.float32)
