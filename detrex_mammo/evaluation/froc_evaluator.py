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

from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.dataset import (
    annotation_file,
    dataset_category_ids,
    in_model_classes,
    of_known_classes,
    warn_of_missing,
)
from detrex_mammo.evaluation.files import whole_file
from detrex_mammo.evaluation.froc import (
    CPM_FPPI,
    DEFAULT_FPPI,
    FrocResult,
    FrocSettings,
    froc,
)
from detrex_mammo.evaluation.froc_bootstrap import FrocIntervals, band_fppi, froc_bootstrap
from detrex_mammo.evaluation.froc_plot import plot_froc
from detrex_mammo.evaluation.predictions import (
    instances_to_records,
    predictions_from_records,
    read_annotations,
    with_dataset_categories,
)
from detrex_mammo.evaluation.study import read_study

logger = logging.getLogger(__name__)


class FROCEvaluator(DatasetEvaluator):
    """Free-response ROC over a COCO-annotated data set.

    ``evaluate`` returns ``{"froc": {"sens@0.1": ..., "cpm": ..., "sens@0.1-<class>": ...}}`` and
    the ends of their intervals, ``sens@0.1_low``, ``sens@0.1_high`` and so on.
    Unlike COCO's AP these numbers are fractions in [0, 1], not percent, as radiology papers give
    them. With ``output_dir`` the main process writes ``froc.json`` (curves, counts, rule) and
    ``froc.png``. The settings are those of :class:`~detrex_mammo.evaluation.froc.FrocSettings`.

    Args:
        dataset_name: registered name; looked up at the first prediction, not here, because lazy
            configs register data sets when the loader is built.
        output_dir (optional): where to write; nothing is written without it.
        rule: ``centre``, ``iou:t`` or ``dbt``.
        fppi: false positives per image to report the sensitivity at.
        duplicates: ``ignore`` or ``count``.
        denominator: ``all`` or ``negative`` images.
        class_aware: a prediction hits lesions of its own class only.
        distributed: gather the predictions of all processes.
        note: printed under the figure, such as "simulated lesions".
        unit: what sensitivity is a share of: ``lesion_view``, ``lesion``, ``breast`` or ``case``.
        bootstrap: replicates over patients for the 95 % intervals; 0 for none.
        seed: of the bootstrap.
        stratified: draw patients with and without lesions separately.
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
        unit="lesion_view",
        bootstrap=2000,
        seed=0,
        stratified=False,
    ):
        self.dataset_name = dataset_name
        self.output_dir = output_dir
        self.settings = FrocSettings(rule, duplicates, denominator, class_aware, unit)
        self.bootstrap = Bootstrap(bootstrap, seed, stratified=stratified) if bootstrap else None
        self.fppi = tuple(float(f) for f in fppi)
        band_fppi(self.fppi)  # refuses what false positives per image cannot be
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
        annotations = in_model_classes(annotations, self.dataset_name)
        names = {category["id"]: category["name"] for category in annotations["categories"]}
        seen = {image_id for image_id, _ in predictions}
        warn_of_missing(seen, {image["id"] for image in annotations["images"]}, self.dataset_name)
        records = itertools.chain(*(records for _, records in predictions))
        records = with_dataset_categories(records, dataset_category_ids(self.dataset_name, names))
        records = of_known_classes(records, names, self.dataset_name)
        study = read_study(annotations, seen)
        if len(study.ignored):
            logger.info(
                "FROC ignores predictions on %d boxes that do not count", len(study.ignored)
            )
        table = predictions_from_records(records, study.lesions.image_ids)
        args, intervals = (study, table, self.settings, sorted(names)), None
        if self.bootstrap and study.num_patients > 1:  # one patient does not vary
            intervals = froc_bootstrap(*args, self.bootstrap, self.fppi)
        result = intervals.result if intervals else froc(*args)
        if self.output_dir:
            self._write(result, intervals, names)
        results = froc_numbers(result, names, self.fppi, intervals)
        self._log(result, results, intervals is not None)
        return OrderedDict(froc=results)

    def _log(self, result: FrocResult, results, has_intervals):
        curve = result.overall
        if curve.reason:
            logger.warning("FROC: %s", curve.reason)
        logger.info(
            "FROC of %s, %d predictions; %s; %s\n%s",
            curve.counts_text(),
            curve.num_predictions,
            self.settings.text(),
            f"[{self.bootstrap.text()}]" if has_intervals else "no intervals",
            froc_text(result, results, self.fppi),
        )

    def _write(self, result, intervals, names):
        os.makedirs(self.output_dir, exist_ok=True)
        found = intervals or result  # both have curves with a to_dict
        report = {
            "dataset": self.dataset_name,
            "note": self.note,
            "overall": found.overall.to_dict(self.fppi),
            "per_class": {
                names[category]: curve.to_dict(self.fppi)
                for category, curve in found.per_class.items()
            },
        }
        with whole_file(os.path.join(self.output_dir, "froc.json")) as path:
            path.write_text(json.dumps(report, allow_nan=False), encoding="utf-8")
        with whole_file(os.path.join(self.output_dir, "froc.png")) as path:
            plot_froc({"all classes": found.overall}, path, fppi=self.fppi, note=self.note)


def froc_numbers(
    result: FrocResult,
    names: dict,
    fppi=DEFAULT_FPPI,
    intervals: FrocIntervals | None = None,
) -> OrderedDict:
    """Headline numbers by name: ``sens@f`` and ``cpm`` in [0, 1], then one of each a class.

    A class's number has ``-<class>`` behind it (detectron2's summary leaves such names out). With
    ``intervals`` the ends follow as ``sens@f_low``, ``cpm_high-<class>`` and so on.
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
    for name, figure in (intervals.figures(names, fppi) if intervals else {}).items():
        kind, dash, category = name.partition("-")
        numbers[f"{kind}_low{dash}{category}"] = figure.low
        numbers[f"{kind}_high{dash}{category}"] = figure.high
    for count in ("num_lesions", "num_images", "num_predictions"):
        numbers[count] = getattr(result.overall, count)
    return numbers


def froc_text(result: FrocResult, numbers, fppi) -> str:
    """A small table: one row for all classes and one a class, one column for each f."""
    suffixes = [""] + [key[len("cpm") :] for key in numbers if key.startswith("cpm-")]
    curves = [result.overall, *result.per_class.values()]
    rows = []
    for suffix, curve in zip(suffixes, curves, strict=False):
        kinds = [*(f"sens@{f:g}" for f in fppi), "cpm"]
        cells = [_cell(numbers, kind, suffix) for kind in kinds]
        rows.append([suffix[1:] or "all", curve.num_units, *cells])
    units = result.overall.settings.units
    headers = ["class", units, *(f"sens@{f:g}" for f in fppi), f"CPM@{CPM_FPPI[0]:g}..8"]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def _cell(numbers, kind, suffix):
    """Such as "0.901 [0.84, 0.97]"; "-" for what is not defined."""
    value = numbers[kind + suffix]
    if np.isnan(value):
        return "-"
    low, high = (numbers.get(f"{kind}_{end}{suffix}") for end in ("low", "high"))
    return f"{value:.3f}" if low is None else f"{value:.3f} [{low:.2f}, {high:.2f}]"
