# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Multiply-adds against sums worked by hand from the architecture."""

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch import nn

from detrex_mammo.config import config_to_text, get_config, instantiate, load_config
from detrex_mammo.errors import UserError
from detrex_mammo.layers import MultiScaleDeformableAttention
from detrex_mammo.zoo.complexity import count_multiply_adds, largest_input, measure


class OneAttention(nn.Module):
    """A "detector" that is one deformable attention: 3 queries over a level of 2x2 cells."""

    def __init__(self):
        super().__init__()
        self.attention = MultiScaleDeformableAttention(8, num_heads=2, num_levels=1, num_points=2)
        self.requires_grad_(False)

    def forward(self, batch):
        value, query = torch.zeros(1, 4, 8), torch.zeros(1, 3, 8)
        return self.attention(query, torch.zeros(1, 3, 1, 2), value, ((2, 2),))


def test_one_attention_by_hand() -> None:
    """C 8, M 2, L 1, P 2, Q 3, S 4.

    Values S*C*C = 256; offsets and logits Q*C*(M*L*P*3) = 288; output Q*C*C = 192; sampling
    5*Q*C*L*P = 240 (four for the bilinear interpolation of a channel, one for its weight).
    """
    assert count_multiply_adds(OneAttention(), (2, 2)) == 256 + 288 + 192 + 240


def attention(queries: int, tokens: int, c: int, heads: int, levels: int, points: int) -> int:
    """As in the test above."""
    samples = levels * points
    projections = tokens * c * c + queries * c * heads * samples * 3 + queries * c * c
    return projections + 5 * queries * c * samples


def small_config(two_stage: bool) -> dict:
    cfg = get_config("projects/mammography/configs/demo.py")
    model = cfg.model
    model.update(embed_dim=64, num_queries=7, num_classes=3, two_stage=two_stage)
    model.update(with_box_refine=two_stage)
    model.transformer.update(feedforward_dim=48, num_encoder_layers=2, num_decoder_layers=3)
    text = yaml.safe_load(config_to_text(cfg))
    text["dataloader"]["test"]["mapper"]["augmentations"][0].update(height=96, width=64)
    return OmegaConf.to_container(OmegaConf.create(text), resolve=True)


@pytest.mark.parametrize("two_stage", [False, True])
def test_a_whole_detector_by_hand(two_stage: bool) -> None:
    """Levels of strides 8, 16, 32 of 96x64: 12x8, 6x4, 3x2, so S = 126. C 64, F 48, Q 7, K 3.

    Convolutions are counted apart, from their outputs' sizes in a real run.
    """
    config = small_config(two_stage)
    tokens, c, f, q, k = 12 * 8 + 6 * 4 + 3 * 2, 64, 48, 7, 3
    heads, levels, points = 8, 3, 4
    encoder = attention(tokens, tokens, c, heads, levels, points) + 2 * tokens * c * f
    self_attention = 4 * q * c * c + 2 * q * q * c
    decoder = self_attention + attention(q, tokens, c, heads, levels, points) + 2 * q * c * f
    box_head = 2 * c * c + c * 4
    expected = 2 * encoder + 3 * decoder + q * c * k  # classes of the last layer only
    if two_stage:
        expected += 3 * q * box_head  # each layer refines
        # Proposals: projection and objectness of every token, boxes of the chosen ones.
        expected += tokens * c * c + tokens * c + q * box_head
        expected += q * (2 * c) * (2 * c)  # their queries
    else:
        expected += q * box_head + q * c * 2  # boxes of the last layer; reference points
    assert measure(config).multiply_adds == expected + convolutions(config)


def convolutions(config: dict) -> int:
    """Of every convolution: numbers in its output times numbers in one of its kernels."""
    model = instantiate(OmegaConf.create(config["model"])).eval()
    total = 0

    def add(module: nn.Conv2d, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(add)
    with torch.no_grad():
        model([{"image": torch.zeros(3, 96, 64), "height": 96, "width": 64}])
    assert total > 0
    return total


def test_parameters_of_the_published_models() -> None:
    """The authors' table says 34 M, 40 M and 41 M."""
    for name, millions in (("single_scale", 34), ("", 40), ("two_stage", 41)):
        stem = "_".join(filter(None, ["deformable_detr_r50", name, "authors_50ep"]))
        cfg = load_config(f"projects/deformable_detr/configs/{stem}.py")
        plain = OmegaConf.create(yaml.safe_load(config_to_text(cfg)))
        found = measure(OmegaConf.to_container(plain, resolve=True))
        assert found.input_size == (800, 1333)
        assert round(found.parameters / 1e6) == millions
        assert found.multiply_adds > 5e10


def test_a_model_of_somebodys_own_is_not_built() -> None:
    """A run's folder may be a stranger's, and building a class may run anything."""
    model = {"_target_": "tests.engine.tiny.TinyDetector", "width": 8}
    with pytest.raises(UserError, match="TinyDetector', which is not run"):
        measure({"model": model})


@pytest.mark.parametrize(
    ("node", "size"),
    [
        ({"_target_": "a.ResizeToFit", "height": 384, "width": 224}, (384, 224)),
        ({"_target_": "a.ResizeShortEdge", "short_edges": [480, 800], "max_size": 9}, (800, 9)),
        ({"_target_": "a.ResizeShortestEdge", "short_edge_length": 8, "max_size": 9}, (8, 9)),
        ({"_target_": "a.ResizeShortEdge", "short_edges": 800, "max_size": None}, None),
        ({"_target_": "a.RandomFlip"}, None),
    ],
)
def test_the_input_size_is_that_of_the_test_loader(node: dict, size: tuple | None) -> None:
    config = {"dataloader": {"test": {"mapper": {"branches": [[node]]}}, "train": {}}}
    assert largest_input(config) == size
