# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Small hostile problems, and an oracle in plain loops, for every backend.

B batch, S tokens, Q queries, M heads, D channels per head, L levels, P points.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Sizes of a problem; shapes are the L pairs (h, w)."""

    batch: int
    queries: int
    heads: int
    dim: int
    shapes: tuple[tuple[int, int], ...]
    points: int


# Widths that are no multiple of 8, levels one cell high or wide, one level, one point.
CASES = [
    Case(2, 5, 3, 16, ((7, 9), (4, 5)), 4),
    Case(1, 4, 2, 7, ((1, 3), (5, 1), (2, 2)), 3),
    Case(2, 3, 1, 1, ((1, 1),), 1),
    Case(1, 6, 4, 32, ((10, 13), (5, 7), (3, 4), (2, 2)), 4),
    Case(3, 3, 2, 33, ((4, 6),), 5),
    Case(1, 11, 2, 12, ((4, 6), (2, 3), (2, 2), (1, 2), (1, 1)), 2),
]
# Many reads of few tokens: a head's values are copied together first.
DENSE = Case(2, 30, 2, 16, ((4, 3), (2, 2)), 4)


def draw(case: Case, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """value, locations, weights; a third of the locations lie outside the image."""
    generator = torch.Generator().manual_seed(seed)
    tokens, levels = sum(h * w for h, w in case.shapes), len(case.shapes)
    size = (case.batch, case.queries, case.heads, levels, case.points)
    value = torch.randn(case.batch, tokens, case.heads, case.dim, generator=generator)
    locations = torch.rand(*size, 2, generator=generator) * 1.5 - 0.25
    return value, locations, torch.rand(size, generator=generator)


def draw_fused(case: Case, numbers: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """value, reference points with 2 or 4 numbers, offsets, logits."""
    generator = torch.Generator().manual_seed(seed + 1)
    value, locations, weights = draw(case, seed)
    levels = len(case.shapes)
    references = torch.rand(case.batch, case.queries, levels, numbers, generator=generator)
    offsets = torch.randn(locations.shape, generator=generator) * 2
    return value, references, offsets, torch.randn(weights.shape, generator=generator) * 3


def oracle(value, shapes, locations, weights) -> Tensor:
    """Bilinear sampling written out, float64, differentiable; zero outside a level."""
    value, locations, weights = value.double(), locations.double(), weights.double()
    batch, queries, heads, _, points, _ = locations.shape
    rows = []
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                total, start = value.new_zeros(value.shape[3]), 0
                for level, (h, w) in enumerate(shapes):
                    for p in range(points):
                        x = locations[b, q, m, level, p, 0] * w - 0.5
                        y = locations[b, q, m, level, p, 1] * h - 0.5
                        weight = weights[b, q, m, level, p]
                        total = total + weight * 0  # a NaN weight spoils the sum wherever it reads
                        if not (math.isfinite(x.item()) and math.isfinite(y.item())):
                            continue
                        x0, y0 = math.floor(x.item()), math.floor(y.item())
                        for i in (y0, y0 + 1):
                            for j in (x0, x0 + 1):
                                if 0 <= i < h and 0 <= j < w:
                                    share = (1 - (x - j).abs()) * (1 - (y - i).abs())
                                    total = total + weight * share * value[b, start + i * w + j, m]
                    start += h * w
                rows.append(total)
    return torch.stack(rows).view(batch, queries, -1)


def oracle_fused(value, shapes, references, offsets, logits) -> Tensor:
    """The definition of offsets and logits, float64, then :func:`oracle`."""
    references, offsets, logits = references.double(), offsets.double(), logits.double()
    levels = []
    for level, (h, w) in enumerate(shapes):
        place = references[:, :, None, level, None]
        step = offsets[:, :, :, level]
        if references.shape[-1] == 2:
            levels.append(place + step / torch.tensor([w, h]))
        else:
            levels.append(place[..., :2] + step / offsets.shape[4] * place[..., 2:] / 2)
    exponentials = (logits - logits.amax((3, 4), keepdim=True)).exp()
    weights = exponentials / exponentials.sum((3, 4), keepdim=True)
    return oracle(value, shapes, torch.stack(levels, dim=3), weights)


def with_gradients(function, inputs, grad) -> list[Tensor]:
    """Output and the gradients of all inputs; ``function`` takes the inputs."""
    inputs = [t.detach().clone().requires_grad_() for t in inputs]
    output = function(*inputs)
    output.backward(grad.to(output.dtype))
    return [output.detach(), *(t.grad for t in inputs)]
