# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A small random COCO data set, a fake model's outputs and a crop, for these tests."""

import json
import uuid

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

from detrex_mammo.data.geometry import Geometry

CATEGORIES = [{"id": 3, "name": "mass"}, {"id": 7, "name": "calcification"}]


# the breast's part of the 600 x 800 pixels, mirrored
CROP_AND_FLIP = Geometry(original_size=(800, 600), crop=(37, 12, 549, 700), flip=True)


def annotations(rng, num_images=40, categories=CATEGORIES, per_image=1.3):
    """COCO annotations: images with 0 to some boxes; sizes across COCO's three area ranges."""
    images = [
        {"id": 100 + i, "width": 600, "height": 800, "file_name": f"{i}.png"}
        for i in range(num_images)
    ]
    boxes = []
    for image in images:
        for _ in range(rng.poisson(per_image)):
            x, y, w, h = (*rng.uniform(0, 400, 2), *rng.uniform(8, 180, 2))
            boxes.append(
                {
                    "id": len(boxes) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.choice([c["id"] for c in categories])),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    return {"images": images, "annotations": boxes, "categories": categories}


def predictions(rng, truth, skill=0.8, false_per_image=2.0):
    """image id -> (boxes (n, 4) xyxy float32, scores, contiguous classes)."""
    contiguous = {c["id"]: k for k, c in enumerate(truth["categories"])}
    found = {}
    for image in truth["images"]:
        rows = []
        for a in truth["annotations"]:
            if a["image_id"] == image["id"] and rng.random() < skill:
                x, y, w, h = a["bbox"]
                dx, dy = rng.normal(0, 4, 2)
                box = (x + dx, y + dy, x + dx + w * 1.05, y + dy + h)
                rows.append((box, rng.beta(4, 2), contiguous[a["category_id"]]))
        for _ in range(rng.poisson(false_per_image)):
            x, y, w, h = (*rng.uniform(0, 400, 2), *rng.uniform(8, 180, 2))
            rows.append(((x, y, x + w, y + h), rng.beta(2, 4), rng.integers(len(contiguous))))
        boxes = np.array([r[0] for r in rows], dtype=np.float32).reshape(-1, 4)
        found[image["id"]] = (boxes, [r[1] for r in rows], [int(r[2]) for r in rows])
    return found


def outputs(boxes, scores, classes):
    """A model's output for one image."""
    instances = Instances((800, 600))
    instances.pred_boxes = Boxes(torch.as_tensor(np.asarray(boxes, np.float32).reshape(-1, 4)))
    instances.scores = torch.as_tensor(np.asarray(scores, np.float32))
    instances.pred_classes = torch.as_tensor(np.asarray(classes, np.int64))
    return {"instances": instances}


def register(truth, folder, **extra):
    """Write the annotations and register their metadata, under a new name; returns the name."""
    name = f"small_{uuid.uuid4().hex}"
    path = folder / f"{name}.json"
    path.write_text(json.dumps(truth), encoding="utf-8")
    ids = [category["id"] for category in truth["categories"]]
    fields = {
        "thing_classes": [category["name"] for category in truth["categories"]],
        "thing_dataset_id_to_contiguous_id": {ident: k for k, ident in enumerate(ids)},
    }
    MetadataCatalog.get(name).set(json_file=str(path), **{**fields, **extra})
    return name


def evaluate(evaluator, found, geometry=None):
    """Feed predictions (xyxy in original pixels) as a run does; returns the results."""
    evaluator.reset()
    for image_id, (boxes, scores, classes) in found.items():
        sample = {"image_id": image_id, "height": 800, "width": 600}
        if geometry is not None:
            sample["geometry"], boxes = geometry, geometry.apply_boxes(boxes.astype(np.float64))
        evaluator.process([sample], [outputs(boxes, scores, classes)])
    return evaluator.evaluate()
