# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""DMID (figshare): images as TIFF and DICOM, masks of regions, and a list as mini-MIAS has.

The layout of the release could not be confirmed when this was written, so little is taken for
granted, and whatever does not fit is reported:
- Files are found by their number ("IMG001.tif"), in any folder; those in a folder with "mask",
  "ROI" or "annotation" in its name are masks. A picture goes before the same image as DICOM.
- A line of the list is read word by word: number, tissue (F, G, D), classes, B or M, and x, y,
  radius. Spreadsheets must be saved as text or CSV.
- A mask goes before a circle. Whether circles count from the top or the bottom is decided on the
  images that have both (--origin auto).
"""

import argparse
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from detrex_mammo.data.convert import masks, tables
from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.convert.headers import BadImage, Header, add_file, read_header
from detrex_mammo.data.convert.mini_mias import CLASSES
from detrex_mammo.progress import counted

_NUMBER = re.compile(r"IMG[\s_-]*0*(\d+)", re.IGNORECASE)
_MASK_FOLDER = re.compile(r"mask|annotation|\broi", re.IGNORECASE)
_SUFFIXES = (".tif", ".tiff", ".png", ".dcm", ".dicom")
_VIEW = re.compile(r"\b(CC|MLO)[\s_-]*(LT|RT|L|R)\b|\b(LT|RT|L|R)[\s_-]*(CC|MLO)\b")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`convert`."""
    parser.add_argument(
        "--origin", choices=("auto", "top", "bottom"), default="auto", help="of a circle's y"
    )
    parser.add_argument(
        "--min-pixels", type=int, default=50, help="smaller components are left out as noise"
    )


@dataclass
class _Lesion:
    name: str | None  # class; None if it is not named
    pathology: str | None
    circle: tuple[float, float, float] | None


@dataclass
class _Entry:
    """All lines of one image."""

    side: str | None = None
    view: str | None = None
    tissue: str | None = None
    lesions: list[_Lesion] = field(default_factory=list)


def convert(root: Path, out: Path, origin: str = "auto", min_pixels: int = 50) -> Dataset:
    """Read the list, and images and masks anywhere below ``root``.

    Args:
        root: the folder as it was unpacked.
        out: unused; the images stay where they are.
        origin: of circles: "top", "bottom", or "auto".
        min_pixels: of a mask's component.
    """
    patterns = ["**/*[Ii]nfo*.txt", "**/*[Mm]etadata*.txt", "**/*[Ii]nfo*.csv"]
    lists = tables.find(root, [*patterns, "**/*[Mm]etadata*.csv"], "list of DMID as text")
    dataset = Dataset("dmid", [*dict.fromkeys(CLASSES.values()), "lesion"])
    images, found = _files(dataset, root)
    entries = _read_list(dataset, lists[0])
    for number in sorted(set(images) - set(entries)):
        dataset.report.add("dropped", "images without a line in the list", images[number].name)
    if origin == "auto":
        origin = _vote(entries, images, found)
    for number, entry in counted(entries.items(), "DMID"):
        if number not in images:
            dataset.report.add("dropped", "images that are missing", f"IMG{number:03d}")
            continue
        _add_image(dataset, root, images[number], found.get(number), entry, origin, min_pixels)
    return dataset.without_damaged()


def _files(dataset: Dataset, root: Path) -> tuple[dict[int, Path], dict[int, Path]]:
    """{number: image} and {number: mask}."""
    images: dict[int, Path] = {}
    found: dict[int, Path] = {}
    files = [path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES]
    for path in sorted(files, key=lambda p: (_SUFFIXES.index(p.suffix.lower()), p)):
        match = _NUMBER.match(path.stem)
        is_mask = any(_MASK_FOLDER.search(part) for part in path.relative_to(root).parts)
        if match is None:
            dataset.report.add("dropped", "files without an image's number", path.name)
        else:
            (found if is_mask else images).setdefault(int(match.group(1)), path)
    return images, found


def _read_list(dataset: Dataset, path: Path) -> dict[int, _Entry]:
    entries: dict[int, _Entry] = defaultdict(_Entry)
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    for line in text.splitlines():
        match = _NUMBER.match(line.strip())
        if match is None:
            continue
        rest = re.sub(r"[,;\t|]+", " ", line.strip()[match.end() :]).upper()
        words = rest.split()
        entry = entries[int(match.group(1))]
        view = _VIEW.search(rest)
        if view:
            entry.view = view.group(1) or view.group(4)
            entry.side = (view.group(2) or view.group(3))[0]
        entry.tissue = entry.tissue or next((word for word in words if word in "FGD"), None)
        named = [word for part in words for word in part.split("+")]
        names = list(dict.fromkeys(CLASSES[word] for word in named if word in CLASSES))
        if "NORM" in words:
            continue
        severity = next((word for word in words if word in ("B", "M")), None)
        if not names and severity is None:
            where = f"{path.name}: {line.strip()[:40]}"
            dataset.report.add("dropped", "lines without a class", where)
            entry.lesions.append(_Lesion(None, None, None))  # and so no negative
            continue
        values = [v for word in words if (v := tables.number(word)) is not None][-3:]
        circle = tuple(values) if len(values) == 3 and values[2] > 0 else None
        pathology = {"B": "benign", "M": "malignant"}.get(severity)
        name = names[0] if len(names) == 1 else None
        entry.lesions.append(_Lesion(name, pathology, circle))
    return entries


def _vote(entries: dict[int, _Entry], images: dict[int, Path], found: dict[int, Path]) -> str:
    """ "top" or "bottom", whichever puts more circles' centres on their masks; "" if none does."""
    votes = {"top": 0, "bottom": 0}
    for number in sorted(set(entries) & set(images) & set(found)):
        try:
            header, mask = read_header(images[number]), masks.read_mask(found[number])
        except BadImage:
            continue
        if mask.shape != (header.height, header.width):
            continue
        inside = masks.foreground(mask)
        for lesion in entries[number].lesions:
            for origin in votes if lesion.circle else ():
                x, y, _ = _from_top(lesion.circle, header, origin)
                if 0 <= y < header.height and 0 <= x < header.width:
                    votes[origin] += int(inside[int(y), int(x)])
        if abs(votes["top"] - votes["bottom"]) >= 20:
            break
    if votes["top"] == votes["bottom"]:
        return ""
    return max(votes, key=votes.get)


def _from_top(
    circle: tuple[float, float, float], header: Header, origin: str
) -> tuple[float, float, float]:
    x, y, radius = circle
    return (x, header.height - y if origin == "bottom" else y, radius)


def _add_image(
    dataset: Dataset,
    root: Path,
    path: Path,
    mask: Path | None,
    entry: _Entry,
    origin: str,
    min_pixels: int,
) -> None:
    pixels: np.ndarray | None = None
    if mask is not None and entry.lesions:
        try:
            pixels = masks.read_mask(mask)
        except BadImage as error:
            dataset.report.add("dropped", f"masks that cannot be read ({error})", mask.name)
        else:
            if not masks.boxes_of_components(masks.foreground(pixels), min_pixels)[0]:
                pixels = None
    if pixels is None and entry.lesions:
        if not all(lesion.circle for lesion in entry.lesions):
            dataset.report.add("dropped", "images with a lesion without mask or circle", path.name)
            return
        if not origin:
            reason = "images with circles of unknown origin (give --origin top or bottom)"
            dataset.report.add("dropped", reason, path.name)
            return
    more = {"laterality": entry.side, "view": entry.view, "tissue": entry.tissue}
    # There is no patient in the list: the tool that splits must not take two for one.
    image = add_file(dataset, root, path.relative_to(root).as_posix(), **more)
    if image is None:
        return
    if pixels is not None:
        # A component is not linked to a line: what all lines agree on is known of it.
        names = {lesion.name for lesion in entry.lesions}
        pathologies = {lesion.pathology for lesion in entry.lesions}
        category = (names.pop() if len(names) == 1 else None) or "lesion"
        known = {"pathology": pathologies.pop() if len(pathologies) == 1 else None}
        masks.add_components(dataset, image, pixels, category, min_pixels, **known)
        return
    for lesion in entry.lesions:
        header = Header(image["height"], image["width"])
        x, y, radius = _from_top(lesion.circle, header, origin)
        box = (x - radius, y - radius, 2 * radius, 2 * radius)
        category = lesion.name or "lesion"
        dataset.add_box(image, box, category, source="circle", pathology=lesion.pathology)
