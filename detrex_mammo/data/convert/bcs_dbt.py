# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""BCS-DBT (Duke, TCIA): tomosynthesis volumes, a box on one slice each.

- Only the slices with a box are read, and written below --out as 16-bit PNG, by the window of
  their file. With --negatives also the middle slice of some normal volumes.
- The side in the header is wrong in places: where the bright edge says another side than the
  table, the slice is turned by 180 degrees, as the set's own reader does; boxes count in the
  turned slice.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from detrex_mammo.data.convert import tables
from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.convert.headers import BadImage, read_header
from detrex_mammo.data.grey_levels import apply_window, stretch
from detrex_mammo.data.image_io import write_png16
from detrex_mammo.progress import counted

WRITES_IMAGES = True
_KEY = ("PatientID", "StudyUID", "View")
_BOX = ("x", "y", "width", "height")
_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_VIEW = re.compile(r"([lr])(cc|mlo)\d*", re.IGNORECASE)
_Volume = tuple[str, str, str]  # patient, study, view


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`convert`."""
    parser.add_argument(
        "--negatives", type=int, default=0, help="normal volumes of each split, by a middle slice"
    )


def convert(root: Path, out: Path, negatives: int = 0) -> Dataset:
    """Read the tables of boxes, paths and labels, and write the slices.

    Args:
        root: holds the tables, and the volumes as their ``descriptive_path`` or ``classic_path``.
        out: ``images`` is made in it.
        negatives: number of normal volumes of each split.
    """
    paths = tables.find(root, ["**/*file-paths*.csv"], "table of paths of BCS-DBT")
    boxes = tables.find(root, ["**/*boxes*.csv"], "table of boxes of BCS-DBT")
    dataset = Dataset("bcs-dbt", ["benign", "cancer"])
    places: dict[_Volume, tuple[str, dict[str, str]]] = {}
    for split, _, cells in _rows(dataset, paths, (*_KEY, "descriptive_path")):
        places[_key(cells)] = (split, cells)
    slices: dict[tuple[_Volume, int], list[tuple[str, dict[str, str]]]] = defaultdict(list)
    columns = (*_KEY, "X", "Y", "Width", "Height", "Slice", "Class")
    for _, where, cells in _rows(dataset, boxes, columns):
        index, box = tables.number(cells["slice"]), tables.numbers(cells, *_BOX)
        if index is None or box is None or cells["class"].lower() not in ("benign", "cancer"):
            dataset.report.add("dropped", "boxes that cannot be read", where)
        else:
            slices[_key(cells), int(index)].append((where, cells))
    (out / "images").mkdir(parents=True, exist_ok=True)
    for (volume, index), found in counted(slices.items(), "BCS-DBT", unit="slice"):
        image = _add_slice(dataset, root, out, places, volume, index, found[0][0])
        for where, cells in found:
            _add_box(dataset, image, where, cells)
    for volume in _normal_volumes(dataset, root, places, negatives) if negatives else ():
        _add_slice(dataset, root, out, places, volume, None, " ".join(volume))
    return dataset.without_damaged()


def _rows(
    dataset: Dataset, files: list[Path], columns: tuple[str, ...]
) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Split, place and cells of each row; the split stands in the file's name."""
    for path in files:
        split = next((ours for name, ours in _SPLITS.items() if name in path.name.lower()), "train")
        for where, cells in tables.read_rows(path, columns, dataset.report):
            yield split, where, cells


def _key(cells: dict[str, str]) -> _Volume:
    return cells["patientid"], cells["studyuid"], cells["view"].lower()


def _normal_volumes(
    dataset: Dataset, root: Path, places: dict[_Volume, Any], negatives: int
) -> list[_Volume]:
    labels = tables.find(root, ["**/*labels*.csv"], "table of labels of BCS-DBT")
    chosen: dict[str, list[_Volume]] = defaultdict(list)
    for split, _, cells in _rows(dataset, labels, (*_KEY, "Normal")):
        volume = _key(cells)
        is_there = volume in places and _place(root, places[volume][1])
        if tables.number(cells["normal"]) == 1 and len(chosen[split]) < negatives and is_there:
            chosen[split].append(volume)
    return [volume for volumes in chosen.values() for volume in volumes]


def _place(root: Path, cells: dict[str, str]) -> str | None:
    """The volume's file, relative to ``root``."""
    written = (cells.get("descriptive_path", ""), cells.get("classic_path", ""))
    return next((found for path in written if (found := tables.longest_tail(root, path))), None)


def _add_slice(
    dataset: Dataset,
    root: Path,
    out: Path,
    places: dict[_Volume, tuple[str, dict[str, str]]],
    volume: _Volume,
    index: int | None,
    where: str,
) -> dict[str, Any] | None:
    """Write one slice, the middle one if ``index`` is None; None, reported, if it cannot be."""
    view = _VIEW.fullmatch(volume[2])
    place = _place(root, places[volume][1]) if volume in places else None
    if view is None or place is None:
        reason = "slices of an unknown view" if view is None else "slices of a missing volume"
        dataset.report.add("dropped", reason, where)
        return None
    try:
        header = read_header(root / place)
        index = header.frames // 2 if index is None else index
        if not 0 <= index < header.frames:
            raise BadImage("slice that the volume does not have")
        pixels, is_turned = _read_slice(root / place, index, view.group(1).upper())
    except BadImage as error:
        dataset.report.add("dropped", f"slices: {error}", where)
        return None
    if is_turned:
        dataset.report.add("fixed", "slices turned to the side of the table", where)
    safe = [re.sub(r"[^\w-]", "_", part) for part in (volume[0], volume[1][-12:], volume[2])]
    name = f"images/{'_'.join(safe)}_{index:03d}.png"
    write_png16(out / name, pixels)
    known = {
        **header.record,
        "patient_id": volume[0],
        "study_id": volume[1],
        "laterality": view.group(1).upper(),
        "view": view.group(2).upper(),
        "split": places[volume][0],
    }
    more = {"slice": index, "num_slices": header.frames, "volume": place}
    return dataset.add_image(name, *pixels.shape, **known, **more)


def _read_slice(path: Path, index: int, side: str) -> tuple[np.ndarray, bool]:
    """A slice, (H, W) float in [0, 255], and whether it was turned.

    Raises:
        BadImage: its pixels cannot be decoded.
    """
    import pydicom
    from pydicom.pixels import pixel_array

    try:
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        stored = pixel_array(path, index=index)
    except Exception as error:  # pydicom's decoders raise many kinds
        raise BadImage("pixel data are cut off or damaged") from error
    left, right = (stored[:, column].sum(dtype=np.float64) for column in (0, -1))
    is_turned = ("R" if left < right else "L") != side
    window = _window(dataset)
    values = stored.astype(np.float64)
    if window is None:
        shown = stretch(values, values.min(), values.max())
    else:
        shown = apply_window(values, *window, "LINEAR")
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 255.0 - shown
    return (shown[::-1, ::-1] if is_turned else shown), is_turned


def _window(dataset: Any) -> tuple[float, float] | None:
    """Centre and width, of all frames or of the file; None without a usable one."""
    groups = dataset.get("SharedFunctionalGroupsSequence") or [dataset]
    items = [*(groups[0].get("FrameVOILUTSequence") or []), dataset]
    for item in items:
        values = [item.get(name) for name in ("WindowCenter", "WindowWidth")]
        firsts = [tables.number(str(np.ravel(v)[0])) if v is not None else None for v in values]
        if None not in firsts and firsts[1] > 1:
            return firsts[0], firsts[1]
    return None


def _add_box(
    dataset: Dataset, image: dict[str, Any] | None, where: str, cells: dict[str, str]
) -> None:
    if image is None:
        dataset.report.add("dropped", "boxes of a slice that was dropped", where)
        return
    slices = tables.number(cells.get("volumeslices"))
    if slices and int(slices) != image["num_slices"]:
        dataset.report.add("fixed", "numbers of slices, taken from the volume", where)
    category = cells["class"].lower()
    dataset.add_box(
        image,
        tables.numbers(cells, *_BOX),
        category,
        pathology="malignant" if category == "cancer" else "benign",
        architectural_distortion=cells.get("ad", "").lower() in ("1", "1.0", "true") or None,
    )
