# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Which breasts are shown and what is on them, by hand."""

import numpy as np

from detrex_mammo.evaluation.froc import froc
from detrex_mammo.evaluation.report.cards import make_cards
from detrex_mammo.evaluation.study import read_study
from detrex_mammo.evaluation.tables import prediction_table


def image(number, patient, side="L", view="CC", **more):
    return {
        "id": number, "file_name": f"{number}.png", "width": 300, "height": 400,
        "patient_id": patient, "laterality": side, "view": view, **more,
    }  # fmt: skip


def lesion(number, image_id, box):
    return {"id": number, "image_id": image_id, "category_id": 1, "bbox": box}


def scored(images, lesions, predictions):
    """Study, table and matching; predictions: image id -> [(xyxy, score)]."""
    categories = [{"id": 1, "name": "mass"}]
    study = read_study({"images": images, "annotations": lesions, "categories": categories})
    per_image = {
        key: {"boxes": [b for b, _ in found], "scores": [s for _, s in found],
              "categories": [1] * len(found)}
        for key, found in predictions.items()
    }  # fmt: skip
    table = prediction_table(per_image, study.lesions.image_ids)
    return study, table, froc(study.lesions, table, categories=[1]).matching


def test_views_of_a_breast_share_a_card_cc_first():
    images = [image(1, "A", view="MLO"), image(2, "A", view="CC"), image(3, "A", "R")]
    cards, note = make_cards(*scored(images, [], {}), 0.5)
    assert [[view.image_id for view in card.views] for card in cards] == [[2, 1], [3]]
    assert [card.title for card in cards] == ["patient A, left breast", "patient A, right breast"]
    assert note.startswith("All 3 images.")


def test_a_second_cc_starts_a_second_card():
    images = [image(1, "A"), image(2, "A", view="MLO"), image(3, "A")]
    cards, _ = make_cards(*scored(images, [], {}), 0.5)
    assert [[view.image_id for view in card.views] for card in cards] == [[1, 2], [3]]


def test_boxes_lie_in_the_breast_box_and_carry_their_outcome():
    """Lesion (60, 70, 20, 20); its hit 0.9, a further one 0.5, one elsewhere 0.7."""
    images = [image(1, "A", breast_box=[50, 60, 250, 360], density="B")]
    predictions = {
        1: [((61, 71, 81, 91), 0.9), ((200, 300, 220, 330), 0.7), ((59, 69, 79, 89), 0.5)]
    }
    cards, _ = make_cards(*scored(images, [lesion(1, 1, [60, 70, 20, 20])], predictions), 0.5)
    view = cards[0].views[0]
    assert view.frame == (50, 60, 250, 360)
    assert [(x.box, x.name, x.score) for x in view.lesions] == [((10, 10, 20, 20), "mass", 0.9)]
    assert [(m.box, m.score, m.outcome) for m in view.marks] == [
        ((11, 11, 20, 20), 0.9, "hit"),
        ((150, 240, 20, 30), 0.7, "false"),
        ((9, 9, 20, 20), 0.5, "again"),
    ]
    assert cards[0].words == {"density": "B"}


def test_of_many_the_worst_the_missed_and_the_best_are_chosen():
    """Patient 3 has the worst false positive, 7 a missed lesion, 5 the best hit; room for three."""
    images = [image(number, f"P{number}") for number in range(10)]
    lesions = [lesion(1, 7, [10, 10, 20, 20]), lesion(2, 5, [10, 10, 20, 20])]
    predictions = {3: [((100, 100, 120, 120), 0.95)], 4: [((100, 100, 120, 120), 0.6)]}
    predictions[5] = [((10, 10, 30, 30), 0.8)]
    cards, note = make_cards(*scored(images, lesions, predictions), 0.5, max_images=3)
    assert [card.views[0].image_id for card in cards] == [3, 5, 7]
    assert note.startswith("3 of 10 images: ")


def test_a_long_study_uid_is_left_out_and_a_short_one_is_not():
    images = [image(1, "A", study_id="1.2." + "3" * 30), image(2, "B", study_id="2019")]
    cards, _ = make_cards(*scored(images, [], {}), 0.5)
    assert [card.title for card in cards] == [
        "patient A, left breast", "patient B, study 2019, left breast",
    ]  # fmt: skip


def test_at_most_twenty_best_predictions_of_a_view():
    scores = np.linspace(0.1, 0.9, 30)
    predictions = {1: [((10, 10, 30, 30), score) for score in scores]}
    cards, _ = make_cards(*scored([image(1, "A")], [], predictions), 0.5)
    drawn = [mark.score for mark in cards[0].views[0].marks]
    assert drawn == sorted(scores.tolist(), reverse=True)[:20]
