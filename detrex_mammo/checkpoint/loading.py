# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Load weights into a model only if they fit."""

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)
# Queries that inference does not know: a file may have none, others, or those of another setting.
TRAINING_ONLY = ("denoising.", "hybrid.")


@dataclass
class Mismatch:
    """Difference between a model's state dict and a file's.

    Attributes:
        missing: names only the model has.
        unexpected: names only the file has.
        mis_shaped: name -> (shape in the file, shape in the model).
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mis_shaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mis_shaped)

    def describe(self) -> str:
        """Counts and the first few names of each kind."""
        shapes = [f"{k} {list(a)} instead of {list(b)}" for k, (a, b) in self.mis_shaped.items()]
        kinds = (("missing", self.missing), ("unexpected", self.unexpected), ("mis-shaped", shapes))
        return "; ".join(
            f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for kind, names in kinds
            if names
        )


def compare(model: nn.Module, state: Mapping[str, torch.Tensor]) -> Mismatch:
    """What keeps a state dict from fitting a model."""
    own = model.state_dict()
    shapes = {
        name: (tuple(state[name].shape), tuple(own[name].shape))
        for name in own
        if name in state and state[name].shape != own[name].shape
    }
    return Mismatch(
        missing=[name for name in own if name not in state],
        unexpected=[name for name in state if name not in own],
        mis_shaped=shapes,
    )


def load_weights(
    model: nn.Module,
    state: Mapping[str, torch.Tensor],
    path: str | Path,
    may_miss: Callable[[str], bool] = lambda name: False,
) -> list[str]:
    """Load weights into a model if, and only if, they fit.

    Weights stored in half precision take the model's precision. Queries of training that do not fit
    start afresh, which is logged: predictions do not depend on them.

    Args:
        model: left untouched if anything does not fit.
        state: the file's state dict.
        path: for the error.
        may_miss: names of the model that the file need not have.

    Returns:
        list[str]: names that kept their values.

    Raises:
        UserError: names what is missing, unexpected and mis-shaped.
    """
    mismatch = compare(model, state)
    found = [*mismatch.missing, *mismatch.unexpected, *mismatch.mis_shaped]
    if any(name.startswith(TRAINING_ONLY) for name in found):
        logger.info("queries that only training has are not those of %s: they start afresh", path)
        state = {name: t for name, t in state.items() if not name.startswith(TRAINING_ONLY)}
        mismatch = compare(model, state)
    kept = [n for n in mismatch.missing if may_miss(n) or n.startswith(TRAINING_ONLY)]
    mismatch.missing = [name for name in mismatch.missing if name not in kept]
    if mismatch:
        total = len(model.state_dict())
        raise UserError(
            f"checkpoint {str(path)!r} does not fit this model of {total} tensors: "
            f"{mismatch.describe()}{_class_hint(mismatch)}; use the config it was trained with"
        )
    model.load_state_dict(state, strict=False)
    return kept


def _class_hint(mismatch: Mismatch) -> str:
    for name, (stored, own) in mismatch.mis_shaped.items():
        if re.fullmatch(r"class_embed\.\d+\.bias", name):
            return (
                f"; the file has {stored[0]} class(es) and model.num_classes is {own[0]}: "
                "train.init.classes says what to keep for other classes"
            )
    return ""
