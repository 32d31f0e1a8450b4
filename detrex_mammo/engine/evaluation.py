# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Run the evaluators of a config and print, keep and return their numbers."""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from omegaconf import DictConfig, ListConfig
from torch import nn

from detrex_mammo.engine import interruption, rng
from detrex_mammo.engine.evaluation_loop import WatchedLoader, run_evaluator
from detrex_mammo.engine.integrity import replace_text
from detrex_mammo.engine.loaders import (
    build_evaluator,
    build_test_loader,
    check_classes,
    dataset_names,
)
from detrex_mammo.engine.record import RunRecord, SpeedMeter, now
from detrex_mammo.engine.report import check_report, write_report
from detrex_mammo.engine.sharding import whole
from detrex_mammo.engine.validation import validation_losses, with_targets
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)


def require_evaluator(cfg: DictConfig) -> None:
    """Raise UserError if a config has nothing to evaluate with, or on."""
    for name, role in (("evaluator", "with"), ("test", "on")):
        if not by_name(cfg.dataloader.get(name)):
            raise UserError(
                f"dataloader.{name} is not set, so there is nothing to evaluate {role}: "
                "set it in the config"
            )


def by_name(node: Any) -> dict[str, Any]:
    """Parts of ``dataloader.test`` or ``dataloader.evaluator``; a single one has the name "".

    What is null is left out.
    """
    is_mapping = isinstance(node, DictConfig) and "_target_" not in node
    parts = {str(name): node[name] for name in node} if is_mapping else {"": node}
    return {name: part for name, part in parts.items() if part is not None}


def evaluated_datasets(dataloader: DictConfig) -> list[str]:
    """Names of the data sets that evaluators and test loaders are about; may be empty."""
    nodes = (by_name(dataloader.get(key)) for key in ("evaluator", "test"))
    parts = [part for node in nodes for part in node.values()]
    return list(dict.fromkeys(name for part in parts for name in dataset_names(part)))


class Evaluation:
    """The test loaders and evaluators of a run, built once and used at every evaluation.

    Args:
        cfg: the run's config. With several test loaders by name, every number has that name first.
        model: bare, not wrapped for distributed training; every process runs its share.
        first_batches: evaluate only so many batches per process (a trial run).
        record: of the run; each evaluation puts its date and speed there.

    Raises:
        UserError: loaders and evaluators that do not fit together, or classes that are not the
            model's.
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
        # A trial run predicts a part of the images only.
        self.reports = bool(cfg.train.get("report")) and first_batches is None
        self.model_name = Path(str(cfg.train.output_dir)).name
        self.has_losses = bool(cfg.train.eval_loss)
        needs_targets = self.has_losses or bool(cfg.train.get("tensorboard_images"))
        self.parts = [
            _build_part(name, test, evaluator, needs_targets, first_batches)
            for name, test, evaluator in _pairs(cfg.dataloader)
        ]
        for part in self.parts if self.reports else ():
            check_report(part.evaluator_node)
        for name in evaluated_datasets(cfg.dataloader):
            check_classes(model, [name])
        self.record = record
        self.results: dict[str, Any] = {}

    def __call__(self) -> dict[str, Any]:
        """Evaluate and print; the numbers are in the main process, an empty dict elsewhere.

        Raises:
            Interrupted: the run was asked to leave, and the evaluation is to be made again.
        """
        results: dict[str, Any] = {}
        speed: dict[str, Any] = {}
        # Several processes leave together, where they meet. The innermost: what the others put back
        # is put back whole.
        alone = interruption.current().leaving_at_once(lambda: comm.get_world_size() == 1)
        interruption.leave_if_asked()
        with rng.undisturbed(), whole(self.model), alone:
            for part in self.parts:
                inner = results.setdefault(part.name, {}) if part.name else results
                place = speed.setdefault(part.name, {}) if part.name else speed
                inner.update(self._evaluate(part, place))
        if self.record is not None:
            self.record.add(evaluation={"finished": now(), **speed})
            self.record.write()
        self.results = results if comm.is_main_process() else {}
        if self.results:
            logger.info("evaluation:\n%s", format_results(self.results))
        return self.results

    def _evaluate(self, part: "_Part", speed: dict[str, Any]) -> dict[str, Any]:
        of = f" of {part.name}" if part.name else ""
        with SpeedMeter(self.model, len(part.loader)) as meter:
            results = run_evaluator(
                self.model, part.loader, part.evaluator, f"evaluation{of}", part.folders
            )
        speed.update(meter.result())
        if self.reports:
            with interruption.main_process_works():
                if comm.is_main_process():
                    write_report(part.evaluator_node, part.test_node, self.model_name)
        if self.has_losses:
            loader = WatchedLoader(part.target_loader, f"validation loss{of}")
            results = {**results, "val": validation_losses(self.model, loader)}
            interruption.leave_if_asked()  # the loop may have ended early
        return dict(results)


@dataclass
class _Part:
    """One test loader with its evaluator, and the loader of the same images with targets."""

    name: str
    loader: Any
    evaluator: DatasetEvaluator
    test_node: DictConfig
    evaluator_node: Any
    target_loader: Any = None

    @property
    def folders(self) -> list[Path]:
        """That the evaluators write to."""
        node = self.evaluator_node
        nodes = node if isinstance(node, ListConfig) else [node]
        found = [node.get("output_dir") for node in nodes if isinstance(node, DictConfig)]
        return [Path(folder) for folder in found if folder]


def _build_part(
    name: str, test: DictConfig, evaluator: Any, needs_targets: bool, first_batches: int | None
) -> _Part:
    loader = build_test_loader(test, first_batches)
    part = _Part(name, loader, build_evaluator(evaluator), test, evaluator)
    if needs_targets:
        part.target_loader = build_test_loader(with_targets(test), first_batches)
    return part


def _pairs(dataloader: DictConfig) -> list[tuple[str, DictConfig, Any]]:
    """Name, test node and evaluator node of every part."""
    tests, evaluators = by_name(dataloader.test), by_name(dataloader.evaluator)
    if set(tests) != set(evaluators):
        one, other = (", ".join(found) or "a single one" for found in (tests, evaluators))
        raise UserError(
            f"dataloader.test has {one} and dataloader.evaluator has {other}: name the same data "
            "sets in both"
        )
    folders = [e.get("output_dir") for e in evaluators.values() if isinstance(e, DictConfig)]
    written = [folder for folder in folders if folder]
    if len(set(written)) < len(written):
        raise UserError(
            f"evaluators under dataloader.evaluator share output_dir {written[0]!r}, where each "
            "would overwrite the other's predictions: give each its own"
        )
    return [(name, tests[name], evaluators[name]) for name in tests]


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
    replace_text(path, json.dumps({**extra, **flat}) + "\n")
