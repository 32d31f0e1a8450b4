# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Encoder of Deformable DETR: every cell of every level attends to a few points on all levels.

B batch, S = sum of h*w over levels, C channels, L levels.
"""

import torch
from torch import Tensor, nn

from detrex_mammo.layers import (
    Dropout,
    MultiScaleDeformableAttention,
    feed_forward,
    in_chunks,
    recomputation,
)


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, each followed by its norm.

    Args:
        embed_dim (int): C.
        feedforward_dim (int): hidden channels of the feed-forward network.
        dropout (float): after the attention, inside and after the feed-forward network.
        num_levels (int): L.
        num_heads (int): attention heads.
        num_points (int): points per head and level.
    """

    def __init__(
        self,
        embed_dim: int,
        feedforward_dim: int,
        dropout: float,
        num_levels: int,
        num_heads: int,
        num_points: int,
    ):
        super().__init__()
        self.self_attn = MultiScaleDeformableAttention(embed_dim, num_heads, num_levels, num_points)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.linear1 = nn.Linear(embed_dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.dropout = Dropout(dropout)

    def forward(self, src: Tensor, pos: Tensor, reference_points: Tensor, **attention) -> Tensor:
        """Refine all tokens.

        Args:
            src (Tensor): (B, S, C).
            pos (Tensor): (B or 1, S, C), position and level embedding.
            reference_points (Tensor): (B or 1, S, L, 2) as (x, y) of the padded feature maps.
            **attention: spatial_shapes and padding_mask of
                :class:`MultiScaleDeformableAttention`.

        Returns:
            Tensor: (B, S, C).
        """
        attended = self.self_attn(src + pos, reference_points, src, **attention)
        return in_chunks(self._refine, src, attended)

    def _refine(self, src: Tensor, attended: Tensor) -> Tensor:
        """What follows the attention, token by token; (..., C) each."""
        src = self.norm1(src + self.dropout(attended))
        hidden = feed_forward(src, self.linear1, self.linear2, self.dropout)
        return self.norm2(src + self.dropout(hidden))


class DeformableEncoder(nn.Module):
    """A stack of :class:`DeformableEncoderLayer`; arguments as there.

    Args:
        num_layers (int): depth; 0 hands the tokens on as they are.
        checkpointing (bool): in training keep only what goes into a layer, and compute the layer
            again for its backward pass: less memory for one more forward pass of the encoder.
        **layer: arguments of the layer.
    """

    def __init__(self, num_layers: int, checkpointing: bool = False, **layer):
        super().__init__()
        self.checkpointing = checkpointing
        self.layers = nn.ModuleList(DeformableEncoderLayer(**layer) for _ in range(num_layers))

    def forward(self, src: Tensor, pos: Tensor, valid_ratios: Tensor, **attention) -> Tensor:
        """(B, S, C) to (B, S, C); ``valid_ratios`` is (B or 1, L, 2) as (w, h)."""
        reference_points = encoder_reference_points(attention["spatial_shapes"], valid_ratios)
        for layer in self.layers:
            src = recomputation.run(
                layer, self.checkpointing, src, pos, reference_points, **attention
            )
        return src


def encoder_reference_points(
    spatial_shapes: tuple[tuple[int, int], ...], valid_ratios: Tensor
) -> Tensor:
    """The centre of every cell, as a place on every level.

    Args:
        spatial_shapes (tuple[tuple[int, int], ...]): L pairs (h, w).
        valid_ratios (Tensor): (B, L, 2) as (w, h), unpadded share of each level.

    Returns:
        Tensor: (B, S, L, 2) as (x, y), in [0, 1] of the padded feature map; past 1 on padding.
    """
    centres = []
    for level, (height, width) in enumerate(spatial_shapes):
        kwargs = {"dtype": valid_ratios.dtype, "device": valid_ratios.device}
        y = torch.arange(height, **kwargs) + 0.5
        x = torch.arange(width, **kwargs) + 0.5
        y = y / (valid_ratios[:, level, 1:] * height)
        x = x / (valid_ratios[:, level, :1] * width)
        grid = (x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width))
        centres.append(torch.stack(grid, dim=-1).flatten(1, 2))
    return torch.cat(centres, dim=1)[:, :, None] * valid_ratios[:, None]
