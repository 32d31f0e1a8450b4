# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Keep the best weights of a run by any number of its evaluations."""

import logging
import math
from collections.abc import Mapping

from detectron2.utils import comm

from detrex_mammo.engine.checkpointer import RunCheckpointer
from detrex_mammo.engine.plateau import MODES
from detrex_mammo.engine.watching import no_such_metric
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)


class BestCheckpoint:
    """Writes ``model_best.pth`` whenever an evaluation beats all earlier ones of the run.

    How good the file is stands in the file itself, so that the two never disagree, wherever a run
    is stopped and resumed.

    Args:
        checkpointer: of the run.
        metric: flat name of a number, such as "bbox/AP50" or "val/loss".
        mode: "max" or "min": whether more of it is better, or less.

    Raises:
        UserError: another mode.
    """

    def __init__(self, checkpointer: RunCheckpointer, metric: str, mode: str):
        if mode not in MODES:
            raise UserError(f"train.best.mode is {mode!r}, but must be 'max' or 'min'")
        self.checkpointer = checkpointer
        self.metric, self.mode = metric, mode
        # All processes know it, because all take part in saving.
        best = comm.all_gather(checkpointer.best() if comm.is_main_process() else None)[0] or {}
        is_same = (best.get("metric"), best.get("mode")) == (metric, mode)
        self.value: float | None = best["value"] if is_same else None

    def update(self, numbers: Mapping[str, float], iteration: int) -> None:
        """Save if this is the best; every process takes part, the main one has the numbers.

        Raises:
            UserError: there is no such number.
        """
        value = numbers.get(self.metric)
        problem = None
        if value is None:
            problem = str(no_such_metric("train.best.metric", self.metric, numbers))
        problem, value = comm.all_gather((problem, value))[0]
        if problem is not None:
            raise UserError(problem)
        if not math.isfinite(value):
            logger.warning("%s is %s in this evaluation: no best", self.metric, value)
        elif self._is_better(value):
            logger.info("best %s so far: %.4f", self.metric, value)
            self.value = value
            self.checkpointer.save_best(
                metric=self.metric, mode=self.mode, value=value, iteration=iteration
            )

    def _is_better(self, value: float) -> bool:
        if self.value is None:
            return True
        return value > self.value if self.mode == "max" else value < self.value
