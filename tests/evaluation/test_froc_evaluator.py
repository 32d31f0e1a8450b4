# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The FROC evaluator: the numbers of froc.py on what a run produces, its files, many processes."""

import json
import logging
import math
import multiprocessing

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.evaluators import DetectionEvaluators
from detrex_mammo.evaluation.froc import FrocCurve, FrocSettings, froc
from detrex_mammo.evaluation.froc_bootstrap import froc_bootstrap
from detrex_mammo.evaluation.froc_evaluator import FROCEvaluator
from detrex_mammo.evaluation.predictions import (
    lesions_from_annotations,
    predictions_from_records,
    read_annotations,
    read_predictions,
)
from detrex_mammo.evaluation.study import read_study
from tests.evaluation.small_dataset import (
    CATEGORIES,
    CROP_AND_FLIP,
    annotations,
    evaluate,
    predictions,
    register,
)

PNG = b"\x89PNG\r\n"


def expected_result(truth, found, settings=None):
    """froc() on plain dictionaries, without any evaluator."""
    ids = [category["id"] for category in truth["categories"]]
    lesions = {image["id"]: {"boxes": [], "categories": []} for image in truth["images"]}
    for a in truth["annotations"]:
        x, y, w, h = a["bbox"]
        lesions[a["image_id"]]["boxes"].append((x, y, x + w, y + h))
        lesions[a["image_id"]]["categories"].append(a["category_id"])
    table = {
        image_id: {"boxes": b, "scores": np.float32(s), "categories": [ids[k] for k in c]}
        for image_id, (b, s, c) in found.items()
    }
    return froc(lesions, table, settings, ids)


@pytest.mark.parametrize("geometry", [None, CROP_AND_FLIP])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rule": "iou:0.2", "duplicates": "count"},
        {"denominator": "negative", "class_aware": False},
    ],
)
def test_numbers(tmp_path, options, geometry):
    rng = np.random.default_rng(2)
    truth = annotations(rng)
    found = predictions(rng, truth)
    evaluator = FROCEvaluator(register(truth, tmp_path), fppi=(0.1, 0.5, 1, 4), **options)
    numbers = evaluate(evaluator, found, geometry)["froc"]
    result = expected_result(truth, found, FrocSettings(**options))
    keys = ["sens@0.1", "sens@0.5", "sens@1", "sens@4", "cpm"]
    suffixes = {"": result.overall}
    for category in CATEGORIES:
        if result.per_class:
            suffixes[f"-{category['name']}"] = result.per_class[category["id"]]
    for suffix, curve in suffixes.items():
        got = [numbers[key + suffix] for key in keys]
        assert got == [*(curve.sensitivity_at(f) for f in (0.1, 0.5, 1, 4)), curve.cpm()]
    assert len(numbers) == 3 * 5 * len(suffixes) + 3
    for suffix in suffixes:
        for key in keys:
            low, high = (numbers[f"{key}_{end}{suffix}"] for end in ("low", "high"))
            assert 0 <= low <= high <= 1 and high > low
            assert low <= numbers[key + suffix] <= high
    assert (numbers["num_lesions"], numbers["num_images"]) == (len(truth["annotations"]), 40)
    assert 0.1 < numbers["cpm"] < 1


def test_files(tmp_path):
    rng = np.random.default_rng(3)
    truth = annotations(rng)
    found = predictions(rng, truth)
    name = register(truth, tmp_path)
    out = tmp_path / "made" / "here"
    evaluate(FROCEvaluator(name, output_dir=str(out), note="simulated lesions"), found)
    report = json.loads((out / "froc.json").read_text())
    assert report["note"] == "simulated lesions" and report["dataset"] == name
    assert list(report["per_class"]) == ["mass", "calcification"]
    curve = FrocCurve.from_dict(report["overall"])
    assert curve.cpm() == expected_result(truth, found).overall.cpm()
    assert (out / "froc.png").read_bytes().startswith(PNG)
    point = report["overall"]["points"][3]
    assert point["low"] < point["sensitivity"] < point["high"]
    assert "2000 bootstrap replicates" in report["overall"]["interval"]
    assert len(report["per_class"]["mass"]["band"]["low"]) > 20


def test_intervals_are_those_of_the_bootstrap_and_can_be_switched_off(tmp_path):
    rng = np.random.default_rng(13)
    truth = annotations(rng)
    found, name = predictions(rng, truth), register(truth, tmp_path)
    options = {"bootstrap": 50, "seed": 3, "stratified": True}
    numbers = evaluate(FROCEvaluator(name, **options), found)["froc"]
    evaluator = FROCEvaluator(name, output_dir=str(tmp_path), bootstrap=0)
    without = evaluate(evaluator, found)["froc"]
    assert without == {k: v for k, v in numbers.items() if "_low" not in k and "_high" not in k}
    assert "band" not in json.loads((tmp_path / "froc.json").read_text())["overall"]

    study = read_study(truth)
    per_image = {
        image_id: {"boxes": b, "scores": np.float32(s), "categories": [[3, 7][k] for k in c]}
        for image_id, (b, s, c) in found.items()
    }
    expected = froc_bootstrap(
        study, per_image, bootstrap=Bootstrap(50, 3, stratified=True)
    ).figures({3: "mass", 7: "calcification"})
    assert numbers["sens@0.5_low"] == expected["sens@0.5"].low
    assert numbers["cpm_high-mass"] == expected["cpm-mass"].high


def test_the_log_tells_rule_unit_counts_and_intervals(tmp_path, caplog):
    rng = np.random.default_rng(14)
    truth = annotations(rng)
    found = predictions(rng, truth)
    evaluator = FROCEvaluator(register(truth, tmp_path), unit="breast", rule="iou:0.2")
    with caplog.at_level(logging.INFO):
        numbers = evaluate(evaluator, found)["froc"]
    low, high = numbers["sens@0.3_low"], numbers["sens@0.3_high"]
    assert f"{numbers['sens@0.3']:.3f} [{low:.2f}, {high:.2f}]" in caplog.text
    for words in ("IoU of prediction", "breasts with a lesion", "40 images of 40 patients"):
        assert words in caplog.text
    assert "95 % percentile interval of 2000 bootstrap replicates" in caplog.text


def test_predictions_file_gives_the_same_figures(tmp_path):
    """What is written is what was scored: offline FROC of the file equals the run's, exactly."""
    rng = np.random.default_rng(4)
    truth = annotations(rng)
    name = register(truth, tmp_path)
    evaluator = DetectionEvaluators(name, str(tmp_path))
    results = evaluate(evaluator, predictions(rng, truth), CROP_AND_FLIP)
    records = read_predictions(tmp_path / "coco_instances_results.json")
    lesions = lesions_from_annotations(read_annotations(MetadataCatalog.get(name).json_file))
    offline = froc(lesions, predictions_from_records(records, lesions.image_ids))
    assert set(results) == {"bbox", "froc"}
    assert offline.overall.cpm() == results["froc"]["cpm"]
    for category, curve in zip(CATEGORIES, offline.per_class.values(), strict=True):
        assert curve.cpm() == results["froc"][f"cpm-{category['name']}"]


def test_single_class_has_no_second_set_of_numbers(tmp_path):
    rng = np.random.default_rng(5)
    truth = annotations(rng, categories=CATEGORIES[:1])
    evaluator = FROCEvaluator(register(truth, tmp_path))
    assert not any("-mass" in key for key in evaluate(evaluator, predictions(rng, truth))["froc"])


def test_no_lesions_is_nan_and_said(tmp_path, caplog):
    rng = np.random.default_rng(6)
    truth = annotations(rng, num_images=3, per_image=0)
    evaluator = FROCEvaluator(register(truth, tmp_path), output_dir=str(tmp_path))
    with caplog.at_level(logging.WARNING):
        numbers = evaluate(evaluator, predictions(rng, truth))["froc"]
    assert math.isnan(numbers["cpm"]) and numbers["num_images"] == 3
    assert "no lesions" in caplog.text


def test_nothing_predicted(tmp_path):
    truth = annotations(np.random.default_rng(7))
    none = {image["id"]: (np.zeros((0, 4), np.float32), [], []) for image in truth["images"]}
    numbers = evaluate(FROCEvaluator(register(truth, tmp_path)), none)["froc"]
    assert numbers["cpm"] == 0 and numbers["num_predictions"] == 0


def test_crowd_boxes_are_no_lesions(tmp_path, caplog):
    truth = annotations(np.random.default_rng(8))
    truth["annotations"][0]["iscrowd"] = 1
    found = predictions(np.random.default_rng(9), truth)
    with caplog.at_level(logging.INFO):
        numbers = evaluate(FROCEvaluator(register(truth, tmp_path)), found)["froc"]
    assert numbers["num_lesions"] == len(truth["annotations"]) - 1
    assert "ignores predictions on 1 boxes" in caplog.text


def test_part_of_the_images(tmp_path, caplog):
    rng = np.random.default_rng(10)
    truth = annotations(rng)
    part = dict(list(predictions(rng, truth).items())[:10])
    numbers = evaluate(FROCEvaluator(register(truth, tmp_path)), part)["froc"]
    assert numbers["num_images"] == 10
    assert "10 of the 40 images" in caplog.text


def test_mistakes_are_one_sentence(tmp_path):
    with pytest.raises(UserError, match="rule was 'iou2'"):
        FROCEvaluator("any", rule="iou2")
    with pytest.raises(UserError, match="fppi"):
        FROCEvaluator("any", fppi=(0.1, -1))
    with pytest.raises(UserError, match="unit was 'woman'"):
        FROCEvaluator("any", unit="woman")
    with pytest.raises(UserError, match="replicates was 1"):
        FROCEvaluator("any", bootstrap=1)
    truth = annotations(np.random.default_rng(11), num_images=2)
    box = np.array([[1, 1, 9, 9]], np.float32)
    name = register(truth, tmp_path)
    with pytest.raises(UserError, match="score nan"):
        evaluate(FROCEvaluator(name), {100: (box, [np.nan], [1])})
    with pytest.raises(UserError, match="class 5"):
        evaluate(FROCEvaluator(name), {100: (box, [0.5], [5])})
    with pytest.raises(UserError, match="7 is not|one is 7"):
        evaluate(FROCEvaluator(name), {7: (box, [0.5], [0])})
    (tmp_path / "broken.json").write_text("{")
    MetadataCatalog.get("broken_annotations").set(json_file=str(tmp_path / "broken.json"))
    with pytest.raises(UserError, match="is not JSON"):
        evaluate(FROCEvaluator("broken_annotations"), {})


def _one_of_two(rank, init_file, name, found, queue):
    """A process of two: predicts every other image, as detectron2's sampler shares them out."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{init_file}", rank=rank, world_size=2
    )
    share = dict(list(found.items())[rank::2])
    results = evaluate(DetectionEvaluators(name), share)
    queue.put((rank, {task: dict(numbers) for task, numbers in (results or {}).items()}))
    torch.distributed.destroy_process_group()


def test_two_processes_give_one_process_s_results(tmp_path):
    rng = np.random.default_rng(12)
    truth = annotations(rng, num_images=9)
    found = predictions(rng, truth)
    name = register(truth, tmp_path)
    alone = evaluate(DetectionEvaluators(name), found)
    context = multiprocessing.get_context("fork")  # spawning would import torch twice again
    queue = context.Queue()
    processes = [
        context.Process(target=_one_of_two, args=(k, tmp_path / "init", name, found, queue))
        for k in range(2)
    ]
    try:
        for process in processes:
            process.start()
        together = dict(queue.get(timeout=120) for _ in range(2))
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    assert together[1] == {}
    assert set(together[0]) == {"bbox", "froc"}
    assert len(alone["bbox"]) == 14 and len(alone["froc"]) == 3 * 24 + 3
    for task, numbers in alone.items():
        assert list(together[0][task]) == list(numbers)
        np.testing.assert_allclose(
            list(together[0][task].values()), list(numbers.values()), rtol=1e-12, atol=0
        )
