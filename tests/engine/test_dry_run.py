# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""--dry-run leaves nothing, tells what a run needs, and finds what would have stopped it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall as L
from omegaconf import OmegaConf

from detrex_mammo.config import find_shipped, load_config
from detrex_mammo.data.datasets import load_coco_json
from detrex_mammo.engine import dry_run
from detrex_mammo.engine.dry_run import Plan
from detrex_mammo.engine.main import main
from detrex_mammo.errors import UserError
from tests.engine.tiny import write_config
from tests.tiny_configs import write_coco

ROOT = Path(find_shipped("configs/common/train.py")).parents[2]


def call(config: str, *arguments: str) -> None:
    main(["--config-file", config, "--dry-run", *arguments])


def plan_of(config: str, *overrides: str) -> Plan:
    plan = dry_run.dry_run(load_config(config, overrides), "cpu")
    assert plan is not None
    return plan


def test_nothing_is_left_and_the_table_is_printed(tmp_path: Path, capsys) -> None:
    config = write_config(tmp_path, "deep/er/run")
    before = sorted(tmp_path.rglob("*"))
    call(config)
    assert sorted(tmp_path.rglob("*")) == before
    out = capsys.readouterr().out
    assert "12 an epoch, 4 a step" in out and "peak process memory" in out


def test_numbers_are_those_of_the_run(tmp_path: Path) -> None:
    """12 images, 2 batches of 2 a step, 10 epochs: 30 steps; an evaluation every 2 epochs: 5.

    A checkpoint every epoch: after steps 3 to 27 nine, of which two are kept; with the last one,
    the best, and one that is being written 5.
    """
    settings = [
        "dataloader.train.total_batch_size=2",
        "train.accumulate=2",
        "train.epochs=10",
        "train.eval_period_epochs=2",
        "train.checkpointer.max_to_keep=2",
        "train.best.metric=tiny/error",
    ]
    config = write_config(tmp_path)
    plan = plan_of(config, *settings)
    assert (plan.images, plan.batch, plan.steps, plan.evaluations) == (12, 4, 30, 5)
    assert plan.num_checkpoints == 5
    assert plan.seconds == 30 * plan.step_seconds + 5 * plan.evaluation_seconds > 0
    main(["--config-file", config, *settings])
    kept = sorted((tmp_path / "run").glob("model_*.pth"))
    assert len(kept) == plan.num_checkpoints - 1
    size = (tmp_path / "run/model_final.pth").stat().st_size
    assert plan.checkpoint_bytes == pytest.approx(size, rel=0.05)


def test_periods_that_do_not_divide(tmp_path: Path) -> None:
    """7 steps, 3 an epoch: evaluations after 3, 6 and 7; checkpoints after 3, 6 and 7."""
    plan = plan_of(write_config(tmp_path), "train.max_iter=7")
    assert (plan.steps, plan.evaluations, plan.num_checkpoints) == (7, 3, 2 + 2)
    plan = plan_of(
        write_config(tmp_path),
        "train.max_iter=7",
        "train.eval_period_epochs=0",
        "train.checkpointer.period_epochs=0",
    )
    assert (plan.evaluations, plan.num_checkpoints) == (1, 2)
    plan = plan_of(write_config(tmp_path), "dataloader.evaluator=null")
    assert (plan.evaluations, plan.evaluation_seconds) == (0, 0.0)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["dataloader.train.total_batch_size=0"], "total_batch_size is 0"),
        (["dataloader.train.mapper.fail_at=1"], "image 1 cannot be used"),
        (["dataloader.test.mapper.fail_at=1"], "image 1 cannot be used"),
        (["train.init_checkpoint=/no/such.pth"], "does not exist"),
        (["model.nan_at=1"], "stopped at step 1.*that folder was the dry run's and is removed"),
        (["train.log_period=0"], "train.log_period is 0"),
        (["train.output_dir="], "train.output_dir is empty"),
        (["train.output_dir={folder}/tiny_config.py/run"], "cannot be made"),
        (["--resume"], "--resume and --dry-run exclude each other"),
        (["--eval-only"], "--eval-only and --dry-run exclude each other"),
    ],
)
def test_what_would_stop_the_run_is_told(tmp_path: Path, overrides, expected: str) -> None:
    config = write_config(tmp_path)
    overrides = [text.replace("{folder}", str(tmp_path)) for text in overrides]
    if "fail_at" in overrides[0] and ".train." in overrides[0]:
        overrides = [*overrides, "dataloader.train.total_batch_size=12"]  # all in the first batch
    with pytest.raises(UserError, match=expected.replace("(", r"\(")):
        call(config, *overrides)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny_config.py"]


def test_an_evaluation_is_as_long_as_its_passes(tmp_path: Path, monkeypatch) -> None:
    """Weights and their average, each predicting and computing its losses: four times 3 s."""
    monkeypatch.setattr(dry_run, "_evaluation_seconds", lambda *_: 3.0)
    config = write_config(tmp_path)
    assert plan_of(config).evaluation_seconds == 3.0
    assert plan_of(config, "train.ema.enabled=True").evaluation_seconds == 6.0
    both = ["train.ema.enabled=True", "train.eval_loss=True"]
    assert plan_of(config, *both).evaluation_seconds == 12.0


def test_an_image_that_no_step_reads_is_missed(tmp_path: Path) -> None:
    """Eight images, one a step: the last one is not among those of the two steps."""
    coco = write_coco(tmp_path, num_images=8)
    dataset = L(load_coco_json)(name=str(coco), json_file=str(coco), image_root=str(tmp_path))
    loader = {"_target_": "builtins.dict", "dataset": dataset}
    cfg = OmegaConf.create({"dataloader": {"train": loader, "test": loader}})
    dry_run.check_images(cfg)
    (tmp_path / "image_7.png").unlink()
    with pytest.raises(UserError, match="train: 1 of 8 images are not there, .*image_7.png"):
        dry_run.check_images(cfg)


def test_an_image_at_an_address_is_left_to_its_reader() -> None:
    records = [{"file_name": "store://images/1.png"}, {"image_id": 2}, 3]
    loader = {"_target_": "builtins.dict", "dataset": records}
    dry_run.check_images(OmegaConf.create({"dataloader": {"train": loader}}))


def test_a_run_without_test_data(tmp_path: Path) -> None:
    path = Path(write_config(tmp_path))
    path.write_text(path.read_text() + "del dataloader['test'], dataloader['evaluator']\n")
    assert plan_of(str(path)).evaluations == 0


def test_a_setting_without_effect_is_told(tmp_path: Path, capsys) -> None:
    call(write_config(tmp_path), "train.amp.dtype=fp16")
    assert "train.amp.dtype=fp16 has no effect" in capsys.readouterr().out


def test_a_full_disk_and_an_earlier_run(tmp_path: Path, monkeypatch) -> None:
    config = write_config(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(dry_run.shutil, "disk_usage", lambda path: usage._replace(free=5000))
        with pytest.raises(UserError, match="has 4.9 KiB free, but 4 checkpoints need"):
            call(config)
    main(["--config-file", config, "train.max_iter=1"])
    with pytest.raises(UserError, match="holds an earlier run"):
        call(config)


def test_print_config_is_a_config_that_runs(tmp_path: Path, capsys) -> None:
    config = write_config(tmp_path)
    main(["--config-file", config, "--print-config", "train.max_iter=2", "optimizer.lr=0.5"])
    text = capsys.readouterr().out
    assert "${" not in text and not (tmp_path / "run").exists()
    printed = OmegaConf.create(text)
    assert printed.optimizer.params.lr == 0.5
    assert printed.dataloader.evaluator.output_dir == str(tmp_path / "run/inference")
    (tmp_path / "printed.yaml").write_text(text)
    main(["--config-file", str(tmp_path / "printed.yaml")])
    state = torch.load(tmp_path / "run/model_final.pth", weights_only=True)
    assert state["iteration"] == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--dry-run"], "12 an epoch, 4 a step"),
        pytest.param(
            ["train.tensorboard_images=1", "train.max_iter=3"], "summary", marks=pytest.mark.slow
        ),
    ],
)
def test_processes_that_share_their_records_end_together(
    arguments: list[str], told: str, tmp_path: Path
) -> None:
    """The main one alone makes the plan or draws, but all take part in reading the test images."""
    config = Path(write_config(tmp_path))
    where = f"name='shared', json_file='{write_coco(tmp_path)}', image_root='{tmp_path}'"
    text = config.read_text().replace("tiny_dataset)(num_images=5)", f"load_coco_json)({where})")
    config.write_text("from detrex_mammo.data.datasets import load_coco_json\n" + text)
    command = [sys.executable, str(ROOT / "tools/train_net.py"), "--config-file", str(config)]
    done = subprocess.run(
        [*command, "--num-gpus=2", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=200,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert told in done.stdout
