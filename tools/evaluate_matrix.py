#!/usr/bin/env python
# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Models x data sets: ``evaluate_matrix.py --models A=a.pth --datasets V=v.json:images``."""

import argparse
import logging
from pathlib import Path

from detrex_mammo.engine.matrix import DataSet, Model, run_matrix
from detrex_mammo.engine.matrix_table import check_figures, matrix_text, write_matrix
from detrex_mammo.engine.setup import resolve_device
from detrex_mammo.errors import UserError, run_tool
from detrex_mammo.evaluation.assess.settings import AssessSettings
from detrex_mammo.evaluation.bootstrap import Bootstrap
from detrex_mammo.evaluation.froc_settings import DEFAULT_FPPI, UNITS, FrocSettings


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        description="Run each checkpoint over each data set, with the preprocessing that is in the "
        "checkpoint, score it, and tabulate. What is done is not done again; a pair that fails "
        "does not stop the others, and the exit code is then 2.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument(
        "--models", nargs="+", required=True, metavar="NAME=PATH",
        help="checkpoint, or folder with predictions DATASET.json",
    )  # fmt: skip
    made.add_argument(
        "--datasets", nargs="+", required=True, metavar="NAME=JSON:ROOT",
        help="annotations (COCO JSON) and the folder of their images",
    )  # fmt: skip
    made.add_argument("--out", type=Path, required=True, help="DIR/model/dataset and the table")
    made.add_argument(
        "--figure", nargs="+", default=["sens@0.3", "AP50", "auc-image"], help="of the table"
    )
    made.add_argument("--config-file", help="whose test mapper to use, not the checkpoint's")
    made.add_argument("--device", default="auto", help="auto, cpu or cuda")
    made.add_argument("--workers", type=int, default=2, help="processes that read images")
    made.add_argument("--rule", default="centre", help="of a hit: centre, iou:0.2, dbt")
    made.add_argument("--unit", default="lesion_view", choices=UNITS, help="what is found")
    made.add_argument("--replicates", type=int, default=2000, help="0 leaves intervals out")
    made.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    return made


def settings_of(arguments: argparse.Namespace) -> AssessSettings:
    """The rules of the command line; ``sens@F`` among the figures is computed whatever F is."""
    try:
        asked = [float(name[5:]) for name in arguments.figure if name.startswith("sens@")]
    except ValueError:
        raise UserError(
            f"--figure was {arguments.figure}: sens@F needs a number, such as sens@0.3"
        ) from None
    bootstrap = Bootstrap(arguments.replicates, arguments.seed) if arguments.replicates else None
    froc = FrocSettings(arguments.rule, unit=arguments.unit)
    return AssessSettings(froc, tuple(sorted({*DEFAULT_FPPI, *asked})), bootstrap)


def named(option: str, text: str) -> tuple[str, str]:
    """The two sides of NAME=VALUE."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UserError(f"{option} was {text!r}, but each is NAME=PATH")
    return name, value


def main() -> int:
    """Parse, call, print."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    arguments = parser().parse_args()
    settings, device = settings_of(arguments), resolve_device(arguments.device)
    pairs = [named("--models", text) for text in arguments.models]
    models = [Model(name, path, device, arguments.config_file) for name, path in pairs]
    datasets = []
    for name, value in (named("--datasets", text) for text in arguments.datasets):
        json_file, _, root = value.partition(":")
        datasets.append(DataSet(name, json_file, root or None))
    tell = lambda text: print(text, flush=True)  # noqa: E731
    matrix = run_matrix(models, datasets, arguments.out, settings, arguments.workers, tell)
    check_figures(matrix, arguments.figure)
    write_matrix(arguments.out, matrix, arguments.figure)
    print(f"\n{matrix_text(matrix, arguments.figure)}\n")
    print(f"tables: {arguments.out}/matrix.md, matrix.csv, matrix.json")
    if matrix.failures:
        number = len(matrix.failures)
        raise UserError(f"{number} of {len(matrix.pairs)} pairs failed, as told above")
    return 0


if __name__ == "__main__":
    run_tool(main)
