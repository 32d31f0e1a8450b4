# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Schedules: values worked by hand."""

import pytest

from detrex_mammo.engine.schedule import CosineSchedule, MultiStepSchedule
from detrex_mammo.errors import UserError


def test_multi_step_drops_after_its_epochs() -> None:
    """10 steps an epoch: epoch 40 ends with step 399, the first slow step is 400."""
    schedule = MultiStepSchedule(milestones=[40, 45.5], gamma=0.1)
    values = [schedule(step, 10, 500) for step in (0, 399, 400, 454, 455)]
    assert values == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_warm_up_in_steps_and_in_epochs_agree() -> None:
    """From 0.2 to 1 in 4 steps: 0.2, 0.4, 0.6, 0.8, 1."""
    in_steps = MultiStepSchedule([40], warmup_iters=4, warmup_factor=0.2)
    in_epochs = MultiStepSchedule([40], warmup_epochs=0.5, warmup_factor=0.2)
    for schedule in (in_steps, in_epochs):
        values = [schedule(step, 8, 400) for step in range(6)]
        assert values == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_cosine_is_half_way_in_the_middle() -> None:
    schedule = CosineSchedule(final_factor=0.2)
    values = [schedule(step, 10, 100) for step in (0, 50, 100, 120)]
    assert values == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert CosineSchedule(warmup_iters=10, warmup_factor=0.0)(5, 10, 10**9) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "settings",
    [
        {"milestones": [40, 30]},
        {"warmup_iters": 5, "warmup_epochs": 1.0},
        {"warmup_iters": -1},
    ],
)
def test_contradiction_is_refused(settings: dict) -> None:
    with pytest.raises(UserError, match="lr_multiplier"):
        MultiStepSchedule(**settings)
