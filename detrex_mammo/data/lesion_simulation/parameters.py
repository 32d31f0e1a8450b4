# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What simulated lesions are drawn from: ranges, their units and where they come from.

Sources, by the short names used below:
    Carroll1994: Invest. Radiol. 29(3):266-272. At 14-18 keV the linear attenuation of cancers is
        66.5 % above that of breast fat.
    Johns1987: Phys. Med. Biol. 32(6):675-695. At 20 keV: fat 0.46, infiltrating ductal carcinoma
        0.84 per cm, so 1 cm of carcinoma in place of fat takes 0.38 * log10(e) = 0.17 decades
        from the exposure (scatter left out).
    Burgess2003: Proc. SPIE 5034. Breast backgrounds have spectra 1/f^b, b from 1.5 to 3.5.
    deSisternes2015: Med. Phys. 42(2):1098-1118, https://doi.org/10.1118/1.4905232. Masses as
        Gaussian random spheres with branching spicules.
    Saunders2006: mass borders, DDSM masses and simulation, Med. Phys. 33(7):2270-2282
        (https://scholars.duke.edu/individual/pub796876 is its forerunner).
    Kallergi1998: Acad. Radiol. 5:670-679. Calcification clusters simulated by BI-RADS terms.
    Nappi2001: Comput. Methods Programs Biomed. 66:115-124. 3D simulation of calcifications.
    BIRADS2013: ACR BI-RADS atlas, 5th ed.: grouped means at least five calcifications within
        1 cm, up to a larger number within 2 cm; regional means more than 2 cm.

The demo's network sees about 0.45 mm per pixel and learns from scratch, so the ranges below are
the conspicuous end of what is published: no sub-centimetre asymmetries, no amorphous dust.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Range:
    """A closed interval that a quantity is drawn from uniformly.

    Attributes:
        low: smallest value.
        high: largest value.
        unit: its unit, for example "mm".
        source: where the interval comes from.
    """

    low: float
    high: float
    unit: str
    source: str

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"a Range needs low <= high, got {self.low} and {self.high}")

    def draw(self, rng: np.random.Generator) -> float:
        """One value, uniform over the interval."""
        return float(rng.uniform(self.low, self.high))

    def draw_integer(self, rng: np.random.Generator) -> int:
        """One whole number, uniform over the interval, both ends included."""
        return int(rng.integers(int(self.low), int(self.high) + 1))

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies in the interval (with a rounding error's grace)."""
        slack = 1e-6 * max(abs(self.low), abs(self.high))
        return self.low - slack <= value <= self.high + slack


def _range(low: float, high: float, unit: str, source: str) -> Any:
    return field(default_factory=lambda: Range(low, high, unit, source))


@dataclass(frozen=True)
class MassParameters:
    """Ranges of a simulated mass. Shapes are drawn with ``shape_weights``.

    The contrast is the fall of log10 exposure behind the mass's thickest part.
    """

    shape_weights: tuple[tuple[str, float], ...] = (
        ("round", 0.35),
        ("lobulated", 0.35),
        ("spiculated", 0.30),
    )
    diameter: Range = _range(9.0, 24.0, "mm", "Saunders2006; screen-detected masses, larger half")
    contrast: Range = _range(
        0.22, 0.37, "log10 exposure", "13 to 22 mm of carcinoma in fat: Johns1987, Carroll1994"
    )
    aspect: Range = _range(1.0, 1.45, "1", "round to oval, BIRADS2013")
    margin_sharp: Range = _range(0.15, 0.45, "mm", "circumscribed; Saunders2006")
    margin_soft: Range = _range(0.45, 1.1, "mm", "ill-defined; Saunders2006")
    dome: Range = _range(0.35, 0.6, "1", "thickness exponent; 0.5 is an ellipsoid's projection")
    num_lobes: Range = _range(2, 4, "1", "deSisternes2015")
    lobe_depth: Range = _range(0.06, 0.13, "of the radius", "deSisternes2015")
    num_spicules: Range = _range(18, 40, "1", "deSisternes2015")
    spicule_length: Range = _range(0.5, 1.3, "of the radius", "deSisternes2015")
    spicule_width: Range = _range(0.3, 0.9, "mm", "deSisternes2015")
    texture: Range = _range(0.05, 0.16, "of the contrast", "Burgess2003, exponent 3")
    box_fraction: float = 0.30
    box_fraction_spiculated: float = 0.50


@dataclass(frozen=True)
class ClusterParameters:
    """Ranges of a simulated calcification cluster.

    A grain's contrast follows from its size: ``contrast_per_mm`` times its thickness.
    """

    kind_weights: tuple[tuple[str, float], ...] = (
        ("punctate", 0.35),
        ("pleomorphic", 0.45),
        ("fine linear", 0.20),
    )
    diameter: Range = _range(8.0, 20.0, "mm", "grouped to small regional: BIRADS2013")
    aspect: Range = _range(1.0, 1.7, "1", "Kallergi1998")
    num_grains: Range = _range(16, 40, "1", "BIRADS2013, at least 5; Kallergi1998")
    grain_size: Range = _range(0.35, 0.9, "mm", "0.1-1 mm, the part above 0.35: Nappi2001")
    contrast_per_mm: Range = _range(
        0.75, 1.15, "log10 exposure per mm", "hydroxyapatite at 17 to 20 keV, Johns1987's range"
    )
    psf_sigma: Range = _range(0.06, 0.12, "mm", "screen-film blur, about 5 line pairs per mm")
    box_fraction: float = 0.25


@dataclass(frozen=True)
class PlacementParameters:
    """Where lesions may lie.

    Attributes:
        skin_margin_mm: from a lesion's box to the skin, the film's border and the labels.
        gap_mm: between the supports of two lesions of one image.
        min_peak: smallest peak difference of a mass, as a part of the film's full scale. Tissue
            that the film shows nearly white leaves no room for contrast: such a place is refused.
        min_peak_cluster: the same of a cluster's brightest grain.
        min_contrast_to_clutter: smallest ratio of a mass's mean added signal to the standard
            deviation of the tissue (smoothed over 1 mm) around it.
        tries: places tried before a lesion is given up.
    """

    skin_margin_mm: float = 3.0
    gap_mm: float = 3.0
    min_peak: float = 0.14
    min_peak_cluster: float = 0.22
    min_contrast_to_clutter: float = 2.2
    tries: int = 60


def describe(parameters: Any) -> dict[str, Any]:
    """A parameter dataclass as plain JSON data, ranges with unit and source."""
    return asdict(parameters)
