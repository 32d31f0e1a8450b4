# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The best checkpoint of a run."""

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from detrex_mammo.config_check import nearest
from detrex_mammo.engine.best import BestCheckpoint
from detrex_mammo.engine.checkpointer import RunCheckpointer
from detrex_mammo.engine.integrity import CheckedFolder
from detrex_mammo.engine.main import main
from detrex_mammo.errors import UserError
from tests.engine.tiny import TinyDetector, read_lines, write_config


def saved(folder: Path) -> dict:
    return torch.load(folder / "model_best.pth", weights_only=True)


@pytest.mark.parametrize(
    ("mode", "values", "steps"),
    [
        ("max", [5.0, math.inf, 7.0, 7.0, math.nan], [0, 2]),
        ("min", [5.0, 3.0, 7.0, 1.0], [0, 1, 3]),
    ],
)
def test_file_changes_when_a_value_is_better_than_all_before(
    mode: str, values: list[float], steps: list[int], tmp_path: Path
) -> None:
    """Whether one process sees all values, or each is seen after a restart."""
    for restarts in (False, True):
        folder = tmp_path / str(restarts)
        folder.mkdir()
        checkpointer = RunCheckpointer(TinyDetector(), str(folder))
        best = BestCheckpoint(checkpointer, "a/b", mode)
        changed = []
        for step, value in enumerate(values):
            best.update({"a/b": value, "c": 0.0}, step)
            if (folder / "model_best.pth").exists() and saved(folder)["best"]["iteration"] == step:
                changed.append(step)
            if restarts:
                best = BestCheckpoint(RunCheckpointer(TinyDetector(), str(folder)), "a/b", mode)
        assert changed == steps
        assert saved(folder)["best"]["value"] == values[steps[-1]]
        assert not (folder / "last_checkpoint").exists()


def test_another_metric_starts_anew(tmp_path: Path) -> None:
    checkpointer = RunCheckpointer(TinyDetector(), str(tmp_path))
    BestCheckpoint(checkpointer, "a", "max").update({"a": 5.0}, 0)
    assert BestCheckpoint(checkpointer, "a", "max").value == 5.0
    assert BestCheckpoint(checkpointer, "b", "max").value is None
    assert BestCheckpoint(checkpointer, "a", "min").value is None


def test_nearest_of_equally_similar_names_begins_alike() -> None:
    """AP5O is one letter from AP50, AP75 and AP."""
    known = ["bbox/AP", "bbox/AP75", "bbox/AP50", "bbox/APs", "val/loss"]
    assert nearest("bbox/AP5O", known) == nearest("bbox/AP5O", known[::-1]) == "bbox/AP50"
    assert nearest("something", known) is None


def run(config: str, *arguments: str) -> None:
    main(["--config-file", config, "optimizer.lr=0.3", *arguments])


def test_weights_are_those_of_the_best_evaluation(tmp_path: Path) -> None:
    """The error falls, so the most of it is the first; stopped and resumed, it is the same."""
    config = write_config(tmp_path)
    best = ["train.best.metric=tiny/error", "train.best.mode=max", "train.epochs=6"]
    run(config, *best)
    errors = read_lines(tmp_path / "run/metrics.json", "tiny/error")
    assert max(errors) > errors[-1]
    content = saved(tmp_path / "run")
    step = 3 * (errors.index(max(errors)) + 1) - 1
    assert content["best"] == {
        "metric": "tiny/error", "mode": "max", "value": max(errors), "iteration": step,
    }  # fmt: skip
    assert {"model", "config", "classes", "preprocessing", "provenance"} <= set(content)
    assert "trainer" not in content
    weights = f"train.init_checkpoint={tmp_path / 'run/model_best.pth'}"
    run(config, "--eval-only", weights)
    found = json.loads((tmp_path / "run/eval/metrics.json").read_text())
    assert found["tiny/error"] == max(errors)

    folder = f"train.output_dir={tmp_path / 'stopped'}"
    run(config, *best, folder, f"train.max_iter={step + 1}")
    run(config, *best, folder, "--resume")
    assert saved(tmp_path / "stopped")["best"] == content["best"]


def test_unknown_metric_is_one_sentence_after_the_first_evaluation(tmp_path: Path) -> None:
    """The step is saved although no checkpoint was due, and the run goes on from it."""
    config = write_config(tmp_path)
    rare = "train.checkpointer.period_epochs=0"
    with pytest.raises(
        UserError, match="'tiny/eror', which no .* nearest is 'tiny/error'"
    ) as caught:
        run(config, rare, "train.best.metric=tiny/eror")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_0000002.pth"
    assert len(read_lines(tmp_path / "run/metrics.json", "tiny/error")) == 1
    run(config, rare, "--resume", "train.best.metric=tiny/error")
    assert read_lines(tmp_path / "run/metrics.json", "total_loss") and saved(tmp_path / "run")


def test_unknown_metric_of_a_run_that_ended_is_corrected_by_a_resume(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    ends = ["train.max_iter=2", "train.eval_period_epochs=0"]
    with pytest.raises(UserError, match="go on with --resume"):
        run(config, *ends, "train.best.metric=nothing")
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_final.pth"
    run(config, *ends, "--resume", "train.best.metric=tiny/error")
    assert saved(tmp_path / "run")["best"]["iteration"] == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train.best.metric=a", "train.best.mode=most"], "train.best.mode is 'most'"),
        (["train.best.metric=a", "dataloader.evaluator=null"], "dataloader.evaluator is not set"),
        (["train.eval_loss=True", "dataloader.evaluator=null"], "dataloader.evaluator is not set"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(arguments, expected: str, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with pytest.raises(UserError, match=expected):
        run(config, *arguments)
    assert not (tmp_path / "run/config.yaml").exists()


def refuse_best(files: CheckedFolder, name: str, write: Callable) -> None:
    """A disk that has no room for the best checkpoint alone."""
    if name == "model_best.pth":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    real_write(files, name, write)


real_write = CheckedFolder.write
FULL = """
from detrex_mammo.engine.integrity import CheckedFolder
from tests.engine.test_best import refuse_best
CheckedFolder.write = refuse_best
"""


def test_full_disk_is_known_to_all_processes(tmp_path: Path, monkeypatch) -> None:
    """Only the main one writes; the other must not go on to where the main one never comes."""
    monkeypatch.setattr(CheckedFolder, "write", real_write)  # put back what the config changes
    path = Path(write_config(tmp_path))
    path.write_text(path.read_text() + FULL)
    arguments = ["train.best.metric=tiny/error", "train.checkpointer.period_epochs=0"]
    with pytest.raises(UserError, match="'model_best' cannot be written .*No space left"):
        main(["--config-file", str(path), "--num-gpus", "2", "train.eval_period_epochs=1",
              *arguments])  # fmt: skip
    assert (tmp_path / "run/model_0000002.pth").is_file()
