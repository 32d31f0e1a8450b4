# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Score a file of predictions against a file of annotations, without a model."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.assess.assessment import Assessment, assess
from detrex_mammo.evaluation.assess.settings import AssessSettings
from detrex_mammo.evaluation.assess.units import marks_of, units_of
from detrex_mammo.evaluation.calibration import fit_boxes
from detrex_mammo.evaluation.comparison import compare
from detrex_mammo.evaluation.operating_point import (
    OperatingPoint,
    choose_for_boxes,
    choose_for_units,
)
from detrex_mammo.evaluation.prediction_files import read_prediction_table
from detrex_mammo.evaluation.predictions import read_annotations
from detrex_mammo.evaluation.report.content import Report, Table
from detrex_mammo.evaluation.report.page import headline_table, write_csv, write_report
from detrex_mammo.evaluation.study import Study, read_study
from detrex_mammo.inference.report_pictures import ReportPictures

RESULTS = "evaluation.json"


@dataclass(frozen=True)
class Truth:
    """An annotation file.

    Attributes:
        path: of the file.
        content: as it was read.
        study: the same, grouped.
    """

    path: Path
    content: dict[str, Any]
    study: Study

    @classmethod
    def read(cls, path: str | Path) -> "Truth":
        """Read an annotation file.

        Raises:
            UserError: it is missing or no COCO file, or a box of it is damaged.
        """
        content = read_annotations(path)
        return cls(Path(path), content, read_study(content))

    def assess(
        self, predictions: str | Path, settings: AssessSettings, calibrate: str | None = None
    ) -> Assessment:
        """Score a file of predictions.

        Args:
            calibrate: first fit a calibration on these very data; "temperature" or "isotonic".

        Raises:
            UserError: the file is missing or damaged, or does not fit these annotations.
        """
        table = read_prediction_table(predictions, self.content, self.study)
        if calibrate is not None:
            made = fit_boxes(calibrate, self.study, table, settings.froc, self.path.name)
            settings = replace(settings, calibration=made)
        return assess(self.study, table, settings)


def choose_points(
    assessment: Assessment, rules: Sequence[str], dataset: str
) -> list[OperatingPoint]:
    """Thresholds by rules such as ``box:fppi:0.3`` or ``image:sensitivity:0.9``.

    Raises:
        UserError: a rule is unknown or cannot be fulfilled on these data.
    """
    points = []
    scored = assessment.scored
    for text in rules:
        level, colon, rule = text.partition(":")
        if level not in ("box", "image", "breast", "case") or not colon:
            raise UserError(
                f"--choose was {text!r}, but it is LEVEL:RULE, such as box:fppi:0.3, "
                "image:sensitivity:0.9, breast:specificity:0.9, case:youden"
            )
        if level == "box":
            point = choose_for_boxes(marks_of(scored), rule, dataset)
        else:
            point = choose_for_units(units_of(scored, level), rule, dataset)
        points.append(replace(point, settings={**point.settings, **scored.settings.of_points}))
    return points


def comparison_table(
    assessment: Assessment, other: Assessment, name: str, other_name: str
) -> Table:
    """Every figure of two models that is out of the same lesions or images, paired.

    Raises:
        UserError: there are no intervals, so nothing is drawn.
    """
    bootstrap = assessment.scored.settings.bootstrap
    if bootstrap is None or assessment.scored.draws is None:
        raise UserError(
            "--compare needs the bootstrap over at least two patients: raise --replicates, or give "
            "data with patient_id"
        )
    theirs = other.figures
    # A figure out of the model's own boxes, such as the PPV, has no pairs.
    ours = {n: f for n, f in assessment.figures.items() if n in theirs and theirs[n].of == f.of}
    found = compare(ours, theirs, bootstrap)
    columns = ["figure", name, other_name, "difference", "low", "high", "p", "of"]
    rows = []
    for figure, pair in found.items():
        d = pair.difference
        numbers = [pair.a, pair.b, d.value, d.low, d.high, pair.p_value]
        rows.append([figure, *(round(v, 4) if math.isfinite(v) else None for v in numbers), d.of])
    note = (
        f"Both models in the same replicates: {bootstrap.text()}; two-sided p, not corrected; AP "
        "and AR in percent."
    )
    return Table("comparison", f"{name} against {other_name}", note, columns, rows)


def headline_text(assessment: Assessment) -> str:
    """The headline for the console."""
    table = headline_table(assessment.part.numbers, assessment.interval)
    rows = [[row[0], row[1], row[2], row[4]] for row in table.rows]
    headers = ["figure", "value", table.columns[2], "out of"]
    lines = [tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)]
    lines.append(f"Rule: {assessment.scored.settings.froc.text()}.")
    if assessment.scored.settings.calibration is not None:
        lines.append(f"Scores: calibrated, {assessment.scored.settings.calibration.text()}.")
    if assessment.scored.settings.bootstrap is not None:
        lines.append(f"Intervals: {assessment.scored.settings.bootstrap.text()}.")
    lines += [f"Not computed: {sentence}." for sentence in assessment.part.missing]
    return "\n".join(lines)


def write_results(
    folder: Path, assessment: Assessment, extra: dict[str, Any], with_tables: bool = True
) -> None:
    """``evaluation.json`` and, unless a report has them, each table as CSV.

    Raises:
        UserError: the folder cannot be written.
    """
    content = {**extra, **assessment.to_dict()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{RESULTS}.partial"
        partial.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
        os.replace(partial, folder / RESULTS)
        for table in assessment.part.tables if with_tables else ():
            write_csv(folder / f"{table.key}.csv", table)
    except OSError as error:
        raise UserError(f"--out {str(folder)!r} cannot be written: {error.strerror}") from error


def write_page(
    folder: Path, report: Report, study: Study, image_root: Path | None, window: str, workers: int
) -> Path:
    """The HTML report, with pictures if it is known where the images are.

    Raises:
        UserError: the folder cannot be written.
    """
    if image_root is None:
        return write_report(folder, report)
    if workers < 0:
        raise UserError(f"--workers was {workers}, but processes are 0 or more")
    views = [view for card in report.cards for view in card.views]
    with ReportPictures(study.images, image_root, views, window, workers) as pictures:
        return write_report(folder, report, pictures)
