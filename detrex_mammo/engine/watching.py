# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Settings that watch one number of the evaluations: the number must come to exist."""

from collections.abc import Iterable, Iterator
from typing import Any

from omegaconf import DictConfig

from detrex_mammo.config_check import nearest
from detrex_mammo.engine.ema import PREFIX
from detrex_mammo.engine.evaluation import by_name
from detrex_mammo.engine.plateau import PlateauSchedule
from detrex_mammo.errors import UserError

LR_MULTIPLIER = "lr_multiplier"


def check_watched(cfg: DictConfig, schedule: Any) -> None:
    """Refuse at the start what no evaluation will give.

    Args:
        cfg: of the run.
        schedule: the built ``lr_multiplier``.

    Raises:
        UserError: the average or the validation loss is watched but not computed, or what acts
            during the run is given no evaluation to act on.
    """
    settings = cfg.train
    has_evaluator = bool(by_name(cfg.dataloader.get("evaluator")))
    for key, metric in _watched(cfg, schedule):
        told = f"{key}.metric is {metric!r}"
        if metric.startswith(f"{PREFIX}/") and not settings.ema.enabled:
            raise UserError(
                f"{told}, but there is no average of the weights: set train.ema.enabled=True"
            )
        if key == LR_MULTIPLIER and not has_evaluator:
            raise UserError(
                f"{told}, but dataloader.evaluator is not set, so nothing is evaluated: set it, or "
                "take a schedule that does not wait for evaluations"
            )
        if key != "train.best" and settings.eval_period_epochs <= 0:
            raise UserError(
                f"{told}, but train.eval_period_epochs is {settings.eval_period_epochs}, so it is "
                "evaluated at the end only: set a period"
            )
        if _is_validation_loss(cfg, metric) and not settings.eval_loss:
            raise UserError(f"{told}, but train.eval_loss is False: set train.eval_loss=True")


def _is_validation_loss(cfg: DictConfig, metric: str) -> bool:
    """Whether it is "val/loss" or a part of it; of several test sets the set's name is first."""
    parts = metric.removeprefix(f"{PREFIX}/").split("/")
    if parts[0] in by_name(cfg.dataloader.get("test")):
        parts = parts[1:]
    return parts[:-1] == ["val"]


def _watched(cfg: DictConfig, schedule: Any) -> Iterator[tuple[str, str]]:
    """Settings in use, and their metrics."""
    for name in ("best", "early_stopping"):
        if cfg.train[name].metric:
            yield f"train.{name}", cfg.train[name].metric
    if isinstance(schedule, PlateauSchedule):
        yield LR_MULTIPLIER, schedule.metric


def no_such_metric(key: str, metric: str, known: Iterable[str]) -> UserError:
    """The sentence for a metric that is not among the numbers of an evaluation.

    Args:
        key: the setting that names it.
        metric: flat name, such as "bbox/AP50".
        known: names that there are.
    """
    known = list(known)
    near = nearest(metric, known)
    hint = f"the nearest is {near!r}" if near else f"there are {', '.join(known)}"
    return UserError(
        f"{key} is {metric!r}, which no evaluation gives ({hint}): correct it and go on with "
        "--resume"
    )
