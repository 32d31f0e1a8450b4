#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Fuse models: ``ensemble.py --predictions A.json B.json --annotations V.json --out F.json``."""

import argparse
import logging
from pathlib import Path

from detrex_mammo.errors import UserError, run_tool
from detrex_mammo.evaluation.agreement import TOLERANCE, Agreement
from detrex_mammo.evaluation.calibration import KINDS
from detrex_mammo.evaluation.fusion import METHODS, Fusion
from detrex_mammo.inference.ensemble import Ensemble, Validation, facts_path, write_ensemble


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description="One file of predictions from several: each model's scores are calibrated on "
        "validation, boxes are fused by class, and the views of a breast made to agree. Each step "
        "but the fusion is on request. tools/evaluate.py reads the result.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument(
        "--predictions", nargs="+", required=True, help="COCO results JSON, CSV, or a checkpoint"
    )
    made.add_argument("--annotations", required=True, help="COCO JSON of the same images")
    made.add_argument("--out", type=Path, required=True, help="JSON; what was done, beside it")
    made.add_argument("--image-root", help="folder of the images, for checkpoints")
    made.add_argument("--device", default="auto", help="for checkpoints: auto, cpu or cuda")
    made.add_argument("--workers", type=int, default=2, help="processes that read images")
    fusion = made.add_argument_group("fusion")
    fusion.add_argument("--method", default="wbf", choices=METHODS)
    fusion.add_argument("--weights", type=float, nargs="+", help="of the models; 1 each by default")
    fusion.add_argument("--iou", type=float, default=0.55, help="boxes that overlap more are one")
    fitted = made.add_argument_group("calibration")
    fitted.add_argument("--calibrate", choices=sorted(KINDS), help="scores made probabilities")
    fitted.add_argument("--calibration-predictions", nargs="+", help="one for each model")
    fitted.add_argument("--calibration-annotations", help="COCO JSON of the validation images")
    fitted.add_argument("--calibration-image-root", help="folder of their images")
    fitted.add_argument("--rule", default="centre", help="of a hit: centre, iou:0.2, dbt")
    views = made.add_argument_group("views")
    views.add_argument("--agreement", type=float, metavar="W", help="weight of the other view")
    views.add_argument(
        "--agreement-tolerance", type=float, default=TOLERANCE, help="mm of depth behind the nipple"
    )
    return made


def ensemble_of(arguments: argparse.Namespace) -> Ensemble:
    """The steps of the command line."""
    files = (arguments.calibration_predictions, arguments.calibration_annotations)
    if arguments.calibrate and None in files:
        raise UserError(
            f"--calibrate {arguments.calibrate} is fitted on validation: give "
            "--calibration-predictions and --calibration-annotations"
        )
    if not arguments.calibrate and files != (None, None):
        raise UserError(
            "there are files to fit a calibration on, but no --calibrate: say "
            f"{' or '.join(sorted(KINDS))}"
        )
    calibration = agreement = None
    if arguments.calibrate:
        calibration = Validation(arguments.calibrate, *files, arguments.rule)
    if arguments.agreement is not None:
        agreement = Agreement(arguments.agreement, arguments.agreement_tolerance)
    fusion = Fusion(arguments.method, arguments.iou, arguments.weights)
    return Ensemble(calibration, fusion, agreement)


def run_checkpoints(arguments: argparse.Namespace) -> None:
    """Put files of predictions in the place of checkpoints."""
    files = [*arguments.predictions, *(arguments.calibration_predictions or [])]
    if all(Path(file).suffix.lower() in (".json", ".csv") for file in files):
        return  # without PyTorch, which takes seconds to start
    from detrex_mammo.engine.matrix import DataSet, predictions_of
    from detrex_mammo.engine.setup import resolve_device

    place = arguments.out.with_suffix(".predictions")
    rest = (place, resolve_device(arguments.device), arguments.workers)
    data = DataSet("test", arguments.annotations, arguments.image_root)
    arguments.predictions = [predictions_of(p, data, *rest) for p in arguments.predictions]
    if arguments.calibration_predictions:
        data = DataSet(
            "validation", arguments.calibration_annotations, arguments.calibration_image_root
        )
        arguments.calibration_predictions = [
            predictions_of(p, data, *rest) for p in arguments.calibration_predictions
        ]


def main() -> None:
    """Parse, call, print."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    arguments = parser().parse_args()
    ensemble_of(arguments)  # refuses what cannot be before hours are spent on checkpoints
    run_checkpoints(arguments)
    ensemble = ensemble_of(arguments)
    study, table, facts = ensemble(arguments.predictions, arguments.annotations)
    write_ensemble(arguments.out, study, table, facts)
    for path, number in zip(arguments.predictions, facts["predictions_in"], strict=True):
        print(f"{path}: {number:,} predictions")
    if facts["agreement"]:
        paired = facts["agreement"]["images_with_partner"]
        print(f"{paired:,} of {study.num_images:,} images have another view of their breast")
    print(f"{arguments.out}: {len(table):,} predictions; how: {facts_path(arguments.out)}")


if __name__ == "__main__":
    run_tool(main)
