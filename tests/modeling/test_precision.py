# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Mixed precision: what is computed in float32 whatever the autocast, and how near the rest is."""

import pytest
import torch
from torch import nn

from tests.modeling.tiny_detector import make_inputs, perturb, tiny_detector

VARIANTS = {
    "plain": {},
    "two_stage": {"with_box_refine": True, "two_stage": True},
}


def build(variant):
    detector = perturb(tiny_detector(**VARIANTS[variant]), 0.05)
    for module in detector.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    return detector


def outputs_of(detector, names):
    """A dict that fills with the outputs of modules at each call."""
    seen = {}
    for name in names:
        detector.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: output})
        )
    return seen


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_step_in_half_precision(variant, dtype):
    """Losses in float32 and within 2 % of full precision; finite float32 gradients."""
    detector = build(variant)
    expected = detector(make_inputs())
    torch.manual_seed(0)
    inputs = make_inputs()
    expected = {name: loss.detach() for name, loss in detector(inputs).items()}
    names = ["transformer.encoder.layers.0.linear1", "transformer.decoder.layers.1.linear2"]
    exact = ["class_embed.0", "bbox_embed.0"]
    exact += [] if variant == "two_stage" else ["transformer.reference_points"]
    seen = outputs_of(detector, names + exact)
    with torch.autocast("cpu", dtype):
        losses = detector(inputs)
    assert all(seen[name].dtype == dtype for name in names)
    assert all(seen[name].dtype == torch.float32 for name in exact)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss.detach(), expected[name], rtol=0.02, atol=0.01)
    sum(losses.values()).backward()
    for parameter in detector.parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all()


def test_proposals_are_ranked_in_float32():
    """Scores of one evaluation and of training pick the same proposals under autocast, tie-free."""
    detector = build("two_stage")
    tokens = torch.randn(1, 500, 32)
    predictor_of = []
    detector.transformer.register_forward_pre_hook(lambda _, args: predictor_of.append(args[3]))
    detector(make_inputs())
    predictor = predictor_of[0]
    with torch.autocast("cpu", torch.bfloat16):
        narrow = predictor.proposal_scores(tokens.bfloat16())
        exact = predictor.proposal_scores(tokens)
        full = predictor.logits(-1, tokens)[..., 0]
    assert narrow.dtype == exact.dtype == full.dtype == torch.float32
    torch.testing.assert_close(exact, full, rtol=0, atol=1e-6)
    assert len(exact.unique()) == 500 > len(exact.bfloat16().unique())


@pytest.mark.parametrize("variant", VARIANTS)
def test_detections_in_bfloat16_are_near(variant):
    detector = build(variant).eval()
    inputs = make_inputs()
    with torch.no_grad():
        expected = detector(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            found = detector(inputs)
    for one, other in zip(found, expected):
        scores, theirs = one["instances"].scores, other["instances"].scores
        assert scores.dtype == torch.float32
        torch.testing.assert_close(scores, theirs, rtol=0, atol=0.02)
