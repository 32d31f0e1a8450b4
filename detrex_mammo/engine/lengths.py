# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""How long a run and its periods are, in steps."""

import math

from omegaconf import DictConfig, OmegaConf

from detrex_mammo.errors import UserError


def positive(settings: DictConfig, name: str) -> int:
    """``train.<name>``, which must be a whole number above 0."""
    value = settings[name]
    if type(value) is not int or value < 1:
        raise UserError(f"train.{name} is {value}, but must be a whole number above 0")
    return value


def total_iterations(settings: DictConfig, iters_per_epoch: int) -> int:
    """Steps of a run: ``train.max_iter`` if set, else from ``train.epochs``."""
    if settings.max_iter is not None:
        if type(settings.max_iter) is not int or settings.max_iter < 1:
            raise UserError(
                f"train.max_iter is {settings.max_iter!r}, but must be a whole number of steps "
                "above 0, or null to count in epochs"
            )
        return settings.max_iter
    if not 0 < settings.epochs < math.inf:
        raise UserError(f"train.epochs is {settings.epochs}, but must be above 0")
    return max(1, round(settings.epochs * iters_per_epoch))


def period(settings: DictConfig, name: str, iters_per_epoch: int) -> int:
    """``train.<name>``, in epochs, as steps, at least 1; 0 stays 0."""
    epochs = OmegaConf.select(settings, name)
    if not 0 <= epochs < math.inf:
        raise UserError(f"train.{name} is {epochs}, but must be a number of epochs, or 0")
    return 0 if epochs == 0 else max(1, round(epochs * iters_per_epoch))
