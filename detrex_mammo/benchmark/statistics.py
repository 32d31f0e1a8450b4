# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Median, quartiles and ratios of a few repeats."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """What is told of repeats: half of them lie between the quartiles.

    Attributes:
        low: first quartile.
        median: second.
        high: third.
        count: repeats.
    """

    low: float
    median: float
    high: float
    count: int


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the sorted values lie, interpolated between neighbours.

    Definition 7 of Hyndman and Fan, The American Statistician 50:361, 1996: NumPy's default.

    Args:
        values: at least one, in any order.
        share: 0 to 1.
    """
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def spread(values: Sequence[float]) -> Spread:
    """Quartiles of at least one value."""
    low, median, high = (quantile(values, share) for share in (0.25, 0.5, 0.75))
    return Spread(low, median, high, len(values))


def times_better(
    ours: Sequence[float], theirs: Sequence[float], more_is_better: bool = False
) -> Spread:
    """How many times better we are, round by round.

    What is compared in a round was measured one after another, so a machine that was busy for a
    while was so for both. If one has fewer repeats, the other's last rounds are left out.

    Args:
        ours: repeats, at least one, above 0.
        theirs: the same.
        more_is_better: a rate instead of a time or a size.
    """
    if more_is_better:
        ours, theirs = theirs, ours
    return spread([b / a for a, b in zip(ours, theirs)])
