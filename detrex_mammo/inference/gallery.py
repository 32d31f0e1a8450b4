# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Pictures of a dataset's predictions beside the truth, from files alone."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detrex_mammo.data.image_io import read_image
from detrex_mammo.inference.drawing import draw_predictions


def draw_gallery(
    annotation_file: str | Path,
    predictions_file: str | Path,
    image_root: str | Path,
    folder: str | Path,
    count: int = 12,
    score_threshold: float = 0.3,
    crop_to_breast: bool = True,
) -> list[Path]:
    """Draw some of a dataset's images, three in four with lesions, predictions beside the truth.

    Args:
        annotation_file: COCO JSON.
        predictions_file: COCO results, boxes xywh in original pixels.
        image_root: folder that ``file_name`` is relative to.
        folder: where the PNG files go; made if need be.
        count: how many images, spread evenly over the dataset; all of a smaller one.
        score_threshold: predictions below it are not drawn.
        crop_to_breast: show the images' ``breast_box`` only, where they have one.

    Returns:
        list[Path]: the pictures.
    """
    truth = json.loads(Path(annotation_file).read_text(encoding="utf-8"))
    results = json.loads(Path(predictions_file).read_text(encoding="utf-8"))
    categories = sorted(truth["categories"], key=lambda category: category["id"])
    index = {category["id"]: number for number, category in enumerate(categories)}
    lesions, predictions = _by_image(truth["annotations"]), _by_image(results)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for image in _choose(truth["images"], lesions, count):
        pixels = read_image(Path(image_root) / image["file_name"])
        origin = (0, 0)
        if crop_to_breast and "breast_box" in image:
            x0, y0, x1, y1 = image["breast_box"]
            pixels, origin = pixels[y0:y1, x0:x1], (x0, y0)
        picture = draw_predictions(
            pixels,
            _entry(predictions[image["id"]], index, origin),
            _entry(lesions[image["id"]], index, origin),
            class_names=[category["name"] for category in categories],
            score_threshold=score_threshold,
            title=_title(image),
            simulated=bool(image.get("simulated")),
        )
        path = folder / f"{Path(image['file_name']).stem}.png"
        cv2.imwrite(str(path), picture[..., ::-1])
        paths.append(path)
    return paths


def _choose(images: list[dict], lesions: dict, count: int) -> list[dict]:
    """``count`` images in their order, a quarter of them without lesions if there are as many."""
    positive = [image for image in images if lesions[image["id"]]]
    negative = [image for image in images if not lesions[image["id"]]]
    num_negative = min(len(negative), max(count // 4, count - len(positive)))
    chosen = [*_spread(positive, count - num_negative), *_spread(negative, num_negative)]
    kept = {image["id"] for image in chosen}
    return [image for image in images if image["id"] in kept]


def _spread(items: list[dict], count: int) -> list[dict]:
    """``count`` items, evenly spaced; all if there are fewer."""
    return [items[i * len(items) // count] for i in range(count)] if count < len(items) else items


def _by_image(records: Sequence[dict[str, Any]]) -> dict[Any, list[dict[str, Any]]]:
    grouped: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        grouped[record["image_id"]].append(record)
    return grouped


def _entry(records: list[dict[str, Any]], index: dict[int, int], origin: tuple[int, int]) -> dict:
    boxes = np.array([record["bbox"] for record in records], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return {
        "boxes": boxes - np.array([*origin, *origin]),
        "classes": np.array([index[record["category_id"]] for record in records], dtype=np.int64),
        "scores": np.array([record.get("score", 1.0) for record in records]),
    }


def _title(image: dict[str, Any]) -> str:
    parts = (image.get("patient_id"), image.get("laterality"), image.get("view"))
    return " ".join(str(part) for part in parts if part) or Path(image["file_name"]).stem
