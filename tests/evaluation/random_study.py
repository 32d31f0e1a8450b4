# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Small crowded random data sets, as COCO annotations and as the slow FROC takes them."""

from fractions import Fraction

from detrex_mammo.evaluation.study import read_study
from detrex_mammo.evaluation.tables import prediction_table
from tests.evaluation.slow_froc import Found, Lesion

RULES = {"centre": "centre", "dbt": "dbt", "iou:0.2": Fraction(1, 5), "iou:0.5": Fraction(1, 2)}
CATEGORIES = (3, 7)


def random_annotations(rng, num_images=6, scale=1):
    """Images of few patients, with boxes that share lesions, are ignored, lie on slices."""
    images, entries = [], []
    for number in range(int(rng.integers(1, num_images + 1))):
        image = {"id": 10 + number}
        if rng.random() < 0.8:
            image["patient_id"] = f"P{rng.integers(3)}"
            image["study_id"] = f"S{rng.integers(2)}"
        if rng.random() < 0.8:
            image["laterality"] = str(rng.choice(["L", "R"]))
        if rng.random() < 0.5:
            image["frame"] = int(rng.integers(20))
            image["num_slices"] = int(rng.integers(1, 30))
        images.append(image)
        for _ in range(rng.integers(0, 4)):
            x, y, w, h = (rng.integers(0, [8, 8, 6, 6]) * scale).tolist()
            entry = {"image_id": image["id"], "bbox": [x, y, w, h]}
            entry["category_id"] = int(rng.choice(CATEGORIES))
            if rng.random() < 0.6:
                entry["lesion_id"] = f"{rng.integers(2)}"
            if rng.random() < 0.2:
                entry[str(rng.choice(["iscrowd", "ignore"]))] = 1
            if "frame" in image and rng.random() < 0.5:
                entry["slice"] = int(rng.integers(20))
            entries.append(entry)
    categories = [{"id": c, "name": f"class {c}"} for c in CATEGORIES]
    return {"images": images, "annotations": entries, "categories": categories}


def random_found(rng, annotations, scale=1):
    """image id -> list of Found; some images are left out."""
    predictions = {}
    for image in annotations["images"]:
        rows = []
        for _ in range(rng.integers(0, 8)):
            x, y, w, h = (rng.integers(0, [8, 8, 6, 6]) * scale).tolist()
            own = int(rng.integers(20)) if "frame" in image and rng.random() < 0.5 else None
            category = int(rng.choice(CATEGORIES))
            rows.append(Found((x, y, x + w, y + h), int(rng.integers(1, 6)), category, own))
        if rows or rng.random() < 0.5:
            predictions[image["id"]] = rows
    return predictions


def fast_data(annotations, predictions):
    """Study and PredictionTable of random data."""
    study = read_study(annotations)
    per_image = {
        image_id: {
            "boxes": [f.box for f in rows],
            "scores": [f.score for f in rows],
            "categories": [f.category for f in rows],
            "slices": [float("nan") if f.slice is None else f.slice for f in rows],
        }
        for image_id, rows in predictions.items()
    }
    return study, prediction_table(per_image, study.lesions.image_ids)


def slow_data(annotations, predictions, unit, copies=None):
    """The same for the slow FROC, each patient as often as drawn.

    Args:
        copies: patient (see :func:`patient_of`) -> how often she is there; None for once each.

    Returns:
        tuple: truth and predictions by (image id, number of the copy).
    """
    truth, found = {}, {}
    for image in annotations["images"]:
        patient = patient_of(image)
        for copy in range(1 if copies is None else copies[patient]):
            key = image["id"], copy
            lesions = [e for e in annotations["annotations"] if e["image_id"] == image["id"]]
            truth[key] = [_lesion(entry, image, unit, copy) for entry in lesions]
            rows = predictions.get(image["id"], [])
            found[key] = [
                f._replace(slice=image.get("frame")) if f.slice is None else f for f in rows
            ]
    return truth, found


def patient_of(image):
    """What tells a patient in these data."""
    return image.get("patient_id", image["id"])


def _lesion(entry, image, unit, copy):
    x, y, w, h = entry["bbox"]
    case = (copy, patient_of(image), image.get("study_id") if "patient_id" in image else None)
    side, name = image.get("laterality"), entry.get("lesion_id")
    key = None
    if unit == "lesion" and name is not None:
        key = (*case, side, name)
    elif unit == "breast":
        key = (*case, side) if side else (*case, "image", image["id"])
    elif unit == "case":
        key = case
    return Lesion(
        (x, y, x + w, y + h),
        entry["category_id"],
        key,
        bool(entry.get("iscrowd") or entry.get("ignore")),
        entry.get("slice", image.get("frame")),
        image.get("num_slices"),
    )
