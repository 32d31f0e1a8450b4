# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""An exponential moving average of the weights: ``train.ema``."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn

from detrex_mammo.engine.evaluation import Evaluation
from detrex_mammo.engine.sharding import gathered, like, local
from detrex_mammo.errors import UserError

PREFIX = "ema"  # of its numbers


class Ema:
    """The average of a model's weights over the steps of :class:`Averaging`.

    After n steps ``average += (1 - d) (weights - average)`` with
    ``d = decay (1 - exp(-n / warmup))``: the first steps, from random heads, are soon forgotten.
    Whole numbers among the buffers (counters) are taken as they are.

    Args:
        model: bare.
        decay: in (0, 1).
        warmup: steps; 0 for none.

    Raises:
        UserError: a setting that cannot be.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, warmup: float = 2000):
        if not 0 < decay < 1:
            raise UserError(f"train.ema.decay is {decay}, but must be above 0 and below 1")
        if warmup < 0:
            raise UserError(f"train.ema.warmup is {warmup}, but must be a number of steps, or 0")
        self.model, self.decay, self.warmup = model, decay, warmup
        self.average = {name: value.clone() for name, value in self._weights().items()}
        self.updates = 0

    def update(self) -> None:
        """Move towards the weights."""
        self.updates += 1
        decay = self.decay
        if self.warmup:
            decay *= 1 - math.exp(-self.updates / self.warmup)
        weights = self._weights()
        names = [name for name, value in weights.items() if value.is_floating_point()]
        averages = [local(self.average[name]) for name in names]
        values = [local(weights[name]) for name in names]
        torch._foreach_lerp_(averages, values, 1 - decay)
        for name in weights.keys() - set(names):
            self.average[name].copy_(weights[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the average for its weights."""
        weights = self._weights()
        kept = {name: value.clone() for name, value in weights.items()}
        try:
            self._put(self.average)
            yield
        finally:
            self._put(kept)

    def state_dict(self) -> dict[str, Any]:
        """The average, as ``model``, and the number of steps in it; every process takes part."""
        return {"model": gathered(self.average), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        for name, value in self.average.items():
            value.copy_(like(state["model"][name], value))
        self.updates = int(state["updates"])

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.model.state_dict().items()}

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, value in self._weights().items():
            value.copy_(values[name])


class Averaging(HookBase):
    """Takes each step into the average; register it before the checkpoints.

    The average is no state of this hook: sharded weights would be gathered and stored twice.

    Args:
        ema: of the run.
    """

    def __init__(self, ema: Ema):
        self.ema = ema

    def after_step(self) -> None:
        """Take the step's weights."""
        self.ema.update()


class BothEvaluations:
    """Evaluates the average and then the weights; the numbers of the average begin with ``ema/``.

    The weights come last: what evaluators write into their folders is theirs.

    Args:
        evaluation: of the run.
        ema: of the run.
    """

    def __init__(self, evaluation: Evaluation, ema: Ema):
        self.evaluation, self.ema = evaluation, ema

    def __call__(self) -> dict[str, Any]:
        """Evaluate; the numbers are in the main process, an empty dict elsewhere."""
        with self.ema.in_place():
            average = self.evaluation()
        results = self.evaluation()
        if results:
            self.evaluation.results = {**results, PREFIX: average}
        return self.evaluation.results
