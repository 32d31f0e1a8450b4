# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""CSAW-CC (researchdata.se): DICOM files, one table, and masks of the cancers of one centre.

- A mask is a PNG named as its image with an ending ("_mask"), or as its image in a folder whose
  name has "mask" or "annotation" in it; where the files lie below --root does not matter.
- Only images of women without cancer are negatives. An image of a breast with cancer but without
  a mask (interval cancers, earlier rounds, other centres) is left out.
"""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

from detrex_mammo.data.convert import masks, tables
from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.convert.headers import BadImage, add_file, add_raw_argument

_COLUMNS = ("anon_patientid", "anon_filename", "x_case", "imagelaterality", "viewposition")
_ENDINGS = ("_mask", "-mask", "_annotation", "_segmentation", "_seg", "_lesion")
_MASK_FOLDER = re.compile("mask|annotation|segmentation", re.IGNORECASE)
_SUFFIXES = {".dcm", ".dicom", ".png", ".tif", ".tiff"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`convert`."""
    parser.add_argument(
        "--contralateral",
        action="store_true",
        help="also take the breast without cancer of a woman with one as negative",
    )
    parser.add_argument(
        "--min-pixels", type=int, default=20, help="smaller components are left out as noise"
    )
    add_raw_argument(parser)


def convert(
    root: Path,
    out: Path,
    contralateral: bool = False,
    min_pixels: int = 20,
    allow_for_processing: bool = False,
) -> Dataset:
    """Read the table, and images and masks anywhere below ``root``.

    Args:
        root: the folder as it was unpacked.
        out: unused; the images stay where they are.
        contralateral: also take the other breast as negative.
        min_pixels: of a mask's component.
        allow_for_processing: also take raw images.
    """
    table = tables.find(root, ["**/CSAW-CC*.csv", "**/anon_dataset*.csv"], "table of CSAW-CC")[0]
    dataset = Dataset("csaw-cc", ["cancer"])
    files = (p for p in sorted(root.rglob("*")) if p.suffix.lower() in _SUFFIXES)
    images, found = _images_and_masks(files)
    seen = set()
    for where, cells in tables.read_rows(table, _COLUMNS, dataset.report, title="CSAW-CC"):
        stem = Path(cells["anon_filename"].replace("\\", "/")).stem
        mask = found.pop(stem, None)
        reason = "images of two rows" if stem in seen else None
        if stem not in images:
            reason = reason or "images that are missing"
        if mask is None:
            reason = reason or _reason_against(cells, contralateral)
        if reason:
            dataset.report.add("dropped", reason, f"{where}: {stem}"[:100])
            continue
        seen.add(stem)
        _add_image(dataset, root, images[stem], cells, mask, min_pixels, allow_for_processing)
    for stem in sorted(found):
        dataset.report.add("dropped", "masks without a row", found[stem].name)
    return dataset


def _images_and_masks(files: Iterable[Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    """{stem: image} and {stem of the image: mask}."""
    files = list(files)
    in_folder = {p for p in files if p.suffix != ".dcm" and _MASK_FOLDER.search(p.parent.name)}
    images, found = masks.find_pairs((p for p in files if p not in in_folder), _ENDINGS)
    more, with_ending = masks.find_pairs(sorted(in_folder), _ENDINGS)
    endings = {stem: path for (stem, _), path in (*with_ending.items(), *found.items())}
    return images, {**more, **endings}


def _reason_against(cells: dict[str, str], contralateral: bool) -> str | None:
    """Why an image without a mask is no negative."""
    case = tables.number(cells["x_case"])
    if case is None:
        return "images without a mask whose case label cannot be read"
    if not case:
        return None
    cancer, shown = (tables.side(cells.get(k)) for k in ("x_cancer_laterality", "imagelaterality"))
    if contralateral and cancer and shown and cancer != shown:
        return None
    return "images of a woman with cancer, without a mask"


def _add_image(
    dataset: Dataset,
    root: Path,
    path: Path,
    cells: dict[str, str],
    mask: Path | None,
    min_pixels: int,
    allow_for_processing: bool,
) -> None:
    try:
        pixels = masks.read_mask(mask) if mask else None
    except BadImage as error:
        dataset.report.add(
            "dropped", f"images with a mask that cannot be read ({error})", mask.name
        )
        return
    if (
        pixels is not None
        and not masks.boxes_of_components(masks.foreground(pixels), min_pixels)[0]
    ):
        dataset.report.add("dropped", "images with an empty mask", mask.name)
        return
    year = cells.get("exam_year")
    image = add_file(
        dataset,
        root,
        path.relative_to(root).as_posix(),
        allow_for_processing,
        patient_id=cells["anon_patientid"],
        study_id=f"{cells['anon_patientid']}_{year}" if year else None,
        laterality=tables.side(cells["imagelaterality"]),
        view=cells["viewposition"].upper(),
    )
    if image and pixels is not None:
        masks.add_components(dataset, image, pixels, "cancer", min_pixels, pathology="malignant")
