# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Which stored values a picture shows black and which white: the ``window`` setting."""

from dataclasses import dataclass

import numpy as np

from detrex_mammo.errors import UserError

WINDOWS = (
    "'auto', 'window:i', 'lut:i', 'minmax', 'percentile:low,high', 'tissue:low,high' or 'none'"
)


@dataclass(frozen=True)
class WindowPolicy:
    """A parsed ``window`` setting.

    Attributes:
        kind: "auto", "window", "lut", "minmax", "percentile", "tissue" or "none".
        index: which window or LUT of the file, from 0.
        percentiles: (low, high) in [0, 100].
    """

    kind: str
    index: int = 0
    percentiles: tuple[float, float] = (0.0, 100.0)

    @classmethod
    def parse(cls, text: str) -> "WindowPolicy":
        """Read a setting.

        Args:
            text: "auto": the file's first VOI LUT or window, else as "minmax"; "window:i" or
                "lut:i": its window or VOI LUT number i, from 0; "minmax": the range of its pixels;
                "percentile:low,high": between two percentiles of them; "tissue:low,high": of those
                that :func:`detrex_mammo.data.breast.find_breast` says are breast; "none": all that
                its bits can store.

        Raises:
            UserError: it is none of these.
        """
        kind, _, argument = str(text).partition(":")
        if kind in ("auto", "minmax", "none") and not argument:
            return cls(kind)
        if kind in ("window", "lut") and argument.isdecimal():
            return cls(kind, index=int(argument))
        if kind in ("percentile", "tissue"):
            return cls(kind, percentiles=_two_percentiles(argument, text))
        raise UserError(f"window is {text!r}; it must be {WINDOWS}, with i from 0")


def _two_percentiles(argument: str, text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in argument.split(","))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 100:
        raise UserError(f"window is {text!r}; percentiles are two numbers, 0 <= low < high <= 100")
    return low, high


def range_of_pixels(
    values: np.ndarray, counts: np.ndarray, percentiles: tuple[float, float]
) -> tuple[float, float]:
    """Grey values below which ``percentiles`` of the pixels lie, from a histogram.

    Args:
        values: (V,) grey value of each bin, in any order.
        counts: (V,) number of pixels in it.
        percentiles: (low, high); 0 and 100 are the smallest and largest value that occur.

    Returns:
        tuple: the two values, each of which occurs (numpy's ``inverted_cdf``).
    """
    present = np.flatnonzero(counts)
    order = present[np.argsort(values[present], kind="stable")]
    below = np.cumsum(counts[order])
    ranks = np.maximum(np.ceil(np.asarray(percentiles) / 100 * below[-1]), 1)
    low, high = values[order[np.searchsorted(below, ranks)]]
    return float(low), float(high)


def stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """``values`` with ``low`` at 0 and ``high`` at 255, clipped; 0 where low equals high."""
    scale = 255.0 / (high - low) if high > low else 0.0
    return np.clip((values - low) * scale, 0.0, 255.0)


def apply_window(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """One of DICOM's three window functions (PS3.3 C.11.2.1.2 and C.11.2.1.3), onto [0, 255].

    Args:
        values: grey values after the modality LUT.
        centre: WindowCenter.
        width: WindowWidth; at least 1 for "LINEAR", above 0 for the others.
        function: VOILUTFunction: "LINEAR", "LINEAR_EXACT" or "SIGMOID".

    Raises:
        UserError: the width or function is not one that the standard allows.
    """
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise UserError(f"VOI LUT function {function!r} is not LINEAR, LINEAR_EXACT or SIGMOID")
    if not (width >= 1 if function == "LINEAR" else width > 0):
        raise UserError(f"window width {width} is too small for VOI LUT function {function}")
    if function == "SIGMOID":
        # Beyond +-60 it is 0 or 1 to double precision, and exp would overflow.
        return 255.0 / (1.0 + np.exp(-np.clip(4.0 * (values - centre) / width, -60.0, 60.0)))
    if function == "LINEAR_EXACT":
        return stretch(values, centre - width / 2, centre + width / 2)
    if width == 1:  # a step, where the slope of the formula divides by zero
        return np.where(values > centre - 0.5, 255.0, 0.0)
    return stretch(values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)
