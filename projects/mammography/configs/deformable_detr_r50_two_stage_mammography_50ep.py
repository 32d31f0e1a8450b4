# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Deformable DETR, R50, two-stage, for your own mammograms in COCO JSON, full size, 50 epochs.

Images are cropped to the breast, turned to one side and fitted into 1333 x 800 pixels. Point it at
your data and say how many classes it has:

    python tools/train_net.py --num-gpus 8 \\
        --config-file \\
        projects/mammography/configs/deformable_detr_r50_two_stage_mammography_50ep.py \\
        dataloader.train.dataset.json_file=train.json dataloader.train.dataset.image_root=images \\
        dataloader.test.dataset.json_file=val.json dataloader.test.dataset.image_root=images \\
        model.num_classes=2

Not trained here. ``train.init_checkpoint`` is an ImageNet backbone; a detector trained on COCO
is the better start.
"""

from ....configs.common.data.mammography import dataloader
from ....configs.common.models.deformable_detr_r50 import model
from ....configs.common.optim import AdamW as optimizer
from ....configs.common.schedule import lr_multiplier_50ep as lr_multiplier
from ....configs.common.train import train

model.num_classes = 1
model.with_box_refine = True
model.two_stage = True
model.topk = 300

dataloader.train.dataset.json_file = "datasets/mammography/train.json"
dataloader.train.dataset.image_root = "datasets/mammography/images"
dataloader.test.dataset.json_file = "datasets/mammography/val.json"
dataloader.test.dataset.image_root = "datasets/mammography/images"
dataloader.train.total_batch_size = 16

optimizer.lr = 2e-4
optimizer.params.rules = [
    dict(pattern=r"^backbone\.", lr_multiplier=0.1),
    dict(pattern=r"sampling_offsets|reference_points", lr_multiplier=0.1),
]

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "output/deformable_detr_r50_two_stage_mammography_50ep"
train.epochs = 50
