# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Deformable DETR, R50, multi-scale, 50 epochs: the recipe of the paper's authors.

lr 2e-4 (2e-5 for backbone, sampling_offsets and reference_points), 32 images per step, a tenth
after epoch 40, classification weight 2.0, stem and first stage frozen, the 100 best detections,
images without any box kept, sizes of resized images truncated.
main.py of github.com/fundamentalvision/Deformable-DETR, commit 11169a6.

Not trained here; the authors report 44.5 box AP on COCO val2017 (README of that repository).

    python tools/train_net.py --num-gpus 8 \\
        --config-file projects/deformable_detr/configs/deformable_detr_r50_authors_50ep.py
"""

from ....configs.common.data.coco import dataloader_as_published as dataloader
from ....configs.common.models.deformable_detr_r50 import model
from ....configs.common.optim import AdamW as optimizer
from ....configs.common.schedule import lr_multiplier_50ep as lr_multiplier
from ....configs.common.train import train

optimizer.lr = 2e-4
optimizer.weight_decay = 1e-4
optimizer.params.rules = [
    dict(pattern=r"^backbone\.|reference_points|sampling_offsets", lr_multiplier=0.1),
]

dataloader.train.total_batch_size = 32
train.scale_lr.reference = 32
dataloader.train.num_workers = 16

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "output/deformable_detr_r50_authors_50ep"
train.epochs = 50
