# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A figure with its interval and its denominator, from one draw of patients for all figures.

Legend: R replicates, P patients, F figures.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.study import Study
from detrex_mammo.progress import Progress

# Replicates are computed in blocks of about this many numbers, so that memory stays flat.
_NUMBERS_A_BLOCK = 8_000_000


@dataclass(frozen=True)
class Draws:
    """The patients drawn, once for a data set: figures and models are then paired.

    Attributes:
        weights: (R, P) whole numbers, how often each patient of the study was drawn.
        bootstrap: what was drawn.
    """

    weights: np.ndarray
    bootstrap: Bootstrap

    def blocks(self, width: int):
        """Slices of the replicates for work that needs ``width`` numbers a replicate."""
        rows = max(1, _NUMBERS_A_BLOCK // max(width, 1))
        with Progress("bootstrap", len(self.weights), "replicate") as loop:
            for start in range(0, len(self.weights), rows):
                yield slice(start, start + rows)
                loop.update(min(rows, len(self.weights) - start))

    def totals(self, values: np.ndarray) -> np.ndarray:
        """Sums over the drawn patients.

        Args:
            values: (P, F) sum of each patient.

        Returns:
            np.ndarray: (R, F) float64; exact for whole numbers.
        """
        out = np.empty((len(self.weights), values.shape[1]))
        for block in self.blocks(self.weights.shape[1]):
            out[block] = self.weights[block].astype(np.float64) @ values
        return out


def draw_patients(study: Study, bootstrap: Bootstrap) -> Draws:
    """Draw the patients of a study; stratified by having a lesion of any class, if so wished."""
    return Draws(bootstrap.weights(study.patients, study.is_positive), bootstrap)


@dataclass(frozen=True)
class Estimate:
    """One figure.

    Attributes:
        value: of the data; NaN if it is undefined.
        low, high: ends of the interval over patients; NaN without a bootstrap.
        of: the denominator in words, such as ``91 lesions``.
        replicates: (R,) the figure in each replicate, for paired comparisons; empty without.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    of: str = ""
    replicates: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; undefined numbers are None, the replicates are left out."""
        numbers = {name: getattr(self, name) for name in ("value", "low", "high")}
        finite = {name: v if math.isfinite(v) else None for name, v in numbers.items()}
        return {**finite, "of": self.of}


def estimate(value: float, replicates: np.ndarray | None, draws: Draws | None, of: str) -> Estimate:
    """A figure with the interval of its replicates; without draws none."""
    if draws is None or replicates is None:
        return Estimate(float(value), of=of)
    low, high = draws.bootstrap.interval(replicates)
    return Estimate(float(value), low, high, of, replicates)


def ratios(
    top: dict[str, np.ndarray], bottom: dict[str, np.ndarray], of: dict[str, str], draws
) -> dict[str, Estimate]:
    """Ratios of sums over patients, all from one product with the draws.

    Args:
        top, bottom: name -> (P,) each patient's part of numerator and denominator.
        of: name -> what the denominator counts, such as ``lesions``.
        draws (Draws, optional): for the intervals.
    """
    names = list(top)
    values = np.stack([*(top[n] for n in names), *(bottom[n] for n in names)], axis=1).astype(float)
    total = values.sum(axis=0)
    drawn = None if draws is None else draws.totals(values)
    found = {}
    for row, name in enumerate(names):
        other = row + len(names)
        replicates = None if drawn is None else divide(drawn[:, row], drawn[:, other])
        found[name] = estimate(
            divide(total[row], total[other]), replicates, draws, f"{total[other]:.0f} {of[name]}"
        )
    return found


def divide(top, bottom):
    """``top / bottom``, NaN where ``bottom`` is 0."""
    top, bottom = np.asarray(top, dtype=np.float64), np.asarray(bottom, dtype=np.float64)
    shape = np.broadcast_shapes(top.shape, bottom.shape)
    return np.divide(top, bottom, out=np.full(shape, np.nan), where=bottom != 0)
