# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Random textures with a power-law spectrum, the statistics of breast tissue."""

import numpy as np
from scipy import fft


def power_law_noise(
    shape: tuple[int, int],
    beta: float,
    rng: np.random.Generator,
    lowest_cycles: float = 1.0,
    anisotropy: float = 1.0,
    angle: float = 0.0,
) -> np.ndarray:
    """Gaussian noise whose power spectrum falls as 1 / f^beta.

    Mammograms have beta of about 3 (A. Burgess, Proc. SPIE 5034, 2003: 1.5 to 3.5, mean 2.8;
    Chen et al., Med. Phys. 39:1435, 2012: 3.2).

    Args:
        shape: (H, W).
        beta: exponent of the power spectrum.
        rng: random generator.
        lowest_cycles: frequencies below this many cycles per longer image side are held flat.
        anisotropy: above 1 stretches the texture by this factor ...
        angle: ... along this direction, radians from +x towards +y.

    Returns:
        np.ndarray: (H, W) float32, mean 0, standard deviation 1.
    """
    height, width = shape
    rows, columns = fft.next_fast_len(height), fft.next_fast_len(width)
    fy = np.fft.fftfreq(rows)[:, None].astype(np.float32)
    fx = np.fft.rfftfreq(columns)[None, :].astype(np.float32)
    along = fx * np.cos(angle) + fy * np.sin(angle)
    across = -fx * np.sin(angle) + fy * np.cos(angle)
    frequency = np.sqrt((along * anisotropy) ** 2 + across**2)
    frequency = np.maximum(frequency, lowest_cycles / max(rows, columns))
    white = fft.rfft2(rng.standard_normal((rows, columns), dtype=np.float32))
    amplitude = frequency ** (-beta / 2.0)
    amplitude[0, 0] = 0.0
    noise = fft.irfft2(white * amplitude, s=(rows, columns))[:height, :width]
    noise = noise - noise.mean()
    return (noise / max(float(noise.std()), 1e-12)).astype(np.float32)
