# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The operator's problems: the published sizes, places and offsets."""

import torch

from detrex_mammo import ops
from detrex_mammo.benchmark.op import DECODER, ENCODER
from detrex_mammo.benchmark.operator_inputs import Problem, make_inputs, pixel_centres


def test_levels_of_the_published_image() -> None:
    """Strides 8, 16, 32, 64 of 800 x 1333, rounded up: 22,223 tokens."""
    assert ENCODER.shapes == ((100, 167), (50, 84), (25, 42), (13, 21))
    assert sum(h * w for h, w in ENCODER.shapes) == 22_223
    assert (ENCODER.queries, DECODER.queries, DECODER.shapes) == (None, 300, ENCODER.shapes)


def test_pixel_centres_by_hand() -> None:
    """One row of two cells: centres at a quarter and three quarters; two rows of one."""
    expected = [[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]
    assert pixel_centres(((1, 2), (2, 1))).tolist() == expected


def test_encoder_looks_around_every_pixel() -> None:
    """Mean over the noise: head 0 looks right, head 2 down, by 1 to 4 cells."""
    inputs = make_inputs(Problem("encoder", 160, 200, batch=2))
    value, references, offsets, logits = inputs.fused
    tokens = 20 * 25 + 10 * 13 + 5 * 7 + 3 * 4
    assert value.shape == (2, tokens, 8, 32)
    assert references.shape == (1, tokens, 4, 2)
    assert logits.shape == (2, tokens, 8, 4, 4)
    mean = offsets.mean((0, 1))  # (M, L, P, 2)
    steps = torch.arange(1.0, 5.0).expand(4, -1)
    torch.testing.assert_close(mean[0, ..., 0], steps, rtol=0, atol=0.15)
    torch.testing.assert_close(mean[2, ..., 1], steps, rtol=0, atol=0.15)
    torch.testing.assert_close(mean[2, ..., 0], torch.zeros(4, 4), rtol=0, atol=0.15)
    assert 0.9 < offsets.std((0, 1)).mean() < 1.1


def test_both_forms_are_the_same_problem() -> None:
    for problem in (Problem("encoder", 64, 96), Problem("decoder", 64, 96, queries=9, batch=2)):
        inputs = make_inputs(problem)
        value, *fused = inputs.fused
        one = ops.ms_deform_attn_fused(value, inputs.shapes, None, *fused, "reference")
        other = ops.ms_deform_attn(value, inputs.shapes, None, *inputs.unfused[1:], "reference")
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
        assert one.shape == inputs.grad_output.shape


def test_offsets_and_logits_are_slices_of_one_projection() -> None:
    _, _, offsets, logits = make_inputs(Problem("decoder", 64, 64, queries=3)).fused
    assert offsets.untyped_storage().data_ptr() == logits.untyped_storage().data_ptr()
    assert not logits.is_contiguous()


def test_half_precision_keeps_places_in_float32() -> None:
    inputs = make_inputs(Problem("decoder", 64, 64, queries=3), dtype=torch.bfloat16)
    assert [t.dtype for t in inputs.fused] == [
        torch.bfloat16, torch.float32, torch.bfloat16, torch.bfloat16
    ]  # fmt: skip
    assert [t.dtype for t in inputs.unfused] == [torch.bfloat16, torch.float32, torch.float32]
