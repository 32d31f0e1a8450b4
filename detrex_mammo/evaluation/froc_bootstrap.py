# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""FROC with intervals: the curve of every bootstrap replicate, exactly, without building any.

Legend: R replicates, C replicates of a block, P patients, F values of false positives per image.

In a replicate a patient drawn twice is two patients: her images, lesions and predictions are there
twice. So the curve's counts are sums of her weight, and the order of the scores stays that of the
data. The sensitivity at f false positives per image follows from one place: the false positive, by
falling score, whose weight first exceeds what f allows. Its score is the first that is too low; a
unit counts if its hit's score is higher, and ties need nothing more. That place is found in the
cumulated weights of the false positives, down to the largest f only, and most predictions of a
large set are below that. Each replicate's result equals that of a copy of the drawn data.

Worked by hand: patient A has a lesion hit at 0.5, B a false positive at 0.9, C nothing, one image
each. Sensitivity at 1/3 is 1. A replicate (A, B, B) has two false positives at 0.9 in three images:
0. (A, A, C) has none: 1. (B, B, C) has no lesion: undefined.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.estimate import Estimate
from detrex_mammo.evaluation.froc import FrocCurve, FrocResult, froc_sweeps
from detrex_mammo.evaluation.froc_events import Sweep
from detrex_mammo.evaluation.froc_settings import CPM_FPPI, DEFAULT_FPPI, FrocSettings
from detrex_mammo.evaluation.study import as_study

BAND_POINTS = 60
# Weights are cumulated in blocks of this many, so that they stay in the processor's cache.
_NUMBERS_A_BLOCK = 500_000


class SensitivityReplicates:
    """Weights of patients to the sensitivities of one curve.

    Args:
        found: the curve's hits and false positives.
        fppi: (F,) false positives per image, each >= 0.
    """

    def __init__(self, found: Sweep, fppi: Sequence[float]):
        self.found = found
        self.fppi = np.asarray(fppi, dtype=np.float64)
        # Enough for most replicates; it grows when one needs more.
        expected = self.fppi.max(initial=0) * found.patient_images.sum()
        self._go_down_to(int(1.1 * expected) + 1000)

    def _go_down_to(self, depth: int) -> None:
        self.depth = min(depth, len(self.found.false_patients))
        self.patients = self.found.false_patients[: self.depth].astype(np.intp)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """(C, P) int64 -> (C, F) in [0, 1], NaN where no unit or no image was drawn."""
        units, images = (weights @ v for v in (self.found.patient_units, self.found.patient_images))
        # As FrocCurve.operating_point does; whole numbers, so that they are searched as they are.
        allowed = np.minimum(self.fppi * images[:, None] * (1 + 1e-12), 2.0**62).astype(np.int64)
        sensitivity = np.full(allowed.shape, np.nan)
        step = max(1, _NUMBERS_A_BLOCK // max(self.depth, len(self.found.hit_patients), 1))
        for start in range(0, len(weights), step):
            rows = slice(start, start + step)
            hits = self._hits(weights[rows], allowed[rows])
            defined = (units[rows] > 0) & (images[rows] > 0)
            sensitivity[rows][defined] = hits[defined] / units[rows][defined, None]
        return sensitivity

    def _hits(self, weights: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """Weight of the units hit at each number of false positives, (C, F)."""
        places = self._first_excess(weights, allowed)
        reached = np.zeros((len(weights), len(self.found.hit_patients) + 1), dtype=np.int64)
        np.cumsum(weights[:, self.found.hit_patients], axis=1, out=reached[:, 1:])
        counted = np.searchsorted(self.found.hit_ranks, places, side="right")
        return np.take_along_axis(reached, counted, axis=1)

    def _first_excess(self, weights: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        """Place of the first false positive that is one too many, (C, F)."""
        while True:
            reached = np.cumsum(weights.take(self.patients, axis=1), axis=1)
            places = [
                np.searchsorted(row, limits, side="right")
                for row, limits in zip(reached, allowed, strict=True)
            ]
            places = np.array(places, dtype=np.int64).reshape(allowed.shape)
            if self.depth == len(self.found.false_patients) or (places < self.depth).all():
                return places
            self._go_down_to(2 * self.depth)


@dataclass(frozen=True)
class CurveIntervals:
    """A curve with its sensitivities in the replicates.

    Attributes:
        curve: on the data themselves.
        fppi: (F,) false positives per image, rising.
        replicates: (R, F) sensitivity in [0, 1]; NaN where a replicate has none.
        bootstrap: what was drawn.
    """

    curve: FrocCurve
    fppi: np.ndarray
    replicates: np.ndarray
    bootstrap: Bootstrap

    def sensitivity_at(self, fppi: float) -> Estimate:
        """Sensitivity at one of ``fppi``, with its interval."""
        return self._estimate(self.curve.sensitivity_at(fppi), self._column(fppi))

    def cpm(self) -> Estimate:
        """Mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4, 8, with its interval."""
        columns = np.stack([self._column(f) for f in CPM_FPPI], axis=1)
        return self._estimate(self.curve.cpm(), columns.mean(axis=1))

    def band(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pointwise interval of the curve: false positives per image, lower and upper ends.

        The level holds for each point alone; the whole curve lies in the band less often.
        """
        ends = np.array([self.bootstrap.interval(column) for column in self.replicates.T])
        return self.fppi, ends[:, 0], ends[:, 1]

    def figures(self, fppi: Sequence[float] = DEFAULT_FPPI) -> dict[str, Estimate]:
        """``sens@f`` for each f, and ``cpm``."""
        found = {f"sens@{f:g}": self.sensitivity_at(f) for f in fppi}
        return {**found, "cpm": self.cpm()}

    def to_dict(self, fppi: Sequence[float] = DEFAULT_FPPI) -> dict[str, Any]:
        """The curve's report with ``low`` and ``high`` at its points, ``cpm_low`` and so on."""
        report = self.curve.to_dict(fppi)
        for point in report["points"]:
            point.update(_ends(self.sensitivity_at(point["fppi"])))
        cpm = _ends(self.cpm())
        values, low, high = ([None if np.isnan(v) else v for v in a.tolist()] for a in self.band())
        return {
            **report,
            "cpm_low": cpm["low"],
            "cpm_high": cpm["high"],
            "interval": self.bootstrap.text(),
            "band": {"fppi": values, "low": low, "high": high},
        }

    def _column(self, fppi: float) -> np.ndarray:
        place = int(np.searchsorted(self.fppi, fppi))
        if place == len(self.fppi) or self.fppi[place] != fppi:
            raise ValueError(f"fppi was {fppi}, but it was not bootstrapped: {self.fppi.tolist()}")
        return self.replicates[:, place]

    def _estimate(self, value: float, replicates: np.ndarray) -> Estimate:
        of = self.curve.counts_text()
        if np.isnan(value):
            return Estimate(value, of=of)
        return Estimate(value, *self.bootstrap.interval(replicates), of, replicates)


@dataclass(frozen=True)
class FrocIntervals:
    """A FROC with intervals.

    Attributes:
        result: curves and matching, as :func:`~detrex_mammo.evaluation.froc.froc` gives them.
        overall: all classes together.
        per_class: category id -> that class's; empty when class-agnostic.
    """

    result: FrocResult
    overall: CurveIntervals
    per_class: Mapping[int, CurveIntervals]

    def figures(
        self, names: Mapping[int, str], fppi: Sequence[float] = DEFAULT_FPPI
    ) -> dict[str, Estimate]:
        """``sens@f`` and ``cpm``; with several classes also of each, ``-<class>`` behind the name.

        Args:
            names: category id -> name.
        """
        found = self.overall.figures(fppi)
        for category, curve in self.per_class.items() if len(self.per_class) > 1 else ():
            for name, figure in curve.figures(fppi).items():
                found[f"{name}-{names[category]}"] = figure
        return found


def froc_bootstrap(
    truth,
    predictions,
    settings: FrocSettings | None = None,
    categories: Sequence[int] | None = None,
    bootstrap: Bootstrap | None = None,
    fppi: Sequence[float] = DEFAULT_FPPI,
) -> FrocIntervals:
    """FROC with intervals from a bootstrap over patients, all classes in the same replicates.

    Args:
        truth, predictions, settings, categories: as for :func:`~detrex_mammo.evaluation.froc.froc`.
            Only a Study tells patients; else every image is a patient of its own.
        bootstrap (optional): replicates, seed, level, stratified.
        fppi: false positives per image to be asked for later; those of CPM always can be.

    Raises:
        UserError: as ``froc``.
    """
    bootstrap = bootstrap or Bootstrap()
    study = as_study(truth)
    result, sweeps = froc_sweeps(study, predictions, settings, categories)
    curves = [result.overall, *result.per_class.values()]
    found = curve_intervals(curves, sweeps, study, bootstrap, fppi)
    return FrocIntervals(result, found[0], dict(zip(result.per_class, found[1:], strict=True)))


def curve_intervals(curves, sweeps, study, bootstrap, fppi=DEFAULT_FPPI) -> list[CurveIntervals]:
    """Intervals of several curves of one study, in the same replicates."""
    grid = band_fppi(fppi)
    statistics = [SensitivityReplicates(found, grid) for found in sweeps]
    replicates = bootstrap.replicate(statistics, study.patients, study.is_positive)
    return [
        CurveIntervals(curve, grid, values, bootstrap)
        for curve, values in zip(curves, replicates, strict=True)
    ]


def band_fppi(fppi: Sequence[float]) -> np.ndarray:
    """What is asked for, what CPM needs, and points between for a band, rising.

    Raises:
        UserError: a value is negative or not finite.
    """
    if any(not 0 <= f < np.inf for f in fppi):
        raise UserError(f"fppi was {list(fppi)}, but false positives per image are finite and >= 0")
    asked = [*fppi, *CPM_FPPI]
    smallest = min(f for f in asked if f > 0)
    between = np.geomspace(smallest / 2, max(asked), BAND_POINTS)
    return np.unique([*asked, *between])


def _ends(figure: Estimate) -> dict[str, float | None]:
    ends = {"low": figure.low, "high": figure.high}
    return {name: None if np.isnan(value) else value for name, value in ends.items()}
