# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Dropout that costs little on a CPU, where drawing torch's mask takes longer than a layer norm.

The mask takes 16 random bits for a number instead of a draw of its own (p is rounded to 1 / 65536),
and is kept as a byte instead of a float. Elsewhere, and under torch.compile, it is torch's dropout.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Dropout(nn.Dropout):
    """``nn.Dropout`` with a cheaper mask on the CPU; not in place."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        if not (self.training and is_cheap(x, self.p)):
            return super().forward(x)
        return _Dropout.apply(x, *drop_mask(x.shape, self.p))

    def after_relu_(self, x: Tensor) -> Tensor:
        """``dropout(relu(x))``, computed in ``x``, which must not be a view.

        Where the product is 0 so is its gradient, whichever of the two made it so: on the CPU the
        backward pass needs no mask but the result itself.
        """
        if not (self.training and is_cheap(x, self.p)):
            return super().forward(x.relu_())
        return _ReluDropout.apply(x, *drop_mask(x.shape, self.p))


def is_cheap(x: Tensor, p: float) -> bool:
    """Whether the mask of this file pays for ``x``."""
    return x.device.type == "cpu" and 0 < p < 1 and not torch.compiler.is_compiling()


def drop_mask(shape: Sequence[int], p: float) -> tuple[Tensor, float]:
    """Which numbers to drop, and what to multiply the others by.

    Args:
        shape (Sequence[int]): of the mask.
        p (float): probability of a drop, in (0, 1).

    Returns:
        tuple[BoolTensor, float]: True where dropped, with probability ``q = round(p * 65536) /
        65536``, from torch's CPU generator; and ``1 / (1 - q)``.
    """
    count = math.prod(shape)
    threshold = min(round(p * 2**16), 2**16 - 1)
    words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[:count].view(shape)  # uniform in [-2**15, 2**15)
    return bits < threshold - 2**15, 2**16 / (2**16 - threshold)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, is_dropped: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(is_dropped)
        ctx.scale = scale
        return x.masked_fill(is_dropped, 0).mul_(scale)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad.masked_fill(ctx.saved_tensors[0], 0).mul_(ctx.scale), None, None


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, is_dropped: Tensor, scale: float) -> Tensor:
        ctx.mark_dirty(x)
        x.relu_().masked_fill_(is_dropped, 0).mul_(scale)
        ctx.save_for_backward(x)
        ctx.scale = scale
        return x

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return torch.ops.aten.threshold_backward(grad, kept, 0).mul_(ctx.scale), None, None
