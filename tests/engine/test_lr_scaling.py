# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The learning rate for another batch: by hand, in the log, and in runs."""

import logging
from pathlib import Path

import pytest
import torch
import yaml

from detrex_mammo.engine.lr_scaling import scale_rates
from detrex_mammo.errors import UserError
from tests.engine.faults import run
from tests.engine.tiny import read_lines, write_config

LINEAR = ["train.scale_lr.rule=linear", "train.scale_lr.reference=16"]


def optimizer() -> torch.optim.Optimizer:
    one, two, three = (torch.nn.Parameter(torch.zeros(1)) for _ in range(3))
    return torch.optim.SGD([{"params": [one], "lr": 1e-5}, {"params": [two, three]}], lr=1e-4)


@pytest.mark.parametrize(
    ("rule", "batch", "factor", "told"),
    [
        ("", (8, 2, 4), 1.0, "(scaling is off) for batch 32 = 4 per process x 2 process(es) x 4"),
        ("linear", (8, 2, 4), 2.0, "0.0001 x 2 = 0.0002 (linear scaling from batch 16) for"),
        ("sqrt", (4, 1, 1), 0.5, "0.0001 x 0.5 = 5e-05 (sqrt scaling from batch 16) for batch 4"),
        ("linear", (16, 1, 1), 1.0, "0.0001 x 1 = 0.0001 (linear scaling"),
    ],
)
def test_every_group_and_one_line_by_hand(rule, batch, factor, told: str, caplog) -> None:
    """32 images instead of 16 are 2 times as many; 4 are a quarter, whose root is a half."""
    built = optimizer()
    with caplog.at_level(logging.INFO):
        assert scale_rates(built, rule, 16, batch) == factor
    rates = [group["lr"] for group in built.param_groups]
    assert rates == pytest.approx([1e-5 * factor, 1e-4 * factor], rel=1e-12)
    line, first, second = caplog.messages
    assert told in line and line.startswith("learning rate ")
    assert first.startswith(f"learning rate {1e-5 * factor:g}, weight decay 0 for")
    assert second.startswith(f"learning rate {1e-4 * factor:g}, weight decay 0 for")


@pytest.mark.parametrize(
    ("rule", "reference", "expected"),
    [("square", 16, "rule is 'square', but must be 'linear', 'sqrt'"),
     ("linear", 0, "reference is 0, but"), ("", 2.5, "reference is 2.5, but")],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(rule: str, reference, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        scale_rates(optimizer(), rule, reference, (1, 1, 1))


def test_a_run_is_scaled_once_however_often_it_starts(tmp_path: Path) -> None:
    """Batch 4 x 2 is half of 16, so 1e-2 becomes 5e-3: anew, resumed, and from its config.yaml."""
    config = write_config(tmp_path)
    scaled = [*LINEAR, "train.accumulate=2", "train.epochs=2"]
    run(config, *scaled)
    whole = read_lines(tmp_path / "run/metrics.json", "total_loss")
    assert read_lines(tmp_path / "run/metrics.json", "lr") == [5e-3] * 4
    kept = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert kept["optimizer"]["lr"] == 1e-2 and kept["train"]["scale_lr"]["rule"] == "linear"

    parts = f"train.output_dir={tmp_path / 'parts'}"
    run(config, *scaled, parts, "train.max_iter=2", "dataloader.evaluator=null")
    run(config, *scaled, parts, "--resume", "dataloader.evaluator=null")
    again = f"train.output_dir={tmp_path / 'again'}"
    run(str(tmp_path / "run/config.yaml"), again)
    plain = f"train.output_dir={tmp_path / 'plain'}"
    run(config, "train.accumulate=2", "train.epochs=2", "optimizer.lr=5e-3", plain)
    for name in ("parts", "again", "plain"):
        assert read_lines(tmp_path / name / "metrics.json", "lr") == [5e-3] * 4
        assert read_lines(tmp_path / name / "metrics.json", "total_loss") == whole
    text = (tmp_path / "run/log.txt").read_text()
    told = "learning rate 0.01 x 0.5 = 0.005 (linear scaling from batch 16) for batch 8 = 4 per"
    assert text.count(told) == 1
    assert "0.005 x 1 = 0.005 (scaling is off)" in (tmp_path / "plain/log.txt").read_text()
