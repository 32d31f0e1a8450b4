# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Multi-scale deformable attention in plain PyTorch: the oracle for every other backend.

B batch, S = sum of h*w over levels, M heads, D channels per head, Q queries, L levels, P points.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_OUTSIDE = -1e6  # in grid_sample's coordinates: at no size of a level does a cell lie there


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype to accumulate in: float64 if any tensor has it, else float32."""
    is_double = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if is_double else torch.float32


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Bilinear samples of every level, weighted and summed, by ``grid_sample``.

    Eq. 3 of https://arxiv.org/abs/2010.04159 without its projections. A location x in [0, 1] is
    the pixel coordinate ``x * w - 0.5``; outside of the level the value is zero. A location at NaN
    or infinity is outside and gets no gradient, as in the published CUDA kernel (by itself
    ``grid_sample`` gives NaN on a CPU and 0 on a GPU).

    Args:
        value (Tensor): (B, S, M, D), levels one after another, each row by row.
        spatial_shapes (Sequence[tuple[int, int]]): L pairs (h, w).
        sampling_locations (Tensor): (B, Q, M, L, P, 2) as (x, y), in [0, 1] of the padded level.
        attention_weights (Tensor): (B, Q, M, L, P), summing to 1 over (L, P).

    Returns:
        Tensor: (B, Q, M*D) in the dtype of ``value``; accumulated in at least float32.
    """
    batch, _, heads, channels = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    if batch * queries * heads * channels * points == 0:
        return value.new_zeros(batch, queries, heads * channels)
    dtype = accumulation_dtype(value, sampling_locations, attention_weights)
    grids = 2 * sampling_locations.to(dtype) - 1
    grids = grids.masked_fill(~grids.isfinite().all(-1, keepdim=True), _OUTSIDE)
    grids = grids.transpose(1, 2).flatten(0, 1)  # (BM, Q, L, P, 2)
    weights = attention_weights.to(dtype).transpose(1, 2).flatten(0, 1)  # (BM, Q, L, P)
    levels = value.to(dtype).split([h * w for h, w in spatial_shapes], dim=1)
    total = None
    for index, (height, width) in enumerate(spatial_shapes):
        level = levels[index].permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        sampled = F.grid_sample(
            level, grids[:, :, index], mode="bilinear", padding_mode="zeros", align_corners=False
        )  # (BM, D, Q, P)
        summed = (sampled * weights[:, None, :, index]).sum(-1)
        total = summed if total is None else total + summed
    out = total.view(batch, heads * channels, queries).transpose(1, 2)
    return out.to(value.dtype).contiguous()
