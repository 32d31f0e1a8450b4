# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The feed-forward network of a transformer layer."""

from torch import Tensor, nn

from detrex_mammo.layers.dropout import Dropout


def feed_forward(x: Tensor, linear1: nn.Module, linear2: nn.Module, dropout: Dropout) -> Tensor:
    """``linear2(dropout(relu(linear1(x))))``; (..., C) to (..., C).

    All tokens in one dimension: there a linear layer's output is no view, so that ReLU can work in
    place without a copy of it, the largest tensor of a layer, in the backward pass.
    """
    hidden = dropout.after_relu_(linear1(x.flatten(0, -2)))
    return linear2(hidden).unflatten(0, x.shape[:-1])
