# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Sine embeddings of pixel positions and of boxes.

B batch, C channels, h and w the size of a feature map, Q queries.
"""

import math

import torch
from torch import Tensor, nn


def sine_embedding(positions: Tensor, num_features: int, temperature: float = 10000.0) -> Tensor:
    """Sines on even, cosines on odd channels, of falling frequency.

    Args:
        positions (Tensor): (...,), in radians.
        num_features (int): channels per position, even.
        temperature (float): ratio of the longest wavelength to the shortest.

    Returns:
        Tensor: (..., num_features).
    """
    exponent = torch.arange(0, num_features, 2, device=positions.device, dtype=positions.dtype)
    angles = positions[..., None] / temperature ** (exponent / num_features)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


class SinePositionEmbedding(nn.Module):
    """Position of every cell of a feature map inside the unpadded image.

    As published: the cell's centre, ``(index + 0.5) / (number of unpadded cells + eps) * 2*pi``,
    first the embedding of y and then that of x. (DETR's own has no half-cell offset.)

    Args:
        embed_dim (int): channels C, divisible by 4.
        temperature (float): see :func:`sine_embedding`.
        eps (float): keeps an image without any unpadded cell finite.
    """

    def __init__(self, embed_dim: int, temperature: float = 10000.0, eps: float = 1e-6):
        super().__init__()
        if embed_dim % 4:
            raise ValueError(f"embed_dim is {embed_dim}; it must be divisible by 4")
        self.num_features = embed_dim // 2
        self.temperature = temperature
        self.eps = eps

    def forward(
        self,
        size: tuple[int, int],
        padding_mask: Tensor | None,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Embed the cells of one feature map.

        Args:
            size (tuple[int, int]): (h, w).
            padding_mask (BoolTensor, optional): (B, h, w), True on padding.
            device (torch.device): of the result.
            dtype (torch.dtype): of the result, at least float32.

        Returns:
            Tensor: (B, h*w, C); B is 1 when there is no mask.
        """
        height, width = size
        if padding_mask is None:
            y = torch.arange(1, height + 1, device=device, dtype=dtype)[None]
            x = torch.arange(1, width + 1, device=device, dtype=dtype)[None]
            y, x = self._embed(y), self._embed(x)
            y, x = y[:, :, None].expand(-1, -1, width, -1), x[:, None].expand(-1, height, -1, -1)
        else:
            valid = (~padding_mask).to(dtype)
            y = self._embed(valid.cumsum(1).transpose(1, 2)).transpose(1, 2)
            x = self._embed(valid.cumsum(2))
        return torch.cat((y, x), dim=-1).flatten(1, 2)

    def _embed(self, counts: Tensor) -> Tensor:
        """Embed running counts of unpadded cells, (..., n) with the total in the last place."""
        angles = (counts - 0.5) / (counts[..., -1:] + self.eps) * (2 * math.pi)
        return sine_embedding(angles, self.num_features, self.temperature)


def box_sine_embedding(boxes_cxcywh: Tensor, embed_dim: int) -> Tensor:
    """Embedding of boxes, the coordinates one after another in their order cx, cy, w, h.

    Args:
        boxes_cxcywh (Tensor): (B, Q, 4), in [0, 1].
        embed_dim (int): C; each coordinate gets C/2 channels. (The published file hard-codes 128.)

    Returns:
        Tensor: (B, Q, 2*C).
    """
    return sine_embedding(boxes_cxcywh * (2 * math.pi), embed_dim // 2).flatten(-2)
