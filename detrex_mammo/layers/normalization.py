# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Normalisation that fits any width."""

import math

from torch import nn


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups, or with the most below that divide a narrow layer's channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)
