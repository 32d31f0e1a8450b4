# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The table at the end of a run, from files written by hand."""

import json
from pathlib import Path

import pytest

from detrex_mammo.engine.main import main
from detrex_mammo.engine.summary import format_bytes, format_seconds, summarise
from tests.engine.tiny import write_config


def test_by_hand(tmp_path: Path) -> None:
    """Batch 4 of 12 images, 6 steps: 2 epochs; 0.5 s a step: 8 images/s; two starts, 90 s."""
    peak = {"bytes": 3 * 2**30, "of": "GPU memory"}
    sessions = [{"seconds": 60.0, "peak_memory": peak}, {"seconds": 30.0, "peak_memory": peak}]
    training = {"images": 12, "batch": 4, "steps": 9, "steps_per_epoch": 3}
    (tmp_path / "run.json").write_text(json.dumps({"sessions": sessions, "training": training}))
    lines = [{"iteration": i, "total_loss": 9.0 - i, "time": 0.5} for i in range(6)]
    text = "\n".join(json.dumps(line) for line in lines)
    (tmp_path / "metrics.json").write_text(text + '\n{"iterat')  # cut short
    (tmp_path / "model_best.pth").write_bytes(bytes(1536))
    rows = [line.split(maxsplit=1) for line in summarise(tmp_path, {"AP50": 61.25}).splitlines()]
    assert rows == [
        ["steps", "6 of 9 (2.00 epochs)"],
        ["total_loss", "9.0000 -> 4.0000"],
        ["step", "0.5 s (8 images/s)"],
        ["time", "0:01:30 in 2 starts"],
        ["peak", "GPU memory  3.0 GiB"],
        ["AP50", "61.2500"],
        ["folder", str(tmp_path)],
        ["checkpoints", "1, 1.5 KiB (model_best.pth)"],
    ]


def test_a_run_of_an_earlier_version_counts_its_images(tmp_path: Path) -> None:
    """Batch 8 of 12 images, 6 steps: 4 epochs."""
    training = {"images": 12, "batch": 8, "steps": 9}
    (tmp_path / "run.json").write_text(json.dumps({"training": training}))
    (tmp_path / "metrics.json").write_text('{"iteration": 5, "total_loss": 1.0}\n')
    assert "6 of 9 (4.00 epochs)" in summarise(tmp_path, {})


def test_intervals_stand_beside_their_number(tmp_path: Path) -> None:
    """Names as the FROC evaluator gives them; ``x_low`` is no end of anything."""
    kpi = {"froc/cpm": 0.5, "a-b/froc/cpm-mass": 0.25, "x_low": 1.0}
    kpi |= {"froc/cpm_low": 0.4, "froc/cpm_high": 0.625}
    kpi |= {"a-b/froc/cpm_low-mass": 0.0, "a-b/froc/cpm_high-mass": 1.0}
    rows = [line.split(maxsplit=1) for line in summarise(tmp_path, kpi).splitlines()]
    assert rows[:-1] == [
        ["froc/cpm", "0.5000 [0.4000, 0.6250]"],
        ["a-b/froc/cpm-mass", "0.2500 [0.0000, 1.0000]"],
        ["x_low", "1.0000"],
    ]


def test_console_and_summary_count_alike(tmp_path: Path) -> None:
    settings = ["train.accumulate=5", "train.epochs=2"]  # 20 images a step, 12 are there
    main(["--config-file", write_config(tmp_path), *settings])
    log = (tmp_path / "run/log.txt").read_text()
    assert "step 2/2  epoch 2.00" in log and "2 of 2 (2.00 epochs)" in log


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    assert summarise(tmp_path, {}) == f"  folder  {tmp_path}"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 * 2**50, "5120.0 TiB")]
)
def test_bytes(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_seconds() -> None:
    assert (format_seconds(1.234), format_seconds(3723.4)) == ("1.23 s", "1:02:03")


def test_every_run_ends_with_it(tmp_path: Path) -> None:
    main(["--config-file", write_config(tmp_path), "train.max_iter=2"])
    log = (tmp_path / "run/log.txt").read_text()
    assert log.count("summary:") == 1 and "2 of 2 (0.67 epochs)" in log.split("summary:")[1]
