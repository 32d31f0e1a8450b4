# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Learning-rate schedules, in epochs."""

from detectron2.config import LazyCall as L

from detrex_mammo.engine.schedule import CosineSchedule, MultiStepSchedule

# 50 epochs, a tenth after 40: the published schedule.
lr_multiplier_50ep = L(MultiStepSchedule)(
    milestones=[40], gamma=0.1, warmup_iters=0, warmup_epochs=0.0, warmup_factor=0.001
)
# 12 epochs, a tenth after 11.
lr_multiplier_12ep = L(MultiStepSchedule)(
    milestones=[11], gamma=0.1, warmup_iters=0, warmup_epochs=0.0, warmup_factor=0.001
)
# Half a cosine over the run, whatever its length.
lr_multiplier_cosine = L(CosineSchedule)(
    final_factor=0.0, warmup_iters=0, warmup_epochs=0.0, warmup_factor=0.001
)
