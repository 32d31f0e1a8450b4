# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""run.json: what a run leaves for the model zoo and the model card."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from detrex_mammo.engine import record
from detrex_mammo.engine.main import main
from detrex_mammo.engine.record import RunRecord, SpeedMeter
from detrex_mammo.errors import UserError
from tests.engine.tiny import write_config


def read(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def call(config: str, *arguments: str) -> None:
    main(["--config-file", config, *arguments])


def test_a_resumed_run_has_two_sessions_and_an_evaluation_its_own(tmp_path: Path) -> None:
    config, run = write_config(tmp_path), tmp_path / "run"
    call(config, "train.max_iter=4")
    first = read(run)
    call(config, "--resume", "train.max_iter=6")
    second = read(run)
    assert [session["mode"] for session in second["sessions"]] == ["training"] * 2
    assert second["sessions"][0] == first["sessions"][0]
    assert second["training"] == {"images": 12, "batch": 4, "steps": 6, "steps_per_epoch": 3}
    for session in second["sessions"]:
        assert session["seconds"] > 0 and session["peak_memory"]["bytes"] > 1e8
        assert session["machine"]["cores"] >= 1 and session["versions"]["torch"]
    assert second["evaluation"]["counted_images"] == 1  # five images, four of them warm-up

    checkpoint = run / "model_final.pth"
    call(config, "--eval-only", f"train.init_checkpoint={checkpoint}")
    evaluated = read(run / "eval")
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert evaluated["checkpoint"] == {"file": str(checkpoint), "sha256": digest}
    assert [session["mode"] for session in evaluated["sessions"]] == ["evaluation"]
    assert read(run) == second


def test_a_run_that_cannot_start_leaves_no_record(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    with pytest.raises(UserError):
        call(config, "dataloader.train.total_batch_size=0")
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"sessions": 1}', "{}"])
def test_a_damaged_record_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError, match="run.json' is damaged: remove it and resume again"):
        RunRecord(tmp_path, "cpu", "training", resume=True)
    RunRecord(tmp_path, "cpu", "training").write()  # a new run does not read it
    assert len(read(tmp_path)["sessions"]) == 1


class Clocked(nn.Module):
    """A model that takes two seconds an image by a clock that only it and the loop move."""

    def __init__(self):
        super().__init__()
        self.time = 0.0

    def forward(self, batch: list) -> list:
        self.time += 2.0 * len(batch)
        return batch


def test_speed_leaves_out_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight batches of two images: reading takes one second a batch, the model four.

    After five batches of warm-up three are counted: 6 images in 15 s, 12 s of them in the model.
    """
    model = Clocked()
    monkeypatch.setattr(record.time, "perf_counter", lambda: model.time)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with SpeedMeter(model, num_batches=8) as meter:
        for _ in range(8):
            model.time += 1.0
            model([0, 0])
    model([0])  # not counted: the meter has let go
    assert meter.result() == {
        "counted_images": 6,
        "batch_size": 2,
        "images_per_second": pytest.approx(6 / 15),
        "model_images_per_second": pytest.approx(6 / 12),
    }


def test_speed_of_nothing_is_unknown() -> None:
    with SpeedMeter(Clocked(), num_batches=0) as meter:
        pass
    assert meter.result()["images_per_second"] is None
    assert meter.result()["model_images_per_second"] is None
