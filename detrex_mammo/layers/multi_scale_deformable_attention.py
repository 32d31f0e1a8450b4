# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Multi-scale deformable attention with its projections.

B batch, Q queries, C channels, S = sum of h*w over levels, M heads, L levels, P points.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detrex_mammo.ops import ms_deform_attn_fused


class MultiScaleDeformableAttention(nn.Module):
    """Each query reads a few points around its reference on every level.

    Eq. 3 of https://arxiv.org/abs/2010.04159.

    Args:
        embed_dim (int): C.
        num_heads (int): M, a divisor of ``embed_dim``.
        num_levels (int): L.
        num_points (int): P, points per head and level.
    """

    def __init__(
        self, embed_dim: int = 256, num_heads: int = 8, num_levels: int = 4, num_points: int = 4
    ):
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(
                f"embed_dim is {embed_dim}; it must be divisible by num_heads, {num_heads}"
            )
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(embed_dim, samples * 2)
        self.attention_weights = nn.Linear(embed_dim, samples)
        self.value_proj = nn.Linear(embed_dim, embed_dim)
        self.output_proj = nn.Linear(embed_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The published start: head m looks in direction m, point p at p + 1 cells' distance."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        grid = torch.stack((angles.cos(), angles.sin()), dim=-1)  # (M, 2) as (x, y)
        grid = grid / grid.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1, dtype=torch.float32)
        bias = grid[:, None, None] * steps[:, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.num_levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        spatial_shapes: tuple[tuple[int, int], ...],
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query (Tensor): (B, Q, C), with its position embedding added.
            reference_points (Tensor): (B or 1, Q, L, 2) as (x, y) or (B or 1, Q, L, 4) as
                (cx, cy, w, h), in [0, 1] of the padded feature map.
            value (Tensor): (B, S, C), without position embedding.
            spatial_shapes (tuple[tuple[int, int], ...]): L pairs (h, w).
            padding_mask (BoolTensor, optional): (B, S), True on padding, which then reads as 0.

        Returns:
            Tensor: (B, Q, C).
        """
        batch, num_queries, _ = query.shape
        tokens = self.value_proj(value.flatten(0, 1))  # not a view, so in place costs no copy
        if padding_mask is not None:
            # After the projection, so that its bias does not leak into the padding.
            tokens = tokens.masked_fill_(padding_mask.flatten()[:, None], 0)
        head_dim = tokens.shape[1] // self.num_heads
        value = tokens.view(*value.shape[:2], self.num_heads, head_dim)
        offsets, logits = self._offsets_and_logits(query)
        sampled = (batch, num_queries, self.num_heads, self.num_levels, self.num_points)
        out = ms_deform_attn_fused(
            value,
            spatial_shapes,
            None,
            reference_points,
            offsets.view(*sampled, 2),
            logits.view(sampled),
        )
        return self.output_proj(out)

    def _offsets_and_logits(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Both projections of the query, (B, Q, M*L*P*2) and (B, Q, M*L*P), by one product."""
        parts = (self.sampling_offsets, self.attention_weights)
        weight = torch.cat([part.weight for part in parts])
        bias = torch.cat([part.bias for part in parts])
        return F.linear(query, weight, bias).split([len(part.bias) for part in parts], dim=-1)
