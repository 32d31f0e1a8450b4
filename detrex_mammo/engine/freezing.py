# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Parts of a model that are not trained: ``train.freeze``."""

import logging
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from itertools import accumulate

from torch import nn

from detrex_mammo.config_check import nearest
from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze parameters by name.

    Args:
        model: bare.
        patterns: names of modules or parameters, such as "backbone" or
            "transformer.encoder.layers.*.norm1"; all that lies below is frozen.

    Raises:
        UserError: not a list of names, or one that fits no parameter.
    """
    if isinstance(patterns, str) or not all(isinstance(item, str) for item in patterns):
        raise UserError(
            f'train.freeze is {patterns!r}, but must be a list of names such as ["backbone"]'
        )
    for pattern in patterns:
        found = [
            parameter
            for name, parameter in model.named_parameters()
            if any(fnmatchcase(parent, pattern) for parent in _parents(name))
        ]
        if not found:
            known = dict.fromkeys(p for name, _ in model.named_parameters() for p in _parents(name))
            near = nearest(pattern, known, cutoff=0.0)
            raise UserError(
                f"train.freeze has {pattern!r}, which fits no part of the model: the nearest is "
                f"{near!r}"
            )
        for parameter in found:
            parameter.requires_grad = False
        count = sum(parameter.numel() for parameter in found)
        logger.info("frozen by %r: %.2f M parameters", pattern, count / 1e6)


def _parents(name: str) -> Iterator[str]:
    """ "a.b.c" -> "a", "a.b", "a.b.c"."""
    return accumulate(name.split("."), lambda parent, part: f"{parent}.{part}")
