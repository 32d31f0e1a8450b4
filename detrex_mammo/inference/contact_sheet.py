# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A dataset's annotations, and what its augmentation makes of them, as one picture."""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data.detection_utils import read_image as read_colour

from detrex_mammo.errors import UserError
from detrex_mammo.inference.canvas import BACKGROUND, Canvas

TILE = (420, 400)  # height and width of a picture in the sheet, at most
COLUMNS = 4


def annotation_sheet(
    records: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    preprocessing: Any = None,
    columns: int = COLUMNS,
) -> np.ndarray:
    """Images with their boxes, in original pixels, as the loader gives them.

    Args:
        records: of :func:`detrex_mammo.data.datasets.load_coco_json`.
        class_names: names of the contiguous classes.
        preprocessing: of a mammography mapper, whose ``read`` reads the images; colour pictures
            are read when None.
        columns: of the sheet.

    Returns:
        np.ndarray: (h, w, 3) uint8 RGB.

    Raises:
        UserError: an image cannot be read.
    """
    tiles = [
        _original_tile(record, _read(record, preprocessing), class_names) for record in records
    ]
    return lay_out(tiles, columns)


def augmentation_sheet(
    records: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    mapper: Callable[[Mapping[str, Any]], dict[str, Any]],
    repeats: int = 4,
    seed: int = 0,
) -> np.ndarray:
    """A row for each image: as it is, then as training sees it, ``repeats`` times.

    Grey values of a row are stretched alike, so that a change of brightness is seen.

    Args:
        records: as for :func:`annotation_sheet`.
        class_names: names of the contiguous classes.
        mapper: of training: its ``image`` (3, H, W) and ``instances`` are drawn.
        repeats: how often each image is augmented.
        seed: of the augmentation.

    Returns:
        np.ndarray: (h, w, 3) uint8 RGB.

    Raises:
        UserError: an image cannot be read.
    """
    random.seed(seed)
    np.random.seed(seed)
    tiles = []
    for record in records:
        pixels = _read(record, getattr(mapper, "preprocessing", None))
        tiles.append(_original_tile(record, pixels, class_names))
        for number in range(repeats):
            tiles.append(_mapped_tile(mapper(dict(record)), number + 1, pixels, class_names))
    return lay_out(tiles, repeats + 1)


def choose(records: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """``count`` records spread evenly, one in four of them without boxes if there are as many."""
    positive = [record for record in records if record.get("annotations")]
    negative = [record for record in records if not record.get("annotations")]
    num_negative = min(len(negative), max(count // 4, count - len(positive)))
    chosen = []
    for items, number in ((positive, count - num_negative), (negative, num_negative)):
        places = np.linspace(0, len(items) - 1, min(number, len(items))).round().astype(int)
        chosen += [items[place] for place in places]
    return chosen


def lay_out(tiles: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Tiles (h, w, 3) uint8 of any size in rows of ``columns``, on the background's colour."""
    height = max(tile.shape[0] for tile in tiles)
    width = max(tile.shape[1] for tile in tiles)
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    ground = [int(BACKGROUND[i : i + 2], 16) for i in (1, 3, 5)]
    sheet = np.full((rows * height, columns * width, 3), ground, dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // columns * height, number % columns * width
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet


def write_sheet(path: Path, sheet: np.ndarray) -> None:
    """Write a picture, RGB.

    Raises:
        UserError: it cannot be written, or its suffix is not of a picture.
    """
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--out {str(path)!r} must end in .png or .jpg")
    _, data = cv2.imencode(path.suffix, sheet[..., ::-1])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        data.tofile(path)
    except OSError as error:
        raise UserError(f"--out {str(path)!r} cannot be written: {error.strerror}") from error


def _read(record: Mapping[str, Any], preprocessing: Any) -> np.ndarray:
    if preprocessing is not None:
        return preprocessing.read(record["file_name"], record.get("frame"))
    try:
        return read_colour(record["file_name"], format="RGB")
    except OSError as error:
        raise UserError(f"image {record['file_name']!r} cannot be read: {error}") from error


def _original_tile(record, pixels, class_names) -> np.ndarray:
    annotations = record.get("annotations", ())
    boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = [
        _name(a["category_id"], class_names) + (" (crowd)" if a.get("iscrowd") else "")
        for a in annotations
    ]
    words = [record.get(key) for key in ("patient_id", "laterality", "view", "density", "split")]
    height, width = pixels.shape[:2]
    detail = " ".join(str(word) for word in words if word)
    note = "simulated lesions" if record.get("simulated") else ""
    titles = (Path(record["file_name"]).name, f"{width}x{height}", detail, note)
    return _tile(pixels, boxes, labels, titles, None)


def _mapped_tile(mapped, number, original, class_names) -> np.ndarray:
    pixels = mapped["image"].permute(1, 2, 0).numpy()
    instances = mapped.get("instances")
    boxes = np.zeros((0, 4)) if instances is None else instances.gt_boxes.tensor.numpy()
    classes = [] if instances is None else instances.gt_classes.tolist()
    labels = [_name(index, class_names) for index in classes]
    height, width = pixels.shape[:2]
    count = f"{len(boxes)} box" + ("" if len(boxes) == 1 else "es")
    titles = (f"augmented, {number}", f"{width}x{height}", count, "")
    return _tile(pixels, boxes, labels, titles, original)


def _tile(pixels, boxes, labels, titles, like) -> np.ndarray:
    title, size, detail, note = titles
    canvas = Canvas(pixels, 1, TILE, like)
    canvas.title(title if len(title) <= 44 else "..." + title[-41:])
    canvas.panel_title(0, size, detail[:50])
    canvas.boxes(0, boxes, ["plain"] * len(boxes), labels)
    canvas.legend((), note)
    return canvas.render()


def _name(index: int, class_names: Sequence[str]) -> str:
    return class_names[index] if 0 <= index < len(class_names) else f"class {index}"
