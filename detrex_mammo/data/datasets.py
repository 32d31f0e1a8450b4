# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""COCO JSON with a mammogram's extra keys, as detectron2 records; negatives are kept."""

import logging
import mmap
import os
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from detrex_mammo.data.class_names import file_ids_of_classes, match_classes
from detrex_mammo.data.json_stream import read_entries
from detrex_mammo.data.record_builder import BoxCounts, RecordBuilder
from detrex_mammo.data.record_store import RecordStore, once_per_machine
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
_NEEDED_KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
# What an image record keeps of the JSON beside file, size and id.
EXTRA_KEYS = (
    "patient_id",
    "study_id",
    "laterality",
    "view",
    "density",
    "birads",
    "manufacturer",
    "pixel_spacing",
    "bits_stored",
    "dataset",
    "split",
    "breast_box",
    "chest_wall",
    "simulated",
    "frame",
)
# What an annotation keeps beside its box and class.
ANNOTATION_KEYS = ("pathology", "lesion_id", "source", "ignore")
_LARGE = 50 << 20  # bytes of a file from which on reading shows a bar


def load_coco_json(
    name: str,
    json_file: str,
    image_root: str,
    classes: Sequence[str] | None = None,
    class_map: Mapping[str, str | None] | None = None,
) -> RecordStore:
    """Read a dataset, check it, and register its name in detectron2's catalogs.

    In a distributed run all processes call it together; one of each machine reads the file.

    Args:
        name: any; evaluators find the dataset by it.
        json_file: COCO JSON. Boxes are xywh in pixels of the original image.
        image_root: folder that ``file_name`` is relative to.
        classes: names of the model's classes in their order, for a dataset that has others or
            has them in another order; the file's by category id when None.
        class_map: name in the file -> name here, or None to leave its boxes out, which is counted.

    Returns:
        RecordStore: one record per image, with or without boxes: file_name, height, width,
        image_id, annotations (bbox xywh, category_id from 0, iscrowd, and what they have of
        ``ANNOTATION_KEYS``), and what the image has of ``EXTRA_KEYS``.

    Raises:
        UserError: a file is missing or not COCO JSON, a category or image id is unknown or twice
            there, a class is in neither ``classes`` nor ``class_map``, or the name is taken by
            another file.
    """

    def read() -> tuple[list[RecordStore], Any]:
        file = CocoFile(json_file)
        if classes is None and class_map is None:
            names: list[str] = [category["name"] for category in file.categories]
            contiguous = {category["id"]: i for i, category in enumerate(file.categories)}
        else:
            names, (contiguous,) = match_classes([file], classes, class_map)
        ids = file_ids_of_classes(file, names, contiguous)
        return [file.store(image_root, contiguous)], (names, ids)

    (store,), (names, ids) = once_per_machine(read)
    register(
        name, store, thing_classes=names, thing_dataset_id_to_contiguous_id=ids,
        json_file=str(json_file), image_root=str(image_root), evaluator_type="coco",
    )  # fmt: skip
    num_boxes = store.arrays.box_starts
    logger.info(
        "dataset %s: %d images, %d of them without boxes, %d boxes",
        name,
        len(store),
        int((num_boxes[1:] == num_boxes[:-1]).sum()),
        int(num_boxes[-1]),
    )
    return store


class CocoFile:
    """A COCO JSON that was read and checked, before its classes are numbered.

    Attributes:
        json_file: its path.
        categories: sorted by id.

    Raises:
        UserError: it is missing, or no such JSON.
    """

    def __init__(self, json_file: str):
        self.json_file = str(json_file or "")
        self.categories: list[dict[str, Any]] = []
        self._builder = RecordBuilder()
        self._read()
        try:
            self.categories.sort(key=lambda category: category["id"])
            ids = {category["id"] for category in self.categories}
        except TypeError:
            raise UserError(f"{json_file}: the ids of categories are not all numbers") from None
        if len(ids) < len(self.categories):
            raise UserError(f"{json_file}: two categories have the same id")
        if self._builder.has_repeated_image_ids():
            raise UserError(f"{json_file}: two images have the same id")
        unknown = self._builder.first_unknown(ids)
        if unknown:
            self._refuse_unknown(*unknown)

    def store(self, image_root: str, contiguous: Mapping[Any, int | None]) -> RecordStore:
        """The records; what happened to boxes is logged. Called once.

        Args:
            image_root: folder that ``file_name`` is relative to.
            contiguous: category id to class from 0; None leaves its boxes out.
        """
        store, counts = self._builder.store(str(image_root), contiguous)
        self._log(counts)
        return store

    def _read(self) -> None:
        _check_path(self.json_file)
        seen = set()
        take = {
            "images": self._add_image,
            "annotations": self._add_annotation,
            "categories": self._add_category,
        }
        is_large = os.path.getsize(self.json_file) >= _LARGE
        for key, index, entry in read_entries(self.json_file, progress=is_large):
            if key not in take:
                continue
            if index is None or (index == 0 and key in seen):
                self._refuse_list(key)
            seen.add(key)
            take[key](index, entry)
        for key in take:
            if key in seen:
                continue
            if not _has_empty_list(self.json_file, key):
                self._refuse_list(key)
            if key != "annotations":
                one = {"images": "image", "categories": "category"}[key]
                raise UserError(f"annotation file {self.json_file!r} lists no {one}")

    def _refuse_list(self, key: str) -> None:
        raise UserError(f"annotation file {self.json_file!r} has no list {key!r}: it is not COCO")

    def _refuse_entry(self, key: str, index: int, entry: Any) -> None:
        needed = _NEEDED_KEYS[key]
        lacking = [n for n in needed if not isinstance(entry, dict) or entry.get(n) is None]
        told = f"lacks {', '.join(lacking)}" if lacking else "has an id that is a list or an object"
        raise UserError(
            f"{self.json_file}: entry {index} of {key!r} {told}; each has {', '.join(needed)}"
        )

    def _add_category(self, index: int, entry: Any) -> None:
        if not isinstance(entry, dict) or entry.get("id") is None or entry.get("name") is None:
            self._refuse_entry("categories", index, entry)
        if not isinstance(entry["name"], str):
            raise UserError(
                f"{self.json_file}: category {entry['id']} has name {entry['name']!r}; it is a text"
            )
        self.categories.append({"id": entry["id"], "name": entry["name"]})

    def _add_image(self, index: int, entry: Any) -> None:
        needed = _NEEDED_KEYS["images"]
        if not isinstance(entry, dict) or any(entry.get(key) is None for key in needed):
            self._refuse_entry("images", index, entry)
        record = {
            "file_name": entry["file_name"],
            "height": self._side(entry, "height"),
            "width": self._side(entry, "width"),
            "image_id": entry["id"],
        }
        record.update({key: entry[key] for key in EXTRA_KEYS if key in entry})
        where = f"{self.json_file}: image {entry['id']}"
        _check_image(record, where)
        try:
            self._builder.add_image(record)
        except TypeError:  # no key of a dict
            self._refuse_entry("images", index, entry)

    def _side(self, entry: Mapping[str, Any], key: str) -> int:
        try:
            side = int(entry[key])
        except (TypeError, ValueError, OverflowError):
            side = -1
        if not 0 <= side < 2**31:
            raise UserError(
                f"{self.json_file}: image {entry['id']} has {key} {entry[key]!r}; it is a number "
                "of pixels"
            )
        return side

    def _add_annotation(self, index: int, entry: Any) -> None:
        try:
            image_id, category_id, box = entry["image_id"], entry["category_id"], entry["bbox"]
            is_whole = image_id is not None and category_id is not None and box is not None
        except (TypeError, KeyError):
            is_whole = False
        if not is_whole:
            self._refuse_entry("annotations", index, entry)
        is_crowd = entry.get("iscrowd", 0)
        if is_crowd not in (0, 1):
            is_crowd = self._crowd(entry)
        extra = {key: entry[key] for key in ANNOTATION_KEYS if key in entry}
        try:
            self._builder.add_box(
                image_id, category_id, self._four_numbers(entry), int(is_crowd), extra
            )
        except TypeError:  # an id is no key of a dict
            self._refuse_entry("annotations", index, entry)

    def _crowd(self, entry: Mapping[str, Any]) -> int:
        value = entry["iscrowd"]
        if value in (None, "0", "1"):
            return int(value or 0)
        raise UserError(
            f"{self.json_file}: annotation {entry.get('id')} has iscrowd {value!r}; it is 0 or 1"
        )

    def _four_numbers(self, entry: Mapping[str, Any]) -> tuple[float, ...]:
        box = entry["bbox"]
        try:
            numbers = tuple(map(float, box)) if isinstance(box, list) else ()
        except (TypeError, ValueError, OverflowError):
            numbers = ()
        if len(numbers) != 4:
            raise UserError(
                f"{self.json_file}: annotation {entry.get('id')} has bbox {box!r}; it is four "
                "numbers, x, y, width, height"
            )
        return numbers

    def _refuse_unknown(self, index: int, key: str) -> None:
        entries = (e for k, _, e in read_entries(self.json_file) if k == "annotations")
        entry = next(islice(entries, index, None))
        raise UserError(
            f"{self.json_file}: annotation {entry.get('id')} has {key} {entry[key]!r}, which the "
            "file does not list"
        )

    def _log(self, counts: BoxCounts) -> None:
        names = {category["id"]: category["name"] for category in self.categories}
        if counts.clipped:
            logger.warning(
                "%s: %d boxes left their image and were clipped", self.json_file, counts.clipped
            )
        if counts.dropped:
            logger.warning("%s: %d boxes without area were dropped", self.json_file, counts.dropped)
        for category, number in counts.unwanted.items():
            logger.warning(
                "%s: %d boxes of class %r are left out, as class_map says",
                self.json_file,
                number,
                names[category],
            )


def register(name: str, store: Any, **facts: Any) -> None:
    """Register a store under a name; loading the same dataset again replaces it.

    Args:
        name: of the dataset.
        store: what ``DatasetCatalog.get(name)`` gives.
        facts: of its metadata; one that is None is not set.

    Raises:
        UserError: the name is taken by another dataset.
    """
    metadata = MetadataCatalog.get(name)
    given = facts.get("json_file")
    known = metadata.get("json_file")
    if known is not None and given is not None:
        if os.path.abspath(known) != os.path.abspath(given):
            raise UserError(
                f"dataset name {name!r} is taken by {known!r}: give {given!r} another name"
            )
        facts["json_file"] = known
    for key, value in facts.items():
        if metadata.get(key, value) != value:
            raise UserError(
                f"dataset name {name!r} is registered with {key} {metadata.get(key)!r}, not "
                f"{value!r}: give it another name"
            )
    if isinstance(DatasetCatalog.data.get(name), _Kept):
        DatasetCatalog.remove(name)
    if name not in DatasetCatalog.list():
        DatasetCatalog.register(name, _Kept(store))
    metadata.set(**facts)


class _Kept:
    """What the catalog calls: no second reading."""

    def __init__(self, store: Any):
        self.store = store

    def __call__(self) -> Any:
        return self.store


def _check_path(json_file: str) -> None:
    if not json_file:
        raise UserError("json_file of the dataset is not set: give the path of a COCO JSON file")
    if os.path.isdir(json_file):
        raise UserError(f"annotation file {json_file!r} is a folder: give a JSON file")
    if not os.path.exists(json_file):
        raise UserError(
            f"annotation file {json_file!r} does not exist: prepare the dataset first "
            "(tools/prepare_data.py) or correct json_file"
        )


def _has_empty_list(json_file: str, key: str) -> bool:
    """Whether a JSON file of which no entry of this list was read has the list.

    Quotes inside a string are escaped, so the pattern is not found there.
    """
    with (
        open(json_file, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
    ):
        return bool(re.search(rb'"%s"\s*:\s*\[\s*\]' % key.encode(), text))


def _check_image(record: Mapping[str, Any], where: str) -> None:
    side, box = record.get("chest_wall"), record.get("breast_box")
    if not isinstance(record["file_name"], str):
        raise UserError(f"{where} has file_name {record['file_name']!r}; it is a text")
    if side not in (None, "left", "right"):
        raise UserError(f"{where} has chest_wall {side!r}; use 'left' or 'right', or leave it out")
    try:
        is_box = box is None or (len(box) == 4 and box[0] < box[2] and box[1] < box[3])
    except (TypeError, KeyError):
        is_box = False
    if not is_box:
        raise UserError(f"{where} has breast_box {box}; it is [x0, y0, x1, y1], not empty")
