# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What shows a run to those who watch it, beside console, metrics.json and TensorBoard."""

import logging
from pathlib import Path

from detectron2.engine import HookBase, hooks
from omegaconf import DictConfig

from detrex_mammo.engine.evaluation import Evaluation
from detrex_mammo.engine.pictures import PredictionPictures
from detrex_mammo.engine.sharding import is_sharded
from detrex_mammo.engine.status import StatusHook
from detrex_mammo.engine.writers import optional_writers
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)


def seeing_hooks(
    cfg: DictConfig, folder: Path, iters_per_epoch: int, evaluation: Evaluation | None
) -> list[HookBase]:
    """Hooks of the main process; they come after that of the evaluation, before the writers.

    Args:
        cfg: of the run: ``train.log_period``, ``train.writers`` and ``train.tensorboard_images``.
        folder: of the run.
        iters_per_epoch: steps per epoch.
        evaluation: of the run, if it has one.

    Raises:
        UserError: a writer that does not exist, or a number of pictures that cannot be.
    """
    period, count = cfg.train.log_period, cfg.train.get("tensorboard_images") or 0
    if type(count) is not int or count < 0:
        raise UserError(
            f"train.tensorboard_images is {count!r}, but must be a whole number of images, "
            "0 for none"
        )
    found: list[HookBase] = []
    if evaluation is not None and count and is_sharded(evaluation.model):
        # The main process draws alone, and the others would have to bring it their shares.
        logger.warning("train.tensorboard_images=%d has no effect with train.fsdp", count)
    elif evaluation is not None and count:
        found.append(PredictionPictures(evaluation, count))
    found.append(StatusHook(folder, iters_per_epoch, period, evaluation))
    writers = optional_writers(cfg, folder)
    if writers:
        found.append(hooks.PeriodicWriter(writers, period=period))
    return found
