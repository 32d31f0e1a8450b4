# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Measured quantities as text."""

RATE = "images/s"  # the one unit of which more is better; the others are "s" and "B" (bytes)
_SCALES = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")),
    "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")),
    RATE: ((1.0, RATE),),
}


def quantity_text(value: float, unit: str) -> str:
    """Three digits and a unit that fits: "24.1 ms", "1.13 GB", "7.52 images/s"."""
    scales = _SCALES[unit]
    scale, name = next((pair for pair in scales if abs(value) >= pair[0]), scales[-1])
    return f"{three_digits(value / scale)} {name}"


def three_digits(value: float) -> str:
    """Three digits and never an exponent: "0.241", "2.41", "24.1", "2410"."""
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:.{max(3 - whole, 0)}f}" if value else "0"


def place_text(x: float) -> str:
    """A place on a curve: "300", "1.07"."""
    return str(int(x)) if x == int(x) else three_digits(x)
