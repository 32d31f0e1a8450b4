# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""AdamW with learning-rate groups as data, so that config.yaml loads again."""

import torch
from detectron2.config import LazyCall as L

from detrex_mammo.engine.optimizer import param_groups

# rules: [{pattern, lr_multiplier, weight_decay}], see param_groups.
AdamW = L(torch.optim.AdamW)(
    params=L(param_groups)(lr="${..lr}", weight_decay="${..weight_decay}", rules=[]),
    lr=1e-4,
    betas=[0.9, 0.999],
    weight_decay=1e-4,
    fused=True,  # all parameters in one kernel; False for an odd device that has none
)
