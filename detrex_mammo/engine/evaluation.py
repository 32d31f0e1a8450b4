# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Run the evaluators of a config and print, keep and return their numbers."""

import json
import logging
import math
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from detrex_mammo.engine.loaders import (
    build_evaluator,
    build_test_loader,
    check_classes,
    dataset_names,
)
from detrex_mammo.engine.record import RunRecord, SpeedMeter, now
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)


def require_evaluator(cfg: DictConfig) -> None:
    """Raise UserError if a config has nothing to evaluate with, or on."""
    for name, role in (("evaluator", "with"), ("test", "on")):
        if cfg.dataloader.get(name) is None:
            raise UserError(
                f"dataloader.{name} is not set, so there is nothing to evaluate {role}: "
                "set it in the config"
            )


class Evaluation:
    """The test loader and evaluators of a run, built once and used at every evaluation.

    Args:
        cfg: the run's config.
        model: bare, not wrapped for distributed training; every process runs its share.
        first_batches: evaluate only so many batches per process (a trial run).
        record: of the run; each evaluation puts its date and speed there.
    """

    def __init__(
        self,
        cfg: DictConfig,
        model: nn.Module,
        first_batches: int | None = None,
        record: RunRecord | None = None,
    ):
        require_evaluator(cfg)
        self.model = model
        self.loader = build_test_loader(cfg.dataloader.test, first_batches)
        self.evaluator = build_evaluator(cfg.dataloader.evaluator)
        names = dataset_names(cfg.dataloader.evaluator) + dataset_names(cfg.dataloader.test)
        check_classes(model, names)
        self.record = record
        self.results: dict[str, Any] = {}

    def __call__(self) -> dict[str, Any]:
        """Evaluate and print; the numbers are in the main process, an empty dict elsewhere."""
        with SpeedMeter(self.model, len(self.loader)) as meter:
            results = inference_on_dataset(self.model, self.loader, self.evaluator) or {}
        if self.record is not None:
            self.record.add(evaluation={"finished": now(), **meter.result()})
            self.record.write()
        if comm.is_main_process() and results:
            logger.info("evaluation:\n%s", format_results(results))
        self.results = dict(results)
        return self.results

    def numbers(self) -> dict[str, float]:
        """Evaluate; the finite numbers alone, which is what detectron2's event storage takes."""
        return {name: value for name, value in flatten(self()).items() if math.isfinite(value)}


def flatten(results: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested results as ``{"bbox/AP50": 61.2, ...}``; what is not a number is left out."""
    flat: dict[str, float] = {}
    for name, value in results.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{key}/"))
        elif isinstance(value, Real) and not isinstance(value, bool):
            flat[key] = float(value)
    return flat


def format_results(results: Mapping[str, Any]) -> str:
    """One line per number, names aligned."""
    flat = flatten(results)
    width = max(map(len, flat), default=0)
    return "\n".join(f"  {name:<{width}}  {value:.4f}" for name, value in flat.items())


def write_metrics(results: Mapping[str, Any], path: Path, **extra: Any) -> None:
    """Write results as one JSON object in one line, as each line of a training run's file is.

    A number that does not exist (a class without any object) is null, as JSON has no NaN.
    """
    flat = {k: v if math.isfinite(v) else None for k, v in flatten(results).items()}
    path.write_text(json.dumps({**extra, **flat}) + "\n", encoding="utf-8")
