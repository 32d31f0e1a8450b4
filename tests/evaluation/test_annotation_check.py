# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""An annotation file that cannot be scored is one sentence, which names what is wrong."""

import copy

import pytest

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.annotation_check import check_annotations

GOOD = {
    "images": [
        {"id": 1, "width": 9, "height": 9, "pixel_spacing": [0.1, 0.1], "breast_box": [0, 0, 9, 9]},
        {"id": "two", "width": None},
    ],
    "annotations": [
        {"id": 7, "image_id": 1, "category_id": 3, "bbox": [1, 2, 3, 4.5], "area": None},
        {"image_id": "two", "category_id": 3, "bbox": [1, 2, 0, 0], "slice": 4},
    ],
    "categories": [{"id": 3, "name": "mass"}],
}


def test_a_good_file_passes():
    check_annotations(GOOD, "file a.json")
    check_annotations({"images": [], "annotations": [], "categories": []}, "file a.json")


def changed(key, row, **values):
    content = copy.deepcopy(GOOD)
    content[key][row].update(values)
    return content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "lacks images, annotations, categories"),
        ([], "lacks images"),
        ({**GOOD, "images": {}}, "images of file a.json is no list"),
        ({**GOOD, "annotations": [1]}, "annotations of file a.json is no list of objects"),
        ({**GOOD, "categories": None}, "categories of file a.json is no list"),
        (changed("images", 0, id=None), "image number 0 .* the id None"),
        (changed("images", 0, id=[1]), "the id \\[1\\], not a whole number or a text"),
        (changed("images", 1, id=1), "has the image id 1 twice"),
        (changed("images", 0, width=0), "image 1 .* width 0, but it is a number of pixels"),
        (changed("images", 0, pixel_spacing=[0.1]), "pixel_spacing \\[0.1\\], but it is two"),
        (changed("images", 0, pixel_spacing=[0.1, -1]), "pixel_spacing"),
        (changed("images", 0, breast_box="x"), "breast_box 'x'"),
        (changed("images", 0, slice="x"), "slice 'x', but it is a number"),
        (changed("categories", 0, id="3"), "category number 0 .* the id '3', not a whole number"),
        (changed("categories", 0, id=True), "the id True"),
        (changed("categories", 0, name=None), "category 3 .* name None, but it is a text"),
        (changed("categories", 0, name="\ud800"), "but it is a text"),
        (changed("annotations", 0, bbox=None), "annotation 7 .* bbox None"),
        (changed("annotations", 0, bbox=[1, 2, 3]), "bbox \\[1, 2, 3\\]"),
        (changed("annotations", 0, bbox=[1, 2, 3, float("nan")]), "finite pixels"),
        (changed("annotations", 0, bbox="abcd"), "bbox 'abcd'"),
        (changed("annotations", 0, area="x"), "area 'x', but it is a number"),
        (changed("annotations", 0, image_id=99), "image_id 99, which is not in the file"),
        (changed("annotations", 1, image_id=None), "annotation 'number 1' .* image_id None"),
        (changed("annotations", 0, category_id=[3]), "category_id \\[3\\], which is not"),
    ],
)
def test_what_is_wrong_is_named(content, said):
    with pytest.raises(UserError, match=said) as raised:
        check_annotations(content, "file a.json")
    assert "\n" not in str(raised.value)
