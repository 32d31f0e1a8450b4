# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""AP from numpy tables: by hand, against pycocotools called plainly, and on data drawn again."""

import contextlib
import copy
import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.coco import coco_numbers, coco_of, score_boxes
from detrex_mammo.evaluation.coco_ap import CocoScorer
from detrex_mammo.evaluation.estimate import Draws, draw_patients
from detrex_mammo.evaluation.predictions import predictions_from_records
from detrex_mammo.evaluation.study import read_study
from tests.evaluation.random_annotations import random_annotations, random_records

TWELVE = ("AP", "AP50", "AP75", "APs", "APm", "APl")
SEEDS = st.integers(0, 2**32 - 1)


def scorer(annotations, records, max_dets=100):
    study = read_study(annotations)
    return CocoScorer(study, predictions_from_records(records, study.lesions.image_ids), max_dets)


def pycocotools(annotations, records, dets=(1, 10, 100), iou=None, category=None):
    """The twelve stats in percent, by loadRes and summarize; ``ignore`` boxes made crowds."""
    truth = copy.deepcopy(annotations)
    for box in truth["annotations"]:
        box["iscrowd"] = int(bool(box["iscrowd"] or box["ignore"]))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {**truth, "info": {}}
        coco.createIndex()
        found = coco.loadRes(copy.deepcopy(records)) if records else COCO()
        found.dataset.setdefault("images", [])
        coco_eval = COCOeval(coco, found, "bbox")
        coco_eval.params.maxDets = list(dets)
        if iou is not None:
            coco_eval.params.iouThrs = np.array(iou)
        if category is not None:
            coco_eval.params.catIds = [category]
        coco_eval.evaluate()
        coco_eval.accumulate()
        precision, recall = coco_eval.eval["precision"], coco_eval.eval["recall"]
    parts = [precision[:, :, :, area, -1] for area in range(4)]
    parts += [recall[:, :, 0, column] for column in range(3)]
    parts += [recall[:, :, area, -1] for area in (1, 2, 3)]
    if iou is None:
        parts[1:1] = [precision[[0], :, :, 0, -1], precision[[5], :, :, 0, -1]]
    return [100 * part[part > -1].mean() if (part > -1).any() else math.nan for part in parts]


def hand(scores=(0.9, 0.8, 0.7)):
    """Three images of three patients with a lesion each: hit, false positive, hit."""
    images = [{"id": number, "patient_id": str(number)} for number in (1, 2, 3)]
    lesion = {"category_id": 1, "bbox": [10, 10, 20, 20]}
    boxes = [{"id": n, "image_id": n, **lesion} for n in (1, 2, 3)]
    records = [
        {"image_id": n, "category_id": 1, "bbox": [10 if n != 2 else 90, 10, 20, 20], "score": s}
        for n, s in zip((1, 2, 3), scores, strict=True)
    ]
    categories = [{"id": 1, "name": "mass"}]
    return {"images": images, "annotations": boxes, "categories": categories}, records


def test_by_hand():
    """The head of coco_ap.py."""
    annotations, records = hand()
    found = scorer(annotations, records)
    assert found.numbers()["AP"] == pytest.approx(100 * 56 / 101, abs=1e-12)
    curve = found.curve(0.5, 1)
    assert curve.scores.tolist() == [0.9, 0.7] and curve.num_lesions == 3
    assert curve.precision.tolist() == [1, 2 / 3] and curve.recall.tolist() == [1 / 3, 2 / 3]
    assert curve.best() == (0.7, pytest.approx(2 / 3))
    weights = np.array([[1, 1, 1], [1, 2, 0], [0, 3, 0], [3, 0, 0]], np.int32)
    figure = found.average_precision(Draws(weights, Bootstrap(replicates=4)))["AP"]
    expected = np.array([5600, 3400, 0, 10100]) / 101
    np.testing.assert_allclose(figure.replicates, expected, rtol=0, atol=1e-12)
    assert figure.of == "3 lesions" and figure.low < figure.value < figure.high


def test_recall_and_f1_by_hand():
    """The head of coco_figures.py; no lesion drawn is no number, no lesion hit is 0."""
    found = scorer(*hand())
    draws = Draws(np.array([[1, 1, 1], [2, 1, 0], [0, 3, 0]], np.int32), Bootstrap(replicates=3))
    recall, f1 = found.figures(draws)["AR100"], found.largest_f1(draws=draws)
    np.testing.assert_allclose(recall.replicates, [200 / 3, 200 / 3, 0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(f1.replicates, [2 / 3, 4 / 5, 0], rtol=0, atol=1e-15)
    assert (f1.value, f1.of, recall.of) == (pytest.approx(2 / 3), "3 lesions", "3 lesions")
    annotations, records = hand()
    none = scorer({**annotations, "annotations": []}, records)
    assert math.isnan(none.largest_f1().value) and math.isnan(none.figures()["AR1"].value)
    assert scorer(annotations, []).largest_f1().value == 0


def test_perfect_and_nothing():
    """Every lesion found and nothing else: 100; no prediction: 0; no lesion: NaN."""
    annotations, records = hand()
    perfect = [{**r, "bbox": [10, 10, 20, 20]} for r in records]
    assert scorer(annotations, perfect).numbers()["AP"] == pytest.approx(100, abs=1e-9)
    nothing = scorer(annotations, [])
    assert nothing.numbers()["AP"] == nothing.average_precision()["AP10"].value == 0
    assert math.isnan(nothing.curve().best()[0])
    none = scorer({**annotations, "annotations": []}, records)
    assert math.isnan(none.numbers()["AP"]) and math.isnan(none.average_precision()["AP"].value)


def test_one_far_away_box_is_a_false_positive():
    annotations, records = hand()
    far = scorer(annotations, records[1:2])
    assert far.numbers()["AP10"] == 0 and len(far.curve(0.1).hits) == 0


def test_of_equal_overlaps_the_later_box_is_taken():
    """As COCO does: the prediction between two lesions (IoU 1/3 with both) takes the second, so
    that the one on the first finds it free; with the lesions swapped it does not.
    """
    lesion = {"image_id": 1, "category_id": 1, "iscrowd": 0, "ignore": 0, "area": 100}
    boxes = [{**lesion, "id": n + 1, "bbox": [10 * n, 0, 10, 10]} for n in (0, 1)]
    records = [
        {"image_id": 1, "category_id": 1, "bbox": [x, 0, 10, 10], "score": s}
        for x, s in ((5, 0.9), (0, 0.8))
    ]
    for entries, expected in ((boxes, 100), (boxes[::-1], 100 * 51 / 101)):
        truth = {"images": [{"id": 1}], "annotations": entries}
        truth["categories"] = [{"id": 1, "name": "mass"}]
        value = scorer(truth, records).numbers()["AP30"]
        assert value == pytest.approx(expected, abs=1e-9)
        assert value == pytest.approx(pycocotools(truth, records, iou=[0.3])[0], abs=1e-12)


def test_equal_scores_share_a_threshold():
    """All 0.5: one threshold, two hits of three kept: precision and recall 2/3."""
    curve = scorer(*hand((0.5, 0.5, 0.5))).curve()
    assert (curve.scores.tolist(), curve.hits.tolist(), curve.kept.tolist()) == ([0.5], [2], [3])


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, max_dets=st.sampled_from([100, 300, 12]), classes=st.sampled_from([1, 2]))
def test_identical_to_pycocotools(seed, max_dets, classes):
    """All twelve numbers, AP at low IoU and each class's AP; crowds, ties, any order of ids."""
    rng = np.random.default_rng(seed)
    annotations = random_annotations(rng, num_categories=classes)
    records = random_records(rng, annotations, most=120)
    mine = scorer(annotations, records, max_dets).numbers()
    names = (*TWELVE, "AR1", "AR10", f"AR{max_dets}", "ARs", "ARm", "ARl")
    dets = (1, 10, max_dets)
    theirs = dict(zip(names, pycocotools(annotations, records, dets), strict=True))
    for iou in (0.1, 0.2, 0.3):
        theirs[f"AP{iou * 100:.0f}"] = pycocotools(annotations, records, dets, [iou])[0]
    for category in annotations["categories"]:
        value = pycocotools(annotations, records, dets, category=category["id"])[0]
        theirs[f"AP-{category['name']}"] = value
    assert list(mine) == list(theirs)
    np.testing.assert_allclose(list(mine.values()), list(theirs.values()), rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_figures_are_the_numbers(seed):
    rng = np.random.default_rng(seed)
    annotations = random_annotations(rng)
    found = scorer(annotations, random_records(rng, annotations))
    numbers, figures = found.numbers(), found.figures()
    assert set(figures) - set(numbers) == {"AP50-mass", "AP50-calcification"}
    for name, number in numbers.items():
        np.testing.assert_allclose(figures[name].value, number, rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS)
def test_weighted_equals_data_drawn_again(seed):
    """A patient drawn w times: her images copied w times under new ids, scored by pycocotools."""
    rng = np.random.default_rng(seed)
    annotations = random_annotations(rng)
    records = random_records(rng, annotations)
    for record, score in zip(records, rng.permutation(len(records)), strict=True):
        record["score"] = float(score + 1)  # all different: copies alone are tied
    if not annotations["images"]:
        return
    study = read_study(annotations)
    weight = rng.multinomial(study.num_patients, [1 / study.num_patients] * study.num_patients)
    draws = Draws(weight[None].astype(np.int32), Bootstrap(replicates=2))
    scored = scorer(annotations, records)
    figures = scored.figures(draws)
    again, found = {**annotations, "images": [], "annotations": []}, []
    for image, patient in zip(study.images, study.patients.tolist(), strict=True):
        for _ in range(weight[patient]):
            new = {"image_id": len(again["images"]) + 1}
            again["images"].append({**image, "id": new["image_id"]})
            for source, target in (
                (annotations["annotations"], again["annotations"]),
                (records, found),
            ):
                target += [{**e, **new} for e in source if e["image_id"] == image["id"]]
    for number, box in enumerate(again["annotations"], 1):
        box["id"] = number
    expected = pycocotools(again, found)
    names = (*TWELVE, "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    mine = [figures[name].replicates[0] for name in names]
    np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-12)
    for category in (None, *study.category_names):
        copies = scorer(again, found).largest_f1(0.5, category).value
        drawn = scored.largest_f1(0.5, category, draws).replicates[0]
        np.testing.assert_allclose(drawn, copies, rtol=0, atol=1e-12)
    for iou in (0.1, 0.2, 0.3):
        value = figures[f"AP{iou * 100:.0f}"].replicates[0]
        np.testing.assert_allclose(value, pycocotools(again, found, iou=[iou])[0], atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, iou=st.sampled_from([0.1, 0.5, 0.75]), category=st.sampled_from([None, 2, 5]))
def test_curve_equals_plain_loops(seed, iou, category):
    """Every threshold counted anew: hits, kept predictions, precision, recall and the best F1."""
    rng = np.random.default_rng(seed)
    annotations = random_annotations(rng)
    records = random_records(rng, annotations)
    found = scorer(annotations, records)
    curve = found.curve(iou, category)
    full = found.matching()
    level = int(np.argmin(abs(found.thresholds - iou)))
    outcome = np.where(full.in_range, 0, 2)
    outcome[full.pairs.candidates] = full.outcome[level]
    classes = full.pairs.categories[full.pairs.class_index]
    rows = [
        (score, state)
        for score, state, label in zip(full.pairs.scores, outcome, classes, strict=True)
        if category in (None, label)
    ]
    lesions = sum(
        category in (None, box["category_id"]) and not box["iscrowd"] and not box["ignore"]
        for box in annotations["annotations"]
    )
    assert curve.num_lesions == lesions
    expected = []
    for score in sorted({s for s, state in rows if state == 1}, reverse=True):
        hits = sum(s >= score and state == 1 for s, state in rows)
        kept = sum(s >= score and state != 2 for s, state in rows)
        expected.append((score, hits, kept))
    assert list(zip(curve.scores, curve.hits, curve.kept, strict=True)) == expected
    f1 = [2 * hits / (kept + lesions) for _, hits, kept in expected]
    if f1:
        threshold, best = curve.best()
        assert best == max(f1) and threshold == expected[f1.index(best)][0]


def test_curve_agrees_with_scikit_learn():
    """The precision of hits among kept predictions, at the thresholds that add a hit."""
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(4)
    annotations = random_annotations(rng, 40, crowds=False)
    records = random_records(rng, annotations, 2000, 1900)
    found = scorer(annotations, records, 1000)
    pairs, level = found.pairs, 3
    hit = np.zeros(len(pairs.rows), bool)
    hit[pairs.candidates] = found.matching().outcome[level] == 1
    precision, recall, thresholds = metrics.precision_recall_curve(hit, pairs.scores)
    curve = found.curve(0.5)
    at = np.searchsorted(thresholds, curve.scores)
    assert len(curve.scores) == 5  # 0.125 and 0 find nothing more
    np.testing.assert_allclose(curve.precision, precision[at], rtol=1e-12)
    np.testing.assert_allclose(curve.hits / hit.sum(), recall[at], rtol=1e-12)


def test_image_ids_of_any_kind_and_order():
    """COCO goes by the order of ids where scores tie: 10 before 9 as text, after it as numbers."""
    annotations, records = hand((0.5, 0.5, 0.5))
    results = {}
    for kind in (int, str):
        names = {1: kind(10), 2: kind(9), 3: kind(8)}
        truth = {
            **annotations,
            "images": [{**i, "id": names[i["id"]]} for i in annotations["images"]],
            "annotations": [
                {**b, "image_id": names[b["image_id"]]} for b in annotations["annotations"]
            ],
        }
        found = [{**r, "image_id": names[r["image_id"]]} for r in records]
        results[kind] = scorer(truth, found).numbers()["AP"]
        theirs = coco_numbers(score_boxes(coco_of(truth), found, backend="pycocotools"))["AP"]
        assert results[kind] == pytest.approx(theirs, abs=1e-12)
    # numbers: 8 hit, 9 false, 10 hit; text: "10" hit, "8" hit, "9" false: precision 1 up to 2/3
    assert results[int] == pytest.approx(100 * 56 / 101, abs=1e-9)
    assert results[str] == pytest.approx(100 * 67 / 101, abs=1e-9)


def test_intervals_of_a_study():
    """Seeded: the same again; of every name; narrower than the whole range."""
    rng = np.random.default_rng(2)
    annotations = random_annotations(rng, 60)
    found = scorer(annotations, random_records(rng, annotations, 900, 800))
    draws = draw_patients(found.study, Bootstrap(replicates=200))
    first, second = found.average_precision(draws), found.average_precision(draws)
    assert {"AP", "AP50", "AP10", "AP-mass", "AP50-calcification"} <= set(first)
    for name, figure in first.items():
        assert (figure.low, figure.high) == (second[name].low, second[name].high)
        assert 0 <= figure.low < figure.high <= 100 and len(figure.replicates) == 200


def test_mistakes_are_one_sentence():
    annotations, records = hand()
    with pytest.raises(UserError, match="has category 7, which the ground truth does not have"):
        scorer(annotations, [{**records[0], "category_id": 7}])
    with pytest.raises(UserError, match="max_dets was 0"):
        scorer(annotations, records, 0)
    found = scorer(annotations, records)
    with pytest.raises(UserError, match="IoU was 0.4, but curves are kept for 0.1, 0.2"):
        found.curve(0.4)
    with pytest.raises(UserError, match="category was 7.*mass"):
        found.curve(0.5, 7)
