# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The HTML report of a run's evaluation, made of the predictions that the evaluator wrote."""

import logging
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog
from omegaconf import DictConfig, ListConfig, OmegaConf

from detrex_mammo.engine.loaders import dataset_names
from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.assess.settings import AssessSettings
from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.dataset import annotation_file, in_model_classes
from detrex_mammo.evaluation.froc_settings import DEFAULT_FPPI, FrocSettings
from detrex_mammo.evaluation.predictions import read_annotations
from detrex_mammo.evaluation.study import read_study
from detrex_mammo.inference.offline import Truth, write_page, write_results

logger = logging.getLogger(__name__)
PREDICTIONS = "coco_instances_results.json"
FOLDER = "report"
_FROC_KEYS = ("rule", "duplicates", "denominator", "class_aware", "unit")


def check_report(evaluator: Any) -> None:
    """Refuse ``train.report`` where no predictions are kept to make one of.

    Raises:
        UserError: the evaluator has no ``output_dir`` or no data set.
    """
    if _setting(evaluator, "output_dir") and dataset_names(evaluator):
        return
    raise UserError(
        "train.report is True, but dataloader.evaluator has no output_dir or dataset_name: set "
        "both, or train.report=False"
    )


def write_report(evaluator: Any, test: Any, model_name: str, workers: int = 2) -> Path:
    """Write the report of the evaluation that has just been done, beside its predictions.

    Args:
        evaluator: node of the config; its rules are those of the report.
        test: node of the test loader; DICOM files are shown as its mapper reads them.
        model_name: in the title.
        workers: processes that read images.

    Returns:
        Path: the page.
    """
    folder = Path(_setting(evaluator, "output_dir"))
    dataset = dataset_names(evaluator)[0]
    path = annotation_file(dataset)
    content = in_model_classes(read_annotations(path), dataset)
    truth = Truth(Path(path), content, read_study(content))
    found = truth.assess(folder / PREDICTIONS, _settings(evaluator))
    extra = {"model": model_name, "dataset": dataset, "annotations": str(path)}
    write_results(folder / FOLDER, found, extra, with_tables=False)
    facts = [("model", model_name), ("data set", dataset), ("annotations", Path(path).name)]
    note = _setting(evaluator, "note") or ""
    report = found.report(f"{model_name} on {dataset}", facts, note)
    root = MetadataCatalog.get(dataset).get("image_root")
    window = OmegaConf.select(test, "mapper.preprocessing.window") or "auto"
    page = write_page(
        folder / FOLDER, report, truth.study, Path(root) if root else None, window, workers
    )
    logger.info("report: %s", page)
    return page


def _settings(evaluator: Any) -> AssessSettings:
    froc = {key: _setting(evaluator, key) for key in _FROC_KEYS}
    froc = FrocSettings(**{key: value for key, value in froc.items() if value is not None})
    replicates = _setting(evaluator, "bootstrap")
    bootstrap = None
    if replicates != 0:
        seed, is_stratified = (_setting(evaluator, key) for key in ("seed", "stratified"))
        bootstrap = Bootstrap(replicates or 2000, seed or 0, stratified=bool(is_stratified))
    fppi = tuple(_setting(evaluator, "fppi") or DEFAULT_FPPI)
    return AssessSettings(froc, fppi, bootstrap)


def _setting(evaluator: Any, key: str) -> Any:
    """A setting of the evaluator, or of the first of several that has it."""
    nodes = evaluator if isinstance(evaluator, ListConfig) else [evaluator]
    values = (node.get(key) for node in nodes if isinstance(node, DictConfig))
    return next((value for value in values if value is not None), None)
