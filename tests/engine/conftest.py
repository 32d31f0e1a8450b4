# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Runnable tiny configs of Deformable DETR, and live transformers models of their sizes."""

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from detrex_mammo.config import load_config, save_config
from tests.tiny_configs import shrink, write_coco

NAMES = ["mass", "calcification", "asymmetry", "distortion", "skin"]
RECIPE = "projects/deformable_detr/configs/deformable_detr_r50{}_50ep.py"
RECIPES = {"multi_scale": "", "refine": "_with_box_refinement", "two_stage": "_two_stage"}


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Images with five classes, of which two have objects."""
    folder = tmp_path_factory.mktemp("data")
    path = write_coco(folder, num_images=4)
    content = json.loads(path.read_text())
    content["categories"] = [{"id": 10 + i, "name": name} for i, name in enumerate(NAMES)]
    path.write_text(json.dumps(content))
    name = f"registered_{path}"
    if name not in DatasetCatalog.list():
        register_coco_instances(name, {}, str(path), str(folder))
        MetadataCatalog.get(name).set(thing_classes=NAMES)
    return path


@pytest.fixture(scope="session")
def configs(data: Path, tmp_path_factory) -> dict[str, str]:
    """A runnable config for each variant, of the sizes of the live models."""
    folder, written = tmp_path_factory.mktemp("configs"), {}
    for variant, recipe in RECIPES.items():
        cfg = load_config(RECIPE.format(recipe))
        shrink(cfg, data, folder / "run")
        cfg.model.num_classes, cfg.model.num_queries = 5, 11
        cfg.model.transformer.update(
            num_encoder_layers=2, num_decoder_layers=3, feedforward_dim=48, num_encoder_points=3,
            num_decoder_points=2, dropout=0.0,
        )  # fmt: skip
        cfg.model.backbone.update(stem_out_channels=16, res2_out_channels=32)
        cfg.model.topk = 20
        cfg.train.update(max_iter=1, eval_period_epochs=0, log_period=1)
        cfg.optimizer.lr = 0.0
        cfg.train.clip_grad.enabled = False
        written[variant] = str(folder / f"{variant}.yaml")
        save_config(cfg, written[variant])
    return written


@pytest.fixture(scope="session")
def live():
    """A perturbed live model of each variant, made once."""
    from tests.checkpoint.live_models import live_model  # transformers is slow to import

    return {variant: live_model(variant) for variant in RECIPES}
