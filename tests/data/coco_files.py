# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Small COCO JSON files and pictures for the tests of checks, splits and drawings."""

import json

import cv2
import numpy as np

CATEGORIES = [{"id": 1, "name": "mass"}, {"id": 2, "name": "calcification"}]


def image(number, patient=None, **more):
    """An image's entry; ``more`` replaces or adds keys."""
    entry = {
        "id": number,
        "file_name": f"{number}.png",
        "height": 90,
        "width": 70,
        "patient_id": f"P{number}" if patient is None else patient,
        **more,
    }
    return {key: value for key, value in entry.items() if value is not ...}


def box(number, image_id, xywh=(10, 20, 30, 40), category_id=1, **more):
    """An annotation's entry; ``...`` as a value takes a key away."""
    entry = {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": list(xywh) if isinstance(xywh, tuple) else xywh,
        **more,
    }
    return {key: value for key, value in entry.items() if value is not ...}


def write(path, images, annotations=(), categories=None):
    """A COCO JSON; returns its path."""
    content = {
        "info": {"description": "made by a test"},
        "images": list(images),
        "annotations": list(annotations),
        "categories": CATEGORIES if categories is None else categories,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def breast(seed, height=360, width=280):
    """A film of a breast with a texture of its own, (H, W) uint16; chest wall on the left."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    half, depth = height * rng.uniform(0.3, 0.42), width * rng.uniform(0.55, 0.85)
    middle = height * rng.uniform(0.45, 0.55)
    inside = ((y - middle) / half) ** 2 + (x / depth) ** 2 < 1
    texture = sum(
        cv2.resize(rng.normal(size=(n * 9 // 7, n)), (width, height), interpolation=cv2.INTER_CUBIC)
        for n in (4, 8, 14, 28)
    )
    grey = np.where(inside, 30000 + 6000 * texture, 300)
    return np.clip(grey, 0, 65535).astype(np.uint16)


def save(path, pixels):
    """Write a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
