# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The reference operator against a loop over samples, and its gradient."""

import math

import pytest
import torch

from detrex_mammo.ops import ms_deform_attn_reference

SHAPES = ((3, 5), (2, 1), (1, 4))


def random_inputs(batch=2, queries=3, heads=2, channels=3, points=2, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    levels, tokens = len(SHAPES), sum(h * w for h, w in SHAPES)
    size = (batch, queries, heads, levels, points)
    value = torch.randn(batch, tokens, heads, channels, generator=generator, dtype=dtype)
    locations = torch.rand(*size, 2, generator=generator, dtype=dtype) * 1.4 - 0.2  # also outside
    weights = torch.rand(size, generator=generator, dtype=dtype)
    return value, locations, weights / weights.sum((-1, -2), keepdim=True)


def by_loop(value, shapes, locations, weights):
    """Bilinear sampling as written in the paper: pixel x = loc * w - 0.5, zero outside."""
    batch, queries, heads, _, points, _ = locations.shape
    out = torch.zeros(batch, queries, heads, value.shape[-1], dtype=value.dtype)
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                start = 0
                for level, (h, w) in enumerate(shapes):
                    for p in range(points):
                        x = float(locations[b, q, m, level, p, 0]) * w - 0.5
                        y = float(locations[b, q, m, level, p, 1]) * h - 0.5
                        for i in (math.floor(y), math.floor(y) + 1):
                            for j in (math.floor(x), math.floor(x) + 1):
                                if 0 <= i < h and 0 <= j < w:
                                    share = (1 - abs(y - i)) * (1 - abs(x - j))
                                    cell = value[b, start + i * w + j, m]
                                    out[b, q, m] += weights[b, q, m, level, p] * share * cell
                    start += h * w
    return out.flatten(2)


def test_equals_the_loop():
    value, locations, weights = random_inputs()
    found = ms_deform_attn_reference(value, SHAPES, locations, weights)
    torch.testing.assert_close(found, by_loop(value, SHAPES, locations, weights))


def test_gradient():
    value, locations, weights = (t.requires_grad_() for t in random_inputs(1, 2, 1, 2, 2))
    torch.autograd.gradcheck(
        lambda *args: ms_deform_attn_reference(args[0], SHAPES, *args[1:]),
        (value, locations, weights),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_accumulates_in_float32(dtype):
    """The result is that of float32 on the same rounded values, rounded once."""
    value, locations, weights = random_inputs(dtype=torch.float32)
    value = value.to(dtype)
    found = ms_deform_attn_reference(value, SHAPES, locations, weights)
    assert found.dtype == dtype
    expected = ms_deform_attn_reference(value.float(), SHAPES, locations, weights).to(dtype)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_no_queries():
    value, locations, weights = random_inputs(queries=0)
    assert ms_deform_attn_reference(value, SHAPES, locations, weights).shape == (2, 0, 6)
