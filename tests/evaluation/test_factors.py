# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Sensitivity of groups of lesions, worked by hand."""

from detrex_mammo.evaluation.factors import UNKNOWN, sensitivity_by_factor


def image(number: int, **known) -> dict:
    return {"id": number, "height": 100, "width": 100, **known}


def box(number: int, image_id: int, category: int, bbox: list[int]) -> dict:
    return {"id": number, "image_id": image_id, "category_id": category, "bbox": bbox}


def hit(image_id: int, category: int, bbox: list[int], score: float) -> dict:
    return {"image_id": image_id, "category_id": category, "bbox": bbox, "score": score}


SMALL, WIDE, OTHER = [10, 10, 10, 10], [40, 40, 40, 10], [20, 20, 10, 30]
TRUTH = {
    "images": [image(1, density="b", manufacturer="V"), image(2, density="d"), image(3)],
    "annotations": [box(1, 1, 1, SMALL), box(2, 1, 2, WIDE), box(3, 2, 1, OTHER)],
    "categories": [{"id": 1, "name": "mass"}, {"id": 2, "name": "cluster"}],
}
# By falling score: hit of SMALL, three false positives (1 per image), hit of WIDE, one false
# positive more (4 in 3 images), hit of OTHER: at 1 false positive per image OTHER is not found.
FOUND = [
    hit(1, 1, SMALL, 0.9),
    *(hit(3, 1, [80, 80, 5, 5], score) for score in (0.8, 0.75, 0.7)),
    hit(1, 2, WIDE, 0.6),
    hit(3, 1, [80, 80, 5, 5], 0.5),
    hit(2, 1, OTHER, 0.4),
]


def rows(truth: dict, fppi: float = 1.0) -> dict:
    found = sensitivity_by_factor(truth, FOUND, fppi=fppi)
    return {(row.factor, row.group): (row.num_lesions, row.num_found) for row in found}


def test_groups_at_one_threshold_by_hand() -> None:
    found = rows(TRUTH)
    assert found["class", "mass"] == (2, 1) and found["class", "cluster"] == (1, 1)
    assert found["breast density", "b"] == (2, 2) and found["breast density", "d"] == (1, 0)
    assert found["vendor", "V"] == (2, 2) and found["vendor", UNKNOWN] == (1, 0)
    assert found["view", UNKNOWN] == (3, 2)
    unit = "pixels, root of the area"
    assert found["lesion size", f"small: below 32 {unit}"] == (3, 2)
    assert rows(TRUTH, fppi=2.0)["class", "mass"] == (2, 2)


def test_sizes_in_millimetres_follow_rows_and_columns() -> None:
    """Rows 0.5 mm, columns 0.2 mm: SMALL 5 mm high, WIDE 8 mm wide, OTHER 15 mm high."""
    known = [{**item, "pixel_spacing": [0.5, 0.2]} for item in TRUTH["images"]]
    found = rows({**TRUTH, "images": known})
    assert found["lesion size", "small: below 10 mm"] == (2, 2)
    assert found["lesion size", "medium: 10 to 20 mm"] == (1, 0)
    assumed = [{**item, "pixel_spacing_is": "assumed"} for item in known]
    names = [group for factor, group in rows({**TRUTH, "images": assumed}) if "size" in factor]
    assert names[0] == "small: below 10 mm, pixel spacing assumed"


def test_sizes_are_listed_by_size_and_the_unknown_last() -> None:
    boxes = [box(n, 1, 1, [0, 0, side, side]) for n, side in enumerate((99, 10, 50))]
    found = sensitivity_by_factor({**TRUTH, "annotations": boxes}, FOUND)
    sizes = [row.group.split(":")[0] for row in found if row.factor == "lesion size"]
    assert sizes == ["small", "medium", "large"]
    both = sensitivity_by_factor(TRUTH, FOUND)
    assert [row.group for row in both if row.factor == "vendor"] == ["V", UNKNOWN]


def test_no_lesions_no_rows() -> None:
    assert sensitivity_by_factor({**TRUTH, "annotations": []}, FOUND) == []
