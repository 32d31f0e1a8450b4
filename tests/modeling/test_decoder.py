# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""What the decoder returns, where the gradient of refinement stops, and recomputation."""

import pytest
import torch

from detrex_mammo.modeling.decoder import DeformableDecoder
from detrex_mammo.modeling.heads import Predictor, build_heads
from tests.modeling.tiny_detector import make_inputs, perturb, tiny_detector, watched_step

LAYER = {
    "embed_dim": 32, "feedforward_dim": 16, "dropout": 0.0, "num_levels": 1, "num_heads": 4,
    "num_points": 2,
}  # fmt: skip


def decode(refine, all_layers):
    decoder = perturb(DeformableDecoder(3, **LAYER))
    heads = [perturb(head) for head in build_heads(32, 2, 3, refine, False)]
    predictor = Predictor(*heads, 1e-5, refine)
    outputs = decoder(
        torch.randn(2, 5, 32), torch.randn(2, 5, 32), torch.rand(2, 5, 2), torch.randn(2, 12, 32),
        torch.ones(1, 1, 2), predictor, all_layers, spatial_shapes=((3, 4),),
    )  # fmt: skip
    return outputs, heads


def test_one_prediction_or_one_for_each_layer():
    for refine in (False, True):
        torch.manual_seed(1)
        every, _ = decode(refine, True)
        torch.manual_seed(1)
        last, _ = decode(refine, False)
        assert (len(every), len(last)) == (3, 1)
        for name in ("pred_logits", "pred_boxes"):
            torch.testing.assert_close(last[0][name], every[-1][name], rtol=0, atol=0)


def test_refinement_cuts_the_gradient_between_layers():
    """The last layer's boxes train the last box head, and no box head before it."""
    outputs, (_, bbox_embed) = decode(True, True)
    outputs[-1]["pred_boxes"].sum().backward()
    assert bbox_embed[2].layers[0].weight.grad.any()
    assert bbox_embed[1].layers[0].weight.grad is None
    assert bbox_embed[0].layers[0].weight.grad is None


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("two_stage", [False, True])
def test_checkpointing_changes_no_number(two_stage, autocast):
    """Losses and gradients to the last bit, dropout included; each layer runs twice."""
    detector = perturb(tiny_detector(two_stage, with_box_refine=True))
    assert detector.transformer.decoder.layers[0].dropout.p > 0
    expected = watched_step(detector, detector.transformer.decoder.layers[1].linear1, autocast)
    detector.transformer.decoder.checkpointing = True
    found = watched_step(detector, detector.transformer.decoder.layers[1].linear1, autocast)
    assert (expected[2], found[2]) == (1, 2)
    torch.testing.assert_close(found[:2], expected[:2], rtol=0, atol=0)


def test_checkpointing_is_a_setting_of_the_transformer():
    detector = tiny_detector(decoder_checkpointing=True)
    assert detector.transformer.decoder.checkpointing
    assert not detector.transformer.encoder.checkpointing
    assert watched_step(detector, detector.transformer.decoder.layers[1].linear1)[2] == 2
    runs = []
    detector.transformer.decoder.layers[1].register_forward_hook(lambda *_: runs.append(1))
    detector.eval()(make_inputs())
    assert len(runs) == 1
