# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Activation checkpointing, https://arxiv.org/abs/1604.06174: memory for time.

In training a part of a model keeps only what goes into it; in the backward pass it runs once more,
with the same random numbers and autocast, and so with the same result. A part that nothing trains
has no backward pass, and runs once.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def run(module: nn.Module, is_recomputed: bool, *args: Any, **kwargs: Any) -> Any:
    """``module(*args, **kwargs)``; in training, if wanted, without keeping its activations."""
    return _run(module, module if is_recomputed else None, *args, **kwargs)


def recompute(module: nn.Module) -> None:
    """Let a module never keep its activations in training, in place; its names stay as they are."""
    module.forward = _Recomputed(module)


class _Recomputed:
    """Takes the place of a module's ``forward``. (A class, so it can be copied and pickled.)"""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = partial(type(self.module).forward, self.module)
        return _run(forward, self.module, *args, **kwargs)


def _run(function: Callable, module: nn.Module | None, *args: Any, **kwargs: Any) -> Any:
    if module is None or not (module.training and torch.is_grad_enabled()):
        return function(*args, **kwargs)
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if norms:
        kwargs["context_fn"] = lambda: (nullcontext(), _keep_statistics(norms))
    return checkpoint(function, *args, use_reentrant=False, **kwargs)


@contextmanager
def _keep_statistics(norms: list[_BatchNorm]) -> Iterator[None]:
    """Batch norms have counted a batch when they see it for the second time."""
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept):
            norm.momentum, norm.num_batches_tracked = momentum, count
