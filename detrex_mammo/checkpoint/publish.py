# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A run's checkpoint made small enough to hand out: no trainer state, half precision if wanted."""

import os
from pathlib import Path

import torch

from detrex_mammo.checkpoint.reading import read_checkpoint, weights_of
from detrex_mammo.errors import UserError

# What a checkpoint tells about itself, beside its weights.
DESCRIPTION = ("config", "classes", "preprocessing", "provenance")


def publish_checkpoint(source: str | Path, target: str | Path, half: bool = False) -> int:
    """Write the weights of a run's checkpoint, and what describes them, to a new file.

    Args:
        source: a checkpoint of ``tools/train_net.py``.
        target: the file to write, whole or not at all; it must not exist.
        half: store float32 tensors as float16; they are widened again on loading.

    Returns:
        int: size of the new file in bytes.

    Raises:
        UserError: the source is no checkpoint or lacks its description, a weight does not fit
            into half precision, or the target exists.
    """
    target = Path(target)
    if target.exists():
        raise UserError(f"{str(target)!r} exists: remove it, or give another name")
    checkpoint = read_checkpoint(source)
    missing = [key for key in DESCRIPTION if key not in checkpoint]
    if missing:
        raise UserError(f"checkpoint {str(source)!r} lacks {', '.join(missing)}: not a run's own")
    weights = weights_of(checkpoint, source)
    if half:
        weights = {name: _halved(name, tensor, source) for name, tensor in weights.items()}
    content = {"model": weights, **{key: checkpoint[key] for key in DESCRIPTION}}
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(target.suffix + ".partial")
    torch.save(content, partial)
    os.replace(partial, target)
    return target.stat().st_size


def _halved(name: str, tensor: torch.Tensor, source: str | Path) -> torch.Tensor:
    if tensor.dtype != torch.float32:
        return tensor
    half = tensor.half()
    if not torch.isfinite(half).all():
        raise UserError(f"{name} of {str(source)!r} does not fit into half precision: leave it out")
    return half
