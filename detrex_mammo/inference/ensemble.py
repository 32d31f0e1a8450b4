# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""An ensemble from files of predictions: calibrated, fused, and made to agree between views."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detrex_mammo.errors import UserError
from detrex_mammo.evaluation.agreement import Agreement, pairs_of_views
from detrex_mammo.evaluation.calibration import (
    Isotonic,
    Temperature,
    calibrated,
    fit_boxes,
    to_dict,
)
from detrex_mammo.evaluation.froc_settings import FrocSettings
from detrex_mammo.evaluation.fusion import Fusion
from detrex_mammo.evaluation.prediction_files import read_prediction_table
from detrex_mammo.evaluation.predictions import write_predictions
from detrex_mammo.evaluation.study import Study
from detrex_mammo.evaluation.tables import PredictionTable
from detrex_mammo.inference.offline import Truth


@dataclass(frozen=True)
class Validation:
    """What each model's calibration is fitted on: its boxes, right or wrong by a FROC rule.

    Attributes:
        kind: "temperature" or "isotonic".
        predictions: a file for each model, in their order.
        annotations: of the images that they are of.
        rule: of a hit.
    """

    kind: str
    predictions: Sequence[str | Path]
    annotations: str | Path
    rule: str = "centre"

    def fitted(self, truth: Truth) -> list[Temperature | Isotonic]:
        """A calibration for each model, to be applied to predictions of ``truth``.

        Raises:
            UserError: a file is missing, does not fit, or has other categories than ``truth``; a
                model has only right or only wrong boxes.
        """
        known = Truth.read(self.annotations)
        names, theirs = known.study.category_names, truth.study.category_names
        if names != theirs:
            raise UserError(
                f"{self.annotations} has the categories {dict(names)} and {truth.path} "
                f"{dict(theirs)}: fit the calibration on a file with the same"
            )
        return [self._fit(path, known) for path in self.predictions]

    def _fit(self, path: str | Path, known: Truth) -> Temperature | Isotonic:
        table = read_prediction_table(path, known.content, known.study)
        dataset = f"{Path(path).name} on {known.path.name}"
        return fit_boxes(self.kind, known.study, table, FrocSettings(self.rule), dataset)


@dataclass(frozen=True)
class Ensemble:
    """What is done, in this order.

    Attributes:
        calibration: of each model's scores; None takes them as they are.
        fusion: of the models; a single file is not fused.
        agreement: of the views of a breast; None leaves scores as they are.
    """

    calibration: Validation | None = None
    fusion: Fusion = Fusion()
    agreement: Agreement | None = None

    def __call__(
        self, predictions: Sequence[str | Path], annotations: str | Path
    ) -> tuple[Study, PredictionTable, dict[str, Any]]:
        """Make one of several files of predictions.

        Args:
            predictions: M files of the same images.
            annotations: of these images; lesions are not looked at.

        Returns:
            tuple: the images, the predictions, and what was done, for JSON.

        Raises:
            UserError: a file is missing, damaged, or of other images or categories.
        """
        if self.calibration and len(self.calibration.predictions) != len(predictions):
            raise UserError(
                f"there are {len(predictions)} files of predictions, but "
                f"{len(self.calibration.predictions)} to fit their calibration on: give one for "
                "each, in the same order"
            )
        truth = Truth.read(annotations)
        tables = [read_prediction_table(p, truth.content, truth.study) for p in predictions]
        facts: dict[str, Any] = {
            "annotations": _fingerprint(annotations),
            "models": [_fingerprint(path) for path in predictions],
        }
        if self.calibration is not None:
            fitted = self.calibration.fitted(truth)
            tables = [calibrated(t, made) for t, made in zip(tables, fitted, strict=True)]
            for entry, made, path in zip(
                facts["models"], fitted, self.calibration.predictions, strict=True
            ):
                entry["calibration"] = {**to_dict(made), "predictions": _fingerprint(path)}
            facts["calibration_annotations"] = _fingerprint(self.calibration.annotations)
        facts["fusion"] = self.fusion.to_dict() if len(tables) > 1 else None
        fused = self.fusion(truth.study, tables) if len(tables) > 1 else tables[0]
        facts["agreement"] = None
        if self.agreement is not None:
            fused = self.agreement(truth.study, fused)
            paired = {one for one, _ in pairs_of_views(truth.study)}
            facts["agreement"] = {**self.agreement.to_dict(), "images_with_partner": len(paired)}
        facts["predictions_in"] = [len(table) for table in tables]
        facts["predictions_out"] = len(fused)
        return truth.study, fused, facts


def records_of(study: Study, table: PredictionTable) -> list[dict[str, Any]]:
    """COCO results of a table: bbox is x, y, width, height in original pixels."""
    ids = study.lesions.image_ids
    sides = np.concatenate((table.boxes[:, :2], table.boxes[:, 2:] - table.boxes[:, :2]), axis=1)
    records = [
        {"image_id": ids[row], "category_id": category, "bbox": box, "score": score}
        for row, category, box, score in zip(
            table.image_index.tolist(), table.categories.tolist(), sides.tolist(),
            table.scores.tolist(), strict=True,
        )
    ]  # fmt: skip
    if table.slices is not None:
        for record, place in zip(records, table.slices.tolist(), strict=True):
            record.update({} if np.isnan(place) else {"slice": place})
    return records


def facts_path(path: str | Path) -> Path:
    """Where what was done is written: beside the predictions."""
    return Path(path).with_suffix(".ensemble.json")


def write_ensemble(
    path: str | Path, study: Study, table: PredictionTable, facts: dict[str, Any]
) -> None:
    """Write predictions as COCO results JSON, and what was done beside them; each file whole.

    Raises:
        UserError: a file cannot be written.
    """
    path, beside = Path(path), facts_path(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_predictions(records_of(study, table), partial)
        os.replace(partial, path)
        partial.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, beside)
    except OSError as error:
        raise UserError(f"--out {str(path)!r} cannot be written: {error.strerror}") from error


def _fingerprint(path: str | Path) -> dict[str, str]:
    """Name and SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"file": str(path), "sha256": digest.hexdigest()}
