# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The table a run ends with."""

import math

from detrex_mammo.evaluation.summary import headline_table

TRAINED = {
    "bbox": {"AP": 31.25, "AP50": 62.54},
    "froc": {"sens@1": 0.8125, "cpm": 0.7, "num_lesions": 208, "num_images": 60},
}


def cells(table):
    return [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()]


def test_two_columns():
    untrained = {"bbox": {"AP": 0.31, "AP50": 0.9}, "froc": {"sens@1": math.nan, "cpm": 0.0}}
    table = headline_table(TRAINED, untrained)
    header, _, *rows, counts = cells(table)
    assert header == ["result", "with training", "without training"]
    assert rows == [
        ["sensitivity at 1 false positive per image", "0.812", "-"],
        ["CPM (mean sensitivity at 1/8 to 8)", "0.700", "0.000"],
        ["AP50 (percent)", "62.5", "0.9"],
        ["AP (percent)", "31.2", "0.3"],
    ]
    assert counts == ["208 lesions in 60 images"]


def test_flat_results_and_one_column():
    """What the engine writes to metrics.json (flat) gives the same table; null is a dash."""
    flat = {f"{task}/{name}": v for task, part in TRAINED.items() for name, v in part.items()}
    assert headline_table(flat) == headline_table(TRAINED)
    assert "| -" in headline_table({**flat, "froc/cpm": None})


def test_without_froc():
    header, _, *rows = cells(headline_table({"bbox": {"AP": 31.25}}))
    assert header == ["result", "with training"]
    assert rows == [["AP (percent)", "31.2"]]
