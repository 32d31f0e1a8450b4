# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Where each query looks: reference points and offsets to sampling locations.

B batch, Q queries, M heads, L levels, P points.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def sampling_locations(
    reference_points: Tensor, offsets: Tensor, spatial_shapes: Sequence[tuple[int, int]]
) -> Tensor:
    """Offsets count cells of their level, or P-ths of half a box; computed in float32 at least.

    Args:
        reference_points (Tensor): (B or 1, Q, L, 2) as (x, y) or (B or 1, Q, L, 4) as
            (cx, cy, w, h), in [0, 1] of the padded level.
        offsets (Tensor): (B, Q, M, L, P, 2) as (x, y).
        spatial_shapes (Sequence[tuple[int, int]]): L pairs (h, w).

    Returns:
        Tensor: (B, Q, M, L, P, 2) as (x, y), in [0, 1] of the padded level.
    """
    dtype = torch.promote_types(offsets.dtype, torch.float32)
    offsets, references = offsets.to(dtype), reference_points.to(dtype)[:, :, None, :, None]
    if references.shape[-1] == 4:
        return references[..., :2] + offsets * (references[..., 2:] * (0.5 / offsets.shape[4]))
    sizes = torch.tensor([[width, height] for height, width in spatial_shapes], dtype=dtype)
    return references + offsets / sizes.to(offsets.device, non_blocking=True)[:, None]


def attention_weights(logits: Tensor) -> Tensor:
    """Softmax over all levels and points, in float32 at least.

    Args:
        logits (Tensor): (B, Q, M, L, P).

    Returns:
        Tensor: (B, Q, M, L, P).
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype).flatten(3).softmax(-1).view(logits.shape)
