# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Convolutions that take a fixed batch norm behind them into their weights.

A norm with fixed statistics is a scale and a shift per channel, so ``norm(conv(x))`` is one
convolution with other weights: two passes over the largest feature maps less, forward and backward.
The product is made anew in each call (25 M multiplications for a ResNet-50, against its 87 G): so
it is right after any change of the weights, has gradients, and the state dict does not know of it.
"""

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detrex_mammo.layers import at_least_float32


class FoldingConv2d(Conv2d):
    """detectron2's convolution, which applies its fixed norm to the weights, not to the output.

    A norm that is not fixed (batch norm in training, GroupNorm, none) follows as ever.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels in, h, w) to (B, channels out, h', w')."""
        if not _is_fixed(self.norm):
            return super().forward(x)
        scale, shift = _scale_and_shift(self.norm)
        if self.bias is not None:
            shift = shift + self.bias * scale
        weight = (self.weight * scale[:, None, None, None]).to(self.weight.dtype)
        x = F.conv2d(
            x, weight, shift.to(weight.dtype), self.stride, self.padding, self.dilation, self.groups
        )
        return x if self.activation is None else self.activation(x)


def fold_fixed_norms(module: nn.Module) -> nn.Module:
    """Make detectron2's convolutions inside a module fold, in place; names stay as they are."""
    for child in module.modules():
        if type(child) is Conv2d:
            child.__class__ = FoldingConv2d
    return module


def _is_fixed(norm: nn.Module | None) -> bool:
    if isinstance(norm, FrozenBatchNorm2d):
        return True
    return isinstance(norm, _BatchNorm) and not norm.training and norm.running_mean is not None


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """(channels,) each, at least float32, of a fixed batch norm."""
    mean, variance = at_least_float32(norm.running_mean), at_least_float32(norm.running_var)
    scale = (variance + norm.eps).rsqrt()
    if norm.weight is None:
        return scale, -mean * scale
    scale = scale * norm.weight
    return scale, torch.addcmul(at_least_float32(norm.bias), mean, scale, value=-1)
