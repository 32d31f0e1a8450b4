# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Bootstrap over patients: replicates as weights, intervals, and paired comparison.

Patients, not images, are drawn, because a woman's images are alike (Efron & Tibshirani, An
Introduction to the Bootstrap, 1993). A replicate is a row of whole weights: how often each patient
was drawn. Every figure that can be computed with weights can so be bootstrapped without a copy of
the data.

Legend: R replicates, C replicates of a block, P patients, I images.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from detrex_mammo.errors import UserError
from detrex_mammo.progress import Progress

# Weights are drawn in blocks of this many, so that memory stays flat.
_WEIGHTS_A_BLOCK = 1_000_000


@dataclass(frozen=True)
class Bootstrap:
    """What is drawn; every interval carries it.

    Attributes:
        replicates: R, at least 2.
        seed: of the draw.
        level: coverage of the interval, in (0, 1).
        stratified: draw patients with and without lesions separately, so that every replicate has
            as many of each as the data.

    Raises:
        UserError: a value is not possible.
    """

    replicates: int = 2000
    seed: int = 0
    level: float = 0.95
    stratified: bool = False

    def __post_init__(self):
        if self.replicates < 2:
            raise UserError(f"replicates was {self.replicates}, but an interval needs at least 2")
        if not 0 < self.level < 1:
            raise UserError(f"level was {self.level}, but it is in (0, 1), such as 0.95")
        if self.seed < 0:
            raise UserError(f"seed was {self.seed}, but it is a whole number from 0")

    def text(self) -> str:
        """The settings in words, for captions."""
        strata = ", those with and without lesions separately" if self.stratified else ""
        return (
            f"{100 * self.level:g} % percentile interval of {self.replicates} bootstrap replicates "
            f"over patients{strata} (seed {self.seed})"
        )

    def blocks(
        self, patients: np.ndarray, is_positive: np.ndarray | None = None
    ) -> Iterator[np.ndarray]:
        """The rows of :meth:`weights`, a few at a time.

        Yields:
            np.ndarray: (C, P) int64, R rows in all.
        """
        number = int(patients.max()) + 1 if len(patients) else 0
        groups = [np.arange(number)]
        if self.stratified:
            positive = np.zeros(number, dtype=bool)
            positive[patients[is_positive]] = True
            groups = [np.flatnonzero(positive), np.flatnonzero(~positive)]
        generator = np.random.default_rng(self.seed)
        step = max(1, _WEIGHTS_A_BLOCK // max(number, 1))
        with Progress("bootstrap", self.replicates, "replicate") as loop:
            for start in range(0, self.replicates, step):
                rows = min(step, self.replicates - start)
                drawn = np.zeros((rows, number), dtype=np.int64)
                for group in groups:
                    if len(group):
                        places = generator.integers(0, len(group), (rows, len(group)))
                        places += len(group) * np.arange(rows)[:, None]
                        counts = np.bincount(places.ravel(), minlength=rows * len(group))
                        drawn[:, group] = counts.reshape(rows, len(group))
                yield drawn
                loop.update(rows)

    def weights(self, patients: np.ndarray, is_positive: np.ndarray | None = None) -> np.ndarray:
        """How often each patient is drawn in each replicate.

        Args:
            patients: (I,) number of the patient of each image, 0 to P - 1, each at least once.
            is_positive: (I,) bool, image has a lesion; needed if ``stratified``.

        Returns:
            np.ndarray: (R, P) int32, each row summing to P; the same for the same seed, so that
            two models on the same set are compared pairwise.
        """
        blocks = [block.astype(np.int32) for block in self.blocks(patients, is_positive)]
        return np.concatenate(blocks)

    def replicate(
        self,
        statistics: Sequence[Callable[[np.ndarray], np.ndarray]],
        patients: np.ndarray,
        is_positive: np.ndarray | None = None,
    ) -> list[np.ndarray]:
        """Several statistics in the same replicates.

        Args:
            statistics: functions of weights, (C, P) int64 -> (C, F) float64.
            patients, is_positive: as for :meth:`weights`.

        Returns:
            list[np.ndarray]: (R, F) of each statistic.
        """
        found = [
            [statistic(weights) for statistic in statistics]
            for weights in self.blocks(patients, is_positive)
        ]
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def interval(self, values: np.ndarray) -> tuple[float, float]:
        """Percentile interval of a figure's values in the replicates.

        Args:
            values: (R,); NaN where a replicate has no such figure (it drew no lesion, say).

        Returns:
            tuple[float, float]: lower and upper end; NaN if no replicate has a value.
        """
        values = values[~np.isnan(values)]
        if not len(values):
            return float("nan"), float("nan")
        tail = (1 - self.level) / 2
        low, high = np.quantile(values, (tail, 1 - tail))
        return float(low), float(high)


def paired_p_value(differences: np.ndarray) -> float:
    """Two-sided p-value that two models are alike, from paired replicates.

    Twice the smaller share of replicates on either side of 0, replicates at 0 counting half to
    each; never below 1 / (R + 1), which is the finest that R replicates can tell.

    Args:
        differences: (R,) figure of model A less that of model B in the same replicates.
    """
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return float("nan")
    ties = 0.5 * np.mean(differences == 0)
    smaller = min(np.mean(differences < 0) + ties, np.mean(differences > 0) + ties)
    return float(min(1.0, max(2 * smaller, 1 / (len(differences) + 1))))
