# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Synthetic breasts: repeatable, breast-like, and labelled synthetic."""

import numpy as np
import pytest

from detrex_mammo.data.breast import find_breast
from detrex_mammo.data.synthetic_breast import synthetic_breast

PITCH_MM = 0.4


@pytest.fixture(scope="module")
def breasts():
    return [synthetic_breast(np.random.default_rng(seed), PITCH_MM) for seed in range(10)]


def test_size_type_and_record(breasts):
    for breast in breasts:
        assert breast.pixels.shape == breast.tissue.shape == (590, 330)
        assert breast.pixels.dtype == np.uint16 and breast.tissue.dtype == bool
        assert len(np.unique(breast.pixels)) > 2000
        assert breast.record["synthetic"] is True and "synthetic" in breast.record["dataset"]
        assert breast.record["laterality"] == breast.chest_wall[0].upper()
    assert {breast.record["view"] for breast in breasts} == {"CC", "MLO"}
    assert {breast.chest_wall for breast in breasts} == {"left", "right"}


def test_the_segmentation_finds_the_breast_and_its_side(breasts):
    for breast in breasts:
        region = find_breast(breast.pixels)
        assert region.side == breast.chest_wall
        assert (region.mask & breast.tissue).sum() > 0.95 * breast.tissue.sum()


def test_room_for_lesions_and_black_air(breasts):
    for breast in breasts:
        assert 0.1 < breast.tissue.mean() < 0.8
        columns = slice(-20, None) if breast.chest_wall == "left" else slice(0, 20)
        assert breast.pixels[-60:, columns].max() < 2000
        inside = breast.pixels[breast.tissue]
        assert 8000 < np.median(inside) < 60000 and inside.std() > 1000


def test_the_same_seed_gives_the_same_breast(breasts):
    again = synthetic_breast(np.random.default_rng(4), PITCH_MM)
    np.testing.assert_array_equal(again.pixels, breasts[4].pixels)
    assert (again.pixels != breasts[5].pixels).any()
