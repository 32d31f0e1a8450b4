# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Settings of a command line that exist, but that nothing reads because of another setting."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from detrex_mammo.engine.evaluation import by_name


@dataclass(frozen=True)
class _Rule:
    """A group of settings that another one switches off.

    Attributes:
        key: the setting, or the group of all settings below it.
        is_off: whether nothing reads it in this config.
        because: the other setting and its value, then what to do; formatted with ``cfg``.
    """

    key: str
    is_off: Callable[[DictConfig], bool]
    because: str


def _is_never_evaluated(cfg: DictConfig) -> bool:
    settings = cfg.train
    has_evaluator = bool(by_name(cfg.dataloader.get("evaluator")))
    needs_one = settings.eval_loss or settings.best.metric or settings.early_stopping.metric
    return not (has_evaluator or needs_one)


_RULES = (
    _Rule(
        "dataloader.train.total_batch_size",
        lambda cfg: cfg.train.get("batch_size") is not None,
        "train.batch_size is {cfg.train.batch_size}, which wins: set train.batch_size=null",
    ),
    _Rule(
        "train.epochs",
        lambda cfg: cfg.train.max_iter is not None,
        "train.max_iter is {cfg.train.max_iter}, which wins: set train.max_iter=null",
    ),
    _Rule(
        "train.amp.dtype",
        lambda cfg: not cfg.train.amp.enabled,
        "train.amp.enabled is False: set train.amp.enabled=True",
    ),
    _Rule(
        "train.clip_grad.params.max_norm",
        lambda cfg: not cfg.train.clip_grad.enabled,
        "train.clip_grad.enabled is False: set train.clip_grad.enabled=True",
    ),
    _Rule(
        "train.best.mode",
        lambda cfg: not cfg.train.best.metric,
        "train.best.metric is not set: set it to a number of the evaluation",
    ),
    _Rule(
        "train.checkpointer.max_to_keep",
        lambda cfg: cfg.train.checkpointer.period_epochs <= 0,
        "train.checkpointer.period_epochs is 0, so only the last checkpoint is written: set it",
    ),
    _Rule(
        "train.ema.decay",
        lambda cfg: not cfg.train.ema.enabled,
        "train.ema.enabled is False: set train.ema.enabled=True",
    ),
    _Rule(
        "train.ema.warmup",
        lambda cfg: not cfg.train.ema.enabled,
        "train.ema.enabled is False: set train.ema.enabled=True",
    ),
    _Rule(
        "train.early_stopping.patience",
        lambda cfg: not cfg.train.early_stopping.metric,
        "train.early_stopping.metric is not set: set it to a number of the evaluation",
    ),
    _Rule(
        "train.early_stopping.mode",
        lambda cfg: not cfg.train.early_stopping.metric,
        "train.early_stopping.metric is not set: set it to a number of the evaluation",
    ),
    _Rule(
        "train.scale_lr.reference",
        lambda cfg: not cfg.train.scale_lr.rule,
        "train.scale_lr.rule is not set: set it to linear or sqrt",
    ),
    *(
        _Rule(
            key,
            _is_never_evaluated,
            "the run has no dataloader.evaluator: set one, or train.eval_loss=True",
        )
        for key in ("train.eval_period_epochs", "train.tensorboard_images")
    ),
    _Rule(
        "train.report",
        lambda cfg: not by_name(cfg.dataloader.get("evaluator")),
        "the run has no dataloader.evaluator: set one",
    ),
    _Rule(
        "train.fsdp.reshard_after_forward",
        lambda cfg: not cfg.train.fsdp.enabled,
        "train.fsdp.enabled is False: set train.fsdp.enabled=True",
    ),
    _Rule(
        "train.init",
        lambda cfg: not cfg.train.init_checkpoint,
        "train.init_checkpoint is not set: set it to a file",
    ),
)


def ineffective(cfg: DictConfig, overrides: Sequence[str]) -> Iterator[str]:
    """One sentence, with what to do, for each override that changes nothing.

    Only what is certain: a setting is told if another one alone decides that nothing reads it.

    Args:
        cfg: the checked config, overrides applied.
        overrides: ``key=value``.
    """
    for override in overrides:
        key = override.partition("=")[0]
        for rule in _RULES:
            if key == rule.key or key.startswith(f"{rule.key}."):
                if rule.is_off(cfg):
                    yield f"{override} has no effect, because {rule.because.format(cfg=cfg)}"
