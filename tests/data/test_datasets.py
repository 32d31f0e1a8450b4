# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""COCO JSON to records: nothing a mammogram's record says is lost, nothing wrong passes."""

import json
import logging
import uuid
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from pycocotools.coco import COCO

from detrex_mammo.data.datasets import load_coco_json
from detrex_mammo.errors import UserError

EXTRA = {
    "patient_id": "P_00173",
    "study_id": "1.2.3",
    "laterality": "L",
    "view": "MLO",
    "pixel_spacing": [0.2, 0.2],
    "dataset": "demo",
    "breast_box": [1, 2, 30, 40],
    "chest_wall": "left",
    "simulated": True,
}


def content():
    """Two images, one of them negative; category ids as some tools write them."""
    return {
        "images": [
            {"id": 7, "file_name": "images/a.png", "height": 60, "width": 50, **EXTRA},
            {"id": 3, "file_name": "images/b.png", "height": 80, "width": 40, "secret": 1},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 9, "bbox": [10, 20, 5.5, 6], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 4, "bbox": [1, 2, 3, 4], "iscrowd": 1},
        ],
        "categories": [{"id": 9, "name": "calcification"}, {"id": 4, "name": "mass"}],
    }


@pytest.fixture
def load(tmp_path):
    """Writes a dict as JSON and loads it under a name of its own, forgotten afterwards."""
    names = []

    def write_and_load(data, name=None, file="a.json"):
        name = name or f"test_{uuid.uuid4().hex}"
        names.append(name)
        path = tmp_path / file
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        records = load_coco_json(name, str(path), str(tmp_path))
        return records, MetadataCatalog.get(name)

    yield write_and_load
    for name in set(names) & set(DatasetCatalog.list()):
        DatasetCatalog.remove(name)
    for name in set(names) & set(MetadataCatalog.list()):
        MetadataCatalog.remove(name)


def test_records_keep_what_the_image_says_and_negatives(load, tmp_path):
    (first, second), metadata = load(content())
    assert {key: first[key] for key in EXTRA} == EXTRA
    assert first["file_name"] == str(tmp_path / "images" / "a.png")
    assert (first["image_id"], first["height"], first["width"]) == (7, 60, 50)
    assert first["annotations"] == [
        {"bbox": [10, 20, 5.5, 6], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 0},
        {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 1},
    ]
    assert second == {
        "file_name": str(tmp_path / "images" / "b.png"),
        "height": 80,
        "width": 40,
        "image_id": 3,
        "annotations": [],
    }
    # By id, as detectron2 orders them: mass is 4, calcification 9.
    assert metadata.thing_classes == ["mass", "calcification"]
    assert metadata.thing_dataset_id_to_contiguous_id == {4: 0, 9: 1}


def test_boxes_and_ids_agree_with_pycocotools(load):
    rng = np.random.default_rng(0)
    data = content()
    data["annotations"] = [
        {"id": i, "image_id": int(image), "category_id": int(label), "bbox": box.tolist()}
        for i, (image, label, box) in enumerate(
            zip(rng.choice([3, 7], 40), rng.choice([4, 9], 40), rng.uniform(1, 19, (40, 4)))
        )
    ]
    records, metadata = load(data)
    coco = COCO(metadata.json_file)
    for record in records:
        expected = coco.loadAnns(coco.getAnnIds(imgIds=record["image_id"]))
        assert [a["bbox"] for a in record["annotations"]] == [a["bbox"] for a in expected]
        names = [metadata.thing_classes[a["category_id"]] for a in record["annotations"]]
        assert names == [coco.cats[a["category_id"]]["name"] for a in expected]


def test_the_catalog_gives_the_same_records(load):
    records, metadata = load(content())
    assert DatasetCatalog.get(metadata.name) is records  # not read a second time


def test_loading_twice_is_fine_another_file_is_not(load):
    records, metadata = load(content(), name="twice")
    again, _ = load(content(), name="twice")
    assert list(again) == list(records)
    assert DatasetCatalog.get("twice") is again
    with pytest.raises(UserError, match="name 'twice' is taken by .*a.json.*give .*b.json"):
        load(content(), name="twice", file="b.json")
    changed = content()
    changed["categories"][0]["name"] = "distortion"
    with pytest.raises(UserError, match="'twice' is registered with thing_classes"):
        load(changed, name="twice")


def test_boxes_that_leave_the_image_are_clipped_and_counted(load, caplog):
    data = content()
    for box in (
        [-5, 50, 10, 20],
        [45, -1, 10, 5],
        [10, 10, 0, 5],
        [60, 0, 5, 5],
        [1, 1, float("nan"), 1],
    ):
        data["annotations"].append({"image_id": 7, "category_id": 4, "bbox": box})
    with caplog.at_level(logging.WARNING):
        records, _ = load(data)
    assert [a["bbox"] for a in records[0]["annotations"][2:]] == [[0, 50, 5, 10], [45, 0, 5, 4]]
    messages = [r.getMessage() for r in caplog.records if r.name == "detrex_mammo.data.datasets"]
    assert len(messages) == 2
    assert "2 boxes left their image and were clipped" in messages[0]
    assert "3 boxes without area were dropped" in messages[1]


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda d: d.pop("images"), "no list 'images': it is not COCO"),
        (lambda d: d["images"].clear(), "lists no image"),
        (lambda d: d["categories"].clear(), "lists no category"),
        (lambda d: d["images"][1].pop("height"), "entry 1 of 'images' lacks height"),
        (lambda d: d["annotations"].append(5), "entry 2 of 'annotations' lacks image_id"),
        (lambda d: d["categories"][0].pop("name"), "entry 0 of 'categories' lacks name"),
        (lambda d: d["images"][1].update(id=7), "two images have the same id"),
        (lambda d: d["categories"][1].update(id=9), "two categories have the same id"),
        (lambda d: d["annotations"][0].update(category_id=5), "annotation 1 has category_id 5"),
        (lambda d: d["annotations"][0].update(image_id=8), "annotation 1 has image_id 8"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3]), "annotation 1 has bbox"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3, "x"]), "it is four numbers"),
        (lambda d: d["images"][0].update(chest_wall="top"), "chest_wall 'top'; use 'left'"),
        (lambda d: d["images"][0].update(breast_box=[5, 5, 5, 9]), "breast_box .* not empty"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_registered(load, change, message):
    data = content()
    change(data)
    name = f"wrong_{uuid.uuid4().hex}"
    with pytest.raises(UserError, match=message):
        load(data, name=name)
    assert name not in DatasetCatalog.list()


def test_files_that_are_no_json(load, tmp_path):
    for text in ("", '{"images": [', "[1, 2]"):
        with pytest.raises(UserError, match="is not whole JSON|it is not COCO"):
            load(text)
    with pytest.raises(UserError, match="does not exist: prepare the dataset first"):
        load_coco_json("none", str(tmp_path / "none.json"), "")
    with pytest.raises(UserError, match="is a folder"):
        load_coco_json("none", str(tmp_path), "")
    with pytest.raises(UserError, match="json_file of the dataset is not set"):
        load_coco_json("none", "", "")


def test_what_a_lesion_is_survives_registration(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "a.dcm", "height": 9, "width": 9, "frame": 3, "other": 1}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2], "score": 1}
    told = {"pathology": "malignant", "lesion_id": "L1", "source": "mask", "ignore": 0}
    content = {"images": [image], "annotations": [{**box, **told}]}
    file = tmp_path / "a.json"
    file.write_text(json.dumps({**content, "categories": [{"id": 1, "name": "mass"}]}))
    (record,) = load_coco_json("what_a_lesion_is", str(file), str(tmp_path))
    assert record["frame"] == 3
    kept = record["annotations"][0]
    assert {key: kept[key] for key in told} == told
    assert "score" not in kept
