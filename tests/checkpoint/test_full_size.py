# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""R50 at its published size, from Hugging Face and back, in all five forms."""

from pathlib import Path

import pytest
import torch
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    ResNetConfig,
    TimmBackboneConfig,
)

from detrex_mammo.checkpoint.convert_file import convert_file
from detrex_mammo.checkpoint.verification import BOXES_BOUND, LOGITS_BOUND
from tests.modeling.hf_oracle import VARIANTS, perturb, untie_heads

# Of fresh weights; with more, rounding alone grows beyond the bounds in refinement (then the
# verification goes to float64 and is slow).
NOISE = 0.05


def full_size(variant: str):
    settings = dict(VARIANTS[variant])
    is_dc5 = settings.pop("dc5", False)
    torch.manual_seed(0)
    if is_dc5:
        backbone = TimmBackboneConfig(
            backbone="resnet50", out_indices=[4], output_stride=16, features_only=True,
            use_pretrained_backbone=False,
        )  # fmt: skip
    else:
        levels = ["stage2", "stage3", "stage4"]
        single = settings.get("num_feature_levels") == 1
        backbone = ResNetConfig(out_features=levels[-1:] if single else levels)
    config = DeformableDetrConfig(backbone_config=backbone, num_labels=91, **settings)
    model = DeformableDetrForObjectDetection(config).eval()
    if settings.get("with_box_refine"):
        untie_heads(model)
    perturb(model, 0, std=NOISE)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_both_ways(variant: str, tmp_path: Path) -> None:
    full_size(variant).save_pretrained(tmp_path / "source")
    there = convert_file(str(tmp_path / "source"), tmp_path / "ours.pth", check=True)
    assert there.architecture.num_classes == 80
    told = torch.load(tmp_path / "ours.pth", weights_only=True)["provenance"]["verification"]
    assert told["source_weights"] == "as stored"
    assert told["largest"]["logits"] <= LOGITS_BOUND == 1e-3
    assert told["largest"]["boxes"] <= BOXES_BOUND == 1e-4
    convert_file(str(tmp_path / "ours.pth"), tmp_path / "back", to_format="huggingface", check=True)
    _, told = DeformableDetrForObjectDetection.from_pretrained(
        tmp_path / "back", output_loading_info=True
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
