# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A COCO recipe with its random crops, killed and resumed: to the last digit."""

from pathlib import Path

import pytest
import torch

from detrex_mammo.config import load_config, save_config
from detrex_mammo.data.batching import Batches
from detrex_mammo.engine.loaders import build_train_data
from tests.engine.faults import run
from tests.engine.test_faults import killed_at
from tests.engine.tiny import read_lines
from tests.tiny_configs import shrink, write_coco

RECIPE = "projects/deformable_detr/configs/deformable_detr_r50_two_stage{}_50ep.py"
RECIPES = {"detrex": "", "published": "_authors"}


def tiny_recipe(name: str, folder: Path):
    cfg = load_config(RECIPE.format(RECIPES[name]))
    shrink(cfg, write_coco(folder), folder / "run")
    cfg.dataloader.evaluator = None
    cfg.train.update(max_iter=9, log_period=1)
    cfg.train.checkpointer.period_epochs = 0.7  # 2 of 3 steps
    return cfg


@pytest.mark.parametrize("name", RECIPES)
def test_killed_and_resumed_has_the_same_losses(name: str, tmp_path: Path) -> None:
    """The number of processes that load images is another one, too."""
    config = str(tmp_path / "config.yaml")
    save_config(tiny_recipe(name, tmp_path), config)
    run(config)
    expected = read_lines(tmp_path / "run/metrics.json", "total_loss")
    assert len(expected) == 9

    killed = tmp_path / "killed"
    workers = "dataloader.train.num_workers=1"
    output = f"train.output_dir={killed}"
    assert killed_at("last_checkpoint", 2, True, config, workers, output) == -9  # after 4 steps
    run(config, output, "--resume")
    assert "resumed from" in (killed / "log.txt").read_text()
    assert read_lines(killed / "metrics.json", "total_loss") == expected


def test_same_images_are_another_batch_with_another_crop(tmp_path: Path) -> None:
    """What the test above would not see: that images are cropped at random, by the seed."""
    cfg = tiny_recipe("detrex", tmp_path)
    sizes = []
    for seed in (1, 1, 2):
        loader = iter(build_train_data(cfg.dataloader.train, seed).loader)
        sizes.append([tuple(item["image"].shape) for _ in range(20) for item in next(loader)])
    assert sizes[0] == sizes[1] != sizes[2] and len(set(sizes[0])) > 10


def test_recipe_as_published_does_not_sort_images(tmp_path: Path) -> None:
    """Its steps are the seeded order, cut; detrex's bring images of one size together."""
    for name, is_sorted in (("published", False), ("detrex", True)):
        cfg = load_config(RECIPE.format(RECIPES[name]))
        assert cfg.dataloader.train.sort_window == (256 if is_sorted else 0)
        folder = tmp_path / name
        folder.mkdir()
        shrink(cfg, write_coco(folder, num_images=31), folder / "run")
        data = build_train_data(cfg.dataloader.train, 3)
        batches: Batches = data.loader.batch_sampler
        plan = batches.plan(0)
        order = batches.order.images(plan.first, plan.first + len(plan.images))
        assert (plan.images.tolist() == order.tolist()) is not is_sorted
        assert torch.equal(torch.tensor(plan.images).unique(), torch.arange(data.num_images))
