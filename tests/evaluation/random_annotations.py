# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A random annotation file with patients, sides and views, and predictions for it.

Boxes lie on few places and have few scores, so that there are many overlaps and ties.
"""

CATEGORIES = [{"id": 2, "name": "mass"}, {"id": 5, "name": "calcification"}]
SCORES = (0.0, 0.125, 0.25, 0.5, 0.625, 0.875, 1.0)


def random_annotations(rng, num_patients=6, num_categories=2, crowds=True):
    """Up to four views a patient; some boxes ``ignore`` or crowd, some ``area`` below the box's."""
    images, boxes = [], []
    for patient in range(num_patients):
        for laterality in "LR":
            for view in ("CC", "MLO")[: rng.integers(0, 3)]:
                number = len(images)
                entry = {"id": number * 3 + 1, "file_name": f"{patient}/{number}.png"}
                entry |= {"patient_id": f"p{patient}", "laterality": laterality, "view": view}
                images.append(entry)
    rng.shuffle(images)
    for image in images:
        for _ in range(rng.choice([0, 0, 1, 2, 3])):
            bbox = random_box(rng)
            category = CATEGORIES[rng.integers(num_categories)]["id"]
            box = {"id": len(boxes) + 1, "image_id": image["id"], "category_id": category}
            box |= {"bbox": bbox, "area": bbox[2] * bbox[3] * float(rng.choice([1, 0.5]))}
            box["iscrowd"] = int(crowds and rng.random() < 0.15)
            box["ignore"] = int(crowds and rng.random() < 0.1)
            boxes.append(box)
    return {"images": images, "annotations": boxes, "categories": CATEGORIES[:num_categories]}


def random_box(rng):
    """x, y, width, height; small, medium or large in COCO's sense."""
    step = rng.choice([1, 10, 40]) * 1.0
    return [*(rng.integers(0, 3, 2) * step).tolist(), *(rng.integers(1, 5, 2) * step).tolist()]


def random_records(rng, annotations, most=60, least=0):
    """COCO results, half of them on or beside a box; none, if there is no image."""
    images, boxes = annotations["images"], annotations["annotations"]
    classes = [category["id"] for category in annotations["categories"]]
    records = []
    for _ in range(rng.integers(least, most) if images else 0):
        place = {"image_id": rng.choice(images)["id"], "category_id": int(rng.choice(classes))}
        bbox = random_box(rng)
        if boxes and rng.random() < 0.5:
            box = rng.choice(boxes)
            place = {key: box[key] for key in place}
            bbox = [box["bbox"][0] + float(rng.choice([0, 0.25, 1, 10])), *box["bbox"][1:]]
        records.append({**place, "bbox": bbox, "score": float(rng.choice(SCORES))})
    return records
