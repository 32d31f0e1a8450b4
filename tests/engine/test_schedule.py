# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Schedules: values worked by hand, and torch's own schedulers of the same curves."""

import math

import pytest
import torch
from torch.optim import lr_scheduler

from detrex_mammo.config import get_config, instantiate
from detrex_mammo.engine.schedule import (
    CosineSchedule,
    LinearSchedule,
    MultiStepSchedule,
    OneCycleSchedule,
    PolynomialSchedule,
    Schedule,
    StepSchedule,
)
from detrex_mammo.errors import UserError

STEPS, PER_EPOCH = 40, 5


def test_multi_step_drops_after_its_epochs() -> None:
    """10 steps an epoch: epoch 40 ends with step 399, the first slow step is 400."""
    schedule = MultiStepSchedule(milestones=[40, 45.5], gamma=0.1)
    values = [schedule(step, 10, 500) for step in (0, 399, 400, 454, 455)]
    assert values == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_warm_up_in_steps_in_epochs_and_as_a_share_agree() -> None:
    """From 0.2 to 1 in 4 steps of 400, 8 an epoch: 0.2, 0.4, 0.6, 0.8, 1."""
    for length in ({"warmup_iters": 4}, {"warmup_epochs": 0.5}, {"warmup_share": 0.01}):
        schedule = MultiStepSchedule([40], warmup_factor=0.2, **length)
        values = [schedule(step, 8, 400) for step in range(6)]
        assert values == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_cosine_is_half_way_in_the_middle() -> None:
    schedule = CosineSchedule(final_factor=0.2)
    values = [schedule(step, 10, 100) for step in (0, 50, 100, 120)]
    assert values == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert CosineSchedule(warmup_iters=10, warmup_factor=0.0)(5, 10, 10**9) == pytest.approx(0.5)


def test_restarts_go_back_to_one() -> None:
    """100 steps in 100 parts: every step is the first of its part, also the 29th."""
    every = CosineSchedule(cycles=100)
    assert [every(step, 10, 100) for step in range(100)] == pytest.approx([1.0] * 100)


def by_torch(make, last: int = STEPS) -> list[float]:
    """Learning rates of a torch scheduler over a base rate of 1, for each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = make(optimizer), []
    for _ in range(last):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


ORACLES = {
    "step": (
        StepSchedule(epochs=3, gamma=0.5),
        lambda o: lr_scheduler.StepLR(o, 3 * PER_EPOCH, 0.5),
    ),
    "cosine": (
        CosineSchedule(final_factor=0.1),
        lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.1),
    ),
    "restarts": (
        CosineSchedule(cycles=4),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, STEPS // 4),
    ),
    "linear": (
        LinearSchedule(final_factor=0.25),
        lambda o: lr_scheduler.LinearLR(o, 1.0, 0.25, STEPS),
    ),
    "polynomial": (
        PolynomialSchedule(power=2.5),
        lambda o: lr_scheduler.PolynomialLR(o, STEPS, 2.5),
    ),
}


@pytest.mark.parametrize("name", ORACLES)
def test_curve_is_that_of_torch(name: str) -> None:
    schedule, make = ORACLES[name]
    values = [schedule(step, PER_EPOCH, STEPS) for step in range(STEPS)]
    assert values == pytest.approx(by_torch(make), abs=1e-6)


@pytest.mark.parametrize("kind", ["cosine", "linear", "polynomial"])
def test_curve_after_the_warm_up_is_that_of_transformers(kind: str) -> None:
    """Up from 0 in 5 % of 200 steps, then the curve over the other 190."""
    from transformers import optimization  # slow to import

    schedule, make = {
        "cosine": (CosineSchedule, optimization.get_cosine_schedule_with_warmup),
        "linear": (LinearSchedule, optimization.get_linear_schedule_with_warmup),
        "polynomial": (
            lambda **settings: PolynomialSchedule(power=2.0, final_factor=0.25, **settings),
            lambda *a: optimization.get_polynomial_decay_schedule_with_warmup(
                *a, lr_end=0.25, power=2.0
            ),
        ),
    }[kind]
    schedule = schedule(warmup_share=0.05, warmup_factor=0.0, after_warmup=True)
    values = [schedule(step, 7, 200) for step in range(200)]
    assert values == pytest.approx(by_torch(lambda o: make(o, 10, 200), last=200), abs=1e-6)


def test_one_cycle_is_that_of_torch() -> None:
    """torch's last step, number 40 of 41, is the end of the curve; its peak is at 0.3 * 41 - 1."""
    expected = by_torch(lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=41), last=40)
    schedule = OneCycleSchedule(peak_at=(0.3 * 41 - 1) / 40)
    assert [schedule(step, PER_EPOCH, 40) for step in range(40)] == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        (MultiStepSchedule, {"milestones": [40, 30]}, "ascending"),
        (MultiStepSchedule, {"milestones": "abc"}, "milestones is 'abc', but must be a list"),
        (MultiStepSchedule, {"milestones": 40}, "milestones is 40, but must be a list"),
        (MultiStepSchedule, {"milestones": [40, None]}, "must be a list of epochs"),
        (MultiStepSchedule, {"gamma": None}, "gamma is None, but must be a number"),
        (CosineSchedule, {"final_factor": -0.1}, "final_factor is -0.1, but must be a number, 0"),
        (CosineSchedule, {"warmup_factor": math.nan}, "warmup_factor is nan"),
        (
            MultiStepSchedule,
            {"warmup_iters": 5, "warmup_epochs": 1.0},
            "warmup_iters=5, warmup_epochs=1.0: set one",
        ),
        (CosineSchedule, {"warmup_share": 0.1, "warmup_iters": 1}, "set one"),
        (CosineSchedule, {"warmup_iters": -1}, "0 or more"),
        (CosineSchedule, {"warmup_share": 1.5}, "at most 1"),
        (CosineSchedule, {"cycles": 0}, "lr_multiplier.cycles is 0"),
        (CosineSchedule, {"after_warmup": "False"}, "after_warmup is 'False', but must be true or"),
        (CosineSchedule, {"cycles": 1.5}, "whole number"),
        (StepSchedule, {"epochs": 0}, "lr_multiplier.epochs is 0"),
        (PolynomialSchedule, {"power": 0}, "lr_multiplier.power is 0"),
        (OneCycleSchedule, {"peak_at": 1.0}, "lr_multiplier.peak_at is 1.0"),
    ],
)
def test_contradiction_is_refused(kind, settings: dict, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        kind(**settings)
    assert str(caught.value).startswith("lr_multiplier")


def test_every_shipped_schedule_is_built() -> None:
    nodes = get_config("configs/common/schedule.py")
    schedules = {name: instantiate(nodes[name]) for name in nodes if name.startswith("lr_")}
    assert len(schedules) == 9
    schedules.pop("lr_multiplier_plateau").after([1.0])  # stays at 1 until an evaluation drops it
    for name, schedule in schedules.items():
        assert isinstance(schedule, Schedule), name
        values = [schedule(step, 10, 500) for step in range(500)]
        assert max(values) == pytest.approx(1.0) and 0 <= values[-1] < 0.2, name
