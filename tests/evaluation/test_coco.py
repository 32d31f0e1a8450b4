# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""COCO's numbers against pycocotools called plainly, on the same boxes."""

import json
import logging
import math
import sys

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.coco import (
    MammographyCOCOEvaluator,
    coco_numbers,
    coco_of,
    score_boxes,
)
from tests.evaluation.small_dataset import (
    CATEGORIES,
    CROP_AND_FLIP,
    annotations,
    evaluate,
    predictions,
    register,
)

TWELVE = "AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl".split()


def plain_pycocotools(truth, found):
    """The twelve stats and each class's AP in percent, by loadRes and summarize."""
    coco = COCO()
    coco.dataset = json.loads(json.dumps(truth))
    coco.createIndex()
    ids = [category["id"] for category in truth["categories"]]
    records = []
    for image_id, (boxes, scores, classes) in found.items():
        for (x1, y1, x2, y2), score, label in zip(
            boxes.astype(np.float64).tolist(), scores, classes, strict=True
        ):
            bbox = [x1, y1, x2 - x1, y2 - y1]
            row = {"image_id": image_id, "category_id": ids[label], "bbox": bbox}
            records.append({**row, "score": float(np.float32(score))})
    coco_eval = COCOeval(coco, coco.loadRes(records), "bbox")
    coco_eval.evaluate()
    coco_eval.accumulate()
    coco_eval.summarize()
    stats = [value * 100 if value > -1 else math.nan for value in coco_eval.stats.tolist()]
    numbers = dict(zip(TWELVE, stats, strict=True))
    for category in truth["categories"]:
        one = COCOeval(coco, coco.loadRes(records), "bbox")
        one.params.catIds = [category["id"]]
        one.evaluate()
        one.accumulate()
        one.summarize()
        value = one.stats[0]
        numbers[f"AP-{category['name']}"] = value * 100 if value > -1 else math.nan
    return numbers


def same(results, expected):
    assert list(results) == list(expected)
    np.testing.assert_allclose(
        list(results.values()), list(expected.values()), rtol=1e-12, atol=0, equal_nan=True
    )


@pytest.mark.parametrize("categories", [CATEGORIES, CATEGORIES[:1]], ids=["two", "one"])
def test_identical_to_pycocotools(tmp_path, categories):
    rng = np.random.default_rng(5)
    truth = annotations(rng, categories=categories)
    found = predictions(rng, truth)
    name = register(truth, tmp_path)
    results = evaluate(MammographyCOCOEvaluator(name, output_dir=str(tmp_path / "out")), found)
    same(results["bbox"], plain_pycocotools(truth, found))
    assert 10 < results["bbox"]["AP50"] < 95  # the case is neither trivial nor perfect


def test_more_than_a_hundred_predictions(tmp_path):
    """The best 100 of an image and class are scored, as COCO does; all of them are written."""
    rng = np.random.default_rng(6)
    truth = annotations(rng, num_images=4, per_image=30)
    found = predictions(rng, truth, false_per_image=300)
    name = register(truth, tmp_path)
    results = evaluate(MammographyCOCOEvaluator(name, output_dir=str(tmp_path)), found)
    same(results["bbox"], plain_pycocotools(truth, found))
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert len(written) == sum(len(boxes) for boxes, _, _ in found.values()) > 800
    wide = evaluate(MammographyCOCOEvaluator(name, max_dets_per_image=300), found)["bbox"]
    assert wide["AR300"] > results["bbox"]["AR100"] and "AR100" not in wide


def test_boxes_are_mapped_to_the_original_image(tmp_path):
    """Crop and flip change nothing, in the numbers or in the file."""
    rng = np.random.default_rng(7)
    truth = annotations(rng)
    found = predictions(rng, truth)
    name = register(truth, tmp_path)
    plain = evaluate(MammographyCOCOEvaluator(name, output_dir=str(tmp_path / "a")), found)
    mapped = MammographyCOCOEvaluator(name, output_dir=str(tmp_path / "b"))
    mapped = evaluate(mapped, found, CROP_AND_FLIP)
    files = [tmp_path / folder / "coco_instances_results.json" for folder in "ab"]
    first, second = (json.loads(file.read_text()) for file in files)
    assert [r["category_id"] for r in first] == [r["category_id"] for r in second]
    np.testing.assert_allclose(
        [r["bbox"] for r in first], [r["bbox"] for r in second], rtol=0, atol=1e-3
    )  # float32 boxes of several hundred pixels
    np.testing.assert_allclose(
        list(mapped["bbox"].values()), list(plain["bbox"].values()), rtol=0, atol=1e-6
    )


def test_nothing_predicted_is_zero(tmp_path):
    """As pycocotools says of an empty model: 0 where there is ground truth, no crash."""
    truth = annotations(np.random.default_rng(8))
    found = {image["id"]: (np.zeros((0, 4), np.float32), [], []) for image in truth["images"]}
    name = register(truth, tmp_path)
    results = evaluate(MammographyCOCOEvaluator(name, output_dir=str(tmp_path)), found)["bbox"]
    assert set(results.values()) == {0.0}
    assert json.loads((tmp_path / "coco_instances_results.json").read_text()) == []


def test_no_lesion_in_the_data_set_is_nan(tmp_path):
    truth = annotations(np.random.default_rng(8), per_image=0)
    found = predictions(np.random.default_rng(1), truth)
    results = evaluate(MammographyCOCOEvaluator(register(truth, tmp_path)), found)["bbox"]
    assert len(results) == 14 and all(math.isnan(value) for value in results.values())


def test_annotations_without_area_and_iscrowd(tmp_path):
    rng = np.random.default_rng(9)
    truth = annotations(rng)
    found = predictions(rng, truth)
    expected = plain_pycocotools(truth, found)
    for annotation in truth["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    same(evaluate(MammographyCOCOEvaluator(register(truth, tmp_path)), found)["bbox"], expected)


def test_registered_without_an_id_map(tmp_path):
    """Classes then follow the sorted category ids, detectron2's convention."""
    rng = np.random.default_rng(10)
    truth = annotations(rng)
    found = predictions(rng, truth)
    name = register(truth, tmp_path, thing_dataset_id_to_contiguous_id={})
    results = evaluate(MammographyCOCOEvaluator(name), found)["bbox"]
    same(results, plain_pycocotools(truth, found))


def test_second_evaluation_equals_the_first(tmp_path):
    """Evaluating during training: nothing of one evaluation is left in the next."""
    rng = np.random.default_rng(11)
    truth = annotations(rng)
    found = predictions(rng, truth)
    evaluator = MammographyCOCOEvaluator(register(truth, tmp_path))
    assert evaluate(evaluator, found) == evaluate(evaluator, found) == evaluator.evaluate()


def test_registered_after_construction(tmp_path):
    """A lazy config may build the evaluator before the loader that registers the data set."""
    rng = np.random.default_rng(12)
    truth = annotations(rng, num_images=5)
    evaluator = MammographyCOCOEvaluator("registered_later_coco")
    metadata = MetadataCatalog.get(register(truth, tmp_path))
    MetadataCatalog.get("registered_later_coco").set(json_file=metadata.json_file)
    assert "AP" in evaluate(evaluator, predictions(rng, truth))["bbox"]


def test_part_of_the_images(tmp_path, caplog):
    """A trial run predicts some images only: those are scored, and it is said."""
    rng = np.random.default_rng(13)
    truth = annotations(rng)
    found = predictions(rng, truth)
    part = dict(list(found.items())[:10])
    name = register(truth, tmp_path)
    with caplog.at_level(logging.WARNING):
        results = evaluate(MammographyCOCOEvaluator(name), part)["bbox"]
    assert "10 of the 40 images" in caplog.text
    small = {**truth, "images": truth["images"][:10]}
    small["annotations"] = [a for a in truth["annotations"] if a["image_id"] in part]
    same(results, plain_pycocotools(small, part))


def test_all_twelve_are_printed(tmp_path, caplog):
    rng = np.random.default_rng(14)
    truth = annotations(rng)
    name = register(truth, tmp_path)
    with caplog.at_level(logging.INFO, "detrex_mammo"):
        evaluate(MammographyCOCOEvaluator(name), predictions(rng, truth))
    lines = [line for line in caplog.text.splitlines() if "Average " in line]
    assert len(lines) == 12
    assert all(f"({name:5s})" in line for name, line in zip(TWELVE, lines, strict=True))
    assert "AP-mass = " in caplog.text and "AP-calcification = " in caplog.text


def test_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no annotation file"):
        MammographyCOCOEvaluator("never_registered").reset()
    MetadataCatalog.get("file_is_gone").set(json_file=str(tmp_path / "gone.json"))
    with pytest.raises(UserError, match="gone.json.*does not exist"):
        MammographyCOCOEvaluator("file_is_gone").reset()
    rng = np.random.default_rng(15)
    truth = annotations(rng, num_images=3)
    evaluator = MammographyCOCOEvaluator(register(truth, tmp_path))
    box = np.array([[1, 1, 9, 9]], np.float32)
    with pytest.raises(UserError, match="class 2, but the data set has 2 classes"):
        evaluate(evaluator, {100: (box, [0.5], [2])})
    with pytest.raises(UserError, match="same data set"):
        evaluate(evaluator, {5: (box, [0.5], [1])})


def test_backends_have_the_same_numbers(tmp_path):
    """faster-coco-eval where it is installed; the data set of a run."""
    pytest.importorskip("faster_coco_eval")
    rng = np.random.default_rng(16)
    truth = annotations(rng)
    found = predictions(rng, truth)
    name = register(truth, tmp_path)
    results = {
        backend: evaluate(MammographyCOCOEvaluator(name, backend=backend), found)["bbox"]
        for backend in ("pycocotools", "faster", "auto")
    }
    same(results["faster"], results["pycocotools"])
    assert results["auto"] == results["faster"]


def test_unknown_backend(monkeypatch):
    with pytest.raises(UserError, match="backend was 'fast', but it is one of auto, pycocotools"):
        score_boxes(
            coco_of({"images": [], "annotations": [], "categories": []}), [], backend="fast"
        )
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    empty = coco_of({"images": [], "annotations": [], "categories": []})
    with pytest.raises(UserError, match="'faster', but faster-coco-eval is not installed"):
        score_boxes(empty, [], backend="faster")
    assert isinstance(score_boxes(empty, [], backend="auto"), COCOeval)


def test_ignored_boxes_are_neither_right_nor_wrong():
    """A hit at 0.5; at 0.9 a box on an ignored lesion, at 0.8 one on a crowd: AP stays 100.

    Without the two keys they are lesions that are hit, and with neither box they would be missed.
    """
    boxes = [
        {"id": 0, "image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20]},
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [50, 0, 20, 20], "ignore": 1},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [100, 0, 99, 99], "iscrowd": 1},
    ]
    truth = {"images": [{"id": 1}], "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}
    before = json.dumps(truth)
    places = ([50, 0, 20, 20], 0.9), ([120, 9, 20, 20], 0.8), ([0, 0, 20, 20], 0.5)
    records = [{"image_id": 1, "category_id": 1, "bbox": b, "score": s} for b, s in places]
    coco = coco_of(truth)
    assert coco_numbers(score_boxes(coco, records))["AP"] == pytest.approx(100)
    assert coco_numbers(score_boxes(coco, records[:2]))["AP"] == 0
    wrong = [{**records[0], "bbox": [300, 0, 20, 20]}, *records[1:]]
    assert coco_numbers(score_boxes(coco, wrong))["AP"] == pytest.approx(50)
    assert json.dumps(truth) == before  # the ground truth is not changed


def test_few_predictions_an_image():
    """Fewer than ten are kept: the best two of three are false, so nothing is found."""
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20]}
    truth = {"images": [{"id": 1}], "annotations": [box], "categories": [{"id": 1, "name": "a"}]}
    records = [
        {"image_id": 1, "category_id": 1, "bbox": [x, 0, 20, 20], "score": s}
        for x, s in ((90, 0.9), (60, 0.8), (0, 0.7))
    ]
    few = coco_numbers(score_boxes(coco_of(truth), records, max_dets=2))
    assert few["AP"] == few["AR2"] == 0 and "AR10" not in few
    assert coco_numbers(score_boxes(coco_of(truth), records, max_dets=3))["AR3"] == 100
    with pytest.raises(UserError, match="max_dets was 0"):
        score_boxes(coco_of(truth), records, max_dets=0)
