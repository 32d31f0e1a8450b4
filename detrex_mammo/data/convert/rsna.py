# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""RSNA Screening Mammography 2023 (Kaggle): it has no boxes, so only its negatives are taken.

An image with a cancer and no box would teach that there is none. By default an image that was
recalled, biopsied or hard to call is left out, too: it may hold a benign lesion.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from detrex_mammo.data.convert import tables
from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.convert.headers import add_file, add_raw_argument

_COLUMNS = ("patient_id", "image_id", "laterality", "view", "cancer")
_SUFFIXES = (".dcm", ".png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`convert`."""
    parser.add_argument(
        "--negatives",
        choices=("not-recalled", "no-cancer"),
        default="not-recalled",
        help="images without cancer that were not recalled, biopsied or hard either, or all "
        "without cancer",
    )
    parser.add_argument(
        "--classes",
        nargs="+",
        default=["mass", "calcification"],
        help="categories of the data set that these negatives are mixed with",
    )
    add_raw_argument(parser)


def convert(
    root: Path,
    out: Path,
    negatives: str = "not-recalled",
    classes: Sequence[str] = ("mass", "calcification"),
    allow_for_processing: bool = False,
) -> Dataset:
    """Read ``train.csv`` and ``train_images``.

    Args:
        root: the folder as it was unpacked.
        out: unused; the images stay where they are.
        negatives: "not-recalled" or "no-cancer".
        classes: names of the categories, which no image has.
        allow_for_processing: also take raw images.
    """
    table = tables.find(root, ["train.csv"], "table of RSNA 2023")[0]
    dataset = Dataset("rsna", classes)
    seen = set()
    for where, cells in tables.read_rows(table, _COLUMNS, dataset.report, title="RSNA"):
        reason = _reason_against(cells, negatives)
        stem = tables.inside(f"train_images/{cells['patient_id']}/{cells['image_id']}")
        if stem is None or not stem.startswith("train_images/"):
            reason = "images whose path leads out of the folder"
        elif stem in seen:
            reason = "images of two rows"
        if reason:
            dataset.report.add("dropped", reason, where)
            continue
        seen.add(stem)
        names = [stem + suffix for suffix in _SUFFIXES if (root / (stem + suffix)).is_file()]
        add_file(
            dataset,
            root,
            names[0] if names else stem + _SUFFIXES[0],
            allow_for_processing,
            patient_id=cells["patient_id"],
            laterality=tables.side(cells["laterality"]),
            view=cells["view"].upper(),
            density=tables.density(cells.get("density")),
            birads=tables.birads(cells.get("birads")),
        )
    return dataset


def _reason_against(cells: dict[str, str], negatives: str) -> str | None:
    """Why an image is no negative."""
    cancer = tables.number(cells["cancer"])
    if cancer is None:
        return "images whose cancer label cannot be read"
    if cancer:
        return "images with a cancer, which have no box"
    if negatives == "no-cancer":
        return None
    if tables.birads(cells.get("birads")) == "0":
        return "images that were recalled (BI-RADS 0)"
    if tables.number(cells.get("biopsy")):
        return "images of a biopsied breast"
    if cells.get("difficult_negative_case", "").lower() in ("true", "1"):
        return "images that were hard to call negative"
    return None
