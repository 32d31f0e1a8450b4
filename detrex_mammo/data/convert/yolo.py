# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""YOLO: one text file for each image, ``class cx cy w h [score]`` in fractions of the image.

A row of more numbers is ``class x1 y1 x2 y2 ...``, a polygon or rotated box: its bounds are the
box, and it stays as ``segmentation``. The classes are in ``data.yaml``, or one a line in
``classes.txt``.
"""

import argparse
import itertools
import math
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.data.convert.source import (
    SPLITS,
    Source,
    add_common_arguments,
    label_files,
    read_lines,
    split_of,
)
from detrex_mammo.errors import UserError
from detrex_mammo.progress import counted

_DESCRIPTIONS = ("data.yaml", "dataset.yaml", "data.yml")
_NAME_LISTS = ("classes.txt", "obj.names", "labels/classes.txt", "classes.names")
_FAR = 2.0  # a fraction beyond it is a pixel
_Entry = tuple[str, str]  # image's path, split


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`convert`."""
    add_common_arguments(parser, without_labels="negative")


def convert(
    root: Path,
    out: Path,
    classes: list[str] | None = None,
    without_labels: str = "negative",
    **common: Any,
) -> Dataset:
    """Read a YOLO folder.

    Args:
        root: folder of ``data.yaml`` or ``classes.txt``, or of images and labels.
        out: where the dataset will be written; nothing is written here.
        classes: names in the order of the class numbers, instead of those in the folder.
        without_labels: "drop" an image without a label file, or take it as "negative".
        **common: see :class:`Source`.

    Raises:
        UserError: root is no folder, holds no image, or nothing names the classes.
    """
    folder = Path(root)
    description = _read_description(folder)
    names = dict(enumerate(classes)) if classes else _class_names(folder, description)
    # Two numbers of one name are one category.
    categories = list(dict.fromkeys(names[number] for number in sorted(names)))
    source = Source(folder, classes=categories, **common)
    entries = _described_images(source, description) or _images_in_folders(source)
    if not entries:
        raise UserError(f"--root {str(root)!r} holds no image: give the folder of a YOLO dataset")
    for relative, split in counted(entries, "YOLO"):
        _add(source, relative, split, names, without_labels == "negative")
    return source.finish()


def _read_description(root: Path) -> dict[str, Any]:
    path = next((root / name for name in _DESCRIPTIONS if (root / name).is_file()), None)
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"{str(path)!r} is no YAML file ({text}): repair it") from error
    if not isinstance(content, dict):
        raise UserError(f"{str(path)!r} has no keys: it should say train, val and names")
    return content


def _class_names(root: Path, description: dict[str, Any]) -> dict[int, str]:
    """Name of each class number."""
    given = description.get("names")
    if not isinstance(given, dict | list):
        path = next((root / name for name in _NAME_LISTS if (root / name).is_file()), None)
        if path is None:
            raise UserError(
                f"nothing in {str(root)!r} names the classes: add data.yaml or classes.txt, or "
                "give --classes"
            )
        lines = read_lines(path)
        return {number: line for number, line in enumerate(lines) if line}
    pairs = given.items() if isinstance(given, dict) else enumerate(given)
    # A name in YAML may be a number, but not a list: printing one can fill the memory.
    names = {k: str(v).strip() for k, v in pairs if isinstance(k, int) and _is_plain(v)}
    if not names or len(names) != len(given) or not all(names.values()):
        raise UserError(
            "names of data.yaml are no list of names and no table {number: name}: repair them, or "
            "give --classes"
        )
    return names


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _described_images(source: Source, description: dict[str, Any]) -> list[_Entry]:
    """Images of the splits that data.yaml names: folders, lists, or several of them."""
    base = description.get("path") or "."
    if not isinstance(base, str) or not (_is_inside(base) and source.has_folder(base)):
        # It is where the folder lay on the machine of whoever made it.
        source.fix(
            "path of data.yaml, taken as its own folder",
            base[:200] if isinstance(base, str) else "",
        )
        base = "."
    entries: list[_Entry] = []
    for split in SPLITS:
        values = description.get(split) or (description.get("valid") if split == "val" else None)
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, str):
                entries += _images_of(source, base, value, split)
    return entries


def _images_of(source: Source, base: str, value: str, split: str) -> list[_Entry]:
    text = value.replace("\\", "/")
    where = f"data.yaml, {split}"
    plain = text.removeprefix("./") if base == "." else f"{base}/{text}"
    if text.startswith("../") and not _is_inside(plain):
        # Roboflow writes ../train/images where train/images is meant.
        inner = text.lstrip("./")
        if (source.has_folder(inner) or source.has(inner)) and _is_inside(inner):
            source.fix("paths of data.yaml, taken inside of its folder", value)
            plain = inner
    relative = "." if plain == "." else source.inside(plain, where)
    if relative is None:
        return []
    if source.has_folder(relative):
        return [(image, split) for image in source.images_below(relative)]
    if not source.has(relative):
        source.drop("folders and lists that do not exist", f"{where}: {value}"[:200])
        return []
    near = PurePosixPath(relative).parent.as_posix()
    try:
        lines = read_lines(source.root / relative)
    except UserError:
        source.drop("lists that are no text", relative)
        return []
    found = [source.find_image(line, relative, near) for line in lines if line]
    return [(image, split) for image in found if image is not None]


def _is_inside(path: str) -> bool:
    if PurePosixPath(path).is_absolute():
        return False
    depth = 0
    for part in PurePosixPath(path).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return False
    return True


def _images_in_folders(source: Source) -> list[_Entry]:
    entries = []
    for relative in source.images_below("."):
        folders = PurePosixPath(relative).parts[:-1]
        entries.append((relative, next(filter(None, map(split_of, folders)), "")))
    return entries


def _add(source: Source, relative: str, split: str, names: dict[int, str], takes_unlabelled: bool):
    labels = [path for path in label_files(relative, ".txt") if source.has(path)]
    if not labels and not takes_unlabelled:
        source.drop("images without a label file", relative)
        return
    try:
        lines = read_lines(source.root / labels[0]) if labels else []
    except UserError:
        source.drop("images whose label file is no text", labels[0])
        return
    image = source.add_image(relative, {"split": split})
    if image is None:
        return
    for number, line in enumerate(lines, 1):
        if line:
            _add_row(source, image, line.split(), names, f"{labels[0]}:{number}")


def _add_row(source: Source, image: dict[str, Any], row: list[str], names: dict[int, str], where):
    try:
        values = [float(word) for word in row]
        number = int(values[0])
    except (ValueError, OverflowError):
        source.damage(image, "rows with a value that is no number", where)
        return
    is_box = len(row) in (5, 6)
    if not is_box and (len(row) < 7 or len(row) % 2 == 0):
        source.damage(image, "rows that are neither a box nor a polygon", where)
        return
    if number not in names or number != values[0]:
        source.damage(image, "rows of a class without a name", f"{where}: {row[0]}")
        return
    coordinates, score = (values[1:5], values[5:]) if is_box else (values[1:], [])
    if any(abs(value) > _FAR for value in coordinates):
        reason = "rows in pixels or beyond the image; they are fractions of it"
        source.damage(image, reason, where)
        return
    width, height = image["width"], image["height"]
    record: dict[str, Any] = {}
    if is_box:
        cx, cy, w, h = coordinates
        x1, y1, x2, y2 = cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2
        if score and math.isfinite(score[0]):
            record["score"] = score[0]
    else:
        xs, ys = coordinates[0::2], coordinates[1::2]
        x1, y1, x2, y2 = min(xs), min(ys), max(xs), max(ys)
        inside = [min(max(value, 0.0), 1.0) for value in coordinates]
        sides = itertools.cycle((width, height))
        record["segmentation"] = [[value * side for value, side in zip(inside, sides)]]
    box = (x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height)
    source.add_box(image, box, names[number], record, "box" if is_box else "polygon")
