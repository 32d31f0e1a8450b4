# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Every shipped config loads, saves, loads again, and runs for a step at tiny size."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from detrex_mammo.config import config_to_text, instantiate, load_config, load_config_text
from detrex_mammo.engine.evaluation import flatten
from detrex_mammo.engine.main import run
from detrex_mammo.engine.training import build_optimizer
from detrex_mammo.errors import UserError
from detrex_mammo.modeling.tiling import Tiles
from tests.tiny_configs import nodes, shipped_configs, shrink, write_coco

CONFIGS = shipped_configs()
DEFORMABLE = "projects/deformable_detr/configs/deformable_detr_r50"
MAMMOGRAPHY = "projects/mammography/configs"
MAMMO_DETR = f"{MAMMOGRAPHY}/mammo_detr_swin_t_50ep.py"
VARIANTS = ("", "_with_box_refinement", "_two_stage", "_single_scale", "_single_scale_dc5")


def make_tiny(cfg: DictConfig, json_file: Path, output: Path) -> None:
    """As ``shrink``; and images of at most 64 x 48 pixels, and nothing from the network."""
    shrink(cfg, json_file, output)
    for node in nodes(cfg):
        if "max_height" in node:
            node.max_height, node.max_width = 64, 48
        if "pretrained" in node:
            node.pretrained = False


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
def test_learning_rate_is_that_of_the_shipped_batch(path: str) -> None:
    """``train.scale_lr`` changes it only where the batch is another one."""
    cfg = load_config(path)
    batch = cfg.dataloader.train.total_batch_size * cfg.train.accumulate
    assert cfg.train.scale_lr.reference == batch


@pytest.mark.parametrize("path", CONFIGS)
def test_config_trains_and_evaluates_at_tiny_size(path: str, tmp_path: Path) -> None:
    cfg = load_config(path, ["train.fast_dev_run=True"])
    make_tiny(cfg, write_coco(tmp_path), tmp_path / "out")
    results = flatten(run(cfg, "cpu"))
    assert any(name.endswith("bbox/AP") for name in results)
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


def test_high_resolution_has_one_frame_in_one_place() -> None:
    """Changed where it is written, it changes in evaluation too; the batch stays 16."""
    path = f"{MAMMOGRAPHY}/deformable_detr_r50_two_stage_high_resolution_50ep.py"
    key = "dataloader.train.mapper.augmentations.1"
    for overrides, size in (
        ([], (2944, 1920)),
        ([f"{key}.height=512", f"{key}.width=256"], (512, 256)),
    ):
        cfg = load_config(path, overrides)
        for loader in (cfg.dataloader.train, cfg.dataloader.test):
            (resize,) = [
                s for s in instantiate(loader.mapper).augmentations.augs if hasattr(s, "height")
            ]
            assert (resize.height, resize.width) == size
    assert cfg.dataloader.train.total_batch_size * cfg.train.accumulate == 16
    assert cfg.train.amp.enabled and cfg.model.transformer.encoder_checkpointing


def test_tiles_are_stored_with_the_model(tmp_path: Path) -> None:
    """Smaller than the tiny images, which are evaluated in several; the saved config has them."""
    path = f"{MAMMOGRAPHY}/deformable_detr_r50_two_stage_tiled_50ep.py"
    cfg = load_config(path, ["train.fast_dev_run=True", "model.tiles.height=512"])
    tile = instantiate(cfg.dataloader.train.mapper).augmentations.augs[2]
    assert (tile.height, tile.width) == (512, 1024)  # training's too
    make_tiny(cfg, write_coco(tmp_path), tmp_path / "out")
    cfg.model.tiles.update(height=32, width=24)
    assert "bbox" in run(cfg, "cpu")
    saved = torch.load(tmp_path / "out" / "fast_dev_run" / "model_final.pth", weights_only=True)
    model = instantiate(load_config_text(saved["config"], "checkpoint").model)
    assert model.tiles == Tiles(32, 24)


def test_queries_of_training_only_are_as_published() -> None:
    """5 groups of DN-DETR, noise and bound of DINO; 1500 queries, k = 6, lambda = 1 of H-DETR.

    Everything else is the plain two-stage config, but for H-DETR's length and dropout.
    """
    plain = load_config(f"{DEFORMABLE}_two_stage_50ep.py")
    dn, hybrid = (
        load_config(f"{DEFORMABLE}_two_stage_{name}.py") for name in ("dn_50ep", "hybrid_12ep")
    )
    queries = instantiate(dn.model).denoising
    assert (queries.num_groups, queries.num_groups * 2 * queries.boxes_per_group) == (5, 200)
    assert (queries.label_noise, queries.box_noise, queries.num_kinds) == (0.5 / 2, 1.0, 2)
    assert queries.label_embed.weight.shape == (80, 256)
    queries = instantiate(hybrid.model).hybrid
    assert (queries.num_queries, queries.copies, queries.weight) == (1500, 6, 1.0)
    assert hybrid.train.epochs == 12 and hybrid.lr_multiplier.milestones == [11]
    assert hybrid.model.transformer.dropout == 0.0
    dn.model.denoising = hybrid.model.hybrid = None
    hybrid.model.transformer.dropout = plain.model.transformer.dropout
    assert dn.model == hybrid.model == plain.model
    assert dn.optimizer == hybrid.optimizer == plain.optimizer


@pytest.mark.parametrize("name", ["dn_50ep", "hybrid_12ep"])
def test_queries_of_training_only_train(name: str, tmp_path: Path) -> None:
    """Their losses are logged; validation has the plain ones."""
    overrides = ["train.fast_dev_run=True", "train.eval_loss=True"]
    cfg = load_config(f"{DEFORMABLE}_two_stage_{name}.py", overrides)
    make_tiny(cfg, write_coco(tmp_path), tmp_path / "out")
    results = flatten(run(cfg, "cpu"))
    lines = (tmp_path / "out" / "fast_dev_run" / "metrics.json").read_text().splitlines()
    logged = set().union(*(json.loads(line) for line in lines))
    suffix = name.split("_")[0].replace("hybrid", "one2many")
    assert {f"loss_giou_{suffix}", f"loss_class_{suffix}_0"} <= logged
    validated = [key for key in (*results, *logged) if key.startswith("val/")]
    assert validated and not any(suffix in key for key in validated)


def test_mammo_detr_is_as_published() -> None:
    """Numbers of deformable_swin.gin, and of the builder's defaults that it leaves alone."""
    cfg = load_config(MAMMO_DETR, ["model.backbone.pretrained=False"])
    model = instantiate(cfg.model)
    assert (model.num_queries, model.topk, model.in_features) == (170, 50, ["p3"])
    assert (model.with_box_refine, model.two_stage) == (False, False)
    transformer = model.transformer
    assert (len(transformer.encoder.layers), len(transformer.decoder.layers)) == (3, 6)
    assert (transformer.num_feature_levels, transformer.embed_dim) == (1, 256)
    for part in (model.criterion, model.criterion.matcher):
        assert (part.focal_alpha, part.focal_gamma) == (0.2, 2.14)
    criterion, matcher = model.criterion, model.criterion.matcher
    assert (criterion.weight_class, criterion.weight_bbox, criterion.weight_giou) == (0.85, 1, 0.47)
    assert (matcher.cost_class, matcher.cost_bbox, matcher.cost_giou) == (0.85, 1, 0.47)
    image = torch.rand(1, 40, 60).expand(3, -1, -1) * 90 + 70
    normalised = model.normalize(image)
    assert abs(normalised.mean()) < 1e-4 and abs(normalised.std(correction=0) - 1) < 1e-4


def test_mammo_detr_without_timm_or_its_weights_is_one_sentence(monkeypatch) -> None:
    import timm

    def offline(*_, **__):
        raise FileNotFoundError("no network, no cache")

    cfg = load_config(MAMMO_DETR)
    with monkeypatch.context() as patch:
        patch.setattr(timm, "create_model", offline)
        with pytest.raises(
            UserError, match="cannot be had .no network, no cache.; .*pretrained=False"
        ):
            instantiate(cfg.model)
        patch.setitem(sys.modules, "timm", None)
        with pytest.raises(UserError, match="needs timm; install it"):
            instantiate(cfg.model)
