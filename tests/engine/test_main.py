# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""tools/train_net.py in one process: train, resume, evaluate, and every wrong way to ask."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from detrex_mammo.config import find_shipped
from detrex_mammo.engine.main import main
from detrex_mammo.errors import UserError
from tests.engine.tiny import read_lines, write_config

ROOT = Path(find_shipped("configs/common/train.py")).parents[2]


def call(config: str, *arguments: str) -> None:
    main(["--config-file", config, *arguments])


def sentence(config: str, *arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        call(config, *arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[str, Path]:
    """A config and the folder of its finished run: 12 images, batch 4, 3 epochs."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder)
    call(config)
    return config, folder / "run"


def test_run_leaves_everything_a_user_needs(finished) -> None:
    _, run = finished
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "metrics.json", "log.txt", "last_checkpoint", "inference"} <= names
    assert {"model_0000002.pth", "model_0000005.pth", "model_final.pth"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert len(read_lines(run / "metrics.json", "total_loss")) == 9
    assert len(read_lines(run / "metrics.json", "tiny/error")) == 3  # one per epoch
    assert read_lines(run / "metrics.json", "lr") == pytest.approx([1e-2] * 6 + [1e-3] * 3)
    assert "eta 0:00:0" in (run / "log.txt").read_text()


def test_checkpoint_holds_what_prediction_needs(finished) -> None:
    _, run = finished
    content = torch.load(run / "model_final.pth", weights_only=True)
    assert {"model", "trainer", "config", "classes", "preprocessing", "provenance"} <= set(content)
    assert content["config"] == (run / "config.yaml").read_text()
    assert yaml.safe_load(content["config"])["model"]["width"] == 8
    assert content["preprocessing"] == {"window": "none"}
    assert content["provenance"]["versions"]["torch"] in torch.__version__
    assert content["iteration"] == content["trainer"]["iteration"] == 8


def test_config_yaml_of_a_run_repeats_it_to_the_last_digit(finished, tmp_path: Path) -> None:
    _, run = finished
    call(str(run / "config.yaml"), f"train.output_dir={tmp_path / 'again'}")
    for key in ("total_loss", "grad_norm", "tiny/error"):
        assert read_lines(tmp_path / "again/metrics.json", key) == read_lines(
            run / "metrics.json", key
        )


def test_other_seed_other_losses(finished, tmp_path: Path) -> None:
    config, run = finished
    call(config, f"train.output_dir={tmp_path / 'other'}", "train.seed=-1", "train.max_iter=2")
    first = read_lines(run / "metrics.json", "total_loss")[:2]
    assert read_lines(tmp_path / "other/metrics.json", "total_loss") != first
    assert yaml.safe_load((tmp_path / "other/config.yaml").read_text())["train"]["seed"] >= 0


def test_finished_run_is_not_overwritten(finished) -> None:
    config, run = finished
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    message = sentence(config)
    assert "--resume" in message and "another train.output_dir" in message
    assert all(path.read_bytes() == content for path, content in before.items())


def test_failed_start_leaves_the_folder_free(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert "multiple of" in sentence(config, "dataloader.train.total_batch_size=0")
    call(config, "train.max_iter=1")


def test_resume_goes_on_where_the_run_was_stopped(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    call(config, "train.max_iter=4")
    call(config, "--resume", "train.max_iter=6")
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "total_loss" in line] == [0, 1, 2, 3, 4, 5]
    state = torch.load(run / "model_final.pth", weights_only=True)["trainer"]
    assert state["iteration"] == 5
    assert {int(entry["step"]) for entry in state["optimizer"]["state"].values()} == {6}
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["max_iter"] == 6
    assert yaml.safe_load((run / "config_before_1.yaml").read_text())["train"]["max_iter"] == 4


def test_resumed_run_has_the_losses_of_an_uninterrupted_one(finished, tmp_path: Path) -> None:
    """Nothing is random in this model and mapper, so not a digit may differ."""
    _, whole = finished
    config = write_config(tmp_path)
    call(config, "train.max_iter=5")
    call(config, "--resume")
    for key in ("total_loss", "grad_norm", "lr"):
        assert read_lines(tmp_path / "run/metrics.json", key) == read_lines(
            whole / "metrics.json", key
        )


def test_second_run_in_a_process_has_its_own_log(tmp_path: Path, capsys) -> None:
    config = write_config(tmp_path)
    for name in ("one", "two"):
        call(config, f"train.output_dir={tmp_path / name}", "train.max_iter=1")
    assert capsys.readouterr().out.count("step 1/1") == 2
    assert (tmp_path / "one/log.txt").read_text().count("step 1/1") == 1


def test_mistake_found_by_a_data_loading_process_is_one_sentence(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    message = sentence(
        config, "dataloader.train.mapper.fail_at=3", "dataloader.train.num_workers=1"
    )
    assert message == "image 3 cannot be used"


def test_resume_with_another_model_is_one_sentence(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    call(config, "train.max_iter=1")
    assert "3 mis-shaped" in sentence(config, "--resume", "model.width=4")
    assert "does not fit this config" in sentence(config, "--resume", "optimizer.params.rules=[]")


def test_resume_in_an_empty_folder_starts(tmp_path: Path) -> None:
    call(write_config(tmp_path), "--resume", "train.max_iter=1")
    assert (tmp_path / "run/model_final.pth").is_file()


def test_eval_only_equals_the_last_evaluation_of_training(finished) -> None:
    config, run = finished
    checkpoint = f"train.init_checkpoint={run / 'model_final.pth'}"
    call(config, "--eval-only", checkpoint)
    call(config, "--eval-only", checkpoint)
    for folder in (run / "eval", run / "eval_2"):
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["tiny/error"] == read_lines(run / "metrics.json", "tiny/error")[-1]
        assert metrics["tiny/count"] == 5
        assert len(json.loads((folder / "inference/predictions.json").read_text())) == 5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--eval-only", "dataloader.evaluator=null"], "dataloader.evaluator is not set"),
        (["--eval-only", "train.init_checkpoint=/no/such.pth"], "does not exist"),
        (["train.init_checkpoint=/no/such.pth"], "does not exist"),
        (["train.max_iter=0"], "train.max_iter is 0"),
        (["train.max_iter=1.5"], "train.max_iter is 1.5"),
        (["train.epochs=0"], "train.epochs is 0"),
        (["train.device=gpu"], "train.device is 'gpu'"),
        (["train.amp.dtype=int8"], "train.amp.dtype is 'int8'"),
        (["train.log_period=0"], "train.log_period is 0"),
        (["dataloader.train.dataset.num_images=0"], "holds no image"),
        (["--num-gpus", "0"], "--num-gpus is 0"),
        (["--num-machines", "2"], "--dist-url auto works on one machine only"),
        (["--num-machines", "2", "--machine-rank", "2", "--dist-url", "tcp://a:1"], "it must be 0"),
    ],
)
def test_wrong_request_is_one_sentence(arguments, expected: str, tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert expected in sentence(config, *arguments)
    assert not (tmp_path / "run/config.yaml").exists()


def test_checkpoint_of_another_model_and_a_truncated_one(finished, tmp_path: Path) -> None:
    config, run = finished
    folder = f"train.output_dir={tmp_path}"
    whole = run / "model_final.pth"
    message = sentence(
        config, "--eval-only", folder, f"train.init_checkpoint={whole}", "model.width=4"
    )
    assert "3 mis-shaped (backbone.weight [8, 3, 3, 3] instead of [4, 3, 3, 3]" in message
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole.read_bytes()[:1000])
    assert "cut short" in sentence(config, "--eval-only", folder, f"train.init_checkpoint={cut}")


def test_dataset_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch) -> None:
    recipe = "projects/deformable_detr/configs/deformable_detr_r50_50ep.py"
    common = [f"train.output_dir={tmp_path}", "train.init_checkpoint=''", "train.device=cpu"]
    small = ["model.backbone.depth=14", "model.transformer.num_encoder_layers=1"]
    message = sentence(recipe, *common, *small)
    assert "instances_train2017.json" in message and "DETECTRON2_DATASETS" in message
    message = sentence(recipe, *common, *small, "dataloader.train.dataset.names=coco_2017_trian")
    assert "'coco_2017_train'" in message


def test_training_starts_from_given_weights(finished, tmp_path: Path) -> None:
    config, run = finished
    call(
        config,
        f"train.output_dir={tmp_path / 'tuned'}",
        f"train.init_checkpoint={run / 'model_final.pth'}",
        "train.max_iter=1",
        "optimizer.lr=0",
    )
    before = torch.load(run / "model_final.pth", weights_only=True)
    after = torch.load(tmp_path / "tuned/model_final.pth", weights_only=True)
    for name, value in before["model"].items():
        torch.testing.assert_close(after["model"][name], value, rtol=0, atol=0)
    assert len(after["provenance"]["init_checkpoint"]["sha256"]) == 64


def test_fast_dev_run_is_a_flag(finished) -> None:
    config, run = finished
    call(config, "train.fast_dev_run=True")
    trial = run / "fast_dev_run"
    assert len(read_lines(trial / "metrics.json", "total_loss")) == 2
    assert read_lines(trial / "metrics.json", "tiny/count") == [2]
    assert (trial / "model_final.pth").is_file()


def test_nan_loss_is_one_sentence_and_keeps_the_step_before(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert "stopped at step 4" in sentence(config, "model.nan_at=4")
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_0000003.pth"
    assert len(read_lines(tmp_path / "run/metrics.json", "total_loss")) == 4


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_mixed_precision_is_a_setting(dtype: str, tmp_path: Path) -> None:
    call(write_config(tmp_path), "train.amp.enabled=True", f"train.amp.dtype={dtype}")
    assert len(read_lines(tmp_path / "run/metrics.json", "total_loss")) == 9


def test_tool_ends_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    """The tool itself, in a process of its own."""
    result = subprocess.run(
        [
            sys.executable,
            str(ROOT / "tools/train_net.py"),
            "--config-file",
            write_config(tmp_path),
            "trian.max_iter=1",
        ],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert result.returncode == 2
    assert result.stderr == (
        "error: unknown key 'trian.max_iter' in the command line: "
        "the nearest valid key is 'train.max_iter'\n"
    )
