# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A checkpoint with queries that only training has, in every place that reads one."""

from pathlib import Path

import pytest
import torch

from detrex_mammo.checkpoint import load_model
from detrex_mammo.checkpoint.conversion import convert
from detrex_mammo.checkpoint.reading import read_source
from detrex_mammo.config import config_to_text, instantiate, load_config
from tests.modeling.tiny_detector import make_inputs, perturb

CONFIGS = "projects/deformable_detr/configs/deformable_detr_r50_two_stage_"
SMALL = [
    "model.embed_dim=32",
    "model.num_queries=7",
    "model.transformer.feedforward_dim=24",
    "model.transformer.num_encoder_layers=1",
    "model.transformer.num_decoder_layers=2",
    "model.num_classes=3",
    "model.topk=10",
]


@pytest.mark.parametrize("recipe", ["dn_50ep", "hybrid_12ep"])
def test_a_file_alone_gives_its_predictions_and_the_plain_models_names(
    recipe: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    cfg = load_config(f"{CONFIGS}{recipe}.py", SMALL)
    trained = perturb(instantiate(cfg.model)).eval()
    path = tmp_path / "model.pth"
    torch.save({"model": trained.state_dict(), "config": config_to_text(cfg)}, path)
    inputs = make_inputs()
    with torch.no_grad():
        expected = trained(inputs)[0]["instances"]
        found = load_model(path)(inputs)[0]["instances"]
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=0)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    converted = convert(read_source(path))
    plain = load_config(f"{CONFIGS}50ep.py", SMALL)
    assert set(converted.state) == set(instantiate(plain.model).state_dict())
