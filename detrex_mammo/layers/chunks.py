# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Token-wise work in pieces that stay in a processor's cache."""

from collections.abc import Callable

import torch
from torch import Tensor

TOKENS_PER_CHUNK = 2048  # a hidden layer of 1024 channels then takes 8 MB instead of 90


def in_chunks(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``function(*tensors)`` for a function that treats every token alone.

    In inference on a CPU it gets some tokens at a time: what it computes on the way is then neither
    written to memory nor given fresh pages. Elsewhere it is called once.

    Args:
        function (Callable): tensors (..., C) to one tensor (..., C').
        *tensors (Tensor): (B, S, C), all of the same B and S.

    Returns:
        Tensor: (B, S, C').
    """
    shape = tensors[0].shape[:2]
    is_large = shape.numel() > TOKENS_PER_CHUNK and tensors[0].device.type == "cpu"
    if not is_large or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(*tensors)
    output = None
    chunks = zip(*(tensor.flatten(0, 1).split(TOKENS_PER_CHUNK) for tensor in tensors))
    for index, chunk in enumerate(chunks):
        result = function(*chunk)
        if output is None:
            output = result.new_empty(shape.numel(), result.shape[-1])
        output[index * TOKENS_PER_CHUNK :][: len(result)] = result
    return output.unflatten(0, shape)
