# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Learning rate as a function of the step number: nothing to save, nothing to restore."""

import math
from bisect import bisect_right
from collections.abc import Sequence

from detrex_mammo.errors import UserError


class Warmup:
    """Linear warm-up from ``factor`` to 1, its length given in steps or in epochs."""

    def __init__(self, iters: int = 0, epochs: float = 0.0, factor: float = 0.001):
        if iters and epochs:
            raise UserError(
                f"lr_multiplier has warmup_iters={iters} and warmup_epochs={epochs}: set one"
            )
        if iters < 0 or epochs < 0:
            raise UserError("lr_multiplier: warmup_iters and warmup_epochs cannot be negative")
        self.iters, self.epochs, self.factor = iters, epochs, factor

    def __call__(self, iteration: int, iters_per_epoch: int) -> float:
        length = self.iters or self.epochs * iters_per_epoch
        if iteration >= length:
            return 1.0
        return self.factor + (1 - self.factor) * iteration / length


class MultiStepSchedule:
    """Multiply the learning rate by ``gamma`` at each milestone, after a linear warm-up.

    Args:
        milestones: epochs after which the rate drops, ascending; fractions allowed.
        gamma: factor of each drop.
        warmup_iters: steps of linear warm-up from ``warmup_factor`` to 1.
        warmup_epochs: the same in epochs; set one of the two.
        warmup_factor: multiplier at step 0 of the warm-up.
    """

    def __init__(
        self,
        milestones: Sequence[float] = (40,),
        gamma: float = 0.1,
        warmup_iters: int = 0,
        warmup_epochs: float = 0.0,
        warmup_factor: float = 0.001,
    ):
        self.milestones = [float(milestone) for milestone in milestones]
        if self.milestones != sorted(self.milestones):
            raise UserError(f"lr_multiplier.milestones is {self.milestones}, but must ascend")
        self.gamma = gamma
        self.warmup = Warmup(warmup_iters, warmup_epochs, warmup_factor)

    def __call__(self, iteration: int, iters_per_epoch: int, max_iter: int) -> float:
        """Multiplier of the learning rate for one step.

        Args:
            iteration: steps done before this one.
            iters_per_epoch: steps per epoch.
            max_iter: steps of the whole run (not needed by this schedule).
        """
        drops = bisect_right(self.milestones, iteration / iters_per_epoch)
        return self.gamma**drops * self.warmup(iteration, iters_per_epoch)


class CosineSchedule:
    """Half a cosine from 1 to ``final_factor`` over the run, times a linear warm-up.

    Args:
        final_factor: multiplier at the end.
        warmup_iters: steps of linear warm-up from ``warmup_factor`` to 1.
        warmup_epochs: the same in epochs; set one of the two.
        warmup_factor: multiplier at step 0 of the warm-up.
    """

    def __init__(
        self,
        final_factor: float = 0.0,
        warmup_iters: int = 0,
        warmup_epochs: float = 0.0,
        warmup_factor: float = 0.001,
    ):
        self.final_factor = final_factor
        self.warmup = Warmup(warmup_iters, warmup_epochs, warmup_factor)

    def __call__(self, iteration: int, iters_per_epoch: int, max_iter: int) -> float:
        """Multiplier of the learning rate for one step; arguments as in MultiStepSchedule."""
        wave = 0.5 * (1 + math.cos(math.pi * min(1.0, iteration / max_iter)))
        value = self.final_factor + (1 - self.final_factor) * wave
        return value * self.warmup(iteration, iters_per_epoch)
