# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Every fault is found, counted exactly, and gone from the repaired copy."""

import json

import pytest

from detrex_mammo.data.check import check_datasets, fix_datasets, write_report
from detrex_mammo.errors import UserError
from tests.data.coco_files import box, image, write


def found(checked):
    """{what: count} of the errors, and of the warnings."""
    rows = checked.findings.to_list()
    return [
        {row["what"]: row["count"] for row in rows if row["level"] == level}
        for level in ("error", "warning")
    ]


def check(*paths):
    return check_datasets(paths, pixels=False)


def sound(path, first=1, **more):
    images = [image(first + n, **more) for n in range(3)]
    return write(path, images, [box(first, first), box(first + 1, first + 1, category_id=2)])


def test_a_sound_file_has_nothing(tmp_path):
    checked = check(sound(tmp_path / "train.json"), sound(tmp_path / "val.json", first=4))
    assert found(checked) == [{}, {}]
    assert "nothing found" in checked.describe()
    assert "train.json (train): 3 images of 3 patients, 2 with boxes; 2 boxes: 1 mass" in (
        checked.describe()
    )


# entries of annotations that are faulty in one way each, and what that is called
FAULTY = [
    ("text", "annotations that are no objects"),
    (None, "annotations that are no objects"),
    ([1, 2], "annotations that are no objects"),
    (box(10, 99), "boxes of an image that the file does not list"),
    (box(10, ...), "boxes of an image that the file does not list"),
    (box(10, [1]), "boxes of an image that the file does not list"),
    (box(10, 2, category_id=9), "boxes of a category that the file does not list"),
    (box(10, 2, category_id={}), "boxes of a category that the file does not list"),
    (box(10, 2, (float("nan"), 2, 3, 4)), "boxes that are not four finite numbers"),
    (box(10, 2, (1, 2, float("inf"), 4)), "boxes that are not four finite numbers"),
    (box(10, 2, (1, 2, 3)), "boxes that are not four finite numbers"),
    (box(10, 2, (1, 2, 3, 4, 5)), "boxes that are not four finite numbers"),
    (box(10, 2, (1, 2, None, 4)), "boxes that are not four finite numbers"),
    (box(10, 2, (1, 2, [3], 4)), "boxes that are not four finite numbers"),
    (box(10, 2, (1, 2, 10**400, 4)), "boxes that are not four finite numbers"),
    (box(10, 2, "1234"), "boxes that are not four finite numbers"),
    (box(10, 2, {"x": 1, "y": 2, "w": 3, "h": 4}), "boxes that are not four finite numbers"),
    (box(10, 2, ...), "boxes that are not four finite numbers"),
    (box(10, 2, (5, 5, 0, 10)), "boxes without area (width or height is 0 or less)"),
    (box(10, 2, (50, 50, -20, 10)), "boxes without area (width or height is 0 or less)"),
    (box(10, 2, (70, 5, 10, 10)), "boxes outside of their image"),
    (box(10, 2, (-30, 5, 30, 10)), "boxes outside of their image"),
    (box(10, 2, (5, 90, 10, 10)), "boxes outside of their image"),
    (box(10, 1), "boxes that are there twice"),
    (box(10, 2, (60, 5, 20, 10)), "boxes that leave their image by more than 1 pixel"),
    (box(10, 2, (-3, 5, 20, 10)), "boxes that leave their image by more than 1 pixel"),
    (box(10, 2, ("1", "2", "30", "40")), "boxes whose numbers are text"),
    (box(1, 2), "annotation ids that are there twice, or missing"),
]


@pytest.mark.parametrize(("entry", "what"), FAULTY)
def test_each_fault_of_a_box_is_the_only_one(entry, what, tmp_path):
    good = [box(1, 1), box(2, 2, category_id=2)]
    path = write(tmp_path / "train.json", [image(n) for n in (1, 2, 3)], [*good, entry])
    errors, _ = found(check(path))
    errors.pop("annotation ids that are there twice, or missing", None)
    expected = {} if what.startswith("annotation ids") else {what: 1}
    assert errors == expected
    assert check(path).findings.num_errors >= 1
    repaired = check_datasets(fix_datasets(check(path), tmp_path / "fixed"), pixels=False)
    assert found(repaired)[0] == {}
    kept = json.loads((tmp_path / "fixed" / "train.json").read_text())["annotations"]
    is_repairable = what in [w for _, w in FAULTY[-4:]]
    assert len(kept) == 2 + is_repairable
    assert [a["bbox"] for a in kept[:2]] == [[10, 20, 30, 40]] * 2


def test_boxes_are_cut_and_numbers_made_numbers(tmp_path):
    boxes = [
        box(1, 1, (60, 5, 20, 10)),
        box(2, 1, (-3, -4, 20, 10), category_id=2),
        box(3, 1, ("1", "2", "30", "40")),
        box(4, 1, (0, 0, 70.4, 90)),
    ]
    path = write(tmp_path / "a.json", [image(1)], boxes)
    errors, warnings = found(check(path))
    assert errors == {
        "boxes that leave their image by more than 1 pixel": 2,
        "boxes whose numbers are text": 1,
    }
    assert warnings == {"boxes that leave their image by up to 1 pixel": 1}
    fix_datasets(check(path), tmp_path / "fixed")
    kept = json.loads((tmp_path / "fixed" / "a.json").read_text())["annotations"]
    assert [a["bbox"] for a in kept] == [
        [60, 5, 10, 10], [0, 0, 17, 6], [1, 2, 30, 40], [0, 0, 70, 90]
    ]  # fmt: skip
    assert [a["area"] for a in kept] == [100, 102, 1200, 6300]
    log = (tmp_path / "fixed" / "a.json.log").read_text().splitlines()
    assert len(log) == 4
    assert log[0].startswith("annotation 0 changed: its box is cut")


@pytest.mark.parametrize(
    ("entry", "what"),
    [
        ("text", "images without id or file_name"),
        (image(..., patient="P"), "images without id or file_name"),
        (image([3]), "images without id or file_name"),
        (image(3, file_name=7), "images without id or file_name"),
        (image(3, height=...), "images whose height and width are no positive whole numbers"),
        (image(3, width=0), "images whose height and width are no positive whole numbers"),
        (image(3, width="70"), "images whose height and width are no positive whole numbers"),
        (image(3, width=70.5), "images whose height and width are no positive whole numbers"),
        (image(3, width=float("inf")),
         "images whose height and width are no positive whole numbers"),
        (image(3, file_name="../../etc/passwd"),
         "file names that lead out of the dataset's folder"),
        (image(3, file_name="a/../../b.png"), "file names that lead out of the dataset's folder"),
        (image(3, file_name="..\\b.png"), "file names that lead out of the dataset's folder"),
        (image(3, file_name="/etc/passwd"), "file names that lead out of the dataset's folder"),
        (image(3, file_name="a\0b"), "file names that lead out of the dataset's folder"),
        (image(3, file_name="./1.png"), "files that two images of a JSON name"),
    ],
)  # fmt: skip
def test_each_fault_of_an_image_is_found_and_left_out(entry, what, tmp_path):
    boxes = [box(1, 1), box(2, 3, category_id=2)]
    path = write(tmp_path / "a.json", [image(1), image(2), entry], boxes)
    errors, _ = found(check(path))
    errors.pop("boxes of an image that the file does not list", None)
    assert errors == {what: 1}
    fix_datasets(check(path), tmp_path / "fixed")
    fixed = json.loads((tmp_path / "fixed" / "a.json").read_text())
    assert [i["id"] for i in fixed["images"]] == [1, 2]
    assert [a["id"] for a in fixed["annotations"]] == [1]


def test_two_images_of_one_id_are_both_left_out_unless_they_are_one(tmp_path):
    images = [image(1), image(1, file_name="b.png"), image(2), image(2), image(3)]
    path = write(tmp_path / "a.json", images, [box(1, 1), box(2, 2), box(3, 3, category_id=2)])
    assert found(check(path))[0] == {"image ids that are there twice": 2}
    fix_datasets(check(path), tmp_path / "fixed")
    fixed = json.loads((tmp_path / "fixed" / "a.json").read_text())
    assert [i["id"] for i in fixed["images"]] == [2, 3]
    assert [a["image_id"] for a in fixed["annotations"]] == [2, 3]


def test_ids_of_text_become_numbers(tmp_path):
    images = [image("x", file_name="x.png"), image("1", file_name="y.png")]
    path = write(tmp_path / "a.json", images, [box(1, "1"), box(2, "x", category_id=2)])
    assert found(check(path))[0] == {"image ids that are no whole numbers": 2}
    fixed = fix_datasets(check(path), tmp_path / "fixed")[0]
    assert found(check(fixed))[0] == {}
    content = json.loads(fixed.read_text())
    names = {i["id"]: i["file_name"] for i in content["images"]}
    assert [names[a["image_id"]] for a in content["annotations"]] == ["y.png", "x.png"]


def test_categories(tmp_path):
    def categories_found(entries, annotations):
        return found(check(write(tmp_path / "a.json", [image(1)], annotations, entries)))

    one = [box(1, 1)]
    errors, warnings = categories_found([{"id": 1, "name": "a"}, {"id": 4, "name": "b"}], one)
    assert (errors, warnings) == (
        {}, {"gaps in the category ids": 1, "categories without any box": 1}
    )  # fmt: skip
    errors, _ = categories_found([{"id": 1, "name": "a"}, {"id": 1, "name": "a"}], one)
    assert errors == {
        "category ids that are there twice": 1, "category names that are there twice": 1
    }  # fmt: skip
    for entry in (
        {"id": "2", "name": "b"},
        {"id": 2},
        {"name": "b"},
        "b",
        {"id": [2], "name": "b"},
    ):
        errors, _ = categories_found([{"id": 1, "name": "a"}, entry], one)
        assert errors == {
            "categories whose id is no whole number or whose name is no text": 1 + (entry == "b")
        }


def test_imbalance_is_a_warning(tmp_path):
    boxes = [box(n, 1, (n, 5, 20, 20), category_id=1 + (n == 0)) for n in range(12)]
    path = write(tmp_path / "a.json", [image(1)], boxes)
    assert found(check(path)) == [{}, {"classes more than 10 times rarer than another": 1}]
    assert "11 of mass, 1 of calcification" in check(path).describe()
    path = write(tmp_path / "a.json", [image(1)], boxes[:11])  # exactly 10 times
    assert found(check(path)) == [{}, {}]


def test_other_categories_in_another_file_of_the_data_set(tmp_path):
    swapped = [{"id": 1, "name": "calcification"}, {"id": 2, "name": "mass"}]
    boxes = [box(1, 1), box(2, 1, (1, 2, 30, 40), category_id=2)]
    first = write(tmp_path / "train.json", [image(1, dataset="A")], boxes)
    for dataset, expected in (("A", 2), ("B", 0)):
        second = write(
            tmp_path / "val.json",
            [image(1, "Q", dataset=dataset, file_name="q.png")],
            boxes,
            swapped,
        )
        errors, _ = found(check(first, second))
        assert errors.get("categories that are not the same in all files of a data set", 0) == (
            expected
        )


def test_the_whole_table_and_the_report(tmp_path):
    path = write(tmp_path / "a.json", [image(1)], [box(n, 99) for n in range(1000)])
    checked = check(path)
    text = checked.describe()
    assert "1000" in text and len(text) < 1500
    write_report(checked, tmp_path / "report.json")
    rows = json.loads((tmp_path / "report.json").read_text())
    assert [(r["level"], r["count"]) for r in rows if "does not list" in r["what"]] == [
        ("error", 1000)
    ]
    assert len(rows[0]["examples"]) == 5


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([], "holds a list"),
        ({}, "lists no images"),
        ({"images": [], "annotations": [], "categories": []}, "lists no images"),
        ({"images": {"1": {}}, "annotations": [], "categories": []}, "no list 'images'"),
        ({"images": None}, "no list 'images'"),
        ({"images": [1], "annotations": 3}, "no list 'annotations'"),
        ({"images": [1], "annotations": []}, "lists no categories"),
    ],
)
def test_what_is_not_coco_is_one_sentence(content, told, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=told):
        check(path)


def test_hostile_names_break_no_line_of_the_table_or_the_log(tmp_path):
    entry = image(1, file_name="a\nb\x1b[31m.png", width=0)
    path = write(tmp_path / "a.json", [entry, image(2)], [box(1, 2), box(2, 1, category_id=2)])
    checked = check(path)
    assert "\x1b" not in checked.describe()
    fix_datasets(checked, tmp_path / "fixed")
    log = (tmp_path / "fixed" / "a.json.log").read_text()
    assert len(log.splitlines()) == 2 and "\x1b" not in log


def test_mistakes_in_the_command_are_one_sentence(tmp_path):
    path = sound(tmp_path / "a.json")
    other = sound(tmp_path / "b" / "a.json", first=4)
    with pytest.raises(UserError, match="named twice"):
        check(path, path)
    with pytest.raises(UserError, match="2 image roots for 1"):
        check_datasets([path], [tmp_path, tmp_path])
    with pytest.raises(UserError, match="--workers is 0"):
        check_datasets([path], workers=0)
    with pytest.raises(UserError, match="would overwrite"):
        fix_datasets(check(path), tmp_path)
    with pytest.raises(UserError, match="two files are named 'a.json'"):
        fix_datasets(check(path, other), tmp_path / "fixed")
