# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Three synthetic mammograms of two patients, and the shipped checkpoint, changed or not."""

import json
from pathlib import Path

import numpy as np
import torch

from detrex_mammo.config import find_shipped
from detrex_mammo.data.image_io import write_png16

CHECKPOINT = find_shipped("projects/mammography/checkpoints/demo_small.pth")
DEMO = "projects/mammography/configs/demo.py"
CATEGORIES = [{"id": 1, "name": "mass"}, {"id": 2, "name": "calcification cluster"}]


def write_dataset(folder: Path) -> Path:
    """``val.json`` and its images: two views with a bright disc in a half breast, one without."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:240, :160]
    images, lesions = [], []
    for n in range(3):
        breast = ((columns / 120) ** 2 + ((rows - 120) / 100) ** 2) < 1
        pixels = 20000 * breast + rng.integers(0, 2500, breast.shape) * breast
        if n < 2:
            pixels[(columns - 50) ** 2 + (rows - 100) ** 2 < 144] += 20000
            lesions.append({"id": n, "image_id": n, "category_id": 1, "bbox": [38, 88, 24, 24]})
        write_png16(folder / f"{n}.png", pixels.astype(np.uint16))
        images.append({"id": n, "file_name": f"{n}.png", "width": 160, "height": 240,
                       "patient_id": f"P{n // 2}", "laterality": "L", "view": ("CC", "MLO")[n % 2]}
                      )  # fmt: skip
    content = {"images": images, "annotations": lesions, "categories": CATEGORIES}
    (folder / "val.json").write_text(json.dumps(content))
    return folder


def changed_checkpoint(path: Path, **changes) -> Path:
    """The shipped checkpoint with other entries; None removes one."""
    content = {**torch.load(CHECKPOINT, weights_only=True), **changes}
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path
