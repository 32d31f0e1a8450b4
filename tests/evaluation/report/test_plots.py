# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Figures that can stand together in one page."""

import re

import numpy as np
from defusedxml.ElementTree import fromstring

from detrex_mammo.evaluation.report.plots import Line, curves_svg

LINE = Line("all", np.array([0.1, 1.0, 4.0]), np.array([0.2, 0.6, 0.8]), marks=[(1, 0.6, "$0.6$")])


def svg(key="froc", **more):
    return curves_svg([LINE], key, "false positives", "sensitivity", (0.05, 8), **more)


def test_it_is_whole_and_its_texts_are_texts():
    """A mark's dollars are no formula."""
    texts = [e.text for e in fromstring(svg(log_x=True)).iter() if e.tag.endswith("}text")]
    assert {"false positives", "sensitivity", "$0.6$", "0.1", "1"} <= set(texts)


def test_names_in_the_legend_are_names():
    """A class may be called like a formula that is none, or like what matplotlib hides."""
    names = ["$\\frac$", "_hidden", "</text>", "a" * 99]
    lines = [Line(name, LINE.x, LINE.y) for name in names]
    drawn = curves_svg(lines, "pr", "recall", "precision")
    texts = [e.text for e in fromstring(drawn).iter() if e.tag.endswith("}text")]
    assert {*names[:3], "a" * 29 + "\u2026"} <= set(texts)


def test_ids_are_the_figures_own_and_every_reference_is_met():
    first, second = svg("froc"), svg("roc")
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (first, second)]
    assert ids[0] and not ids[0] & ids[1]
    for text, own in zip((first, second), ids, strict=True):
        wanted = re.findall(r'href="#([^"]+)"', text) + re.findall(r"url\(#([^)]+)\)", text)
        assert wanted and set(wanted) <= own


def test_same_data_same_bytes_and_no_address_outside():
    assert svg() == svg()
    outside = re.findall(r'(?:href|src)="(?!#)', svg())
    assert outside == []


def test_band_is_drawn_where_there_is_one():
    banded = Line("all", LINE.x, LINE.y, (LINE.x, LINE.y - 0.1, LINE.y + 0.1), steps="post")
    with_band = curves_svg([banded], "froc", "x", "y", (0.05, 8))
    assert "opacity: 0.16" in with_band
    assert "opacity: 0.16" not in svg()
