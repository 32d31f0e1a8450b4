# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Validation losses: those of the criterion on one batch of all images."""

from pathlib import Path

import pytest
import torch

from detrex_mammo.config import load_config
from detrex_mammo.engine import validation
from detrex_mammo.engine.main import main
from detrex_mammo.engine.validation import validation_losses, with_targets
from tests.engine.small_detector import images, make_detector
from tests.engine.tiny import TinyDetector, TinyMapper, read_lines, tiny_dataset, write_config

CONFIG = "projects/mammography/configs/demo.py"


def cut(items: list, size: int) -> list[list]:
    return [items[i : i + size] for i in range(0, len(items), size)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, float]:
    """Losses of one batch of all images, of the same weights in training mode without dropout."""
    model = make_detector(tmp_path_factory.mktemp("plain")).train()
    with torch.no_grad():
        losses = {name: float(value) for name, value in model(images()).items()}
    return {"loss": sum(losses.values()), **losses}


@pytest.mark.parametrize("size", [1, 3, 8])
def test_size_of_the_batch_and_dropout_do_not_matter(size, expected, tmp_path: Path) -> None:
    model = make_detector(tmp_path, dropout=0.5).train()
    state = torch.get_rng_state()
    found = validation_losses(model, cut(images(), size))
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, rel=1e-6)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.transformer.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.criterion.num_boxes is None


def test_shares_of_processes_are_summed_up(expected, tmp_path: Path, monkeypatch) -> None:
    """Seven images, one image, and a process that has none."""
    model, shares = make_detector(tmp_path).eval(), []

    def keep(share: tuple) -> list:
        shares.append(share)
        return [share]

    monkeypatch.setattr(validation.comm, "all_gather", keep)
    for items in ([], images()[:7], images()[7:]):
        validation_losses(model, cut(items, 2))
    monkeypatch.setattr(validation.comm, "all_gather", lambda share: shares)
    assert validation_losses(model, []) == pytest.approx(expected, rel=1e-6)
    assert not model.training


def test_means_of_a_model_without_criterion_are_weighted_by_images() -> None:
    """Batches of 4 and 1 image are one of 5; a plain mean of the two would not be."""
    model = TinyDetector()
    items = [TinyMapper()(item) for item in tiny_dataset(5)]
    whole = validation_losses(model, [items])
    assert validation_losses(model, [items[:4], items[4:]]) == pytest.approx(whole, rel=1e-6)
    means = [validation_losses(model, [part])["loss"] for part in (items[:4], items[4:])]
    assert sum(means) / 2 != pytest.approx(whole["loss"], rel=1e-3)


def test_no_box_at_all_divides_by_one(tmp_path: Path) -> None:
    """As the criterion does; only the focal loss of the background is left."""
    model = make_detector(tmp_path)
    empty = images()[1::4]
    found = validation_losses(model, cut(empty, 1))
    with torch.no_grad():
        expected = {name: float(value) for name, value in model.train()(empty).items()}
    assert found["loss_bbox"] == 0 < found["loss_class"] == pytest.approx(expected["loss_class"])


def test_mapper_of_the_test_gives_targets_and_the_config_stays() -> None:
    cfg = load_config(CONFIG)
    node = with_targets(cfg.dataloader.test)
    assert node.mapper.is_train is True and cfg.dataloader.test.mapper.is_train is False
    assert node.mapper.preprocessing == cfg.dataloader.train.mapper.preprocessing
    assert node.mapper.augmentations == cfg.dataloader.test.mapper.augmentations


def test_setting_reports_them_beside_the_metrics(tmp_path: Path) -> None:
    """TinyDetector's loss_bbox is the mean absolute error, which is its evaluator's number."""
    config = write_config(tmp_path)
    main(["--config-file", config, "train.eval_loss=True"])
    metrics = tmp_path / "run/metrics.json"
    errors, losses = read_lines(metrics, "tiny/error"), read_lines(metrics, "val/loss")
    parts = [read_lines(metrics, f"val/loss_{name}") for name in ("bbox", "class")]
    assert len(losses) == 3
    assert parts[0] == pytest.approx(errors, rel=1e-5)
    assert losses == pytest.approx([sum(pair) for pair in zip(*parts)])
    assert "val/loss" in (tmp_path / "run/log.txt").read_text()
