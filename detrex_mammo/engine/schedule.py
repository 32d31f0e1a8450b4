# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Learning rate as a function of the step number: nothing to save, nothing to restore.

Every schedule is a curve over the run times a linear warm-up.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields

from detrex_mammo.errors import UserError


@dataclass(kw_only=True)
class Schedule:
    """A curve of multipliers with a linear warm-up; its length is given in one of three ways.

    Args:
        warmup_iters: steps of the warm-up from ``warmup_factor`` to 1.
        warmup_epochs: the same in epochs.
        warmup_share: the same as a share of the run, in [0, 1].
        warmup_factor: multiplier at step 0 of the warm-up.
        after_warmup: what is a curve over the run begins where the warm-up ends, as transformers
            has it; else at step 0, under the warm-up.

    Raises:
        UserError: more than one length is given, or a value that cannot be.
    """

    warmup_iters: int = 0
    warmup_epochs: float = 0.0
    warmup_share: float = 0.0
    warmup_factor: float = 0.001
    after_warmup: bool = False

    def __post_init__(self) -> None:
        for item in fields(self):
            if type(item.default) in (int, float):
                value = getattr(self, item.name)
                _check(item.name, value, _is_amount(value), "a number, 0 or more")
        is_switch = isinstance(self.after_warmup, bool)
        _check("after_warmup", self.after_warmup, is_switch, "true or false")
        lengths = {
            name: getattr(self, name) for name in ("warmup_iters", "warmup_epochs", "warmup_share")
        }
        told = ", ".join(f"{name}={value}" for name, value in lengths.items() if value)
        if sum(bool(value) for value in lengths.values()) > 1:
            raise UserError(f"lr_multiplier has {told}: set one of them")
        _check("warmup_share", self.warmup_share, self.warmup_share <= 1, "at most 1")

    def __call__(self, iteration: int, iters_per_epoch: int, max_iter: int) -> float:
        """Multiplier of the learning rate for one step.

        Args:
            iteration: steps done before this one.
            iters_per_epoch: steps per epoch.
            max_iter: steps of the whole run.
        """
        length = (
            self.warmup_iters
            or self.warmup_epochs * iters_per_epoch
            or self.warmup_share * max_iter
        )
        start = length if self.after_warmup else 0
        share = min(max(iteration - start, 0) / max(max_iter - start, 1), 1.0)
        value = self.curve(iteration / iters_per_epoch, share)
        if iteration >= length:
            return value
        return value * _between(self.warmup_factor, 1.0, iteration / length)

    def curve(self, epoch: float, share: float) -> float:
        """Multiplier without the warm-up.

        Args:
            epoch: epochs done.
            share: of the run that is done, in [0, 1].
        """
        raise NotImplementedError


@dataclass
class MultiStepSchedule(Schedule):
    """Multiply by ``gamma`` at each milestone.

    Args:
        milestones: epochs after which the rate drops, ascending; fractions allowed.
        gamma: factor of each drop.
    """

    milestones: Sequence[float] = (40,)
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        is_list = isinstance(self.milestones, Sequence) and not isinstance(self.milestones, str)
        is_list = is_list and all(map(_is_amount, self.milestones))
        _check("milestones", self.milestones, is_list, "a list of epochs")
        self.milestones = [float(milestone) for milestone in self.milestones]
        is_sorted = self.milestones == sorted(self.milestones)
        _check("milestones", self.milestones, is_sorted, "in ascending order")

    def curve(self, epoch: float, share: float) -> float:
        return self.gamma ** bisect_right(self.milestones, epoch)


@dataclass
class StepSchedule(Schedule):
    """Multiply by ``gamma`` after every ``epochs`` epochs."""

    epochs: float = 40.0
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("epochs", self.epochs, self.epochs > 0, "above 0")

    def curve(self, epoch: float, share: float) -> float:
        return self.gamma ** math.floor(round(epoch / self.epochs, 9))


@dataclass
class PolynomialSchedule(Schedule):
    """From 1 to ``final_factor`` as (share of the run that is left) ** ``power``."""

    power: float = 1.0
    final_factor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("power", self.power, self.power > 0, "above 0")

    def curve(self, epoch: float, share: float) -> float:
        return _between(self.final_factor, 1.0, (1 - share) ** self.power)


@dataclass
class LinearSchedule(Schedule):
    """A straight line from 1 to ``final_factor`` over the run."""

    final_factor: float = 0.0

    def curve(self, epoch: float, share: float) -> float:
        return _between(self.final_factor, 1.0, 1 - share)


@dataclass
class CosineSchedule(Schedule):
    """Half a cosine from 1 to ``final_factor`` over the run, or over each part of it.

    Args:
        final_factor: multiplier at the end.
        cycles: equal parts of the run; each starts again at 1.
    """

    final_factor: float = 0.0
    cycles: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        is_count = self.cycles == int(self.cycles) and self.cycles >= 1
        _check("cycles", self.cycles, is_count, "a whole number above 0")

    def curve(self, epoch: float, share: float) -> float:
        part = round(self.cycles * share, 9) % 1.0 if share < 1 else 1.0
        return _between(self.final_factor, 1.0, _wave(part))


@dataclass
class OneCycleSchedule(Schedule):
    """Up to 1 and down again, each half a cosine (https://arxiv.org/abs/1708.07120).

    Args:
        peak_at: share of the run at which the multiplier is 1, in (0, 1).
        start_factor: multiplier at step 0.
        final_factor: multiplier at the end.
    """

    peak_at: float = 0.3
    start_factor: float = 0.04
    final_factor: float = 0.000004

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("peak_at", self.peak_at, 0 < self.peak_at < 1, "between 0 and 1")

    def curve(self, epoch: float, share: float) -> float:
        if share < self.peak_at:
            return _between(1.0, self.start_factor, _wave(share / self.peak_at))
        part = (share - self.peak_at) / (1 - self.peak_at)
        return _between(self.final_factor, 1.0, _wave(part))


def _wave(part: float) -> float:
    """Half a cosine: 1 at 0, 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * part))


def _between(low: float, high: float, part: float) -> float:
    return low + (high - low) * part


def _is_amount(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _check(name: str, value: object, is_right: bool, allowed: str) -> None:
    if not is_right:
        raise UserError(f"lr_multiplier.{name} is {value!r}, but must be {allowed}")
