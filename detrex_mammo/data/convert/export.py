# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""COCO JSON back to KITTI, YOLO and Pascal VOC, for tools that want those.

The folders that are written here are read by ``prepare_data.py kitti, yolo`` and ``voc``. A file
``a/b.png`` becomes ``a__b.png``: a label file is found by its image's name. Coordinates keep every
digit. What a format cannot hold is in the report.
"""

import math
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

import yaml

from detrex_mammo.data.convert.dataset import Dataset, Report
from detrex_mammo.data.convert.source import SPLITS
from detrex_mammo.data.dataset_folder import write_json
from detrex_mammo.errors import UserError
from detrex_mammo.progress import counted

PLACES = ("none", "link", "copy")
_Box = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """One image with its boxes.

    Attributes:
        image: COCO's entry.
        name: file name without folders, unlike any other's, its stem too.
        boxes: (class name, annotation) of each box.
    """

    image: dict[str, Any]
    name: str
    boxes: list[tuple[str, _Box]]

    @property
    def stem(self) -> str:
        """Name of the label file without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def split(self) -> str:
        """The image's split; "train" if it has none."""
        return str(self.image.get("split") or "train")


class Export:
    """A dataset on its way into a folder.

    Args:
        dataset: read by :func:`detrex_mammo.data.convert.coco.convert`.
        out: folder to write; it must be empty or not exist.
        image_root: folder of the images; only needed to place them.
        place: "link" or "copy" the images to where the format wants them, or "none".

    Raises:
        UserError: out is not empty, or a class name does not fit into a line.
    """

    def __init__(self, dataset: Dataset, out: Path, image_root: Path, place: str = "none"):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"--out {str(out)!r} is not empty: choose another folder")
        if place not in PLACES:
            raise UserError(f"place is {place!r}; use one of {', '.join(PLACES)}")
        if not dataset.images:
            raise UserError("--json lists no image that can be written", dataset.report.describe())
        content = dataset.to_coco()
        self.classes = {c["id"]: c["name"] for c in content["categories"]}
        for name in self.classes.values():
            if not name.isprintable() or name != name.strip():
                raise UserError(f"class {name!r} does not fit into a label file: rename it")
        self.dataset, self.out, self.image_root, self.place = dataset, out, image_root, place
        self.report = Report()
        self._boxes = defaultdict(list)
        for annotation in dataset.annotations:
            self._boxes[annotation["image_id"]].append(annotation)

    def entries(self, title: str) -> Iterator[Entry]:
        """Each image with a name of its own."""
        taken: set[str] = set()
        for image in counted(self.dataset.images, title):
            name = _plain(image["file_name"].replace("/", "__"))
            path = PurePosixPath(name)
            stem, number = path.stem, 2
            while stem.lower() in taken:  # some file systems do not tell a from A
                stem, number = f"{path.stem}-{number}", number + 1
            if stem != path.stem:
                self.report.add("fixed", "images renamed: two would share a label file", name)
            taken.add(stem.lower())
            found = [(self.classes[a["category_id"]], a) for a in self._boxes[image["id"]]]
            self.report.add("kept", "images")
            yield Entry(image, stem + path.suffix, found)

    def write_text(self, relative: str, lines: list[str]) -> None:
        """Write a text file, one line each."""
        path = self.out / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def place_image(self, entry: Entry, folder: str) -> None:
        """Link or copy an image; one that is missing is reported."""
        target = self.out / folder / entry.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.place == "none":
            return
        source = self.image_root / entry.image["file_name"]
        if not os.path.isfile(source):
            self.report.add("dropped", "image files that do not exist", entry.image["file_name"])
        elif self.place == "link":
            target.symlink_to(source.resolve())
        else:
            shutil.copyfile(source, target)

    def is_ignored(self, box: _Box) -> bool:
        """Whether an evaluation leaves the box out."""
        return bool(box.get("iscrowd") or box.get("ignore"))


def to_yolo(export: Export, segments: bool = False) -> Report:
    """``data.yaml``, ``images/SPLIT/`` and ``labels/SPLIT/``; crowd and ignore are left out.

    Args:
        export: the dataset.
        segments: every row is a polygon, for segmentation; a box without an outline is its four
            corners, because readers take all rows of a file for the same kind.
    """
    numbers = {name: number for number, name in enumerate(export.classes.values())}
    splits = {image.get("split") or "train" for image in export.dataset.images}
    others = sorted(splits - set(SPLITS))
    if others:
        raise UserError(f"YOLO knows the splits {', '.join(SPLITS)}, not {', '.join(others)}")
    for entry in export.entries("YOLO"):
        width, height = entry.image["width"], entry.image["height"]
        lines = []
        for name, box in entry.boxes:
            if export.is_ignored(box):
                export.report.add("dropped", "crowd and ignore boxes, unknown to YOLO", entry.name)
                continue
            if segments:
                points = _outline(export, entry, box)
                values = [value for x, y in points for value in (x / width, y / height)]
            else:
                x, y, w, h = box["bbox"]
                values = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
            lines.append(" ".join([str(numbers[name]), *map(_text, values)]))
            export.report.add("kept", "boxes")
        export.write_text(f"labels/{entry.split}/{entry.stem}.txt", lines)
        export.place_image(entry, f"images/{entry.split}")
    content = {split: f"images/{split}" for split in SPLITS if split in splits}
    names = {number: name for name, number in numbers.items()}
    text = yaml.safe_dump({**content, "names": names}, allow_unicode=True, sort_keys=False)
    (export.out / "data.yaml").write_text(text, encoding="utf-8")
    return export.report


def _outline(export: Export, entry: Entry, box: _Box) -> list[tuple[float, float]]:
    """Points of a lesion's polygon, cut at its box; the box's corners if it has none."""
    x, y, w, h = box["bbox"]
    segmentation = box.get("segmentation")
    parts = segmentation if isinstance(segmentation, list) else []
    polygons = [part for part in parts if _is_polygon(part)]
    if len(polygons) > 1:
        export.report.add("fixed", "outlines of several parts, joined to one", entry.name)
    points = [
        (min(max(px, x), x + w), min(max(py, y), y + h))
        for part in polygons
        for px, py in zip(part[0::2], part[1::2])
    ]
    xs, ys = ([point[axis] for point in points] for axis in (0, 1))
    if points and min(xs) < max(xs) and min(ys) < max(ys):
        return points
    if segmentation:
        export.report.add("fixed", "outlines that are no polygon, now their box", entry.name)
    return [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]


def _is_polygon(part: Any) -> bool:
    """Three points or more, as COCO has them."""
    is_list = isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0
    return is_list and all(isinstance(v, int | float) and math.isfinite(v) for v in part)


def to_kitti(export: Export) -> Report:
    """A sequence for each split, ``sequence.txt``, and ``mapping.json``.

    A type may hold no space, so "suspicious mass" becomes suspicious_mass, which mapping.json
    turns back. Crowd and ignore become DontCare.
    """
    types = _types(list(export.classes.values()))
    sequences = []
    for entry in export.entries("KITTI"):
        lines = []
        for name, box in entry.boxes:
            kind = types[name]
            if export.is_ignored(box):
                kind = "DontCare"
                export.report.add("fixed", "crowd and ignore boxes, now DontCare", entry.name)
            else:
                export.report.add("kept", "boxes")
            x, y, w, h = box["bbox"]
            start = [_text(_number(box, "truncated")), str(int(_number(box, "occluded"))), "0"]
            words = [kind, *start, *map(_text, (x, y, x + w, y + h)), *["0"] * 7]
            words += [_text(_number(box, "score"))] if "score" in box else []
            lines.append(" ".join(words))
        export.write_text(f"{entry.split}/labels/{entry.stem}.txt", lines)
        export.place_image(entry, f"{entry.split}/images")
        if entry.split not in sequences:
            sequences.append(entry.split)
    export.write_text("sequence.txt", sequences)
    write_json(export.out / "mapping.json", {kind: name for name, kind in types.items()})
    return export.report


def _types(names: list[str]) -> dict[str, str]:
    """A type without spaces for each class, none of them twice."""
    types: dict[str, str] = {}
    for name in names:
        plain = "_".join(name.split())
        kind, number = plain, 2
        while kind in types.values() or kind.lower() == "dontcare":
            kind, number = f"{plain}_{number}", number + 1
        types[name] = kind
    return types


def to_voc(export: Export, one_based: bool = False) -> Report:
    """``JPEGImages/``, ``Annotations/`` and ``ImageSets/Main/SPLIT.txt``.

    Args:
        export: the dataset.
        one_based: the first pixel is 1 and xmax, ymax lie in the box, as in VOC2012.
    """
    lists = defaultdict(list)
    for entry in export.entries("VOC"):
        root = Element("annotation")
        SubElement(root, "folder").text = "JPEGImages"
        SubElement(root, "filename").text = entry.name
        size = SubElement(root, "size")
        for key, value in (("width", "width"), ("height", "height")):
            SubElement(size, key).text = str(entry.image[value])
        SubElement(size, "depth").text = "1"
        for name, box in entry.boxes:
            if box.get("iscrowd"):
                export.report.add("fixed", "crowd boxes, now difficult", entry.name)
            root.append(_voc_object(name, box, export.is_ignored(box), int(one_based)))
            export.report.add("kept", "boxes")
        indent(root)
        path = export.out / "Annotations" / f"{entry.stem}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
        export.place_image(entry, "JPEGImages")
        lists[entry.split].append(entry.stem)
    for split, stems in lists.items():
        export.write_text(f"ImageSets/Main/{split}.txt", stems)
    return export.report


def _voc_object(name: str, box: _Box, is_difficult: bool, first: int) -> Element:
    element = Element("object")
    truncated = _number(box, "truncated") > 0
    texts = {"name": name, "pose": _plain(str(box.get("pose") or "Unspecified"))}
    texts |= {"truncated": str(int(truncated)), "difficult": str(int(is_difficult))}
    for key, text in texts.items():
        SubElement(element, key).text = text
    corners = SubElement(element, "bndbox")
    x, y, w, h = box["bbox"]
    for key, value in zip(("xmin", "ymin", "xmax", "ymax"), (x + first, y + first, x + w, y + h)):
        SubElement(corners, key).text = _text(value)
    return element


def _plain(text: str) -> str:
    """Without line ends and what else no line and no XML can hold."""
    return "".join(letter if letter.isprintable() else "_" for letter in text)


def _number(box: _Box, key: str) -> float:
    """A number that another tool wrote; 0 if it is none."""
    value = box.get(key)
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else 0.0


def _text(value: float) -> str:
    """Shortest text that gives the same number again; without a point where it is whole."""
    number = float(value)
    return str(int(number)) if number.is_integer() else repr(number)


FORMATS: dict[str, Callable[..., Report]] = {"kitti": to_kitti, "yolo": to_yolo, "voc": to_voc}
