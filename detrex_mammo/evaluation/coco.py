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

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.coco_match import AREAS, dets_scored
from detrex_mammo.evaluation.dataset import (
    annotation_file,
    dataset_category_ids,
    in_model_classes,
    of_known_classes,
    warn_of_missing,
)
from detrex_mammo.evaluation.predictions import (
    instances_to_records,
    with_dataset_categories,
    write_predictions,
)

logger = logging.getLogger(__name__)

BACKENDS = ("auto", "pycocotools", "faster")


class MammographyCOCOEvaluator(COCOEvaluator):
    """detectron2's COCOEvaluator for boxes, with what mammography needs.

    - Boxes are mapped to the original image through the sample's ``geometry``, where it has one;
      plain COCO data sets have none and are scored as they are.
    - All twelve COCO numbers (detectron2 gives the first six) and the AP of every class, also of
      a single one; in percent, as COCO's are. NaN means that no ground truth falls in the range.
    - A model that predicts nothing scores 0, as pycocotools says, not NaN.
    - pycocotools or faster-coco-eval does the scoring, so detectron2's compiled extension is not
      needed.

    ``coco_instances_results.json`` in ``output_dir`` holds the predictions in original pixels,
    all of them; the scoring takes the best ``max_dets_per_image`` of an image and class.

    Args:
        dataset_name: registered name, looked up at the first :meth:`reset`, not here, because
            lazy configs register data sets when the loader is built.
        output_dir (optional): where the predictions are written.
        max_dets_per_image: COCO's own is 100.
        distributed: gather the predictions of all processes.
        backend: ``auto``, ``pycocotools`` or ``faster``, see :func:`score_boxes`.
    """

    def __init__(
        self,
        dataset_name,
        output_dir=None,
        max_dets_per_image=100,
        distributed=True,
        backend="auto",
    ):
        # detectron2's constructor reads the annotation file; reset() calls it (see dataset_name).
        self.dataset_name = dataset_name
        self.max_dets_per_image = max_dets_per_image
        self.backend = backend
        self._base = {"distributed": distributed, "output_dir": output_dir}
        self._started = False

    def reset(self):
        """Forget all predictions; the first call reads the annotation file."""
        if not self._started:
            annotation_file(self.dataset_name)
            super().__init__(self.dataset_name, ("bbox",), use_fast_impl=False, **self._base)
            content = in_model_classes(self._coco_api.dataset, self.dataset_name)
            if content is not self._coco_api.dataset:
                self._coco_api = coco_of(content)
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
        records = of_known_classes(records, self._coco_api.getCatIds(), self.dataset_name)
        if self._output_dir:
            write_predictions(records, f"{self._output_dir}/coco_instances_results.json")
        if not self._do_evaluation:
            logger.info("the annotation file has no annotations: predictions are written only")
            return
        if not records:
            logger.warning("the model predicted nothing, in none of %d images", len(seen))
        coco_eval = score_boxes(
            self._coco_api,
            records,
            img_ids or sorted(seen),
            self.max_dets_per_image,
            self.backend,
        )
        logger.info("COCO evaluation of %d images:\n%s", len(seen), coco_text(coco_eval))
        self._results["bbox"] = coco_numbers(coco_eval)


def score_boxes(coco: COCO, records, image_ids=None, max_dets=100, backend="auto") -> COCOeval:
    """Run COCO's evaluation on prediction records.

    Boxes with ``ignore`` 1 are treated as crowd regions are: what lies on one is neither right nor
    wrong. (pycocotools alone would count them.)

    Args:
        coco: the ground truth; it is not changed. Annotations may lack ``area`` and ``iscrowd``.
        records: COCO results, in original pixels; may be empty.
        image_ids (optional): these images only.
        max_dets: detections an image and class, the best of them.
        backend: ``pycocotools``, ``faster`` (faster-coco-eval, with the same numbers) or ``auto``,
            which is the latter where it is installed.

    Returns:
        COCOeval: accumulated, not summarized; see :func:`coco_numbers`.

    Raises:
        UserError: an unknown backend, or one that is not installed.
    """
    make_coco, make_eval = _backend(backend)
    content = {
        "images": coco.dataset["images"],
        "categories": coco.dataset["categories"],
        "annotations": [_counted(row, a) for row, a in enumerate(coco.dataset["annotations"], 1)],
    }
    found = {**content, "annotations": [_found(row, r) for row, r in enumerate(records, 1)]}
    with contextlib.redirect_stdout(io.StringIO()):
        coco_eval = make_eval(coco_of(content, make_coco), coco_of(found, make_coco), "bbox")
        coco_eval.params.maxDets = dets_scored(max_dets)
        if image_ids is not None:
            coco_eval.params.imgIds = list(image_ids)
        coco_eval.evaluate()
        coco_eval.accumulate()
    return coco_eval


def _backend(name):
    """Classes of ground truth and evaluation."""
    if name not in BACKENDS:
        raise UserError(f"backend was {name!r}, but it is one of {', '.join(BACKENDS)}")
    if name != "pycocotools":
        try:
            from faster_coco_eval import COCO as FastCOCO
            from faster_coco_eval import COCOeval_faster

            return FastCOCO, COCOeval_faster
        except ImportError:
            if name == "faster":
                raise UserError(
                    "backend was 'faster', but faster-coco-eval is not installed: "
                    "pip install faster-coco-eval, or use 'auto'"
                ) from None
    return COCO, COCOeval


def _counted(row, annotation):
    """An annotation as COCO's evaluation needs it; an id of 0 would never be found."""
    ignored = annotation.get("iscrowd", 0) or annotation.get("ignore", 0)
    area = annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3])
    return {**annotation, "id": row, "area": area, "iscrowd": int(bool(ignored))}


def _found(row, record):
    """A result as ``coco.loadRes`` makes it."""
    return {**record, "id": row, "area": record["bbox"][2] * record["bbox"][3], "iscrowd": 0}


def coco_of(content, make_coco=COCO) -> COCO:
    """pycocotools' object of an annotation file's content, without its talk."""
    coco = make_coco()
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
    for row, area in enumerate(list(AREAS)[1:], start=1):
        value = _mean(precision[:, :, :, row, -1])
        rows.append((f"AP{area[0]}", every, area, dets[-1], value))
    for column, number in enumerate(dets):
        value = _mean(recall[:, :, 0, column])
        rows.append((f"AR{number}", every, "all", number, value))
    for row, area in enumerate(list(AREAS)[1:], start=1):
        rows.append((f"AR{area[0]}", every, area, dets[-1], _mean(recall[:, :, row, -1])))
    return rows


def _mean(values):
    """Mean in percent of the entries that have ground truth; NaN when none has."""
    values = values[values > -1]
    return float(np.mean(values) * 100) if values.size else float("nan")
