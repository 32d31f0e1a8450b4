# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A threshold chosen on validation by a named rule, kept in the checkpoint, applied on test.

Legend: n marks (boxes), U units (images, breasts, cases), P patients.

A threshold t keeps what has a score >= t. The rules, and the levels that know them:

- ``fppi:f`` (box): the highest threshold of the largest lesion sensitivity with at most f false
  positives per image, over all images.
- ``sensitivity:s`` (all): the highest threshold with at least that sensitivity.
- ``specificity:s`` (image, breast, case): the lowest threshold with at least that specificity.
- ``f1`` (all): the highest threshold of the largest F1, 2 TP / (2 TP + FP + FN).
- ``youden`` (image, breast, case): the same of sensitivity + specificity - 1.

Worked by hand: images with scores 0.9 +, 0.8 -, 0.7 +, 0.2 -. ``sensitivity:0.9`` needs both
positives: 0.7. ``specificity:1``: 0.9. Youden's index is 1/2 + 1 - 1 = 1/2 at 0.9, 0 at 0.8,
1 + 1/2 - 1 = 1/2 at 0.7, 0 at 0.2: of the two largest the higher threshold, 0.9. F1 is 2/3 at 0.9,
1/2 at 0.8, 4/5 at 0.7, 2/3 at 0.2: 0.7.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.auc import rates_at, roc
from detrex_mammo.evaluation.estimate import Draws, Estimate, ratios
from detrex_mammo.evaluation.marks import Marks
from detrex_mammo.evaluation.scores import LEVELS, UnitScores, unit_scores
from detrex_mammo.evaluation.study import Study
from detrex_mammo.evaluation.tables import PredictionTable

CHECKPOINT_KEY = "operating_points"
RULES = {
    "box": ("fppi", "sensitivity", "f1"),
    **dict.fromkeys(LEVELS, ("sensitivity", "specificity", "f1", "youden")),
}
_WITHOUT_TARGET = ("f1", "youden")
_CLOSE = 1 - 1e-12  # counts are compared with a target's: 0.3 * 410 must be 123


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold and where it comes from; plain numbers and text only.

    Attributes:
        rule: such as ``fppi:0.3``, see the head of this file.
        level: ``box``, ``image``, ``breast`` or ``case``.
        threshold: scores >= it are kept; finite.
        value: what the rule measures (false positives per image, sensitivity, specificity, F1,
            Youden's index) at this threshold on the data set it was chosen on.
        dataset: name of that data set.
        counts: how many of what it has: lesions and images, or positive and negative units.
        category: the class it is for; None is any.
        settings: what else was decided: the hit rule and duplicates, or the pooling of views.
    """

    rule: str
    level: str
    threshold: float
    value: float
    dataset: str
    counts: Mapping[str, int] = field(default_factory=dict)
    category: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Key in the checkpoint: one point a level, rule and class."""
        of_class = "" if self.category is None else f" class {self.category}"
        return f"{self.level} {self.rule}{of_class}"

    def text(self) -> str:
        """In words, for captions."""
        counts = ", ".join(f"{number} {what}" for what, number in self.counts.items())
        return (
            f"{self.level} score >= {self.threshold:.6g}, chosen by {self.rule} on "
            f"{self.dataset} ({counts}), where it gave {self.value:.3f}"
        )


def parse_rule(rule: str, level: str) -> tuple[str, float | None]:
    """Kind and target of a rule's name.

    Raises:
        UserError: no rule of that level, or its target is not possible.
    """
    if level not in RULES:
        raise UserError(f"level was {level!r}, but it is one of {', '.join(RULES)}")
    kind, colon, text = str(rule).partition(":")
    if kind in RULES[level] and (kind in _WITHOUT_TARGET) == (not colon):
        if not colon:
            return kind, None
        try:
            target = float(text)
        except ValueError:
            target = math.nan
        if 0 < target <= (math.inf if kind == "fppi" else 1) and target != math.inf:
            return kind, target
    allowed = [kind if kind in _WITHOUT_TARGET else f"{kind}:0.9" for kind in RULES[level]]
    allowed = ["fppi:0.3" if name.startswith("fppi") else name for name in allowed]
    raise UserError(
        f"the rule of an operating point was {rule!r}, but for level {level} it is one like "
        f"{', '.join(allowed)}"
    )


def choose_for_boxes(marks: Marks, rule: str, dataset: str) -> OperatingPoint:
    """The point of box scores.

    Args:
        marks: of the validation set.
        dataset: its name.

    Raises:
        UserError: no such rule, no lesions, or no threshold fulfils it.
    """
    kind, target = parse_rule(rule, "box")
    counts = {"lesions": int(marks.lesions.sum()), "images": int(marks.images.sum())}
    order = np.argsort(-marks.scores, kind="stable")
    falling = marks.scores[order]
    ends = np.flatnonzero(np.diff(falling, append=-np.inf) != 0)
    hits = np.cumsum(marks.hit[order])[ends]
    false = ends + 1 - hits
    _need(counts, dataset)
    row, value = _choose(kind, target, hits, false, counts["lesions"], counts["images"])
    if row is None:
        raise _unreachable(rule, dataset)
    threshold = float(falling[ends[row]])
    settings = {"hit_rule": marks.rule, "duplicates": marks.duplicates}
    return OperatingPoint(rule, "box", threshold, value, dataset, counts, marks.category, settings)


def choose_for_units(units: UnitScores, rule: str, dataset: str) -> OperatingPoint:
    """The point of image, breast or case scores.

    Args:
        units: of the validation set.
        dataset: its name.

    Raises:
        UserError: no such rule, no positive or no negative units, or no threshold fulfils it.
    """
    kind, target = parse_rule(rule, units.level)
    curve = roc(units)
    counts = {
        f"positive {units.level}s": curve.num_positive,
        f"negative {units.level}s": curve.num_negative,
    }
    _need(counts, dataset)
    hits, false = curve.true_positives[1:], curve.false_positives[1:]
    row, value = _choose(kind, target, hits, false, curve.num_positive, curve.num_negative)
    if row is None:
        raise _unreachable(rule, dataset)
    threshold, settings = float(curve.thresholds[1:][row]), {"views": units.views}
    return OperatingPoint(
        rule, units.level, threshold, value, dataset, counts, units.category, settings
    )


def apply_to_boxes(
    point: OperatingPoint,
    marks: Marks,
    study: Study,
    predictions: PredictionTable,
    draws: Draws | None = None,
) -> dict[str, Estimate]:
    """Lesion sensitivity, PPV of boxes, false positives per image, and specificity of images.

    The specificity is the share of images without a lesion that have no box of at least the
    threshold.

    Args:
        marks: of the test set, made with the point's settings.
        study, predictions: what the marks were made of.

    Raises:
        UserError: the marks are of another level, class, hit rule or way with duplicates.
    """
    _same(point, "box", marks.category, {"hit_rule": marks.rule, "duplicates": marks.duplicates})
    # without a box an image is never called positive, not even at threshold 0
    images = unit_scores(study, predictions, category=marks.category, empty=-math.inf)
    kept = marks.scores >= point.threshold
    number = len(marks.lesions)
    hits = np.bincount(marks.patients[kept & marks.hit], minlength=number)
    false = np.bincount(marks.patients[kept & ~marks.hit], minlength=number)
    found = ratios(
        {"sensitivity": hits, "ppv": hits, "fppi": false},
        {"sensitivity": marks.lesions, "ppv": hits + false, "fppi": marks.images},
        {"sensitivity": "lesions", "ppv": "boxes", "fppi": "images"},
        draws,
    )
    return {**found, "specificity": rates_at(images, point.threshold, draws)["specificity"]}


def apply_to_units(
    point: OperatingPoint, units: UnitScores, draws: Draws | None = None
) -> dict[str, Estimate]:
    """Sensitivity, specificity, PPV and NPV of units at a point.

    Raises:
        UserError: the units are of another level, class or pooling of views.
    """
    _same(point, units.level, units.category, {"views": units.views})
    return rates_at(units, point.threshold, draws)


def with_operating_points(
    checkpoint: Mapping[str, Any], points: Iterable[OperatingPoint]
) -> dict[str, Any]:
    """A checkpoint's content with these points added; one of the same name is replaced."""
    known = {point.name: point for point in (*read_operating_points(checkpoint), *points)}
    stored = {name: _plain(asdict(point)) for name, point in known.items()}
    return {**checkpoint, CHECKPOINT_KEY: stored}


def read_operating_points(checkpoint: Mapping[str, Any]) -> list[OperatingPoint]:
    """The points of a checkpoint's content; none if it has none.

    Raises:
        UserError: they are damaged.
    """
    stored = checkpoint.get(CHECKPOINT_KEY) or {}
    names = {entry.name for entry in fields(OperatingPoint)}
    points = []
    for name, entry in stored.items() if isinstance(stored, Mapping) else [("?", None)]:
        if not _is_whole(entry):
            raise UserError(
                f"the checkpoint's operating point {name!r} is damaged: it has {sorted(names)}, "
                "threshold being a finite number; choose it again on validation"
            )
        parse_rule(entry["rule"], entry["level"])
        points.append(OperatingPoint(**entry))
    return points


def _is_whole(entry):
    """Every field is there, and of the kind that is computed with."""
    if not isinstance(entry, Mapping) or set(entry) != {f.name for f in fields(OperatingPoint)}:
        return False
    kinds = {"rule": str, "level": str, "threshold": float, "counts": Mapping, "settings": Mapping}
    is_right = all(isinstance(entry[name], kind) for name, kind in kinds.items())
    return is_right and math.isfinite(entry["threshold"])


def _choose(kind, target, hits, false, positives, others):
    """Row of the threshold that a rule chooses, None if there is none, and what it measures.

    Args:
        hits, false: at every distinct score, falling: true and false positives.
        positives: lesions or positive units.
        others: images (at box level) or negative units.
    """
    values = _measured(kind, hits, false, positives, others)
    fulfils = np.ones(len(hits), dtype=bool)
    if kind == "sensitivity":
        fulfils = hits >= target * positives * _CLOSE
    elif kind == "specificity":
        fulfils = others - false >= target * others * _CLOSE
    elif kind == "fppi":
        fulfils = (false * _CLOSE <= target * others) & (hits > 0)
    rows = np.flatnonzero(fulfils)
    if not len(rows):
        return None, math.nan
    if kind == "sensitivity":
        row = rows[0]
    elif kind == "specificity":
        row = rows[-1]
    elif kind == "fppi":
        row = np.searchsorted(hits, hits[rows[-1]])
    else:
        row = np.argmax(values)
    return int(row), float(values[row])


def _measured(kind, hits, false, positives, others):
    """What a rule measures, at every distinct score."""
    if kind == "fppi":
        return false / others
    if kind == "f1":
        return 2 * hits / (hits + false + positives)
    if kind == "sensitivity":
        return hits / positives
    if kind == "specificity":
        return 1 - false / others
    return (hits * others - false * positives) / (positives * others)  # equal ones stay equal


def _need(counts, dataset):
    absent = [what for what, number in counts.items() if not number]
    if absent:
        raise UserError(
            f"{dataset} has no {' and no '.join(absent)}, so no operating point can be chosen on "
            "it: choose it on a validation set that has some"
        )


def _unreachable(rule, dataset):
    return UserError(
        f"no threshold on {dataset} fulfils {rule} with a hit: choose a target that the model "
        "reaches there"
    )


def _same(point, level, category, settings):
    given = {"level": level, "category": category, **settings}
    wanted = {"level": point.level, "category": point.category, **point.settings}
    for name, value in given.items():
        if wanted.get(name) != value:
            raise UserError(
                f"the operating point was chosen with {name} {wanted.get(name)!r}, but is applied "
                f"with {value!r}: use the same on both"
            )


def _plain(value):
    """Python's own numbers, text and dicts, which every reader of checkpoints accepts."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value
