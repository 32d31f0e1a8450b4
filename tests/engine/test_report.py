# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""``train.report``: the page of a run's evaluation, with the numbers of its evaluators."""

import json
from pathlib import Path

import pytest
from omegaconf import DictConfig

from detrex_mammo.config import load_config
from detrex_mammo.engine.evaluation import flatten
from detrex_mammo.engine.main import run
from detrex_mammo.errors import UserError
from tests.tiny_configs import shrink, write_coco

CONFIG = "projects/mammography/configs/deformable_detr_r50_two_stage_mammography_50ep.py"


@pytest.fixture
def cfg(tmp_path: Path) -> DictConfig:
    """One step of training on six images of six patients, then an evaluation and its report."""
    found = load_config(CONFIG, ["train.report=True", "train.max_iter=1"])
    shrink(found, write_coco(tmp_path), tmp_path / "run")
    found.train.eval_period_epochs = 0
    found.dataloader.evaluator.bootstrap = 50
    found.dataloader.evaluator.rule = "iou:0.1"
    return found


def test_page_has_the_evaluators_rule_and_numbers(cfg, tmp_path: Path) -> None:
    results = flatten(run(cfg, "cpu"))
    folder = tmp_path / "run" / "report"
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["froc_settings"]["rule"] == "iou:0.1"
    assert found["counts"]["patients"] == 6
    for name in ("sens@0.3", "sens@4", "cpm"):
        assert found["figures"][name]["value"] == pytest.approx(results[f"froc/{name}"])
        assert found["figures"][name]["low"] == pytest.approx(results[f"froc/{name}_low"])
    assert found["figures"]["AP50"]["value"] == pytest.approx(results["bbox/AP50"], abs=1e-9)
    page = (folder / "index.html").read_text()
    assert "<title>run on " in page
    assert page.count('<script type="text/plain" id="picture') == 6


def test_no_report_unless_asked_for(cfg, tmp_path: Path) -> None:
    cfg.train.report = False
    run(cfg, "cpu")
    assert not (tmp_path / "run" / "report").exists()


def test_predictions_that_are_not_kept_are_told_before_training(cfg, tmp_path: Path) -> None:
    cfg.dataloader.evaluator.output_dir = None
    with pytest.raises(UserError, match="train.report is True, but .* has no output_dir"):
        run(cfg, "cpu")
    assert not (tmp_path / "run" / "model_final.pth").exists()
