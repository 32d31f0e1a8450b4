# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The film's characteristic curve: contrast is added in log exposure, not in pixel values.

Attenuation adds up along the ray, so a lesion lowers the logarithm of the exposure by an amount
that does not depend on the tissue around it. A digitised film's pixel value is linear in optical
density, and optical density follows log exposure along an S-shaped (Hurter-Driffield) curve with
a toe and a shoulder. With a logistic curve, value = full_scale * s and

    logit(s) = gradient * (-log10 exposure) + constant,

so tissue that is nearly white gains little, air stays black, nothing exceeds the film's base.
"""

from dataclasses import dataclass

import numpy as np

# Mammography film has a mean gradient of about 3 over a density range of about 3.6, so the logit's
# slope is 4 * 3 / 3.6 per decade.
LOGIT_PER_DECADE = 10.0 / 3.0


@dataclass(frozen=True)
class FilmCurve:
    """Pixel value (bright is dense tissue) against log exposure.

    Attributes:
        full_scale: pixel value of unexposed film.
        logit_per_decade: slope of the curve, per factor 10 of exposure.
    """

    full_scale: float
    logit_per_decade: float = LOGIT_PER_DECADE

    @classmethod
    def of_breast(cls, pixels: np.ndarray, mask: np.ndarray) -> "FilmCurve":
        """The curve of one film, its base a little above the brightest tissue.

        Args:
            pixels: (H, W) in [0, 65535].
            mask: (H, W) bool, True on the breast.
        """
        brightest = float(np.percentile(pixels[mask], 99.8))
        return cls(full_scale=float(np.clip(1.08 * brightest, 6000.0, 65535.0)))

    def add_contrast(self, pixels: np.ndarray, contrast: np.ndarray) -> np.ndarray:
        """Pixel values behind an absorber.

        Args:
            pixels: (H, W) float or uint16 in [0, 65535].
            contrast: (H, W), the fall of log10 exposure, at least 0.

        Returns:
            np.ndarray: (H, W) float32; pixels at or above ``full_scale`` are unchanged.
        """
        values = pixels.astype(np.float32)
        s = np.clip(values / self.full_scale, 0.0, 1.0)
        factor = np.exp(self.logit_per_decade * contrast.astype(np.float32))
        # logit(s) + log(factor), written without the logarithms so that s = 0 and s = 1 are exact.
        changed = s * factor / (1.0 + s * (factor - 1.0)) * self.full_scale
        return np.where(values < self.full_scale, changed, values).astype(np.float32)
