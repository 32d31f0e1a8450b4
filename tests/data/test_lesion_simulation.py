# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Simulated lesions: ranges, physics, and boxes recomputed from the images by slow plain loops."""

import math

import numpy as np
import pytest

from detrex_mammo.data.lesion_simulation import (
    ClusterParameters,
    FilmCurve,
    MassParameters,
    PlacementParameters,
    Range,
    insert_lesions,
    simulate_cluster,
    simulate_mass,
)
from detrex_mammo.data.lesion_simulation.noise import power_law_noise

PITCH_MM = 0.2


def _breast(height: int = 620, width: int = 420) -> tuple[np.ndarray, np.ndarray]:
    """A grey half-disc with soft texture on black, and its mask."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:height, 0:width]
    mask = (y - height / 2) ** 2 + x**2 < (0.47 * height) ** 2
    value = 24000 + 1500 * power_law_noise((height, width), 3.0, rng)
    return np.where(mask, value, 300).astype(np.uint16), mask


def _lesions(seed: int, num: int = 3) -> list:
    rng = np.random.default_rng(seed)
    makers = [simulate_mass, simulate_cluster]
    return [makers[i % 2](rng, PITCH_MM) for i in range(num)]


def _insert(seed: int, num: int = 3):
    pixels, mask = _breast()
    rng = np.random.default_rng(seed)
    after, placed = insert_lesions(pixels, mask, _lesions(seed, num), rng, PITCH_MM)
    return pixels, mask, after, placed


def _box_by_loops(before, after, support, fraction) -> tuple[int, int, int, int]:
    """The box's definition, pixel by pixel, in Python integers."""
    x0, y0, x1, y1 = support
    rises = {
        (x, y): int(after[y, x]) - int(before[y, x]) for y in range(y0, y1) for x in range(x0, x1)
    }
    threshold = fraction * max(rises.values())
    inside = [place for place, rise in rises.items() if rise >= threshold]
    columns, rows = [x for x, _ in inside], [y for _, y in inside]
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1


def _fraction(lesion) -> float:
    if lesion.category_id == 2:
        return ClusterParameters().box_fraction
    mass = MassParameters()
    spiculated = lesion.attributes["shape"] == "spiculated"
    return mass.box_fraction_spiculated if spiculated else mass.box_fraction


@pytest.mark.parametrize("seed", range(6))
def test_boxes_are_exact_to_the_pixel(seed):
    before, _, after, placed = _insert(seed)
    assert placed
    for lesion in placed:
        assert lesion.box == _box_by_loops(before, after, lesion.support, _fraction(lesion))


@pytest.mark.parametrize("seed", range(6))
def test_nothing_changes_outside_the_supports_and_nothing_gets_darker(seed):
    before, _, after, placed = _insert(seed)
    rise = after.astype(int) - before.astype(int)
    assert rise.min() >= 0
    for lesion in placed:
        x0, y0, x1, y1 = lesion.support
        window = rise[y0:y1, x0:x1]
        assert window[0].any() and window[-1].any() and window[:, 0].any() and window[:, -1].any()
        rise[y0:y1, x0:x1] = 0
    assert not rise.any()


@pytest.mark.parametrize("seed", range(6))
def test_lesions_lie_in_the_breast_and_apart(seed):
    _, mask, _, placed = _insert(seed, num=4)
    gap = round(PlacementParameters().gap_mm / PITCH_MM)
    for i, lesion in enumerate(placed):
        x0, y0, x1, y1 = lesion.box
        assert 0 < x0 < x1 < mask.shape[1] and 0 < y0 < y1 < mask.shape[0]
        assert mask[(y0 + y1) // 2, (x0 + x1) // 2]
        assert mask[y0:y1, x0:x1].mean() > 0.9
        for other in placed[i + 1 :]:
            a, b = lesion.support, other.support
            apart = (b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3])
            assert max(apart) >= gap


@pytest.mark.parametrize("seed", range(3))
def test_a_crowd_of_wide_lesions_never_touches(seed):
    """Supports of spiculated masses reach far beyond the boxes that places are chosen by."""
    pixels, mask = _breast()
    rng = np.random.default_rng(seed)
    parameters = MassParameters(shape_weights=(("spiculated", 1.0),))
    crowd = [simulate_mass(rng, PITCH_MM, parameters) for _ in range(10)]
    _, placed = insert_lesions(pixels, mask, crowd, rng, PITCH_MM)
    assert len(placed) >= 2
    covered = np.zeros(mask.shape, int)
    for lesion in placed:
        x0, y0, x1, y1 = lesion.support
        covered[y0:y1, x0:x1] += 1
    assert covered.max() == 1


def test_the_same_seed_gives_the_same_image_and_another_seed_another():
    first, again, other = (_insert(seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[2], again[2])
    assert [lesion.box for lesion in first[3]] == [lesion.box for lesion in again[3]]
    assert (first[2] != other[2]).any()


def test_the_input_image_is_not_changed():
    before, *_ = _insert(0)
    np.testing.assert_array_equal(before, _breast()[0])


def test_what_is_drawn_stays_in_its_ranges():
    mass, cluster = MassParameters(), ClusterParameters()
    rng = np.random.default_rng(0)
    shapes = set()
    for _ in range(60):
        drawn = simulate_mass(rng, PITCH_MM)
        shapes.add(drawn.attributes["shape"])
        assert mass.diameter.holds(drawn.attributes["diameter_mm"])
        assert mass.contrast.holds(drawn.attributes["peak_log10_exposure"])
        assert drawn.contrast.max() == pytest.approx(
            drawn.attributes["peak_log10_exposure"], rel=1e-5
        )
        assert mass.margin_sharp.low <= drawn.attributes["margin_sigma_mm"] <= mass.margin_soft.high
    assert shapes == {"round", "lobulated", "spiculated"}
    kinds = set()
    for _ in range(40):
        drawn = simulate_cluster(rng, PITCH_MM)
        kinds.add(drawn.attributes["shape"])
        assert cluster.diameter.holds(drawn.attributes["diameter_mm"])
        assert cluster.contrast_per_mm.holds(drawn.attributes["contrast_per_mm"])
        assert 5 <= drawn.attributes["num_grains"] <= cluster.num_grains.high
        assert all(cluster.grain_size.holds(size) for size in drawn.attributes["grain_sizes_mm"])
    assert kinds == {"punctate", "pleomorphic", "fine linear"}


def test_sizes_are_millimetres_whatever_the_pitch():
    """A round mass's area at half its height, as a circle's diameter, against what was drawn."""
    for pitch in (0.1, 0.2, 0.4):
        for seed in range(8):
            parameters = MassParameters(shape_weights=(("round", 1.0),))
            lesion = simulate_mass(np.random.default_rng(seed), pitch, parameters)
            area = np.count_nonzero(lesion.contrast > 0.3 * lesion.contrast.max())
            measured = 2.0 * math.sqrt(area / math.pi) * pitch
            assert measured == pytest.approx(lesion.attributes["diameter_mm"], rel=0.2)


def test_a_cluster_is_no_larger_than_drawn_and_made_of_separate_grains():
    from scipy import ndimage

    for seed in range(8):
        lesion = simulate_cluster(np.random.default_rng(seed), PITCH_MM)
        rows, columns = np.nonzero(lesion.contrast > 0.25 * lesion.contrast.max())
        widest = PITCH_MM * max(np.ptp(rows), np.ptp(columns))
        assert widest <= lesion.attributes["diameter_mm"] + 2 * 0.9 * 1.8
        _, num_parts = ndimage.label(lesion.contrast > 0.02)
        assert num_parts >= 5


@pytest.mark.parametrize("maker", [simulate_mass, simulate_cluster])
def test_no_lesion_ends_in_a_cut_edge(maker):
    rng = np.random.default_rng(1)
    for _ in range(25):
        contrast = maker(rng, PITCH_MM).contrast
        assert contrast.dtype == np.float32 and contrast.min() >= 0
        rim = np.concatenate([contrast[0], contrast[-1], contrast[:, 0], contrast[:, -1]])
        assert not rim.any()
        steps = np.abs(np.diff(contrast, axis=0)).max(), np.abs(np.diff(contrast, axis=1)).max()
        if maker is simulate_mass:  # sharp is 0.15 mm sigma: 0.2 mm pixels may step by 3/4
            assert max(steps) < 0.75 * contrast.max()


def test_film_curve_by_hand():
    """full_scale 40000, slope 2 per decade, contrast log10(e) / ... chosen so exp(2 c) = 3.

    s = 0.5 -> odds 1 -> odds 3 -> s = 0.75; s = 0.8 -> odds 4 -> 12 -> s = 12/13.
    Air (0) and film base (40000 and above) stay.
    """
    film = FilmCurve(40000.0, 2.0)
    contrast = np.full((1, 5), math.log(3.0) / 2.0)
    pixels = np.array([[0, 20000, 32000, 40000, 65535]], np.uint16)
    expected = np.array([[0.0, 30000.0, 40000 * 12 / 13, 40000.0, 65535.0]])
    np.testing.assert_allclose(film.add_contrast(pixels, contrast), expected, rtol=1e-6)


def test_attenuation_adds_up():
    film = FilmCurve(50000.0)
    pixels = np.linspace(0, 60000, 200)[None]
    one, two = np.full((1, 200), 0.11), np.full((1, 200), 0.23)
    stepwise = film.add_contrast(film.add_contrast(pixels, one), two)
    np.testing.assert_allclose(stepwise, film.add_contrast(pixels, one + two), rtol=1e-5)


def test_dense_white_tissue_is_refused_and_so_is_a_breast_without_room():
    pixels, mask = _breast()
    white = np.where(mask, 39000, 300).astype(np.uint16)
    film = FilmCurve(40000.0)
    rng = np.random.default_rng(0)
    same, placed = insert_lesions(white, mask, _lesions(0), rng, PITCH_MM, film)
    assert placed == []
    np.testing.assert_array_equal(same, white)
    small = np.zeros_like(mask)
    small[300:330, 100:130] = True
    same, placed = insert_lesions(pixels, small, _lesions(0), rng, PITCH_MM)
    assert placed == []


def test_every_placed_lesion_is_visible():
    rules = PlacementParameters()
    for seed in range(6):
        for lesion in _insert(seed)[3]:
            peak = lesion.attributes["peak_of_full_scale"]
            if lesion.category_id == 1:
                assert peak >= rules.min_peak
                assert lesion.attributes["contrast_to_clutter"] >= rules.min_contrast_to_clutter
            else:
                assert peak >= rules.min_peak_cluster


@pytest.mark.parametrize("beta", [2.0, 3.0])
def test_noise_has_the_spectrum_asked_for(beta):
    """Slope of the log power against log frequency, rings averaged over 8 images."""
    side, power = 256, 0.0
    for seed in range(8):
        noise = power_law_noise((side, side), beta, np.random.default_rng(seed))
        assert noise.shape == (side, side)
        assert abs(noise.mean()) < 1e-3 and noise.std() == pytest.approx(1.0, rel=1e-4)
        power = power + np.abs(np.fft.fft2(noise)) ** 2
    fy, fx = np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side), indexing="ij")
    radius = np.hypot(fy, fx) * side
    rings = np.arange(4, 100)
    means = [power[(radius >= r) & (radius < r + 1)].mean() for r in rings]
    slope = np.polyfit(np.log(rings + 0.5), np.log(means), 1)[0]
    assert slope == pytest.approx(-beta, abs=0.1)


def test_a_range_upside_down_is_refused():
    with pytest.raises(ValueError, match="low <= high"):
        Range(2.0, 1.0, "mm", "")


def test_every_range_has_a_unit_and_a_source():
    for parameters in (MassParameters(), ClusterParameters()):
        ranges = [value for value in vars(parameters).values() if isinstance(value, Range)]
        assert len(ranges) >= 6
        assert all(value.unit and value.source for value in ranges)
