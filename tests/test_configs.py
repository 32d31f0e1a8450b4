# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Every shipped config loads, saves, loads again, and runs for a step at tiny size."""

import json
import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from detrex_mammo.config import config_to_text, instantiate, load_config, load_config_text
from detrex_mammo.engine.main import run
from detrex_mammo.engine.training import build_optimizer
from tests.tiny_configs import shipped_configs, shrink, write_coco

CONFIGS = shipped_configs()
DEFORMABLE = "projects/deformable_detr/configs/deformable_detr_r50"
VARIANTS = ("", "_with_box_refinement", "_two_stage", "_single_scale", "_single_scale_dc5")


def test_all_published_variants_are_shipped_in_both_recipes() -> None:
    for variant in VARIANTS:
        for recipe in ("", "_authors"):
            assert f"{DEFORMABLE}{variant}{recipe}_50ep.py" in CONFIGS


@pytest.mark.parametrize("path", CONFIGS)
def test_config_loads_and_its_yaml_is_the_same_config(path: str) -> None:
    cfg = load_config(path)
    again = load_config_text(config_to_text(cfg), "config.yaml")
    assert config_to_text(again) == config_to_text(cfg)
    assert OmegaConf.to_container(again, resolve=True).keys() == OmegaConf.to_container(cfg).keys()


@pytest.mark.parametrize("path", CONFIGS)
def test_config_trains_and_evaluates_at_tiny_size(path: str, tmp_path: Path) -> None:
    cfg = load_config(path, ["train.fast_dev_run=True"])
    shrink(cfg, write_coco(tmp_path), tmp_path / "out")
    results = run(cfg, "cpu")
    assert "bbox" in results
    folder = tmp_path / "out" / "fast_dev_run"
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    assert losses and all(math.isfinite(loss) and loss > 0 for loss in losses)
    saved = torch.load(folder / "model_final.pth", weights_only=True)
    assert saved["classes"]["names"] == ["mass", "calcification"]
    assert load_config_text(saved["config"], "checkpoint").model.num_classes == 2


def group_of(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> dict[str, dict]:
    """Parameter name -> its group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


def build(path: str, tmp_path: Path) -> tuple[torch.nn.Module, dict[str, dict]]:
    cfg = load_config(path)
    batch = cfg.dataloader.train.total_batch_size
    assert batch == (32 if "authors" in path else 16)
    shrink(cfg, write_coco(tmp_path), tmp_path)
    model = instantiate(cfg.model)
    return model, group_of(build_optimizer(cfg.optimizer, model), model)


def test_recipe_of_detrex(tmp_path: Path) -> None:
    model, groups = build(f"{DEFORMABLE}_50ep.py", tmp_path)
    assert model.criterion.weight_class == 1.0
    offsets = groups["transformer.encoder.layers.0.self_attn.sampling_offsets.weight"]
    assert (offsets["lr"], offsets["weight_decay"]) == (1e-4, 1e-4)
    for name, group in groups.items():
        in_backbone = name.startswith("backbone.")
        assert group["lr"] == pytest.approx(1e-5 if in_backbone else 1e-4), name
    norms = {
        f"{name}.{kind}"
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.LayerNorm, torch.nn.GroupNorm))
        for kind in ("weight", "bias")
    }
    assert norms and {n for n, g in groups.items() if g["weight_decay"] == 0} == norms
    trained = {name.split(".")[1] for name in groups if name.startswith("backbone.")}
    assert trained == {"res2", "res3", "res4", "res5"}  # freeze_at=1


def test_recipe_of_the_authors(tmp_path: Path) -> None:
    model, groups = build(f"{DEFORMABLE}_authors_50ep.py", tmp_path)
    assert model.criterion.weight_class == 2.0
    for name, group in groups.items():
        slow = "backbone." in name or "sampling_offsets" in name or "reference_points" in name
        assert group["lr"] == pytest.approx(2e-5 if slow else 2e-4), name
        assert group["weight_decay"] == 1e-4
    assert "transformer.reference_points.weight" in groups
    trained = {name.split(".")[1] for name in groups if name.startswith("backbone.")}
    assert trained == {"res3", "res4", "res5"}  # freeze_at=2


def test_one_number_of_classes_reaches_head_and_criterion(tmp_path: Path) -> None:
    cfg = load_config(f"{DEFORMABLE}_50ep.py", ["model.num_classes=5"])
    shrink(cfg, write_coco(tmp_path), tmp_path)
    cfg.model.num_classes = 5
    model = instantiate(cfg.model)
    assert model.num_classes == model.criterion.num_classes == 5
    assert model.class_embed[0].out_features == 5


def test_configs_share_nothing() -> None:
    first = load_config(f"{DEFORMABLE}_50ep.py")
    first.model.num_classes = 1
    first.train.epochs = 1
    second = load_config(f"{DEFORMABLE}_two_stage_50ep.py")
    assert (second.model.num_classes, second.train.epochs) == (80, 50)
