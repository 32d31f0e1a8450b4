# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Quantities as text."""

import pytest

from detrex_mammo.benchmark.units import quantity_text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (26.72, "s", "26.7 s"),
        (1.0, "s", "1.00 s"),
        (0.0241, "s", "24.1 ms"),
        (0.00012, "s", "120 us"),
        (4e-8, "s", "0.040 us"),
        (8.3e9, "B", "8.30 GB"),
        (65_000_000, "B", "65.0 MB"),
        (1_131e6, "B", "1.13 GB"),
        (0, "B", "0 kB"),
        (7.516, "images/s", "7.52 images/s"),
        (2410.4, "images/s", "2410 images/s"),
    ],
)
def test_three_digits_and_a_unit_that_fits(value: float, unit: str, text: str) -> None:
    assert quantity_text(value, unit) == text
