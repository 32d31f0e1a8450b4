# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""CC and MLO of a breast: a score moves towards what the other view says.

Legend: N predictions. Depths and distances are millimetres.

A lesion that is in one view should be in the other, about as far behind the nipple: the distance
from the nipple is what corresponds between the two (Paquerault et al., Medical Physics 29, 2002,
who fuse the scores of two views by it). Here, for every box:

- The **other views** are the images of the same breast in the same study with another ``view``. A
  box without them keeps its score.
- **Depth**: from the front edge of ``breast_box``, which lies at the nipple, horizontally to the
  box's centre, by ``pixel_spacing``. A box of the other view **fits** if it is of the same class
  and its depth differs by at most ``tolerance``. Where one of the two images lacks ``breast_box``,
  ``chest_wall`` or ``pixel_spacing``, every box of the class fits.
- **Support**: the highest score of the fitting boxes of all other views. Without any: the lowest
  score of the class in the whole data set, as what a file does not hold is no higher.
- New logit = (1 - weight) * logit + weight * logit of the support.

So a box with a support as good as itself stays, a better one raises it, a worse one lowers it. All
supports are the scores from before. In MLO the depth is measured along the image, not along the
pectoral muscle: what ``tolerance`` is for, which is a choice of ours and was not fitted.

Worked by hand, weight 1/4: score 0.8 with support 0.2. Logits are ln 4 and -ln 4; the new one is
(3/4 - 1/4) ln 4 = ln 2, so 2/3. And 0.2 with support 0.8 becomes 1/3.
"""

from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
from scipy.special import expit, logit

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.study import Study
from detrex_mammo.evaluation.tables import PredictionTable

TOLERANCE = 30.0  # mm
_EDGE = 1e-7  # scores are kept off 0 and 1 by so much


@dataclass(frozen=True)
class Agreement:
    """How much two views count.

    Attributes:
        weight: of the other view, in [0, 1].
        tolerance: of depths, in millimetres.

    Raises:
        UserError: a value is not possible.
    """

    weight: float
    tolerance: float = TOLERANCE

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise UserError(f"agreement was {self.weight}, but it is a weight in [0, 1]")
        if not self.tolerance >= 0:
            raise UserError(
                f"the agreement's tolerance was {self.tolerance}, but it is 0 mm or more"
            )

    def __call__(self, study: Study, predictions: PredictionTable) -> PredictionTable:
        """The predictions with new scores (see the head of this file).

        Raises:
            UserError: scores that are not in [0, 1].
        """
        scores = predictions.scores
        if len(scores) and not (scores.min() >= 0 and scores.max() <= 1):
            raise UserError(
                "the agreement of views needs scores in [0, 1], but they go from "
                f"{scores.min():g} to {scores.max():g}"
            )
        support = self._support(study, predictions)
        has_support = ~np.isnan(support)
        own, other = (logit(np.clip(s, _EDGE, 1 - _EDGE)) for s in (scores, support))
        moved = expit((1 - self.weight) * own + self.weight * other)
        changed = has_support & (self.weight > 0)
        return replace(predictions, scores=np.where(changed, moved, scores))

    def _support(self, study: Study, predictions: PredictionTable) -> np.ndarray:
        """(N,) support of every prediction, NaN where there is no other view."""
        support = np.full(len(predictions), np.nan)
        order = np.argsort(predictions.image_index, kind="stable")
        cuts = np.searchsorted(predictions.image_index[order], np.arange(study.num_images + 1))
        depth = _depths(study, predictions)
        lowest = {
            c: predictions.scores[predictions.categories == c].min()
            for c in np.unique(predictions.categories).tolist()
        }
        for image, other in pairs_of_views(study):
            rows, theirs = (order[cuts[i] : cuts[i + 1]] for i in (image, other))
            for category in np.unique(predictions.categories[rows]).tolist():
                mine = rows[predictions.categories[rows] == category]
                them = theirs[predictions.categories[theirs] == category]
                apart = np.abs(depth[mine][:, None] - depth[them])
                fits = ~(apart > self.tolerance)  # a depth that is not known fits
                best = np.where(fits, predictions.scores[them], lowest[category])
                best = best.max(axis=1, initial=lowest[category])
                support[mine] = np.fmax(support[mine], best)
        return support

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"weight": self.weight, "tolerance_mm": self.tolerance}


def pairs_of_views(study: Study) -> list[tuple[int, int]]:
    """(image, other image), rows of the study: one breast of one study, two ``view`` s."""
    breasts: dict[int, list[int]] = {}
    for row, breast in enumerate(study.breasts.tolist()):
        if study.images[row].get("view") not in (None, ""):
            breasts.setdefault(breast, []).append(row)
    return [
        (one, other)
        for rows in breasts.values()
        for one, other in permutations(rows, 2)
        if study.images[one]["view"] != study.images[other]["view"]
    ]


def _depths(study: Study, predictions: PredictionTable) -> np.ndarray:
    """(N,) millimetres behind the front of the breast, NaN where it is not known."""
    front, scale = np.full((2, study.num_images), np.nan)
    for row, image in enumerate(study.images):
        box, side, spacing = (image.get(n) for n in ("breast_box", "chest_wall", "pixel_spacing"))
        if box is None or spacing is None or side not in ("left", "right"):
            continue
        front[row] = box[2] if side == "left" else box[0]
        scale[row] = float(spacing[1]) * (1 if side == "left" else -1)
    centres = predictions.boxes[:, [0, 2]].mean(axis=1)
    rows = predictions.image_index
    return (front[rows] - centres) * scale[rows]
