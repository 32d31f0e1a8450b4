# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Averaged weights, early stopping and frozen parts."""

import json
import math
from pathlib import Path

import pytest
import torch

from detrex_mammo.engine.early_stopping import EarlyStopping, since_best
from detrex_mammo.engine.ema import Ema
from detrex_mammo.engine.freezing import freeze
from detrex_mammo.engine.history import EvaluationHistory
from detrex_mammo.errors import UserError
from tests.engine.faults import faulty_config, run
from tests.engine.tiny import TinyDetector, read_lines

EMA = ["train.ema.enabled=True", "train.ema.decay=0.8", "train.ema.warmup=3"]


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def test_average_by_hand() -> None:
    """decay 0.5, warm-up 1: d1 = 0.5 (1 - 1/e) = 0.31606, d2 = 0.5 (1 - 1/e^2) = 0.43233.

    A weight that is 0, then 1, then 3 has the averages 0, 1 - d1 = 0.68394 and
    0.68394 d2 + 3 (1 - d2) = 1.99869.
    """
    model = torch.nn.Linear(1, 1)
    model.weight.data.fill_(0.0)
    ema = Ema(model, decay=0.5, warmup=1)
    for weight, expected in ((1.0, 0.68394), (3.0, 1.99869)):
        model.weight.data.fill_(weight)
        ema.update()
        assert ema.average["weight"].item() == pytest.approx(expected, abs=1e-5)
    with ema.in_place():
        assert model.weight.item() == pytest.approx(1.99869, abs=1e-5)
    assert model.weight.item() == 3.0


def test_weights_are_whole_again_after_an_interruption(monkeypatch) -> None:
    """It comes when the first of two weights has been exchanged."""
    model = torch.nn.Linear(1, 1)
    ema = Ema(model, decay=0.5, warmup=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ema.average = {name: value + 1 for name, value in ema.average.items()}
    put = Ema._put

    def interrupted(self, values) -> None:
        if values is ema.average:
            put(self, {**before, "weight": values["weight"]})
            raise KeyboardInterrupt
        put(self, values)

    monkeypatch.setattr(Ema, "_put", interrupted)
    with pytest.raises(KeyboardInterrupt), ema.in_place():
        pass
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_counters_of_norms_are_copied_and_constant_weights_stay() -> None:
    model = torch.nn.BatchNorm1d(2)
    ema = Ema(model, decay=0.9, warmup=0)
    model(torch.rand(4, 2))
    ema.update()
    assert ema.average["num_batches_tracked"].item() == 1
    assert torch.equal(ema.average["weight"], model.weight.detach())


def test_average_is_evaluated_saved_and_goes_on_after_a_resume(tmp_path: Path) -> None:
    config = faulty_config(tmp_path)
    run(config, *EMA)
    stopped = f"train.output_dir={tmp_path / 'stopped'}"
    run(config, *EMA, stopped, "train.max_iter=5")
    run(config, *EMA, stopped, "--resume")
    whole, again = (load(tmp_path / name / "model_final.pth") for name in ("run", "stopped"))
    assert whole["ema"]["updates"] == again["ema"]["updates"] == 9
    assert "hooks" not in whole["trainer"]  # where it would be a second time
    for name, value in whole["ema"]["model"].items():
        assert torch.equal(value, again["ema"]["model"][name])
        assert not torch.equal(value, whole["model"][name])
    averages = read_lines(tmp_path / "run/metrics.json", "ema/tiny/error")
    weights = read_lines(tmp_path / "run/metrics.json", "tiny/error")
    assert len(averages) == len(weights) == 3 and averages != weights

    # The average is another model: evaluated by itself, it has those very numbers.
    checkpoint = f"train.init_checkpoint={tmp_path / 'run/model_final.pth'}"
    run(config, "--eval-only", checkpoint, "train.init.weights=ema")
    run(config, "--eval-only", checkpoint)
    for folder, expected in (("eval", averages[-1]), ("eval_2", weights[-1])):
        found = json.loads((tmp_path / "run" / folder / "metrics.json").read_text())
        assert found["tiny/error"] == expected


def test_a_run_gains_and_loses_its_average_where_it_goes_on(tmp_path: Path) -> None:
    """A new average is the checkpoint's weights w before its first update, in which
    d = 0.8 (1 - exp(-1/3)) = 0.226775: d w + (1 - d) w', with w' the weights after the step."""
    config, final = faulty_config(tmp_path), tmp_path / "run/model_final.pth"
    run(config, "train.max_iter=4")
    before = load(final)["model"]
    run(config, *EMA, "train.max_iter=5", "--resume")
    content = load(final)
    assert content["ema"]["updates"] == 1
    for name, value in content["ema"]["model"].items():
        expected = 0.226775 * before[name] + 0.773225 * content["model"][name]
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
    run(config, "train.max_iter=6", "--resume")
    assert "ema" not in load(final)
    log = (tmp_path / "run/log.txt").read_text()
    assert log.count("no average of the weights: it begins with") == 1
    assert log.count("checkpoint's average ends here") == 1


def test_training_starts_from_the_average_only_when_told(tmp_path: Path) -> None:
    config = faulty_config(tmp_path)
    run(config, *EMA)
    content = load(tmp_path / "run/model_final.pth")
    start = [f"train.init_checkpoint={tmp_path / 'run/model_final.pth'}", "optimizer.lr=0"]
    for weights, expected in (("ema", content["ema"]["model"]), ("model", content["model"])):
        output = tmp_path / weights
        run(config, *start, "train.max_iter=1", f"train.init.weights={weights}",
            f"train.output_dir={output}")  # fmt: skip
        found = load(output / "model_final.pth")["model"]
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        told = f"holds weights and their average: train.init.weights={weights} takes the"
        assert told in (output / "log.txt").read_text()
    plain = f"train.init_checkpoint={tmp_path / 'ema/model_final.pth'}"
    with pytest.raises(UserError, match="train.init.weights is 'ema', but .* holds no average"):
        run(config, plain, "train.init.weights=ema", f"train.output_dir={tmp_path / 'none'}")


def test_best_by_a_number_of_the_average_holds_the_average(tmp_path: Path) -> None:
    config = faulty_config(tmp_path)
    best = ["train.best.metric=ema/tiny/error", "train.best.mode=min"]
    run(config, *EMA, *best)
    content = load(tmp_path / "run/model_best.pth")
    step = content["best"]["iteration"]
    name = "model_final" if step == 8 else f"model_{step:07d}"
    expected = load(tmp_path / f"run/{name}.pth")["ema"]["model"]
    assert all(torch.equal(content["model"][key], value) for key, value in expected.items())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([*EMA, "train.ema.decay=1.0"], "train.ema.decay is 1.0"),
        ([*EMA, "train.ema.warmup=-1"], "train.ema.warmup is -1"),
        (["train.best.metric=ema/tiny/error"], "train.best.metric .* no average"),
        (["train.early_stopping.metric=ema/a"], "train.early_stopping.metric .* no average"),
        (["train.early_stopping.metric=a", "train.early_stopping.mode=up"], "mode is 'up'"),
        (["train.early_stopping.metric=a", "train.early_stopping.patience=0"], "patience is 0"),
        (["train.early_stopping.metric=tiny/eror"], "nearest is 'tiny/error'"),
        (["train.freeze=backbone"], "train.freeze"),
        (['train.freeze=["backbon"]'], "'backbon', which fits no part .* nearest is 'backbone'"),
        (["train.init.weights=best"], "train.init.weights is 'best'"),
        (["train.clip_grad.params.max_norm=-1"], "max_norm=-1"),
        (["train.eval_period_epochs=-1"], "train.eval_period_epochs is -1"),
        (["train.checkpointer.period_epochs=-0.5"], "train.checkpointer.period_epochs is -0.5"),
        (["train.accumulate=0"], "train.accumulate is 0"),
        (["train.clip_grad.params.norm_type=0"], "norm_type=0"),
        (["train.checkpointer.max_to_keep=2.5"], "max_to_keep is 2.5"),
        (["train.seed=1.5"], "train.seed is 1.5"),
    ],
)
def test_wrong_settings_are_one_sentence(arguments, expected: str, tmp_path: Path) -> None:
    start = tmp_path / "start.pth"
    torch.save({"model": TinyDetector().state_dict()}, start)
    with pytest.raises(UserError, match=expected) as caught:
        run(faulty_config(tmp_path), f"train.init_checkpoint={start}", *arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("max", [], 0),
        ("max", [1.0], 0),
        ("max", [1.0, 2.0, 1.5, 2.0], 2),  # as good as the best is not better
        ("min", [1.0, 2.0, 0.5, math.nan], 1),
        ("max", [math.nan, math.nan], 1),
    ],
)
def test_evaluations_since_the_best_by_hand(mode: str, values, expected: int) -> None:
    assert since_best(values, mode) == expected


def test_history_forgets_what_is_done_again_and_survives_damage(tmp_path: Path) -> None:
    history = EvaluationHistory(tmp_path, 0)
    for step, value in ((2, 1.0), (5, math.nan), (8, 3.0)):
        history.add(step, {"a": value})
    again = EvaluationHistory(tmp_path, 6)
    assert again.has(5) and not again.has(8)
    assert again.values("a")[0] == 1.0 and math.isnan(again.values("a")[1])
    again.add(5, {"a": 7.0})
    assert again.values("a") == [1.0, 7.0]
    assert EarlyStopping("a", 1, "min").is_over(again)
    (tmp_path / "evaluations.json").write_text('{"iteration": 2, "num')
    assert EvaluationHistory(tmp_path, 6).lines == []


def test_run_stops_early_and_so_does_a_resumed_one(tmp_path: Path) -> None:
    """The error falls, so by "max" the first evaluation is the best: two more, and it is over."""
    config = faulty_config(tmp_path)
    stop = ["train.early_stopping.metric=tiny/error", "train.early_stopping.mode=max",
            "train.early_stopping.patience=2", "train.epochs=9"]  # fmt: skip
    run(config, *stop)
    errors = read_lines(tmp_path / "run/metrics.json", "tiny/error")
    assert len(errors) == 3 and errors[0] == max(errors)
    assert len(read_lines(tmp_path / "run/metrics.json", "total_loss")) == 9
    assert load(tmp_path / "run/model_final.pth")["iteration"] == 8
    run(config, *stop, "--resume")
    assert "nothing to do: 9 of 27" in (tmp_path / "run/log.txt").read_text()

    output = f"train.output_dir={tmp_path / 'stopped'}"
    run(config, *stop, output, "train.max_iter=4")
    (tmp_path / "stopped/evaluations.json").write_text(
        (tmp_path / "run/evaluations.json").read_text().splitlines()[0] + "\n"
    )  # without that of the cut at step 4
    run(config, *stop, output, "--resume")
    assert (
        read_lines(tmp_path / "stopped/metrics.json", "total_loss")[-1:]
        == read_lines(tmp_path / "run/metrics.json", "total_loss")[-1:]
    )
    assert load(tmp_path / "stopped/model_final.pth")["iteration"] == 8


def test_frozen_parts_do_not_change_and_are_not_optimised(tmp_path: Path) -> None:
    run(faulty_config(tmp_path), 'train.freeze=["backbone"]', "train.max_iter=3", "train.seed=5")
    torch.manual_seed(5)
    start, end = TinyDetector().state_dict(), load(tmp_path / "run/model_final.pth")
    for name, value in start.items():
        assert torch.equal(end["model"][name], value) == name.startswith("backbone"), name
    assert len(end["trainer"]["optimizer"]["state"]) == 2


def test_patterns_name_whole_parts() -> None:
    """ "0" is not "00", and a star stands for one part or more of a name."""
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(1, 1), "ab": torch.nn.Linear(1, 1)})
    freeze(model, ["a"])
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    freeze(model, ["*.bias"])
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, False]
