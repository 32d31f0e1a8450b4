# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""ROC curve and area of image, breast or case scores, with intervals over patients.

Legend: U units, M positive ones, R replicates, P patients, T operating points. Rates lie in [0, 1].

- A unit is called positive when its score is >= the threshold, so units of one score go together.
- The area is the probability that a positive unit has a higher score than a negative one, ties
  counting one half (the Mann-Whitney statistic; Hanley & McNeil 1982).
- **Specificity at a sensitivity** s is that of the highest threshold whose sensitivity is >= s;
  sensitivity at a specificity likewise. Both are steps of the data, never interpolated. In a
  replicate the threshold is chosen anew.

Worked by hand: positives 0.9, 0.5 and negatives 0.5, 0.1. Of the four pairs three are in order and
one is tied: area 3.5 / 4 = 0.875. The curve's points (1 - specificity, sensitivity) are (0, 0),
(0, 1/2), (1/2, 1), (1, 1); the specificity at sensitivity 0.9 is 1/2. With the first positive and
the last negative counted twice the area is (2 * 2 + 2 * 1 + 1 * 2 + 1/2) / (3 * 3) = 8.5 / 9.
"""

from dataclasses import dataclass, replace

import numpy as np

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.estimate import Draws, Estimate, divide, estimate, ratios
from detrex_mammo.evaluation.scores import UnitScores


@dataclass(frozen=True)
class RocCurve:
    """A ROC curve with its counts.

    Attributes:
        thresholds: (T,) float64, falling; the first is +inf (nothing is called positive).
        true_positives: (T,) int64.
        false_positives: (T,) int64.
        num_positive, num_negative: units.
    """

    thresholds: np.ndarray
    true_positives: np.ndarray
    false_positives: np.ndarray
    num_positive: int
    num_negative: int

    @property
    def sensitivity(self) -> np.ndarray:
        """(T,); NaN without positives."""
        return divide(self.true_positives, self.num_positive)

    @property
    def specificity(self) -> np.ndarray:
        """(T,); NaN without negatives."""
        return 1 - divide(self.false_positives, self.num_negative)

    def partial_area(self, max_false_positive_rate: float) -> float:
        """Area left of a false positive rate, put on a scale where chance is 1/2 and perfect 1.

        The curve is joined by straight lines; the scale is McClish's (1989).

        Raises:
            UserError: the rate is not in (0, 1].
        """
        limit = max_false_positive_rate
        if not 0 < limit <= 1:
            raise UserError(f"the false positive rate was {limit!r}, but it is in (0, 1]")
        rate, height = divide(self.false_positives, self.num_negative), self.sensitivity
        inside = rate <= limit
        x = np.append(rate[inside], limit)
        y = np.append(height[inside], np.interp(limit, rate, height))
        area = float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))
        chance = limit**2 / 2
        return (1 + (area - chance) / (limit - chance)) / 2

    def corners(self) -> np.ndarray:
        """Rows of the points at which the curve bends; the others lie on its straight lines."""
        steps = np.diff(self.false_positives), np.diff(self.true_positives)
        bends = steps[0][1:] * steps[1][:-1] != steps[0][:-1] * steps[1][1:]
        return np.concatenate([[0], np.flatnonzero(bends) + 1, [len(self.thresholds) - 1]])


def roc(units: UnitScores) -> RocCurve:
    """The ROC curve, every distinct score a point."""
    order = np.argsort(-units.scores, kind="stable")
    falling, positive = units.scores[order], units.positive[order]
    ends = np.flatnonzero(np.diff(falling, append=-np.inf) != 0)
    hits = np.concatenate([[0], np.cumsum(positive)[ends]])
    return RocCurve(
        thresholds=np.concatenate([[np.inf], falling[ends]]),
        true_positives=hits,
        false_positives=np.concatenate([[0], ends + 1]) - hits,
        num_positive=int(positive.sum()),
        num_negative=int((~positive).sum()),
    )


def auc(units: UnitScores, draws: Draws | None = None) -> Estimate:
    """Area under the ROC curve; NaN without positives or without negatives."""
    return _ranked(units, draws, lambda ranks, weights: ranks.area(weights))


def specificity_at(units: UnitScores, sensitivity: float, draws: Draws | None = None) -> Estimate:
    """Specificity at the highest threshold that reaches a sensitivity.

    Raises:
        UserError: the sensitivity is not in (0, 1].
    """
    check_rate("sensitivity", sensitivity)
    return _ranked(units, draws, lambda ranks, weights: ranks.correct_below(weights, sensitivity))


def sensitivity_at(units: UnitScores, specificity: float, draws: Draws | None = None) -> Estimate:
    """Sensitivity at the lowest threshold that reaches a specificity.

    Raises:
        UserError: the specificity is not in (0, 1].
    """
    check_rate("specificity", specificity)
    mirrored = replace(units, scores=-units.scores, positive=~units.positive)
    found = _ranked(mirrored, draws, lambda ranks, w: ranks.correct_below(w, specificity))
    return replace(found, of=_unit_counts(units))


def rates_at(
    units: UnitScores, threshold: float, draws: Draws | None = None
) -> dict[str, Estimate]:
    """Sensitivity, specificity, PPV and NPV of calling scores >= ``threshold`` positive."""
    called, positive = units.scores >= threshold, units.positive

    def count(flags):
        return np.bincount(units.patients[flags], minlength=units.num_patients)

    top = {
        "sensitivity": count(called & positive),
        "specificity": count(~called & ~positive),
        "ppv": count(called & positive),
        "npv": count(~called & ~positive),
    }
    bottom = {
        "sensitivity": count(positive),
        "specificity": count(~positive),
        "ppv": count(called),
        "npv": count(~called),
    }
    unit = f"{units.level}s"
    of = {
        "sensitivity": f"positive {unit}",
        "specificity": f"negative {unit}",
        "ppv": f"{unit} called positive",
        "npv": f"{unit} called negative",
    }
    return ratios(top, bottom, of, draws)


def check_rate(name: str, value: float) -> None:
    """Refuse a target that is not in (0, 1].

    Raises:
        UserError: naming it.
    """
    if not 0 < value <= 1:
        raise UserError(f"{name} was {value!r}, but it is in (0, 1], such as 0.9")


class _Ranks:
    """Sorted once; then every replicate is a few sums over weights, in blocks of replicates.

    Attributes:
        positives, negatives: patients of the positive units by falling and of the negative ones
            by rising score.
        below, up_to: (M,) number of negatives with a lower, and with a lower or equal, score.
    """

    def __init__(self, units):
        high, low = units.scores[units.positive], units.scores[~units.positive]
        falling, rising = np.argsort(-high, kind="stable"), np.argsort(low, kind="stable")
        self.positives = units.patients[units.positive][falling]
        self.negatives = units.patients[~units.positive][rising]
        high, low = high[falling], low[rising]
        self.below = np.searchsorted(low, high, side="left")
        self.up_to = np.searchsorted(low, high, side="right")

    def _sums(self, weights):
        """Weights of the positives (R, M) and, cumulated, of the negatives from 0, (R, U-M+1)."""
        negatives = np.zeros((len(weights), len(self.negatives) + 1))
        np.cumsum(weights[:, self.negatives], axis=1, out=negatives[:, 1:])
        return weights[:, self.positives].astype(np.float64), negatives

    def area(self, weights):
        """(R,) area; NaN where a replicate has no positive or no negative."""
        positive, negative = self._sums(weights)
        pairs = negative[:, self.below] + negative[:, self.up_to]
        won = np.einsum("rm,rm->r", positive, pairs) / 2
        return divide(won, positive.sum(axis=1) * negative[:, -1])

    def correct_below(self, weights, target):
        """(R,) share of negatives under the highest threshold that keeps ``target`` positives."""
        positive, negative = self._sums(weights)
        if not len(self.positives):
            return np.full(len(weights), np.nan)
        reached = np.cumsum(positive, axis=1)
        total = reached[:, -1]
        # counts are compared: 0.9 of 10 positives is 9 of them, whatever 0.9 * 10 rounds to
        enough = reached >= (target * total * (1 - 1e-12))[:, None]
        first = np.argmax(enough, axis=1)
        rows = np.arange(len(weights))
        share = divide(negative[rows, self.below[first]], negative[:, -1])
        return np.where(total > 0, share, np.nan)


def _ranked(units, draws, figure):
    ranks = _Ranks(units)
    value = figure(ranks, np.ones((1, units.num_patients), dtype=np.int32))[0]
    replicates = None
    if draws is not None:
        blocks = draws.blocks(3 * len(units))
        replicates = np.concatenate([figure(ranks, draws.weights[block]) for block in blocks])
    return estimate(value, replicates, draws, _unit_counts(units))


def _unit_counts(units):
    number = int(units.positive.sum())
    return f"{number} positive and {len(units) - number} negative {units.level}s"
