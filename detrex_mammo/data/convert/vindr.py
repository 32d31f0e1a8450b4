# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""VinDr-Mammo (PhysioNet 1.0.0): DICOM files, a table of images and one of findings.

- Most images are normal and kept as negatives: their row of findings says so. An image without
  such a row is not known to be normal and is left out.
- A row may name several categories for one box; --multi-label says what becomes of it.
- Some boxes leave the image and are cut; raw FOR PROCESSING images are left out.
- A study is a patient's only one, so its id is the patient's.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detrex_mammo.data.convert import masks, tables
from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.convert.headers import add_file, add_raw_argument
from detrex_mammo.errors import UserError
from detrex_mammo.progress import counted

# The order is the rank: the first of several is the primary one.
CATEGORIES = (
    "Mass",
    "Suspicious Calcification",
    "Architectural Distortion",
    "Focal Asymmetry",
    "Asymmetry",
    "Global Asymmetry",
    "Suspicious Lymph Node",
    "Skin Thickening",
    "Nipple Retraction",
    "Skin Retraction",
)
_SPLITS = {"training": "train", "test": "test"}
_IMAGE_COLUMNS = ("study_id", "image_id", "laterality", "view_position", "height", "width", "split")
_BOX = ("xmin", "ymin", "xmax", "ymax")
_SUFFIXES = (".dicom", ".dcm", ".png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`convert`."""
    parser.add_argument(
        "--multi-label",
        choices=("all", "primary"),
        default="all",
        help="a box of several categories: one annotation for each, or one of the first by rank",
    )
    parser.add_argument(
        "--classes", nargs="+", choices=CATEGORIES, default=list(CATEGORIES), metavar="CLASS"
    )
    add_raw_argument(parser)


def convert(
    root: Path,
    out: Path,
    multi_label: str = "all",
    classes: Sequence[str] = CATEGORIES,
    allow_for_processing: bool = False,
) -> Dataset:
    """Read both tables; a missing table of images leaves the images of the findings.

    Args:
        root: holds the tables and ``images``.
        out: unused; the images stay where they are.
        multi_label: "all" or "primary".
        classes: of ``CATEGORIES``; other findings are dropped, their images stay.
        allow_for_processing: also take raw images.
    """
    path = tables.find(root, ["finding_annotations.csv"], "table of VinDr-Mammo")[0]
    dataset = Dataset("vindr-mammo", [name for name in CATEGORIES if name in classes])
    columns = (*_IMAGE_COLUMNS, "finding_categories", *_BOX)
    rows = list(tables.read_rows(path, columns, dataset.report))
    # Without one of its findings an image would teach that there is nothing.
    findings = [(*row, _named(dataset, *row)) for row in rows]
    images: dict[str, dict[str, Any] | None] = {}
    listed = {cells["image_id"] for _, cells in rows}
    for where, cells, named in findings:
        if named is None and cells["image_id"] not in images:
            images[cells["image_id"]] = None
            dataset.report.add("dropped", "images with a finding that cannot be read", where)
    rows = _image_rows(dataset, root) + rows
    for where, cells in counted(rows, "VinDr-Mammo", unit="row"):
        if cells["image_id"] in images:
            continue
        image = None
        if cells["image_id"] in listed:
            image = _add_image(dataset, root, where, cells, allow_for_processing)
        else:  # a normal image has a row, too
            dataset.report.add("dropped", "images without a row of findings", where)
        images[cells["image_id"]] = image
    for where, cells, named in findings:
        if named and images[cells["image_id"]] is None:
            dataset.report.add("dropped", "findings of an image that was dropped", where)
        elif named:
            chosen = _chosen(dataset, where, named, multi_label, classes)
            _add_finding(dataset, images[cells["image_id"]], where, cells, named, chosen)
    return dataset.without_damaged()


def _image_rows(dataset: Dataset, root: Path) -> list[tuple[str, dict[str, str]]]:
    path = root / "breast-level_annotations.csv"
    try:
        return list(tables.read_rows(path, _IMAGE_COLUMNS, dataset.report))
    except UserError:
        dataset.report.add("dropped", "the table of images cannot be read", path.name)
        return []


def _add_image(
    dataset: Dataset, root: Path, where: str, cells: dict[str, str], allow_for_processing: bool
) -> dict[str, Any] | None:
    stem = tables.inside(f"images/{cells['study_id']}/{cells['image_id']}")
    if stem is None or not stem.startswith("images/") or not cells["image_id"]:
        dataset.report.add("dropped", "images whose path leads out of the folder", where)
        return None
    if cells["split"] not in _SPLITS:
        dataset.report.add("dropped", "images of an unknown split", where)
        return None
    names = [stem + suffix for suffix in _SUFFIXES if (root / (stem + suffix)).is_file()]
    return add_file(
        dataset,
        root,
        names[0] if names else stem + _SUFFIXES[0],
        allow_for_processing,
        patient_id=cells["study_id"],
        study_id=cells["study_id"],
        laterality=tables.side(cells["laterality"]),
        view=cells["view_position"].upper(),
        density=tables.density(cells.get("breast_density")),
        birads=tables.birads(cells.get("breast_birads")),
        split=_SPLITS[cells["split"]],
    )


def _named(dataset: Dataset, where: str, cells: dict[str, str]) -> list[str] | None:
    """A row's categories by rank: none if the image is normal; None if it cannot be read."""
    found = tables.literal_list(cells["finding_categories"])
    if found is None or not set(map(str, found)) <= {*CATEGORIES, "No Finding"}:
        dataset.report.add("dropped", "findings of an unknown category", where)
        return None
    named = [name for name in CATEGORIES if name in found]
    if named and tables.numbers(cells, *_BOX) is None:
        dataset.report.add("dropped", "findings without a box", where)
        return None
    return named


def _chosen(
    dataset: Dataset, where: str, named: list[str], multi_label: str, classes: Sequence[str]
) -> list[str]:
    if len(named) > 1:
        done = "one annotation each" if multi_label == "all" else "the first by rank"
        dataset.report.add("fixed", f"boxes of several categories: {done}", where)
    chosen = [n for n in (named if multi_label == "all" else named[:1]) if n in classes]
    if not chosen:
        dataset.report.add("dropped", "findings of categories that were not chosen", where)
    return chosen


def _add_finding(
    dataset: Dataset,
    image: dict[str, Any],
    where: str,
    cells: dict[str, str],
    named: list[str],
    chosen: list[str],
) -> None:
    box = tables.numbers(cells, *_BOX)
    x1, y1, x2, y2 = _scaled(dataset, image, box, where, cells)
    for name in chosen:
        others = [other for other in named if other != name]
        dataset.add_box(
            image,
            (x1, y1, x2 - x1, y2 - y1),
            name,
            birads=tables.birads(cells.get("finding_birads")),
            other_categories=others or None,
        )


def _scaled(
    dataset: Dataset, image: dict[str, Any], box: list[float], where: str, cells: dict[str, str]
) -> masks.Box:
    """The box in the file's pixels, also if the file was made smaller than the table says."""
    said = tables.numbers(cells, "height", "width")
    size = (image["height"], image["width"])
    if said is None or min(said) <= 0 or tuple(said) == size:
        return tuple(box)
    dataset.report.add("fixed", "boxes scaled to a file of another size than the table's", where)
    return masks.scaled(tuple(box), tuple(said), size)
