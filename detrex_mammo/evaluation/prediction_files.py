# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Files of predictions, COCO results JSON or CSV, read record by record.

Ten million predictions take 0.6 GB as a table (:func:`read_prediction_table`) and some minutes; as
a list of records (:func:`read_predictions`) they would take 8 GB.

A CSV has a header. Columns, in any order, others being left alone:

- ``image_id``, or ``file_name`` as in the annotation file (without its folders, if that is unique);
- ``category`` or ``category_id``: id or name; not needed when there is one class;
- ``x1``, ``y1``, ``x2``, ``y2``, or ``x``, ``y``, ``width``, ``height``: pixels of the original;
- ``score``; ``slice`` in volumes, may be empty.

Ids are compared as text where they differ in kind, so ``"17"`` finds image 17.
"""

import csv
import json
import logging
import math
import re
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.study import Study
from detrex_mammo.evaluation.tables import PredictionTable

logger = logging.getLogger(__name__)

FIELDS = ("image_id", "category_id", "bbox", "score")
CORNERS = ("x1", "y1", "x2", "y2")
SIDES = ("x", "y", "width", "height")
_CHUNK = 1 << 22  # characters; a record has at most half as many
_GAP = re.compile(r"[ \t\r\n]*")


def read_predictions(
    path: str | Path, annotations: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Read COCO results JSON or a CSV (see the head of this file) as records.

    Args:
        path: ``.csv``, else JSON.
        annotations (optional): the annotation file's content; ids become its own, names of images
            and categories are known, and unknown ones are refused.

    Raises:
        UserError: the file is missing or damaged, or a record is wrong; the record is named.
    """
    return list(_records(Path(path), annotations))


def read_prediction_table(
    path: str | Path, annotations: Mapping[str, Any], study: Study
) -> PredictionTable:
    """The same as a table over the images of a study.

    Images without predictions are images on which the model found nothing; how many there are is
    logged as a warning.

    Args:
        annotations: the content that ``study`` was read from.

    Raises:
        UserError: as for :func:`read_predictions`, or an image is not in the study.
    """
    rows = {image_id: row for row, image_id in enumerate(study.lesions.image_ids)}
    index, categories, boxes = array("q"), array("q"), array("d")
    scores, slices = array("d"), array("d")
    for number, record in enumerate(_records(Path(path), annotations)):
        row = rows.get(record["image_id"])
        if row is None:
            raise UserError(
                f"predictions file {path}, record {number}: image {record['image_id']!r} is not "
                f"among the {len(rows)} images that are evaluated: leave it out, or evaluate all"
            )
        x, y, width, height = record["bbox"]
        index.append(row)
        categories.append(record["category_id"])
        boxes.extend((x, y, x + width, y + height))
        scores.append(record["score"])
        slices.append(record.get("slice", math.nan))
    columns = [np.frombuffer(column, column.typecode) for column in (index, scores, categories)]
    table = PredictionTable(
        image_index=columns[0],
        boxes=np.frombuffer(boxes, "d").reshape(-1, 4),
        scores=columns[1],
        categories=columns[2],
        slices=None if all(map(math.isnan, slices)) else np.frombuffer(slices, "d"),
    )
    warn_of_empty(table, study.num_images, str(path))
    return table


def warn_of_empty(predictions: PredictionTable, num_images: int, source: str) -> None:
    """Say how many images have no predictions: they count, as images with nothing found."""
    absent = num_images - len(np.unique(predictions.image_index))
    if absent:
        logger.warning(
            "%d of the %d images have no prediction in %s: they count as images on which nothing "
            "was found",
            absent,
            num_images,
            source,
        )


class _Names:
    """What a file may call the images and categories of an annotation file."""

    def __init__(self, annotations):
        self.images, self.files, short = {}, {}, {}
        for image in annotations["images"]:
            self.images[str(image["id"])] = image["id"]
            name = image.get("file_name")
            if name is not None:
                self.files[name] = image["id"]
                short.setdefault(PurePosixPath(name).name, []).append(image["id"])
        unique = {name: ids[0] for name, ids in short.items() if len(ids) == 1}
        self.files = {**unique, **self.files}
        self.categories = {c["name"]: c["id"] for c in annotations["categories"] if "name" in c}
        self.categories.update({str(c["id"]): c["id"] for c in annotations["categories"]})
        self.known = [f"{c['id']} ({c.get('name')})" for c in annotations["categories"]]

    def image(self, value, where):
        try:
            return _find(self.images, value)
        except KeyError:
            raise UserError(
                f"{where}: image {value!r} is not in the annotation file: predictions and "
                "annotations must be of the same data set"
            ) from None

    def file(self, value, where):
        try:
            return self.files[value]
        except KeyError:
            raise UserError(
                f"{where}: no image of the annotation file, or more than one, has the file_name "
                f"{value!r}: write it as the annotation file does"
            ) from None

    def category(self, value, where):
        if value is None and len(self.known) == 1:
            return next(iter(self.categories.values()))
        try:
            return _find(self.categories, value)
        except KeyError:
            raise UserError(
                f"{where}: category {value!r} is not in the annotation file, which has "
                f"{', '.join(self.known)}: use its ids or names"
            ) from None


def _find(table, value):
    """The entry of a name or id; tables written by way of floats have 7.0 for 7."""
    text = str(value)
    return table[text] if text in table else table[text.removesuffix(".0")]


class _AnyNames:
    """Without an annotation file: numbers stay numbers, categories must be."""

    def image(self, value, where):
        if not isinstance(value, str | int):
            raise UserError(f"{where}: image_id is {value!r}, but it is a number or a text")
        is_number = isinstance(value, str) and re.fullmatch(r"0|[1-9]\d{0,17}", value)
        return int(value) if is_number else value

    def file(self, value, where):
        raise UserError(f"{where}: a file_name needs the annotation file: give it, or an image_id")

    def category(self, value, where):
        try:
            number = int(value)
            if number == float(value):
                return number
        except (TypeError, ValueError, OverflowError):
            pass
        raise UserError(
            f"{where}: category {value!r} is no id, and a name needs the annotation file: give it, "
            "or use whole numbers"
        )


def _records(path, annotations) -> Iterator[dict[str, Any]]:
    names = _AnyNames() if annotations is None else _Names(annotations)
    read = _csv_records if path.suffix.lower() == ".csv" else _json_records
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            yield from read(file, f"predictions file {path}", names)
    except FileNotFoundError:
        raise UserError(f"predictions file {path} does not exist: check the path") from None
    except OSError as error:
        raise UserError(f"predictions file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"predictions file {path} is not UTF-8 ({error}): write it so") from error


def _json_records(file, source, names):
    for number, record in enumerate(_json_entries(file, source)):
        where = f"{source}, record {number}"
        is_record = isinstance(record, dict)
        missing = [name for name in FIELDS if not is_record or name not in record]
        if missing:
            raise UserError(
                f"{where}, lacks {', '.join(missing)}: a record has {', '.join(FIELDS)}, bbox "
                "being x, y, w, h in original pixels"
            )
        bbox, place = record["bbox"], record.get("slice")
        if not isinstance(bbox, list) or len(bbox) != 4:
            raise UserError(f"{where}: bbox is {bbox!r}, but it is x, y, w, h in original pixels")
        yield {
            **record,
            "image_id": names.image(record["image_id"], where),
            "category_id": names.category(record["category_id"], where),
            "bbox": _box(bbox, where),
            "score": _number(record["score"], "score", where),
            **({} if place is None else {"slice": _number(place, "slice", where)}),
        }


def _json_entries(file, source):
    """The entries of the list that a JSON file holds, one at a time."""
    decode, buffer, at = json.JSONDecoder().raw_decode, file.read(_CHUNK), 0

    def broken(error):
        return UserError(f"{source} is not whole JSON ({error}): write it again")

    at = _GAP.match(buffer, at).end()
    if not buffer[at:]:
        raise broken("it is empty")
    if buffer[at] != "[":
        raise UserError(f"{source} must hold a list of records with {', '.join(FIELDS)}")
    at, is_first, is_all = at + 1, True, False
    while True:
        if not is_all and len(buffer) - at < _CHUNK // 2:
            more = file.read(_CHUNK)
            buffer, at, is_all = buffer[at:] + more, 0, not more
        at = _GAP.match(buffer, at).end()
        mark = buffer[at : at + 1]
        if mark == "]":
            if (buffer[at + 1 :] + file.read()).strip():
                raise broken("something follows the list")
            return
        if not is_first:
            if mark != ",":
                raise broken(f"{mark!r} stands where ',' or ']' is due")
            at = _GAP.match(buffer, at + 1).end()
        try:
            entry, at = decode(buffer, at)
        except (ValueError, RecursionError) as error:
            raise broken(error) from None
        is_first = False
        yield entry


def _csv_records(file, source, names):
    reader = csv.reader(file, skipinitialspace=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        take_image, take_category, take_box, columns = _columns(header, source, names)
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            where = f"{source}, line {reader.line_num}"
            if len(row) != len(header):
                raise UserError(f"{where} has {len(row)} values, but the header {len(header)}")
            cells = {name: row[place].strip() for name, place in columns.items()}
            record = {
                "image_id": take_image(cells, where),
                "category_id": take_category(cells, where),
                "bbox": take_box(cells, where),
                "score": _number(cells["score"], "score", where),
            }
            if cells.get("slice"):
                record["slice"] = _number(cells["slice"], "slice", where)
            yield record
    except csv.Error as error:
        raise UserError(f"{source}, line {reader.line_num}, is no CSV ({error})") from error


def _columns(header, source, names):
    """How to take image, category and box from a row, and where each column is."""
    columns = {name: place for place, name in reversed(list(enumerate(header)))}
    category = next((name for name in ("category", "category_id") if name in columns), None)
    lacks = []
    if not {"image_id", "file_name"} & set(columns):
        lacks.append("image_id (or file_name)")
    if category is None and len(getattr(names, "known", ())) != 1:
        lacks.append("category")
    has_corners, has_sides = set(CORNERS) <= set(columns), set(SIDES) <= set(columns)
    if not has_corners and not has_sides:
        lacks.append("x1, y1, x2, y2 (or x, y, width, height)")
    if "score" not in columns:
        lacks.append("score")
    if lacks:
        raise UserError(f"{source} lacks the columns {'; '.join(lacks)}: its header is {header}")

    def take_image(cells, where):
        if cells.get("image_id"):
            return names.image(cells["image_id"], where)
        return names.file(cells.get("file_name", ""), where)

    def take_category(cells, where):
        return names.category(cells.get(category), where)

    def take_box(cells, where):
        if not has_corners:
            return _box([cells[name] for name in SIDES], where)
        x1, y1, x2, y2 = (_number(cells[name], name, where) for name in CORNERS)
        return _box([x1, y1, x2 - x1, y2 - y1], where)

    return take_image, take_category, take_box, columns


def _box(values, where):
    box = [_number(value, name, where) for value, name in zip(values, SIDES, strict=True)]
    if box[2] < 0 or box[3] < 0:
        raise UserError(f"{where}: width {box[2]:g} and height {box[3]:g} must not be below 0")
    return box


def _number(value, name, where):
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: {name} is {value!r}, but it is a finite number")
    return number
