# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""COCO and FROC together, as one evaluator for a lazy config."""

from detectron2.evaluation import DatasetEvaluators

from detrex_mammo.evaluation.coco import MammographyCOCOEvaluator
from detrex_mammo.evaluation.froc import DEFAULT_FPPI
from detrex_mammo.evaluation.froc_evaluator import FROCEvaluator


def DetectionEvaluators(  # noqa: N802 - read as a class in configs, like detectron2's
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
    backend="auto",
):
    """Both evaluators over one data set.

    Args:
        dataset_name: registered name of the test data set.
        output_dir (optional): where predictions, ``froc.json`` and ``froc.png`` are written.
        rule, fppi, duplicates, denominator, class_aware, note, unit, bootstrap, seed, stratified:
            see :class:`~detrex_mammo.evaluation.froc_evaluator.FROCEvaluator`.
        distributed: gather the predictions of all processes.
        backend: of COCO's numbers, see :func:`~detrex_mammo.evaluation.coco.score_boxes`.

    Returns:
        DatasetEvaluators: with results ``bbox`` (percent) and ``froc`` (fractions in [0, 1]).
    """
    coco = MammographyCOCOEvaluator(
        dataset_name, output_dir, distributed=distributed, backend=backend
    )
    free_response = FROCEvaluator(
        dataset_name,
        output_dir,
        rule=rule,
        fppi=fppi,
        duplicates=duplicates,
        denominator=denominator,
        class_aware=class_aware,
        distributed=distributed,
        note=note,
        unit=unit,
        bootstrap=bootstrap,
        seed=seed,
        stratified=stratified,
    )
    return DatasetEvaluators([coco, free_response])
