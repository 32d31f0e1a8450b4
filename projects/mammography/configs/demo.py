# Copyright (c) The detrex_mammo authors. Licensed under Apache-2.0.
"""The demo: the shipped small detector, trained on for a few minutes on a CPU, then evaluated.

``make demo`` makes the dataset, runs this, and draws the results. By hand:

    python tools/prepare_data.py demo --out datasets/demo
    python tools/train_net.py --config-file projects/mammography/configs/demo.py
"""

from .demo_pretrain import dataloader, lr_multiplier, model, optimizer, train

dataloader.train.dataset.name = "demo_train"
dataloader.train.dataset.json_file = "datasets/demo/train.json"
dataloader.train.dataset.image_root = "datasets/demo"
dataloader.test.dataset.name = "demo_val"
dataloader.test.dataset.json_file = "datasets/demo/val.json"
dataloader.test.dataset.image_root = "datasets/demo"

optimizer.lr = 1e-4
lr_multiplier.warmup_iters = 50

train.init_checkpoint = "projects/mammography/checkpoints/demo_small.pth"
train.output_dir = "output/demo"
train.epochs = 12
train.eval_period_epochs = 0
train.report = True
train.checkpointer.period_epochs = 4
