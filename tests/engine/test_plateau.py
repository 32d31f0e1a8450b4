# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The schedule that waits for evaluations: torch's own beside it, and runs that are killed."""

import json
import math
import random
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch.optim.lr_scheduler import ReduceLROnPlateau

from detrex_mammo.config import get_config, instantiate
from detrex_mammo.engine.history import EvaluationHistory
from detrex_mammo.engine.plateau import PlateauSchedule
from detrex_mammo.engine.watching import check_watched
from detrex_mammo.errors import UserError
from tests.engine.faults import exit_code, faulty_config, run, start
from tests.engine.rates import read_rates
from tests.engine.tiny import read_lines

# The error falls, so by "max" the first evaluation stays the best.
PLATEAU = ["lr_multiplier.metric=tiny/error", "lr_multiplier.mode=max",
           "lr_multiplier.patience=0", "lr_multiplier.factor=0.5"]  # fmt: skip


def by_torch(values: list[float], **settings) -> list[float]:
    """torch's rate over a base rate of 1 after each value."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = ReduceLROnPlateau(optimizer, eps=0.0, **settings), []
    for value in values:
        scheduler.step(value)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
def test_equals_torch_on_random_values(mode: str, threshold_mode: str) -> None:
    draw, drops = random.Random(7), set()
    for _ in range(150):
        values = [draw.choice([draw.gauss(0.0, 1.0), draw.random(), 0.5]) for _ in range(30)]
        values[draw.randrange(30)] = math.nan
        settings = dict(
            mode=mode, threshold_mode=threshold_mode, factor=draw.choice([0.1, 0.3, 0.7]),
            patience=draw.randrange(4), threshold=draw.choice([0.0, 1e-4, 0.2]),
            cooldown=draw.randrange(4),
        )  # fmt: skip
        least = draw.choice([0.0, 0.05, 0.4])
        schedule = PlateauSchedule(**settings, min_factor=least)
        expected = by_torch(values, **settings, min_lr=least)
        assert [schedule.after(values[:end]) for end in range(1, 31)] == expected
        drops.add(len(set(expected)))
    assert len(drops) > 3  # some fell often, some seldom


def test_by_hand() -> None:
    """Patience 1: 3 and 3 are no better than 2, the second drops; then one is not counted."""
    schedule = PlateauSchedule(factor=0.5, patience=1, cooldown=1)
    assert [schedule.after([2.0, 3.0, 3.0, 3.0, 3.0, 3.0][:end]) for end in range(7)] == [
        1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25,
    ]  # fmt: skip


def test_warm_up_is_above_it() -> None:
    """From 0.2 to 1 in 4 steps, while the rate was halved by an evaluation after the second."""
    schedule = PlateauSchedule(warmup_iters=4, warmup_factor=0.2)
    values = [schedule(step, 10, 100) for step in (0, 1)]
    schedule.now = 0.5
    values += [schedule(step, 10, 100) for step in (2, 3, 4, 99)]
    assert values == pytest.approx([0.2, 0.4, 0.3, 0.4, 0.5, 0.5])


@pytest.mark.parametrize(
    ("name", "value"),
    [("metric", ""), ("mode", "up"), ("factor", 1.0), ("patience", -1), ("patience", 1.5),
     ("threshold", -1.0), ("threshold_mode", "share"), ("cooldown", -1), ("min_factor", 2.0)],
)  # fmt: skip
def test_what_cannot_be_is_one_sentence(name: str, value) -> None:
    with pytest.raises(UserError, match=f"lr_multiplier.{name} is .*must be"):
        PlateauSchedule(**{name: value})


def test_shipped_one_waits_for_the_validation_loss() -> None:
    node = get_config("configs/common/schedule.py").lr_multiplier_plateau
    schedule = instantiate(node)
    assert (schedule.metric, schedule.mode, schedule(0, 10, 100)) == ("val/loss", "min", 1.0)


def plateau_config(folder: Path, output: str = "run") -> str:
    path = Path(faulty_config(folder, output))
    text = path.read_text().replace("MultiStepSchedule)(milestones=[2])", "WrittenPlateau)()")
    path.write_text("from tests.engine.rates import WrittenPlateau\n" + text)
    return str(path)


# Evaluated after steps 2, 5, 8, ...: the second and each later one halves the rate.
RATES = [1.0] * 6 + [0.5] * 3 + [0.25] * 3


@pytest.mark.parametrize(
    ("arguments", "lost"),
    [
        ((), False),  # from the checkpoint of step 5
        ((), True),  # killed before the evaluation of step 5: it is made when resumed
        (("train.checkpointer.period_epochs=2",), False),  # that of step 8 is made again
    ],
)
def test_killed_and_resumed_as_if_nothing_had_been(
    arguments: tuple[str, ...], lost: bool, tmp_path: Path
) -> None:
    config = plateau_config(tmp_path)
    arguments = (*PLATEAU, *arguments, "train.epochs=4")
    run(config, *arguments)
    whole = tmp_path / "run"
    rates = read_lines(whole / "metrics.json", "lr")
    assert rates == pytest.approx([0.01 * rate for rate in RATES])

    killed = tmp_path / "killed"
    output = f"train.output_dir={killed}"
    end = 7 if not arguments[4:-1] else 10
    kill = (f"model.signal_at={end}", "model.name=SIGKILL")
    assert exit_code(start(config, *arguments, output, *kill)) == -signal.SIGKILL
    lines = (killed / "evaluations.json").read_text().splitlines(keepends=True)
    assert json.loads(lines[-1])["iteration"] == (5 if end == 7 else 8)
    if lost:
        (killed / "evaluations.json").write_text("".join(lines[:-1]))
        lines = (killed / "metrics.json").read_text().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["iteration"] < 5]
        (killed / "metrics.json").write_text("".join(kept))
    run(config, *arguments, output, "--resume")
    for name in ("lr", "total_loss", "tiny/error"):
        assert read_lines(killed / "metrics.json", name) == read_lines(whole / "metrics.json", name)
    text = (killed / "evaluations.json").read_text()
    assert text == (whole / "evaluations.json").read_text()


def test_every_process_has_the_same_rate(tmp_path: Path) -> None:
    config = plateau_config(tmp_path)
    written = f"lr_multiplier.folder={tmp_path}"
    run(config, *PLATEAU, written, "train.epochs=4", "--num-gpus=2")
    assert read_rates(tmp_path, 0) == read_rates(tmp_path, 1) == RATES


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["dataloader.evaluator=null"], "lr_multiplier.metric is 'tiny/error', but .*evaluator is"),
        (["train.eval_period_epochs=0"], "lr_multiplier.metric .* train.eval_period_epochs is 0"),
        (["lr_multiplier.metric=val/loss"], "train.eval_loss is False: set train.eval_loss=True"),
        (["lr_multiplier.metric=ema/a"], "lr_multiplier.metric .* no average"),
    ],
)
def test_what_will_not_be_evaluated_is_refused(arguments, expected: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        run(plateau_config(tmp_path), *PLATEAU, *arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run/metrics.json").exists()


@pytest.mark.parametrize(
    ("metric", "is_refused"),
    [("one/val/loss", True), ("val/val/loss_bbox", True), ("ema/one/val/loss", True),
     ("val/bbox/AP50", False), ("val/AP", False)],
)  # fmt: skip
def test_validation_loss_of_several_sets_of_which_one_is_named_val(metric, is_refused) -> None:
    train = get_config("configs/common/train.py").train
    train.best.metric, train.ema.enabled = metric, True
    sets = {"one": {"_target_": "a"}, "val": {"_target_": "b"}}
    cfg = OmegaConf.create({"train": train, "dataloader": {"test": sets, "evaluator": sets}})
    refused = pytest.raises(UserError, match="set train.eval_loss=True")
    with refused if is_refused else nullcontext():
        check_watched(cfg, None)


@pytest.mark.parametrize("key", ["lr_multiplier", "train.early_stopping"])
def test_unknown_metric_loses_no_step_and_is_corrected_by_a_resume(
    key: str, tmp_path: Path
) -> None:
    config = plateau_config(tmp_path)
    rare = [*PLATEAU, "train.checkpointer.period_epochs=0", "train.epochs=2"]
    expected = f"{key}.metric is 'tiny/eror', which no .*nearest is 'tiny/error'"
    with pytest.raises(UserError, match=expected):
        run(config, *rare, f"{key}.metric=tiny/eror")
    assert (tmp_path / "run/last_checkpoint").read_text() == "model_0000002.pth"
    run(config, *rare, f"{key}.metric=tiny/error", "--resume")
    assert len(read_lines(tmp_path / "run/metrics.json", "total_loss")) == 6


def test_number_that_does_not_exist_yet_is_no_wrong_metric(tmp_path: Path) -> None:
    """A class without any object in the test images has no AP: NaN, in the file null."""
    history = EvaluationHistory(tmp_path, 0)
    history.add(2, {"bbox/AP-mass": math.nan, "bbox/AP": 5.0})
    for found in (history, EvaluationHistory(tmp_path, 3)):
        found.check("lr_multiplier.metric", "bbox/AP-mass")
        assert math.isnan(found.values("bbox/AP-mass")[0])
        with pytest.raises(UserError, match="nearest is 'bbox/AP'"):
            found.check("lr_multiplier.metric", "bbox/PA")
