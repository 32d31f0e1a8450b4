# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Scalar functions, and the precision they are computed in."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself, or its float32 copy if its dtype is narrower (bfloat16, float16)."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def without_autocast(function: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype) -> Tensor:
    """``function(x)`` if there is no autocast, and without it in ``dtype`` if there is."""
    device = x.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return function(x)
    with torch.autocast(device, enabled=False):
        return function(x.to(dtype))


def in_own_precision(module: nn.Module, x: Tensor) -> Tensor:
    """``module(x)`` in the dtype of the module's parameters, whatever the autocast."""
    return without_autocast(module, x, next(module.parameters()).dtype)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """``log(x / (1 - x))`` with both sides clamped at ``eps``.

    Args:
        x (Tensor): any shape; clamped to [0, 1] first.
        eps (float): 1e-5 in the published code and in Hugging Face transformers; detrex trained
            its released weights with 1e-3.

    Returns:
        Tensor: same shape, in [log(eps), -log(eps)].
    """
    x = x.clamp(min=0, max=1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))
