# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""``train.compile``: torch.compile for the parts of a model that gain from it."""

import logging

import torch
from torch import nn

from detrex_mammo.errors import UserError

logger = logging.getLogger(__name__)


def compile_parts(model: nn.Module, device: str) -> None:
    """Compile what ``model.parts_to_compile()`` names, in place.

    Names in the state dict stay as they are. Sizes are symbols, so that images of any size share
    one compilation; training, evaluation, and batches with and without padding each have their own.

    Args:
        model: with a method ``parts_to_compile() -> list[nn.Module]``.
        device: "cuda" or "cpu".

    Raises:
        UserError: the model has no such method, or torch.compile does not work here.
    """
    if not hasattr(model, "parts_to_compile"):
        raise UserError(
            f"train.compile is True, but {type(model).__name__} does not say what to compile (it "
            "has no method parts_to_compile); set train.compile=False"
        )
    _try_compiler(device)
    parts = model.parts_to_compile()
    for part in parts:
        part.compile(dynamic=True)
    logger.info("compiling %d modules with torch.compile at their first use", len(parts))


def _try_compiler(device: str) -> None:
    """Compile one multiplication now, rather than fail somewhere in the first step."""
    try:
        torch.compile(_twice, dynamic=True)(torch.ones(3, device=device))
    except Exception as error:  # torch's own, different in each version
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"train.compile is True, but torch.compile does not work here ({cause[0]}); install a "
            "C++ compiler (g++ or clang), or set train.compile=False"
        ) from error


def _twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2
