# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""FROC within classes, lesion sizes, breast densities, vendors, views and data sets.

Legend: I images, G lesions (boxes). What is counted in a stratum:

- **Of images** (density, vendor, view, data set): lesions, predictions and false positives of its
  images, per image of them.
- **Of lesions** (size): its lesions only, and the false positives of all images, because a false
  positive has no size of lesion. A hit on another stratum's lesion is neither.
- **Of a class**: its lesions and the predictions of that class in all images.

Every stratum has a threshold of its own at each number of false positives per image; for one
threshold for all see ``factors.py``. A unit of several boxes is in every stratum that one of its
boxes is in, and hit there by hits on these boxes. A factor that no image tells is left out.

Sizes are the longer side of the box in mm, where the images tell their pixel spacing; boxes of
those that do not are "not recorded". If none does, they are COCO's areas in pixels of the original
image: below 32 x 32, below 96 x 96, and larger.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detrex_mammo.evaluation.afroc import area_figures
from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.estimate import Estimate
from detrex_mammo.evaluation.froc import FrocCurve, as_predictions, curve, match_study
from detrex_mammo.evaluation.froc_bootstrap import CurveIntervals, curve_intervals
from detrex_mammo.evaluation.froc_events import Part, sweep
from detrex_mammo.evaluation.froc_settings import DEFAULT_FPPI, FrocSettings
from detrex_mammo.evaluation.study import Study, as_study
from detrex_mammo.evaluation.tables import PredictionTable

UNKNOWN = "not recorded"
IMAGE_FACTORS = {
    "breast density": "density",
    "vendor": "manufacturer",
    "view": "view",
    "data set": "dataset",
}
MILLIMETRES = (10.0, 20.0, 50.0)  # upper bounds, included; the last group has none
COCO_AREAS = (32.0**2, 96.0**2)  # pixels, upper bounds, not included
TEXTS = {
    "image": "lesions and false positives of the group's images",
    "lesion": "the group's lesions, false positives of all images",
    "class": "the class's lesions and predictions, in all images",
}


@dataclass(frozen=True)
class Grouping:
    """One factor of a data set.

    Attributes:
        factor: "class", "lesion size", "breast density", "vendor", "view" or "data set".
        level: "image", "lesion" or "class": what is counted, see ``TEXTS``.
        names: the groups, in order; ``UNKNOWN`` is the last where there is one.
        labels: (I,) or (G,) int64, row of ``names``, of images at level "image", else of lesions.
    """

    factor: str
    level: str
    names: tuple[str, ...]
    labels: np.ndarray

    def of_lesions(self, study: Study) -> np.ndarray:
        """(G,) int64, row of ``names`` of every lesion."""
        return self.labels[study.lesions.image_index] if self.level == "image" else self.labels


@dataclass(frozen=True)
class Stratum:
    """The FROC of one group.

    Attributes:
        factor, group, level: see :class:`Grouping`.
        curve: over what ``TEXTS[level]`` says; its counts are the group's.
        intervals: the curve with its replicates; None without a bootstrap.
        areas: ``afroc`` and ``lroc`` of the same lesions, predictions and images.
    """

    factor: str
    group: str
    level: str
    curve: FrocCurve
    intervals: CurveIntervals | None
    areas: Mapping[str, Estimate]

    @property
    def text(self) -> str:
        """What is counted."""
        return TEXTS[self.level]


def groupings(study: Study) -> list[Grouping]:
    """Every factor that the data tell of; images' factors only where an image has one."""
    names = [str(name) for name in study.category_names.values()]
    place = {category: row for row, category in enumerate(study.category_names)}
    classes = np.array([place[c] for c in study.lesions.categories.tolist()], dtype=np.int64)
    found = [Grouping("class", "class", tuple(names), classes), _sizes(study)]
    for factor, key in IMAGE_FACTORS.items():
        told = [str(image.get(key) or UNKNOWN) for image in study.images]
        groups = sorted(set(told), key=lambda name: (name == UNKNOWN, name))
        if groups and groups != [UNKNOWN]:
            place = {name: row for row, name in enumerate(groups)}
            labels = np.array([place[name] for name in told], dtype=np.int64)
            found.append(Grouping(factor, "image", tuple(groups), labels))
    return found


def froc_strata(
    truth,
    predictions,
    settings: FrocSettings | None = None,
    categories: Sequence[int] | None = None,
    bootstrap: Bootstrap | None = None,
    fppi: Sequence[float] = DEFAULT_FPPI,
) -> list[Stratum]:
    """The FROC of every group that has an image or a lesion, all in the same replicates.

    Args:
        truth, predictions, settings, categories: as for :func:`~detrex_mammo.evaluation.froc.froc`;
            truth is a Study to tell more than class and size. Class-agnostic, no class has a FROC.
        bootstrap (optional): for intervals.
        fppi: false positives per image to be asked for later.
    """
    settings = settings or FrocSettings()
    study, predictions = as_study(truth), as_predictions(truth, predictions)
    known, matching = match_study(study, predictions, settings, categories)
    groups = [
        (grouping, name, part)
        for grouping in groupings(study)
        if grouping.level != "class" or known
        for name, part in _parts(study, predictions, grouping)
    ]
    args = (study, predictions, matching, settings)
    sweeps = [sweep(*args, part) for *_, part in groups]
    curves = [curve(*args, part, s) for (*_, part), s in zip(groups, sweeps, strict=True)]
    intervals = [None] * len(groups)
    if bootstrap is not None:
        intervals = curve_intervals(curves, sweeps, study, bootstrap, fppi)
    areas = area_figures(*args, bootstrap, [part for *_, part in groups])
    return [
        Stratum(grouping.factor, name, grouping.level, *found)
        for (grouping, name, _), *found in zip(groups, curves, intervals, areas, strict=True)
    ]


def _parts(study: Study, predictions: PredictionTable, grouping: Grouping):
    """Name and part of every group that is not empty."""
    for row in np.unique(grouping.labels).tolist():
        chosen = grouping.labels == row
        if grouping.level == "image":
            part = Part.of_images(study, predictions, chosen)
        elif grouping.level == "lesion":
            part = Part(lesions=chosen)
        else:
            category = list(study.category_names)[row]
            part = Part.of_category(study, predictions, category)
        yield grouping.names[row], part


def _sizes(study: Study) -> Grouping:
    """Groups of the boxes by size, in mm where images tell, else in pixels."""
    sides = study.lesions.boxes[:, 2:] - study.lesions.boxes[:, :2]
    images = [study.images[row] for row in study.lesions.image_index.tolist()]
    spacings = [image.get("pixel_spacing") or (np.nan, np.nan) for image in images]
    # pixel_spacing is (row, column) in mm; sides are (width, height).
    spacings = np.asarray(spacings, dtype=np.float64).reshape(-1, 2)[:, ::-1]
    longer = (sides * spacings).max(axis=1, initial=-np.inf)
    if np.isnan(longer).all():
        small, medium = (f"{bound**0.5:g} x {bound**0.5:g} pixels" for bound in COCO_AREAS)
        names = (f"below {small}", f"below {medium}", f"from {medium}")
        labels = np.searchsorted(COCO_AREAS, sides.prod(axis=1), side="right")
        return Grouping("lesion size", "lesion", names, labels)
    unit = "mm"
    if any(image.get("pixel_spacing_is") == "assumed" for image in images):
        unit = "mm, pixel spacing assumed"
    bounds = [f"{bound:g}" for bound in MILLIMETRES]
    between = [f"> {a} to {b} {unit}" for a, b in zip(bounds, bounds[1:], strict=False)]
    names = (f"<= {bounds[0]} {unit}", *between, f"> {bounds[-1]} {unit}", UNKNOWN)
    labels = np.searchsorted(MILLIMETRES, longer, side="left")  # NaN comes behind all bounds
    labels[np.isnan(longer)] = len(names) - 1
    return Grouping("lesion size", "lesion", names, labels)
