# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""FROC as a detectron2 evaluator: sensitivities in [0, 1], a JSON file and a figure."""

import itertools
import json
import logging
import os
from collections import OrderedDict

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.dataset import (
    annotation_file,
    dataset_category_ids,
    warn_of_missing,
)
from detrex_mammo.evaluation.froc import (
    CPM_FPPI,
    DEFAULT_FPPI,
    FrocResult,
    FrocSettings,
    froc,
)
from detrex_mammo.evaluation.froc_plot import plot_froc
from detrex_mammo.evaluation.predictions import (
    instances_to_records,
    lesions_from_annotations,
    predictions_from_records,
    read_annotations,
    with_dataset_categories,
)

logger = logging.getLogger(__name__)


class FROCEvaluator(DatasetEvaluator):
    """Free-response ROC over a COCO-annotated data set.

    ``evaluate`` returns ``{"froc": {"sens@0.1": ..., "cpm": ..., "sens@0.1-<class>": ...}}``.
    Unlike COCO's AP these numbers are fractions in [0, 1], not percent, as radiology papers give
    them. With ``output_dir`` the main process writes ``froc.json`` (curves, counts, rule) and
    ``froc.png``. The settings are those of :class:`~detrex_mammo.evaluation.froc.FrocSettings`.

    Args:
        dataset_name: registered name; looked up at the first prediction, not here, because lazy
            configs register data sets when the loader is built.
        output_dir (optional): where to write; nothing is written without it.
        rule: ``centre`` or ``iou:t``.
        fppi: false positives per image to report the sensitivity at.
        duplicates: ``ignore`` or ``count``.
        denominator: ``all`` or ``negative`` images.
        class_aware: a prediction hits lesions of its own class only.
        distributed: gather the predictions of all processes.
        note: printed under the figure, such as "simulated lesions".
    """

    def __init__(
        self,
        dataset_name,
        output_dir=None,
        rule="centre",
        fppi=DEFAULT_FPPI,
        duplicates="ignore",
        denominator="all",
        class_aware=True,
        distributed=True,
        note="",
    ):
        self.dataset_name = dataset_name
        self.output_dir = output_dir
        self.settings = FrocSettings(rule, duplicates, denominator, class_aware)
        self.fppi = tuple(float(f) for f in fppi)
        if any(not f >= 0 for f in self.fppi):
            raise UserError(f"fppi was {list(self.fppi)}, but false positives per image are >= 0")
        self.distributed = distributed
        self.note = note
        self.reset()

    def reset(self):
        """Forget all predictions."""
        self._predictions = []

    def process(self, inputs, outputs):
        """Keep one batch's predictions, in original pixels.

        Args:
            inputs: the mapper's dicts (``image_id``; ``geometry`` where there is one).
            outputs: the model's dicts (``instances``).
        """
        for sample, output in zip(inputs, outputs, strict=True):
            records = instances_to_records(output["instances"], sample)
            self._predictions.append((sample["image_id"], records))

    def evaluate(self):
        """Score the gathered predictions; None on all but the main process."""
        predictions = self._predictions
        if self.distributed:
            comm.synchronize()
            predictions = list(itertools.chain(*comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return None
        annotations = read_annotations(annotation_file(self.dataset_name))
        names = {category["id"]: category["name"] for category in annotations["categories"]}
        seen = {image_id for image_id, _ in predictions}
        warn_of_missing(seen, {image["id"] for image in annotations["images"]}, self.dataset_name)
        records = itertools.chain(*(records for _, records in predictions))
        records = with_dataset_categories(records, dataset_category_ids(self.dataset_name, names))
        lesions = lesions_from_annotations(annotations, seen)
        table = predictions_from_records(records, lesions.image_ids)
        result = froc(lesions, table, self.settings, sorted(names))
        if self.output_dir:
            self._write(result, names)
        results = froc_numbers(result, names, self.fppi)
        self._log(result, results)
        return OrderedDict(froc=results)

    def _log(self, result: FrocResult, results):
        curve = result.overall
        if curve.reason:
            logger.warning("FROC: %s", curve.reason)
        logger.info(
            "FROC of %d lesions in %d images (%d without lesions), %d predictions; %s\n%s",
            curve.num_lesions,
            curve.num_images,
            curve.num_negative_images,
            curve.num_predictions,
            self.settings.text(),
            froc_text(result, results, self.fppi),
        )

    def _write(self, result, names):
        os.makedirs(self.output_dir, exist_ok=True)
        report = {
            "dataset": self.dataset_name,
            "note": self.note,
            "overall": result.overall.to_dict(self.fppi),
            "per_class": {
                names[category]: curve.to_dict(self.fppi)
                for category, curve in result.per_class.items()
            },
        }
        with open(os.path.join(self.output_dir, "froc.json"), "w", encoding="utf-8") as file:
            json.dump(report, file, allow_nan=False)
        path = os.path.join(self.output_dir, "froc.png")
        plot_froc({"all classes": result.overall}, path, fppi=self.fppi, note=self.note)


def froc_numbers(result: FrocResult, names: dict, fppi=DEFAULT_FPPI) -> OrderedDict:
    """Headline numbers by name: ``sens@f`` and ``cpm`` in [0, 1], then one of each a class.

    A class's number has ``-<class>`` behind it (detectron2's summary leaves such names out).
    Counts end the list: ``num_lesions``, ``num_images``, ``num_predictions``.
    """
    numbers = OrderedDict()
    curves = [("", result.overall)]
    if len(result.per_class) > 1:
        curves += [(f"-{names[category]}", curve) for category, curve in result.per_class.items()]
    for suffix, curve in curves:
        for f in fppi:
            numbers[f"sens@{f:g}{suffix}"] = curve.sensitivity_at(f)
        numbers[f"cpm{suffix}"] = curve.cpm()
    for count in ("num_lesions", "num_images", "num_predictions"):
        numbers[count] = getattr(result.overall, count)
    return numbers


def froc_text(result: FrocResult, numbers, fppi) -> str:
    """A small table: one row for all classes and one a class, one column for each f."""
    suffixes = [""] + [key[len("cpm") :] for key in numbers if key.startswith("cpm-")]
    curves = [result.overall, *result.per_class.values()]
    rows = []
    for suffix, curve in zip(suffixes, curves, strict=False):
        values = [numbers[f"sens@{f:g}{suffix}"] for f in fppi] + [numbers[f"cpm{suffix}"]]
        cells = ["-" if np.isnan(value) else f"{value:.3f}" for value in values]
        rows.append([suffix[1:] or "all", curve.num_lesions, *cells])
    headers = ["class", "lesions", *(f"sens@{f:g}" for f in fppi), f"CPM@{CPM_FPPI[0]:g}..8"]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)
