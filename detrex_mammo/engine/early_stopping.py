# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""End a run that has stopped getting better: ``train.early_stopping``."""

import logging
import math
from collections.abc import Sequence

from detrex_mammo.engine.history import EvaluationHistory
from detrex_mammo.engine.plateau import MODES
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)


class EarlyStopping:
    """Stops after ``patience`` evaluations in a row that are no better than the best before them.

    What it knows is read from the run's evaluations, so a resumed run stops where an uninterrupted
    one does.

    Args:
        metric: flat name of a number, such as "bbox/AP50" or "val/loss".
        patience: evaluations.
        mode: "max" or "min": whether more of it is better, or less.

    Raises:
        UserError: a setting that cannot be.
    """

    def __init__(self, metric: str, patience: int, mode: str):
        if mode not in MODES:
            raise UserError(f"train.early_stopping.mode is {mode!r}, but must be 'max' or 'min'")
        if type(patience) is not int or patience < 1:
            raise UserError(
                f"train.early_stopping.patience is {patience!r}, but must be a whole number of "
                "evaluations above 0"
            )
        self.metric, self.patience, self.mode = metric, patience, mode

    def is_over(self, history: EvaluationHistory) -> bool:
        """Whether training ends after the newest evaluation.

        Raises:
            UserError: no evaluation has such a number.
        """
        history.check("train.early_stopping.metric", self.metric)
        waited = since_best(history.values(self.metric), self.mode)
        if waited >= self.patience:
            logger.info("%s has not become better in %d evaluations", self.metric, waited)
        return waited >= self.patience


def since_best(values: Sequence[float], mode: str) -> int:
    """Evaluations since the first one that holds the best value; NaN is never better."""
    sign = 1.0 if mode == "max" else -1.0
    scores = [-math.inf if math.isnan(value) else sign * value for value in values]
    return len(scores) - 1 - scores.index(max(scores)) if scores else 0
