# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A plain table, one row a box: ``file,xmin,ymin,xmax,ymax,label[,patient...]``.

Coordinates are edges in pixels from the image's top left. A row without a box, its label empty or
"normal", says that its image is a negative. Other columns of the schema go with the image or box.
"""

import argparse
import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from detrex_mammo.data.convert.dataset import IMAGE_KEYS, SOURCES, Dataset
from detrex_mammo.data.convert.source import Source, add_common_arguments, normalized
from detrex_mammo.data.convert.tables import delimiter_of, read_cells
from detrex_mammo.errors import UserError

_POSITIONS = ("file", "xmin", "ymin", "xmax", "ymax", "label", "patient_id")
_CORNERS = _POSITIONS[1:5]
_BOX_KEYS = ("pathology", "lesion_id", "iscrowd", "ignore", "source", "score")
_ALIASES = {
    **dict.fromkeys(("filename", "file_name", "image", "image_path", "path"), "file"),
    **{"x1": "xmin", "y1": "ymin", "x2": "xmax", "y2": "ymax"},
    **{"x_min": "xmin", "y_min": "ymin", "x_max": "xmax", "y_max": "ymax"},
    **dict.fromkeys(("class", "class_name", "category"), "label"),
    **{"patient": "patient_id", "study": "study_id", "side": "laterality"},
    **{"view_position": "view", "bit_depth": "bits_stored", "subset": "split"},
}
_NO_FINDING = {"", "normal", "negative", "none", "no finding", "no_finding", "background"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`convert`."""
    add_common_arguments(parser)
    parser.add_argument(
        "--table", help="the CSV file, relative to --root; the only one there if left out"
    )


def convert(root: Path, out: Path, table: str | None = None, **common: Any) -> Dataset:
    """Read a table and the images that it names, row by row.

    Args:
        root: folder that the files in the table are relative to.
        out: where the dataset will be written; nothing is written here.
        table: the CSV file; separated by comma, semicolon or tab.
        **common: see :class:`Source`.

    Raises:
        UserError: there is no such table, or it lacks a column.
    """
    source = Source(root, **common)
    path = _find_table(source, table)
    refused: set[str] = set()  # images that are reported once and not tried again
    for where, row, fault in _read_rows(source, path):
        _add_row(source, where, row, fault, refused)
    return source.finish()


def _find_table(source: Source, table: str | None) -> Path:
    if table is not None:
        path = source.root / table
        if not path.is_file():
            raise UserError(f"--table {str(path)!r} does not exist: give a CSV file in --root")
        return path
    found = sorted(source.root.glob("*.csv"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(
            f"--root {str(source.root)!r} should hold one CSV file but has {names}: name it with "
            "--table"
        )
    return found[0]


def _read_rows(source: Source, path: Path) -> Iterator[tuple[str, dict[str, str], str]]:
    """Where a row stands, its {column: text}, and what is wrong with it as a whole, or ""."""
    delimiter = delimiter_of(path)
    report = source.dataset.report
    rows = read_cells(path, report, delimiter, is_strict=True, title=path.name)
    first = next(rows, ("", []))
    columns, is_header = _columns(source, first[1], path)
    for where, cells in rows if is_header else chain([first], rows):
        fault = "rows with more cells than columns" if any(cells[len(columns) :]) else ""
        if delimiter == ";":
            cells = [_with_point(cell) for cell in cells]
        yield where, dict(zip(columns, cells)), fault


def _columns(source: Source, cells: list[str], path: Path) -> tuple[list[str], bool]:
    """Names of the columns by the first row, and whether it is a header."""
    names = [_ALIASES.get(cell.lower(), cell.lower()) for cell in cells]
    needed = _POSITIONS[:6]
    if all(name in names for name in needed):
        twice = sorted({name for name in names if name and names.count(name) > 1})
        if twice:
            raise UserError(f"--table {str(path)!r} has two columns for {twice[0]!r}: remove one")
        known = {*_POSITIONS, *IMAGE_KEYS, *_BOX_KEYS, "width", "height", ""}
        for name in set(names) - known:
            source.drop("columns that the schema lacks", name)
        return names, True
    if 6 <= len(cells) <= 7 and _numbers(cells[1:5]) is not None or _is_bare_negative(cells):
        return list(_POSITIONS), False
    missing = [name for name in needed if name not in names]
    raise UserError(
        f"--table {str(path)!r} lacks the column {missing[0]!r}; its first row is "
        f"{','.join(_POSITIONS[:6])} and further columns"
    )


def _is_bare_negative(cells: list[str]) -> bool:
    """A first row without header that stands for a negative image."""
    return 6 <= len(cells) <= 7 and not any(cells[1:5]) and cells[5].lower() in _NO_FINDING


def _with_point(cell: str) -> str:
    """A number with a decimal comma, as tables separated by semicolons have them."""
    changed = cell.replace(",", ".", 1)
    return changed if changed != cell and _numbers([changed]) else cell


def _numbers(cells: list[str]) -> list[float] | None:
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return None


def _add_row(
    source: Source, where: str, row: dict[str, str], fault: str, refused: set[str]
) -> None:
    box = _numbers([row.get(key, "") for key in _CORNERS])
    fault = fault or _fault(row, box)
    name = row.get("file", "")
    if name in refused:
        return
    relative = source.find_image(name, where)
    image = relative and source.images.get(relative)
    record = {} if fault else _image_record(row)
    if image:
        source.merge(image, record, where)
    elif relative is not None:
        image = source.add_image(relative, record, None if fault else _declared(row))
    if not image:
        refused.add(name)
    elif fault:
        source.damage(image, fault, where)
    elif box is not None:
        x1, y1, x2, y2 = box
        more = _box_record(source, row, where)
        origin = more.pop("source", "box")
        source.add_box(image, (x1, y1, x2 - x1, y2 - y1), row["label"], more, origin)


def _fault(row: dict[str, str], box: list[float] | None) -> str:
    """Why a row is neither a box nor a negative; "" if it is one."""
    label = row.get("label", "")
    if box is None and any(row.get(key) for key in _CORNERS):
        return "rows without four numbers"
    if box is None and label.lower() not in _NO_FINDING:
        return "rows with a label but no box; no negatives"
    return "boxes without a label" if box is not None and not label else ""


def _declared(row: dict[str, str]) -> tuple[float, float] | None:
    size = _numbers([row.get("height", ""), row.get("width", "")])
    return (size[0], size[1]) if size else None


def _image_record(row: dict[str, str]) -> dict[str, Any]:
    record: dict[str, Any] = normalized({key: row.get(key) for key in IMAGE_KEYS})
    if "bits_stored" in record and record["bits_stored"].isdecimal():
        record["bits_stored"] = int(record["bits_stored"])
    if "pixel_spacing" in record:
        text = record["pixel_spacing"].strip("[]() ").replace("\\", " ").replace(",", " ")
        values = _numbers(text.split())
        if values and len(values) <= 2 and all(0 < value < math.inf for value in values):
            record["pixel_spacing"] = [values[0], values[-1]]
        else:
            del record["pixel_spacing"]
    return record


def _box_record(source: Source, row: dict[str, str], where: str) -> dict[str, Any]:
    record: dict[str, Any] = {key: row[key] for key in _BOX_KEYS if row.get(key)}
    for key in ("iscrowd", "ignore", "score"):
        if key in record:
            value = _numbers([record[key]])
            if value is None or not math.isfinite(value[0]):
                source.drop(f"values of {key} that are no number", where)
                del record[key]
            else:
                record[key] = value[0] if key == "score" else int(value[0] != 0)
    if record.get("source", "box") not in SOURCES:
        source.drop(f"values of source that are none of {', '.join(SOURCES)}", where)
        del record["source"]
    return record
