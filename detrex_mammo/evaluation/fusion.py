# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Predictions of several models made one, image by image and class by class.

Legend: M models, N predictions. Boxes are xyxy pixels of the ORIGINAL image.

Methods (package ensemble-boxes, https://github.com/ZFTurbo/Weighted-Boxes-Fusion):

- ``wbf``: weighted boxes fusion (Solovyev et al. 2021). Boxes that overlap by more than ``iou``
  become one, their mean weighted by score x weight. Its score is the mean of the scores x weights
  of its boxes, times min(M, number of boxes) / sum of the weights, 1 at most: what one of two
  models finds counts half.
- ``nmw``: non-maximum weighted (Zhou et al. 2017): the best box's score, and the mean of the boxes
  around it weighted by score and by overlap with it.
- ``nms``: the best box of those that overlap by more than ``iou``, as it is.
- ``soft-nms`` (Bodla et al. 2017, Gaussian): every box stays, its score times
  exp(-overlap^2 / 0.5) for each better one; ``iou`` has no part in it. (The package's own function
  forgets the lower scores; what it computes inside is taken.)

In the last three, scores are multiplied by weight / largest weight. The package wants coordinates
in [0, 1] and cuts what lies outside; an image is therefore scaled together with everything that is
found in it, and overlaps do not depend on that. Fused coordinates have single precision, 0.0005
pixels in an image of 5,000. In volumes every slice is fused for itself.

Worked by hand, ``wbf`` of two models with weight 1: [0, 0, 10, 10] with 0.9 and [0, 0, 10, 12] with
0.6, overlap 100 / 120. Right end 10, lower end (0.9 * 10 + 0.6 * 12) / 1.5 = 10.8, score
(0.9 + 0.6) / 2 * 2 / 2 = 0.75. A box of one model alone with 0.4: 0.4 * 1 / 2 = 0.2.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.scores import check_choice
from detrex_mammo.evaluation.study import Study
from detrex_mammo.evaluation.tables import PredictionTable

logger = logging.getLogger(__name__)
METHODS = ("wbf", "nms", "soft-nms", "nmw")
SIGMA = 0.5  # of soft-NMS
# A score of 0 would make a mean of 0 / 0.
_LOWEST = 1e-12


@dataclass(frozen=True)
class Fusion:
    """How predictions are fused.

    Attributes:
        method: see the head of this file.
        iou: boxes that overlap by more are one.
        weights: (M,) of the models; None is 1 for each.

    Raises:
        UserError: a value is not possible.
    """

    method: str = "wbf"
    iou: float = 0.55
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        if not 0 < self.iou < 1:
            raise UserError(f"iou was {self.iou}, but it is a share in (0, 1)")
        if any(not (w > 0 and math.isfinite(w)) for w in self.weights or ()):
            raise UserError(f"weights were {list(self.weights)}, but each is a number above 0")

    def __call__(self, study: Study, models: Sequence[PredictionTable]) -> PredictionTable:
        """Fuse.

        Args:
            study: whose images the predictions are of.
            models: M tables; scores in [0, 1].

        Returns:
            PredictionTable: by image, and there from the highest score down. Boxes without area
            are left out, which is logged.

        Raises:
            UserError: ensemble-boxes is not installed, a score is not in [0, 1], or there are
                not as many weights as models.
        """
        if self.weights is not None and len(self.weights) != len(models):
            raise UserError(
                f"weights were {list(self.weights)}, but there are {len(models)} models: give one "
                "for each"
            )
        weights = np.asarray(self.weights or [1.0] * len(models), dtype=np.float64)
        package = _package()
        entries = _joined(models)
        labels, entries["category"] = np.unique(entries["category"], return_inverse=True)
        columns: dict[str, list[np.ndarray]] = {"image": [], "slice": [], "box": []}
        for place, found in _by_place(entries):
            image = study.images[int(place[0])]
            frame = _frame(found["box"], image.get("width"), image.get("height"))
            boxes = (found["box"] - frame[[0, 1, 0, 1]]) / frame[[2, 3, 2, 3]]
            fused = _fuse(package, self, boxes, found, weights)
            fused[:, :4] = fused[:, :4] * frame[[2, 3, 2, 3]] + frame[[0, 1, 0, 1]]
            columns["box"].append(fused[np.argsort(-fused[:, 4], kind="stable")])
            columns["image"].append(np.full(len(fused), place[0]))
            columns["slice"].append(np.full(len(fused), place[1]))
        return _table(columns, labels, any(model.slices is not None for model in models))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        weights = None if self.weights is None else list(map(float, self.weights))
        return {"method": self.method, "iou": self.iou, "weights": weights}


def _package() -> Any:
    try:
        import ensemble_boxes
    except ImportError as error:
        raise UserError(
            "fusing boxes needs the package ensemble-boxes, which is not installed "
            f"({error}): pip install 'detrex_mammo[ensemble]'"
        ) from error
    return ensemble_boxes


def _joined(models: Sequence[PredictionTable]) -> dict[str, np.ndarray]:
    """Columns of all predictions that have an area, with the number of their model."""
    slices = [np.full(len(m), np.nan) if m.slices is None else m.slices for m in models]
    entries = {
        "image": np.concatenate([m.image_index for m in models]).astype(np.float64),
        "slice": np.concatenate(slices),
        "box": np.concatenate([m.boxes for m in models]),
        "score": np.concatenate([m.scores for m in models]),
        "category": np.concatenate([m.categories for m in models]),
        "model": np.repeat(np.arange(len(models)), [len(m) for m in models]),
    }
    scores, boxes = entries["score"], entries["box"]
    if len(scores) and not (scores.min() >= 0 and scores.max() <= 1):
        raise UserError(
            f"fusion needs scores in [0, 1], but they go from {scores.min():g} to {scores.max():g}"
        )
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    if not kept.all():
        logger.warning("%d predictions without area are left out", int((~kept).sum()))
    return {name: column[kept] for name, column in entries.items()}


def _by_place(entries: dict[str, np.ndarray]):
    """((image, slice), its predictions) of every image, or slice of a volume, in order."""
    order = np.lexsort((entries["slice"], entries["image"]))
    sorted_entries = {name: column[order] for name, column in entries.items()}
    places = np.column_stack((sorted_entries["image"], sorted_entries["slice"]))
    is_new = np.ones(len(places), dtype=bool)
    equal = (places[1:] == places[:-1]) | (np.isnan(places[1:]) & np.isnan(places[:-1]))
    is_new[1:] = ~equal.all(axis=1)
    starts = np.append(np.flatnonzero(is_new), len(places))
    for start, end in zip(starts[:-1], starts[1:], strict=True):
        yield places[start], {name: column[start:end] for name, column in sorted_entries.items()}


def _frame(boxes: np.ndarray, width: float | None, height: float | None) -> np.ndarray:
    """(4,) corner and sides of the image together with its boxes."""
    low = np.minimum(boxes[:, :2].min(axis=0), 0)
    high = np.maximum(boxes[:, 2:].max(axis=0), (width or 0, height or 0))
    return np.concatenate((low, high - low))


def _fuse(package: Any, fusion: Fusion, boxes, found, weights) -> np.ndarray:
    """(K, 6): boxes in [0, 1], score and class of one image."""
    scores = np.maximum(found["score"], _LOWEST)
    if fusion.method not in ("wbf", "nmw"):
        scores = scores * (weights / weights.max())[found["model"]]
        suppress = _nms if fusion.method == "nms" else _soft_nms
        return suppress(package, boxes, scores, found["category"], fusion.iou)
    lists = [
        [column[found["model"] == model] for model in range(len(weights))]
        for column in (boxes, scores, found["category"])
    ]
    fuse = package.weighted_boxes_fusion if fusion.method == "wbf" else package.non_maximum_weighted
    return np.column_stack(fuse(*lists, weights=weights.tolist(), iou_thr=fusion.iou))


def _nms(package: Any, boxes, scores, labels, iou) -> np.ndarray:
    return np.column_stack(package.nms([boxes], [scores], [labels], iou_thr=iou))


def _soft_nms(package: Any, boxes, scores, labels, iou) -> np.ndarray:
    lower = package.ensemble_boxes_nms.cpu_soft_nms_float
    rows = []
    for label in np.unique(labels):
        chosen = labels == label
        own, lowered = boxes[chosen], scores[chosen]  # the scores are changed and put in order
        kept = lower(own.copy(), lowered, Nt=iou, sigma=SIGMA, thresh=-1.0, method=2)
        rows.append(np.column_stack((own[kept], lowered, np.full(len(kept), label))))
    return np.concatenate(rows)


def _table(columns: dict[str, list[np.ndarray]], labels, is_volume: bool) -> PredictionTable:
    image, place = (np.concatenate([np.zeros(0), *columns[n]]) for n in ("image", "slice"))
    fused = np.concatenate([np.zeros((0, 6)), *columns["box"]])
    return PredictionTable(
        image_index=image.astype(np.int64),
        boxes=fused[:, :4],
        scores=np.clip(fused[:, 4], 0.0, 1.0),
        categories=labels[fused[:, 5].astype(np.int64)].astype(np.int64),
        slices=place if is_volume else None,
    )
