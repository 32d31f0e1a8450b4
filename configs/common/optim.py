# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""AdamW with learning-rate groups as data, so that config.yaml loads again.

Any optimizer of torch takes the same ``params``, such as ``optimizer = L(torch.optim.SGD)(
params=L(param_groups)(lr="${..lr}"), lr=0.01, momentum=0.9)`` in a config, or on the command line
``optimizer._target_=torch.optim.SGD optimizer.lr=0.01 optimizer.momentum=0.9``.
"""

import torch
from detectron2.config import LazyCall as L

from detrex_mammo.engine.adamw_8bit import adamw_8bit
from detrex_mammo.engine.optimizer import param_groups

# rules: [{pattern, lr_multiplier, weight_decay}], see param_groups.
AdamW = L(torch.optim.AdamW)(
    params=L(param_groups)(lr="${..lr}", weight_decay="${..weight_decay}", rules=[]),
    lr=1e-4,
    betas=[0.9, 0.999],
    weight_decay=1e-4,
    fused=True,  # all parameters in one kernel; False for an odd device that has none
)

# Two bytes of state a parameter instead of eight; needs pip install 'detrex_mammo[8bit]'. A config
# that has imported the AdamW above, with its rules: optimizer._target_ = AdamW8bit._target_
AdamW8bit = L(adamw_8bit)(
    params=L(param_groups)(lr="${..lr}", weight_decay="${..weight_decay}", rules=[]),
    lr=1e-4,
    betas=[0.9, 0.999],
    weight_decay=1e-4,
)
