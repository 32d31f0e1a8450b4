# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The transformer: its published start, and that padding changes nothing."""

import math

import pytest
import torch

from detrex_mammo.errors import UserError
from detrex_mammo.modeling import DeformableTransformer
from detrex_mammo.modeling.heads import Predictor, build_heads
from tests.modeling.tiny_detector import perturb

SMALL = {
    "embed_dim": 32, "num_heads": 4, "num_encoder_layers": 2, "num_decoder_layers": 2,
    "feedforward_dim": 24, "num_feature_levels": 2,
}  # fmt: skip


def test_published_start():
    """Xavier limits by hand: sqrt(6 / (in + out)); the fused q, k, v counts as one matrix."""
    transformer = DeformableTransformer(num_encoder_layers=1, num_decoder_layers=1)
    limits = {
        transformer.decoder.layers[0].self_attn.in_proj_weight: math.sqrt(6 / (256 + 768)),
        transformer.decoder.layers[0].self_attn.out_proj.weight: math.sqrt(6 / 512),
        transformer.encoder.layers[0].linear1.weight: math.sqrt(6 / (256 + 1024)),
        transformer.reference_points.weight: math.sqrt(6 / 258),
    }
    for weight, limit in limits.items():
        assert 0.97 * limit < float(weight.detach().abs().max()) <= limit
    assert not transformer.reference_points.bias.any()
    assert float(transformer.level_embed.detach().std()) == pytest.approx(1, abs=0.1)
    assert not transformer.encoder.layers[0].self_attn.sampling_offsets.weight.any()
    assert transformer.encoder.layers[0].self_attn.sampling_offsets.bias.any()


def test_published_names():
    """One encoder and one decoder layer, two-stage: written out by hand."""
    sizes = {**SMALL, "num_encoder_layers": 1, "num_decoder_layers": 1}
    both = {"weight", "bias"}
    deformable = ["sampling_offsets", "attention_weights", "value_proj", "output_proj"]
    encoder = [f"self_attn.{n}" for n in deformable] + ["norm1", "norm2", "linear1", "linear2"]
    decoder = [f"cross_attn.{n}" for n in deformable] + ["self_attn.out_proj"]
    decoder += ["norm1", "norm2", "norm3", "linear1", "linear2"]
    names = {f"encoder.layers.0.{n}.{p}" for n in encoder for p in both}
    names |= {f"decoder.layers.0.{n}.{p}" for n in decoder for p in both}
    names |= {f"decoder.layers.0.self_attn.in_proj_{p}" for p in both} | {"level_embed"}
    one_stage = {f"reference_points.{p}" for p in both}
    heads = ["enc_output", "enc_output_norm", "pos_trans", "pos_trans_norm"]
    two_stage = {f"{n}.{p}" for n in heads for p in both}
    assert DeformableTransformer(**sizes).state_dict().keys() == names | one_stage
    assert DeformableTransformer(**sizes, two_stage=True).state_dict().keys() == names | two_stage


@pytest.mark.parametrize("two_stage", [False, True])
def test_padding_changes_nothing(two_stage):
    """Levels of a large and a small image in one batch give what each gives alone.

    The small image's padding is full of noise, which must not be read. (Whole detectors differ
    a little even as published: convolutions and group norms in front see the padding.)
    """
    transformer = DeformableTransformer(**SMALL, two_stage=two_stage, num_queries=5).eval()
    heads = [perturb(head) for head in build_heads(32, 3, 2, two_stage, two_stage)]
    perturb(transformer)
    predictor = Predictor(*heads, 1e-5, two_stage)
    query_embed = None if two_stage else torch.randn(5, 64)
    large, small = ((6, 9), (3, 5)), ((4, 5), (2, 3))
    levels = [torch.randn(2, 32, h, w) for h, w in large]
    masks = [torch.zeros(2, h, w, dtype=torch.bool) for h, w in large]
    for mask, (h, w) in zip(masks, small):
        mask[1, h:], mask[1, :, w:] = True, True
    with torch.no_grad():
        batch, _ = transformer(levels, masks, query_embed, predictor)
        alone = [[level[:1] for level in levels]]
        alone.append([level[1:, :, :h, :w] for level, (h, w) in zip(levels, small)])
        for image, single in enumerate(alone):
            outputs, _ = transformer(single, None, query_embed, predictor)
            for found, expected in zip(batch, outputs):
                for name in ("pred_logits", "pred_boxes"):
                    torch.testing.assert_close(
                        found[name][image], expected[name][0], rtol=0, atol=1e-5
                    )


def test_any_sizes():
    """Levels, layers, heads, points and width are free; an encoder of no layers is allowed."""
    for settings in (
        {"embed_dim": 24, "num_heads": 3, "num_feature_levels": 1, "num_encoder_layers": 0},
        {"embed_dim": 40, "num_heads": 5, "num_feature_levels": 3, "num_decoder_layers": 1},
        {"embed_dim": 8, "num_heads": 1, "num_encoder_points": 1, "num_decoder_points": 7},
    ):
        transformer = DeformableTransformer(**{**SMALL, **settings})
        dim, count = transformer.embed_dim, transformer.num_feature_levels
        predictor = Predictor(*build_heads(dim, 2, 2, False, False), 1e-5, False)
        levels = [torch.randn(1, dim, 5 - i, 7 - i) for i in range(count)]
        outputs, _ = transformer(levels, None, torch.randn(6, 2 * dim), predictor)
        assert outputs[-1]["pred_boxes"].shape == (1, 6, 4)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="embed_dim is 30.*num_heads, 4"):
        DeformableTransformer(**{**SMALL, "embed_dim": 30})
    with pytest.raises(UserError, match="dropout is 2"):
        DeformableTransformer(**{**SMALL, "dropout": 2})
    with pytest.raises(UserError, match="num_decoder_layers is 0"):
        DeformableTransformer(**{**SMALL, "num_decoder_layers": 0})
