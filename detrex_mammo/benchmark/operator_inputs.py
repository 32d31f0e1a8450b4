# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The operator's realistic problems: encoder and decoder of Deformable DETR on a whole image.

B batch, S = Q tokens of the encoder, M heads, D channels per head, Q queries, L levels, P points.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from detrex_mammo.layers import MultiScaleDeformableAttention
from detrex_mammo.ops.locations import attention_weights, sampling_locations

STRIDES = (8, 16, 32, 64)
HEADS, CHANNELS, POINTS = 8, 32, 4
Shapes = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Problem:
    """What one call of the operator has to do.

    Attributes:
        name: "encoder" or "decoder".
        height: of the image, in pixels.
        width: of the image, in pixels.
        queries: boxes of a decoder; None for an encoder, where every token asks.
        batch: B.
    """

    name: str
    height: int
    width: int
    queries: int | None = None
    batch: int = 1

    @property
    def shapes(self) -> Shapes:
        """Levels as (h, w); 800 x 1333 gives 100 x 167, 50 x 84, 25 x 42, 13 x 21."""
        return tuple((-(-self.height // s), -(-self.width // s)) for s in STRIDES)


@dataclass(frozen=True)
class Inputs:
    """Tensors of both forms of the operator.

    Attributes:
        shapes: L pairs (h, w).
        fused: value, reference points, offsets, logits; the last two are slices of one tensor, as
            the attention module's single projection gives them.
        unfused: value, sampling locations, attention weights, computed from the fused ones.
        grad_output: (B, Q, M*D).
    """

    shapes: Shapes
    fused: tuple[Tensor, Tensor, Tensor, Tensor]
    unfused: tuple[Tensor, Tensor, Tensor]
    grad_output: Tensor


def make_inputs(
    problem: Problem, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> Inputs:
    """Offsets as the published initialisation, plus N(0, 1) cells; random values and logits.

    References are the centres of the pixels for an encoder and boxes of all sizes for a decoder.
    References, locations and weights stay in float32, as in training with autocast.

    Args:
        problem: sizes.
        device: "cpu" or "cuda".
        dtype: of value, offsets, logits and the gradient.
        seed: the same numbers on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    shapes, batch = problem.shapes, problem.batch
    tokens, levels = sum(h * w for h, w in shapes), len(shapes)
    queries = tokens if problem.queries is None else problem.queries
    sizes = (batch, queries, HEADS, levels, POINTS)
    value = torch.randn(batch, tokens, HEADS, CHANNELS, generator=generator)
    if problem.queries is None:
        references = pixel_centres(shapes)[None, :, None].repeat(1, 1, levels, 1)
    else:
        references = _boxes(queries, generator)[None, :, None].repeat(1, 1, levels, 1)
    samples = HEADS * levels * POINTS
    projected = torch.randn(batch, queries, 3 * samples, generator=generator)
    projected[..., : 2 * samples] += _published_offsets(levels)
    grad_output = torch.randn(batch, queries, HEADS * CHANNELS, generator=generator)

    value, projected, grad_output = (
        tensor.to(device, dtype) for tensor in (value, projected, grad_output)
    )
    references = references.to(device)
    offsets = projected[..., : 2 * samples].view(*sizes, 2)
    logits = projected[..., 2 * samples :].view(sizes)
    locations = sampling_locations(references, offsets, shapes)
    weights = attention_weights(logits)
    return Inputs(
        shapes, (value, references, offsets, logits), (value, locations, weights), grad_output
    )


def pixel_centres(shapes: Shapes) -> Tensor:
    """(S, 2) as (x, y) in [0, 1]: every token of every level."""
    points = []
    for height, width in shapes:
        y, x = torch.meshgrid(
            (torch.arange(height) + 0.5) / height,
            (torch.arange(width) + 0.5) / width,
            indexing="ij",
        )
        points.append(torch.stack((x, y), dim=-1).flatten(0, 1))
    return torch.cat(points)


def _boxes(count: int, generator: torch.Generator) -> Tensor:
    """(count, 4) as (cx, cy, w, h) in [0, 1], sides from a fiftieth to half of the image."""
    centres, sides = torch.rand(2, count, 2, generator=generator)
    return torch.cat((centres, 0.02 + 0.48 * sides), dim=-1)


def _published_offsets(levels: int) -> Tensor:
    """(M*L*P*2,): head m looks in direction m, point p at p + 1 cells' distance."""
    module = MultiScaleDeformableAttention(HEADS * CHANNELS, HEADS, levels, POINTS)
    return module.sampling_offsets.bias.detach()
