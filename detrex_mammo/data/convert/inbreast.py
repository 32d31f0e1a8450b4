# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""INbreast: DICOM files, and OsiriX's regions as Apple property lists.

- The table's patient is removed; the patient is the hash in the file name. MLO is ML there.
- The 13 names of regions hold misspellings; they are put together to six classes.
- Most calcifications are single points, which have no box: --points says what becomes of them.
- An image without an XML file is normal. One whose XML cannot be read is left out: it may hold
  lesions. There is no pathology, only the image's BI-RADS, which each lesion gets, too.
"""

import argparse
import plistlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

from detrex_mammo.data.convert import tables
from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.convert.headers import add_file, add_raw_argument
from detrex_mammo.progress import counted

# as written, in lower case: class; None has no meaning
CLASSES: dict[str, str | None] = {
    "mass": "mass",
    "calcification": "calcification",
    "calcifications": "calcification",
    "cluster": "calcification cluster",
    "spiculated region": "spiculated region",
    "espiculated region": "spiculated region",
    "distortion": "architectural distortion",
    "asymmetry": "asymmetry",
    "assymetry": "asymmetry",
    "unnamed": None,
    "point 1": None,
    "point 3": None,
}
_FILE = re.compile(r"(\d+)_([0-9a-f]+)_MG_([LR])_(CC|ML|MLO)_ANON\.dcm", re.IGNORECASE)
_POINT = re.compile(r"\(\s*([-+.\deE]+)\s*,\s*([-+.\deE]+)\s*\)")
_LARGEST_XML = 64 << 20


@dataclass(frozen=True)
class _Policy:
    """Options of :func:`convert`."""

    points: str
    point_size: float
    allow_for_processing: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`convert`."""
    parser.add_argument(
        "--points",
        choices=("skip", "pad", "ignore"),
        default="skip",
        help="calcifications of one point: left out, a box around each, or such a box where "
        "evaluation ignores detections",
    )
    parser.add_argument(
        "--point-size", type=float, default=20.0, help="side of a point's box in pixels"
    )
    add_raw_argument(parser)


def convert(
    root: Path,
    out: Path,
    points: str = "skip",
    point_size: float = 20.0,
    allow_for_processing: bool = False,
) -> Dataset:
    """Read AllDICOMs, AllXML and INbreast.csv below ``root``.

    Args:
        root: the release's folder, or one above it.
        out: unused; the images stay where they are.
        points: "skip", "pad" or "ignore".
        point_size: side of the box around a point, in pixels.
        allow_for_processing: also take raw images.
    """
    policy = _Policy(points, point_size, allow_for_processing)
    files = tables.find(root, ["**/AllDICOMs/*.dcm", "**/AllDICOMs/*.DCM"], "DICOM of INbreast")
    folder = files[0].parent.parent
    classes = list(dict.fromkeys(name for name in CLASSES.values() if name))
    dataset = Dataset("inbreast", classes)
    rows = _read_table(dataset, folder)
    xmls = {path.stem: path for path in sorted(folder.glob("AllXML/*.xml"))}
    for path in counted(files, "INbreast"):
        match = _FILE.fullmatch(path.name)
        if match is None:
            dataset.report.add("dropped", "files not named as INbreast's", path.name)
            continue
        xml = xmls.pop(match.group(1), None)
        _add_image(dataset, root, path, rows.get(match.group(1)), xml, policy)
    for xml in xmls.values():
        dataset.report.add("dropped", "XML files without an image", xml.name)
    return dataset.without_damaged()


def _read_table(dataset: Dataset, folder: Path) -> dict[str, dict[str, str]]:
    """Rows of INbreast.csv by file number; without the file density and BI-RADS are unknown."""
    path = folder / "INbreast.csv"
    if not path.is_file():
        dataset.report.add("kept", "images without density and BI-RADS: no INbreast.csv")
        return {}
    columns = ("File Name", "ACR", "Bi-Rads", "Laterality", "View")
    rows = tables.read_rows(path, columns, dataset.report, delimiter=";")
    return {Path(cells["file name"]).stem: cells for _, cells in rows}


def _add_image(
    dataset: Dataset,
    root: Path,
    path: Path,
    row: dict[str, str] | None,
    xml: Path | None,
    policy: _Policy,
) -> None:
    _, patient, side, view = _FILE.fullmatch(path.name).groups()
    side, view = side.upper(), "CC" if view.upper() == "CC" else "MLO"
    row = row or {}
    if row and (tables.side(row["laterality"]), row["view"].upper()) != (side, view):
        dataset.report.add("fixed", "side or view of the table, the file name wins", path.name)
    regions = []
    if xml is not None:
        try:
            regions = read_regions(xml)
        except (ValueError, OSError):
            dataset.report.add("dropped", "images whose XML cannot be read", xml.name)
            return
    date = row.get("acquisition date")
    image = add_file(
        dataset,
        root,
        path.relative_to(root).as_posix(),
        policy.allow_for_processing,
        patient_id=patient,
        study_id=f"{patient}_{date}" if date else None,
        laterality=side,
        view=view,
        density=tables.density(row.get("acr")),
        birads=tables.birads(row.get("bi-rads")),
    )
    if image is None:
        for _ in regions:
            dataset.report.add("dropped", "regions of an image that cannot be read", path.name)
        return
    if xml is None:
        dataset.report.add("kept", "images without XML, which are normal", path.name)
    for name, outline in regions:
        _add_region(dataset, image, name, outline, policy)


def read_regions(path: Path) -> list[tuple[str, list[tuple[float, float]]]]:
    """Name and points (x, y) of each region.

    Raises:
        ValueError: the file is no property list, too large, declares entities, or a region's
            points cannot be read.
    """
    if path.stat().st_size > _LARGEST_XML:
        raise ValueError("too large")
    try:
        content = plistlib.loads(path.read_bytes(), fmt=plistlib.FMT_XML)
        regions = [region for image in content["Images"] for region in image["ROIs"]]
        return [(str(region["Name"]).strip(), _points(region)) for region in regions]
    except (ExpatError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _points(region: dict[str, Any]) -> list[tuple[float, float]]:
    """Points in pixels."""
    matches = [_POINT.fullmatch(str(text).strip()) for text in region["Point_px"]]
    values = [tuple(map(tables.number, match.groups())) for match in matches if match]
    if not values or len(values) < len(matches) or any(None in value for value in values):
        raise ValueError("a region's points cannot be read")
    return values


def _add_region(
    dataset: Dataset,
    image: dict[str, Any],
    name: str,
    outline: list[tuple[float, float]],
    policy: _Policy,
) -> None:
    if name.lower() not in CLASSES:
        dataset.report.add("dropped", f"regions of an unknown name {name[:30]!r}", _of(image))
        return
    category = CLASSES[name.lower()]
    if category is None:
        dataset.report.add("dropped", "regions without a meaning (Unnamed, Point N)", _of(image))
        return
    (x1, y1), (x2, y2) = (tuple(reach(axis) for axis in zip(*outline)) for reach in (min, max))
    more = {"region_name": name, "birads": image.get("birads")}
    if x2 > x1 and y2 > y1:
        dataset.add_box(image, (x1, y1, x2 - x1, y2 - y1), category, source="polygon", **more)
        return
    if policy.points == "skip":
        dataset.report.add("dropped", f"{category}: points without area", _of(image))
        return
    if policy.points == "ignore":
        more.update(iscrowd=1, ignore=1)
    size = policy.point_size
    box = ((x1 + x2 - size) / 2, (y1 + y2 - size) / 2, size, size)
    if dataset.add_box(image, box, category, source="point", **more):
        dataset.report.add("fixed", f"{category}: points made boxes", _of(image))


def _of(image: dict[str, Any]) -> str:
    return Path(image["file_name"]).name
