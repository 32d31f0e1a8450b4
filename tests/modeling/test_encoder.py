# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Reference points of the encoder, by hand; layers computed again instead of kept."""

import pytest
import torch

from detrex_mammo.layers import chunks
from detrex_mammo.modeling.encoder import (
    DeformableEncoder,
    DeformableEncoderLayer,
    encoder_reference_points,
)
from tests.modeling.tiny_detector import make_inputs, perturb, tiny_detector, watched_step


def test_reference_points_by_hand():
    """A 2x4 level of which 2x3 cells are valid, and a 1x2 level all valid.

    Cell (0, 1) of the first: its centre is 1.5 of 3 valid columns = 0.5 of the image, 0.5 of 2
    rows = 0.25. On the first level, 3/4 valid in x: (0.375, 0.25); on the second: (0.5, 0.25).
    """
    valid_ratios = torch.tensor([[[0.75, 1.0], [1.0, 1.0]]])
    points = encoder_reference_points(((2, 4), (1, 2)), valid_ratios)
    assert points.shape == (1, 10, 2, 2)
    torch.testing.assert_close(points[0, 1], torch.tensor([[0.375, 0.25], [0.5, 0.25]]))
    # Cell (0, 1) of the second level: 3/4 of the image in x, half in y
    torch.testing.assert_close(points[0, 9], torch.tensor([[0.5625, 0.5], [0.75, 0.5]]))


@pytest.mark.parametrize("autocast", [False, True])
def test_checkpointing_changes_no_number(autocast):
    """Losses and gradients to the last bit, dropout included; each layer runs twice."""
    detector = perturb(tiny_detector(with_box_refine=True, two_stage=True))
    assert detector.transformer.encoder.layers[0].dropout.p > 0
    expected = watched_step(detector, detector.transformer.encoder.layers[0].self_attn, autocast)
    detector.transformer.encoder.checkpointing = True
    found = watched_step(detector, detector.transformer.encoder.layers[0].self_attn, autocast)
    assert (expected[2], found[2]) == (1, 2)
    torch.testing.assert_close(found[:2], expected[:2], rtol=0, atol=0)


def test_checkpointing_is_for_training_only():
    detector = tiny_detector(encoder_checkpointing=True).eval()
    runs = []
    detector.transformer.encoder.layers[0].register_forward_hook(lambda *_: runs.append(1))
    detector(make_inputs())
    assert len(runs) == 1 and detector.transformer.encoder.checkpointing


def test_checkpointing_keeps_less():
    """Bytes that autograd holds between the passes, each storage once: a third and less.

    A layer keeps its input alone, instead of that, the value, the weights' and offsets' projection,
    three sums and norms, and the hidden tokens of the feed-forward network.
    """
    shapes = ((8, 12), (4, 6))
    src, pos = torch.randn(2, 1, 120, 32)
    kept = {}
    for checkpointing in (False, True):
        encoder = DeformableEncoder(
            3, checkpointing, embed_dim=32, feedforward_dim=128, dropout=0.1, num_levels=2,
            num_heads=4, num_points=4,
        )  # fmt: skip
        weights = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
        saved = {}

        def keep(tensor, weights=weights, saved=saved):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = encoder(src, pos, torch.ones(1, 2, 2), spatial_shapes=shapes)
        # Outputs of layers are inputs of layers, which a checkpoint holds in its own way.
        kept[checkpointing] = sum(saved.values()) + checkpointing * 3 * out.nbytes
    assert kept[True] < kept[False] / 3


def test_inference_in_pieces_is_the_whole(monkeypatch):
    """Pieces of 7 of 2 x 23 tokens: the last is short, one holds tokens of both images."""
    layer = DeformableEncoderLayer(16, 24, 0.1, num_levels=2, num_heads=2, num_points=2).eval()
    src, pos = torch.randn(2, 23, 16), torch.randn(2, 23, 16)
    arguments = (src, pos, torch.rand(2, 23, 2, 2))
    attention = {"spatial_shapes": ((3, 5), (2, 4))}
    expected = layer(*arguments, **attention)
    monkeypatch.setattr(chunks, "TOKENS_PER_CHUNK", 7)
    with torch.no_grad():
        found = layer(*arguments, **attention)
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-6)
