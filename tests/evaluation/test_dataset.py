# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A test set of other classes than the model's is scored in the model's."""

import json
import logging

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from detrex_mammo.data.datasets import load_coco_json
from detrex_mammo.evaluation.coco import MammographyCOCOEvaluator
from detrex_mammo.evaluation.dataset import dataset_category_ids, in_model_classes
from detrex_mammo.evaluation.froc_evaluator import FROCEvaluator

NAME = "evaluation_dataset_classes"
CONTENT = {
    "images": [{"id": i, "file_name": f"{i}.png", "height": 99, "width": 99} for i in (1, 2)],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 5, "bbox": [10, 10, 20, 20]},
        {"id": 2, "image_id": 1, "category_id": 7, "bbox": [60, 60, 20, 20]},
        {"id": 3, "image_id": 2, "category_id": 6, "bbox": [40, 10, 20, 30]},
        {"id": 4, "image_id": 2, "category_id": 8, "bbox": [10, 60, 30, 30]},
    ],
    "categories": [
        {"id": 5, "name": "Mass"},
        {"id": 6, "name": "cluster"},
        {"id": 7, "name": "mass"},
        {"id": 8, "name": "marker"},
    ],
}
# The model's: 0 calcification, 1 cyst (nobody looked for it here), 2 mass.
CLASSES = ["calcification", "cyst", "mass"]
CLASS_MAP = {"Mass": "mass", "cluster": "calcification", "marker": None}
FOUND = {1: [(2, [10, 10, 30, 30]), (2, [60, 60, 80, 80])], 2: [(0, [40, 10, 60, 40])]}


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(CONTENT))
    load_coco_json(NAME, str(tmp_path / "a.json"), "", CLASSES, CLASS_MAP)
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def score(evaluator, found):
    evaluator.reset()
    for image_id, rows in found.items():
        instances = Instances((99, 99))
        instances.pred_boxes = Boxes(torch.tensor([box for _, box in rows], dtype=torch.float32))
        instances.pred_classes = torch.tensor([label for label, _ in rows])
        instances.scores = torch.linspace(0.9, 0.8, len(rows))
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()


def test_ids_and_truth(dataset):
    """5 and 7 are one class, whose id is that of the category with its name; 8 is left out; 1 is
    no id of the file."""
    assert dataset_category_ids(dataset, [5, 6, 7, 8]) == [6, 1, 7]
    truth = in_model_classes(CONTENT, dataset)
    assert [(a["id"], a["category_id"]) for a in truth["annotations"]] == [(1, 7), (2, 7), (3, 6)]
    named = {category["id"]: category["name"] for category in truth["categories"]}
    assert named == {6: "calcification", 7: "mass"}
    assert truth["images"] == CONTENT["images"] and len(CONTENT["annotations"]) == 4


def test_a_perfect_model_is_perfect(dataset, tmp_path, caplog):
    """Also when it finds a cyst with certainty: the data set says nothing about cysts."""
    found = {**FOUND, 2: [(1, [0, 0, 9, 9]), *FOUND[2]]}
    with caplog.at_level(logging.WARNING):
        coco = score(MammographyCOCOEvaluator(dataset, str(tmp_path), distributed=False), found)
        froc = score(FROCEvaluator(dataset, distributed=False), found)
    assert coco["bbox"]["AP"] == coco["bbox"]["AP-mass"] == pytest.approx(100)
    assert {key for key in coco["bbox"] if key.startswith("AP-")} == {"AP-mass", "AP-calcification"}
    assert froc["froc"]["cpm"] == 1 and froc["froc"]["num_lesions"] == 3
    assert froc["froc"]["num_predictions"] == 3
    assert caplog.text.count("1 predictions are of classes that") == 2
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert sorted(record["category_id"] for record in written) == [6, 7, 7]


def test_half_of_the_lesions(dataset):
    """Of the two masses, which were two categories, one is missed: 1 of 2, and 2 of 3 in all."""
    froc = score(FROCEvaluator(dataset, distributed=False), {1: FOUND[1][:1], 2: FOUND[2]})
    assert froc["froc"]["sens@1-mass"] == 0.5
    assert froc["froc"]["sens@1"] == pytest.approx(2 / 3)


def test_a_data_set_with_its_own_classes_stays(tmp_path):
    (tmp_path / "b.json").write_text(json.dumps(CONTENT))
    load_coco_json("evaluation_own_classes", str(tmp_path / "b.json"), "")
    assert in_model_classes(CONTENT, "evaluation_own_classes") is CONTENT
    assert dataset_category_ids("evaluation_own_classes", []) == [5, 6, 7, 8]
    assert in_model_classes(CONTENT, "evaluation_never_registered") is CONTENT
