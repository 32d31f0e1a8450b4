# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""Deformable DETR, R50, multi-scale, 50 epochs: the recipe published by detrex.

lr 1e-4 (backbone 1e-5), 16 images per step, classification weight 1.0, the stem frozen only, the
300 best detections, images without any box left out, no weight decay on norms. The same method in
the numbers of the paper's authors: ``deformable_detr_r50_authors_50ep.py``.

Not trained here. To evaluate weights that detrex released, add model.inverse_sigmoid_eps=1e-3.

    python tools/train_net.py --num-gpus 8 \\
        --config-file projects/deformable_detr/configs/deformable_detr_r50_50ep.py
"""

from ....configs.common.data.coco import dataloader
from ....configs.common.models.deformable_detr_r50 import model
from ....configs.common.optim import AdamW as optimizer
from ....configs.common.schedule import lr_multiplier_50ep as lr_multiplier
from ....configs.common.train import train

model.backbone.freeze_at = 1
model.criterion.weight_class = 1.0
model.topk = 300

optimizer.lr = 1e-4
optimizer.weight_decay = 1e-4
optimizer.params.rules = [
    dict(pattern=r"^backbone\.", lr_multiplier=0.1),
    dict(pattern=r"norm\d?\.(weight|bias)$|^input_proj\.\d+\.1\.", weight_decay=0.0),
]

dataloader.train.total_batch_size = 16
dataloader.train.num_workers = 16

train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
train.output_dir = "output/deformable_detr_r50_50ep"
train.epochs = 50
