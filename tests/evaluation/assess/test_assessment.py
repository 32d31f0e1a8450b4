# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The parts put together: every figure where it belongs, with its rule and denominator."""

import json

import numpy as np
import pytest

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.assess.assessment import assess
from detrex_mammo.evaluation.assess.settings import AssessSettings
from detrex_mammo.evaluation.assess.units import marks_of
from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.froc_settings import FrocSettings
from detrex_mammo.evaluation.operating_point import choose_for_boxes
from detrex_mammo.evaluation.study import read_study
from detrex_mammo.evaluation.tables import prediction_table

LESION = [10, 10, 20, 20]
HIT, ELSEWHERE = (11, 11, 31, 31), (70, 70, 90, 90)


def study_of(num_patients, is_positive=lambda row: row % 2 == 0):
    """One image a patient, every other one with a lesion."""
    images = [
        {"id": n, "file_name": f"{n}.png", "width": 100, "height": 100, "patient_id": f"P{n}",
         "laterality": "L", "view": "CC", "density": "AB"[n % 2]}
        for n in range(num_patients)
    ]  # fmt: skip
    lesions = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": LESION}
        for n in range(num_patients)
        if is_positive(n)
    ]
    categories = [{"id": 1, "name": "mass"}]
    return read_study({"images": images, "annotations": lesions, "categories": categories})


def predictions_of(study, per_image):
    entries = {
        key: {"boxes": [b for b, _ in found], "scores": [s for _, s in found],
              "categories": [1] * len(found)}
        for key, found in per_image.items()
    }  # fmt: skip
    return prediction_table(entries, study.lesions.image_ids)


@pytest.fixture
def four():
    """Lesions in images 0 and 2: one hit at 0.9, one missed; false positives 0.8 and 0.3.

    At most 0.3 false positives per image are 1 of 4: sensitivity 1/2, as at every larger number.
    """
    study = study_of(4)
    found = {0: [(HIT, 0.9)], 1: [(ELSEWHERE, 0.8)], 2: [(ELSEWHERE, 0.3)]}
    return study, predictions_of(study, found)


def test_headline_by_hand(four):
    """Image scores 0.9, 0.8, 0.3, 0, positive 0 and 2: three of four pairs are in order."""
    found = assess(*four, AssessSettings(bootstrap=Bootstrap(50)))
    values = {number.name: number for number in found.part.numbers}
    assert values["Sensitivity at 0.3 false positives per image"].value == 0.5
    assert values["AUC of images"].value == 0.75
    # precision 1 up to recall 1/2: the recalls 0 to 0.50, 51 of 101
    assert values["AP50"].value == pytest.approx(51 / 101)
    for number in found.part.numbers:
        assert number.rule and number.denominator, number
        assert number.low <= number.value <= number.high


def test_slider_counts_are_those_of_the_curve(four):
    counter = assess(*four, AssessSettings(bootstrap=None)).report("x").counter
    assert (counter.num_units, counter.num_images) == (2, 4)
    assert (counter.hit_scores, counter.false_scores) == ([0.9], [0.8, 0.3])
    # 0.5 false positives per image are two in four images; sensitivity is reached at 0.9 already
    assert counter.threshold == 0.9


def test_slider_starts_at_an_operating_point(four):
    first = assess(*four, AssessSettings(bootstrap=None))
    point = choose_for_boxes(marks_of(first.scored), "f1", "val")
    found = first.with_points([point])
    assert found.report("x").counter.threshold == point.threshold
    assert found.figures["sensitivity at box f1"].value == 0.5
    assert [table.key for table in found.part.tables][0] == "operating_points"


def test_a_point_of_another_rule_is_refused(four):
    point = choose_for_boxes(marks_of(assess(*four).scored), "f1", "val")
    settings = AssessSettings(FrocSettings("iou:0.2"), bootstrap=None, points=[point])
    with pytest.raises(UserError, match="hit_rule 'centre', but is applied with 'iou:0.2'"):
        assess(*four, settings)


def test_everything_is_json_without_nan(four):
    text = json.dumps(
        assess(*four, AssessSettings(bootstrap=Bootstrap(20))).to_dict(), allow_nan=False
    )
    content = json.loads(text)
    assert content["counts"]["images with a lesion"] == 2
    assert content["figures"]["sens@0.3"]["value"] == 0.5
    assert {"sensitivity", "strata", "coco", "units", "calibration"} <= set(content["tables"])


def test_groups_are_in_the_table(four):
    """Density A has both lesions (images 0 and 2), B none."""
    found = assess(*four, AssessSettings(bootstrap=None))
    table = next(t for t in found.part.tables if t.key == "strata")
    rows = {
        row[1]: dict(zip(table.columns, row)) for row in table.rows if row[0] == "breast density"
    }
    assert (rows["A"]["lesions"], rows["A"]["sens@1"]) == (2, 0.5)
    assert rows["B"]["lesions"] == 0 and np.isnan(rows["B"]["sens@1"])


def test_groups_have_their_areas(four):
    """Density B has no lesion; "image" 1 (0.8) is one of its two negative images.

    Of A's lesions one is hit at 0.9, but A has no image without a lesion: no area. The class has
    both lesions and the negatives 0.8 and none: hit 0.9 beats both, no hit loses one and ties one.
    """
    found = assess(*four, AssessSettings(bootstrap=Bootstrap(20)))
    table = next(t for t in found.part.tables if t.key == "areas")
    rows = {(row[0], row[1], row[2]): row[3:] for row in table.rows}
    assert np.isnan(rows["breast density", "A", "AFROC"][0])
    assert rows["class", "mass", "AFROC"][0] == 2.5 / 4
    assert rows["class", "mass", "AFROC"][3] == "2 lesions, 2 images without"
    assert rows["class", "mass", "LROC"][0] == 0.5


def test_every_figure_has_an_interval_or_is_not_defined(four):
    found = assess(*four, AssessSettings(bootstrap=Bootstrap(20)))
    for name, figure in found.figures.items():
        assert np.isnan(figure.value) or not np.isnan(figure.low + figure.high), name
        assert figure.of, name


def test_the_interval_says_its_level(four):
    found = assess(*four, AssessSettings(bootstrap=Bootstrap(20, level=0.9)))
    assert found.report("x").interval == "90 % interval"


@pytest.mark.parametrize("unit", ["lesion", "breast", "case"])
def test_units_are_counted_in_the_slider_and_in_the_groups(unit):
    """One lesion in both views of one breast, hit in one: 1 of 1, not of 2 boxes."""
    images = [
        {"id": n, "width": 100, "height": 100, "patient_id": f"P{n // 2}", "laterality": "L",
         "view": ("CC", "MLO")[n % 2], "density": "A"}
        for n in range(4)
    ]  # fmt: skip
    lesions = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": LESION, "lesion_id": "1"} for n in (0, 1)
    ]
    categories = [{"id": 1, "name": "mass"}]
    study = read_study({"images": images, "annotations": lesions, "categories": categories})
    settings = AssessSettings(FrocSettings(unit=unit), bootstrap=None)
    found = assess(study, predictions_of(study, {0: [(HIT, 0.9)]}), settings)
    assert found.report("x").counter.num_units == 1
    table = next(t for t in found.part.tables if t.key == "strata")
    rows = [dict(zip(table.columns, row)) for row in table.rows]
    assert [row[settings.froc.units] for row in rows if row["group"] == "A"] == [1]


@pytest.mark.parametrize("name", ["all", "all classes", "$\\frac$"])
def test_a_class_may_have_any_name(name):
    images = [{"id": n, "width": 9, "height": 9} for n in range(3)]
    categories = [{"id": 1, "name": name}, {"id": 2, "name": "mass"}]
    lesions = [{"id": n, "image_id": n, "category_id": n + 1, "bbox": LESION} for n in (0, 1)]
    study = read_study({"images": images, "annotations": lesions, "categories": categories})
    found = assess(study, predictions_of(study, {0: [(HIT, 0.9)]}), AssessSettings(bootstrap=None))
    tables = {table.key: table for table in found.part.tables}
    assert [row[2] for row in tables["sensitivity"].rows[::8]] == [0.5, 1, 0]
    assert [row[2] for row in tables["f1"].rows] == [pytest.approx(2 / 3, abs=1e-4), 1, 0]
    assert all(plot.draw() for plot in found.part.plots)


def test_asked_for_sensitivities_stand_in_the_headline(four):
    found = assess(*four, AssessSettings(fppi=(0.5, 2.0), bootstrap=None))
    assert [n.name for n in found.part.numbers[:2]] == [
        "Sensitivity at 0.5 false positives per image",
        "Sensitivity at 2 false positives per image",
    ]


def test_one_patient_has_no_interval_and_it_says_so():
    study = study_of(1, lambda row: True)
    found = assess(study, predictions_of(study, {0: [(HIT, 0.9)]}))
    assert np.isnan(found.part.numbers[0].low)
    assert "intervals: they are over patients, and there is one only" in found.part.missing


@pytest.mark.parametrize("with_lesions", [True, False])
def test_nothing_predicted(with_lesions):
    study = study_of(4, lambda row: with_lesions and row == 0)
    found = assess(study, predictions_of(study, {}), AssessSettings(bootstrap=Bootstrap(20)))
    report = found.report("x")
    assert report.counter is None
    json.dumps(found.to_dict(), allow_nan=False)
    sensitivity = found.figures["sens@1"].value
    assert sensitivity == 0 if with_lesions else np.isnan(sensitivity)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"fppi": ()}, "fppi was"),
        ({"fppi": (0.0,)}, "fppi was"),
        ({"views": "median"}, "views was 'median'"),
        ({"max_dets": 0}, "max_dets was 0"),
    ],
)
def test_settings_that_are_not_possible(setting, said):
    with pytest.raises(UserError, match=said):
        AssessSettings(**setting)
