# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""FROC within groups: what is counted, by hand and against the FROC of a smaller data set."""

import numpy as np
import pytest

from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.froc import FrocSettings, froc
from detrex_mammo.evaluation.froc_bootstrap import froc_bootstrap
from detrex_mammo.evaluation.strata import UNKNOWN, froc_strata, groupings
from detrex_mammo.evaluation.study import as_study, read_study
from tests.evaluation.random_study import fast_data, random_annotations, random_found

CATEGORIES = [{"id": 3, "name": "mass"}, {"id": 7, "name": "calcification"}]


def study_of(images, boxes, categories=CATEGORIES):
    """Images by their keys; boxes as (image, class, bbox)."""
    images = [{"id": number, **image} for number, image in enumerate(images)]
    boxes = [{"image_id": i, "category_id": c, "bbox": b} for i, c, b in boxes]
    return read_study({"images": images, "annotations": boxes, "categories": categories})


def names_of(study, factor):
    """(names, group of each label) of one factor."""
    (found,) = (g for g in groupings(study) if g.factor == factor)
    return [found.names[row] for row in found.labels]


def test_sizes_in_millimetres_have_their_upper_bounds():
    """0.5 mm a row, 0.2 mm a column: 20 rows are 10 mm, 21 are 10.5; 50 columns are 10, 100 are 20,
    250 are 50, 251 are 50.2."""
    spaced, unknown = {"pixel_spacing": [0.5, 0.2]}, {}
    sizes = [(1, 20), (1, 21), (50, 1), (100, 1), (250, 1), (251, 1)]
    boxes = [(0, 3, [0, 0, w, h]) for w, h in sizes] + [(1, 3, [0, 0, 9, 9])]
    small, to_20, to_50, large = "<= 10 mm", "> 10 to 20 mm", "> 20 to 50 mm", "> 50 mm"
    expected = [small, to_20, small, to_20, to_50, large, UNKNOWN]
    assert names_of(study_of([spaced, unknown], boxes), "lesion size") == expected
    assumed = {**spaced, "pixel_spacing_is": "assumed"}
    assert names_of(study_of([assumed], boxes[:1]), "lesion size") == [
        "<= 10 mm, pixel spacing assumed"
    ]


def test_sizes_in_pixels_are_cocos():
    """Areas 32 * 31, 32 * 32, 96 * 95 and 96 * 96: small, medium, medium, large."""
    boxes = [(0, 3, [0, 0, w, h]) for w, h in ((32, 31), (32, 32), (96, 95), (96, 96))]
    small, medium, large = "below 32 x 32 pixels", "below 96 x 96 pixels", "from 96 x 96 pixels"
    assert names_of(study_of([{}], boxes), "lesion size") == [small, medium, medium, large]
    assert names_of(study_of([{}], []), "lesion size") == []


def test_factors_of_images_only_where_one_tells():
    study = study_of([{"density": "B", "view": "CC"}, {"density": "A"}, {}], [(0, 3, [0, 0, 9, 9])])
    assert [g.factor for g in groupings(study)] == [
        "class",
        "lesion size",
        "breast density",
        "view",
    ]
    density = groupings(study)[2]
    assert density.names == ("A", "B", UNKNOWN) and density.labels.tolist() == [1, 0, 2]
    assert density.of_lesions(study).tolist() == [1]


def by_name(strata):
    return {(s.factor, s.group): s for s in strata}


def test_by_hand():
    """Image 0, density A: a small mass, hit at 0.9, and a false mass at 0.8. Image 1, density B: a
    large calcification, hit at 0.6. Image 2, density B, no lesion: a false calcification at 0.7.

    All: (0, 1/2), (1/3, 1/2), (2/3, 1/2), (2/3, 1). Density A: (0, 1), (1, 1), one image. B: (1/2,
    0), (1/2, 1), two images. Small: the false positives of all images, (0, 1), (1/3, 1), (2/3, 1).
    Large: (0, 0), (1/3, 0), (2/3, 0), (2/3, 1). Mass: (0, 1), (1/3, 1). Calcification: (1/3, 0),
    (1/3, 1).
    """
    images = [{"density": "A"}, {"density": "B"}, {"density": "B"}]
    study = study_of(images, [(0, 3, [0, 0, 9, 9]), (1, 7, [0, 0, 200, 200])])
    far = [900, 900, 910, 910]
    found = {
        0: {"boxes": [[0, 0, 9, 9], far], "scores": [0.9, 0.8], "categories": [3, 3]},
        1: {"boxes": [[0, 0, 200, 200]], "scores": [0.6], "categories": [7]},
        2: {"boxes": [far], "scores": [0.7], "categories": [7]},
    }
    strata = by_name(froc_strata(study, found))
    third = 1 / 3
    expected = {
        ("class", "mass"): [(0, 0), (0, 1), (third, 1)],
        ("class", "calcification"): [(0, 0), (third, 0), (third, 1)],
        ("lesion size", "below 32 x 32 pixels"): [(0, 0), (0, 1), (third, 1), (2 / 3, 1)]
        + [(2 / 3, 1)],
        ("lesion size", "from 96 x 96 pixels"): [(0, 0), (0, 0), (third, 0), (2 / 3, 0)]
        + [(2 / 3, 1)],
        ("breast density", "A"): [(0, 0), (0, 1), (1, 1)],
        ("breast density", "B"): [(0, 0), (0.5, 0), (0.5, 1)],
    }
    assert set(strata) == set(expected)
    for name, points in expected.items():
        curve = strata[name].curve
        assert list(zip(curve.fppi, curve.sensitivity, strict=True)) == points, name
    density = strata["breast density", "B"]
    assert (density.curve.num_images, density.curve.num_lesions) == (2, 1)
    assert density.curve.num_negative_images == 1 and "group's images" in density.text
    assert strata["lesion size", "from 96 x 96 pixels"].curve.num_images == 3


def test_a_class_agnostic_froc_has_no_classes():
    study = study_of([{}], [(0, 3, [0, 0, 9, 9])])
    strata = froc_strata(study, {}, FrocSettings(class_aware=False))
    assert {s.factor for s in strata} == {"lesion size"}


@pytest.mark.parametrize("unit", ["lesion_view", "lesion", "breast", "case"])
@pytest.mark.parametrize("denominator", ["all", "negative"])
def test_image_strata_are_the_froc_of_their_images(unit, denominator):
    """The density's FROC equals that of a file with its images only; classes' equal per_class."""
    rng = np.random.default_rng(3)
    settings = FrocSettings(unit=unit, denominator=denominator)
    for _ in range(40):
        annotations = random_annotations(rng)
        for image in annotations["images"]:
            image["density"] = str(rng.choice(["A", "B"]))
        found = random_found(rng, annotations)
        study, table = fast_data(annotations, found)
        whole = froc(study, table, settings)
        for stratum in froc_strata(study, table, settings):
            if stratum.factor == "breast density":
                images = [i for i in annotations["images"] if i["density"] == stratum.group]
                ids = {image["id"] for image in images}
                part = {**annotations, "images": images}
                rows = {i: items for i, items in found.items() if i in ids}
                alone = froc(*fast_data(part, rows), settings).overall
                assert stratum.curve.to_dict() == alone.to_dict()
            elif stratum.factor == "class":
                category = int(stratum.group.removeprefix("class "))
                assert stratum.curve.to_dict() == whole.per_class[category].to_dict()


def test_intervals_come_from_the_same_replicates():
    """The classes' replicates equal those of froc_bootstrap."""
    rng = np.random.default_rng(4)
    study, table = fast_data(*_data(rng))
    strata = by_name(froc_strata(study, table, bootstrap=Bootstrap(20)))
    whole = froc_bootstrap(study, table, bootstrap=Bootstrap(20))
    for category, intervals in whole.per_class.items():
        if (study.lesions.categories == category).any():
            found = strata["class", f"class {category}"].intervals
            np.testing.assert_array_equal(found.replicates, intervals.replicates)
    assert froc_strata(as_study({}), {}) == []


def _data(rng):
    annotations = random_annotations(rng, num_images=12)
    return annotations, random_found(rng, annotations)
