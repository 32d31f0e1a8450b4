# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A learning rate that drops when the evaluations of a run have stopped getting better.

The rate follows from the list of evaluations alone, so nothing is saved: a run that was killed
anywhere finds it again from ``evaluations.json``, which holds those of the steps that are done.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from detrex_mammo.engine.schedule import Schedule
from detrex_mammo.errors import UserError

MODES = ("max", "min")


@dataclass
class PlateauSchedule(Schedule):
    """torch's ReduceLROnPlateau over the evaluations, under the warm-up.

    Args:
        metric: flat name of a number, such as "val/loss" or "bbox/AP50".
        mode: "min" or "max": whether less of it is better, or more.
        factor: of each drop, in (0, 1).
        patience: evaluations in a row without a better one that are let pass; the next drops.
        threshold: how much better is better: a share of the best value, or an amount.
        threshold_mode: "rel" or "abs", which of the two.
        cooldown: evaluations after a drop that are not counted.
        min_factor: the multiplier does not fall below it, in [0, 1].

    Attributes:
        now: the multiplier after the newest evaluation; the engine sets it.

    Raises:
        UserError: a setting that cannot be.
    """

    metric: str = "val/loss"
    mode: str = "min"
    factor: float = 0.1
    patience: int = 10
    threshold: float = 1e-4
    threshold_mode: str = "rel"
    cooldown: int = 0
    min_factor: float = 0.0
    now: float = field(default=1.0, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = {
            "metric": (isinstance(self.metric, str) and self.metric, "the name of a number"),
            "mode": (self.mode in MODES, "'max' or 'min'"),
            "factor": (0 < self.factor < 1, "between 0 and 1"),
            "patience": (_is_count(self.patience), "a number of evaluations"),
            "threshold": (self.threshold >= 0, "0 or more"),
            "threshold_mode": (self.threshold_mode in ("rel", "abs"), "'rel' or 'abs'"),
            "cooldown": (_is_count(self.cooldown), "a number of evaluations"),
            "min_factor": (0 <= self.min_factor <= 1, "from 0 to 1"),
        }
        for name, (is_right, words) in allowed.items():
            if not is_right:
                raise UserError(
                    f"lr_multiplier.{name} is {getattr(self, name)!r}, but must be {words}"
                )

    def curve(self, epoch: float, share: float) -> float:
        return self.now

    def after(self, values: Sequence[float]) -> float:
        """The multiplier after some evaluations, from the first on; NaN is never better."""
        multiplier, best = 1.0, math.inf if self.mode == "min" else -math.inf
        bad = resting = 0
        for value in values:
            bad += 1
            if self._is_better(value, best):
                best, bad = value, 0
            if resting > 0:
                resting, bad = resting - 1, 0
            if bad > self.patience:
                multiplier = max(multiplier * self.factor, self.min_factor)
                resting, bad = self.cooldown, 0
        return multiplier

    def _is_better(self, value: float, best: float) -> bool:
        sign = 1.0 if self.mode == "max" else -1.0
        if self.threshold_mode == "abs":
            return sign * value > sign * best + self.threshold
        return sign * value > sign * best * (1.0 + sign * self.threshold)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0
