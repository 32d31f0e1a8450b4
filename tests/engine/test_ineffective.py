# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""A setting that nothing reads is told, one that is read is not."""

from pathlib import Path

import pytest

from detrex_mammo.config import load_config
from detrex_mammo.engine.ineffective import ineffective
from detrex_mammo.engine.main import main
from tests.engine.tiny import write_config


@pytest.mark.parametrize(
    ("overrides", "because", "remedy"),
    [
        (["train.epochs=2", "train.max_iter=3"], "train.max_iter is 3", "train.max_iter=null"),
        (["train.amp.dtype=bf16"], "train.amp.enabled is False", "train.amp.enabled=True"),
        (
            ["train.clip_grad.params.max_norm=1", "train.clip_grad.enabled=False"],
            "train.clip_grad.enabled is False",
            "train.clip_grad.enabled=True",
        ),
        (["train.best.mode=min"], "train.best.metric is not set", "train.best.metric=val/loss"),
        (["train.ema.decay=0.9"], "train.ema.enabled is False", "train.ema.enabled=True"),
        (
            ["train.early_stopping.patience=3"],
            "train.early_stopping.metric is not set",
            "train.early_stopping.metric=val/loss",
        ),
        (
            ["train.checkpointer.max_to_keep=2", "train.checkpointer.period_epochs=0"],
            "train.checkpointer.period_epochs is 0",
            "train.checkpointer.period_epochs=1",
        ),
        (
            ["train.eval_period_epochs=2", "dataloader.evaluator=null"],
            "no dataloader.evaluator",
            "train.eval_loss=True",
        ),
        (
            ["train.tensorboard_images=2", "dataloader.evaluator=null"],
            "no dataloader.evaluator",
            "train.eval_loss=True",
        ),
        (
            ["train.fsdp.reshard_after_forward=False"],
            "train.fsdp.enabled is False",
            "train.fsdp.enabled=True",
        ),
        (["train.init.boxes=False"], "train.init_checkpoint is not set", "train.init_checkpoint=a"),
    ],
)
def test_each_rule(tmp_path: Path, overrides: list[str], because: str, remedy: str) -> None:
    """The remedy that the sentence names makes it effective."""
    config = write_config(tmp_path)
    (sentence,) = ineffective(load_config(config, overrides), overrides)
    assert sentence.startswith(f"{overrides[0]} has no effect, because ")
    assert because in sentence and "\n" not in sentence and "{" not in sentence
    repaired = [*overrides, remedy]
    assert list(ineffective(load_config(config, repaired), repaired)) == []


def test_a_report_without_an_evaluator(tmp_path: Path) -> None:
    overrides = ["train.report=True", "dataloader.evaluator=null"]
    (sentence,) = ineffective(load_config(write_config(tmp_path), overrides), overrides)
    assert sentence.startswith("train.report=True has no effect")


def test_a_run_warns_of_it(tmp_path: Path) -> None:
    main(["--config-file", write_config(tmp_path), "train.max_iter=1", "train.epochs=7"])
    log = (tmp_path / "run/log.txt").read_text()
    assert "train.epochs=7 has no effect, because train.max_iter is 1, which wins" in log
    assert "train.max_iter=1 has no effect" not in log
