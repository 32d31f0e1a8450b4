# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What converters fill: valid COCO JSON with extra keys, and a report of every loss."""

import json
import os
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from detrex_mammo.data.convert.dataset import Dataset
from detrex_mammo.errors import UserError


def filled() -> Dataset:
    dataset = Dataset("set", ["mass", "calcification"])
    image = dataset.add_image(
        "a/1.png", 100, 80, patient_id="p1", view="CC", laterality="L", birads="", density=None
    )
    dataset.add_box(image, (10, 20, 30, 40), "mass", "mask", lesion_id="x", pathology=None)
    dataset.add_image("b.png", 50, 40, patient_id="p2")
    return dataset


def test_it_is_coco_with_extra_keys(tmp_path: Path) -> None:
    (file,) = filled().write(tmp_path)
    coco = COCO(str(file))
    assert coco.loadImgs(1)[0] == {
        "id": 1, "file_name": "a/1.png", "height": 100, "width": 80, "dataset": "set",
        "patient_id": "p1", "view": "CC", "laterality": "L",
    }  # fmt: skip
    assert coco.loadAnns(1)[0] == {
        "id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 40], "area": 1200,
        "iscrowd": 0, "source": "mask", "lesion_id": "x",
    }  # fmt: skip
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["mass", "calcification"]
    assert len(coco.getImgIds()) == 2  # the one without lesions stays


def test_boxes_are_cut_or_dropped_and_told() -> None:
    dataset = filled()
    image = dataset.images[0]
    assert dataset.add_box(image, (-5, 90, 20, 20), "mass")["bbox"] == [0, 90, 15, 10]
    for box in ((80, 0, 5, 5), (0, 0, 0, 9), (0, 0, -3, 9), (float("nan"), 0, 1, 1)):
        assert dataset.add_box(image, box, "mass") is None
    told = dataset.report.to_dict()
    assert told["fixed"]["boxes cut at the image's border"]["count"] == 1
    assert told["dropped"]["boxes without area in the image"]["count"] == 3
    assert told["dropped"]["boxes with a value that is no number"]["examples"] == ["a/1.png"]
    assert "boxes without area in the image" in dataset.report.describe()


def test_splits_are_files_and_nothing_is_lost_silently(tmp_path: Path) -> None:
    dataset = Dataset("set")
    for number, split in enumerate(["train", "val", "train", None]):
        image = dataset.add_image(f"{number}.png", 10, 10, split=split)
        dataset.add_box(image, (1, 1, 2, 2), f"class {number}")
    files = dataset.write(tmp_path)
    assert [file.name for file in files] == ["train.json", "val.json"]
    train = json.loads(files[0].read_text())
    assert [image["file_name"] for image in train["images"]] == ["0.png", "2.png"]
    assert [box["image_id"] for box in train["annotations"]] == [1, 3]
    assert len(train["categories"]) == 4  # the same in every file
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["dropped"]["images without a split"]["examples"] == ["3.png"]


def test_names_that_are_no_text_are_told_in_one_line(tmp_path: Path) -> None:
    dataset = Dataset("x", ["mass"])
    name = os.fsdecode(b"images/\xff\n.png")
    image = dataset.add_image(name, 60, 40)
    dataset.add_box(image, (50, 0, 5, 5), "mass")
    (file,) = dataset.write(tmp_path)
    assert json.loads(file.read_text())["images"][0]["file_name"] == name
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["dropped"]["boxes without area in the image"]["examples"] == ["images/??.png"]
    assert "images/??.png" in dataset.report.describe().encode().decode()


@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "a/../../x.png"])
def test_no_file_outside_the_folder(name: str) -> None:
    with pytest.raises(UserError, match="leads out of the dataset's folder"):
        Dataset("set").add_image(name, 1, 1)


@pytest.mark.parametrize("split", ["../x", "a/b", ".", "", "x" * 99])
def test_a_split_names_a_file(split: str) -> None:
    if split == "":
        assert "split" not in Dataset("set").add_image("x.png", 1, 1, split=split)
        return
    with pytest.raises(UserError, match="no name for a file"):
        Dataset("set").add_image("x.png", 1, 1, split=split)


def test_a_category_that_was_not_chosen() -> None:
    dataset = filled()
    with pytest.raises(UserError, match="'node' is not among those chosen: mass, calcification"):
        dataset.add_box(dataset.images[0], (1, 1, 2, 2), "node")
