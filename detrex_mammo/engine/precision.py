# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Mixed precision: ``train.amp``."""

import torch
from omegaconf import DictConfig

from detrex_mammo.errors import UserError

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def amp_dtype(amp: DictConfig) -> torch.dtype | None:
    """``train.amp`` as a dtype, None for full precision."""
    if amp.dtype not in _DTYPES:
        raise UserError(f"train.amp.dtype is {amp.dtype!r}, but must be 'bf16' or 'fp16'")
    return _DTYPES[amp.dtype] if amp.enabled else None
