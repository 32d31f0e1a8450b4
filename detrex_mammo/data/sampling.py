# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""How often each image is shown in an epoch: rules, one small function each.

N images, C classes, D datasets.
"""

import copy
import logging
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from detrex_mammo.data.columns import Columns
from detrex_mammo.data.image_scores import best_scores
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
_ROUNDS = 1000  # of fitting two shares at once: a table of 2 x D numbers, not the images
_TOLERANCE = 1e-6


class Sampling:
    """Rules that say how often an image is shown; without any, each is shown once an epoch.

    They are applied in the order of the arguments; the shares of the datasets and of images without
    boxes hold together.

    Args:
        hard_negatives: COCO results JSON of an earlier model on these images. Of the images without
            boxes, the share ``hard_negative_share`` with the highest best score is shown
            ``hard_negative_factor`` times as often. "" for none. Of several datasets mixed:
            ``{part: file}``, each with the image ids of its own part.
        hard_negative_factor: at least 1.
        hard_negative_share: above 0, at most 1.
        class_balance: power of :func:`class_repeats`, from 0 (off) to 1; 0.5 is LVIS's rule.
        patient_balance: every patient is shown equally often, however many images there are of it.
        dataset_weights: share of each dataset in an epoch, ``{name: weight}``, in any unit; every
            dataset has one, 0 leaves it out. The epoch keeps its length. None takes those of the
            dataset itself (``dataset.dataset_weights``), if it has any.
        negatives_per_positive: images without boxes for each image with boxes. Those with boxes
            are shown as before, so that the length of the epoch changes. None is the natural ratio.
        natural_after_epochs: over so many epochs the ratio goes, in a straight line, from
            ``negatives_per_positive`` to the natural one. Every epoch is as long as at the end.

    Raises:
        UserError: a value is not possible.
    """

    def __init__(
        self,
        hard_negatives: str | Mapping[str, str] = "",
        hard_negative_factor: float = 4.0,
        hard_negative_share: float = 0.1,
        class_balance: float = 0.0,
        patient_balance: bool = False,
        dataset_weights: Mapping[str, float] | None = None,
        negatives_per_positive: float | None = None,
        natural_after_epochs: float | None = None,
    ):
        _check("hard_negative_factor", hard_negative_factor, 1)
        _check("hard_negative_share", hard_negative_share, 1e-9, 1)
        _check("class_balance", class_balance, 0, 1)
        if negatives_per_positive is not None:
            _check("negatives_per_positive", negatives_per_positive, 0)
        if natural_after_epochs is not None:
            _check("natural_after_epochs", natural_after_epochs, 1e-9)
            if negatives_per_positive is None:
                raise UserError(
                    f"sampling.natural_after_epochs is {natural_after_epochs}, but no "
                    "sampling.negatives_per_positive says where to start: set both or neither"
                )
        if not isinstance(patient_balance, bool):
            raise UserError(f"sampling.patient_balance is {patient_balance!r}; use true or false")
        self.hard_negatives = hard_negatives
        self.hard_negative_factor = hard_negative_factor
        self.hard_negative_share = hard_negative_share
        self.class_balance = class_balance
        self.patient_balance = patient_balance
        self.dataset_weights = _checked_weights(dataset_weights)
        self.negatives_per_positive = negatives_per_positive
        self.natural_after_epochs = natural_after_epochs
        self._hard: tuple[Columns, np.ndarray] | None = None

    @property
    def is_plain(self) -> bool:
        """Whether no rule is on: every image once, whatever the dataset holds."""
        rules = (self.hard_negatives, self.class_balance, self.patient_balance)
        shares = (self.dataset_weights, self.negatives_per_positive)
        return not any(rules) and all(share is None for share in shares)

    def with_dataset_weights(self, weights: Mapping[str, float]) -> "Sampling":
        """The same rules with these weights."""
        other = copy.copy(self)
        other.dataset_weights = _checked_weights(weights)
        return other

    def repeats(self, columns: Columns, epoch: int = 0) -> np.ndarray:
        """Expected number of appearances of each image in an epoch: (N,) float64.

        Raises:
            UserError: a rule does not fit the dataset.
        """
        repeats = np.ones(len(columns.image_ids))
        if self.hard_negatives:
            repeats[self._is_hard(columns)] *= self.hard_negative_factor
        if self.class_balance:
            repeats *= class_repeats(columns, self.class_balance)
        if self.patient_balance:
            repeats = equal_totals(repeats, columns.patients)
        if self.dataset_weights is not None:
            shares = dataset_shares(columns, self.dataset_weights)
            repeats = with_shares(repeats, columns.datasets, shares)
        if self.negatives_per_positive is not None:
            repeats = self._with_ratio(columns, repeats, epoch)
        return repeats

    def _is_hard(self, columns: Columns) -> np.ndarray:
        """(N,) bool; the file is read once."""
        if self._hard is None or self._hard[0] is not columns:
            scores = best_scores(self.hard_negatives, columns.image_ids)
            is_hard = hard_negatives(columns, scores, self.hard_negative_share)
            if not is_hard.any():
                raise UserError(
                    f"sampling.hard_negatives {self.hard_negatives!r} has no prediction on an "
                    "image without boxes: give predictions on the training images"
                )
            logger.info("%d hard negatives of %s", is_hard.sum(), self.hard_negatives)
            self._hard = columns, is_hard
        return self._hard[1]

    def _with_ratio(self, columns: Columns, repeats: np.ndarray, epoch: int) -> np.ndarray:
        """Images without boxes in the wanted ratio, datasets in the shares that they have."""
        sides = (columns.num_boxes == 0).astype(np.int64)
        num_datasets = len(columns.dataset_names)
        cells = sides * num_datasets + columns.datasets
        table = np.bincount(cells, repeats, 2 * num_datasets).reshape(2, num_datasets)
        positives, negatives = table.sum(axis=1)
        if not positives or not negatives:
            which = "has boxes" if positives else "is without boxes"
            raise UserError(
                f"sampling.negatives_per_positive is {self.negatives_per_positive}, but every "
                f"image of the training data {which}: set it to null"
            )
        ratio, total = self.negatives_per_positive, None
        if self.natural_after_epochs is not None:
            progress = min(1.0, epoch / self.natural_after_epochs)
            ratio += (negatives / positives - ratio) * progress
            total = table.sum()
        total = positives * (1 + ratio) if total is None else total
        rows = total / (1 + ratio) * np.array([1.0, ratio])
        # Shares that nobody asked for may change with the ratio.
        wanted = None if self.dataset_weights is None else table.sum(axis=0) / table.sum() * total
        factors = fit_table(table, rows, wanted)
        if factors is None:
            raise UserError(
                f"sampling.negatives_per_positive {ratio:g} is not possible with the "
                f"dataset_weights {self.dataset_weights}: change one of them"
            )
        return repeats * factors.ravel()[cells]


def class_repeats(columns: Columns, power: float) -> np.ndarray:
    """Repeat factor of each image: ``(f_max / f_c)**power`` of its rarest class c, 1 without boxes.

    f_c is the number of images with class c, f_max that of the most frequent class. ``power`` 0.5
    is repeat factor sampling of LVIS (https://arxiv.org/abs/1908.03195) with f_max as its
    threshold; with 1, were there one class per image, all classes would be shown equally often.

    Returns:
        ndarray: (N,) float64.

    Raises:
        UserError: no image has a box.
    """
    num_images = len(columns.image_ids)
    image_of_box = np.repeat(np.arange(num_images), columns.num_boxes)
    if not len(image_of_box):
        raise UserError("sampling.class_balance is on, but no image has a box: set it to 0")
    num_classes = int(columns.box_classes.max()) + 1
    pairs = np.unique(image_of_box * num_classes + columns.box_classes)
    images = np.bincount(pairs % num_classes, minlength=num_classes)
    factors = (images.max() / np.maximum(images, 1)) ** power
    repeats = np.ones(num_images)
    np.maximum.at(repeats, pairs // num_classes, factors[pairs % num_classes])
    return repeats


def hard_negatives(columns: Columns, scores: np.ndarray, share: float) -> np.ndarray:
    """Which images without boxes are among the ``share`` of these with the highest score.

    Args:
        scores: (N,) best score of each image, -inf without a prediction: such are never hard.

    Returns:
        ndarray: (N,) bool.
    """
    negative = columns.num_boxes == 0
    count = math.ceil(share * negative.sum())
    candidates = np.flatnonzero(negative & np.isfinite(scores))
    first = np.argsort(-scores[candidates], kind="stable")[:count]
    is_hard = np.zeros(len(negative), dtype=bool)
    is_hard[candidates[first]] = True
    return is_hard


def equal_totals(repeats: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Scale (N,) repeats so that all groups (patients) have the same total; the whole stays."""
    totals = np.bincount(groups, repeats)
    return repeats * (repeats.sum() / np.count_nonzero(totals)) / totals[groups]


def with_shares(repeats: np.ndarray, groups: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Scale (N,) repeats so that each group has its share of the whole, which stays."""
    totals = np.bincount(groups, repeats, len(shares))
    return repeats * repeats.sum() * shares[groups] / totals[groups]


def dataset_shares(columns: Columns, weights: Mapping[str, float]) -> np.ndarray:
    """Weights by name as (D,) shares in the order of ``columns.dataset_names``; they sum to 1.

    Raises:
        UserError: a name is unknown or left out, or all weights are 0.
    """
    names = list(columns.dataset_names)
    unknown = sorted(set(weights) - set(names))
    left_out = sorted(set(names) - set(weights))
    if unknown or left_out:
        what = f"names {unknown[0]!r}" if unknown else f"leaves out {left_out[0]!r}"
        raise UserError(
            f"sampling.dataset_weights {what}, but the training data is of {sorted(names)}: give "
            "each of these a weight, 0 to leave it out"
        )
    values = np.array([weights[name] for name in names], dtype=np.float64)
    if not values.sum():
        raise UserError(f"sampling.dataset_weights is {dict(weights)}: one must be above 0")
    return values / values.sum()


def fit_table(
    table: np.ndarray, rows: np.ndarray, columns: np.ndarray | None = None
) -> np.ndarray | None:
    """Factors that give a table of totals the wanted sums, by iterative proportional fitting.

    Args:
        table: (R, D), at least 0.
        rows: (R,) wanted sums over each row.
        columns: (D,) wanted sums over each column, of the same total; None: whatever comes.

    Returns:
        ndarray or None: (R, D); None if no factors do it.
    """
    fitted = table.astype(np.float64)
    for _ in range(_ROUNDS):
        fitted = fitted * _ratio(rows, fitted.sum(axis=1))[:, None]
        if columns is None:
            break
        fitted = fitted * _ratio(columns, fitted.sum(axis=0))
        if np.abs(fitted.sum(axis=1) - rows).max() <= _TOLERANCE * rows.sum():
            break
    else:
        return None
    return _ratio(fitted, table)


def _ratio(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    return np.divide(wanted, found, out=np.zeros_like(wanted, dtype=np.float64), where=found > 0)


def _check(name: str, value: Any, low: float, high: float = math.inf) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:
        least = f"at least {low:g}" if low != 1e-9 else "above 0"
        most = "" if high == math.inf else f" and at most {high:g}"
        raise UserError(f"sampling.{name} is {value!r}, but must be {least}{most}")


def _checked_weights(weights: Mapping[str, float] | None) -> dict[str, float] | None:
    for name, weight in (weights or {}).items():
        _check(f"dataset_weights.{name}", weight, 0)
    return None if weights is None else dict(weights)
