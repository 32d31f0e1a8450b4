# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Learning-rate schedules. Set one of the three lengths of the warm-up: iters, epochs or share."""

from detectron2.config import LazyCall as L

from detrex_mammo.engine.plateau import PlateauSchedule
from detrex_mammo.engine.schedule import (
    CosineSchedule,
    LinearSchedule,
    MultiStepSchedule,
    OneCycleSchedule,
    PolynomialSchedule,
    StepSchedule,
)

_warmup = dict(
    warmup_iters=0, warmup_epochs=0.0, warmup_share=0.0, warmup_factor=0.001, after_warmup=False
)

# 50 epochs, a tenth after 40: the published schedule.
lr_multiplier_50ep = L(MultiStepSchedule)(milestones=[40], gamma=0.1, **_warmup)
# 12 epochs, a tenth after 11.
lr_multiplier_12ep = L(MultiStepSchedule)(milestones=[11], gamma=0.1, **_warmup)
# A tenth after every 40 epochs.
lr_multiplier_step = L(StepSchedule)(epochs=40.0, gamma=0.1, **_warmup)
# Over the whole run, whatever its length: half a cosine; the same in equal parts, each starting
# anew; a straight line; a power of what is left; up and down once.
lr_multiplier_cosine = L(CosineSchedule)(final_factor=0.0, cycles=1, **_warmup)
lr_multiplier_restarts = L(CosineSchedule)(final_factor=0.0, cycles=4, **_warmup)
lr_multiplier_linear = L(LinearSchedule)(final_factor=0.0, **_warmup)
lr_multiplier_polynomial = L(PolynomialSchedule)(power=0.9, final_factor=0.0, **_warmup)
lr_multiplier_one_cycle = L(OneCycleSchedule)(
    peak_at=0.3, start_factor=0.04, final_factor=4e-6, **_warmup
)
# A tenth when a number of the evaluations ("val/loss"; "bbox/AP50" with mode="max") has not become
# better in more than `patience` of them in a row, as torch's ReduceLROnPlateau counts.
lr_multiplier_plateau = L(PlateauSchedule)(
    metric="val/loss",  # needs train.eval_loss=True
    mode="min",
    factor=0.1,
    patience=5,
    threshold=1e-4,
    threshold_mode="rel",  # the threshold is a share of the best value; "abs": an amount
    cooldown=0,
    min_factor=0.0,
    **_warmup,
)
