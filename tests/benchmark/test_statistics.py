# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Quartiles and ratios, by numbers worked out by hand."""

import numpy as np
import pytest

from detrex_mammo.benchmark.statistics import Spread, quantile, spread, times_better


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], (7.0, 7.0, 7.0)),
        ([1.0, 2.0], (1.25, 1.5, 1.75)),
        ([3.0, 1.0, 2.0], (1.5, 2.0, 2.5)),
        ([4.0, 1.0, 3.0, 2.0], (1.75, 2.5, 3.25)),  # places 0.75, 1.5 and 2.25 of 0 to 3
        ([1.0, 1.0, 1.0, 1.0, 100.0], (1.0, 1.0, 1.0)),  # one disturbed repeat moves nothing
    ],
)
def test_quartiles_by_hand(values: list[float], expected: tuple[float, ...]) -> None:
    assert spread(values) == Spread(*expected, len(values))


def test_quantile_is_numpys_default() -> None:
    values = np.random.default_rng(0).standard_normal(11)
    for share in (0.0, 0.1, 0.25, 0.5, 0.77, 1.0):
        assert quantile(values.tolist(), share) == pytest.approx(np.quantile(values, share))


def test_ratios_of_rounds() -> None:
    """Rounds 40/2, 15/1.5 and 60/4 are 20, 10 and 15: half of them lie in 12.5 to 17.5."""
    found = times_better([2.0, 1.5, 4.0], [40.0, 15.0, 60.0])
    assert found == Spread(12.5, 15.0, 17.5, 3)


def test_a_busy_round_hits_both() -> None:
    """Always 10 times, though the machine was 8 times slower in the second round."""
    assert times_better([1.0, 8.0, 1.0], [10.0, 80.0, 10.0]) == Spread(10.0, 10.0, 10.0, 3)


def test_a_rate_is_better_when_it_is_higher() -> None:
    """30 images a second against 10 is 3 times better."""
    assert times_better([30.0], [10.0], more_is_better=True) == Spread(3.0, 3.0, 3.0, 1)


def test_ratio_with_a_candidate_that_failed_later() -> None:
    """Only the first round has both: 2 / 1."""
    assert times_better([1.0], [2.0, 4.0, 6.0]) == Spread(2.0, 2.0, 2.0, 1)
