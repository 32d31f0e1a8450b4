# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""mini-MIAS: 322 films of 1024 x 1024 pixels and a text with a circle for each lesion.

- Circles count from the bottom left; a box is a circle's bounds, counted from the top left.
- Lesions without a circle (calcifications all over the breast) have no box; their film is no
  negative either and is left out.
- Even numbers are left breasts, odd ones right; two in a row are one patient. All are MLO.
"""

import argparse
import re
from collections import defaultdict
from pathlib import Path

from detrex_mammo.data.convert import tables
from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.convert.headers import BadImage, add_file, read_header
from detrex_mammo.progress import counted

SIZE = 1024
CLASSES = {
    "CALC": "calcification",
    "CIRC": "mass",
    "SPIC": "mass",
    "MISC": "mass",
    "ARCH": "architectural distortion",
    "ASYM": "asymmetry",
}
_ROW = re.compile(r"(mdb(\d{3}))\s+([FGD])\s+([A-Z]{4})\b\s*([BM])?\s*(.*)")
_CIRCLE = re.compile(r"(-?\d+)\s+(-?\d+)\s+(\d+)\s*")
_SUFFIXES = (".pgm", ".png", ".tif", ".jpg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """:func:`convert` has no options."""


def convert(root: Path, out: Path) -> Dataset:
    """Read ``Info.txt`` and the films below ``root``.

    Args:
        root: the folder as it was unpacked.
        out: unused; the images stay where they are.
    """
    info = tables.find(root, ["**/[Ii]nfo.txt"], "table of mini-MIAS")[0]
    dataset = Dataset("mini-mias", list(dict.fromkeys(CLASSES.values())))
    films = {}
    for path in sorted(root.rglob("mdb[0-9][0-9][0-9].*")):
        if path.suffix.lower() in _SUFFIXES:
            films.setdefault(path.stem, path)
    rows = defaultdict(list)
    text = info.read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        match = _ROW.match(line.strip())
        if match and match.group(4) in {"NORM", *CLASSES}:
            rows[match.group(1)].append(match)
        elif re.match(r"\s*mdb\d", line):  # all else is the text around the table
            dataset.report.add("dropped", "rows that cannot be read", f"{info.name} line {number}")
    for name in sorted(set(films) - set(rows)):
        dataset.report.add("dropped", "films without a row", films[name].name)
    for name, found in counted(rows.items(), "mini-MIAS", unit="film"):
        _add_film(dataset, root, films.get(name), name, found)
    return dataset.without_damaged()


def _add_film(
    dataset: Dataset, root: Path, path: Path | None, name: str, rows: list[re.Match]
) -> None:
    if path is None:
        dataset.report.add("dropped", "films that are missing", name)
        return
    lesions = [row for row in rows if row.group(4) != "NORM"]
    circles = [_CIRCLE.fullmatch(row.group(6)) for row in lesions]
    if not all(circles):
        dataset.report.add("dropped", "films with a lesion that has no circle", path.name)
        return
    if lesions and not _has_its_size(path):
        dataset.report.add("dropped", f"films with a circle, but not of {SIZE} pixels", path.name)
        return
    number = int(rows[0].group(2))
    image = add_file(
        dataset,
        root,
        path.relative_to(root).as_posix(),
        patient_id=f"mias_{(number + 1) // 2:03d}",
        laterality="R" if number % 2 else "L",
        view="MLO",
        pixel_spacing=[0.2, 0.2],
        tissue=rows[0].group(3),
    )
    for row, circle in zip(lesions, circles) if image else ():
        x, y, radius = (int(value) for value in circle.groups())
        dataset.add_box(
            image,
            (x - radius, SIZE - y - radius, 2 * radius, 2 * radius),
            CLASSES[row.group(4)],
            source="circle",
            pathology={"B": "benign", "M": "malignant"}.get(row.group(5)),
            mias_class=row.group(4),
        )


def _has_its_size(path: Path) -> bool:
    """Whether circles fit; True for a film that cannot be read, which is reported later."""
    try:
        header = read_header(path)
    except BadImage:
        return True
    return (header.height, header.width) == (SIZE, SIZE)
