# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""COCO JSON with a mammogram's extra keys, as detectron2 records; negatives are kept."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

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


def load_coco_json(name: str, json_file: str, image_root: str) -> list[dict[str, Any]]:
    """Read a dataset, check it, and register its name in detectron2's catalogs.

    Args:
        name: any; evaluators find the dataset by it.
        json_file: COCO JSON. Boxes are xywh in pixels of the original image.
        image_root: folder that ``file_name`` is relative to.

    Returns:
        list[dict]: one record per image, with or without boxes: file_name, height, width,
        image_id, annotations (bbox xywh, category_id from 0, iscrowd, and what they have of
        ``ANNOTATION_KEYS``), and what the image has of ``EXTRA_KEYS``.

    Raises:
        UserError: a file is missing or not COCO JSON, a category or image id is unknown or twice
            there, or the name is taken by another file.
    """
    content = _read(json_file)
    for key, needed in _NEEDED_KEYS.items():
        _check_entries(content[key], key, needed, json_file)
    categories = sorted(content["categories"], key=lambda category: category["id"])
    contiguous = {category["id"]: index for index, category in enumerate(categories)}
    if len(contiguous) < len(categories):
        raise UserError(f"{json_file}: two categories have the same id")
    records = {image["id"]: _record(image, image_root, json_file) for image in content["images"]}
    if len(records) < len(content["images"]):
        raise UserError(f"{json_file}: two images have the same id")
    _add_annotations(records, content["annotations"], contiguous, json_file)
    _register(name, json_file, image_root, categories, contiguous)
    logger.info(
        "dataset %s: %d images, %d of them without boxes, %d boxes",
        name,
        len(records),
        sum(not record["annotations"] for record in records.values()),
        sum(len(record["annotations"]) for record in records.values()),
    )
    return list(records.values())


def _check_entries(entries: list[Any], key: str, needed: tuple[str, ...], json_file: str) -> None:
    for index, entry in enumerate(entries):
        missing = [n for n in needed if not isinstance(entry, dict) or entry.get(n) is None]
        if missing:
            raise UserError(
                f"{json_file}: entry {index} of {key!r} lacks {', '.join(missing)}; each has "
                f"{', '.join(needed)}"
            )


def _read(json_file: str) -> dict[str, Any]:
    if not json_file:
        raise UserError("json_file of the dataset is not set: give the path of a COCO JSON file")
    try:
        content = json.loads(Path(json_file).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"annotation file {json_file!r} does not exist: prepare the dataset first "
            "(tools/prepare_data.py) or correct json_file"
        ) from None
    except IsADirectoryError:
        raise UserError(f"annotation file {json_file!r} is a folder: give a JSON file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"annotation file {json_file!r} is not whole JSON ({error})") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"annotation file {json_file!r} has no list {key!r}: it is not COCO")
    if not content["images"]:
        raise UserError(f"annotation file {json_file!r} lists no image")
    if not content["categories"]:
        raise UserError(f"annotation file {json_file!r} lists no category")
    return content


def _register(name, json_file, image_root, categories, contiguous) -> None:
    metadata = MetadataCatalog.get(name)
    known = metadata.get("json_file")
    if known is not None and os.path.abspath(known) != os.path.abspath(json_file):
        raise UserError(
            f"dataset name {name!r} is taken by {known!r}: give {json_file!r} another name"
        )
    facts = {
        "json_file": str(json_file) if known is None else known,
        "image_root": str(image_root),
        "evaluator_type": "coco",
        "thing_classes": [category["name"] for category in categories],
        "thing_dataset_id_to_contiguous_id": contiguous,
    }
    for key, value in facts.items():
        if metadata.get(key, value) != value:
            raise UserError(
                f"dataset name {name!r} is registered with {key} {metadata.get(key)!r}, not "
                f"{value!r}: give it another name"
            )
    if name not in DatasetCatalog.list():
        DatasetCatalog.register(name, lambda: load_coco_json(name, json_file, image_root))
    metadata.set(**facts)


def _record(image: dict[str, Any], image_root: str, json_file: str) -> dict[str, Any]:
    record = {
        "file_name": os.path.join(image_root, image["file_name"]),
        "height": int(image["height"]),
        "width": int(image["width"]),
        "image_id": image["id"],
        "annotations": [],
    }
    record.update({key: image[key] for key in EXTRA_KEYS if key in image})
    side, box = record.get("chest_wall"), record.get("breast_box")
    if side not in (None, "left", "right"):
        raise UserError(
            f"{json_file}: image {image['id']} has chest_wall {side!r}; use 'left' or 'right', or "
            "leave it out"
        )
    if box is not None and not (len(box) == 4 and box[0] < box[2] and box[1] < box[3]):
        raise UserError(
            f"{json_file}: image {image['id']} has breast_box {box}; it is [x0, y0, x1, y1], not "
            "empty"
        )
    return record


def _add_annotations(records, annotations, contiguous, json_file) -> None:
    clipped = dropped = 0
    for annotation in annotations:
        record = records.get(annotation["image_id"])
        if record is None or annotation["category_id"] not in contiguous:
            key = "image_id" if record is None else "category_id"
            raise UserError(
                f"{json_file}: annotation {annotation.get('id')} has {key} {annotation[key]!r}, "
                "which the file does not list"
            )
        x, y, width, height = _four_numbers(annotation, json_file)
        x0, y0 = max(x, 0.0), max(y, 0.0)
        x1, y1 = min(x + width, record["width"]), min(y + height, record["height"])
        if not (x1 > x0 and y1 > y0):  # also False for NaN
            dropped += 1
            continue
        if (x0, y0, x1, y1) != (x, y, x + width, y + height):
            clipped += 1
            x, y, width, height = x0, y0, x1 - x0, y1 - y0
        record["annotations"].append(
            {
                "bbox": [x, y, width, height],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": contiguous[annotation["category_id"]],
                "iscrowd": int(annotation.get("iscrowd", 0)),
                **{key: annotation[key] for key in ANNOTATION_KEYS if key in annotation},
            }
        )
    if clipped:
        logger.warning("%s: %d boxes left their image and were clipped", json_file, clipped)
    if dropped:
        logger.warning("%s: %d boxes without area were dropped", json_file, dropped)


def _four_numbers(annotation: dict[str, Any], json_file: str) -> tuple[float, ...]:
    box = annotation["bbox"]
    try:
        numbers = tuple(float(value) for value in box)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 4:
        raise UserError(
            f"{json_file}: annotation {annotation.get('id')} has bbox {box!r}; it is four numbers, "
            "x, y, width, height"
        )
    return numbers
