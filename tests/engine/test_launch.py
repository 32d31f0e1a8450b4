# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Several processes on a CPU: the same numbers as one, and one sentence when one of them fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detrex_mammo.config import find_shipped
from detrex_mammo.engine.launch import World, launch
from detrex_mammo.engine.main import main
from detrex_mammo.errors import UserError
from tests.engine.tiny import read_lines, write_config
from tests.tiny_configs import write_coco

ROOT = Path(find_shipped("configs/common/train.py")).parents[2]

# A shipped recipe, tiny, with nothing random but the weights and the order of the images.
DETECTOR = """
from pathlib import Path
from detectron2.config import LazyCall as L
from detrex_mammo.config import load_config
from detrex_mammo.data.coco_mapper import ResizeShortEdge
from tests.tiny_configs import shrink

_cfg = load_config("projects/deformable_detr/configs/deformable_detr_r50_two_stage_50ep.py")
shrink(_cfg, Path("{json}"), Path("{output}"))
model, optimizer, train = _cfg.model, _cfg.optimizer, _cfg.train
dataloader, lr_multiplier = _cfg.dataloader, _cfg.lr_multiplier
model.transformer.dropout = 0.0
# With some orders of the images a nearly tied match or a ReLU at 0 falls to the other side.
train.seed = 2
optimizer.lr = 1e-3
train.max_iter = 6
train.log_period = 1
dataloader.train.total_batch_size = 4
dataloader.train.dataset.filter_empty = False
for _loader in (dataloader.train, dataloader.test):
    _loader.mapper.branches = [[L(ResizeShortEdge)(short_edges=40)]]
"""


def scores(run: Path) -> torch.Tensor:
    """Scores of all predictions, best first."""
    items = json.loads((run / "inference/coco_instances_results.json").read_text())
    return torch.tensor(sorted((item["score"] for item in items), reverse=True))


def test_two_processes_train_and_evaluate_as_one(tmp_path: Path) -> None:
    """The sampler deals the shuffled images out in turn, so the global batches are the same.

    The images have one size, because padding reaches the result, as published (group norms count
    padded positions), and two images can be padded less than four.
    """
    data = write_coco(tmp_path, height_step=0)
    runs = {1: tmp_path / "one", 2: tmp_path / "two"}
    for count, run in runs.items():
        config = tmp_path / f"config_{count}.py"
        config.write_text(DETECTOR.format(json=data, output=run))
        # Two processes also compute encoder layers again in the backward pass: no number changes.
        again = f"model.transformer.encoder_checkpointing={count == 2}"
        main(["--config-file", str(config), "--num-gpus", str(count), again])
    one, two = (run / "metrics.json" for run in runs.values())
    losses = {key for line in one.read_text().splitlines() for key in json.loads(line)}
    losses = sorted(key for key in losses if "loss" in key)
    assert {"loss_class", "loss_giou_0", "loss_bbox_enc", "total_loss"} <= set(losses)
    # At random weights the norm follows the order of a sum more than a loss does; in double
    # precision it is the same to 1e-5, see test_accumulation.
    for key, bound in [*((key, 1e-4) for key in losses), ("grad_norm", 1e-2)]:
        assert len(read_lines(one, key)) == 6
        expected = pytest.approx(read_lines(one, key), rel=bound, abs=bound)
        assert read_lines(two, key) == expected, key
    torch.testing.assert_close(scores(runs[2]), scores(runs[1]), rtol=0, atol=1e-4)

    # The same weights, so that no two scores change places: the same evaluation to the last digit.
    weights = f"train.init_checkpoint={runs[1] / 'model_final.pth'}"
    main(["--config-file", str(config), "--num-gpus", "2", "--eval-only", weights])
    metrics = json.loads((runs[2] / "eval/metrics.json").read_text())
    keys = [key for key in metrics if key.startswith("bbox/") and metrics[key] is not None]
    assert len(keys) >= 8
    assert {key: metrics[key] for key in keys} == {key: read_lines(one, key)[-1] for key in keys}


def test_two_processes_stop_together_on_a_nan(tmp_path: Path) -> None:
    """The loss of the second process alone is NaN; the first must not wait for it for ever."""
    config = write_config(tmp_path)
    with pytest.raises(UserError, match="stopped at step 4 before the weights were changed"):
        main(["--config-file", config, "--num-gpus", "2", "model.nan_at=4"])
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_0000003.pth"
    assert len(read_lines(tmp_path / "run/metrics.json", "total_loss")) == 4
    # Each has left its own batch before any of them was gone.
    assert {path.name for path in (tmp_path / "run/nan_step_4").iterdir()} == {
        "batch_0.pth", "batch_1.pth", "state.pth", "config.yaml", "step.json",
    }  # fmt: skip


def test_torchrun_is_recognised(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", str(ROOT / "tools/train_net.py"), "--config-file"]
    result = subprocess.run(
        [*command, write_config(tmp_path), "train.max_iter=3"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 0, result.stderr
    assert "2 process(es)" in (tmp_path / "run/log.txt").read_text()
    assert len(read_lines(tmp_path / "run/metrics.json", "total_loss")) == 3
    assert read_lines(tmp_path / "run/metrics.json", "tiny/count") == [5]
    assert not (tmp_path / "run_2").exists()


def test_number_of_processes_is_torchruns_or_ours(monkeypatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(UserError, match="leave out --num-gpus"):
        launch(int, World(num_processes=2))


def test_more_processes_than_gpus_is_refused() -> None:
    count = torch.cuda.device_count() + 1
    with pytest.raises(UserError, match=f"--num-gpus is {count}, but this machine has"):
        World(num_processes=count, device="cuda").check()


def test_one_process_runs_here() -> None:
    calls = []
    launch(lambda: calls.append(os.getpid()), World())
    assert calls == [os.getpid()]
