# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""COCO's twelve numbers and per-class AP, on detectron2's COCOEvaluator, in original pixels."""

import contextlib
import io
import logging
from collections import OrderedDict

import numpy as np
from detectron2.evaluation import COCOEvaluator
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detrex_mammo.evaluation.dataset import (
    annotation_file,
    dataset_category_ids,
    warn_of_missing,
)
from detrex_mammo.evaluation.predictions import (
    instances_to_records,
    with_dataset_categories,
    write_predictions,
)

logger = logging.getLogger(__name__)

AREAS = ("all", "small", "medium", "large")


class MammographyCOCOEvaluator(COCOEvaluator):
    """detectron2's COCOEvaluator for boxes, with what mammography needs.

    - Boxes are mapped to the original image through the sample's ``geometry``, where it has one;
      plain COCO data sets have none and are scored as they are.
    - All twelve COCO numbers (detectron2 gives the first six) and the AP of every class, also of
      a single one; in percent, as COCO's are. NaN means that no ground truth falls in the range.
    - A model that predicts nothing scores 0, as pycocotools says, not NaN.
    - pycocotools does the scoring, so detectron2's compiled extension is not needed.

    ``coco_instances_results.json`` in ``output_dir`` holds the predictions in original pixels,
    all of them; the scoring takes the best ``max_dets_per_image`` of an image and class.

    Args:
        dataset_name: registered name, looked up at the first :meth:`reset`, not here, because
            lazy configs register data sets when the loader is built.
        output_dir (optional): where the predictions are written.
        max_dets_per_image: COCO's own is 100.
        distributed: gather the predictions of all processes.
    """

    def __init__(self, dataset_name, output_dir=None, max_dets_per_image=100, distributed=True):
        # detectron2's constructor reads the annotation file; reset() calls it (see dataset_name).
        self.dataset_name = dataset_name
        self.max_dets_per_image = max_dets_per_image
        self._base = {"distributed": distributed, "output_dir": output_dir}
        self._started = False

    def reset(self):
        """Forget all predictions; the first call reads the annotation file."""
        if not self._started:
            annotation_file(self.dataset_name)
            super().__init__(self.dataset_name, ("bbox",), use_fast_impl=False, **self._base)
            self._started = True
        super().reset()

    def process(self, inputs, outputs):
        """Keep one batch's predictions, in original pixels.

        Args:
            inputs: the mapper's dicts (``image_id``; ``geometry`` where there is one).
            outputs: the model's dicts (``instances``).
        """
        for sample, output in zip(inputs, outputs, strict=True):
            records = instances_to_records(output["instances"], sample)
            self._predictions.append({"image_id": sample["image_id"], "instances": records})

    def _eval_predictions(self, predictions, img_ids=None):
        """Score the gathered predictions (detectron2's ``evaluate`` calls this)."""
        seen = {prediction["image_id"] for prediction in predictions}
        warn_of_missing(seen, set(self._coco_api.getImgIds()), self.dataset_name)
        dataset_ids = dataset_category_ids(self.dataset_name, self._coco_api.getCatIds())
        records = [record for prediction in predictions for record in prediction["instances"]]
        records = with_dataset_categories(records, dataset_ids)
        if self._output_dir:
            write_predictions(records, f"{self._output_dir}/coco_instances_results.json")
        if not self._do_evaluation:
            logger.info("the annotation file has no annotations: predictions are written only")
            return
        if not records:
            logger.warning("the model predicted nothing, in none of %d images", len(seen))
        coco_eval = score_boxes(
            self._coco_api, records, img_ids or sorted(seen), self.max_dets_per_image
        )
        logger.info("COCO evaluation of %d images:\n%s", len(seen), coco_text(coco_eval))
        self._results["bbox"] = coco_numbers(coco_eval)


def score_boxes(coco: COCO, records, image_ids=None, max_dets=100) -> COCOeval:
    """Run pycocotools on prediction records.

    Args:
        coco: the ground truth. Annotations without ``area`` or ``iscrowd`` get them.
        records: COCO results, in original pixels; may be empty.
        image_ids (optional): these images only.
        max_dets: detections an image and class, the best of them.

    Returns:
        COCOeval: accumulated, not summarized; see :func:`coco_numbers`.
    """
    for annotation in coco.dataset["annotations"]:
        annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        annotation.setdefault("iscrowd", 0)
    with contextlib.redirect_stdout(io.StringIO()):
        coco_eval = COCOeval(coco, _results_as_coco(coco, records), "bbox")
        coco_eval.params.maxDets = [1, 10, max_dets]
        if image_ids is not None:
            coco_eval.params.imgIds = list(image_ids)
        coco_eval.evaluate()
        coco_eval.accumulate()
    return coco_eval


def _results_as_coco(coco, records):
    """What ``coco.loadRes`` makes of box results; also of none, and without an "info" entry."""
    return coco_of(
        {
            "images": coco.dataset["images"],
            "categories": coco.dataset["categories"],
            "annotations": [
                {**record, "id": row, "area": record["bbox"][2] * record["bbox"][3], "iscrowd": 0}
                for row, record in enumerate(records, start=1)
            ],
        }
    )


def coco_of(content) -> COCO:
    """pycocotools' object of an annotation file's content, without its talk."""
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def coco_numbers(coco_eval: COCOeval) -> OrderedDict:
    """COCO's twelve numbers, then ``AP-<class>`` of every class, in percent.

    The names are detectron2's (AP, AP50, AP75, APs, APm, APl) and, for the average recall, AR1,
    AR10, AR100, ARs, ARm, ARl. NaN where no ground truth falls in the range.
    """
    numbers = OrderedDict((name, value) for name, _, _, _, value in _twelve(coco_eval))
    categories = coco_eval.cocoGt.loadCats(coco_eval.params.catIds)
    for column, category in enumerate(categories):
        precision = coco_eval.eval["precision"][:, :, column, 0, -1]
        numbers[f"AP-{category['name']}"] = _mean(precision)
    return numbers


def coco_text(coco_eval: COCOeval) -> str:
    """The twelve numbers as COCO prints them (here in percent) and each class's AP."""
    lines = [
        f" {'Average Recall   ' if name.startswith('AR') else 'Average Precision'} ({name:5s}) "
        f"@[ IoU={iou:9s} | area={area:6s} | maxDets={dets:3d} ] = {value:6.2f}"
        for name, iou, area, dets, value in _twelve(coco_eval)
    ]
    per_class = [
        f" {key} = {value:.2f}"
        for key, value in coco_numbers(coco_eval).items()
        if key.startswith("AP-")
    ]
    return "\n".join(lines + per_class)


def top_of_each_image(records, number: int) -> list:
    """The ``number`` best-scored records of each image over all classes, as a model's top-k gives.

    Of equal scores the earlier record stays.
    """
    by_image: dict = {}
    for record in records:
        by_image.setdefault(record["image_id"], []).append(record)
    ranked = (sorted(image, key=lambda r: -r["score"])[:number] for image in by_image.values())
    return [record for image in ranked for record in image]


def _twelve(coco_eval):
    """Rows (name, IoU range, area, detections, percent), in the order of ``COCOeval.stats``.

    ``precision`` is (IoU, recall, class, area, detections), ``recall`` (IoU, class, area,
    detections); -1 stands for "no ground truth".
    """
    precision, recall = coco_eval.eval["precision"], coco_eval.eval["recall"]
    thresholds, dets = np.asarray(coco_eval.params.iouThrs), coco_eval.params.maxDets
    every = f"{thresholds[0]:.2f}:{thresholds[-1]:.2f}"
    rows = [("AP", every, "all", dets[-1], _mean(precision[:, :, :, 0, -1]))]
    for name, threshold in (("AP50", 0.5), ("AP75", 0.75)):
        chosen = precision[np.isclose(thresholds, threshold)]
        rows.append((name, f"{threshold:.2f}", "all", dets[-1], _mean(chosen[:, :, :, 0, -1])))
    for row, area in enumerate(AREAS[1:], start=1):
        value = _mean(precision[:, :, :, row, -1])
        rows.append((f"AP{area[0]}", every, area, dets[-1], value))
    for column, number in enumerate(dets):
        value = _mean(recall[:, :, 0, column])
        rows.append((f"AR{number}", every, "all", number, value))
    for row, area in enumerate(AREAS[1:], start=1):
        rows.append((f"AR{area[0]}", every, area, dets[-1], _mean(recall[:, :, row, -1])))
    return rows


def _mean(values):
    """Mean in percent of the entries that have ground truth; NaN when none has."""
    values = values[values > -1]
    return float(np.mean(values) * 100) if values.size else float("nan")
