# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Hooks of a run: learning rate, checkpoints, evaluations."""

import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from detrex_mammo.engine.best import BestCheckpoint
from detrex_mammo.engine.checkpointer import RunCheckpointer
from detrex_mammo.engine.early_stopping import EarlyStopping
from detrex_mammo.engine.ema import PREFIX, BothEvaluations, Ema
from detrex_mammo.engine.evaluation import Evaluation, flatten
from detrex_mammo.engine.history import EvaluationHistory, repair_metrics
from detrex_mammo.engine.plateau import PlateauSchedule
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)


class LearningRate(HookBase):
    """Set every group's learning rate before each step.

    The rate is a function of the step and of the evaluations before it, which the run's folder
    holds, so there is nothing to save or restore.

    Args:
        optimizer (torch.optim.Optimizer): with the base rates in its groups; build this hook
            before a checkpoint is loaded into the optimizer.
        schedule: (iteration, iters_per_epoch, max_iter) -> multiplier; that of a plateau also
            follows the evaluations, see :class:`Evaluations`.
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
        max_to_keep (int): ``model_final.pth`` is not counted; 0 keeps all.

    Raises:
        UserError: a number to keep that cannot be.
    """

    def __init__(self, checkpointer: RunCheckpointer, period: int, max_to_keep: int):
        self.checkpointer = checkpointer
        self.period = period
        if type(max_to_keep) is not int or max_to_keep < 0:
            raise UserError(
                f"train.checkpointer.max_to_keep is {max_to_keep!r}, but must be a whole number, 0 "
                "to keep all"
            )
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

    An evaluation that a run was stopped in is made when it is resumed.

    Args:
        evaluation (Evaluation): puts its numbers into the storage, through detectron2's hook.
        period (int): steps; 0 evaluates at the end only.
        history (EvaluationHistory): of the run.
        checkpointer (RunCheckpointer): of the run.
        best (BestCheckpoint, optional): is told of every evaluation, once it is recorded.
        ema (Ema, optional): is evaluated too; its weights are kept if ``best`` is about it.
        stopping (EarlyStopping, optional): may end the run after an evaluation.
        plateau (PlateauSchedule, optional): is told the multiplier of the steps to come.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        period: int,
        history: EvaluationHistory,
        checkpointer: RunCheckpointer,
        best: BestCheckpoint | None = None,
        ema: Ema | None = None,
        stopping: EarlyStopping | None = None,
        plateau: PlateauSchedule | None = None,
    ):
        super().__init__(period, self._numbers)
        self.evaluation, self.history, self.checkpointer = evaluation, history, checkpointer
        self.best, self.ema, self.stopping, self.plateau = best, ema, stopping, plateau
        self.evaluate = evaluation if ema is None else BothEvaluations(evaluation, ema)

    def again(self, iteration: int, metrics: Path) -> dict[str, Any]:
        """Evaluate a run that has ended already.

        Args:
            iteration: its last step.
            metrics: file that gets the numbers, if a kill kept the run from its last evaluation.

        Returns:
            dict: the results; empty in all but the main process.
        """
        numbers = self._numbers()
        is_missing = not self.history.has(iteration)
        self._settle(iteration)
        if is_missing and comm.is_main_process():
            repair_metrics(metrics, iteration + 1, numbers)
        return self.evaluation.results

    def judge(self) -> bool:
        """Draw the conclusions from the evaluations so far; every process takes part.

        Returns:
            bool: whether early stopping has ended the run.

        Raises:
            UserError: a metric that no evaluation gives.
        """
        problem = None
        is_over, multiplier = False, 1.0
        if comm.is_main_process():
            try:
                is_over = self.stopping is not None and self.stopping.is_over(self.history)
                multiplier = 1.0 if self.plateau is None else self._multiplier(self.plateau)
            except UserError as error:
                problem = str(error)
        problem, is_over, multiplier = comm.all_gather((problem, is_over, multiplier))[0]
        if problem is not None:
            raise UserError(problem)
        if self.plateau is not None:
            self.plateau.now = multiplier
        return is_over

    def _multiplier(self, plateau: PlateauSchedule) -> float:
        self.history.check("lr_multiplier.metric", plateau.metric)
        values = self.history.values(plateau.metric)
        multiplier = plateau.after(values)
        if multiplier != plateau.now:
            text = "learning rate x %g from now on, by %s of the %d evaluations so far"
            logger.info(text, multiplier, plateau.metric, len(values))
        return multiplier

    def before_train(self) -> None:
        """Make the evaluation that is missing after the last step of an earlier start."""
        start = self.trainer.start_iter
        is_due = start > 0 and self._period > 0 and start % self._period == 0
        if is_due and not comm.all_gather(self.history.has(start - 1))[0]:
            logger.info("the evaluation after step %d is missing and made now", start - 1)
            self.trainer.iter = self.trainer.storage.iter = start - 1
            self._do_eval()
            self.trainer.iter = self.trainer.storage.iter = start

    def after_step(self) -> None:
        """Evaluate if it is time; also after the last step, as its numbers are written with it."""
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self._period > 0 and done % self._period == 0):
            self._do_eval()

    def after_train(self) -> None:
        """Everything has been evaluated."""

    def _numbers(self) -> dict[str, float]:
        """Evaluate; the finite numbers alone, which is what detectron2's event storage takes."""
        numbers = flatten(self.evaluate())
        return {name: value for name, value in numbers.items() if math.isfinite(value)}

    def _do_eval(self) -> None:
        super()._do_eval()
        last = min(self.trainer.iter, self.trainer.max_iter - 1)
        try:
            self._settle(last)
            is_over = last < self.trainer.max_iter - 1 and self.judge()
        except UserError:
            # The run goes on from here when the setting is corrected.
            if self.checkpointer.last_saved != last:
                self.checkpointer.save(f"model_{last:07d}", iteration=last)
            raise
        if is_over:
            self.checkpointer.save("model_final", iteration=last)
            self.trainer.is_stopped = True

    def _settle(self, iteration: int) -> None:
        """Keep the weights if they are the best, then note that the evaluation is done."""
        numbers = flatten(self.evaluation.results)
        if self.best is not None:
            is_average = self.ema is not None and self.best.metric.startswith(f"{PREFIX}/")
            with self.ema.in_place() if is_average else nullcontext():
                self.best.update(numbers, iteration)
        if comm.is_main_process():
            self.history.add(iteration, numbers)
