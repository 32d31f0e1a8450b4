#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Score predictions: ``evaluate.py --predictions P.json --annotations A.json [--html DIR]``."""

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from detrex_mammo.errors import UserError, run_tool
from detrex_mammo.evaluation.assess.settings import AssessSettings
from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.calibration import KINDS
from detrex_mammo.evaluation.froc_settings import (
    DEFAULT_FPPI,
    DENOMINATORS,
    DUPLICATES,
    UNITS,
    FrocSettings,
)
from detrex_mammo.evaluation.scores import VIEWS
from detrex_mammo.inference.offline import (
    Truth,
    choose_points,
    comparison_table,
    headline_text,
    write_page,
    write_results,
)
from detrex_mammo.inference.point_files import (
    read_calibration,
    read_points,
    save_calibration,
    save_points,
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description="FROC, AP, AUC and calibration of a file of predictions, with intervals over "
        "patients. Boxes are pixels of the original images.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    files = made.add_argument_group("files")
    files.add_argument("--predictions", required=True, help="COCO results JSON, or CSV")
    files.add_argument("--annotations", required=True, help="COCO JSON")
    files.add_argument("--compare", help="predictions of another model, compared pairwise")
    files.add_argument("--out", type=Path, help="folder for evaluation.json and CSV tables")
    files.add_argument("--html", type=Path, help="folder for a report, one page without network")
    files.add_argument("--image-root", type=Path, help="images of the report's gallery")
    files.add_argument("--name", help="of the model; the file's name by default")
    files.add_argument("--note", default="", help="over the report, such as 'simulated lesions'")
    files.add_argument("--max-images", type=int, default=500, help="of the report's gallery")
    files.add_argument("--window", default="auto", help="grey values of the report's DICOM files")
    files.add_argument("--workers", type=int, default=2, help="processes that read images")
    rules = made.add_argument_group("rules")
    rules.add_argument("--rule", default="centre", help="of a hit: centre, iou:0.2, dbt")
    rules.add_argument("--unit", default="lesion_view", choices=UNITS, help="what is found")
    rules.add_argument("--duplicates", default="ignore", choices=DUPLICATES, help="further hits")
    rules.add_argument("--denominator", default="all", choices=DENOMINATORS, help="images")
    rules.add_argument("--class-agnostic", action="store_true", help="any class may hit")
    rules.add_argument(
        "--fppi", type=float, nargs="+", default=DEFAULT_FPPI, help="false positives per image"
    )
    rules.add_argument("--views", default="max", choices=VIEWS, help="pooling to a breast's score")
    rules.add_argument("--max-dets", type=int, default=100, help="of an image and class, in AP")
    drawn = made.add_argument_group("intervals")
    drawn.add_argument("--replicates", type=int, default=2000, help="0 leaves intervals out")
    drawn.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    drawn.add_argument("--level", type=float, default=0.95, help="of the intervals")
    drawn.add_argument("--stratified", action="store_true", help="by patients with a lesion")
    points = made.add_argument_group("operating points")
    points.add_argument("--choose", nargs="+", default=(), help="on these data: box:fppi:0.3 ...")
    points.add_argument("--save-points", type=Path, help="checkpoint or JSON to add them to")
    points.add_argument("--points", type=Path, help="checkpoint or JSON whose points to apply")
    fitted = made.add_argument_group("calibration of scores, before all else")
    fitted.add_argument("--calibrate", choices=sorted(KINDS), help="fit on the boxes of these data")
    fitted.add_argument("--save-calibration", type=Path, help="checkpoint or JSON to put it into")
    fitted.add_argument("--calibration", type=Path, help="checkpoint or JSON whose to apply")
    return made


def settings_of(arguments: argparse.Namespace) -> AssessSettings:
    """The rules of the command line."""
    froc = FrocSettings(
        arguments.rule,
        arguments.duplicates,
        arguments.denominator,
        not arguments.class_agnostic,
        arguments.unit,
    )
    bootstrap = None
    if arguments.replicates:
        draw = (arguments.replicates, arguments.seed, arguments.level, arguments.stratified)
        bootstrap = Bootstrap(*draw)
    points = tuple(read_points(arguments.points)) if arguments.points else ()
    calibration = read_calibration(arguments.calibration) if arguments.calibration else None
    return AssessSettings(
        froc,
        tuple(arguments.fppi),
        bootstrap,
        arguments.views,
        arguments.max_dets,
        points,
        calibration,
    )


def check(arguments: argparse.Namespace) -> None:
    """Refuse options that contradict one another.

    Raises:
        UserError: naming them.
    """
    if arguments.save_points and not arguments.choose:
        raise UserError("--save-points has nothing to save: say what to choose with --choose")
    if arguments.points and arguments.choose:
        raise UserError(
            "--points applies what was chosen before and --choose chooses anew: give one of them"
        )
    if arguments.save_calibration and not arguments.calibrate:
        raise UserError("--save-calibration has nothing to save: say how to fit with --calibrate")
    if arguments.calibration and arguments.calibrate:
        raise UserError(
            "--calibration applies what was fitted before and --calibrate fits anew: give one of "
            "them"
        )
    if arguments.compare and (arguments.calibration or arguments.calibrate):
        raise UserError(
            "--compare takes both models' scores as they are, and a calibration is of one model: "
            "calibrate each file with tools/ensemble.py first"
        )
    if arguments.image_root and not arguments.image_root.is_dir():
        raise UserError(f"--image-root {str(arguments.image_root)!r} is no folder: check the path")


def main() -> None:
    """Parse, call, print."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    arguments = parser().parse_args()
    check(arguments)
    settings = settings_of(arguments)
    truth = Truth.read(arguments.annotations)
    found = truth.assess(arguments.predictions, settings, arguments.calibrate)
    if arguments.save_calibration:
        save_calibration(arguments.save_calibration, found.scored.settings.calibration)
    name = arguments.name or Path(arguments.predictions).stem
    if arguments.choose:
        chosen = choose_points(found, arguments.choose, truth.path.name)
        if arguments.save_points:
            save_points(arguments.save_points, chosen)
        found = found.with_points(chosen)
    if arguments.compare:
        # the points are thresholds of the first model's scores
        other = truth.assess(arguments.compare, replace(found.scored.settings, points=()))
        table = comparison_table(found, other, name, Path(arguments.compare).stem)
        found.part.tables.insert(0, table)
    print(headline_text(found))
    files = {"predictions": arguments.predictions, "annotations": arguments.annotations}
    if arguments.out:
        write_results(arguments.out, found, {"model": name, **files})
        print(f"figures and tables: {arguments.out}")
    if arguments.html:
        facts = [("model", name), ("annotations", truth.path.name)]
        report = found.report(name, facts, arguments.note, arguments.max_images)
        report = replace(report, title=f"{name} on {truth.path.stem}")
        page = write_page(
            arguments.html,
            report,
            truth.study,
            arguments.image_root,
            arguments.window,
            arguments.workers,
        )
        print(f"report: {page}")


if __name__ == "__main__":
    run_tool(main)
