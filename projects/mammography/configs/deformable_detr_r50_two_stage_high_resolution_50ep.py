# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Deformable DETR, R50, two-stage, at 2944 x 1920 pixels, 50 epochs.

As ``deformable_detr_r50_two_stage_mammography_50ep.py``, whose 1333 x 800 pixels leave a small mass
a few pixels wide and no calcification at all; 2944 x 1920 is the input of NYU's detectors
(https://arxiv.org/abs/1903.08297). An image has 117,000 tokens then, five times as many, so memory
is saved where it can be: encoder layers are computed again in the backward pass, in bfloat16, one
image per GPU, and two steps make the batch of 16 that the learning rate belongs to.

    python tools/train_net.py --num-gpus 8 \\
        --config-file \\
        projects/mammography/configs/deformable_detr_r50_two_stage_high_resolution_50ep.py \\
        dataloader.train.dataset.json_file=train.json dataloader.train.dataset.image_root=images \\
        dataloader.test.dataset.json_file=val.json dataloader.test.dataset.image_root=images \\
        model.num_classes=2

Another frame, for training and evaluation: ``dataloader.train.mapper.augmentations.1.height=2048
dataloader.train.mapper.augmentations.1.width=1024``. Not trained here.
"""

from .deformable_detr_r50_two_stage_mammography_50ep import (
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

dataloader.train.mapper.augmentations[1].height = 2944
dataloader.train.mapper.augmentations[1].width = 1920
frame = "${dataloader.train.mapper.augmentations.1.%s}"
dataloader.test.mapper.augmentations[0].height = frame % "height"
dataloader.test.mapper.augmentations[0].width = frame % "width"
dataloader.train.total_batch_size = 8

model.transformer.encoder_checkpointing = True

train.amp.enabled = True
train.accumulate = 2
train.output_dir = "output/deformable_detr_r50_two_stage_high_resolution_50ep"
