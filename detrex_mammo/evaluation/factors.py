# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Sensitivity by class, lesion size, breast density, vendor, view: who is served how well.

All groups share one score threshold, that of the whole data set's operating point, because that
is how a detector is used. Legend: G lesions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detrex_mammo.evaluation.froc import FrocSettings, froc
from detrex_mammo.evaluation.matching import TRUE_POSITIVE
from detrex_mammo.evaluation.predictions import lesions_from_annotations, predictions_from_records
from detrex_mammo.evaluation.tables import LesionTable

IMAGE_FACTORS = {"breast density": "density", "vendor": "manufacturer", "view": "view"}
UNKNOWN = "not recorded"
SIZES = ("small", "medium", "large")
MILLIMETRES = (10.0, 20.0)  # bounds of small, medium, large, by the longer side of the box
COCO_SIDES = (32.0, 96.0)  # COCO's own bounds, roots of areas in pixels of the original image


@dataclass(frozen=True)
class FactorRow:
    """One group of lesions.

    Attributes:
        factor: "class", "lesion size", "breast density", "vendor" or "view".
        group: the group's name; ``UNKNOWN`` where images do not tell.
        num_lesions: in the ground truth.
        num_found: of these, found at the common threshold.
    """

    factor: str
    group: str
    num_lesions: int
    num_found: int


def sensitivity_by_factor(
    annotations: Mapping[str, Any],
    records: Sequence[Mapping[str, Any]],
    settings: FrocSettings | None = None,
    fppi: float = 1.0,
) -> list[FactorRow]:
    """Lesions found in each group, at one threshold for all.

    Args:
        annotations: content of a COCO annotation file.
        records: predictions in original pixels, with the file's category ids.
        settings: what counts as found.
        fppi: false positives per image, over the whole data set, that set the threshold.

    Returns:
        list[FactorRow]: empty if the sensitivity is not defined (no lesions).
    """
    lesions = lesions_from_annotations(annotations)
    names = {category["id"]: category["name"] for category in annotations["categories"]}
    predictions = predictions_from_records(records, lesions.image_ids)
    result = froc(lesions, predictions, settings, sorted(names))
    if result.overall.reason:
        return []
    is_hit = result.matching.outcome == TRUE_POSITIVE
    is_hit &= predictions.scores >= result.overall.threshold_at(fppi)
    found = np.zeros(len(lesions), dtype=bool)
    found[result.matching.lesion[is_hit]] = True

    by_id = {image["id"]: image for image in annotations["images"]}
    images = [by_id[lesions.image_ids[row]] for row in lesions.image_index]
    labels = {"class": [names[category] for category in lesions.categories.tolist()]}
    labels["lesion size"] = _sizes(lesions, images)
    for factor, key in IMAGE_FACTORS.items():
        labels[factor] = [str(image.get(key) or UNKNOWN) for image in images]
    return [row for factor, groups in labels.items() for row in _rows(factor, groups, found)]


def _rows(factor: str, groups: list[str], found: np.ndarray) -> list[FactorRow]:
    every = np.asarray(groups, dtype=object)
    return [
        FactorRow(factor, name, int((every == name).sum()), int(found[every == name].sum()))
        for name in sorted(set(groups), key=_place)
    ]


def _place(name: str) -> tuple[bool, int, str]:
    """Sizes by size, the unknown last, all else by name."""
    size = name.partition(":")[0]
    return name == UNKNOWN, SIZES.index(size) if size in SIZES else -1, name


def _sizes(lesions: LesionTable, images: list[Mapping[str, Any]]) -> list[str]:
    """(G,) names of size groups, in mm where every image tells its pixel spacing."""
    sides = lesions.boxes[:, 2:] - lesions.boxes[:, :2]
    spacings = [image.get("pixel_spacing") for image in images]
    if all(spacings):
        # pixel_spacing is (row, column) in mm; sides are (width, height).
        measure = (sides * np.asarray(spacings, dtype=np.float64)[:, ::-1]).max(axis=1)
        bounds, unit = MILLIMETRES, "mm"
        if any(image.get("pixel_spacing_is") == "assumed" for image in images):
            unit = "mm, pixel spacing assumed"
    else:
        measure, bounds, unit = np.sqrt(sides.prod(axis=1)), COCO_SIDES, "pixels, root of the area"
    low, high = (f"{bound:g}" for bound in bounds)
    told = (f"below {low}", f"{low} to {high}", f"from {high}")
    names = [f"{size}: {bound} {unit}" for size, bound in zip(SIZES, told)]
    return [names[int(np.searchsorted(bounds, value, side="right"))] for value in measure]
