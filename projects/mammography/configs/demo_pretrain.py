# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The shipped checkpoint's recipe: a small detector from scratch, on simulated lesions, on a CPU.

Trained on one patient's four mammograms and on synthetic breast texture only; what it reached is
written beside the checkpoint, in ``projects/mammography/checkpoints/README.md``.

    python tools/prepare_data.py demo --out datasets/demo_pretrain \\
        --train-images 1600 --synthetic 240
    python tools/train_net.py --config-file projects/mammography/configs/demo_pretrain.py
"""

from ....configs.common.data.mammography import dataloader
from ....configs.common.models.deformable_detr_small import model
from ....configs.common.optim import AdamW as optimizer
from ....configs.common.schedule import lr_multiplier_cosine as lr_multiplier
from ....configs.common.train import train

model.num_classes = 2

dataloader.train.dataset.name = "demo_pretrain_train"
dataloader.train.dataset.json_file = "datasets/demo_pretrain/train.json"
dataloader.train.dataset.image_root = "datasets/demo_pretrain"
dataloader.train.total_batch_size = 4
train.scale_lr.reference = 4
dataloader.train.num_workers = 1
dataloader.test.dataset.name = "demo_pretrain_val"
dataloader.test.dataset.json_file = "datasets/demo_pretrain/val.json"
dataloader.test.dataset.image_root = "datasets/demo_pretrain"
dataloader.test.num_workers = 2

# 0.5 mm per network pixel, about: a breast is 16 to 21 cm high.
dataloader.train.mapper.augmentations[1].height = 384
dataloader.train.mapper.augmentations[1].width = 224
dataloader.train.mapper.augmentations[1].scale_range = [0.8, 1.0]
dataloader.train.mapper.augmentations[1].aspect_jitter = 0.08
dataloader.test.mapper.augmentations[0].height = 384
dataloader.test.mapper.augmentations[0].width = 224
dataloader.evaluator.note = "simulated lesions"

optimizer.lr = 4e-4
optimizer.params.rules = [
    dict(pattern=r"sampling_offsets", lr_multiplier=0.1),
    dict(pattern=r"norm\d?\.(weight|bias)$", weight_decay=0.0),
]
lr_multiplier.warmup_iters = 300
lr_multiplier.final_factor = 0.01

train.output_dir = "output/demo_pretrain"
train.epochs = 15
train.eval_period_epochs = 3
train.checkpointer.period_epochs = 1
train.checkpointer.max_to_keep = 2
