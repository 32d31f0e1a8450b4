# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""status.json: one last line on every way that a run can end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from detrex_mammo.config import find_shipped
from detrex_mammo.engine import main as main_module
from detrex_mammo.engine import status
from detrex_mammo.engine.main import main
from detrex_mammo.engine.status import StatusFile, describe_end, read_status, reported
from detrex_mammo.engine.status_watch import MESSAGE, append
from detrex_mammo.engine.supervision import LOST_SENTENCE
from detrex_mammo.errors import UserError
from tests.engine.tiny import read_lines, write_config

ROOT = Path(find_shipped("configs/common/train.py")).parents[2]
ENDS = ("SUCCESS", "FAILURE", "INTERRUPTED")


def call(config: str, *arguments: str) -> None:
    main(["--config-file", config, *arguments])


def read(folder: Path) -> list[dict]:
    """Every line, by the strict reading that refuses NaN."""

    def refuse(name: str):
        raise AssertionError(f"{name} is no JSON")

    text = (folder / "status.json").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_a_whole_run(tmp_path: Path) -> None:
    """Twelve images, batch 4, 3 epochs: nine steps; an evaluation after each epoch."""
    call(write_config(tmp_path), "train.log_period=2")
    lines, metrics = read(tmp_path / "run"), tmp_path / "run/metrics.json"
    assert [line["status"] for line in lines] == ["STARTED"] + ["RUNNING"] * 8 + ["SUCCESS"]
    steps = [line for line in lines if "losses" in line]
    assert [line["iteration"] for line in steps] == [2, 4, 6, 8, 9]
    assert [line["epoch"] for line in steps] == [
        pytest.approx(i / 3, abs=1e-3) for i in (2, 4, 6, 8, 9)
    ]
    assert steps[-1]["eta_seconds"] == 0 and steps[1]["eta_seconds"] > 0
    assert steps[0]["eta_seconds"] is None  # detectron2 does not time the first three steps
    assert steps[0]["lr"] == 1e-2 and steps[-1]["lr"] == pytest.approx(1e-3)
    for line in steps:
        assert set(line["losses"]) == {"total_loss", "loss_bbox", "loss_class"}
        assert line["peak_memory_bytes"] > 1e8 and line["data_seconds_per_step"] > 0
        assert line["max_iter"] == 9 and line["grad_norm"] > 0
    losses = read_lines(metrics, "total_loss")
    assert [line["losses"]["total_loss"] for line in steps] == pytest.approx(losses)
    evaluations = [line for line in lines if line["status"] == "RUNNING" and "kpi" in line]
    assert [line["iteration"] for line in evaluations] == [3, 6, 9]
    assert [line["kpi"]["tiny/error"] for line in evaluations] == read_lines(metrics, "tiny/error")
    assert lines[-1]["kpi"] == evaluations[-1]["kpi"] and lines[-1]["exit_code"] == 0


def test_an_evaluation_and_a_resumed_run(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    call(config, "train.max_iter=1")
    call(config, "--resume", "train.max_iter=2")
    states = [line["status"] for line in read(tmp_path / "run")]
    assert states == ["STARTED", "RUNNING", "RUNNING", "SUCCESS"] * 2
    call(config, "--eval-only", f"train.init_checkpoint={tmp_path / 'run/model_final.pth'}")
    first, last = read(tmp_path / "run/eval")
    assert (first["mode"], last["status"], last["kpi"]["tiny/count"]) == (
        "evaluation",
        "SUCCESS",
        5,
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.nan_at=1", "training stopped at step 1"),
        ("dataloader.train.total_batch_size=0", "dataloader.train.total_batch_size is 0"),
    ],
)
def test_a_users_mistake_is_a_failure(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError):
        call(write_config(tmp_path), override)
    last = read(tmp_path / "run")[-1]
    assert (last["status"], last["exit_code"]) == ("FAILURE", 2)
    assert last["message"].startswith(message)


def test_a_run_that_ends_before_its_log_begins(tmp_path: Path, monkeypatch) -> None:
    def asked_to_leave(folder: Path) -> None:
        raise SystemExit(143)

    monkeypatch.setattr(main_module.setup, "start_log", asked_to_leave)
    with pytest.raises(SystemExit):
        call(write_config(tmp_path))
    assert [line["status"] for line in read(tmp_path / "run")] == ["STARTED", "INTERRUPTED"]


def test_a_mistake_before_there_is_a_folder_makes_none(tmp_path: Path) -> None:
    for seed in ("1.5", str(2**63)):
        with pytest.raises(UserError, match="train.seed is .*, but must be a whole number below"):
            call(write_config(tmp_path), f"train.seed={seed}")
    assert not (tmp_path / "run").exists()


def test_the_sentence_of_a_data_loading_process_is_the_message(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        call(
            write_config(tmp_path),
            "dataloader.train.mapper.fail_at=3",
            "dataloader.train.num_workers=1",
        )
    assert read(tmp_path / "run")[-1]["message"] == "image 3 cannot be used"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UserError("wrong"), ("FAILURE", 2, "wrong")),
        (KeyboardInterrupt(), ("INTERRUPTED", 130, "interrupted by Ctrl-C")),
        (SystemExit(143), ("INTERRUPTED", 143, "ended by signal SIGTERM")),
        (SystemExit(138), ("INTERRUPTED", 138, "ended by signal SIGUSR1")),
        (SystemExit(3), ("FAILURE", 3, "ended with exit code 3")),
        (SystemExit("why"), ("FAILURE", 1, "ended with exit code 1")),
        (SystemExit(0), ("SUCCESS", 0, "ended")),
        (MemoryError(), ("FAILURE", 1, "MemoryError")),
        (RuntimeError("a\nb"), ("FAILURE", 1, "RuntimeError: a b")),
        (
            RuntimeError("[gloo/pair.cc:561] Connection closed by peer [127.0.0.1]:15750"),
            ("FAILURE", None, f"the main process {LOST_SENTENCE}"),
        ),
    ],
)
def test_every_exception_is_an_end(tmp_path: Path, error: BaseException, expected) -> None:
    with pytest.raises(type(error)):
        with reported(tmp_path, "training"):
            raise error
    first, last = read(tmp_path)
    assert first["status"] == "STARTED"
    assert (last["status"], last["exit_code"], last["message"]) == expected
    assert describe_end(error)["status"] == expected[0]


HANGING = """
import signal, sys, time
from pathlib import Path
from detrex_mammo.engine.status import reported
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore it
with reported(Path(sys.argv[1]), "training"):
    print("in", flush=True)
    {what}
"""


def start(folder: Path, what: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING.format(what=what), str(folder)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == b"in\n"
    return process


def wait_for_end(folder: Path) -> list[dict]:
    for _ in range(600):
        lines = read_status(folder / "status.json")
        if lines[-1]["status"] in ENDS:
            return lines
        time.sleep(0.05)
    raise AssertionError(f"no last line: {lines}")


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, None), (signal.SIGTERM, None), (signal.SIGINT, 130), (None, None)],
)
def test_a_killed_process_has_its_last_line(tmp_path: Path, number, code) -> None:
    """The signal goes to the whole group, as a terminal's does; None: it leaves without a word."""
    process = start(tmp_path, "time.sleep(60)" if number else "import os; os._exit(1)")
    if number:
        os.killpg(process.pid, number)
    process.wait(timeout=30)
    lines = wait_for_end(tmp_path)
    assert [line["status"] for line in lines] == ["STARTED", "INTERRUPTED"]
    assert lines[-1]["exit_code"] == code
    if code is None:
        assert lines[-1]["message"] == MESSAGE


def test_a_start_ends_what_a_lost_machine_left_open(tmp_path: Path) -> None:
    file = StatusFile(tmp_path)
    file.write("STARTED", pid=1)
    with open(file.path, "a") as stream:
        stream.write('{"time": "2000-01-01", "stat')  # cut short
    with reported(tmp_path, "training"):
        pass
    states = [line["status"] for line in read_status(file.path)]
    assert states == ["STARTED", "INTERRUPTED", "STARTED", "SUCCESS"]


def test_a_late_watcher_says_nothing_about_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    for pid, is_told in ((7, True), (8, False)):
        path.write_text("")
        append(str(path), json.dumps({"status": "STARTED", "pid": 7}))
        append(str(path), json.dumps({"status": "RUNNING"}))
        command = [sys.executable, "-I", "-S", status.status_watch.__file__, str(path), str(pid)]
        subprocess.run(command, input=b"", check=True)
        assert (read_status(path)[-1]["status"] == "INTERRUPTED") == is_told


def test_numbers_are_numbers_and_nan_is_null(tmp_path: Path) -> None:
    StatusFile(tmp_path).write(
        "RUNNING", a=np.float32(0.5), b=torch.tensor(2), c=float("nan"), d={"e": (1, Path("f"))}
    )
    line = read(tmp_path)[0]
    assert {name: line[name] for name in "abcd"} == {
        "a": 0.5,
        "b": 2,
        "c": None,
        "d": {"e": [1, "f"]},
    }


def test_a_full_disk_is_told_once_and_breaks_nothing(tmp_path: Path, monkeypatch) -> None:
    def full(path: str, line: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(status.status_watch, "append", full)
    with reported(tmp_path, "training"):
        pass
    told: list[str] = []
    monkeypatch.setattr(status.logger, "warning", lambda text, *values: told.append(text % values))
    file = StatusFile(tmp_path)
    for _ in range(3):
        file.write("RUNNING")
    assert len(told) == 1 and "No space left" in told[0] and not file.path.exists()


FULL = """
import resource, signal, sys
from pathlib import Path
from detrex_mammo.engine.status import StatusFile, reported
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
with reported(folder, "training"):
    for number in range(3):
        StatusFile(folder).write("RUNNING", number=number, text="x" * 300)
    size = (folder / "status.json").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, size + 20))
    StatusFile(folder).write("RUNNING", number=3)
    raise {error}
"""


@pytest.mark.parametrize(("error", "code"), [("SystemExit(143)", 143), ("MemoryError", 1)])
def test_the_end_is_there_even_if_the_disk_is_full(tmp_path: Path, error: str, code: int) -> None:
    """Twenty bytes are left: a part of a line is taken back, the last takes an earlier one's."""
    command = [sys.executable, "-c", FULL.format(error=error), str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True)
    lines = read(tmp_path)
    assert [line["status"] for line in lines[:-1]] == ["STARTED", "RUNNING", "RUNNING"]
    assert [line["number"] for line in lines[1:-1]] == [0, 1]
    assert lines[-1]["status"] in ENDS and lines[-1]["exit_code"] == code


def test_an_end_without_room_leaves_the_file_alone(tmp_path: Path, monkeypatch) -> None:
    """A start and nothing behind it: there is no line to give up."""
    path = tmp_path / "status.json"
    append(str(path), json.dumps({"status": "STARTED", "pid": 7}))
    before = path.read_text()

    def full(path: str, line: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(status.status_watch, "append", full)
    with pytest.raises(OSError, match="No space left"):
        status.status_watch.append_end(str(path), json.dumps({"status": "FAILURE"}))
    assert path.read_text() == before
