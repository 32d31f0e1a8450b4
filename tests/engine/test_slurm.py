# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""tools/slurm.py: the command of each machine; with submitit's local executor a whole job."""

import os
import runpy
import signal
import subprocess
import sys
import time
import types
from importlib.util import find_spec
from pathlib import Path

import pytest

from detrex_mammo.config import find_shipped
from detrex_mammo.engine import slurm
from detrex_mammo.engine.slurm import TrainingJob, submit
from detrex_mammo.engine.status import read_status
from detrex_mammo.errors import UserError
from tests.engine.tiny import write_config

ROOT = Path(find_shipped("configs/common/train.py")).parents[2]
TOOL = str(ROOT / "tools/train_net.py")
ARGUMENTS = ("--config-file", "c.py", "train.seed=1")


def test_one_machine() -> None:
    command = TrainingJob(TOOL, ARGUMENTS, processes=4).command(1, 0, "127.0.0.1", 1)
    assert command == [sys.executable, TOOL, *ARGUMENTS, "--num-gpus", "4"]


def test_two_machines_that_resume() -> None:
    job = TrainingJob(TOOL, ARGUMENTS, processes=8, resumes=True)
    assert (
        job.command(2, 1, "first", 29501)[5:]
        == (
            "--resume --num-gpus 8 --num-machines 2 --machine-rank 1 --dist-url tcp://first:29501"
        ).split()
    )


def test_slurms_own_requeue_resumes_but_not_an_evaluation(monkeypatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert "--resume" in TrainingJob(TOOL, ARGUMENTS).command(1, 0, "", 1)
    evaluation = TrainingJob(TOOL, (*ARGUMENTS, "--eval-only"), resumes=True)
    assert "--resume" not in evaluation.command(1, 0, "", 1)
    once = TrainingJob(TOOL, (*ARGUMENTS, "--resume")).command(1, 0, "", 1)
    assert once.count("--resume") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([*ARGUMENTS, "--num-gpus", "2"], "--num-gpus: give --machines and --gpus"),
        ([*ARGUMENTS, "--num-gpus=2"], "--num-gpus: give --machines and --gpus"),
        ([*ARGUMENTS, "--dry-run"], "--dry-run and --print-config: give"),
        ([*ARGUMENTS, "train.seed"], "neither a flag nor key=value"),
    ],
)
def test_a_wrong_request_is_one_sentence(arguments: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        submit(TOOL, arguments, tmp_path)


@pytest.mark.parametrize("numbers", [(0, 1), (1, -1)])
def test_no_machine_is_one_sentence(numbers: tuple[int, int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="both are at least 1"):
        submit(TOOL, ARGUMENTS, tmp_path, *numbers)


def test_without_the_package_it_is_one_sentence(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"not installed: pip install 'detrex_mammo\[tune\]'"):
        submit(TOOL, ARGUMENTS, tmp_path)


@pytest.mark.parametrize("wrong", ["none.py", "train.sed=1"])
def test_a_config_that_is_wrong_is_told_before_the_job_waits(
    wrong: str, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", types.ModuleType("submitit"))
    config = write_config(tmp_path)
    arguments = [wrong] if wrong.endswith(".py") else [config, wrong]
    with pytest.raises(UserError, match=wrong.partition("=")[0]):
        submit(TOOL, ["--config-file", *arguments], tmp_path)


@pytest.mark.skipif(find_spec("submitit") is None, reason="needs submitit")
def test_a_preempted_job_saves_and_its_next_start_resumes(tmp_path: Path, monkeypatch) -> None:
    """submitit's local executor; the preemption is the signal that Slurm sends."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, sys.path)]))
    arguments = ["--config-file", write_config(tmp_path), "train.max_iter=20000"]
    arguments += ["dataloader.evaluator=null", "train.checkpointer.period_epochs=0"]
    arguments += ["train.log_period=50"]
    # Cancelling sends SIGINT, which what runs in the background ignores, and its children too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    job = submit(TOOL, arguments, tmp_path / "logs", cluster="local", timeout_min=20)
    try:
        wait_for(tmp_path, starts=1)
        run = read_status(tmp_path / "run/status.json")[0]["pid"]
        os.kill(parent_of(run), signal.SIGUSR1)
        lines = wait_for(tmp_path, starts=2)
    finally:
        job.cancel()
        job.wait()
        signal.signal(signal.SIGINT, before)
    states = [line["status"] for line in lines]
    end = states.index("INTERRUPTED")
    assert lines[end]["exit_code"] == 138 and states[end + 1] == "STARTED"
    before = [line["iteration"] for line in lines[:end] if line["status"] == "RUNNING"]
    assert lines[-1]["iteration"] > before[-1] >= 50
    assert "--resume" in job.paths.stdout.read_text()


def wait_for(folder: Path, starts: int) -> list[dict]:
    """Lines of status.json once so many starts have reported a step."""
    for _ in range(1800):
        lines = read_status(folder / "run/status.json")
        states = [line["status"] for line in lines]
        if states.count("STARTED") == starts and states[-1] == "RUNNING":
            return lines
        time.sleep(0.05)
    raise AssertionError(f"no start {starts}: {lines}")


def parent_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("PPid"))


@pytest.mark.parametrize("flag", ["--hours=nan", "--hours=-3", "--cpus=0", "--save-seconds=-5"])
def test_wrong_flag_of_the_job_is_one_sentence(flag: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["slurm.py", flag, *ARGUMENTS])
    with pytest.raises(UserError, match=f"{flag.partition('=')[0]} is .*, but must be above 0"):
        runpy.run_path(str(ROOT / "tools/slurm.py"))["main"]()


def test_the_tool_without_the_package(tmp_path: Path) -> None:
    code = "import sys; sys.modules['submitit'] = None; sys.argv[0] = 'tools/slurm.py'; "
    code += "import runpy; runpy.run_path('tools/slurm.py', run_name='__main__')"
    command = [sys.executable, "-c", code, "--gpus", "2", "--config-file", "c.py", "a=1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("error: tools/slurm.py needs")
    assert slurm.ASKED_TO_LEAVE == (138, 143)
