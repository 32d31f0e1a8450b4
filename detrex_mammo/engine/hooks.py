# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Hooks of a run: learning rate, checkpoints, evaluations."""

from collections.abc import Callable

import torch
from detectron2.engine import HookBase, hooks

from detrex_mammo.engine.best import BestCheckpoint
from detrex_mammo.engine.checkpointer import RunCheckpointer
from detrex_mammo.engine.evaluation import Evaluation, flatten


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


class Evaluations(hooks.EvalHook):
    """Evaluate every ``period`` steps and after the last one.

    Args:
        evaluation (Evaluation): puts its numbers into the storage, through detectron2's hook.
        period (int): steps; 0 evaluates at the end only.
        best (BestCheckpoint, optional): is told of every evaluation, once it is recorded.
    """

    def __init__(self, evaluation: Evaluation, period: int, best: BestCheckpoint | None = None):
        super().__init__(period, evaluation.numbers)
        self.evaluation = evaluation
        self.best = best

    def _do_eval(self) -> None:
        super()._do_eval()
        if self.best is not None:
            last = min(self.trainer.iter, self.trainer.max_iter - 1)
            self.best.update(flatten(self.evaluation.results), last)

    def after_train(self) -> None:
        """Evaluate if training came to its end; not if its last step failed."""
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()
