# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The gallery: which breasts are shown, and what is drawn on their views.

Legend: I images, N predictions, G lesions, B breasts.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.matching import DUPLICATE, FALSE_POSITIVE, TRUE_POSITIVE, Matching
from detrex_mammo.evaluation.report.content import Card, Lesion, Mark, View
from detrex_mammo.evaluation.study import Study
from detrex_mammo.evaluation.tables import PredictionTable

OUTCOMES = {FALSE_POSITIVE: "false", TRUE_POSITIVE: "hit", DUPLICATE: "again"}
MARKS_PER_VIEW = 20
# Filters of the gallery: key of an image entry -> what the reader calls it.
WORDS = {"dataset": "dataset", "density": "density", "manufacturer": "vendor", "birads": "BI-RADS"}
_VIEW_ORDER = {"CC": 0, "MLO": 1}


def make_cards(
    study: Study,
    predictions: PredictionTable,
    matching: Matching,
    threshold: float,
    max_images: int = 500,
) -> tuple[list[Card], str]:
    """One card for each breast; of a large data set those that are worth a look.

    Args:
        study: ground truth.
        predictions: of its images.
        matching: what became of them.
        threshold: predictions of at least this score count when breasts are chosen.
        max_images: chosen are, in turn, the breasts with the worst false positives, the missed
            lesions and the best hits, until their views are so many.

    Returns:
        tuple[list[Card], str]: cards, and a sentence that says what was chosen.

    Raises:
        UserError: an image that is shown has no size.
    """
    hit_scores = _hit_scores(len(study.lesions), predictions, matching)
    breasts = _choose(study, predictions, matching, hit_scores, threshold, max_images)
    lesions_of = _rows_of(study.lesions.image_index, study.num_images)
    marks_of = _rows_of(predictions.image_index, study.num_images)
    views_of: dict[int, list[int]] = {int(breast): [] for breast in breasts}
    for row, breast in enumerate(study.breasts.tolist()):
        if breast in views_of:
            views_of[breast].append(row)
    cards = []
    for breast_rows in views_of.values():
        for rows in _side_by_side(study, breast_rows):
            views = [
                _view(study, row, lesions_of(row), marks_of(row), predictions, matching, hit_scores)
                for row in rows
            ]
            cards.append(Card(_title(study.images[rows[0]]), _words(study, rows), views))
    num_views, total = sum(map(len, views_of.values())), study.num_images
    note = f"All {total} images." if num_views == total else (
        f"{num_views} of {total} images: the breasts with the worst false positives, the missed "
        f"lesions and the best hits at a score of at least {threshold:.3g}."
    )  # fmt: skip
    return cards, f"{note} At most the best {MARKS_PER_VIEW} predictions of a view are drawn."


def _hit_scores(num_lesions: int, predictions: PredictionTable, matching: Matching) -> np.ndarray:
    """(G,) score of the prediction that hits each lesion, NaN if none does."""
    scores = np.full(num_lesions, np.nan)
    hits = matching.outcome == TRUE_POSITIVE
    scores[matching.lesion[hits]] = predictions.scores[hits]
    return scores


def _choose(study, predictions, matching, hit_scores, threshold, max_images) -> list[int]:
    """Numbers of the breasts to show, in the order of the data set."""
    number = int(study.breasts.max()) + 1 if study.num_images else 0
    sizes = np.bincount(study.breasts, minlength=number)
    if study.num_images <= max_images:
        return list(range(number))
    worst = np.full(number, -np.inf)
    false = (matching.outcome == FALSE_POSITIVE) & (predictions.scores >= threshold)
    np.maximum.at(worst, study.breasts[predictions.image_index[false]], predictions.scores[false])
    of_lesion = study.breasts[study.lesions.image_index]
    is_hit = hit_scores >= threshold
    missed = np.bincount(of_lesion[~is_hit], minlength=number).astype(float)
    best = np.full(number, -np.inf)
    np.maximum.at(best, of_lesion[is_hit], hit_scores[is_hit])
    missed[missed == 0] = -np.inf
    ranked = [iter(np.argsort(-values, kind="stable").tolist()) for values in (worst, missed, best)]
    values = (worst, missed, best)
    chosen: dict[int, None] = {}
    room, going = max_images, [True] * 3
    while room > 0 and any(going):
        for kind in range(3):
            breast = next(ranked[kind], None)
            if breast is None or values[kind][breast] == -np.inf:
                going[kind] = False
            elif breast not in chosen and sizes[breast] <= room:
                chosen[breast] = None
                room -= int(sizes[breast])
    return sorted(chosen)


def _side_by_side(study: Study, rows: list[int]) -> list[list[int]]:
    """Images of one breast as cards: CC beside MLO; a second CC starts a second card."""
    numbers: dict[str | None, int] = {}
    cards: dict[int, list[int]] = {}
    for row in rows:
        view = study.images[row].get("view")
        numbers[view] = numbers.get(view, -1) + 1
        cards.setdefault(numbers[view], []).append(row)
    return [
        sorted(c, key=lambda r: _VIEW_ORDER.get(study.images[r].get("view"), 2))
        for c in cards.values()
    ]


def _rows_of(image_index: np.ndarray, num_images: int):
    """A function from an image's row to the rows of a table that belong to it."""
    order = np.argsort(image_index, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(image_index, minlength=num_images))])
    return lambda row: order[starts[row] : starts[row + 1]]


def _view(study, row, lesions, marks, predictions, matching, hit_scores) -> View:
    image = study.images[row]
    frame = _frame(image)
    best = marks[np.argsort(-predictions.scores[marks], kind="stable")][:MARKS_PER_VIEW]
    name = study.category_names
    return View(
        image_id=image["id"],
        title=_view_title(image),
        frame=frame,
        lesions=[
            Lesion(
                _in_frame(study.lesions.boxes[g], frame),
                name.get(int(study.lesions.categories[g]), ""),
                None if np.isnan(hit_scores[g]) else float(hit_scores[g]),
            )
            for g in lesions
        ],
        marks=[
            Mark(
                _in_frame(predictions.boxes[n], frame),
                name.get(int(predictions.categories[n]), ""),
                float(predictions.scores[n]),
                OUTCOMES.get(int(matching.outcome[n]), "ignored"),
            )
            for n in best
        ],
    )


def _frame(image: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """What of an image is shown: the breast, or all of it."""
    if image.get("breast_box") is not None:
        x0, y0, x1, y1 = (int(value) for value in image["breast_box"])
        if x0 < x1 and y0 < y1:
            return x0, y0, x1, y1
    if image.get("width") is None or image.get("height") is None:
        raise UserError(
            f"image {image['id']!r} has no width and height, which the report's gallery needs: "
            "add them to the annotation file, or set --max-images 0"
        )
    return 0, 0, int(image["width"]), int(image["height"])


def _in_frame(box: np.ndarray, frame: tuple[int, int, int, int]) -> tuple[float, ...]:
    x0, y0, x1, y1 = (float(v) for v in box)
    return x0 - frame[0], y0 - frame[1], x1 - x0, y1 - y0


def _view_title(image: Mapping[str, Any]) -> str:
    words = [image.get("laterality"), image.get("view")]
    name = str(image.get("file_name", image["id"])).replace("\\", "/").rsplit("/", 1)[-1]
    return " ".join(str(word) for word in words if word) or name


def _title(image: Mapping[str, Any]) -> str:
    patient, study = image.get("patient_id"), image.get("study_id")
    parts = [f"patient {patient}"] if patient not in (None, "") else [f"image {image['id']}"]
    # A DICOM UID tells a reader nothing.
    if study not in (None, "") and str(study) != str(patient) and len(str(study)) <= 24:
        parts.append(f"study {study}")
    if image.get("laterality") in ("L", "R"):
        parts.append({"L": "left breast", "R": "right breast"}[image["laterality"]])
    return ", ".join(parts)


def _words(study: Study, rows: list[int]) -> dict[str, str]:
    words = {}
    for key, name in WORDS.items():
        found = {
            str(study.images[r][key]) for r in rows if study.images[r].get(key) not in ("", None)
        }
        if found:
            words[name] = ", ".join(sorted(found))
    return words
