# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Window settings and functions, against numbers worked by hand and pydicom's apply_windowing."""

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_windowing

from detrex_mammo.data.grey_levels import WindowPolicy, apply_window, range_of_pixels, stretch
from detrex_mammo.errors import UserError


def test_settings_are_read():
    assert WindowPolicy.parse("auto") == WindowPolicy("auto")
    assert WindowPolicy.parse("window:2") == WindowPolicy("window", index=2)
    assert WindowPolicy.parse("lut:0") == WindowPolicy("lut", index=0)
    assert WindowPolicy.parse("percentile:0.5,99") == WindowPolicy(
        "percentile", percentiles=(0.5, 99.0)
    )


@pytest.mark.parametrize(
    "text", ["Auto", "", "window", "window:-1", "window:a", "lut:", "minmax:1", "none:0", None]
)
def test_other_settings_are_refused_with_the_list(text):
    with pytest.raises(UserError, match="window is .* must be 'auto', 'window:i', 'lut:i'"):
        WindowPolicy.parse(text)


@pytest.mark.parametrize(
    "text", ["percentile:", "percentile:5", "percentile:9,3", "percentile:0,101"]
)
def test_percentiles_are_two_in_order(text):
    with pytest.raises(UserError, match="two numbers, 0 <= low < high <= 100"):
        WindowPolicy.parse(text)


@pytest.mark.parametrize(
    "function,expected",
    [
        # (x - (40 - 0.5)) / (80 - 1) + 0.5 of 255: 40 lies half a step above the middle.
        ("LINEAR", [0.0, 0.0, 255 * (0.5 / 79 + 0.5), 255.0, 255.0]),
        ("LINEAR_EXACT", [0.0, 0.0, 127.5, 255.0, 255.0]),
        # 1 / (1 + e^(-4 (x - 40) / 80)): e^2 at 0, e^3 at -20 ...
        ("SIGMOID", [255 / (1 + np.e**3), 255 / (1 + np.e**2), 127.5, 255 / (1 + np.e**-2), 255]),
    ],
)
def test_window_functions_by_hand(function, expected):
    shown = apply_window(np.array([-20.0, 0.0, 40.0, 80.0, 9000.0]), 40.0, 80.0, function)
    np.testing.assert_allclose(shown, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("centre,width", [(2048.0, 4096.0), (1000.5, 1.5), (-300.0, 800.0)])
def test_window_functions_agree_with_pydicom(function, centre, width):
    dataset = pydicom.Dataset()
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsStored, dataset.PixelRepresentation = 12, 0
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = centre, width, function
    values = np.arange(-1000, 5000, dtype=np.float64)
    expected = apply_windowing(values, dataset) * (255 / 4095)
    shown = apply_window(values, centre, width, function)
    np.testing.assert_allclose(shown, expected, rtol=0, atol=1e-9)


def test_a_linear_window_of_width_one_is_a_step():
    shown = apply_window(np.array([9.0, 9.5, 9.6, 10.0]), 10.0, 1.0, "LINEAR")
    assert shown.tolist() == [0, 0, 255, 255]


@pytest.mark.parametrize("width,function", [(0.5, "LINEAR"), (0, "SIGMOID"), (-3, "LINEAR_EXACT")])
def test_impossible_widths_are_refused(width, function):
    with pytest.raises(UserError, match=f"window width {width} is too small"):
        apply_window(np.zeros(1), 0.0, width, function)
    with pytest.raises(UserError, match="'CUBIC' is not"):
        apply_window(np.zeros(1), 0.0, 1.0, "CUBIC")


def test_range_of_pixels_is_numpys_inverted_cdf():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 50, 1000)
    counts = np.bincount(pixels, minlength=60)
    values = -2.0 * np.arange(60) + 7  # decreasing: a negative rescale slope
    for ends in [(0.0, 100.0), (1.0, 99.0), (20.0, 20.5)]:
        expected = np.percentile(values[pixels], ends, method="inverted_cdf")
        assert range_of_pixels(values, counts, ends) == tuple(expected)


def test_stretch_of_one_value_is_black_not_nan():
    assert stretch(np.array([3.0, 3.0]), 3.0, 3.0).tolist() == [0, 0]
