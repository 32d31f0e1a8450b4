# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Predictions drawn beside the truth, on one mammogram, as a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from detrex_mammo.evaluation.matching import (
    DUPLICATE,
    FALSE_POSITIVE,
    TRUE_POSITIVE,
    Matching,
    match_predictions,
    parse_rule,
)
from detrex_mammo.evaluation.tables import lesion_table, prediction_table
from detrex_mammo.inference.canvas import Canvas

MAX_DRAWN = 40
KIND_OF = {TRUE_POSITIVE: "hit", DUPLICATE: "again", FALSE_POSITIVE: "false"}


def draw_predictions(
    image: np.ndarray,
    predictions: Mapping[str, Any],
    truth: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = ("lesion",),
    score_threshold: float = 0.3,
    title: str = "",
    simulated: bool = False,
    rule: str = "centre",
    class_aware: bool = True,
    panel_size: tuple[int, int] = (900, 800),
) -> np.ndarray:
    """One mammogram twice: the truth on the left, the predictions on the right.

    Lesions are drawn as found or missed and predictions as on a lesion or elsewhere, by the rule
    that FROC counts with. Labels stand outside their boxes. Grey values are stretched linearly up
    to the breast's brightest tissue, for the eye only.

    Args:
        image: (H, W) or (H, W, 3), in [0, 255].
        predictions: ``{"boxes": (N, 4) xyxy pixels of image, "scores": (N,), "classes": (N,)}``;
            ``classes`` are contiguous, from 0, and may be left out (all 0).
        truth (optional): ``{"boxes": (G, 4), "classes": (G,)}``; None draws the predictions alone.
        class_names: names of the contiguous classes.
        score_threshold: predictions below it are not drawn; nor are more than the best 40.
        title: first line of the picture.
        simulated: say that the lesions are simulated.
        rule: when a prediction is on a lesion: ``centre`` or ``iou:t``.
        class_aware: only lesions of a prediction's own class count.
        panel_size: largest (height, width) of a panel; the image is scaled to fit.

    Returns:
        np.ndarray: (h, w, 3) uint8 RGB.

    Raises:
        UserError: a box or score is not finite, or the rule is unknown.
    """
    shown = _best(_entry(predictions, with_scores=True), score_threshold)
    lesions = None if truth is None else _entry(truth)
    canvas = Canvas(image, 1 if lesions is None else 2, panel_size)
    kinds, truth_kinds = ["plain"] * len(shown["boxes"]), []
    if lesions is not None:
        matching = _match(lesions, shown, rule, class_aware)
        kinds = [KIND_OF[outcome] for outcome in matching.outcome.tolist()]
        found = set(matching.lesion.tolist())
        truth_kinds = ["found" if g in found else "missed" for g in range(len(lesions["boxes"]))]
        num_missed = truth_kinds.count("missed")
        canvas.panel_title(0, "Truth", _count(len(truth_kinds), "lesion", f"{num_missed} missed"))
        canvas.boxes(0, lesions["boxes"], truth_kinds, _labels(lesions, class_names))
    detail = f"score >= {score_threshold:g}"
    if lesions is not None:
        detail = f"{kinds.count('false')} elsewhere, {detail}"
    canvas.panel_title(canvas.num_panels - 1, "Predictions", _count(len(kinds), "box", detail))
    canvas.boxes(canvas.num_panels - 1, shown["boxes"], kinds, _labels(shown, class_names))
    canvas.title(title)
    canvas.legend({*kinds, *truth_kinds}, "simulated lesions" if simulated else "")
    return canvas.render()


def _entry(boxes_of_image, with_scores=False):
    """Boxes (N, 4), classes (N,) and scores as arrays, whatever kind of array they come as."""
    boxes = np.asarray(boxes_of_image["boxes"], dtype=np.float64).reshape(-1, 4)
    classes = boxes_of_image.get("classes")
    classes = np.zeros(len(boxes)) if classes is None else classes
    entry = {"boxes": boxes, "classes": np.asarray(classes, dtype=np.int64).reshape(-1)}
    if with_scores:
        entry["scores"] = np.asarray(boxes_of_image["scores"], dtype=np.float64).reshape(-1)
    return entry


def _best(entry, score_threshold):
    """The best predictions of at least that score, best first."""
    order = np.argsort(-entry["scores"], kind="stable")
    # `~(a < b)` keeps NaN, so that it is refused below, not hidden.
    order = order[~(entry["scores"][order] < score_threshold)][:MAX_DRAWN]
    return {name: values[order] for name, values in entry.items()}


def _match(lesions, shown, rule, class_aware) -> Matching:
    truth = lesion_table({0: {"boxes": lesions["boxes"], "categories": lesions["classes"]}})
    drawn = {"boxes": shown["boxes"], "scores": shown["scores"], "categories": shown["classes"]}
    table = prediction_table({0: drawn}, truth.image_ids)
    return match_predictions(truth, table, parse_rule(rule), class_aware)


def _labels(entry, class_names):
    """``mass 0.87`` for a prediction, ``mass`` for a lesion."""
    names = [
        class_names[c] if 0 <= c < len(class_names) else f"class {c}" for c in entry["classes"]
    ]
    if "scores" not in entry:
        return names
    return [f"{name} {score:.2f}" for name, score in zip(names, entry["scores"], strict=True)]


def _count(number, noun, detail):
    plural = {"lesion": "lesions", "box": "boxes"}[noun]
    return f"{number} {noun if number == 1 else plural} ({detail})"
