# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""COCO JSON, one file or several: ids are given anew, categories and images are merged by name.

Extra keys stay, segmentations (polygons and run lengths) and crowds too. A number that is written
as text is refused by its key's name: readers disagree about what it means.
"""

import argparse
import json as json_module
import math
import re
from pathlib import Path, PurePosixPath
from typing import Any

from detrex_mammo.data.convert.dataset import IMAGE_KEYS, SOURCES, Dataset
from detrex_mammo.data.convert.source import Source, add_common_arguments
from detrex_mammo.errors import UserError
from detrex_mammo.progress import counted

_LISTS = ("images", "annotations", "categories")
_SPLIT_IN_NAME = re.compile(r"(?<![a-z])(train|val|test)(?![a-z])", re.IGNORECASE)
# What Dataset writes itself; everything else of an entry is kept as it is.
_IMAGE_OWN = {"id", "file_name", "height", "width"}
_BOX_OWN = {"id", "image_id", "category_id", "bbox", "source"}

_TEXTS = tuple(key for key in IMAGE_KEYS if key != "pixel_spacing")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`convert`."""
    add_common_arguments(parser)
    parser.add_argument(
        "--json", nargs="+", help="files, relative to --root; all in it or its annotations/"
    )
    parser.add_argument(
        "--images-folder",
        nargs="+",
        help="that file_name is relative to, relative to --root: one, or one for each file",
    )
    parser.add_argument(
        "--no-image-files", action="store_true", help="do not look at the images, trust the JSON"
    )


class CocoDataset(Dataset):
    """Keeps a category's extra keys, such as ``supercategory``, as well."""

    def __init__(self, name: str, categories: list[str] | None = None):
        super().__init__(name, categories)
        self.category_keys: dict[str, dict[str, Any]] = {}

    def to_coco(self) -> dict[str, Any]:
        """See :meth:`Dataset.to_coco`."""
        content = super().to_coco()
        content["categories"] = [
            {**self.category_keys.get(category["name"], {}), **category}
            for category in content["categories"]
        ]
        return content


def convert(
    root: Path,
    out: Path,
    classes: list[str] | None = None,
    json: list[str] | None = None,
    images_folder: list[str] | None = None,
    no_image_files: bool = False,
    **common: Any,
) -> Dataset:
    """Read COCO JSON files into one dataset.

    Args:
        root: folder of the files and the images.
        out: where the dataset will be written; nothing is written here.
        classes: names in the order of their ids; the files' order, if None.
        json: the files. If each is named after a split, it is its images' split.
        images_folder: that ``file_name`` is relative to, relative to root.
        no_image_files: trust the JSON's sizes and do not look at the images.
        **common: see :class:`Source`; an image that says its own ``dataset`` keeps it.

    Raises:
        UserError: there is no such file, or it is not COCO JSON.
    """
    source = Source(root, classes=classes, **common)
    paths = _find_files(source.root, json)
    folders = images_folder or ["."]
    paths, contents = _read_all(source, paths, is_named=bool(json))
    if len(folders) not in (1, len(paths)):
        raise UserError(
            f"--images-folder names {len(folders)} folders for {len(paths)} files: give one, or "
            "one for each file"
        )
    names = classes or [
        str(category["name"]).strip()
        for content in contents
        for category in sorted(filter(_is_category, content["categories"]), key=_order)
    ]
    report = source.dataset.report
    source.dataset = CocoDataset(source.dataset.name, list(dict.fromkeys(names)))
    source.dataset.report = report
    splits = [_SPLIT_IN_NAME.search(path.stem) for path in paths]
    folders = folders * len(paths) if len(folders) == 1 else folders
    taken: set[tuple] = set()
    for path, content, folder, split in zip(paths, contents, folders, splits):
        given = split.group(1).lower() if all(splits) else ""
        taken |= _File(source, path.name, folder, given, no_image_files, taken).add(content)
    return source.finish()


def _find_files(root: Path, given: list[str] | None) -> list[Path]:
    if given:
        paths = [root / name for name in given]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise UserError(f"--json {str(missing[0])!r} does not exist: give a file in --root")
        return paths
    paths = sorted([*root.glob("*.json"), *root.glob("annotations/*.json")])
    if not paths:
        raise UserError(f"--root {str(root)!r} holds no JSON file: name it with --json")
    return paths


def _read_all(
    source: Source, paths: list[Path], is_named: bool
) -> tuple[list[Path], list[dict[str, list[Any]]]]:
    """Paths and contents; of files that nobody named, such as report.json, only those of COCO."""
    found, contents = [], []
    for path in paths:
        try:
            contents.append(_read(path))
            found.append(path)
        except UserError:
            if is_named or (path == paths[-1] and not found):
                raise
            source.drop("JSON files that are not COCO or damaged", path.name)
    return found, contents


def _read(path: Path) -> dict[str, list[Any]]:
    try:
        content = json_module.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{str(path)!r} is no whole JSON ({error})") from error
    missing = [k for k in _LISTS if not isinstance(content, dict) or k not in content]
    wrong = missing or [k for k in _LISTS if not isinstance(content[k], list)]
    if wrong:
        raise UserError(f"{str(path)!r} has no list {wrong[0]!r}: it is not COCO; see --json")
    return content


def _is_category(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("name"), str)
        and bool(entry["name"].strip())
        and _is_id(entry.get("id"))
    )


def _order(category: dict[str, Any]) -> tuple[bool, Any]:
    return isinstance(category["id"], str), category["id"]


def _is_id(value: Any) -> bool:
    """A whole number, or text that is not one."""
    if isinstance(value, str):
        return not _is_text_number(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text_number(value: Any) -> bool:
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 2**63


class _File:
    """One file on its way into the dataset."""

    def __init__(
        self,
        source: Source,
        name: str,
        folder: str,
        split: str,
        trusts_sizes: bool,
        taken: set[tuple],
    ):
        self.source, self.name, self.folder, self.split = source, name, folder, split
        self.trusts_sizes = trusts_sizes
        self.taken, self.added = taken, set()  # (file, class, box) of earlier files, of this one
        self.categories: dict[Any, str] = {}
        self.images: dict[Any, dict[str, Any] | None] = {}

    def add(self, content: dict[str, list[Any]]) -> set[tuple]:
        """Add all that the file lists; returns its boxes."""
        for index, entry in enumerate(content["categories"]):
            self._add_category(entry, f"{self.name}: categories[{index}]")
        bar = counted(content["images"], self.name)
        for index, entry in enumerate(bar):
            self._add_image(entry, f"{self.name}: images[{index}]")
        for index, entry in enumerate(content["annotations"]):
            self._add_annotation(entry, f"{self.name}: annotations[{index}]")
        return self.added

    def _add_category(self, entry: Any, where: str) -> None:
        if not _is_category(entry):
            self._refuse("categories", entry, ("id",), "an id and a name", where)
        elif entry["id"] in self.categories:
            self.source.drop("categories whose id is there twice", where)
        else:
            name = entry["name"].strip()
            self.categories[entry["id"]] = name
            more = {k: v for k, v in entry.items() if k not in ("id", "name")}
            self.source.dataset.category_keys.setdefault(name, more)

    def _add_image(self, entry: Any, where: str) -> None:
        size = [entry.get(key) for key in ("height", "width")] if isinstance(entry, dict) else []
        is_whole = (
            isinstance(entry, dict)
            and _is_id(entry.get("id"))
            and isinstance(entry.get("file_name"), str)
            and (all(map(_is_number, size)) or (size == [None, None] and not self.trusts_sizes))
            and all(value is None or (1 <= value < 1e6) for value in size)
        )
        if not is_whole:
            needed = "an id, a file_name, a height and a width"
            self._refuse("images", entry, ("id", "height", "width"), needed, where)
            return
        if entry["id"] in self.images:
            self.source.drop("images whose id is there twice", where)
            return
        self.images[entry["id"]] = None  # refused, unless it is added below
        more = {k: v for k, v in entry.items() if k not in _IMAGE_OWN}
        for key in _TEXTS:
            if isinstance(more.get(key), list | dict):
                self.source.drop(f"values of {key} that are a list or table", where)
                del more[key]
        more["split"] = more.get("split") or self.split
        relative = self._locate(entry["file_name"], where)
        if relative is None:
            return
        known = self.source.images.get(relative)
        if known is not None:
            self.source.fix("images of several files, merged", relative)
            self.source.merge(known, more, where)
            image = known
        else:
            declared = None if size[0] is None else (int(size[0]), int(size[1]))
            image = self.source.add_image(relative, more, declared, self.trusts_sizes)
        self.images[entry["id"]] = image

    def _locate(self, file_name: str, where: str) -> str | None:
        joined = file_name
        if not PurePosixPath(file_name).is_absolute() and self.folder != ".":
            joined = f"{self.folder}/{file_name}"
        if self.trusts_sizes:
            return self.source.inside(joined, where)
        return self.source.find_image(joined, where)

    def _add_annotation(self, entry: Any, where: str) -> None:
        box = entry.get("bbox") if isinstance(entry, dict) else None
        if isinstance(entry, dict) and box is None:
            box = _bounds(entry.get("segmentation"))
        is_whole = (
            isinstance(entry, dict)
            and _is_id(entry.get("image_id"))
            and _is_id(entry.get("category_id"))
            and isinstance(box, list)
            and len(box) == 4
            and all(map(_is_number, box))
        )
        if not is_whole:
            needed = "an image_id, a category_id and a bbox of four numbers"
            keys = ("image_id", "category_id", "bbox")
            self._refuse("annotations", entry, keys, needed, where, self._image_of(entry))
            return
        if entry["image_id"] not in self.images:
            self.source.drop("annotations of an image_id that is not listed", where)
            return
        image = self.images[entry["image_id"]]
        if image is None:
            self.source.drop("annotations of images that were dropped", where)
            return
        if entry["category_id"] not in self.categories:
            self.source.damage(image, "annotations of a category_id that is not listed", where)
            return
        if entry.get("bbox") is None:
            self.source.fix("boxes taken from a polygon", where)
        self._keep(image, entry, box, where)

    def _keep(self, image: dict[str, Any], entry: dict[str, Any], box: list, where: str) -> None:
        more = {k: v for k, v in entry.items() if k not in _BOX_OWN}
        segmentation = more.get("segmentation")
        kind = "mask" if isinstance(segmentation, dict) else "polygon" if segmentation else "box"
        given = entry.get("source")
        if given is not None and given not in SOURCES:
            self.source.fix("values of source that the schema lacks, now source_in_file", where)
            more["source_in_file"], given = given, None
        for key in ("iscrowd", "ignore", "area"):
            if key in more and not _is_number(more[key]):
                if more[key] is not None:
                    text = "text" if isinstance(more[key], str) else "no number"
                    self.source.drop(f"values of {key} that are {text}", where)
                del more[key]
        category = self.categories[entry["category_id"]]
        key = (image["file_name"], category, *box)
        self.added.add(key)
        if key in self.taken:
            self.source.drop("boxes that an earlier file has, too", where)
        else:
            self.source.add_box(image, box, category, more, given or kind)

    def _image_of(self, entry: Any) -> dict[str, Any] | None:
        """The image that a damaged annotation names; None if it cannot be told."""
        image_id = entry.get("image_id") if isinstance(entry, dict) else None
        return self.images.get(image_id) if _is_id(image_id) else None

    def _refuse(
        self,
        kind: str,
        entry: Any,
        keys: tuple[str, ...],
        needed: str,
        where: str,
        image: dict[str, Any] | None = None,
    ) -> None:
        """Drop an entry, with the name of the key whose number is text, if one is."""
        reason = f"{kind} without {needed}"
        for key in keys if isinstance(entry, dict) else ():
            value = entry.get(key)
            if any(map(_is_text_number, value if isinstance(value, list) else [value])):
                reason = f"{kind} whose {key} is text instead of a number"
                break
        if image is None:
            self.source.drop(reason, where)
        else:
            self.source.damage(image, reason, where)


def _bounds(segmentation: Any) -> list[float] | None:
    """x, y, width, height of polygons; None if they are none."""
    polygons = segmentation if isinstance(segmentation, list) else []
    values = [v for p in polygons if isinstance(p, list) and len(p) % 2 == 0 for v in p]
    if not values or not all(map(_is_number, values)):
        return None
    xs, ys = values[0::2], values[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
