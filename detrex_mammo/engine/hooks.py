# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Hooks of a run: learning rate, checkpoints."""

from collections.abc import Callable

import torch
from detectron2.engine import HookBase

from detrex_mammo.engine.checkpointer import RunCheckpointer


class LearningRate(HookBase):
    """Set every group's learning rate before each step.

    The rate is a function of the step number alone, so there is nothing to save or restore.

    Args:
        optimizer (torch.optim.Optimizer): with the base rates in its groups; build this hook
            before a checkpoint is loaded into the optimizer.
        schedule: (iteration, iters_per_epoch, max_iter) -> multiplier.
        iters_per_epoch (int): steps per epoch.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: Callable[[int, int, int], float],
        iters_per_epoch: int,
    ):
        self.optimizer = optimizer
        self.schedule = schedule
        self.iters_per_epoch = iters_per_epoch
        self.base_rates = [group["lr"] for group in optimizer.param_groups]
        self.main_group = max(
            range(len(self.base_rates)),
            key=lambda index: len(optimizer.param_groups[index]["params"]),
        )

    def before_step(self) -> None:
        """Set and record the rate of this step."""
        trainer = self.trainer
        factor = self.schedule(trainer.iter, self.iters_per_epoch, trainer.max_iter)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates):
            group["lr"] = rate * factor
        rate = self.base_rates[self.main_group] * factor
        trainer.storage.put_scalar("lr", rate, smoothing_hint=False)


class Checkpoints(HookBase):
    """Save every ``period`` steps and at the end, and keep the newest ``max_to_keep``.

    Args:
        checkpointer (RunCheckpointer): writes only in the main process.
        period (int): steps; 0 saves at the end only.
        max_to_keep (int): ``model_final.pth`` is not counted.
    """

    def __init__(self, checkpointer: RunCheckpointer, period: int, max_to_keep: int):
        self.checkpointer = checkpointer
        self.period = period
        self.max_to_keep = max_to_keep

    def after_step(self) -> None:
        """Save if it is time."""
        done = self.trainer.iter + 1
        if done >= self.trainer.max_iter:
            self.checkpointer.save("model_final", iteration=self.trainer.iter)
        elif self.period > 0 and done % self.period == 0:
            self.checkpointer.save(f"model_{self.trainer.iter:07d}", iteration=self.trainer.iter)
            self.checkpointer.keep_newest(self.max_to_keep)
