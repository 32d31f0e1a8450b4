# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""EMBED Open Data (Emory): DICOM files, a table of images and one of findings.

- A region is [ymin, xmin, ymax, xmax]: the bounds of an ellipse that a radiologist drew at
  screening. It is not linked to one finding, so there is one class; BI-RADS and pathology are the
  worst of the findings on the same side.
- The tables are joined by accession and side; a finding of side "B" or none counts for both.
- An image without a region is a negative only if its findings are all BI-RADS 1 or 2.
- Paths of the table are absolute on another machine: their longest end below --root, or below
  its folder "images", counts.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detrex_mammo.data.convert import tables
from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.convert.headers import add_file, add_raw_argument

_IMAGE_COLUMNS = ("empi_anon", "acc_anon", "FinalImageType", "ImageLateralityFinal")
_IMAGE_COLUMNS += ("ViewPosition", "anon_dicom_path", "num_roi", "ROI_coords")
_FINDING_COLUMNS = ("acc_anon", "side", "asses", "tissueden", "path_severity")
_BIRADS = {"A": "0", "N": "1", "B": "2", "P": "3", "S": "4", "M": "5", "K": "6"}
_WORST_FIRST = ("6", "5", "4", "0", "3", "2", "1")
# path_severity: 0 invasive, 1 in situ, 2 and 3 of higher risk, 4 benign, 5 normal, 6 elsewhere
_PATHOLOGY = {0: "malignant", 1: "malignant", 2: "benign", 3: "benign", 4: "benign"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`convert`."""
    parser.add_argument(
        "--image-types", nargs="+", choices=("2D", "cview"), default=["2D"], help="of image"
    )
    add_raw_argument(parser)


def convert(
    root: Path,
    out: Path,
    image_types: Sequence[str] = ("2D",),
    allow_for_processing: bool = False,
) -> Dataset:
    """Read both tables, the reduced ones if the whole ones are not there.

    Args:
        root: holds the tables, at any depth, and the images as their paths end, or in ``images``.
        out: unused; the images stay where they are.
        image_types: values of FinalImageType: "2D" and "cview" (synthetic); tomosynthesis is left
            out.
        allow_for_processing: also take raw images.
    """
    metadata = tables.find(root, ["**/EMBED_OpenData_metadata*.csv"], "table of images of EMBED")
    clinical = tables.find(root, ["**/EMBED_OpenData_clinical*.csv"], "table of findings of EMBED")
    dataset = Dataset("embed", ["lesion"])
    findings: dict[str, list[dict[str, str]]] = defaultdict(list)
    for _, cells in tables.read_rows(clinical[0], _FINDING_COLUMNS, dataset.report):
        # of its hundred columns
        findings[_accession(cells)].append({name: cells[name] for name in _FINDING_COLUMNS})
    rows = tables.read_rows(metadata[0], _IMAGE_COLUMNS, dataset.report, title="EMBED")
    seen: set[str] = set()
    for where, cells in rows:
        side = tables.side(cells["imagelateralityfinal"])
        joined = [f for f in findings[_accession(cells)] if f["side"].upper() in ("B", "", side)]
        boxes = _boxes(cells)
        name = _find(root, cells["anon_dicom_path"])
        reason = _reason_against(cells, image_types, joined, boxes)
        if reason is None and (name is None or name in seen):
            reason = "images that are missing" if name is None else "images of two rows"
        if reason:
            dataset.report.add("dropped", reason, where)
            continue
        seen.add(name)
        known = {
            "patient_id": cells["empi_anon"],
            "study_id": _accession(cells),
            "laterality": side,
            "view": cells["viewposition"].upper(),
            "density": _density(joined),
            "birads": _birads(joined),
        }
        image = add_file(dataset, root, name, allow_for_processing, **known)
        if image is None:
            for _ in boxes:
                dataset.report.add("dropped", "regions of an image that was dropped", where)
            continue
        for y1, x1, y2, x2 in boxes:
            more = {"birads": known["birads"], "pathology": _pathology(joined)}
            dataset.add_box(image, (x1, y1, x2 - x1, y2 - y1), "lesion", source="ellipse", **more)
    return dataset.without_damaged()


def _find(root: Path, written: str) -> str | None:
    """An image, relative to ``root``: the download has ``images`` where the paths do not."""
    found = tables.longest_tail(root, written)
    inside = None if found else tables.longest_tail(root / "images", written)
    return found or (inside and f"images/{inside}")


def _accession(cells: dict[str, str]) -> str:
    """The join key; pandas wrote some of them as "123.0"."""
    return cells["acc_anon"].removesuffix(".0")


def _boxes(cells: dict[str, str]) -> list[list[float]] | None:
    """[ymin, xmin, ymax, xmax] of each region; None if they cannot be read or counted."""
    count = tables.number(cells["num_roi"]) or 0
    text = cells["roi_coords"]
    found = tables.literal_list(text) if text else []
    if found is None:
        return None
    if len(found) == 4 and all(isinstance(value, int | float) for value in found):
        found = [found]  # a single region, written without its list
    is_well = all(
        isinstance(box, list | tuple)
        and len(box) == 4
        and all(isinstance(value, int | float) for value in box)
        for box in found
    )
    return [list(box) for box in found] if is_well and len(found) == count else None


def _reason_against(
    cells: dict[str, str],
    image_types: Sequence[str],
    joined: list[dict[str, str]],
    boxes: list[Any] | None,
) -> str | None:
    if cells["finalimagetype"] not in image_types:
        return f"images of type {cells['finalimagetype'][:10]!r}, not chosen"
    if boxes is None:
        return "images with regions that cannot be read"
    if boxes:
        return None
    if not joined:
        return "images without a region and without a finding's row"
    if any(_BIRADS.get(finding["asses"].upper()) not in ("1", "2") for finding in joined):
        return "images without a region, but not BI-RADS 1 or 2"
    return None


def _birads(joined: list[dict[str, str]]) -> str | None:
    found = {_BIRADS.get(finding["asses"].upper()) for finding in joined}
    return next((value for value in _WORST_FIRST if value in found), None)


def _density(joined: list[dict[str, str]]) -> str | None:
    return next((d for f in joined if (d := tables.density(f["tissueden"]))), None)


def _pathology(joined: list[dict[str, str]]) -> str | None:
    severities = [s for f in joined if (s := tables.number(f["path_severity"])) is not None]
    return _PATHOLOGY.get(int(min(severities))) if severities else None
