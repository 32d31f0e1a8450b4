# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""COCO JSON in: merged files, kept keys, refused texts, hostile entries. Expected by hand."""

import copy
import json

import pytest

from detrex_mammo.data.convert.coco import convert
from detrex_mammo.errors import UserError
from tests.data.convert.bad_pictures import assert_reported, write_bad, write_good
from tests.data.convert.trees import boxes_of, images_of, reported, write_picture

POLYGON = [[1, 2, 5, 2, 5, 8]]
RLE = {"size": [40, 30], "counts": "abc"}
FIRST = {
    "images": [
        {"id": 7, "file_name": "a.png", "height": 40, "width": 30, "patient_id": "p1", "own": [1]},
        {"id": 3, "file_name": "b.png", "height": 40, "width": 30, "dataset": "theirs"},
    ],
    "annotations": [
        {"id": 5, "image_id": 7, "category_id": 9, "bbox": [1, 2, 4, 6], "area": 12.5}
        | {"segmentation": POLYGON, "iscrowd": 0, "lesion_id": "x", "category": "k", "self": 1},
        {"id": 9, "image_id": 7, "category_id": 2, "bbox": [0.5, 1, 2, 3], "iscrowd": 1}
        | {"segmentation": RLE, "ignore": 1, "source": "ellipse"},
    ],
    "categories": [
        {"id": 9, "name": "mass", "supercategory": "lesion"},
        {"id": 2, "name": "calcification"},
    ],
}
SECOND = {
    "images": [{"id": 7, "file_name": "c.png", "height": 40, "width": 30}],
    "annotations": [{"id": 5, "image_id": 7, "category_id": 2, "bbox": [3, 3, 3, 3]}],
    "categories": [{"id": 2, "name": "mass"}, {"id": 9, "name": "asymmetry"}],
}


@pytest.fixture
def folder(tmp_path):
    """A writer of JSON files beside images of 30 x 40."""
    for name in "abc":
        write_picture(tmp_path / f"{name}.png", (40, 30))

    def write(**contents):
        for name, content in contents.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        return tmp_path

    return write


def test_ids_are_new_categories_merge_by_name_and_every_key_stays(folder):
    root = folder(x=FIRST, y=SECOND)
    dataset = convert(root, root, name="mine")
    content = dataset.to_coco()
    assert content["categories"] == [
        {"id": 1, "name": "calcification"},
        {"id": 2, "name": "mass", "supercategory": "lesion"},
        {"id": 3, "name": "asymmetry"},
    ]
    size = {"height": 40, "width": 30, "bits_stored": 8}
    assert content["images"] == [
        {"id": 1, "file_name": "a.png", "dataset": "mine", "patient_id": "p1", "own": [1], **size},
        {"id": 2, "file_name": "b.png", "dataset": "theirs", **size},
        {"id": 3, "file_name": "c.png", "dataset": "mine", **size},
    ]
    first, second, third = content["annotations"]
    assert first == {
        **{"id": 1, "image_id": 1, "category_id": 2, "bbox": [1, 2, 4, 6], "area": 12.5},
        **{"segmentation": POLYGON, "iscrowd": 0, "lesion_id": "x", "category": "k", "self": 1},
        "source": "polygon",
    }
    assert second == {
        **{"id": 2, "image_id": 1, "category_id": 1, "bbox": [0.5, 1, 2, 3], "area": 6},
        **{"segmentation": RLE, "iscrowd": 1, "ignore": 1, "source": "ellipse"},
    }
    assert (third["image_id"], third["category_id"], third["source"]) == (3, 2, "box")
    assert not dataset.report.counts["dropped"] and not dataset.report.counts["fixed"]


def test_what_is_written_is_read_again_the_same(folder, tmp_path):
    root = folder(x=FIRST, y=SECOND)
    once = convert(root, root, name="mine").to_coco()
    again = convert(folder(whole=once), root, json=["whole.json"], name="mine")
    assert again.to_coco() == once


def test_an_image_of_two_files_is_one(folder):
    other = copy.deepcopy(SECOND)
    other["images"][0].update(file_name="./a.png", patient_id="p2", view="CC")
    root = folder(x=FIRST, y=other)
    dataset = convert(root, root)
    assert images_of(dataset, "patient_id", "view") == {"a.png": ("p1", "CC"), "b.png": (None,) * 2}
    assert [name for _, name, _ in boxes_of(dataset)] == ["mass", "calcification", "mass"]
    assert reported(dataset, "fixed") == {
        "images of several files, merged": 1,
        "patient_id that differs between entries of one image; the first counts": 1,
    }


def test_boxes_of_an_image_of_two_files_are_there_once(folder):
    root = folder(x=FIRST, y=FIRST)
    once, twice = convert(root, root, json=["x.json"]), convert(root, root)
    assert boxes_of(twice) == boxes_of(once)
    count = len(FIRST["annotations"])
    assert reported(twice, "dropped") == {"boxes that an earlier file has, too": count}


@pytest.mark.parametrize("placed", [True, False])
def test_cocos_own_folders_and_splits_by_the_files_names(tmp_path, placed):
    for split, content, names in (("train", FIRST, "ab"), ("val", SECOND, "c")):
        for name in names:
            write_picture(tmp_path / f"{split}2017/{name}.png", (40, 30))
        (tmp_path / "annotations").mkdir(exist_ok=True)
        path = tmp_path / f"annotations/instances_{split}2017.json"
        path.write_text(json.dumps(content))
    options = {"images_folder": ["train2017", "val2017"]} if placed else {}
    dataset = convert(tmp_path, tmp_path, **options)
    assert images_of(dataset, "split") == {
        "train2017/a.png": ("train",),
        "train2017/b.png": ("train",),
        "val2017/c.png": ("val",),
    }
    assert len(dataset.annotations) == 3


TEXTS = [
    ("images", "id", "7", "images whose id is text instead of a number"),
    ("images", "height", "40", "images whose height is text instead of a number"),
    ("annotations", "image_id", "7", "annotations whose image_id is text instead of a number"),
    (
        "annotations",
        "category_id",
        "9",
        "annotations whose category_id is text instead of a number",
    ),
    ("annotations", "bbox", [1, 2, "3", 4], "annotations whose bbox is text instead of a number"),
    ("annotations", "area", "3", "values of area that are text"),
    ("annotations", "iscrowd", "0", "values of iscrowd that are text"),
    ("categories", "id", "9", "categories whose id is text instead of a number"),
]


def test_of_files_that_nobody_named_those_of_coco_are_taken(folder):
    root = folder(a_report={"kept": {}}, x=FIRST, z_list=[1])
    dataset = convert(root, root)
    assert len(dataset.annotations) == 2
    assert reported(dataset, "dropped") == {"JSON files that are not COCO or damaged": 2}
    with pytest.raises(UserError, match="z_list.json' has no list 'images'"):
        convert(root, root, json=["x.json", "z_list.json"])


@pytest.mark.parametrize("kind,key,value,reason", TEXTS)
def test_numbers_as_text_are_refused_by_name(folder, kind, key, value, reason):
    content = copy.deepcopy(FIRST)
    content[kind][0][key] = value
    root = folder(x=content)
    dataset = convert(root, root)
    assert dataset.report.counts["dropped"][reason] == 1
    assert dataset.report.examples["dropped", reason] == [f"x.json: {kind}[0]" for _ in range(1)]
    if key in ("area", "iscrowd"):
        assert len(dataset.annotations) == 2 and dataset.annotations[0]["area"] in (12.5, 24)
    else:
        assert len(dataset.images) + len(dataset.annotations) < 4


def test_ids_that_are_names_are_taken(folder):
    content = json.loads(json.dumps(FIRST).replace('"id": 7', '"id": "im_7"'))
    content = json.loads(json.dumps(content).replace('"image_id": 7', '"image_id": "im_7"'))
    root = folder(x=content)
    assert len(convert(root, root).annotations) == 2


def test_entries_that_are_wrong_are_one_line_each(folder):
    content = copy.deepcopy(FIRST)
    content["images"] += [5, {"id": 8}, {"id": 7, "file_name": "c.png", "height": 40, "width": 30}]
    content["images"] += [{"id": True, "file_name": "c.png", "height": 40, "width": 30}]
    content["images"] += [{"id": 20, "file_name": "c.png", "height": 80, "width": 60}]
    good = {"image_id": 7, "category_id": 9, "bbox": [1, 2, 3, 4]}
    content["annotations"] += [
        *(None, good | {"bbox": [1, 2, 3]}, good | {"bbox": [1, 2, 3, 10**400]}),
        *(good | {"image_id": 99}, good | {"category_id": 99}, good | {"image_id": 20}),
        *(good | {"bbox": [1, 2, float("nan"), 4]}, good | {"bbox": [1, 2, 0, 4]}),
        good | {"bbox": None, "segmentation": POLYGON},
        good | {"bbox": None, "segmentation": [[1, "a"]]},
        good | {"source": "reader 3"},
    ]
    content["categories"] += [{"id": 4}, {"id": 9, "name": "again"}, "mass"]
    root = folder(x=content)
    dataset = convert(root, root, damaged_labels="keep")
    assert [a["bbox"] for a in dataset.annotations[2:]] == [[1, 2, 4, 6], [1, 2, 3, 4]]
    assert dataset.annotations[3]["source_in_file"] == "reader 3"
    assert reported(dataset, "dropped") == {
        "images without an id, a file_name, a height and a width": 3,
        "images whose id is there twice": 1,
        "images of another size than their labels say": 1,
        "annotations without an image_id, a category_id and a bbox of four numbers": 4,
        "annotations of an image_id that is not listed": 1,
        "annotations of a category_id that is not listed": 1,
        "annotations of images that were dropped": 1,
        "boxes with a value that is no number": 1,
        "boxes without area in the image": 1,
        "categories without an id and a name": 2,
        "categories whose id is there twice": 1,
    }
    assert reported(dataset, "fixed") == {
        "boxes taken from a polygon": 1,
        "values of source that the schema lacks, now source_in_file": 1,
    }


def test_hostile_and_damaged_files_are_one_line_each(tmp_path):
    good, bad = write_good(tmp_path), write_bad(tmp_path)
    files = [*good, *bad, "../../etc/passwd", "/etc/hostname", "none.png", "z" * 999]
    images = [
        {"id": index, "file_name": name, "height": 40, "width": 30, "split": "../out"}
        for index, name in enumerate(files)
    ]
    images[0]["split"], images[1]["patient_id"] = ["train"], {"a": 1}
    for image in images[-3:]:
        del image["height"], image["width"]
    content = {**FIRST, "images": images, "annotations": []}
    (tmp_path / "x.json").write_text(json.dumps(content))
    dataset = convert(tmp_path, tmp_path)
    assert sorted(images_of(dataset)) == good
    assert not any("split" in image for image in dataset.images)
    assert_reported(dataset, {k: v for k, v in bad.items() if k != "bad_dot.png"})
    dropped = reported(dataset, "dropped")
    assert dropped["images: smaller than 16 pixels"] == 1
    assert dropped["paths that are empty or lead out of the folder"] == 2
    assert dropped["listed images that do not exist"] == 2
    assert dropped["values of split that cannot be a file's name"] == len(good) - 1
    assert dropped["values of split that are a list or table"] == 1
    assert dropped["values of patient_id that are a list or table"] == 1
    dataset.write(tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["annotations.json", "report.json"]


def test_images_are_not_looked_at_if_the_json_is_trusted(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(FIRST))
    dataset = convert(tmp_path, tmp_path, no_image_files=True)
    assert images_of(dataset, "height", "width") == {"a.png": (40, 30), "b.png": (40, 30)}
    assert len(dataset.annotations) == 2
    assert convert(tmp_path, tmp_path).images == []


@pytest.mark.parametrize(
    "text,options,message",
    [
        ("{", {}, "is no whole JSON"),
        ("[" * 100_000, {}, "is no whole JSON"),
        ("", {}, "is no whole JSON"),
        ("[1]", {}, "has no list 'images': it is not COCO"),
        ('{"images": [], "annotations": {}, "categories": []}', {}, "no list 'annotations'"),
        ("{}", {"json": ["none.json"]}, "none.json' does not exist"),
        (json.dumps(FIRST), {"images_folder": ["a", "b"]}, "names 2 folders for 1 files"),
    ],
)
def test_files_that_are_no_coco_end_in_one_sentence(tmp_path, text, options, message):
    with pytest.raises(UserError, match="holds no JSON file"):
        convert(tmp_path, tmp_path)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=message):
        convert(tmp_path, tmp_path, **options)
