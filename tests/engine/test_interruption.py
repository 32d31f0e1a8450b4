# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Signals and kills: what was saved goes on as if nothing had been."""

import itertools
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from detrex_mammo.engine import rng, supervision
from detrex_mammo.engine.nonfinite import NanPolicy
from detrex_mammo.errors import UserError
from tests.engine.faults import FaultyMapper, exit_code, faulty_config, run, start
from tests.engine.tiny import TinyEvaluator, read_lines

RANDOM = ["model.dropout=0.1", "dataloader.train.mapper.noise=0.5", "train.ema.enabled=True"]
KEYS = ("total_loss", "grad_norm", "tiny/error", "ema/tiny/error")


def assert_equal(one: Any, other: Any, place: str) -> None:
    """To the last bit, whatever is nested in what."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for index, pair in enumerate(zip(one, other)):
            assert_equal(*pair, f"{place}.{index}")
    else:
        assert one == other, place


def assert_same_run(found: Path, expected: Path) -> None:
    """The same numbers, each once, and the same last weights, averages and generators."""
    for key in KEYS:
        assert read_lines(found / "metrics.json", key) == read_lines(expected / "metrics.json", key)
    one, other = (
        torch.load(folder / "model_final.pth", weights_only=True) for folder in (found, expected)
    )
    for content in (one, other):
        content["trainer"].pop("metrics")  # with times; its losses are those above
    for key in ("model", "ema", "trainer"):
        assert_equal(one[key], other[key], key)
    assert (found / "evaluations.json").read_text() == (expected / "evaluations.json").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of 9 steps that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    run(faulty_config(folder), *RANDOM)
    return folder / "run"


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGUSR1", 138)])
@pytest.mark.parametrize("step", [0, 4, 5, 8])
def test_signal_saves_after_the_step_and_leaves(
    name: str, code: int, step: int, whole: Path, tmp_path: Path
) -> None:
    """Step 5 ends an epoch: its evaluation, not yet made, is made by the resumed run; 8 is last."""
    config = faulty_config(tmp_path)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1)
    with pytest.raises(SystemExit) as ended:
        run(config, *RANDOM, f"model.signal_at={step}", f"model.name={name}")
    assert ended.value.code == code
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGUSR1))
    saved = "model_final" if step == 8 else f"model_{step:07d}"
    assert (tmp_path / "run/last_checkpoint").read_text() == f"{saved}.pth"
    assert "leaving" in (tmp_path / "run/log.txt").read_text()
    status = (tmp_path / "run/status.json").read_text().splitlines()
    assert json.loads(status[-1])["status"] == "INTERRUPTED"
    run(config, *RANDOM, "--resume")
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_signal_to_the_loading_processes_too_loses_nothing(
    name: str, whole: Path, tmp_path: Path
) -> None:
    config, workers = faulty_config(tmp_path), "dataloader.train.num_workers=2"
    with pytest.raises(SystemExit):
        run(config, *RANDOM, workers, "model.signal_at=4", f"model.name={name}")
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_0000004.pth"
    run(config, *RANDOM, workers, "--resume")
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.parametrize(("accumulate", "whole_steps"), [(1, 5), (2, 2)])
def test_step_that_cannot_be_read_loses_no_step_before_it(
    accumulate: int, whole_steps: int, tmp_path: Path, monkeypatch
) -> None:
    """The 22nd image is of the sixth batch of 4: when two are one step, the third step's second."""
    settings = [*RANDOM, "train.checkpointer.period_epochs=0", f"train.accumulate={accumulate}"]
    run(faulty_config(tmp_path, "whole"), *settings)
    config, numbers, load = faulty_config(tmp_path), itertools.count(1), FaultyMapper.__call__

    def damaged(mapper: FaultyMapper, item: dict) -> dict:
        if next(numbers) == 22:
            raise UserError("image is damaged")
        return load(mapper, item)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="image is damaged"):
        patch.setattr(FaultyMapper, "__call__", damaged)
        run(config, *settings)
    tag = (tmp_path / "run/last_checkpoint").read_text()
    assert tag == f"model_{whole_steps - 1:07d}.pth"
    run(config, *settings, "--resume")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_nan_loses_no_step_before_it(processes: int, tmp_path: Path) -> None:
    """Step 4 lies within an epoch; what made the NaN is repaired before the run goes on."""
    settings = [*RANDOM, "--num-gpus", str(processes)]
    run(faulty_config(tmp_path, "whole"), *settings)
    config = faulty_config(tmp_path)
    with pytest.raises(UserError, match=r"stopped at step 4 .*--resume; .*nan_step_4"):
        run(config, *settings, "model.nan_at=4")
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_0000003.pth"
    run(config, *settings, "--resume")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_ctrl_c_between_update_and_metrics_saves_nothing_false(tmp_path: Path, monkeypatch) -> None:
    """The weights are those after step 4 already: they must not be kept as those before it."""
    settings = [*RANDOM, "train.checkpointer.period_epochs=0"]
    run(faulty_config(tmp_path, "whole"), *settings)
    config, judge = faulty_config(tmp_path), NanPolicy.judge

    def interrupted(policy: NanPolicy, step: int, *arguments: Any) -> None:
        if step == 4:
            raise KeyboardInterrupt
        judge(policy, step, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(NanPolicy, "judge", interrupted)
        run(config, *settings)
    run(config, *settings, "--resume")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_what_keeps_a_failed_run_from_saving_does_not_hide_why_it_failed(
    tmp_path: Path, monkeypatch
) -> None:
    """As a GPU does that has had an error: nothing works on it any more."""

    def broken(*arguments: Any) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(rng, "set_torch_states", broken)
    with pytest.raises(UserError, match="stopped at step 4"):
        run(faulty_config(tmp_path), "model.nan_at=4")
    assert "step 3 is not saved: CUDA error" in (tmp_path / "run/log.txt").read_text()


# The main process takes its time when it writes what a NaN in step 4 has left.
SLOW = """
import sys, time
from detectron2.utils import comm
from tests.engine.faults import FaultyDetector

class SlowDetector(FaultyDetector):
    def state_dict(self, *arguments, **settings):
        if self.training and self.done > 4 and comm.is_main_process():
            time.sleep(4)
        return super().state_dict(*arguments, **settings)
"""


@pytest.mark.slow
def test_all_processes_wait_until_the_step_before_a_nan_is_saved(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(supervision, "LEAVE_SECONDS", 1)
    (tmp_path / "slow_detector.py").write_text(SLOW)
    config = Path(faulty_config(tmp_path))
    text = config.read_text().replace("L(FaultyDetector)", "L(SlowDetector)")
    place = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
    config.write_text(f"{place}from slow_detector import SlowDetector\n{text}")
    with pytest.raises(UserError, match="stopped at step 4"):
        run(str(config), "--num-gpus", "2", "model.nan_at=4")
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_0000003.pth"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_evaluation_that_fails_loses_no_step(error: type, tmp_path: Path, monkeypatch) -> None:
    """That of step 5; without it, only the end of the run would be saved."""
    settings = [*RANDOM, "train.checkpointer.period_epochs=0"]
    run(faulty_config(tmp_path, "whole"), *settings)
    config, numbers, process = faulty_config(tmp_path), itertools.count(1), TinyEvaluator.process

    def fail(evaluator: TinyEvaluator, *arguments: Any) -> None:
        if next(numbers) == 17:  # of 5 images, twice an epoch
            torch.rand(3)
            raise error
        process(evaluator, *arguments)

    with monkeypatch.context() as patch, pytest.raises(error):
        patch.setattr(TinyEvaluator, "process", fail)
        run(config, *settings)
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_0000005.pth"
    run(config, *settings, "--resume")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def kill_at_random(folder: Path, count: int, seed: int) -> None:
    """Kill a run of 12 steps ``count`` times at moments anywhere between start and end.

    One that came to its end, faster than the kill, is compared and begun anew.
    """
    config, moments = faulty_config(folder), random.Random(seed)
    settings = [*RANDOM, "train.epochs=4", "train.checkpointer.period_epochs=0.34"]
    whole, killed = folder / "whole", folder / "run"
    begin = time.monotonic()
    run(config, *settings, f"train.output_dir={whole}")
    length = time.monotonic() - begin
    while count:
        child = start(config, *settings, "--resume")
        time.sleep(moments.uniform(0.02, 1.3 * length))
        os.kill(child, signal.SIGKILL)
        if exit_code(child) == 0:
            assert_same_run(killed, whole)
            shutil.rmtree(killed)
        else:
            count -= 1
            tag = killed / "last_checkpoint"
            print("killed after", tag.read_text() if tag.exists() else "nothing was saved")
    run(config, *settings, "--resume")
    assert_same_run(killed, whole)


def test_kill_at_random_moments_loses_nothing_of_the_run(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 3, seed=1)


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    kill_at_random(tmp_path, 20, seed=2)


def test_one_process_of_two_gets_the_signal_and_both_leave_together(tmp_path: Path) -> None:
    """A NaN of the other one's, before, was skipped by both."""
    config = faulty_config(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(config, "--num-gpus", "2", "model.signal_at=4", "model.name=SIGUSR1",
            "model.nan_at=1", "train.nan.policy=skip")  # fmt: skip
    assert ended.value.code == 138
    state = torch.load(tmp_path / "run/model_0000004.pth", weights_only=True)["trainer"]
    assert (state["iteration"], len(state["rng"]), state["nan"]["skipped"]) == (4, 2, 1)
    assert {int(entry["step"]) for entry in state["optimizer"]["state"].values()} == {4}
    assert "1 in a row" in (tmp_path / "run/log.txt").read_text()


def test_one_process_of_two_is_killed_and_none_is_left(tmp_path: Path) -> None:
    config = faulty_config(tmp_path)
    with pytest.raises(UserError, match=r"process 1 of 2 was killed \(SIGKILL\).*--resume"):
        run(config, "--num-gpus", "2", "model.signal_at=4", "model.name=SIGKILL")
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_0000002.pth"
